"""Maps of words: the attention that the model itself computes, in the grid of the image, one map a word."""

import pytest
import torch
from PIL import Image
from transformers import ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.inference import word_attention
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)


@pytest.fixture
def processor() -> DualDistillProcessor:
    tokenizer = train_tokenizer(["is there a red circle?", "xylophones"], vocab_size=40)
    return DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer)


@pytest.fixture
def fusion(processor: DualDistillProcessor) -> FusionEncoderForQuestionAnswering:
    config = FusionEncoderConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return FusionEncoderForQuestionAnswering(config).eval()


def test_maps_are_the_models_own_attention_rescaled_to_the_image(
    processor: DualDistillProcessor, fusion: FusionEncoderForQuestionAnswering
) -> None:
    text, image = "is there a red circle?", Image.effect_noise((24, 16), 80).convert("RGB")
    words, maps = word_attention(fusion, processor, image, text)
    assert words == ["is", "there", "a", "red", "circle", "?"]
    assert maps.shape == (6, 2, 3)

    batch = processor(text=text, images=image)
    probs = fusion(**batch, output_attentions=True).attentions[-1][0]
    num_text = batch["input_ids"].shape[1]
    pieces = processor.tokenizer(text).word_ids()
    for word, found in enumerate(maps):
        rows = [index for index, name in enumerate(pieces) if name == word]
        block = probs[:, rows, num_text:]
        expected = (block / block.sum(-1, keepdim=True)).mean((0, 1))[1:]
        torch.testing.assert_close(torch.tensor(found).flatten(), expected, atol=1e-5, rtol=0)


def test_the_dual_encoder_gives_maps_of_the_same_shape(
    processor: DualDistillProcessor, fusion: FusionEncoderForQuestionAnswering
) -> None:
    dual = DualEncoderForQuestionAnswering.from_fusion_encoder(fusion)
    words, maps = word_attention(dual, processor, Image.new("RGB", (16, 16)), "a red circle")
    assert (len(words), maps.shape) == (3, (3, 2, 2))
    assert (maps.sum((1, 2)) <= 1 + 1e-5).all()
