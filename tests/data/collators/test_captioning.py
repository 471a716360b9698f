"""Batches with regions, and batches to learn captions from: what is where, what is cut, what is masked."""

import copy

import pytest
import torch
from transformers import BertTokenizer, ViltImageProcessorPil

from dual_distill.data import TASKS, CaptioningCollator, CaptionMasker, DistillationCollator, RegionSet, fingerprint
from dual_distill.data.collators.base import ImageTextCollator
from dual_distill.data.region_inputs import tag_texts
from dual_distill.modeling import DualDistillProcessor
from dual_distill.regions.store import RegionManifest, RegionStore, StoredImage, fill_store

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "dog",
    "sits",
    "on",
    "the",
    "cat",
    "sky",
    "big",
    "mat",
    ".",
]
PAD, CLS, SEP, MASK = 0, 2, 3, 4
TAGS = {0: ["dog", "mat", "dog"], 1: ["cat"], 2: ["", "sky", "mat"]}
CAPTIONS = ["a red dog sits on the mat .", "a big cat", "the sky"]


@pytest.fixture(scope="module")
def processor():
    images = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
    return DualDistillProcessor(images, BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}))


@pytest.fixture
def rows(png):
    return [
        {"image": {"bytes": png((40 * number, 0, 0), (16, 16)), "path": None}, "caption": caption, "image_id": number}
        for number, caption in enumerate(CAPTIONS)
    ]


def regions(number, width):
    count = len(TAGS[number])
    boxes = torch.tensor([[float(i), 0.0, 8.0 + i, 4.0] for i in range(count)])
    features = 100.0 * number + torch.arange(count)[:, None] + torch.zeros(count, width)
    return RegionSet(features, boxes, torch.ones(count), TAGS[number], 16, 8)


@pytest.fixture
def make_store(tmp_path, rows):
    def make(name, width, boxes="boxes a"):
        stored = [
            StoredImage(str(i), fingerprint(row["image"]["bytes"]), None, regions(i, width))
            for i, row in enumerate(rows)
        ]
        manifest = RegionManifest(boxes, name, width, "float32", 8, {})
        fill_store(tmp_path / name, manifest, ["0", "1", "2"], lambda ids: [stored[int(i)] for i in ids])
        return RegionStore(tmp_path / name)

    return make


def words(batch, row):
    real = batch["attention_mask"][row].bool()
    return [WORDS[index] for index in batch["input_ids"][row][real].tolist()]


def test_regions_stand_in_place_of_pixels_with_their_tags_behind_the_text(processor, rows, make_store):
    collator = DistillationCollator(processor, TASKS["coco_retrieval"], (), regions=make_store("student", 3))
    batch = collator(rows)
    assert sorted(batch) == [
        "attention_mask", "input_ids", "region_boxes", "region_features", "region_mask", "token_type_ids"
    ]  # fmt: skip
    assert words(batch, 0) == ["[CLS]", *CAPTIONS[0].split(), "[SEP]", "dog", "mat", "[SEP]"]
    assert words(batch, 2) == ["[CLS]", "the", "sky", "[SEP]", "sky", "mat", "[SEP]"]
    assert batch["token_type_ids"][2].tolist() == [0, 0, 0, 0, 1, 1, 1] + [0] * (batch["input_ids"].shape[1] - 7)
    assert batch["region_features"].shape == (3, 3, 3)
    assert batch["region_features"][2, :, 0].tolist() == [200.0, 201.0, 202.0]
    assert batch["region_mask"].tolist() == [[True] * 3, [True, False, False], [True] * 3]
    torch.testing.assert_close(batch["region_boxes"][0, 1], torch.tensor([1 / 16, 0.0, 9 / 16, 0.5, 0.5, 0.5]))
    assert batch["region_features"][1, 1:].abs().sum() == batch["region_boxes"][1, 1:].abs().sum() == 0


def test_the_teachers_features_are_of_the_same_boxes_in_the_same_order(processor, rows, make_store):
    stores = {"regions": make_store("student", 3), "teacher_regions": make_store("teacher", 5)}
    batch = DistillationCollator(processor, TASKS["coco_retrieval"], (), **stores, max_regions=2, num_tags=1)(rows)
    assert batch["teacher_region_features"].shape == (3, 2, 5)
    assert torch.equal(batch["teacher_region_features"][..., 0], batch["region_features"][..., 0])
    assert words(batch, 0)[-2:] == ["dog", "[SEP]"]


