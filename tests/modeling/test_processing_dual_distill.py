"""The processor: what it returns, that nothing depends on the rest of the batch, what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BertTokenizer, ViltImageProcessorPil, ViTImageProcessorPil

from dual_distill.modeling import DualDistillProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?"]


def tokenizer(**options):
    return BertTokenizer({word: index for index, word in enumerate(WORDS)}, **options)


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(params=["ratio kept", "fixed size"])
def processor(request):
    if request.param == "fixed size":
        return DualDistillProcessor(ViTImageProcessorPil(size={"height": 8, "width": 20}), tokenizer())
    return DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer())


PICTURES = [[picture(32, 16, 0)], [picture(16, 16, 1)], [picture(20, 33, 2)]]
TEXTS = ["what is it?", "what?", "it is what it is"]


def test_saved_and_loaded_gives_the_same_batch(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    before = processor(text=TEXTS, images=PICTURES)
    for after in (DualDistillProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(after) is DualDistillProcessor
        assert type(after.image_processor) is type(processor.image_processor)
        batch = after(text=TEXTS, images=PICTURES)
        assert before.keys() == batch.keys() == set(processor.model_input_names)
        assert all(torch.equal(before[name], batch[name]) for name in before)


def test_word_pieces_and_their_mask():
    batch = DualDistillProcessor(ViTImageProcessorPil(), tokenizer())(text=["what is it?", "what"])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3], [2, 5, 3, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_text_is_truncated_to_the_length_asked_for_or_the_tokenizers_own():
    processor = DualDistillProcessor(ViTImageProcessorPil(), tokenizer(model_max_length=5))
    assert processor(text="what is it what is it")["input_ids"].tolist() == [[2, 5, 6, 7, 3]]
    assert processor(text="what is it what is it", max_length=4)["input_ids"].tolist() == [[2, 5, 6, 3]]


def test_an_image_is_padded_at_the_bottom_and_right_and_its_own_pixels_do_not_change(processor):
    batch = processor(images=PICTURES)
    assert batch["pixel_values"].shape[:3] == (3, 1, 3)
    for i, [image] in enumerate(PICTURES):
        alone = processor.prepare_image(image)
        height, width = alone.shape[1:]
        assert torch.equal(batch["pixel_values"][i, 0, :, :height, :width], alone)
        mask = torch.zeros(batch["pixel_mask"].shape[-2:], dtype=torch.long)
        mask[:height, :width] = 1
        assert torch.equal(batch["pixel_mask"][i, 0], mask)
        assert not (batch["pixel_values"][i, 0] * (1 - mask)).any()


def test_pixels_are_normalised():
    processor = DualDistillProcessor(
        ViTImageProcessorPil(size={"height": 4, "width": 4}, image_mean=[0.5] * 3, image_std=[0.5] * 3), tokenizer()
    )
    pixels = processor(images=Image.new("RGB", (4, 4), (255, 0, 51)))["pixel_values"][0, 0, :, 0, 0]
    torch.testing.assert_close(pixels, torch.tensor([1.0, -1.0, -0.6]), atol=1e-6, rtol=0)


def test_images_of_one_row_keep_their_places(processor):
    rows = [[picture(16, 16, 0), picture(16, 24, 1)], [picture(16, 24, 2), picture(16, 16, 3)]]
    batch = processor(images=rows, text=TEXTS[:2])
    assert batch["pixel_values"].shape[:2] == batch["pixel_mask"].shape[:2] == (2, 2)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            alone = processor.prepare_image(image)
            assert torch.equal(batch["pixel_values"][i, j, :, : alone.shape[1], : alone.shape[2]], alone)


def test_one_image_one_a_row_and_rows_of_one_are_the_same(processor):
    [[image], [other], _] = PICTURES
    one = processor(images=image)
    assert torch.equal(one["pixel_values"], processor(images=[[image]])["pixel_values"])
    flat, nested = processor(images=[image, other]), processor(images=[[image], [other]])
    assert torch.equal(flat["pixel_values"], nested["pixel_values"])


def test_refusals(processor):
    with pytest.raises(ValueError, match="give images, text, or both; got neither"):
        processor()
    with pytest.raises(ValueError, match="there are 2 texts and 3 rows of images"):
        processor(text=TEXTS[:2], images=PICTURES)
    with pytest.raises(ValueError, match=r"the rows of one batch have \[1, 2\] images"):
        processor(images=[PICTURES[0], PICTURES[0] * 2])
    with pytest.raises(ValueError, match=r"the rows of one batch have \[0\] images"):
        processor(images=[[], []])
