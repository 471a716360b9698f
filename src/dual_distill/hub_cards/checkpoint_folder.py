"""Which files of a folder are a checkpoint that may be published, each looked into before it counts as one.

The list says what goes; whatever else lies in the folder stays and is named. Nothing here reads a tensor: of weights
only the header, which is JSON, so a truncated file or a pickle under another name is refused.
"""

import fnmatch
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, read_adapter
from .leak_scan import find_leak
from .run_record import RUN_FILE, read_json

CONFIG = "config.json"
PROCESSOR_CONFIG = "processor_config.json"
CARD = "README.md"
PICTURE = "attention.png"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_JSON = (
    CONFIG,
    PROCESSOR_CONFIG,
    RUN_FILE,
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Lists of words, any of which could be somebody's name.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_RECIPE = "recipe.yaml"
PUBLISHED = (CONFIG, *WEIGHTS, *_JSON[1:], *_VOCABULARIES, _RECIPE, PICTURE, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""Names and patterns of the files that a push sends, beside the card, and with `--with-code` the code."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
# What a Trainer leaves beside a checkpoint: known, never sent.
_LEFTOVERS = (
    "training_args.bin",
    "optimizer.*",
    "scheduler.*",
    "scaler.*",
    "rng_state*",
    "trainer_state.json",
    "objective.*",
)
_PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
_LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


@dataclass(frozen=True)
class CheckpointFiles:
    """What of a folder goes to the Hub.

    Attributes:
        files: name -> content, or the path of weights, which are too large to hold.
        left_out: what else is in the folder, by name; folders end in "/".
        config: content of config.json; of an adapter, the class of its base alone.
        parameters: how many the weights hold.
        adapter: None: a whole model.
    """

    files: dict[str, bytes | Path]
    left_out: tuple[str, ...]
    config: dict[str, Any]
    parameters: int
    adapter: Adapter | None = None

    def sizes(self) -> dict[str, int]:
        """Return name -> bytes."""
        return {
            name: content.stat().st_size if isinstance(content, Path) else len(content)
            for name, content in self.files.items()
        }


def collect(folder: str | Path) -> CheckpointFiles:
    """Read what may be published from the folder of a checkpoint.

    Args:
        folder: as `save_pretrained` or a Trainer wrote it; a whole model, or an adapter of peft.

    Raises:
        ValueError: it is no folder of a checkpoint; a pickle lies in it; a file is damaged or not what its name says;
            an adapter's base is not on the Hub.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder; give the one that a run or `save_pretrained` wrote.")
    is_adapter, is_model = (folder / ADAPTER_CONFIG).is_file(), (folder / CONFIG).is_file()
    if not is_adapter and not is_model:
        raise ValueError(f"{str(folder)!r} has no {CONFIG}, so it holds no checkpoint; give the one that a run wrote.")
    if is_adapter and is_model:
        raise ValueError(
            f"{str(folder)!r} has {CONFIG} and {ADAPTER_CONFIG}, a model and an adapter, and whoever loads it gets "
            f"either; "
            "keep them in folders of their own."
        )
    files: dict[str, bytes | Path] = {}
    left_out, parameters = [], 0
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_dir():
            left_out.append(f"{name}/")
        elif is_one_of(name, PUBLISHED):
            if path.suffix == ".safetensors":
                parameters += count_parameters(path)
                files[name] = path
            else:
                files[name] = _checked(path)
        elif is_one_of(name, _PICKLES) and not is_one_of(name, _LEFTOVERS):
            raise ValueError(
                f"{name} in {str(folder)!r} is a pickle, which runs code on whoever loads it and is never sent; save "
                f"the model "
                "with `save_pretrained`, which writes safetensors, and delete or move the file."
            )
        elif name != CARD:
            left_out.append(name)
    if is_adapter:
        if ADAPTER_WEIGHTS not in files:
            raise ValueError(
                f"{str(folder)!r} has no {ADAPTER_WEIGHTS}; save the adapter again with `save_pretrained`."
            )
        adapter, pinned = read_adapter(read_json(folder / ADAPTER_CONFIG))
        files[ADAPTER_CONFIG] = as_json(pinned)
        return CheckpointFiles(files, tuple(left_out), {"architectures": [adapter.architecture]}, parameters, adapter)
    _check_weights(folder, files)
    files[CONFIG], config = _without_origin(files[CONFIG])
    return CheckpointFiles(files, tuple(left_out), config, parameters)


def is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file name is one of these, patterns among them."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _checked(path: Path) -> bytes:
    """Return the content of a small file that is what its name says."""
    content = path.read_bytes()
    if path.suffix == ".json":
        read_json(path)
    elif path.suffix == ".png":
        if not content.startswith(_PNG_BEGINS):
            raise ValueError(f"{path.name} is no PNG picture; write it again or delete it.")
    else:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is no text in UTF-8 ({error}); write it again or delete it.") from error
    return content


def _check_weights(folder: Path, files: dict[str, bytes | Path]) -> None:
    index = files.get(WEIGHTS[2])
    if isinstance(index, bytes):
        weight_map = json.loads(index).get("weight_map")
        named = set(weight_map.values()) if isinstance(weight_map, dict) else {"shards"}
        if absent := sorted(named - set(files)):
            raise ValueError(f"{str(folder)!r} lacks {absent[0]}, which {WEIGHTS[2]} names; save the checkpoint again.")
    elif WEIGHTS[0] not in files:
        raise ValueError(
            f"{str(folder)!r} has no {WEIGHTS[0]}, so it holds no weights; save the model with `save_pretrained`, or "
            f"give the "
            "folder of a finished run."
        )


def _without_origin(content: bytes | Path) -> tuple[bytes, dict[str, Any]]:
    """Return config.json without where it was loaded from, and without a promise of code that is not sent."""
    assert isinstance(content, bytes)
    config = json.loads(content)
    kept = {name: value for name, value in config.items() if name not in ("_name_or_path", "auto_map")}
    return (content if kept == config else as_json(kept)), kept


def as_json(content: dict[str, Any]) -> bytes:
    """Return a JSON file as transformers lays it out."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file, and hold the file's length against it.

    Args:
        path: the file.

    Returns:
        Tensor name -> `dtype`, `shape`, `data_offsets`, and perhaps `__metadata__`.

    Raises:
        ValueError: the file is truncated, has bytes too many, or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= min(_LARGEST_HEADER, size) else b""
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path.name} is no safetensors file, or is cut off in its header; save the model again."
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(
            f"{path.name} has {size:,} bytes, its header says {expected:,}: it is truncated or damaged; save or fetch "
            f"it again."
        )
    return dict(tensors)


def count_parameters(path: Path) -> int:
    """Return how many numbers the tensors of a safetensors file hold."""
    return sum(math.prod(tensor["shape"]) for name, tensor in read_header(path).items() if name != "__metadata__")


def refuse_leaks(files: dict[str, bytes | Path], public_names: tuple[str, ...] = ()) -> None:
    """Look through everything that would be sent; the answers of a head count as vocabulary.

    Args:
        files: name -> content, as in `CheckpointFiles`.
        public_names: `owner/name` of repositories that may be named.

    Raises:
        ValueError: a file gives something away; it is named, what it gives away is not repeated.
    """
    for name, content in files.items():
        strict = name.endswith((".json", ".yaml", ".safetensors")) and name not in _VOCABULARIES
        if isinstance(content, Path):
            text = json.dumps(read_header(content).get("__metadata__", {}))
        elif name == CONFIG:
            config = json.loads(content)
            answers = json.dumps({key: config.pop(key, None) for key in ("id2label", "label2id")}, ensure_ascii=False)
            _refuse(name, find_leak(answers, strict=False, public_names=public_names))
            text = json.dumps(config, ensure_ascii=False, indent=2)
        else:
            text = content.decode("utf-8", errors="ignore")
        _refuse(name, find_leak(text, strict=strict, public_names=public_names))


def _refuse(name: str, leak: str | None) -> None:
    if leak is not None:
        raise ValueError(
            f"{name} holds {leak}, and nothing was sent; take it out (or write the file again without it)."
        )


__all__ = [
    "CARD",
    "CONFIG",
    "PICTURE",
    "PROCESSOR_CONFIG",
    "PUBLISHED",
    "WEIGHTS",
    "CheckpointFiles",
    "as_json",
    "collect",
    "count_parameters",
    "is_one_of",
    "read_header",
    "refuse_leaks",
]