def test_stores_with_other_boxes_are_refused_naming_both(processor, make_store):
    ours, theirs = make_store("student", 3), make_store("teacher", 5, boxes="boxes b")
    with pytest.raises(ValueError, match="boxes by 'boxes a', those of the teacher by 'boxes b'"):
        DistillationCollator(processor, TASKS["coco_retrieval"], (), regions=ours, teacher_regions=theirs)
    with pytest.raises(ValueError, match="teacher_regions are given without regions"):
        DistillationCollator(processor, TASKS["coco_retrieval"], (), teacher_regions=theirs)
    with pytest.raises(ValueError, match="an augmentation is given beside regions"):
        DistillationCollator(
            processor, TASKS["coco_retrieval"], (), regions=ours, augmentation=lambda image, key: image
        )


def test_an_image_that_the_store_lacks_is_named(processor, rows, make_store, png):
    collator = DistillationCollator(processor, TASKS["coco_retrieval"], (), regions=make_store("student", 3))
    rows[1]["image"] = {"bytes": png((1, 2, 3), (16, 16)), "path": None}
    with pytest.raises(ValueError, match=r"lacks .*row 1 of its batch"):
        collator(rows)


def test_tags_are_cut_before_the_text(processor):
    texts, tags = ["a red dog sits on", "cat"], [["mat", "sky", "cat"], []]

    def lengths(**limits):
        batch = tag_texts(processor.tokenizer, texts, tags, **limits)
        return [(int(row.sum()), int(segments.sum())) for row, segments in zip(
            batch["attention_mask"], batch["token_type_ids"], strict=True)]  # fmt: skip

    assert lengths() == [(11, 4), (3, 0)]
    assert lengths(max_text_length=10) == [(10, 3), (3, 0)]
    assert lengths(max_text_length=9) == [(9, 2), (3, 0)]
    assert lengths(max_text_length=8) == [(7, 0), (3, 0)]  # room for [SEP] alone: no tags
    assert lengths(max_text_length=5) == [(5, 0), (3, 0)]
    assert lengths(max_text_length=4, max_tag_length=9) == [(8, 4), (3, 0)]
    assert lengths(max_tag_length=2) == [(9, 2), (3, 0)]
    assert lengths(max_text_length=4, max_tag_length=3) == [(7, 3), (3, 0)]
    cut = tag_texts(processor.tokenizer, texts, tags, max_text_length=5)
    assert [WORDS[index] for index in cut["input_ids"][0]] == ["[CLS]", "a", "red", "dog", "[SEP]"]
    with pytest.raises(ValueError, match="the longest text is 2 tokens"):
        tag_texts(processor.tokenizer, texts, tags, max_text_length=2)


def make(processor, seed=0, **options):
    masking = CaptionMasker(processor.tokenizer, seed=seed, **options.pop("masking", {}))
    return CaptioningCollator(processor, TASKS["coco_captioning"], masking, **options)


@pytest.mark.parametrize("with_regions", [True, False])
def test_some_words_of_the_caption_are_masked_and_kept_as_labels(with_regions, processor, rows, make_store):
    stores = {"regions": make_store("student", 3), "teacher_regions": make_store("teacher", 5)} if with_regions else {}
    collator = make(processor, **stores)
    clean = ImageTextCollator.__call__(collator, rows)
    batch = collator(rows)
    assert ("pixel_values" in batch) != with_regions
    assert ("teacher_region_features" in batch) == with_regions
    drawn = batch["labels"] != -100
    assert drawn.sum(1).tolist() == [1, 1, 1]  # of 9, 4 and 3 tokens
    assert torch.equal(batch["labels"][drawn], clean["input_ids"][drawn])
    assert torch.equal(batch["input_ids"][~drawn], clean["input_ids"][~drawn])
    assert not (drawn & (batch["token_type_ids"] == 1)).any()
    assert not (drawn & (clean["input_ids"] == CLS)).any()


