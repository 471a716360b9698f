"""Images from wherever a user has them: a path, a URL, bytes or a PIL image, all through the one safe decoder."""

from typing import Any

from huggingface_hub.utils import httpx
from PIL import Image

from dual_distill.data import ImageError, decode_image

MAX_DOWNLOAD_BYTES = 64_000_000
_TIMEOUT_S = 30.0


def load_image(value: Any, name: int | str, max_bytes: int = MAX_DOWNLOAD_BYTES) -> Image.Image:
    """An upright RGB image.

    Args:
        value: a URL that starts with http:// or https://, or what `decode_image` accepts: a path, a PIL image, bytes,
            or `{"bytes": ..., "path": ...}`.
        name: names the image in errors.
        max_bytes: largest download.

    Returns:
        A `PIL.Image.Image` of mode RGB.

    Raises:
        ImageError: the image cannot be fetched, is larger than the limits, or cannot be decoded.

    Example:
        >>> load_image(Image.new("L", (3, 2)), name=0).mode
        'RGB'
    """
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        value = {"bytes": _download(value, name, max_bytes), "path": value}
    return decode_image(value, name)


def _download(url: str, name: int | str, max_bytes: int) -> bytes:
    """Fetch a URL; what declares or sends more than the limit is given up at once."""
    content = bytearray()
    where = f"row {name} (image {url!r})"

    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                # Counted as it comes: a header may say less than what is sent.
                content += part
                if len(content) > max_bytes:
                    most = f"the {max_bytes:,} bytes that are allowed"
                    raise ImageError(f"{where}: the server sends more than {most}; download the file yourself.")
    except httpx.HTTPStatusError as error:
        status = f"{error.response.status_code} {error.response.reason_phrase}"
        raise ImageError(f"{where}: the server answers {status}; open the address in a browser.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{where}: it cannot be downloaded ({reason}); check the address and the network.") from error

    return bytes(content)
