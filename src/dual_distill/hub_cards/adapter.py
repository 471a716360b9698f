"""A folder with an adapter of peft instead of a whole model: which base it needs, pinned to a commit.

An adapter without its base is nothing, so one whose base others cannot load is refused. peft itself is not imported
here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .hand_written import Card, parse_card
from .hub_names import split_revision
from .run_record import origin_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# The Hub's cache keeps each commit in models--OWNER--NAME/snapshots/COMMIT, and no name holds two dashes.
_CACHED = re.compile(r".*[/\\]models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")
_VERSION_OF_PEFT = re.compile(r"\s*### Framework versions\s*- PEFT \S+\s*\Z")


@dataclass(frozen=True)
class Adapter:
    """What an adapter is and needs.

    Attributes:
        base: `owner/name` of the base model on the Hub.
        base_revision: its commit.
        kind: of the adapter as peft calls it, such as "LORA".
        rank: of a low-rank adapter, None of another kind.
        target_modules: names of the layers that it changes.
        architecture: class of the base model.
    """

    base: str
    base_revision: str
    kind: str
    rank: int | None
    target_modules: tuple[str, ...]
    architecture: str


def read_adapter(config: Mapping[str, Any]) -> tuple[Adapter, dict[str, Any]]:
    """Read an adapter's configuration, and find the commit of its base.

    Args:
        config: content of `adapter_config.json`.

    Returns:
        The adapter, and the configuration with the base's name and commit in it, as it may be published.

    Raises:
        ValueError: the base is no repository of the Hub, its commit is not known, or its class is not named.

    Example:
        >>> config = {"base_model_name_or_path": "me/student", "revision": "a" * 40, "peft_type": "LORA", "r": 8,
        ...     "target_modules": ["value", "query"], "auto_mapping": {"base_model_class": "DualEncoderForQuestionAnswering"}}
        >>> adapter, _ = read_adapter(config)
        >>> adapter.base, adapter.rank, adapter.target_modules
        ('me/student', 8, ('query', 'value'))
    """
    base, revision = _base_of(config)
    architecture = (config.get("auto_mapping") or {}).get("base_model_class")
    if not isinstance(architecture, str):
        raise ValueError(
            f"{ADAPTER_CONFIG} does not say which class its base is (auto_mapping); save the adapter with peft, from "
            f"a model "
            "of this package and without a task_type."
        )
    targets = config.get("target_modules") or ()
    adapter = Adapter(
        base,
        revision,
        str(config.get("peft_type")),
        config.get("r"),
        (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        architecture,
    )
    return adapter, {**config, "base_model_name_or_path": base, "revision": revision}


def read_card(file: Path) -> Card | None:
    """Take apart the README beside a checkpoint; None: there is none, or it is the empty form that peft saves.

    Raises:
        ValueError: as `parse_card`.
    """
    if not file.is_file():
        return None
    card = parse_card(file.read_text(encoding="utf-8"))
    form = ModelCard.from_template(ModelCardData()).text.strip()
    if card.digest is None and _VERSION_OF_PEFT.sub("", card.after).strip() == form:
        return None
    return card


def _base_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """Name and commit of the base."""
    given = config.get("base_model_name_or_path") or ""
    if found := _CACHED.fullmatch(given):
        owner, name, commit = found.groups()
        return f"{owner}/{name}", commit
    is_folder = Path(given).is_dir()
    name, revision = (given, None) if is_folder else split_revision(given, config.get("revision"))
    if is_folder or not _HUB_NAME.fullmatch(name):
        what = "names no base model" if not given else "has a base model that is no repository of the Hub"
        raise ValueError(
            f"{ADAPTER_CONFIG} {what}, and nobody else could load the adapter; push the base first and load it from "
            f"there to "
            "train, or `merge_and_unload` the adapter and push the whole model."
        )
    if revision is not None and _COMMIT.fullmatch(revision):
        return name, revision
    return name, origin_of(name, revision).revision


__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "Adapter", "read_adapter", "read_card"]
