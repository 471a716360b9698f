"""Where does each word of a question look? Its attention as a map, and one picture of it for several models.

Distillation of cross-modal attention claims that the student looks where the teacher looks. Here the claim can be seen:
a column for each word, a row for each model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from unicodedata import normalize

import numpy as np
import regex
import torch
from PIL import Image, ImageDraw, ImageFont

from dual_distill.teachers import Tokens, family_of, grid_boxes, key_shares

from .sources import load_image

_WIDEST, _NARROWEST = 1560, 960
# Vowel signs, tone marks and joiners are part of a word.
_WORD = r"[\w\p{M}\u200c\u200d]+|[^\w\p{M}\s]"
_FINEST = 64  # rows or columns of a map
_LARGE_TILE = 640
_TILE_SIZE, _WORDS_IN_BAND = 144, 8
_MARGIN, _GAP, _LABEL_WIDTH = 32, 10, 232
_QUESTION_SIZE, _TEXT_SIZE, _NOTE_SIZE, _SMALLEST_SIZE = 36, 26, 21, 14
_INK, _QUIET, _RULE = (24, 24, 32), (105, 105, 118), (222, 222, 228)
_RIGHT, _WRONG = (0, 112, 78), (176, 42, 32)

# The colour scale, ordered in lightness from indigo to yellow.
_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array([[28, 16, 68], [118, 28, 122], [206, 64, 82], [248, 146, 30], [255, 232, 64]], dtype=float)
# How much the veil hides of a patch at 0; it thins out evenly towards the peak. Below this value the frame fades too.
_VEIL_OPACITY, _FRAME_FADES_BELOW = 0.7, 0.25
_SMOOTH_OPACITY = 0.4, 0.75  # at 0 and at the peak


@torch.inference_mode()
def attention_maps(
    model: Any,
    processor: Any,
    image: Any,
    text: str,
    layers: Sequence[int] = (-1,),
    grid: tuple[int, int] | None = None,
) -> tuple[list[str], np.ndarray]:
    """Where each word of a text looks in an image: text-to-image attention, as distillation compares it.

    Works for our models and every family of `teachers.FAMILIES`. Probabilities are over the image's tokens alone,
    averaged over layers, heads and the pieces of each word; what falls on a token is spread over its box. What a word
    gives to tokens of the whole image, such as CLS, is missing from its map, so a map sums to at most 1. Where a dual
    encoder has interaction layers, they are what looks.

    Args:
        model: is put into eval mode.
        processor: its processor.
        image: what `load_image` takes; a JPEG that is still encoded is decoded as the processor asks.
        text: what is asked or said; words of a chat template are left out of the result.
        layers: counted among those in which text and image meet (`layers` of the family), or the interaction layers.
        grid: rows and columns of the maps; None: as fine as the model's finest tokens.

    Returns:
        The W words and their maps `(W, rows, columns)`, float32.

    Raises:
        ValueError: no family knows the model, it has no such layer, or the text has no word.
    """
    # The text as the processor reads it.
    text, family = normalize("NFC", text), family_of(model.config)
    words = [found.span() for found in regex.finditer(_WORD, text)]
    if not words:
        raise ValueError(f"the text is {text!r}, which has no word; write one or more.")
    # Processors of other families see all of a JPEG.
    image = load_image(image, "to look at", jpeg_size=getattr(processor, "jpeg_size", None))
    batch = family.inputs(model.config, processor, [image], [text])
    view = family.view(model.eval(), processor, {name: each.to(model.device) for name, each in batch.items()}, layers)
    probs = [view.attention_probs(index, "text_to_image") for index in range(len(view.layers))]
    mean = torch.stack([each[0].mean(0) for each in probs if each is not None]).mean(0).cpu()

    # Tokens of the whole image say of no place that it is looked at.
    boxes, real = view.image_boxes.cpu(), view.image_mask.cpu()
    tokens = Tokens.of(boxes, real)
    tokens = Tokens.of(boxes, tokens.mask & ~tokens.whole)
    if grid is None:
        finest = (boxes[..., 2:] - boxes[..., :2])[tokens.mask].amin(0)
        columns, rows = (1 / finest).round().clamp(1, _FINEST).int().tolist()
        grid = (rows, columns)

    asked = Tokens.of(torch.tensor([words]), torch.ones(1, len(words)))
    cells = Tokens.of(grid_boxes(*grid)[None], torch.ones(1, grid[0] * grid[1]))
    pieces = (asked.common(Tokens.of(view.text_spans.cpu(), view.text_mask.cpu()))[0] > 0).float()
    maps = pieces / pieces.sum(1, keepdim=True).clamp(min=1) @ mean @ key_shares(tokens, cells)[0]
    return [text[start:end] for start, end in words], maps.unflatten(1, grid).numpy()


def draw_attention_picture(
    image: Image.Image,
    words: Sequence[str],
    maps: Mapping[str, np.ndarray],
    *,
    question: str | None = None,
    answers: Mapping[str, str] | None = None,
    right_answer: str | None = None,
    shared_scale: bool = False,
    tile_size: int = _TILE_SIZE,
    smooth: bool = False,
) -> Image.Image:
    """Picture of text-to-image attention: a column for each word, a row for each model, the heat laid over the image.

    A patch shows `map / peak`, where the peak of a word is its largest value over all patches and **all models**: the
    rows of one column share a scale and compare fairly, columns do not. The legend says so, and each peak stands under
    its word. The frame of a patch has the colour of the scale; inside it the image keeps its own colours at the peak
    and darkens towards 0.

    Args:
        image: the image that was asked about, of any size and mode; a small one is enlarged by a whole factor, not
            smoothed.
        words: the W words (or word pieces) of the question, in order. The default font has Latin letters only.
        maps: model name -> `(W, grid height, grid width)`, the share of the word's attention that each patch of `image`
            gets, in raster order; >= 0, at most 1 in sum over the patches (what is missing went to the image's CLS
            token). The names label the rows, in this order; "teacher (fusion encoder)" is a good one.
        question: printed beside the image; the words joined by spaces when None.
        answers: model name -> its answer, for any of the models in `maps`; printed under the question.
        right_answer: when given, printed too, and each answer is marked right or wrong.
        shared_scale: one scale for all words, up to the largest peak of all, so that columns compare too and a word
            that looks everywhere stays dark.
        tile_size: side of the image as it is drawn, in pixels; the root of its area where it is no square.
        smooth: draw a smooth map in the colours of the scale, in place of the patches.

    Returns:
        An RGB image on white, wide enough for four tiles, as tall as it needs to be; with the tiles' own size about
        1,560 pixels wide at most.

    Raises:
        ValueError: there are no words or no maps; a map has another shape than the words and the first map ask for,
            holds a negative or non-finite number, or gives a word more than 1 in sum (attention summed over heads, not
            averaged); an answer names a model that has no map.

    Example:
        >>> looks_left = np.array([[[0.9, 0.1]]])
        >>> picture = draw_attention_picture(Image.new("RGB", (36, 36)), ["circle"], {"teacher": looks_left})
        >>> picture.mode, picture.width > 144
        ('RGB', True)
    """
    heat = _checked_maps(words, maps)
    if unknown := [name for name in answers or {} if name not in heat]:
        raise ValueError(f"answers name {unknown}, but the maps are of {list(heat)}: use the same names.")

    # What counts as full heat, a word or everywhere; a word that looks nowhere is drawn dark, not divided by zero.
    peaks = np.max([model_maps.max(axis=(1, 2)) for model_maps in heat.values()], axis=0)
    tops = np.full_like(peaks, peaks.max()) if shared_scale else peaks
    tops = np.where(tops > 0, tops, 1.0)[:, None, None]
    values = {name: model_maps / tops for name, model_maps in heat.items()}

    tile, heated = _as_tile(image, tile_size), _tile_with_smooth_heat if smooth else _tile_with_heat
    bands = _split_into_bands(len(words), tile.width)
    width = max(2 * _MARGIN + _LABEL_WIDTH + len(bands[0]) * (tile.width + _GAP) - _GAP, _NARROWEST)

    parts = [_draw_header(tile, question or " ".join(words), answers or {}, right_answer, width)]
    for band in bands:
        chosen = slice(band.start, band.stop)
        of_band = {name: model_values[chosen] for name, model_values in values.items()}
        parts.append(_draw_band(tile, words[chosen], peaks[chosen], of_band, width, heated))
    parts.append(_draw_legend(shared_scale, width))
    return Image.fromarray(np.concatenate([np.asarray(part) for part in parts]))


def draw_attention_tile(
    image: Image.Image, values: np.ndarray, *, tile_size: int = _TILE_SIZE, smooth: bool = False
) -> Image.Image:
    """One tile of `draw_attention_picture`: the image under the heat of one word.

    Args:
        image: of any size and mode.
        values: `(grid height, grid width)` in 0..1, a map over the peak that counts as full heat.
        tile_size: side of the tile in pixels; the root of its area where it is no square.
        smooth: as for the picture.

    Example:
        >>> draw_attention_tile(Image.new("RGB", (36, 36)), np.array([[1.0, 0.0]]), tile_size=72).size
        (72, 72)
    """
    return (_tile_with_smooth_heat if smooth else _tile_with_heat)(_as_tile(image, tile_size), values)


def _checked_maps(words: Sequence[str], maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps as float64 arrays of one shape, or a ValueError that says which one is wrong and why."""
    if isinstance(words, str) or len(words) == 0:
        raise ValueError(f"words must be a sequence of at least one word, got {words!r}.")
    if not maps:
        raise ValueError("maps is empty; give one model's attention or more, name -> (words, grid height, grid width).")

    heat = {name: np.asarray(model_maps, dtype=np.float64) for name, model_maps in maps.items()}
    first_name, first = next(iter(heat.items()))
    for name, values in heat.items():
        what = f"maps[{name!r}]"
        if values.ndim != 3 or values.shape[0] != len(words) or values.size == 0:
            raise ValueError(f"{what} has shape {values.shape}, expected ({len(words)}, grid height, grid width).")
        if values.shape != first.shape:
            raise ValueError(f"{what} has shape {values.shape}, but maps[{first_name!r}] has {first.shape}.")
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(f"{what} holds a negative or non-finite number: give attention after softmax, not scores.")
        sums = values.sum(axis=(1, 2))
        # Room for the rounding of half precision.
        if sums.max() > 1 + 1e-3:
            given = f"gives {words[int(sums.argmax())]!r} {sums.max():.3f} in sum over the patches"
            raise ValueError(f"{what} {given}, expected at most 1: average over the heads, do not add them.")
    return heat


