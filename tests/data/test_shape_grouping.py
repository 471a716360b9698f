"""Photographs of like shape share a batch: what that saves, that every row comes once, and where nothing changes."""

import gzip
import json
from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from torch.utils.data import BatchSampler
from transformers import ViltImageProcessorPil, ViTImageProcessorPil

from dual_distill.data import (
    DistillationCollator,
    IndexedDataset,
    ShapeGroupedSampler,
    Task,
    grouped_order,
    shape_key,
    shape_keys,
    train_tokenizer,
)
from dual_distill.modeling import DualDistillProcessor

TASK = Task("own", "question_answering", ("image",), "question", "answer")
KEYS = [((row % 7,), row % 3) for row in range(1000)]


def patches(width, height):
    """By hand of ViLT's rule: the shorter side 384, the longer 639 at most, whole patches of 32."""
    scale = min(384 / min(width, height), 639 / max(width, height))
    return tuple(int(side * scale + 0.5) // 32 for side in (width, height))


@pytest.mark.parametrize("batch_size", [16, 64])
def test_5_000_photographs_are_padded_by_a_twentieth_at_most(batch_size, data_folder):
    with gzip.open(data_folder("coco_captions_text") / "captions_val2017.json.gz") as file:
        found = json.load(file)
    sizes = {image["id"]: (image["width"], image["height"]) for image in found["images"]}
    rows = [(sizes[one["image_id"]], one["caption"]) for one in found["annotations"]]
    keys = [shape_key([Pillow.new("1", size)], caption) for size, caption in rows[:10_000]]

    def computed_over_real(order):
        shapes = [patches(*rows[row][0]) for row in order]
        batches = [shapes[start : start + batch_size] for start in range(0, len(shapes), batch_size)]
        computed = sum(len(batch) * max(w for w, _ in batch) * max(h for _, h in batch) for batch in batches)
        return computed / sum(w * h for w, h in shapes)

    shuffled = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0)).tolist()
    assert computed_over_real(shuffled) > 1.6
    assert computed_over_real(list(ShapeGroupedSampler(keys, batch_size, seed=0))) <= 1.03
    assert computed_over_real(grouped_order(keys, len(keys))) <= 1.02


def test_each_row_once_an_epoch_in_an_order_of_seed_and_epoch():
    sampler = ShapeGroupedSampler(KEYS, batch_size=8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(1000))
    assert list(sampler) == first == list(ShapeGroupedSampler(KEYS, batch_size=8, seed=3))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(ShapeGroupedSampler(KEYS, batch_size=8, seed=4)) != first
    # Not from one shape to the next, as sorting alone would have it.
    starts = [KEYS[row][0] for row in first[: 8 * 50 : 8]]
    assert starts != sorted(starts)


@pytest.mark.parametrize("count", [64, 60, 13, 3])
def test_processes_compute_one_shape_at_a_time_and_see_every_row(count):
    keys = [((row % 2,), 0) for row in range(count)]
    sampler = ShapeGroupedSampler(keys, batch_size=2 * 4, seed=0)
    ranks = [list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert {row for batches in ranks for batch in batches for row in batch} == set(range(count))
    mixed = [len({keys[row] for batch in step for row in batch}) > 1 for step in zip(*ranks, strict=True)]
    assert sum(mixed) <= 2  # where one shape ends, and where the last batch is filled up


@pytest.fixture
def photographs(png):
    def build(sizes, column=None):
        questions = ["what is it?" * (1 + row) for row in range(len(sizes))]
        features = Features({"image": column or Image(decode=False), "question": Value("string")})
        return Dataset.from_dict({"image": [png(size=size) for size in sizes], "question": questions}, features)

    return build


def collator(image_processor):
    return DistillationCollator(DualDistillProcessor(image_processor, train_tokenizer(["what is it?"])), TASK, ["a"])


VILT = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
MIXED = [(40, 20), (20, 40), (64, 32), (20, 20)]


@pytest.mark.parametrize("column", [Image(decode=False), Image(), Value("binary")], ids=str)
def test_only_headers_are_read(column, photographs, monkeypatch):
    rows = photographs(MIXED, column)
    monkeypatch.setattr(Pillow.Image, "convert", lambda *_: pytest.fail("an image was decoded"))
    monkeypatch.setattr("dual_distill.data.shape_grouping.varies_in_shape", lambda _: True)
    keys = shape_keys(collator(VILT), IndexedDataset(rows))
    assert keys == [((16,), 11), ((-16,), 22), ((16,), 33), ((0,), 44)]


def test_files_are_looked_at_once_turned_as_they_are_shown_and_never_refused(tmp_path, monkeypatch):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    files, opened = [str(tmp_path / name) for name in ("turned.jpg", "damaged.jpg", "missing.jpg")], Counter()
    rows = Dataset.from_dict({"image": files * 2, "question": ["?"] * 6}).cast_column("image", Image(decode=False))
    real = Pillow.open
    monkeypatch.setattr(Pillow, "open", lambda path: opened.update([path]) or real(path))
    assert [shape for (shape,), _ in shape_keys(collator(VILT), rows)] == [-16, 0, 0] * 2
    assert set(opened.values()) == {1}


def test_nothing_is_reordered_where_nothing_is_padded(photographs):
    assert shape_keys(collator(VILT), photographs([(40, 20)] * 4)) is None
    assert shape_keys(collator(ViTImageProcessorPil(size={"height": 16, "width": 16})), photographs(MIXED)) is None
    assert shape_keys(collator(VILT), photographs(MIXED).remove_columns("question")) is None
    assert shape_keys(collator(VILT), [{"image": None, "question": "?"}]) is None
    assert shape_keys(lambda rows: rows, photographs(MIXED)) is None
    assert grouped_order(None, 3) == [0, 1, 2]
