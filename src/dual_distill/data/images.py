"""One safe door for every picture: header first, pixels second, RGB out.

Data sets of the wild hold palettes, alpha channels, 16-bit scans, half-downloaded files and, on a public demo, zip
bombs. All of them meet this file, and whatever cannot become an RGB picture ends in one sentence that names the row.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""Default limit on width x height, in pixels: 8000 x 8000, 192 MB once decoded."""

# Raster formats whose decoders live in Pillow itself. PostScript (runs Ghostscript) and the containers ICO and ICNS
# (their header may declare another size than the picture inside) stay out.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_DECODING_ERRORS = (
    OSError,  # includes UnidentifiedImageError and "image file is truncated"
    SyntaxError,  # Pillow's word for a broken PNG or TIFF structure
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(ValueError):
    """A picture that cannot be used; the message names the row, the picture, what is wrong and what to do."""


def decode_image(value: Any, row: int | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as an upright 8-bit RGB image.

    Transparency is composited on white, 16-bit grey is scaled to 8 bits (65535 becomes 255), and EXIF orientation is
    applied. The size that the header declares is checked before any pixel is decoded.

    Args:
        value: a PIL image, encoded bytes, a path, or the undecoded `{"bytes": ..., "path": ...}` of
            `datasets.Image(decode=False)`.
        row: which row the picture belongs to; appears in errors.
        max_pixels: largest accepted width x height, in pixels.

    Returns:
        A new `PIL.Image.Image` of mode RGB, fully loaded.

    Raises:
        ImageError: missing, not a picture, truncated, larger than `max_pixels`, or of a mode without a defined white.

    Example:
        >>> half_black = Image.new("LA", (2, 1), (0, 127))
        >>> decode_image(half_black, row=0).getpixel((0, 0))
        (128, 128, 128)
        >>> decode_image(b"not a picture", row=17)
        Traceback (most recent call last):
        dual_distill.data.images.ImageError: row 17: the bytes are not a picture of a known format ...
    """
    name, source = image_source(value, row)
    where = f"row {row} (image {name!r})" if name else f"row {row}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter, and is an error
        if isinstance(source, Image.Image):
            return _decode(source, where, max_pixels)
        try:
            image = Image.open(io.BytesIO(source), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{where}: its header declares far more than the {max_pixels:,} pixels that are allowed ({error}); "
                "drop the row, or shrink the picture first."
            ) from error
        except _DECODING_ERRORS as error:
            raise ImageError(
                f"{where}: the bytes are not a picture of a known format ({', '.join(_FORMATS)}); "
                "download the file again or drop the row."
            ) from error
        with image:
            return _decode(image, where, max_pixels)


def image_source(value: Any, row: int | str) -> tuple[str | None, bytes | Image.Image]:
    """The name of a picture, where it has one, and its encoded bytes; a PIL image is handed through.

    Args:
        value: what `decode_image` accepts.
        row: which row the picture belongs to; appears in errors.

    Returns:
        `(name or None, bytes or PIL image)`.

    Raises:
        ImageError: the picture is None, its file is missing, or its type is none of the accepted ones.

    Example:
        >>> image_source({"bytes": b"abc", "path": "x.png"}, row=0)
        ('x.png', b'abc')
    """
    if isinstance(value, dict):
        path, content = value.get("path"), value.get("bytes")
        name = None if path is None else str(path)
        if content is not None:
            return name, bytes(content)
        value = path
    if isinstance(value, Image.Image):
        return getattr(value, "filename", None) or None, value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return None, bytes(value)
    if value is None:
        raise ImageError(f"row {row}: the picture is missing (None); drop the row or give it a picture.")
    if not isinstance(value, (str, Path)):
        raise ImageError(
            f"row {row}: a picture is a PIL image, bytes, a path or a dict with 'bytes' and 'path', "
            f"but this one is a {type(value).__name__}."
        )
    try:
        return str(value), Path(value).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"row {row} (image {str(value)!r}): the file cannot be read ({reason}); relative paths start at the "
            f"current folder."
        ) from error


def _decode(image: Image.Image, where: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{where}: its header declares {width} x {height} = {width * height:,} pixels, more than the "
            f"{max_pixels:,} that are allowed; drop the row, shrink the picture, or raise max_pixels if you trust it."
        )
    if width * height == 0:
        raise ImageError(f"{where}: the picture has no pixels ({width} x {height}); drop the row.")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except _DECODING_ERRORS as error:
        raise ImageError(
            f"{where}: the picture is truncated or damaged ({error}); download the file again or drop the row."
        ) from error
    if image.mode in _SIXTEEN_BIT_MODES:
        return _from_sixteen_bits(image, where)
    if image.mode == "F":
        raise ImageError(
            f"{where}: mode 'F' (float pixels) does not say which value is white; save it with 8 or 16 bits."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image)
        image = canvas
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image, where: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{where}: mode {image.mode!r} is read as 16-bit grey (0 to 65535), but its values run from {low} to "
            f"{high}; rescale and save it with 16 bits."
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