def _as_tile(image: Image.Image, size: int = _TILE_SIZE) -> Image.Image:
    """The image at about `size ** 2` pixels, its proportions kept: enlarged by a whole factor, or scaled down."""
    # Pixels of a small image stay sharp squares; a large one is smoothed.
    factor = min(size / (image.width * image.height) ** 0.5, 2 * size / max(image.size))
    is_enlarged = factor >= 1.5
    factor = round(factor) if is_enlarged else factor
    sides = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(sides, Image.Resampling.NEAREST if is_enlarged else Image.Resampling.LANCZOS)


def _split_into_bands(word_count: int, tile_width: int) -> list[range]:
    """Bands of nearly equal length: nine words become five and four, not eight and one."""
    # Of large tiles four, though they are wider together.
    room = _WIDEST - 2 * _MARGIN - _LABEL_WIDTH + _GAP
    fitting = max(1, room // (tile_width + _GAP), 4 * (tile_width <= _LARGE_TILE))
    band_count = -(-word_count // min(_WORDS_IN_BAND, fitting))
    longest = -(-word_count // band_count)
    return [range(start, min(start + longest, word_count)) for start in range(0, word_count, longest)]


def _scale_colour(values: np.ndarray) -> np.ndarray:
    """Colour `(..., 3)` in 0..255 of values in 0..1."""
    return np.stack([np.interp(values, _STOPS, _COLOURS[:, channel]) for channel in range(3)], axis=-1)


def _tile_with_heat(tile: Image.Image, values: np.ndarray) -> Image.Image:
    """The tile with one value a patch in 0..1: what is looked at shines in a bright frame, the rest lies under a veil.

    The frame has the exact colour of the scale, whatever the image's own colours are; near 0 it fades, so that a fine
    grid of dark patches is no lattice. A patch has one value throughout, since attention knows no finer place.
    """
    row, row_edge = _patches_along(tile.height, values.shape[0])
    column, column_edge = _patches_along(tile.width, values.shape[1])
    value = values[row][:, column][..., None]

    veil = _VEIL_OPACITY * (1 - value)
    veiled = np.asarray(tile, dtype=float) * (1 - veil) + _COLOURS[0] * veil
    frame = (row_edge[:, None] | column_edge[None, :])[..., None] * np.minimum(value / _FRAME_FADES_BELOW, 1)
    mixed = veiled * (1 - frame) + _scale_colour(value[..., 0]) * frame
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _tile_with_smooth_heat(tile: Image.Image, values: np.ndarray) -> Image.Image:
    """The tile in grey under the colours of the scale, between the centres of patches mixed evenly."""
    smooth = Image.fromarray(values.astype(np.float32)).resize(tile.size, Image.Resampling.BICUBIC)
    value = np.clip(np.asarray(smooth), 0, 1)
    opacity = np.interp(value, (0, 1), _SMOOTH_OPACITY)[..., None]
    grey = np.asarray(tile.convert("L"), dtype=float)[..., None]
    return Image.fromarray(np.rint(opacity * _scale_colour(value) + (1 - opacity) * grey).astype(np.uint8))


def _patches_along(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of a side: the patch it belongs to, and whether it lies on the patch's frame."""
    pixel = np.arange(length)
    patch = pixel * count // length
    # Patches too small for a frame have none.
    if length < 4 * count:
        return patch, np.zeros(length, dtype=bool)
    starts, stops = (np.searchsorted(patch, patch, side) for side in ("left", "right"))
    width = min(max(length // count // 10, 1), 6)
    return patch, (pixel - starts < width) | (stops - pixel <= width)


def _draw_header(
    tile: Image.Image, question: str, answers: Mapping[str, str], right_answer: str | None, width: int
) -> Image.Image:
    """The untouched image at the left; question and answers beside it."""
    texts = [("Where each word looks", _QUIET, _TEXT_SIZE), (question, _INK, _QUESTION_SIZE)]
    marks = {True: ("  (right)", _RIGHT), False: ("  (wrong)", _WRONG)}
    for name, answer in answers.items():
        mark, colour = ("", _INK) if right_answer is None else marks[answer == right_answer]
        texts.append((f"{name}: {answer}{mark}", colour, _TEXT_SIZE))
    if right_answer is not None:
        texts.append((f"right answer: {right_answer}", _INK, _TEXT_SIZE))

    left = _MARGIN + max(tile.width + 28, _LABEL_WIDTH)
    room, y = width - _MARGIN - left, _MARGIN - 6
    rows = [(line, colour, size) for text, colour, size in texts for line in _wrap(text, size, room)]
    height = y + sum(_line_height(size) for _, _, size in rows)
    header, pen = _blank(width, max(height, _MARGIN + tile.height) + 20)

    header.paste(tile, (_MARGIN, _MARGIN))
    pen.rectangle([_MARGIN - 1, _MARGIN - 1, _MARGIN + tile.width, _MARGIN + tile.height], outline=_RULE)
    for text, colour, size in rows:
        _write(pen, (left, y), text, room, size, colour)
        y += _line_height(size)
    return header


def _draw_band(
    tile: Image.Image,
    words: Sequence[str],
    peaks: np.ndarray,
    maps: Mapping[str, np.ndarray],
    width: int,
    heated: Callable[[Image.Image, np.ndarray], Image.Image],
) -> Image.Image:
    """The words of one band over their columns of tiles, a row for each model."""
    row_height = max(tile.height, 3 * _line_height(_TEXT_SIZE))
    words_bottom = 16 + _line_height(_TEXT_SIZE)
    tiles_top = words_bottom + _line_height(_NOTE_SIZE) + 8
    band, pen = _blank(width, tiles_top + len(maps) * (row_height + _GAP) + 12)
    pen.line([(_MARGIN, 0), (width - _MARGIN, 0)], fill=_RULE, width=2)

    room = tile.width + _GAP - 4
    lefts = [_MARGIN + _LABEL_WIDTH + column * (tile.width + _GAP) for column in range(len(words))]
    for left, word, peak in zip(lefts, words, peaks, strict=True):
        centre = left + tile.width // 2
        _write(pen, (centre, words_bottom), word, room, _TEXT_SIZE, _INK, anchor="md")
        _write(pen, (centre, tiles_top - 8), f"peak {100 * peak:.0f} %", room, _NOTE_SIZE, _QUIET, anchor="md")

    for row, (name, values) in enumerate(maps.items()):
        top = tiles_top + row * (row_height + _GAP)
        # The name in at most three lines; what stands in brackets begins a line.
        parts = name.replace(" (", "\n(").split("\n")
        lines = [line for part in parts for line in _wrap(part, _TEXT_SIZE, _LABEL_WIDTH - 16)]
        lines = [*lines[:2], *filter(None, [" ".join(lines[2:])])]
        y = top + (row_height - len(lines) * _line_height(_TEXT_SIZE)) / 2
        for number, line in enumerate(lines):
            _write(pen, (_MARGIN, y + number * _line_height(_TEXT_SIZE)), line, _LABEL_WIDTH - 16, _TEXT_SIZE, _INK)

        for left, value in zip(lefts, values, strict=True):
            band.paste(heated(tile, value), (left, top + (row_height - tile.height) // 2))
    return band


def _draw_legend(shared_scale: bool, width: int) -> Image.Image:
    """The colour scale and what it means."""
    bar_width, bar_height, line_height = 300, 24, _line_height(_NOTE_SIZE)
    scale, compare, end = "One scale for each word", "so rows compare and columns do not.", "the word's peak"
    if shared_scale:
        scale, compare, end = "One scale for all words", "so rows and columns compare.", "largest peak"
    legend, pen = _blank(width, 22 + bar_height + 3 * line_height + _MARGIN)

    pen.line([(_MARGIN, 0), (width - _MARGIN, 0)], fill=_RULE, width=2)
    bar = np.rint(_scale_colour(np.linspace(0, 1, bar_width))).astype(np.uint8)
    legend.paste(Image.fromarray(np.tile(bar, (bar_height, 1, 1))), (_MARGIN, 22))
    y, room = 26 + bar_height, width - 2 * _MARGIN
    _write(pen, (_MARGIN, y), "0", bar_width, _NOTE_SIZE, _QUIET)
    _write(pen, (_MARGIN + bar_width, y), end, bar_width, _NOTE_SIZE, _QUIET, anchor="ra")

    what = "How much of the word's attention falls on each patch of the image."
    for number, line in enumerate([what, f"{scale}, up to the largest value of any model, {compare}"], start=1):
        _write(pen, (_MARGIN, y + number * line_height), line, room, _NOTE_SIZE, _QUIET)
    return legend


def _blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), "white")
    return sheet, ImageDraw.Draw(sheet)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _line_height(size: int) -> int:
    return round(size * 1.4)


def _wrap(text: str, size: int, width: float) -> list[str]:
    """The text in lines that fit where they can: it is broken between words only. No text, no lines."""
    lines: list[str] = []
    for word in text.split():
        if lines and _font(size).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _write(
    pen: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    width: float,
    size: int,
    colour: Any,
    anchor: str = "la",
) -> None:
    """Write text in the largest font up to `size` in which it fits; cut short with dots where none does."""
    # Smaller first: a word that is cut says less than one in small letters.
    while _font(size).getlength(text) > width and size - 2 >= _SMALLEST_SIZE:
        size -= 2
    shown = text
    while _font(size).getlength(shown) > width and len(text) > 1:
        text = text[:-1]
        shown = f"{text}..."
    pen.text(xy, shown, font=_font(size), fill=colour, anchor=anchor)
