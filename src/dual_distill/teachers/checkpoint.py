"""A checkpoint folder: fetched once, read as safetensors alone, and checked against the model that it is to fill.

transformers' own loading is not used on the way in: it would fetch a pull request of the repository unasked where there
is no safetensors file, and initialize missing weights with a table of warnings. Here whatever does not fit is refused
by name.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from textwrap import shorten

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from dual_distill import sealed
from dual_distill.data import fingerprint
from dual_distill.hub_cards import split_revision
from dual_distill.modeling import DualEncoderModel, FusionEncoderModel

logger = logging.getLogger(__name__)

Weights = Mapping[str, torch.Tensor]

BARE_MODELS = (FusionEncoderModel, DualEncoderModel)
# An adapter's config too, so that it is recognized and refused as one.
CONFIG_FILES = (
    *("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template*", "qformer_tokenizer/*"),
)
# Constants that transformers 4 saved with the weights of a ViLT.
BUFFERS = ("embeddings.text_embeddings.position_ids", "embeddings.text_embeddings.token_type_ids")
# The same bias, under the name that transformers 4 gave it.
OLD_DECODER_BIAS, DECODER_BIAS = "mlm_score.bias", "mlm_score.decoder.bias"
WHOLE_WEIGHTS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = (WHOLE_WEIGHTS, SHARD_INDEX, "model-*-of-*.safetensors")
# As `save_pretrained(variant="fp16")` names them; read where there is nothing else.
VARIANTS = ("model.*.safetensors", "model.safetensors.index.*.json")
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def fetch(name_or_path: str, revision: str | None = None, weights: bool = True) -> Path:
    """Return the folder of a checkpoint, fetched from the Hub unless it is a folder already.

    Args:
        name_or_path: a folder, or `owner/name` or `owner/name@revision` on the Hub.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        weights: whether the weights are fetched too.

    Raises:
        ValueError: there is no such folder and none can be fetched, a revision is asked of a folder, or two revisions
            that differ are given; or a file of a folder that was sealed is missing or damaged.
    """
    name_or_path, revision = split_revision(name_or_path, revision)
    folder = Path(name_or_path)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name_or_path!r} is a folder, which has no revision {revision!r}; leave it out.")
        sealed.verify(folder, *CONFIG_FILES, *(["model*"] if weights else ()))
        return folder

    wanted = [*CONFIG_FILES, *(WEIGHT_FILES if weights else ())]
    try:
        folder = Path(snapshot_download(name_or_path, revision=revision, allow_patterns=wanted))
        if weights and not any((folder / name).is_file() for name in (WHOLE_WEIGHTS, SHARD_INDEX)):
            snapshot_download(name_or_path, revision=revision, allow_patterns=[*wanted, *VARIANTS])
        return folder
    except (OSError, ValueError) as error:
        reason = f"{'' if revision is None else f' at revision {revision!r}'} ({first_line(error)})"
        failed = f"could not be fetched from the Hub{reason}; check spelling, network and your access to it"
        raise ValueError(f"{name_or_path!r} is not a folder here and {failed}.") from error


def content_of(name_or_path: str, revision: str | None = None) -> str | None:
    """Return what a checkpoint holds now, unloaded: its commit, or a digest of a folder's files; None: it is not here.

    Two that differ may be loaded as different models, or with other processors.
    """
    try:
        folder = fetch(name_or_path, revision, weights=False)
    except ValueError:
        # Workers may see what this machine does not; whoever loads it says what is wrong.
        return None
    if not Path(split_revision(name_or_path, revision)[0]).is_dir():
        return folder.name  # the cache names snapshots by commit
    patterns = (*CONFIG_FILES, "*.safetensors", SHARD_INDEX)
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return fingerprint([[file.relative_to(folder).as_posix(), sealed.digest_of(file)] for file in files])


def read_config(folder: Path, source: str, model_types: Sequence[str], expected: str) -> PreTrainedConfig:
    """Read `config.json`; refuse a model of another type than `model_types`, saying what is expected instead."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            way_out = "load it onto its base with peft, `merge_and_unload`, save it with its processor, and give that"
            raise ValueError(f"{source!r} holds an adapter of peft, not a model; {way_out}.")
        raise ValueError(f"{source!r} has no config.json; give the folder or repository of a saved model.")

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RecursionError, StrictDataclassError) as error:
        raise ValueError(f"the config.json of {source!r} cannot be read: {first_line(error)}") from error
    if config.model_type not in model_types:
        raise ValueError(f"{source!r} holds a model of type {config.model_type!r}; give {expected}.")
    return config


