"""Maps of words are the model's own attention; the picture's pixels have known answers.

A patch at the peak shows the image, a patch at 0 lies under the veil.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.inference import attention_maps, draw_attention_picture
from dual_distill.inference.attention import (
    _COLOURS,
    _MARGIN,
    _VEIL_OPACITY,
    _as_tile,
    _split_into_bands,
    _tile_with_heat,
)
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)

GREY = (200, 180, 160)


def one_hot(*cells, grid=(3, 3)):
    """One map a word, all attention on one patch."""
    maps = np.zeros((len(cells), *grid))
    for index, cell in enumerate(cells):
        maps[(index, *cell)] = 1
    return maps


def test_a_patch_at_the_peak_shows_the_image_in_a_frame_of_the_top_colour():
    tile = _tile_with_heat(Image.new("RGB", (144, 144), GREY), one_hot((0, 2))[0])
    assert tile.getpixel((120, 24)) == GREY
    assert tile.getpixel((97, 1)) == tuple(_COLOURS[-1].astype(int))


def test_a_patch_at_zero_is_the_image_under_the_veil_and_has_no_frame():
    tile = _tile_with_heat(Image.new("RGB", (144, 144), GREY), one_hot((0, 2))[0])
    veiled = np.rint(np.array(GREY) * (1 - _VEIL_OPACITY) + _COLOURS[0] * _VEIL_OPACITY)
    for pixel in ((24, 24), (1, 1), (120, 72), (143, 143)):
        assert tile.getpixel(pixel) == tuple(veiled.astype(int))


def test_more_attention_is_brighter_and_its_frame_goes_along_the_scale():
    values = np.linspace(0.3, 1, 5)[None, :]
    tile = np.asarray(_tile_with_heat(Image.new("RGB", (500, 100), GREY), values)).astype(int)
    centres, frames = tile[50, 50::100].sum(axis=-1), tile[50, 2::100]
    assert (np.diff(centres) > 0).all()
    assert (np.diff(frames @ [0.2126, 0.7152, 0.0722]) > 0).all()


@pytest.mark.parametrize("size", [(7, 5), (36, 36), (145, 99)])
def test_every_patch_has_its_own_place_when_the_grid_does_not_divide_the_tile(size):
    for cell in np.ndindex(3, 2):
        tile = np.asarray(_tile_with_heat(Image.new("RGB", size, "white"), one_hot(cell, grid=(3, 2))[0])).astype(int)
        rows, columns = np.nonzero(tile.sum(axis=-1) > tile.sum(axis=-1).min())
        assert set(rows * 3 // size[1]) == {cell[0]}
        assert set(columns * 2 // size[0]) == {cell[1]}


def count_of_top_colour(picture):
    """How many pixels have the colour of the peak, the legend at the bottom left out."""
    return (np.asarray(picture)[:-200] == _COLOURS[-1].astype(np.uint8)).all(axis=-1).sum()


def test_a_word_is_scaled_by_the_largest_value_of_any_model():
    image = Image.new("RGB", (36, 36), GREY)
    strong, weak = one_hot((0, 0)), one_hot((0, 0)) * 0.5
    together = count_of_top_colour(draw_attention_picture(image, ["red"], {"a": strong, "b": weak}))
    alone = count_of_top_colour(draw_attention_picture(image, ["red"], {"b": weak, "c": weak * 0}))
    assert together == alone > 0  # one frame each: the weak map has the top colour only where it is the peak


def test_a_shared_scale_lets_columns_compare():
    image, maps = Image.new("RGB", (36, 36), GREY), {"a": np.concatenate([one_hot((0, 0)), one_hot((0, 0)) * 0.5])}
    by_word = count_of_top_colour(draw_attention_picture(image, ["red", "the"], maps))
    shared = count_of_top_colour(draw_attention_picture(image, ["red", "the"], maps, shared_scale=True))
    assert by_word == 2 * shared > 0


def test_a_word_that_looks_nowhere_is_drawn_dark_without_a_warning(recwarn):
    picture = draw_attention_picture(Image.new("RGB", (36, 36)), ["the"], {"a": np.zeros((1, 3, 3))})
    assert not recwarn.list
    assert count_of_top_colour(picture) == 0


def test_the_untouched_image_stands_at_the_top_left_enlarged_by_a_whole_factor():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
    picture = draw_attention_picture(Image.fromarray(pixels), ["red"], {"a": one_hot((1, 1))})
    shown = np.asarray(picture)[_MARGIN : _MARGIN + 144, _MARGIN : _MARGIN + 144]
    np.testing.assert_array_equal(shown, pixels.repeat(4, axis=0).repeat(4, axis=1))


@pytest.mark.parametrize(
    "size, expected",
    [
        ((36, 36), (144, 144)),
        ((64, 64), (128, 128)),
        ((288, 288), (144, 144)),
        ((200, 50), (288, 72)),
        ((1, 9), (32, 288)),
    ],
)
def test_a_tile_keeps_the_proportions(size, expected):
    assert _as_tile(Image.new("RGB", size)).size == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_any_mode_of_image_is_drawn(mode):
    assert draw_attention_picture(Image.new(mode, (20, 30)), ["red"], {"a": one_hot((0, 0))}).mode == "RGB"


def test_words_are_split_into_bands_of_nearly_equal_length():
    assert [len(band) for band in _split_into_bands(8, 144)] == [8]
    assert [len(band) for band in _split_into_bands(9, 144)] == [5, 4]
    assert [len(band) for band in _split_into_bands(20, 144)] == [7, 7, 6]
    assert [len(band) for band in _split_into_bands(3, 5000)] == [1, 1, 1]


@pytest.mark.parametrize("word_count", [1, 8, 9, 20])
def test_the_picture_is_white_around_and_grows_by_bands(word_count):
    words = [f"w{index}" for index in range(word_count)]
    maps = {"teacher (fusion encoder)": one_hot(*[(0, 0)] * word_count)}
    picture = draw_attention_picture(Image.new("RGB", (36, 36)), words, maps, question="Where?")
    border = np.concatenate([np.asarray(picture)[:10].ravel(), np.asarray(picture)[:, :20].ravel()])
    assert (border == 255).all()
    assert picture.width <= 1560
    one_band = draw_attention_picture(
        Image.new("RGB", (36, 36)), ["w"], {"a": one_hot((0, 0))}, question="Where?"
    ).height
    band_count = len(_split_into_bands(word_count, 144))
    assert abs(picture.height - one_band) > 150 * (band_count - 1) - 100


def test_long_words_and_names_stay_inside():
    maps = {"a-name/without-any-space-that-goes-on-and-on-and-on and more and more": one_hot((0, 0), (0, 1))}
    picture = draw_attention_picture(Image.new("RGB", (36, 36)), ["antidisestablishmentarianism" * 2, "?"], maps)
    assert (np.asarray(picture)[:, -10:] == 255).all()


def test_each_answer_is_marked_right_or_wrong():
    maps = {"teacher": one_hot((0, 0)), "student": one_hot((0, 0))}
    image, green, red = Image.new("RGB", (36, 36)), (0, 112, 78), (176, 42, 32)

    def colours(**options):
        picture = draw_attention_picture(image, ["red"], maps, **options)
        return {colour for _, colour in picture.getcolors(maxcolors=1 << 24)}

    answers = {"teacher": "circle", "student": "square"}
    assert not {green, red} & colours(answers=answers)
    assert {green, red} <= colours(answers=answers, right_answer="circle")
    assert green not in colours(answers=answers, right_answer="triangle")


@pytest.mark.parametrize(
    "words, maps, message",
    [
        ([], {"a": np.zeros((0, 3, 3))}, "at least one word, got"),
        ("red", {"a": np.zeros((3, 3, 3))}, "at least one word, got 'red'"),
        (["red"], {}, "maps is empty"),
        (
            ["red"],
            {"a": np.zeros((2, 3, 3))},
            r"maps\['a'\] has shape \(2, 3, 3\), expected \(1, grid height, grid width\)",
        ),
        (["red"], {"a": np.zeros((1, 9))}, r"has shape \(1, 9\), expected \(1, grid height, grid width\)"),
        (
            ["red"],
            {"a": np.zeros((1, 3, 3)), "b": np.zeros((1, 4, 4))},
            r"\(1, 4, 4\), but maps\['a'\] has \(1, 3, 3\)",
        ),
        (["red"], {"a": np.full((1, 3, 3), -0.1)}, "negative or non-finite number: give attention after softmax"),
        (["red"], {"a": np.full((1, 3, 3), np.nan)}, "negative or non-finite number"),
        (["red", "box"], {"a": one_hot((0, 0), (1, 1)) * [[[1]], [[4]]]}, r"gives 'box' 4\.000 in sum .* at most 1"),
    ],
)
def test_maps_that_do_not_fit_are_refused_with_the_reason(words, maps, message):
    with pytest.raises(ValueError, match=message):
        draw_attention_picture(Image.new("RGB", (36, 36)), words, maps)


def test_an_answer_of_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"answers name \['b'\], but the maps are of \['a'\]"):
        draw_attention_picture(Image.new("RGB", (9, 9)), ["red"], {"a": one_hot((0, 0))}, answers={"b": "yes"})


# Maps


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
    words, maps = attention_maps(fusion, processor, image, text)
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


def test_vowel_signs_and_joiners_are_part_of_a_word(
    processor: DualDistillProcessor, fusion: FusionEncoderForQuestionAnswering
) -> None:
    words, maps = attention_maps(
        fusion, processor, Image.new("RGB", (16, 16)), "\u0939\u093f\u0928\u094d\u0926\u0940 red?"
    )
    assert words == ["\u0939\u093f\u0928\u094d\u0926\u0940", "red", "?"]
    assert len(maps) == 3


def test_the_dual_encoder_gives_maps_of_the_same_shape(
    processor: DualDistillProcessor, fusion: FusionEncoderForQuestionAnswering
) -> None:
    dual = DualEncoderForQuestionAnswering.from_fusion_encoder(fusion)
    words, maps = attention_maps(dual, processor, Image.new("RGB", (16, 16)), "a red circle")
    assert (len(words), maps.shape) == (3, (3, 2, 2))
    assert (maps.sum((1, 2)) <= 1 + 1e-5).all()


@pytest.mark.parametrize("layer", [0, -1])
def test_maps_of_interaction_layers_are_their_own_weights_rescaled_to_the_image(
    layer: int, processor: DualDistillProcessor, fusion: FusionEncoderForQuestionAnswering
) -> None:
    text, image = "is there a red circle?", Image.effect_noise((24, 16), 80).convert("RGB")
    dual = DualEncoderForQuestionAnswering.from_fusion_encoder(fusion, interaction_layers=2).eval()
    words, maps = attention_maps(dual, processor, image, text, [layer])
    assert (len(words), maps.shape) == (6, (6, 2, 3))

    batch = processor(text=text, images=image)
    probs = dual(**batch, output_attentions=True).interaction_model_output.attentions[layer][0]
    num_image = probs.shape[-1] - batch["input_ids"].shape[1]  # keys are [image; text]
    pieces = processor.tokenizer(text).word_ids()
    for word, found in enumerate(maps):
        rows = [index for index, name in enumerate(pieces) if name == word]
        block = probs[:, rows, :num_image]
        expected = (block / block.sum(-1, keepdim=True)).mean((0, 1))[1:]
        torch.testing.assert_close(torch.tensor(found).flatten(), expected, atol=1e-5, rtol=0)
