"""One processor for teacher and student: transformers' image processor and any tokenizer."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any, Self
from unicodedata import normalize

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin, ViltImageProcessorPil
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict, get_image_size, is_valid_image
from transformers.processing_utils import TextKwargs

_logger = logging.getLogger(__name__)
# An image (PIL of any mode of 8 bits, numpy or torch with three channels), one a row, or N a row; several of one size
# may be an array.
Images = Any
# `x0 y0 x1 y1` in the unit square of an image.
Region = tuple[float, float, float, float]
# What image processor and tokenizer could be told, but is decided here: images are padded to the largest of the batch.
_DECIDED = {"do_pad", "pad_size", "data_format", "return_tensors"}
# Of EXIF: how an image is to be turned.
_ORIENTATION = 0x0112
_TURNED = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
# Resize, crop, rescale and normalise, and nothing else where nothing is padded to a fixed size.
_STEPS = (PilBackend._preprocess, ViltImageProcessorPil._preprocess)
_STRETCHED_FROM = 384  # size from which ConvNeXT's image processor crops nothing
_IS_EXACT: dict[tuple[Any, ...], bool] = {}  # of an image processor's settings


class DualDistillProcessor(ProcessorMixin):
    """Turns texts and images into the batch that both encoders read.

    The image processor may be any of transformers' with a PIL back end. `ViltImageProcessorPil` keeps the aspect ratio;
    `ViTImageProcessorPil` resizes to a fixed size. Images are padded at the bottom and right to the largest of the
    batch.

    Args:
        image_processor: resizes, rescales and normalises.
        tokenizer: turns text into word pieces.
        jpeg_margin: decode a JPEG to no more than its shrunk form (a half, a quarter, an eighth) that is at least this
            many times as large as what it is resized to; faster, with other pixels. None: decode all of it.

    Raises:
        ValueError: the tokenizer knows no word, or `jpeg_margin` is below 1.

    Example:
        >>> from PIL import Image
        >>> from transformers import BertTokenizer, ViltImageProcessorPil
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?"]
        >>> processor = DualDistillProcessor(
        ...     ViltImageProcessorPil(size={"shortest_edge": 32}),
        ...     BertTokenizer({word: i for i, word in enumerate(words)}))
        >>> images = [Image.new("RGB", (64, 64)), Image.new("RGB", (90, 64))]
        >>> batch = processor(text=["what is it?", "what?"], images=images)
        >>> batch["input_ids"].shape, batch["pixel_values"].shape, batch["pixel_mask"].float().mean((1, 2, 3))
        (torch.Size([2, 6]), torch.Size([2, 1, 3, 32, 32]), tensor([1., 1.]))
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, jpeg_margin: float | None = None, **kwargs: Any
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        if jpeg_margin is not None and not jpeg_margin >= 1:
            raise ValueError(f"jpeg_margin is {jpeg_margin}; give a number of at least 1, or None.")
        self.jpeg_margin = jpeg_margin
        # transformers makes one of a folder that has lost its tokenizer.json.
        if tokenizer is not None and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            lacks = f"no words but its {len(tokenizer)} special tokens: tokenizer.json or the vocabulary is missing"
            raise ValueError(f"the tokenizer has {lacks}; copy it again.")
        # Of one that names its ids alone, padding would be read as text.
        if tokenizer is not None and "attention_mask" not in tokenizer.model_input_names:
            tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | Path,
        text: str | Path,
        *,
        vision_revision: str | None = None,
        text_revision: str | None = None,
    ) -> Self:
        """Take the image processor of one checkpoint and the tokenizer of another, as its towers were taken.

        A causal model's tokenizer that knows no padding pads with its end of text.

        Args:
            vision: folder or Hub name of the image model.
            text: folder or Hub name of the text model.
            vision_revision: branch, tag or commit of `vision` on the Hub.
            text_revision: branch, tag or commit of `text` on the Hub.
        """
        own: dict[str, Any] = {"revision": vision_revision, "backend": "pil"}
        images = AutoImageProcessor.from_pretrained(vision, **own, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(text, revision=text_revision, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(images, tokenizer)

    def __call__(
        self,
        images: Images | None = None,
        text: str | Sequence[str] | None = None,
        *,
        regions: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process B rows of one text and N images.

        Args:
            images: an image, one image a row, or N images a row (all rows alike), as lists or arrays of these.
            text: a string, or one a row; padded to the longest, truncated to `max_length` or the tokenizer's limit.
            regions: `region_features` `(B, R, F)`, `region_boxes` `(B, R, 6)` and `region_mask` `(B, R)` in place of
                images, as they stand in the batch; the model checks them.
            **kwargs: further options of the image processor (`do_rescale=`, `size=`, ...) and of the tokenizer
                (`max_length=`, `padding=`, ...), by name or in `images_kwargs` and `text_kwargs`; `return_tensors`,
                "pt" or "np".

        Returns:
            `input_ids`, `attention_mask` `(B, T)` and `pixel_values` `(B, N, 3, H, W)`, `pixel_mask` `(B, N, H, W)`,
            torch tensors unless others are asked for; only the sides that were given.

        Raises:
            ValueError: no side is given, images as well as regions are, their rows differ, an option is of neither
                side or given twice, or the mode of an image does not say which value is white.
        """
        if images is None and text is None and regions is None:
            raise ValueError("give images, text, or both; got neither.")
        if images is not None and regions is not None:
            raise ValueError("give images or regions, got both; a model reads the one or the other.")

        given = {**kwargs.pop("common_kwargs", {}), **kwargs}
        for side in ("audio_kwargs", "videos_kwargs"):  # given of every processor by those who call any
            given.pop(side, None)
        form = given.pop("return_tensors", None) or "pt"
        if form not in ("pt", "np"):
            raise ValueError(f'return_tensors is {form!r}; give "pt" or "np".')
        of_images, of_text = self._sort_options(given)

        batch: dict[str, Tensor] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            batch |= self.encode_text(texts, **of_text)
        if images is not None:
            rows = [[self.prepare_image(image, **of_images) for image in row] for row in _as_rows(images)]
            batch |= self.pad_images(rows)
        if regions is not None:
            batch |= regions

        for name, kind in (("pixel_values", "images"), ("region_features", "regions")):
            if text is not None and name in batch and len(batch["input_ids"]) != len(batch[name]):
                counts = f"{len(batch['input_ids'])} texts and {len(batch[name])} rows of {kind}"
                raise ValueError(f"there are {counts}; give one text for each row of {kind}.")
        return BatchFeature(batch if form == "pt" else {name: tensor.numpy() for name, tensor in batch.items()})

    def _sort_options(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what of the options is for images and what for text; refuse what nobody would read."""
        of_images, of_text = given.pop("images_kwargs", {}), given.pop("text_kwargs", {})
        twice = given.keys() & (of_images.keys() | of_text.keys())
        if twice:
            names = ", ".join(sorted(twice))
            raise ValueError(f"{names}: given by name and among a side's options; give it once.")
        flat_text = given.keys() & TextKwargs.__annotations__.keys()
        of_text = {**{name: given[name] for name in flat_text}, **of_text}
        of_images = {**{name: given[name] for name in given.keys() - flat_text}, **of_images}

        unknown = of_text.keys() - (TextKwargs.__annotations__.keys() - _DECIDED)
        unknown |= of_images.keys() - (self.image_processor.valid_kwargs.__annotations__.keys() - _DECIDED)
        if unknown:
            takes = f"options of its {type(self.image_processor).__name__} but {', '.join(sorted(_DECIDED))}"
            names = ", ".join(sorted(unknown))
            raise ValueError(f"the processor takes no {names}; it takes {takes}, and of its tokenizer.")
        return of_images, of_text

    def encode_text(self, texts: list[str], max_length: int | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Tokenize `texts`, composed (NFC), as `input_ids` and `attention_mask`, `(B, T)`, padded to the longest."""
        texts = [normalize("NFC", text) for text in texts]
        arguments = {"padding": True, "truncation": True, "return_token_type_ids": False, **kwargs}
        return dict(self.tokenizer(texts, max_length=max_length, **arguments | {"return_tensors": "pt"}))

    def prepare_image(self, image: Any, **options: Any) -> Tensor:
        """Resize, rescale and normalise one image to `(3, H, W)` float32; `options` are the image processor's."""
        image = _upright_rgb(image)
        if not options and (pixels := _resized_and_normalised(self.image_processor, image)) is not None:
            return pixels

        # One image alone is never padded, so that what is cached or stored does not depend on its batch.
        prepared = self.image_processor(image, return_tensors="pt", **options)
        if (count := len(prepared["pixel_values"])) != 1:
            made = f"{type(self.image_processor).__name__} made {count} images of what should be one"
            raise ValueError(f"{made}; give one image at a time, and an image processor that cuts no tiles.")
        pixels = torch.as_tensor(prepared["pixel_values"][0])
        if "spatial_shapes" not in prepared:
            return pixels

        # SigLIP 2's flexible grids: patches back to an image, padding left out; the tower cuts them again.
        rows, columns = prepared["spatial_shapes"][0].tolist()
        side = self.image_processor.patch_size
        patches = pixels[: rows * columns].unflatten(-1, (side, side, -1)).unflatten(0, (rows, columns))
        return patches.permute(4, 0, 2, 1, 3).reshape(-1, rows * side, columns * side)

    def jpeg_size(self, width: int, height: int) -> tuple[int, int] | None:
        """Return the width and height that a JPEG of this size must be decoded to at least; None: all of it."""
        size: dict[str, Any] = dict(self.image_processor.size or {})
        shortest, given = _resized_edge(self.image_processor), size.get("height")
        if self.jpeg_margin is None or not (shortest or given):
            return None
        if given:
            return ceil(self.jpeg_margin * size["width"]), ceil(self.jpeg_margin * given)
        scale: float = self.jpeg_margin * (shortest or 0) / min(width, height)
        return ceil(scale * width), ceil(scale * height)

    def seen_region(self, image: Any) -> Region:
        """Return `x0 y0 x1 y1` of the part of an image that its prepared pixels show, in the image's unit square."""
        is_array = not isinstance(image, Image.Image)
        height, width = get_image_size(image) if is_array else _HeightFirst(image).size
        return seen_region(self.image_processor, width, height)

    def pad_images(self, rows: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Pad prepared images to a common size.

        Args:
            rows: B rows of N tensors `(3, h, w)`.

        Returns:
            `pixel_values` `(B, N, 3, H, W)` and `pixel_mask` `(B, N, H, W)` bool, True = real pixel.

        Raises:
            ValueError: the rows have different numbers of images.
        """
        counts = sorted({len(row) for row in rows})
        if len(counts) != 1 or not counts[0]:
            raise ValueError(f"the rows of one batch have {counts} images; give each the same number, at least one.")
        images = [image for row in rows for image in row]
        height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))

        def stack(tensors: list[Tensor]) -> Tensor:
            padded = [pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in tensors]
            return torch.stack(padded).unflatten(0, (-1, counts[0]))

        masks = [torch.ones(image.shape[-2:], dtype=torch.bool) for image in images]
        return {"pixel_values": stack(images), "pixel_mask": stack(masks)}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        """Save as `ProcessorMixin` does, of equal processors equal files, whatever they tokenized before."""
        # Padding and truncation of its last call, which a fast tokenizer would write.
        if fast := getattr(self.tokenizer, "backend_tokenizer", None):
            fast.no_padding()
            fast.no_truncation()
        return super().save_pretrained(save_directory, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors in a batch."""
        return ["input_ids", "attention_mask", "pixel_values", "pixel_mask"]


def seen_region(image_processor: Any, width: int, height: int) -> Region:
    """The part of an image that a model sees: all of it, unless the image processor crops the middle out.

    Args:
        image_processor: any of transformers'.
        width: of the image in pixels, as its height.
        height: likewise.

    Returns:
        `x0 y0 x1 y1` in the unit square of the image; beyond it where the crop is larger than the image, and shows
        padding around it.

    Example:
        >>> from transformers import CLIPImageProcessorPil
        >>> crops = CLIPImageProcessorPil(size={"shortest_edge": 10}, crop_size={"height": 10, "width": 10})
        >>> seen_region(crops, width=40, height=20)
        (0.25, 0.0, 0.75, 1.0)
    """
    longer = max(width, height)
    if type(image_processor).__name__.startswith("LlavaImage") and image_processor.do_pad and width != height:
        # It puts the image into the middle of a square first.
        x0, y0, x1, y1 = seen_region(image_processor, longer, longer)
        x, y = longer / width, longer / height
        return 0.5 + (x0 - 0.5) * x, 0.5 + (y0 - 0.5) * y, 0.5 + (x1 - 0.5) * x, 0.5 + (y1 - 0.5) * y

    size, crop = getattr(image_processor, "size", None) or {}, getattr(image_processor, "crop_size", None)
    does_crop, edge = getattr(image_processor, "do_center_crop", False), _resized_edge(image_processor)
    if getattr(image_processor, "crop_pct", None) and not does_crop:
        # ConvNeXT and ResNet crop small sizes to a square without being told, and stretch large ones.
        shorter = size.get("shortest_edge") or _STRETCHED_FROM
        does_crop, crop = shorter < _STRETCHED_FROM, {"height": shorter, "width": shorter}
    if not (does_crop and crop):
        return 0.0, 0.0, 1.0, 1.0

    does_resize = getattr(image_processor, "do_resize", True)
    if _is_of(image_processor, "Perceiver"):
        # It crops first, to the share of the shorter side that `size` is of `crop_size`, and then resizes that.
        shorter = min(width, height)
        width, height, crop = width * crop["width"] / shorter, height * crop["height"] / shorter, size
    elif does_resize and edge:
        width, height = _resized(image_processor, edge, width, height)
    elif does_resize and size.get("height"):
        width, height = size["width"], size["height"]
    square = crop.get("shortest_edge")
    x, y = (square or crop["width"]) / width / 2, (square or crop["height"]) / height / 2
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def _resized_edge(image_processor: Any) -> int | None:
    """Pixels that the shorter side of an image is resized to; None: both sides are given, or nothing is resized."""
    edge, kept = (getattr(image_processor, "size", None) or {}).get("shortest_edge"), None
    if edge and (getattr(image_processor, "do_center_crop", False) or edge < _STRETCHED_FROM):
        kept = getattr(image_processor, "crop_pct", None)
    kept = 224 / 256 if _is_of(image_processor, "Levit") else kept
    return int(edge / kept) if edge and kept else edge


def _is_of(image_processor: Any, model: str) -> bool:
    """Whether an image processor is that of a model, of either back end."""
    return type(image_processor).__name__.startswith(model)


def _resized(image_processor: Any, shorter: int, width: int, height: int) -> tuple[int, int]:
    """Width and height once the shorter side is `shorter`; BridgeTower's has a longest side, and whole patches."""
    scale, divisor = shorter / min(width, height), getattr(image_processor, "size_divisor", None)
    if divisor is None:
        return round(width * scale), round(height * scale)
    scale = min(scale, int(1333 / 800 * shorter) / max(width, height))
    return int(width * scale + 0.5) // divisor * divisor, int(height * scale + 0.5) // divisor * divisor


def _upright_rgb(image: Any) -> Any:
    """A PIL image as `data.decode_image` gives it: turned by its EXIF, transparency on white; an array as it is."""
    if not isinstance(image, Image.Image):
        return image
    # EXIF that cannot be read turns nothing.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        orientation = _TURNED.get(image.getexif().get(_ORIENTATION))
        image = image if orientation is None else image.transpose(orientation)

    scaled = image.convert("I") if image.mode.startswith("I") else None
    if image.mode == "F" or (scaled and not all(0 <= value <= 65535 for value in scaled.getextrema())):
        raise ValueError(f"the image has mode {image.mode!r}, which does not say what is white; convert it to 8 bits.")
    if scaled:
        # Pillow would clip 16 bits instead of scaling them.
        return scaled.point(lambda value: value * (1 / 257) + 0.5).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert("RGB")


def _resized_and_normalised(processor: Any, image: Any) -> Tensor | None:
    """What transformers makes of a PIL image in six passes over its pixels, bit by bit, in one; None of other steps."""
    steps = processor.do_resize, processor.do_rescale, processor.do_normalize, not getattr(processor, "pad_size", None)
    is_known = type(processor)._preprocess in _STEPS and isinstance(processor.size, SizeDict) and all(steps)
    if not is_known or processor.rescale_factor != 1 / 255 or not isinstance(image, Image.Image):
        return None

    # It leans on how transformers reads the size of a PIL image, which 5.24 changed: tried once on a small one.
    settings = type(processor), str(processor.size), str(getattr(processor, "crop_size", None))
    if settings not in _IS_EXACT:
        sample = Image.frombytes("RGB", (40, 24), bytes(value % 251 for value in range(40 * 24 * 3)))
        own = processor(sample, return_tensors="pt")["pixel_values"][0]
        _IS_EXACT[settings] = torch.equal(_in_one_pass(processor, sample), own)
        if not _IS_EXACT[settings]:
            _logger.warning("a %s prepares images in its own, slower way", type(processor).__name__)
    return _in_one_pass(processor, image) if _IS_EXACT[settings] else None


def _in_one_pass(processor: Any, image: Image.Image) -> Tensor:
    """Resize, crop, rescale and normalise without arrays between the steps."""
    pixels = processor.resize(_HeightFirst(image), processor.size, processor.resample)
    if getattr(processor, "do_center_crop", None):
        pixels = processor.center_crop(pixels, processor.crop_size)

    # A division gives what transformers multiplies in double precision.
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (processor.image_mean, processor.image_std))
    return torch.from_numpy(pixels).float().contiguous().div_(255).sub_(mean).div_(std)


class _HeightFirst(Image.Image):
    """A PIL image that transformers takes as it is, and whose size it reads as it reads that of an array."""

    def __init__(self, image: Image.Image):
        self._image, info = image, image.info
        # Of an image that was decoded to fewer pixels; a crop or a turned one of it has the same `info`.
        self._declared = info["declared_size"] if info.get("decoded_size") == image.size else image.size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in the header where fewer pixels were decoded."""
        return self.height, self.width

    @property
    def width(self) -> int:
        """Of the header."""
        return self._declared[0]

    @property
    def height(self) -> int:
        """Of the header."""
        return self._declared[1]

    def resize(self, *args: Any, **kwargs: Any) -> Image.Image:
        """Resize the image."""
        return self._image.resize(*args, **kwargs)


def _as_rows(images: Images) -> list[list[Any]]:
    """B rows of N images each, whatever form they are given in."""
    rows = [images] if _is_image(images) or isinstance(images, str | Path) else images
    rows = [[row] if _is_image(row) or isinstance(row, str | Path) else list(row) for row in rows]
    if named := [one for row in rows for one in row if isinstance(one, str | Path)]:
        raise ValueError(f"an image is {str(named[0])!r}, a name; open it first, with PIL.Image.open(...).")
    return rows


def _is_image(value: Any) -> bool:
    """Whether it is one image: no list, and no array of several."""
    return is_valid_image(value) and getattr(value, "ndim", 0) < 4
