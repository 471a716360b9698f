"""The one safe decoder of every image: header first, pixels second, RGB out.

Data sets of the wild hold palettes, alpha channels, 16-bit scans, half-downloaded files and, on a public demo, zip
bombs. All of them meet this file, and whatever cannot become an RGB image ends in one sentence that names the row.
"""

import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from .fingerprint import fingerprint
from .image_content import DECODING_ERRORS, exif_orientation

# How files of images end.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")

# Default limit on width x height, in pixels: 8000 x 8000, 256 MB once decoded (Pillow keeps four bytes a pixel).
MAX_PIXELS = 64_000_000

# Largest file that is read as an image: five times what the largest allowed image takes without compression.
MAX_FILE_BYTES = 1_000_000_000

# Raster formats whose decoders live in Pillow itself, AVIF in most builds. PostScript (runs Ghostscript) and the
# containers ICO and ICNS (their header may declare another size than the image inside) stay out.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_TURNED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # by Pillow's `Image.Transpose`


def other_names(name: str) -> list[str]:
    """How others call an image of this name: without its file extension, or with one.

    Example:
        >>> other_names("42.jpg"), other_names("42")[:2]
        (['42'], ['42.png', '42.jpg'])
    """
    ends = [suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)]
    return [name[: -len(ends[0])]] if ends else [name + suffix for suffix in IMAGE_SUFFIXES]


JpegSize = Callable[[int, int], tuple[int, int] | None]


class ImageError(ValueError):
    """An image that cannot be used; the message names the row, the image, what is wrong and what to do."""