def read_weights(folder: Path, source: str) -> dict[str, torch.Tensor]:
    """Read every tensor of a folder, from one safetensors file or from the shards that an index names."""
    found = [name for name in (WHOLE_WEIGHTS, SHARD_INDEX) if (folder / name).is_file()][:1]
    variants = sorted(file.name for pattern in VARIANTS for file in folder.glob(pattern) if "-of-" not in file.name)
    if not found and len(variants) > 1:
        way_out = f"give a folder with one of them, under the name {WHOLE_WEIGHTS}"
        raise ValueError(f"{source!r} has several variants of the weights, {' and '.join(variants)}; {way_out}.")
    if not found and not variants:
        names = {file.name for pattern in PICKLES for file in folder.glob(pattern)} - {"training_args.bin"}
        pickles = f"no {WHOLE_WEIGHTS}{' but ' if names else ''}{', '.join(sorted(names))}"
        never = "and pickles are never read, for unpickling runs code"
        revision = "give the revision that has safetensors (often 'refs/pr/N', a pull request)"
        trusted = "load it with transformers where you trust it, `save_pretrained`, and give that folder"
        raise ValueError(f"{source!r} has {pickles}, {never}: {revision}, or {trusted}.")

    files = found or variants
    [index] = files
    if index.endswith(".json"):
        weight_map = sealed.read_json(folder / index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} of {source!r} names no files (weight_map); fetch the checkpoint again.")
        files = sorted(set(weight_map.values()))

    weights: dict[str, torch.Tensor] = {}
    wrong: list[str] = []
    for name in files:
        try:
            # Not a named pipe either, which would be waited for.
            if not (folder / name).is_file():
                raise ValueError(f"{source!r} lacks {name}, which {index} names; fetch it again.")
            part = load_file(folder / name)
            wrong += sealed.remembered_of(folder / name, "not-finite", partial(_not_finite, part)).splitlines()
            weights |= part
        except SafetensorError as error:
            raise ValueError(f"{name} of {source!r} is damaged ({error}); fetch the checkpoint again.") from error

    if wrong:
        what = f"{len(wrong)} weights that are not finite (the first is {wrong[0]})"
        raise ValueError(f"{source!r} has {what}: a run that went wrong wrote it; take an earlier checkpoint.")
    return weights


def _not_finite(weights: Weights) -> str:
    """Names of weights that hold what is no number, a line each."""
    return "\n".join(name for name, weight in weights.items() if not weight.isfinite().all())


def split_head(weights: Weights, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split the weights of a model into body, without its prefix, and head; a bare model is all body.

    Constants that transformers 4 saved are left out, and the bias of the masked-word decoder gets its present name.

    Example:
        >>> body, head = split_head({"vilt.pooler.bias": torch.ones(1), "classifier.bias": torch.ones(1)}, "vilt")
        >>> list(body), list(head)
        (['pooler.bias'], ['classifier.bias'])
    """
    prefix = f"{prefix}."
    body = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    head = {name: weight for name, weight in weights.items() if body and not name.startswith(prefix)}
    body = {name: weight for name, weight in (body or weights).items() if name not in BUFFERS}

    old_bias = head.pop(OLD_DECODER_BIAS, None)
    if old_bias is not None and not torch.equal(head.setdefault(DECODER_BIAS, old_bias), old_bias):
        differ = f"{OLD_DECODER_BIAS} and {DECODER_BIAS} with different values for one parameter"
        raise ValueError(f"the checkpoint has {differ}; save it again with the transformers that trained it.")
    return body, head


def build(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    body: Weights,
    head: Weights,
    source: str,
    *,
    required: tuple[str, ...] | None = None,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, list[str]]:
    """Build a model in eval mode and give it every weight; return it, and the names of what is newly initialized.

    Args:
        model_class: the class, bare or with a head.
        config: its configuration.
        body: weights of the body, without prefix.
        head: weights of the head, under the names of `model_class`.
        source: where the weights come from, for messages.
        required: beginnings of the names of the body's weights that must be given; others are newly initialized where
            they are missing, which a warning says. None: everything must be given, the head too.
        attn_implementation: how attention is computed.
        dtype: of the model.

    Raises:
        ValueError: weights are missing, left over, or of another shape; torch names them.
    """
    # Nothing is drawn that the weights take the place of.
    with no_init_weights() if required is None else nullcontext():
        model = model_class._from_config(config, attn_implementation=attn_implementation, dtype=dtype)
    expected, tied = model.state_dict(), model.all_tied_weights_keys
    prefix = "" if model_class in BARE_MODELS else f"{model_class.base_model_prefix}."
    weights = {prefix + name: weight for name, weight in body.items()} | dict(head)

    # A tied weight is saved under either name or both; one that was saved untied would be lost silently.
    for name, original in tied.items():
        if original in weights:
            if name in weights and not torch.equal(weights[name], weights[original]):
                raise ValueError(f"{source}: {name} and {original} differ, but the model ties them; save it tied.")
            weights[name] = weights[original]

    new = []
    if required is not None:
        held = tuple(prefix + beginning for beginning in required)
        new = [name for name in expected if name not in weights and name not in tied and not name.startswith(held)]
    if new:
        logger.warning("%s: newly initialized, must be trained: %s.", source, ", ".join(new))

    try:
        weights = {name: weight.to(getattr(expected.get(name), "dtype", dtype)) for name, weight in weights.items()}
        model.load_state_dict({**weights, **{name: expected[name] for name in new}}, assign=True)
    except RuntimeError as error:
        # A line a kind of problem: what is missing, what is unexpected, what has another shape.
        problems = "; ".join(shorten(line, 200) for line in str(error).splitlines()[1:5])
        way_out = "it is damaged or another model than its config.json says: fetch it again or correct the config"
        raise ValueError(f"{source} does not fit {model_class.__name__} ({problems}); {way_out}.") from error
    model.tie_weights()
    return model.eval(), new


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library, or its kind where it says nothing."""
    # A configuration's own sentence is wrapped by its validator.
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    if "trust_remote_code" in str(error):
        way_out = "remove auto_map from its files, or load it yourself with transformers where you trust it"
        return f"it brings code of its own, which is never run here; {way_out}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
