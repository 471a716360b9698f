import io

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BertTokenizer, ViltImageProcessorPil

from dual_distill.data import TASKS, DistillationCollator, ImageError, PreTrainingCollator, WholeWordMasker
from dual_distill.data import images as images_module
from dual_distill.modeling import DualDistillProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "dog", "##s", "ball", "play", "##ing", "."]


@pytest.fixture(scope="module")
def processor():
    images = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
    return DualDistillProcessor(images, BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}))


@pytest.fixture
def rows(png):
    def row(colour, caption, size=(16, 16), **more):
        return {"image": {"bytes": png(colour, size), "path": None}, "caption": caption, "image_id": 3, **more}

    return [
        row((200, 0, 0), "a red dog playing .", (32, 16)),
        row((0, 0, 200), "a blue ball"),
        row((0, 0, 200), "A  blue\tball\n"),
        row((200, 0, 0), "a red ball", (32, 16)),
    ]


def make(processor, **options):
    options.setdefault("masking", WholeWordMasker(processor.tokenizer))
    return PreTrainingCollator(processor, TASKS["coco_retrieval"], **options)


def test_shapes_types_and_the_clean_part(processor, rows):
    batch = make(processor)(rows)
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "input_ids": ((4, 8), torch.int64),
        "attention_mask": ((4, 8), torch.int64),
        "pixel_values": ((4, 1, 3, 16, 24), torch.float32),
        "pixel_mask": ((4, 1, 16, 24), torch.bool),
        "image_ids": ((4,), torch.int64),
        "caption_ids": ((4,), torch.int64),
        "masked_input_ids": ((4, 8), torch.int64),
        "masked_labels": ((4, 8), torch.int64),
    }
    clean = DistillationCollator(processor, TASKS["coco_retrieval"], ())(rows)
    assert all(torch.equal(batch[name], value) for name, value in clean.items())
    retrieval = make(processor, masking=None)(rows)
    assert set(batch) - set(retrieval) == {"masked_input_ids", "masked_labels"}


def test_the_masked_text_is_the_clean_one_but_for_its_labels(processor, rows):
    batch = make(processor)(rows)
    drawn = batch["masked_labels"] != -100
    assert torch.equal(batch["masked_labels"][drawn], batch["input_ids"][drawn])
    assert torch.equal(batch["masked_input_ids"][~drawn], batch["input_ids"][~drawn])
    assert (drawn.sum(dim=1) >= 1).all()


def test_equal_content_has_equal_ids(processor, rows):
    batch = make(processor)(rows)
    image_ids, caption_ids = batch["image_ids"].tolist(), batch["caption_ids"].tolist()
    assert image_ids[0] == image_ids[3] != image_ids[1] == image_ids[2]
    assert caption_ids[1] == caption_ids[2]
    assert len(set(caption_ids)) == 3
    assert min(image_ids + caption_ids) >= 0
    # blake2b of 8 bytes, its highest bit taken away: written down so that ids stay what they were
    assert caption_ids[1] == int.from_bytes(bytes.fromhex("089408abf504a02f"), "big") % 2**63


def test_a_picture_file_is_read_once(processor, rows, tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(rows[0]["image"]["bytes"])
    reads = []
    read = images_module.Path.read_bytes
    monkeypatch.setattr(images_module.Path, "read_bytes", lambda path: reads.append(path) or read(path))
    batch = make(processor)([{**rows[0], "image": {"bytes": None, "path": str(file)}}, rows[3]])
    assert len(reads) == 1
    assert batch["image_ids"][0] == batch["image_ids"][1]
    picture = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    in_memory = make(processor)([{**rows[0], "image": picture}, {**rows[0], "image": picture.copy()}])
    assert in_memory["image_ids"][0] == in_memory["image_ids"][1]


def test_masks_repeat_by_epoch_and_row(processor, rows):
    long = {**rows[0], "caption": "a red dog playing a blue ball . a red ball . dogs . playing dogs"}
    collate = make(processor)

    def labels(**more):
        return collate([{**long, **more}])["masked_labels"].tolist()

    assert labels() == labels()  # evaluation: always alike
    assert labels(__epoch__=0, __index__="x.tar: 7") == labels(__epoch__=0, __index__="x.tar: 7")
    drawn = {str(labels(__epoch__=epoch, __index__="x.tar: 7")) for epoch in range(6)}
    assert len(drawn) > 2
    assert (
        collate([rows[0], {**long, "__epoch__": 2, "__index__": 7}])["masked_labels"][1].tolist()
        == labels(__epoch__=2, __index__=7)[0]
    )


def test_a_caption_of_two_thousand_words_is_cut(processor, rows):
    rows[1]["caption"] = "a red dog " * 667
    batch = make(processor, max_text_length=12)(rows)
    assert batch["input_ids"].shape == batch["masked_input_ids"].shape == (4, 12)
    assert batch["input_ids"][1, -1] == 3
    assert 1 <= (batch["masked_labels"][1] != -100).sum() <= 2


def test_augmentation_reaches_numbered_rows_alone(processor, rows):
    seen = []
    collate = make(processor, augmentation=lambda image, key: seen.append(key) or Image.new("RGB", image.size))
    batch = collate([rows[1], {**rows[1], "__epoch__": 4, "__index__": "x.tar: 7"}])
    assert seen == [(4, "x.tar: 7", 0)]
    assert batch["image_ids"][0] == batch["image_ids"][1]  # the id is of the picture before
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


def test_workers_collate_the_same(processor, rows):
    here = list(DataLoader(rows, batch_size=2, collate_fn=make(processor)))
    there = list(DataLoader(rows, batch_size=2, collate_fn=make(processor), num_workers=1))
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_each_error_by_its_message(processor, rows):
    with pytest.raises(
        ValueError, match=r"Task 'nlvr2' has 2 images a row \(image_0, image_1\), but a text here is about one"
    ):
        PreTrainingCollator(processor, TASKS["nlvr2"])
    with pytest.raises(ValueError, match="A batch needs at least one row"):
        make(processor)([])
    with pytest.raises(ValueError, match=r"Row x\.tar: 7: caption is empty \('  '\), but a row needs a text"):
        make(processor)([{**rows[0], "caption": "  ", "__index__": "x.tar: 7"}])
    with pytest.raises(ValueError, match=r"Row 0 of its batch \(image_id 3\) has no column 'image'"):
        make(processor)([{name: value for name, value in rows[0].items() if name != "image"}])
    with pytest.raises(ImageError, match=r"^row x\.tar: 7: the bytes are not an image"):
        make(processor)([{**rows[0], "image": b"nothing", "__index__": "x.tar: 7"}])