def test_every_token_of_a_caption_and_its_end_are_masked_sometimes_and_tags_never(processor, rows, make_store):
    collator = make(processor, regions=make_store("student", 3))
    clean = ImageTextCollator.__call__(collator, rows[:1])
    caption = [i for i, segment in enumerate(clean["token_type_ids"][0].tolist()) if segment == 0 and i > 0]
    count, kinds = torch.zeros(clean["input_ids"].shape[1]), {"mask": 0, "kept": 0, "random": 0}
    for epoch in range(400):
        batch = collator([rows[0] | {"__epoch__": epoch, "__index__": 5}])
        drawn = (batch["labels"][0] != -100).nonzero()[:, 0]
        count[drawn] += 1
        for place in drawn:
            now, before = int(batch["input_ids"][0, place]), int(clean["input_ids"][0, place])
            kinds["mask" if now == MASK else "kept" if now == before else "random"] += 1
    assert sorted(count.nonzero()[:, 0].tolist()) == caption
    assert int(clean["input_ids"][0, caption[-1]]) == SEP
    assert count[caption].min() > 20  # 44 on average
    assert kinds["mask"] == pytest.approx(320, abs=35)
    assert min(kinds["kept"], kinds["random"]) > 15


def test_one_to_three_of_fifteen_per_cent(processor):
    masker = CaptionMasker(processor.tokenizer)
    for length, expected in ((2, 1), (9, 1), (10, 2), (16, 2), (17, 3), (40, 3)):
        ids = torch.tensor([[CLS] + [5] * (length - 1) + [SEP]])  # `length` tokens behind [CLS]
        _, labels = masker(ids, torch.ones_like(ids), [(0, 0)])
        assert int((labels != -100).sum()) == expected, length
    _, labels = CaptionMasker(processor.tokenizer, share=1.0, max_masked=99)(ids, torch.ones_like(ids), [(0, 0)])
    assert int((labels != -100).sum()) == 40


def test_masking_follows_from_seed_epoch_and_row_alone(processor, rows):
    def labels(epoch, seed=0, order=(0, 1, 2)):
        numbered = [rows[i] | {"__epoch__": epoch, "__index__": i} for i in order]
        torch.manual_seed(epoch)
        return [row[row != -100].tolist() for row in make(processor, seed)(numbered)["labels"]]

    assert labels(3) == labels(3)
    assert labels(3, order=(2, 1, 0)) == labels(3)[::-1]
    assert len({str(labels(epoch)) for epoch in range(20)}) > 5
    assert len({str(labels(0, seed)) for seed in range(20)}) > 5
    collator = make(processor)
    evaluated = [collator(rows), copy.deepcopy(collator)(rows)]
    assert torch.equal(evaluated[0]["labels"], evaluated[1]["labels"])


@pytest.mark.parametrize("with_regions", [True, False])
def test_what_is_written_about_holds_no_caption(with_regions, processor, rows, make_store):
    stores = {"regions": make_store("student", 3), "teacher_regions": make_store("teacher", 5)} if with_regions else {}
    writing = make(processor, **stores).without_captions()
    batch = writing([{"image": row["image"]} for row in rows])
    if not with_regions:
        assert sorted(batch) == ["pixel_mask", "pixel_values"]
        return
    assert "labels" not in batch
    assert "teacher_region_features" not in batch
    assert words(batch, 0) == ["[CLS]", "[SEP]", "dog", "mat", "[SEP]"]
    assert batch["token_type_ids"][0].tolist() == [0, 0, 1, 1, 1]


def test_captions_and_tags_have_limits_of_their_own(processor, rows, make_store):
    collator = make(processor, regions=make_store("student", 3), max_text_length=5, max_tag_length=2)
    batch = ImageTextCollator.__call__(collator, rows)
    assert words(batch, 0) == ["[CLS]", "a", "red", "dog", "[SEP]", "dog", "[SEP]"]
    assert collator.without_captions()(rows)["input_ids"].shape[1] == 4


def test_what_cannot_be_masked_is_refused(processor):
    with pytest.raises(ValueError, match="share is 0"):
        CaptionMasker(processor.tokenizer, share=0)
    with pytest.raises(ValueError, match="A batch needs at least one row"):
        CaptioningCollator(processor, TASKS["coco_captioning"])([])