def decode_image(
    value: Any, row: int | str, max_pixels: int = MAX_PIXELS, jpeg_size: JpegSize | None = None
) -> Image.Image:
    """An image, upright and in 8-bit RGB.

    Transparency is composited on white, 16-bit grey is scaled to 8 bits (65535 becomes 255), and EXIF orientation is
    applied. The size that the header declares is checked before any pixel is decoded.

    Args:
        value: a PIL image, encoded bytes, a path, or the undecoded `{"bytes": ..., "path": ...}` of
            `datasets.Image(decode=False)`.
        row: which row the image belongs to; appears in errors.
        max_pixels: largest accepted width x height, in pixels.
        jpeg_size: width and height -> those that an encoded JPEG may be shrunk to while it is decoded (None: none). Its
            `info` then has `declared_size`, that of its header, and `decoded_size`, its own: a crop is told from it.

    Returns:
        A new `PIL.Image.Image` of mode RGB, fully loaded.

    Raises:
        ImageError: missing, not an image, truncated, larger than `max_pixels`, or of a mode without a defined white.

    Example:
        >>> half_black = Image.new("LA", (2, 1), (0, 127))
        >>> decode_image(half_black, row=0).getpixel((0, 0))
        (128, 128, 128)
        >>> decode_image(b"not an image", row=17)
        Traceback (most recent call last):
        dual_distill.data.images.ImageError: row 17: the bytes are not an image of a known format ...
    """
    name, source = image_source(value, row)
    where = f"row {row} (image {name!r})" if name else f"row {row}"
    if isinstance(source, Image.Image):
        return _decode(source, where, max_pixels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is stricter, and is an error
        try:
            image = Image.open(io.BytesIO(source), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            problem = f"its header declares far more than the {max_pixels:,} pixels that are allowed ({error})"
            raise ImageError(f"{where}: {problem}; drop the row, or shrink the image first.") from error
        except DECODING_ERRORS as error:
            problem = f"the bytes are not an image of a known format ({', '.join(_FORMATS)})"
            raise ImageError(f"{where}: {problem}; download the file again or drop the row.") from error
        with image:
            return _decode(image, where, max_pixels, jpeg_size or _whole)


def image_source(value: Any, row: int | str) -> tuple[str | None, bytes | Image.Image]:
    """The name of an image, where it has one, and its encoded bytes; a PIL image is handed through.

    Args:
        value: what `decode_image` accepts.
        row: which row the image belongs to; appears in errors.

    Returns:
        `(name or None, bytes or PIL image)`.

    Raises:
        ImageError: the image is None, its file is missing, or its type is none of the accepted ones.

    Example:
        >>> image_source({"bytes": b"abc", "path": "x.png"}, row=0)
        ('x.png', b'abc')
    """
    name = None
    if isinstance(value, dict):
        name, value = value.get("path"), value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return None if name is None else str(name), bytes(value)
    if isinstance(value, Image.Image):
        return getattr(value, "filename", None) or None, value
    if value is None:
        raise ImageError(f"row {row}: the image is missing (None); drop the row or give it an image.")
    if not isinstance(value, (str, Path)):
        expected = "a PIL image, bytes, a path or a dict with 'bytes' and 'path'"
        raise ImageError(f"row {row}: an image is {expected}, but this one is a {type(value).__name__}.")

    try:
        # Neither a device, which may never end, nor a named pipe, which waits for a writer.
        status = Path(value).stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if (size := status.st_size) > MAX_FILE_BYTES:
            raise OSError(f"it has {size:,} bytes, more than the {MAX_FILE_BYTES:,} that are allowed")
        return str(value), Path(value).read_bytes()
    except (OSError, ValueError) as error:
        problem = f"the file cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ImageError(f"row {row} (image {str(value)!r}): {problem}; paths start at the current folder.") from error


def image_bytes(value: Any, identifier: str) -> tuple[Any, str]:
    """Fetch an image that is not decoded yet, and fingerprint its content.

    Args:
        value: what `decode_image` accepts.
        identifier: names the image in errors.

    Returns:
        What `decode_image` accepts, without a file left to read, and the `fingerprint` of the encoded bytes or of the
        PIL image.

    Raises:
        ImageError: the file cannot be read, or the value is of another type.

    Example:
        >>> image_bytes(b"abc", "x")[1][:8]
        'ba7816bf'
    """
    name, content = image_source(value, identifier)
    return content if isinstance(content, Image.Image) else {"bytes": content, "path": name}, fingerprint(content)


def resize_image(resize: Callable[[Image.Image], Any], image: Image.Image, identifier: str) -> Any:
    """Return what an image processor makes of one image, or say that its shape is too extreme."""
    try:
        return resize(image)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        problem = f"the image of {image.width} x {image.height} pixels cannot be resized ({error})"
        raise ImageError(f"row {identifier}: {problem}; crop it to a less extreme shape.") from error


def _whole(width: int, height: int) -> None:
    """No size to shrink to."""


def _decode(image: Image.Image, where: str, max_pixels: int, jpeg_size: JpegSize | None = None) -> Image.Image:
    """The pixels of an image as RGB, once its header promises few enough of them; opened here if `jpeg_size` is set."""
    width, height = image.size
    if width * height > max_pixels:
        declared = f"its header declares {width} x {height} = {width * height:,} pixels"
        way_out = "drop the row, shrink the image, or raise max_pixels if you trust it"
        raise ImageError(f"{where}: {declared}, more than the {max_pixels:,} that are allowed; {way_out}.")
    if width * height == 0:
        raise ImageError(f"{where}: the image has no pixels ({width} x {height}); drop the row.")

    # Another format knows no draft, and stays whole.
    if jpeg_size is not None and (least := jpeg_size(width, height)) is not None:
        image.draft(None, least)
    is_shrunk = image.size != (width, height)
    try:
        image.load()
    except DECODING_ERRORS as error:
        problem = f"{where}: the image is truncated or damaged ({error})"
        raise ImageError(f"{problem}; download the file again or drop the row.") from error
    if image.mode == "F":
        raise ImageError(f"{where}: mode 'F' (float pixels) does not say what is white; save it with 8 or 16 bits.")

    given, orientation = image, exif_orientation(image)
    if image.mode.startswith("I"):
        # Pillow would clip such values instead of scaling them.
        image = image.convert("I")
        extrema: Any = image.getextrema()
        if extrema[0] < 0 or extrema[1] > 65535:
            problem = f"{where}: mode {given.mode!r} is read as 16-bit grey (0 to 65535)"
            raise ImageError(f"{problem}, but it runs from {extrema[0]} to {extrema[1]}; save it with 16 bits.")
        image = image.point(lambda value: value * (1 / 257) + 0.5)
    elif image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    image = image if image.mode == "RGB" else image.convert("RGB")

    # A copy of the largest image takes 256 MB, so one that nobody else holds is handed out as it is.
    if orientation is not None:
        image = image.transpose(Image.Transpose(_TURNED[orientation]))
        width, height = (height, width) if orientation >= 5 else (width, height)
    elif image is given and jpeg_size is None:
        image = image.copy()
    # What is upright now is not turned again, and no JPEG is made anew of what was one.
    # What was shrunk before, and no crop of it, says so still.
    kept = given.info if not is_shrunk and given.info.get("decoded_size") == image.size else {}
    kept = {name: kept[name] for name in ("declared_size", "decoded_size") if name in kept}
    image.info = {"declared_size": (width, height), "decoded_size": image.size} if is_shrunk else kept
    image.format = None
    return image
