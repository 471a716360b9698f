"""Images with captions as a stream without an end, with rows held out to be evaluated on: the task image_text."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value

from dual_distill.data.images import MAX_PIXELS
from dual_distill.data.streaming.stream import load_image_text_stream

LAYOUT = "the files that its sources name."
_FEATURES = Features({"image": Image(decode=False), "caption": Value("string")})


def load_image_text(
    path: str | os.PathLike[str] | None = None,
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
    rows = itertools.islice(iter(held_out), validation_rows)
    kept = [{"image": row["image"], "caption": row["caption"]} for row in rows]
    return {"train": train, "validation": Dataset.from_list(kept, features=_FEATURES)}


def _below(folder: str | os.PathLike[str] | None, sources: Sequence[Any]) -> Sequence[Any]:
    """Sources with their relative paths below a folder; addresses and absolute paths stay."""
    if folder is None:
        return sources

    def place(name: str, value: Any) -> Any:
        return str(Path(folder, value)) if name in ("path", "images") and "://" not in str(value) else value

    return [
        {name: place(name, value) for name, value in source.items()} if isinstance(source, Mapping) else source
        for source in sources
    ]
