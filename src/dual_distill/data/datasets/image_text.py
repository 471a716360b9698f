"""Images with captions as a stream without an end, with rows held out to be evaluated on: the task image_text."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value

from dual_distill.data.images import MAX_PIXELS
from dual_distill.data.records import FilePath
from dual_distill.data.streaming.stream import load_image_text_stream

LAYOUT = "the files that its sources name."
_FEATURES = Features({"image": Image(decode=False), "caption": Value("string")})


def load_image_text(
    path: FilePath | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
    validation: Sequence[Mapping[str, Any]] = (),
    validation_rows: int = 1000,
    seed: int = 0,
    shuffle_buffer: int = 1000,
    stopping_strategy: str = "all_exhausted_without_replacement",
    skip_bad: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Open a stream, and read the rows that are held out.

    Args:
        path: folder that relative paths of sources lie in; None: the working directory.
        sources: to train on, as `load_image_text_stream` takes them.
        validation: sources to be evaluated on.
        validation_rows: at most so many of their rows are held out.
        seed: as in `load_image_text_stream`.
        shuffle_buffer: as in `load_image_text_stream`.
        stopping_strategy: as in `load_image_text_stream`.
        skip_bad: as in `load_image_text_stream`.
        max_pixels: as in `load_image_text_stream`.

    Returns:
        `train`, an `ImageTextStream`, and `validation`, a `Dataset`.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: sources are missing, or an argument or a source is wrong.
    """
    for name, given in (("sources", sources), ("validation", validation)):
        if not given:
            needed = "needs data_options with sources (to train on) and validation (to be evaluated on)"
            example = [{"path": "cc3m/*.tar", "kind": "webdataset"}]
            raise ValueError(f"task 'image_text' {needed}, but {name} is missing; give a list such as {example}.")

    shared: dict[str, Any] = {"skip_bad": skip_bad, "max_pixels": max_pixels}
    order: dict[str, Any] = {"seed": seed, "shuffle_buffer": shuffle_buffer, "stopping_strategy": stopping_strategy}
    train = load_image_text_stream(_below(path, sources), **shared, **order)
    held_out = load_image_text_stream(_below(path, validation), shuffle_buffer=0, repeat=False, **shared)
    kept = [{name: row[name] for name in _FEATURES} for row in itertools.islice(held_out, validation_rows)]
    return {"train": train, "validation": Dataset.from_list(kept, features=_FEATURES)}


def _below(folder: FilePath | None, sources: Sequence[Any]) -> list[Any]:
    """Sources with their relative paths below a folder; addresses and absolute paths stay."""
    below = []
    for source in sources:
        if isinstance(source, Mapping):
            paths = {name: source[name] for name in ("path", "images") if "://" not in str(source.get(name, "://"))}
            source = {**source, **{name: str(Path(folder or "", path)) for name, path in paths.items()}}
        below.append(source)
    return below
