"""What an image in memory is known by: its pixels, and what says how they are read."""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

DECODING_ERRORS = (  # OSError includes UnidentifiedImageError; SyntaxError is Pillow's word for a broken PNG or TIFF
    *(OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)

_ORIENTATION = 0x0112  # tag of EXIF


def image_content(image: Image.Image | Mapping[str, Any]) -> bytes:
    """What an image holds: its encoded bytes, or the pixels of one in memory and what changes how they are decoded."""
    if not isinstance(image, Image.Image):
        return bytes(image["bytes"])
    about = repr((image.mode, image.size, sorted(map(str, image.info.items()))))
    return about.encode() + image.tobytes() + pixel_reading(image)


def pixel_reading(image: Image.Image) -> bytes:
    """How the pixels of an image in memory are read: palette, transparent colour, orientation; empty without any."""
    palette = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
    found = (palette, image.info.get("transparency"), exif_orientation(image))
    return repr(found).encode() if any(part is not None for part in found) else b""


def exif_orientation(image: Image.Image) -> Any:
    """How EXIF says an image is to be turned, 2 to 8; None: not at all, or it cannot be read."""
    # Read and never written: Pillow cannot rewrite every EXIF, and good pixels would count as damaged.
    orientation = None
    with contextlib.suppress(*DECODING_ERRORS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        orientation = image.getexif().get(_ORIENTATION)
    return orientation if orientation in range(2, 9) else None
