import io
import pickle
import struct
import zlib

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BertTokenizer, ViltImageProcessorPil, ViTImageProcessorPil

from dual_distill.data import TASKS, DistillationCollator, ImageError, IndexedDataset, RandAugment, Task, load_task
from dual_distill.data.collators import base as collator_module
from dual_distill.modeling import DualDistillProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", "is", "it", "red", "what", "colour"]
SOFT = Task("soft", "question_answering", ("image",), "question", "answer", answers_column="answers")
PAIRS = Task("pairs", "image_text_retrieval", ("image",), "question")
TWO_IMAGES = Task("pairs", "images_and_text_classification", ("left", "right"), "sentence", "label", ("false", "true"))


@pytest.fixture(scope="module")
def processor():
    images = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
    return DualDistillProcessor(images, BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}))


@pytest.fixture
def rows(png):
    return [
        {"image": {"bytes": png((200, 0, 0), (32, 16)), "path": None}, "question": "is it red?", "answer": "yes"},
        {
            "image": {"bytes": png((0, 0, 200), (16, 16)), "path": None},
            "question": "what colour is it?",
            "answer": "blue",
        },
        {"image": {"bytes": png((0, 0, 200), (16, 16)), "path": None}, "question": "is it?", "answer": "perhaps"},
    ]


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often a picture is decoded."""
    calls = []
    decode = collator_module.decode_image
    monkeypatch.setattr(
        collator_module, "decode_image", lambda *arguments: calls.append(arguments[1]) or decode(*arguments)
    )
    return calls


def make(processor, **options):
    return DistillationCollator(processor, TASKS["scenes"], ["yes", "no", "blue"], **options)


def test_shapes_types_padding_and_labels(processor, rows):
    batch = make(processor)(rows)
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "input_ids": ((3, 7), torch.int64),
        "attention_mask": ((3, 7), torch.int64),
        "pixel_values": ((3, 1, 3, 16, 24), torch.float32),  # ViLT makes 24 x 8 of 32 x 16: 1333 / 800 limits the side
        "pixel_mask": ((3, 1, 16, 24), torch.bool),
        "labels": ((3,), torch.int64),
    }
    assert batch["labels"].tolist() == [0, 2, -100]
    assert batch["input_ids"][0].tolist() == [2, 6, 7, 8, 5, 3, 0]
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, 7, 5]
    assert batch["pixel_mask"].sum(dim=(1, 2, 3)).tolist() == [8 * 24, 256, 256]
    assert (batch["pixel_values"][1, 0, :, :, 16:] == 0).all()


def test_the_collator_gives_what_the_processor_gives(processor, rows):
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    expected = processor(text=[row["question"] for row in rows], images=images)
    batch = make(processor)(rows)
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name


def test_alone_equals_in_a_batch(processor, rows):
    batch, alone = make(processor)(rows), make(processor)(rows[1:2])
    assert torch.equal(batch["pixel_values"][1:2, :, :, :, :16], alone["pixel_values"])


def test_several_images_a_row_keep_their_order(processor, png):
    white, black = png((255, 255, 255), (16, 16)), png((0, 0, 0), (16, 16))
    collate = DistillationCollator(processor, TWO_IMAGES, TWO_IMAGES.label_names)
    batch = collate([{"left": white, "right": black, "sentence": "is it?", "label": "true"}])
    assert batch["pixel_values"].shape == (1, 2, 3, 16, 16)
    assert batch["pixel_values"].mean(dim=(0, 2, 3, 4)).tolist() == [1.0, -1.0]
    assert batch["labels"].tolist() == [1]


def test_labels_are_left_out_where_no_row_has_them(processor, rows):
    unlabelled = [{key: value for key, value in row.items() if key != "answer"} for row in rows]
    assert "labels" not in make(processor)(unlabelled)
    assert make(processor)([rows[0], unlabelled[1], {**rows[2], "answer": None}])["labels"].tolist() == [0, -100, -100]


def test_labels_may_be_indices(processor, rows):
    assert make(processor)([{**rows[0], "answer": 2}])["labels"].tolist() == [2]
    for wrong in (3, -1, True, 1.5):
        with pytest.raises(ValueError, match=r"Row 0 of its batch: the label in column 'answer' is .*from 0 to 2"):
            make(processor)([{**rows[0], "answer": wrong}])


def test_long_texts_are_cut(processor, rows):
    assert make(processor, max_text_length=4)(rows)["input_ids"].shape == (3, 4)
    rows[1]["question"] = "is it red? " * 10_000
    assert make(processor, max_text_length=40)(rows)["input_ids"].shape == (3, 40)
    assert make(processor)(rows)["input_ids"].shape == (3, 40_002)  # this tokenizer has no limit of its own
    limited = BertTokenizer(vocab=processor.tokenizer.get_vocab(), model_max_length=12)
    assert make(DualDistillProcessor(processor.image_processor, limited))(rows)["input_ids"].shape == (3, 12)


@pytest.mark.parametrize("question", ["", "  \n", None, 7])
def test_an_empty_question_names_its_row(processor, rows, question):
    rows[1] |= {"question": question, "question_id": 9}
    with pytest.raises(ValueError, match=r"Row 1 of its batch \(question_id 9\): question is .* a text of one word"):
        make(processor)(rows)


def test_soft_scores_are_labels_where_several_people_answered(processor, rows):
    collate = DistillationCollator(processor, SOFT, ["yes", "no", "blue"])
    answers = [["yes"] * 3 + ["no"] * 2 + ["perhaps"] * 5, ["blue"] * 9 + ["no"], ["perhaps"] * 10]
    labels = collate([{**row, "answers": said} for row, said in zip(rows, answers, strict=True)])["labels"]
    assert labels.dtype == torch.float32
    expected = torch.tensor([[0.9, 0.6, 0.0], [0.0, 0.3, 1.0], [0.0, 0.0, 0.0]])  # the last: outside the vocabulary
    assert torch.equal(labels, expected)
    partly = collate([{**rows[0], "answers": ["yes"]}, {**rows[1], "answers": None}, rows[2]])["labels"]
    assert torch.equal(partly, torch.tensor([[0.3, 0.0, 0.0], [0.0] * 3, [0.0] * 3]))
    assert collate(rows)["labels"].tolist() == [0, 2, -100]  # without the column, the one answer that there is
    for wrong in ("yes", [1], 3):
        with pytest.raises(
            ValueError, match=r"Row 0 of its batch: the answers in column 'answers' are .*, but expected is a list"
        ):
            collate([{**rows[0], "answers": wrong}])


def test_answers_that_are_spelled_in_two_forms_of_unicode_are_counted_together(processor, rows):
    collate = DistillationCollator(processor, SOFT, ["caf\u00e9"])
    answers = ["caf\u00e9"] * 2 + ["cafe\u0301"] * 2
    assert collate([{**rows[0], "answers": answers}])["labels"].tolist() == [[1.0]]


def test_pairs_have_no_labels(processor, rows):
    assert set(DistillationCollator(processor, PAIRS, ())(rows)) == {
        "input_ids",
        "attention_mask",
        "pixel_values",
        "pixel_mask",
    }


def test_an_augmentation_sees_each_picture_with_its_key(processor, png, decodings):
    seen = []

    def augment(image, key):
        seen.append((image.mode, image.size, key))
        return Image.new("RGB", image.size, (255, 255, 255) if key[2] else (0, 0, 0))

    collate = DistillationCollator(processor, TWO_IMAGES, TWO_IMAGES.label_names, augmentation=augment)
    picture = png((9, 9, 9), (16, 16))
    row = {"left": picture, "right": picture, "sentence": "is it?", "label": "true"}
    rows = [{**row, "__epoch__": 2, "__index__": index} for index in (7, 5)]
    batch = collate(rows)
    assert seen == [("RGB", (16, 16), (2, index, place)) for index in (7, 5) for place in (0, 1)]
    assert batch["pixel_values"].mean(dim=(0, 2, 3, 4)).tolist() == [-1.0, 1.0]
    collate(rows)
    assert len(decodings) == 8  # nothing was kept


def test_rows_without_number_and_epoch_are_evaluated_and_not_augmented(processor, png, decodings):
    """One collator serves training and evaluation: of one batch, the numbered row alone is augmented."""
    collate = DistillationCollator(
        processor, TWO_IMAGES, TWO_IMAGES.label_names, augmentation=lambda image, key: Image.new("RGB", image.size)
    )
    white = png((255, 255, 255), (16, 16))
    row = {"left": white, "right": white, "sentence": "is it?", "label": "true"}
    batch = collate([row, {**row, "__index__": 3}, {**row, "__epoch__": 0, "__index__": 3}])
    assert batch["pixel_values"].mean(dim=(1, 2, 3, 4)).tolist() == [1.0, 1.0, -1.0]
    assert len(decodings) == 3  # once for the first two rows, kept, and twice for the third


def test_a_picture_is_decoded_once(processor, rows, decodings):
    collate = make(processor)
    first = collate(rows)
    assert len(decodings) == 2  # the second and third row show one picture
    second = collate(rows)
    assert len(decodings) == 2
    assert torch.equal(first["pixel_values"], second["pixel_values"])


def test_the_cache_knows_contents_not_names(processor, rows, png, decodings, tmp_path):
    collate = make(processor)
    one, other = rows[0], rows[1]
    collate([{**one, "image": {"bytes": one["image"]["bytes"], "path": "a.png"}}])
    collate([{**one, "image": {"bytes": other["image"]["bytes"], "path": "a.png"}}])
    collate([{**one, "image": one["image"]["bytes"]}])
    assert len(decodings) == 2
    picture = Image.new("RGB", (16, 16), (1, 2, 3))
    collate([{**one, "image": picture}])
    collate([{**one, "image": picture.copy()}])
    assert len(decodings) == 3


def test_the_cache_knows_the_colours_of_a_palette(processor):
    red, blue = Image.new("P", (16, 16)), Image.new("P", (16, 16))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    collate = make(processor)
    rows = [{"image": image, "question": "is it?"} for image in (red, blue)]
    first, second = (collate([row])["pixel_values"][0, 0, :, 0, 0] for row in rows)
    assert first.tolist() == [1, -1, -1]
    assert second.tolist() == [-1, -1, 1]


def test_changed_settings_of_the_processor_prepare_images_anew(rows, decodings):
    images = ViTImageProcessorPil(size={"height": 16, "width": 16})
    own = DualDistillProcessor(images, BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}))
    collate = make(own, image_cache_mb=3 * 16 * 16 * 4 / 1e6)  # the first image fills it
    assert collate(rows[:1])["pixel_values"].shape == (1, 1, 3, 16, 16)

    images.size = {"height": 8, "width": 8}
    assert collate(rows[:2])["pixel_values"].shape == (2, 1, 3, 8, 8)
    images.image_mean = [0.0, 0.0, 0.0]
    assert collate(rows[:2])["pixel_values"][0, 0, 0, 0, 0].item() == pytest.approx(200 / 255 / 0.5)
    own.jpeg_margin = 2
    collate(rows[:2])
    assert len(decodings) == 7
    collate(rows[:2])
    assert len(decodings) == 7  # and kept as they are now


def test_a_full_cache_takes_nothing_more_in_and_keeps_what_it_has(processor, png, decodings):
    size_mb = 3 * 16 * 16 * 4 / 1e6
    collate = make(processor, image_cache_mb=2.5 * size_mb)
    rows = [{"image": png((shade, 0, 0), (16, 16)), "question": "is it?"} for shade in range(4)]
    for _ in range(3):
        for row in rows:
            collate([row])
    assert len(decodings) == 2 + 2 * 3  # two pictures fit; the other two are decoded each time


def test_no_cache(processor, rows, decodings):
    collate = make(processor, image_cache_mb=0)
    collate(rows)
    collate(rows)
    assert len(decodings) == 6


def test_the_pickle_leaves_the_cache_behind(processor, rows):
    collate = make(processor)
    before = len(pickle.dumps(collate))
    expected = collate(rows)
    assert len(pickle.dumps(collate)) == before
    copy = pickle.loads(pickle.dumps(collate))  # noqa: S301 a pickle of our own, as DataLoader makes it
    assert all(torch.equal(value, expected[name]) for name, value in copy(rows).items())


def test_workers_collate_the_same(processor):
    data = load_task("scenes", num_scenes={"train": 4})["train"]
    collate = DistillationCollator(processor, TASKS["scenes"], ["yes", "no"])
    here = list(DataLoader(data, batch_size=8, collate_fn=collate))
    there = list(DataLoader(data, batch_size=8, collate_fn=collate, num_workers=1))
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        ({}, "row 1 of its batch: "),
        ({"scene_id": "train-4", "question_id": 9}, "row 1 of its batch (question_id 9, scene_id train-4): "),
        ({"__index__": 812, "scene_id": "train-4"}, "row 812: "),
    ],
)
def test_an_unusable_picture_names_its_row(processor, rows, ids, name):
    rows[1] = {**rows[1], **ids, "image": b"nothing"}
    with pytest.raises(ImageError) as caught:
        make(processor)(rows)
    assert str(caught.value).startswith(name)


def test_the_limit_on_pixels_reaches_the_decoder(processor, rows):
    with pytest.raises(ImageError, match="32 x 16 = 512 pixels, more than the 511"):
        make(processor, max_pixels=511)(rows)


def test_numbered_rows_and_augmentation_repeat_by_seed_epoch_and_row(processor):
    def pixels(epoch, order, seed=0):
        rows = IndexedDataset(load_task("scenes", num_scenes={"train": 2})["train"])
        rows.set_epoch(epoch)
        collate = make(processor, augmentation=RandAugment(seed=seed))
        return {index: collate([rows[index]])["pixel_values"] for index in order}

    first, again = pixels(0, [0, 1, 2, 7]), pixels(0, [7, 2, 0, 1])
    assert all(torch.equal(first[index], again[index]) for index in first)
    for other in (pixels(1, first), pixels(0, first, seed=1)):
        assert not all(torch.equal(first[index], other[index]) for index in first)


def png_that_declares(width, height):
    """A PNG whose header promises any number of pixels, and which holds none."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_odd_pictures_are_taken_or_refused_in_one_sentence(processor, rows, png):
    grey_and_alpha = make(processor)([{**rows[0], "image": png((0, 0), (16, 16), "LA")}])
    assert grey_and_alpha["pixel_values"].unique().tolist() == [1.0]  # transparent is white
    with pytest.raises(
        ImageError, match=r"^row 0 of its batch: its header declares .*; drop the row, or shrink the image"
    ):
        make(processor)([{**rows[0], "image": png_that_declares(30_000, 30_000)}])
    with pytest.raises(
        ImageError, match=r"^row 0 of its batch: the image of 1 x 2000 pixels cannot be resized .*; crop it"
    ):
        make(processor)([{**rows[0], "image": png((9, 9, 9), (1, 2_000))}])  # ViLT's resizing leaves no column of it
    fixed = DualDistillProcessor(ViTImageProcessorPil(size={"height": 16, "width": 16}), processor.tokenizer)
    assert make(fixed)([{**rows[0], "image": png((9, 9, 9), (1, 2_000))}])["pixel_values"].shape == (1, 1, 3, 16, 16)


def test_each_error_by_its_message(processor, rows):
    with pytest.raises(ValueError, match="A batch needs at least one row"):
        make(processor)([])
    with pytest.raises(
        ValueError, match=r"Row 0 of its batch has no column 'question', which task 'scenes' needs; it has: image\."
    ):
        make(processor)([{"image": rows[0]["image"]}])
    with pytest.raises(
        ValueError, match=r"Row 0 .* question has 1,000,001 characters, but a text has 1,000,000 at most"
    ):
        make(processor)([{**rows[0], "question": "x" * 1_000_001}])
    with pytest.raises(ValueError, match="label_names holds 'no' more than once"):
        DistillationCollator(processor, TASKS["scenes"], ["no", "yes", "no"])
    with pytest.raises(ValueError, match="image_cache_mb is -1"):
        make(processor, image_cache_mb=-1)
