"""A checkpoint folder: fetched once, read as safetensors alone, and held against the model that it is to fill.

transformers' own loading is not used on the way in: it would fetch a pull request of the repository unasked where there
is no safetensors file, and draw missing weights anew with a table of warnings. Here whatever does not fit is refused by
name.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill.hub_cards import split_revision

logger = logging.getLogger(__name__)

CONFIG_FILES = (
    "config.json",
    "adapter_config.json",  # to say that an adapter is none of ours to load
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
WHOLE_WEIGHTS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = (WHOLE_WEIGHTS, SHARD_INDEX, "model-*-of-*.safetensors")
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
NAMED_KEYS = 3


def fetch(name_or_path: str, revision: str | None = None, weights: bool = True) -> Path:
    """Return the folder of a checkpoint, fetched from the Hub unless it is one already.

    Args:
        name_or_path: a folder, or `owner/name` or `owner/name@revision` on the Hub.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        weights: whether the weights are fetched too.

    Raises:
        ValueError: there is no such folder and none can be fetched, a revision is asked of a folder, or two revisions
            that differ are given.
    """
    name_or_path, revision = split_revision(name_or_path, revision)
    folder = Path(name_or_path)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{name_or_path!r} is a folder, which has no revision {revision!r}; leave the revision out."
            )
        return folder
    wanted = [*CONFIG_FILES, *(WEIGHT_FILES if weights else ())]
    try:
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name_or_path!r} is no folder here and could not be fetched from the Hub{at} ({reason}); check the "
            f"spelling, "
            "the network and your access to the repository."
        ) from error


def read_weights(folder: Path, source: str) -> dict[str, torch.Tensor]:
    """Read every tensor of a folder, from one safetensors file or from the shards that an index names.

    Args:
        folder: holds `model.safetensors`, or its shards and their index.
        source: what the user called it, for messages.

    Raises:
        ValueError: there is no safetensors file, a shard is missing, or a file is damaged.
    """
    if (folder / WHOLE_WEIGHTS).is_file():
        files = [folder / WHOLE_WEIGHTS]
    elif (folder / SHARD_INDEX).is_file():
        index = json.loads((folder / SHARD_INDEX).read_text(encoding="utf-8"))
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
        if absent := [file.name for file in files if not file.is_file()]:
            raise ValueError(
                f"{source!r} lacks {_some(absent)}, which {SHARD_INDEX} names; fetch the checkpoint again."
            )
    else:
        pickles = sorted(
            file.name for pattern in PICKLES for file in folder.glob(pattern) if file.name != "training_args.bin"
        )
        found = f" but {_some(pickles)}" if pickles else ""
        raise ValueError(
            f"{source!r} has no {WHOLE_WEIGHTS}{found}, and pickles are never read here because unpickling runs code: "
            f"give "
            "the revision of the repository that has safetensors (most often a pull request, revision 'refs/pr/N' "
            "from its "
            "Community tab), or load it with transformers where you trust it, `from_pretrained` then "
            "`save_pretrained`, and "
            "give the folder that this writes."
        )
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file.name} of {source!r} is damaged ({error}); fetch the checkpoint again.") from error
    return weights


def split_head(
    weights: Mapping[str, torch.Tensor], prefix: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split the weights of a model with a head into body, without its prefix, and head; a bare model is all body.

    Example:
        >>> body, head = split_head({"vilt.pooler.dense.bias": torch.ones(1), "classifier.0.bias": torch.ones(1)}, "vilt")
        >>> list(body), list(head)
        (['pooler.dense.bias'], ['classifier.0.bias'])
    """
    prefix = f"{prefix}."
    if not any(name.startswith(prefix) for name in weights):
        return dict(weights), {}
    body = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    return body, {name: weight for name, weight in weights.items() if not name.startswith(prefix)}


def build(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    body: Mapping[str, torch.Tensor],
    head: Mapping[str, torch.Tensor],
    source: str,
    *,
    new_head: bool = False,
    carried: Mapping[str, torch.Tensor] | None = None,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Build a model and give it every weight; nothing is drawn anew but a head for which that is asked.

    Args:
        cls: the class, bare or with a head.
        config: its configuration.
        body: weights of the body, without prefix.
        head: weights of the head, under the names of `cls`; left out, with a warning, for a bare class or a fresh head.
        source: where the weights come from, for messages.
        new_head: draw the head anew; a warning says which parameters these are.
        carried: weights of the head, under the names of `cls`, that come from a head of another kind; they are not
            drawn anew, and `head` is left out.
        attn_implementation: how attention is computed.
        dtype: of the model.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: weights are missing, left over, or of another shape; the first few are named, and how many there
        are.
    """
    model = cls._from_config(config, attn_implementation=attn_implementation, dtype=dtype)
    expected = model.state_dict()
    body_of = f"{cls.base_model_prefix}."
    is_bare = not any(name.startswith(body_of) for name in expected)
    weights = dict(body) if is_bare else {body_of + name: weight for name, weight in body.items()}
    if carried:
        weights |= carried
        logger.warning(
            "%s: its own head is of another kind; taken over from it: %s.", source, ", ".join(sorted(carried))
        )
    elif head and (is_bare or new_head):
        logger.warning("%s: the weights of its own head are left out: %s.", source, ", ".join(head))
    elif head:
        weights |= head
    for name, original in model.all_tied_weights_keys.items():
        if original in weights and name in weights and not torch.equal(weights[name], weights[original]):
            raise ValueError(
                f"{source}: {name} and {original} differ, but the model ties them; it was saved untied, which is not "
                f"converted."
            )
        if original in weights:
            weights[name] = weights[original]
    fresh = [] if is_bare or not new_head else [name for name in expected if not name.startswith(body_of)]
    fresh = [name for name in fresh if name not in model.all_tied_weights_keys and name not in (carried or {})]
    _refuse_what_does_not_fit(
        {name: weight for name, weight in expected.items() if name not in fresh}, weights, cls, source
    )
    if fresh:
        logger.warning("%s: the head is drawn anew and must be trained: %s.", source, ", ".join(fresh))
    model.load_state_dict(weights, strict=not fresh)
    return model.eval()


def _refuse_what_does_not_fit(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], cls: type, source: str
) -> None:
    """Raise one sentence that names missing, unexpected and wrongly shaped weights."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in found and found[name].shape != weight.shape
    ]
    parts = [
        f"{len(names)} {problem} ({_some(names)})"
        for names, problem in ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
        if names
    ]
    if parts:
        raise ValueError(
            f"{source} does not fit {cls.__name__}, weights by name: {', '.join(parts)}; the checkpoint is damaged or "
            f"holds "
            "another model than its config.json says, so fetch it again or correct the config."
        )


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are.

    Example:
        >>> _some(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(names) - NAMED_KEYS} more" if len(names) > NAMED_KEYS else ""
    return ", ".join(names[:NAMED_KEYS]) + more


__all__ = ["build", "fetch", "read_weights", "split_head"]
