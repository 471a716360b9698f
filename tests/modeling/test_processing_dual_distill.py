"""The processor: what it returns, that nothing depends on the rest of the batch, what it refuses."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoProcessor,
    BertTokenizer,
    GotOcr2ImageProcessorPil,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessorPil,
    ViltImageProcessorPil,
    ViTImageProcessorPil,
)

from dual_distill.data import decode_image
from dual_distill.modeling import DualDistillProcessor, processing_dual_distill
from dual_distill.modeling.processing_dual_distill import _resized_and_normalised

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
_SQUARE = {"height": 64, "width": 64}


def test_saved_and_loaded_gives_the_same_batch(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    before = processor(text=TEXTS, images=PICTURES)
    for after in (DualDistillProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(after) is DualDistillProcessor
        assert type(after.image_processor) is type(processor.image_processor)
        batch = after(text=TEXTS, images=PICTURES)
        assert before.keys() == batch.keys() == set(processor.model_input_names)
        assert all(torch.equal(before[name], batch[name]) for name in before)


def test_what_is_saved_does_not_depend_on_what_was_tokenized_before(processor, tmp_path):
    processor.save_pretrained(tmp_path / "new")
    processor(text=TEXTS, max_length=4)
    processor.save_pretrained(tmp_path / "used")
    for file in (tmp_path / "new").iterdir():
        assert (tmp_path / "used" / file.name).read_bytes() == file.read_bytes(), file.name
    assert processor(text=TEXTS, max_length=4)["input_ids"].shape == (3, 4)


def test_word_pieces_and_their_mask():
    batch = DualDistillProcessor(ViTImageProcessorPil(), tokenizer())(text=["what is it?", "what"])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3], [2, 5, 3, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_padding_is_masked_where_the_tokenizer_names_its_ids_alone(processor):
    alone = DualDistillProcessor(processor.image_processor, tokenizer(model_input_names=["input_ids"]))
    found, expected = alone(text=TEXTS), processor(text=TEXTS)
    assert found["attention_mask"].tolist() == expected["attention_mask"].tolist()
    assert found["attention_mask"].sum(1).tolist() == [6, 4, 7]
    # As collators ask it, too.
    assert "attention_mask" in alone.tokenizer(TEXTS, padding=True)


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
        mask = torch.zeros(batch["pixel_mask"].shape[-2:], dtype=torch.bool)
        mask[:height, :width] = True
        assert torch.equal(batch["pixel_mask"][i, 0], mask)
        assert not (batch["pixel_values"][i, 0] * ~mask).any()


@pytest.mark.parametrize("size", [(640, 427), (31, 200), (100, 100)], ids=str)
@pytest.mark.parametrize("kind", ["Vilt", "ViT", "CLIP", "Siglip", "DeiT", "Blip", "Bit", "Siglip2"])
def test_one_pass_over_the_pixels_gives_transformers_own_bit_by_bit(kind, size):
    image_processor = getattr(transformers, f"{kind}ImageProcessorPil")()
    processor, image = DualDistillProcessor(image_processor, tokenizer()), picture(*size)
    own, one_pass = image_processor(image, return_tensors="pt"), _resized_and_normalised(image_processor, image)
    assert (one_pass is None) == (kind == "Siglip2")
    if one_pass is not None:
        assert one_pass.is_contiguous()
        assert torch.equal(one_pass, own["pixel_values"][0])
        assert torch.equal(processor.prepare_image(image), one_pass)
    assert image.size == size


@pytest.mark.parametrize("size", [(320, 200), (150, 300)], ids=str)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("CLIP", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("Bit", {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}),
        ("CLIP", {"size": {"shortest_edge": 80}, "do_center_crop": False}),
        ("CLIP", {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}, "do_resize": False}),
        ("CLIP", {"size": {"height": 80, "width": 96}, "crop_size": {"height": 64, "width": 64}}),
        ("ConvNext", {"size": {"shortest_edge": 64}}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("PoolFormer", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("BridgeTower", {"size": {"shortest_edge": 64}, "crop_size": {"shortest_edge": 64}, "size_divisor": 8}),
        ("Vilt", {"size": {"shortest_edge": 64}}),
        ("Levit", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("Levit", {"size": {"height": 80, "width": 96}, "crop_size": {"height": 64, "width": 64}}),
        ("Perceiver", {"size": {"height": 48, "width": 56}, "crop_size": {"height": 64, "width": 64}}),
        ("Perceiver", {"size": {"height": 48, "width": 56}, "crop_size": None, "do_center_crop": False}),
        ("Llava", {"size": {"shortest_edge": 64}, "crop_size": _SQUARE}),
        ("Llava", {"size": {"shortest_edge": 64}, "crop_size": _SQUARE, "do_pad": True, "image_mean": [0.0] * 3}),
        ("Llava", {"size": {"shortest_edge": 80}, "crop_size": _SQUARE, "do_pad": True, "image_mean": [0.0] * 3}),
    ],
)
def test_the_seen_region_is_the_part_of_the_image_that_the_pixels_show(kind, settings, size):
    # Red runs from 0 at the left to 1 at the right, green from top to bottom.
    width, height = size
    ramps = np.zeros((height, width, 3), dtype=np.uint8)
    ramps[..., 0] = (np.arange(width) + 0.5) / width * 255
    ramps[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    image_processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings, do_normalize=False)
    processor, image = DualDistillProcessor(image_processor, tokenizer()), Image.fromarray(ramps)
    red, green, _ = processor.prepare_image(image)

    ends = []
    for values in (red.amax(0), green.amax(1)):
        # Straight on from the middle quarter: the outermost pixels are blurred, or pad the image.
        count = len(values)
        first, last = 3 * count // 8, 5 * count // 8
        step = (values[last] - values[first]) / (last - first)
        ends.append([(values[first] + step * (at - first - 0.5)).item() for at in (0, count)])
    (x0, x1), (y0, y1) = ends
    assert processor.seen_region(image) == pytest.approx((x0, y0, x1, y1), abs=0.02)
    assert processor.seen_region(ramps) == processor.seen_region(torch.tensor(ramps)) == processor.seen_region(image)


def test_the_seen_region_of_a_shrunk_jpeg_is_that_of_the_whole_one():
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = DualDistillProcessor(transformers.CLIPImageProcessorPil(**crop), tokenizer(), jpeg_margin=1)
    encoded = io.BytesIO()
    picture(333, 200).save(encoded, "JPEG")
    whole, shrunk = (decode_image(encoded.getvalue(), 0, jpeg_size=size) for size in (None, processor.jpeg_size))
    assert shrunk.size != whole.size == (333, 200)
    assert processor.seen_region(shrunk) == processor.seen_region(whole)


def test_a_jpeg_keeps_the_pixels_that_are_cropped_away():
    convnext = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 224})
    assert DualDistillProcessor(convnext, tokenizer(), jpeg_margin=1).jpeg_size(2000, 1000) == (512, 256)


@pytest.mark.parametrize("version", ["5.23", "5.24", "not yet known"])
def test_the_pixels_stay_whatever_transformers_reads_as_an_images_size(version, processor, monkeypatch, caplog):
    def size_of(image, *args, **kwargs):
        if isinstance(image, Image.Image):
            return {"5.23": image.size, "5.24": (image.height, image.width)}.get(version, (image.width, image.height))
        return read_size(image, *args, **kwargs)

    image, read_size = picture(32, 16), transformers.image_utils.get_image_size
    expected = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    for name in ("image_transforms", "models.vilt.image_processing_pil_vilt"):
        monkeypatch.setattr(f"transformers.{name}.get_image_size", size_of)
    monkeypatch.setattr(processing_dual_distill, "_IS_EXACT", {})
    for _ in range(2):
        assert torch.equal(processor.prepare_image(image), expected)
    is_unlike = version == "not yet known" and isinstance(processor.image_processor, ViltImageProcessorPil)
    slow = f"a {type(processor.image_processor).__name__} prepares images in its own, slower way"
    assert caplog.messages == [slow] * is_unlike


def test_a_large_jpeg_is_shrunk_while_it_is_decoded_where_asked_for(processor, tmp_path):
    smooth = picture(8, 6).resize((803, 600), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"exif": exif}):
        encoded = io.BytesIO()
        smooth.save(encoded, "JPEG", quality=95, **options)
        assert processor.jpeg_margin is None
        whole = processor.prepare_image(decode_image(encoded.getvalue(), 0, jpeg_size=processor.jpeg_size))
        assert torch.equal(whole, processor.prepare_image(decode_image(encoded.getvalue(), 0)))

        fast = DualDistillProcessor(processor.image_processor, processor.tokenizer, jpeg_margin=2)
        fast.save_pretrained(tmp_path)
        fast = AutoProcessor.from_pretrained(tmp_path)
        shrunk = decode_image(encoded.getvalue(), 0, jpeg_size=fast.jpeg_size)
        assert sorted(shrunk.size) == [75, 101]  # an eighth of 600 and 803, rounded up
        assert shrunk.info["declared_size"] == ((600, 803) if options else (803, 600))
        found = fast.prepare_image(shrunk)
        assert found.shape == whole.shape
        assert (found - whole).abs().mean() * 127.5 < 2

        # Of a crop or a turned one the size in the header says nothing.
        for change in (lambda image: image.crop((0, 0, 40, 60)), lambda image: image.transpose(Image.Transpose(2))):
            alone = Image.frombytes("RGB", change(shrunk).size, change(shrunk).tobytes())
            assert torch.equal(fast.prepare_image(change(shrunk)), fast.prepare_image(alone))

    with pytest.raises(ValueError, match=r"jpeg_margin is 0\.5; give a number of at least 1, or None"):
        DualDistillProcessor(processor.image_processor, processor.tokenizer, jpeg_margin=0.5)


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


@pytest.mark.parametrize("kind", ["torch", "numpy", "channels last"])
def test_an_array_of_several_images_is_all_of_them(kind, processor):
    # All of one size: four rows, or two rows of two.
    arrays = np.stack([np.asarray(picture(16, 24, seed)) for seed in range(4)])
    arrays = arrays if kind == "channels last" else arrays.transpose(0, 3, 1, 2)
    given = torch.from_numpy(arrays) if kind == "torch" else arrays

    expected = processor(images=[[image] for image in given])
    assert expected["pixel_values"].shape[:3] == (4, 1, 3)
    assert torch.equal(processor(images=given)["pixel_values"], expected["pixel_values"])

    pairs = expected["pixel_values"].unflatten(0, (2, 2))[:, :, 0]
    for rows in ([given[:2], given[2:]], given.reshape(2, 2, *given.shape[1:])):
        assert torch.equal(processor(images=rows, text=TEXTS[:2])["pixel_values"], pairs)
    with pytest.raises(ValueError, match="there are 1 texts and 4 rows of images"):
        processor(images=given, text="what?")


def test_what_the_image_processor_makes_several_images_of_is_refused(processor):
    several = np.zeros((3, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="made 3 images of what should be one; give one image at a time"):
        processor.prepare_image(several)

    tiles = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=2)
    cutting = DualDistillProcessor(tiles, processor.tokenizer)
    with pytest.raises(ValueError, match="GotOcr2ImageProcessorPil made 3 images of what should be one"):
        cutting(images=picture(32, 16))


def test_refusals(processor):
    with pytest.raises(ValueError, match="give images, text, or both; got neither"):
        processor()
    with pytest.raises(ValueError, match="there are 2 texts and 3 rows of images"):
        processor(text=TEXTS[:2], images=PICTURES)
    with pytest.raises(ValueError, match=r"the rows of one batch have \[1, 2\] images"):
        processor(images=[PICTURES[0], PICTURES[0] * 2])
    with pytest.raises(ValueError, match=r"the rows of one batch have \[0\] images"):
        processor(images=[[], []])
    for named in ("photo.jpg", Path("photo.jpg"), ["photo.jpg"], [["photo.jpg"]], [PICTURES[0][0], "photo.jpg"]):
        with pytest.raises(ValueError, match=r"an image is 'photo\.jpg', a name; open it first"):
            processor(images=named)


def photograph(mode: str) -> Image.Image:
    """A picture in a mode that files have; half of it transparent where the mode can say so."""
    image = picture(32, 16).convert("RGBA")
    image.putalpha(Image.new("L", (16, 16), 60).resize((32, 16)))
    if mode == "P with a transparent colour":
        image = image.convert("RGB").quantize(8)
        image.info["transparency"] = 0
        return image
    if mode in ("turned", "turned by EXIF that cannot be rewritten", "EXIF that cannot be read"):
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        ends = {"turned": exif.tobytes(), "EXIF that cannot be read": b"Exif\0\0garbage"}
        # Orientation 6, and a width that is below zero.
        unlike = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHIiI", 0x0112, 3, 1, 6, 0x0100, 9, 1, -5, 0)
        picture(32, 16).save(file, "PNG", exif=ends.get(mode, unlike))
        return Image.open(file)
    if mode in ("I;16", "I"):
        return Image.fromarray(np.arange(512, dtype=np.uint16).reshape(16, 32) * 128).convert(mode)
    if mode == "AVIF":
        file = io.BytesIO()
        image.save(file, mode)
        return Image.open(file)
    return image.convert(mode)


@pytest.mark.parametrize(
    "mode",
    [
        *(
            "RGB",
            "RGBA",
            "LA",
            "PA",
            "L",
            "P",
            "1",
            "CMYK",
            "YCbCr",
            "P with a transparent colour",
            "I;16",
            "I",
            "AVIF",
        ),
        *("turned", "turned by EXIF that cannot be rewritten", "EXIF that cannot be read"),
    ],
)
def test_any_image_gives_the_pixels_that_the_products_decoder_gives(mode, processor):
    image = photograph(mode)
    assert decode_image(image, row=0).size == ((16, 32) if mode.startswith("turned") else (32, 16))
    expected = processor(images=decode_image(image, row=0))["pixel_values"]
    assert torch.equal(processor(images=image)["pixel_values"], expected)
    assert torch.equal(processor.prepare_image(image), expected[0, 0])
    assert image.mode == photograph(mode).mode  # the caller's image stays what it is


@pytest.mark.parametrize(("mode", "colour"), [("F", 0), ("I", 65536), ("I", -1)])
def test_an_image_whose_white_is_not_known_is_refused(mode, colour, processor):
    with pytest.raises(ValueError, match=f"the image has mode '{mode}', .*; convert it to 8 bits"):
        processor(images=Image.new(mode, (16, 16), colour))
    with pytest.raises(ValueError, match=f"row 0: mode '{mode}'"):
        decode_image(Image.new(mode, (16, 16), colour), row=0)


IMAGE_OPTIONS = [
    {"do_resize": False},
    {"size": {"height": 24, "width": 24, "shortest_edge": 24}},
    {"do_rescale": False},
    {"rescale_factor": 0.01},
    {"do_normalize": False},
    {"image_mean": [0.0] * 3},
    {"image_std": [1.0] * 3},
    {"resample": Image.Resampling.NEAREST},
]


@pytest.mark.parametrize("options", IMAGE_OPTIONS, ids=lambda options: next(iter(options)))
def test_each_option_of_the_image_processor_has_its_effect(options, processor):
    if "size" in options:
        sides = {"shortest_edge"} if "shortest_edge" in processor.image_processor.size else {"height", "width"}
        options = {"size": dict.fromkeys(sides, 24)}
    image = picture(40, 40)
    expected = processor.image_processor(image, return_tensors="pt", **options)["pixel_values"][0]
    assert expected.shape != processor.prepare_image(image).shape or not torch.equal(
        expected, processor.prepare_image(image)
    )
    for given in (options, {"images_kwargs": options}):
        assert torch.equal(processor(images=image, **given)["pixel_values"][0, 0], expected)


def test_floats_from_0_to_1_are_not_rescaled_again(processor):
    pixels = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    found = processor(images=pixels, do_rescale=False, do_resize=False)["pixel_values"][0, 0]
    ours = processor.image_processor
    mean, std = (torch.tensor(value)[:, None, None] for value in (ours.image_mean, ours.image_std))
    torch.testing.assert_close(found, (torch.from_numpy(pixels).permute(2, 0, 1) - mean) / std)


@pytest.mark.parametrize("nested", [False, True])
def test_options_of_the_text_have_their_effect(nested, processor):
    def ids(**options):
        return processor(text=["what is it?"], **({"text_kwargs": options} if nested else options))[
            "input_ids"
        ].tolist()

    assert ids(padding="max_length", max_length=8) == [[2, 5, 6, 7, 8, 3, 0, 0]]
    assert ids(add_special_tokens=False) == [[5, 6, 7, 8]]
    assert ids(max_length=3) == [[2, 5, 3]]


def test_both_sides_at_once_each_with_its_options(processor):
    batch = processor(images=PICTURES, text=TEXTS, do_normalize=False, max_length=3)
    assert torch.equal(batch["input_ids"], processor(text=TEXTS, max_length=3)["input_ids"])
    assert torch.equal(batch["pixel_values"], processor(images=PICTURES, do_normalize=False)["pixel_values"])


def test_the_kind_of_tensors(processor):
    expected = processor(images=PICTURES, text=TEXTS)
    for options in ({"return_tensors": "np"}, {"common_kwargs": {"return_tensors": "np"}}):
        found = processor(images=PICTURES, text=TEXTS, **options)
        assert all(isinstance(found[name], np.ndarray) for name in expected)
        assert all(np.array_equal(found[name], expected[name].numpy()) for name in expected)
    for kind in ("pt", None):
        assert torch.equal(processor(text=TEXTS, return_tensors=kind)["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"nonsense": 3}, "the processor takes no nonsense"),
        ({"images_kwargs": {"nonsense": 3}}, "the processor takes no nonsense"),
        ({"text_kwargs": {"do_resize": False}}, "the processor takes no do_resize"),
        ({"do_pad": False}, "the processor takes no do_pad"),
        ({"do_resize": False, "images_kwargs": {"do_resize": True}}, "do_resize: given by name and among a side"),
        ({"padding": True, "text_kwargs": {"padding": "max_length"}}, "padding: given by name and among a side"),
        ({"videos": None, "audio": None}, "the processor takes no audio, videos"),
        ({"return_tensors": "tf"}, 'return_tensors is \'tf\'; give "pt" or "np"'),
    ],
)
def test_options_that_nobody_would_read_are_refused(options, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(images=PICTURES, text=TEXTS, **options)


def test_flexible_grids_are_padded_images_whose_patches_are_the_image_processors_own(tmp_path):
    own = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    own.save_pretrained(tmp_path / "vision")
    tokenizer().save_pretrained(tmp_path / "text")
    processor = DualDistillProcessor.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text")
    processor.save_pretrained(tmp_path / "both")
    processor = AutoProcessor.from_pretrained(tmp_path / "both")
    images = [picture(40, 16, seed=1), picture(16, 40, seed=2)]
    batch = processor(images=images, text=["what is it ?"] * 2)

    expected = own(images, return_tensors="pt")
    for row, (rows, columns) in enumerate(expected["spatial_shapes"].tolist()):
        assert batch["pixel_mask"][row, 0].sum() == rows * columns * 64
        pixels = batch["pixel_values"][row, 0, :, : 8 * rows, : 8 * columns]
        patches = (
            pixels.unflatten(1, (rows, 8)).unflatten(3, (columns, 8)).permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
        )
        assert torch.equal(patches, expected["pixel_values"][row, : rows * columns])


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vision")
    causal = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, eos_token="[SEP]")
    causal.save_pretrained(tmp_path / "text")
    processor = DualDistillProcessor.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text")
    batch = processor(text=["what is it ?", "what"])
    assert batch["attention_mask"].sum(1).tolist() == [6, 3]
    assert batch["input_ids"][1, -1] == causal.convert_tokens_to_ids("[SEP]")
