"""One fingerprint for everything that is known by its content: SHA-256 in hexadecimal."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import xxhash
from PIL import Image
from torch import nn

from dual_distill.sealed import LARGE, remembered

from .image_content import pixel_reading

_DIGITS = 12


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of contents in hexadecimal.

    Args:
        parts: bytes as they are; a text as UTF-8; a PIL image by mode, size, pixels and how they are read; a tensor by
            shape, dtype and values; a module by the names and tensors of its state (of a large one it is remembered, by
            a faster hash of the same content); anything else as JSON with sorted keys.

    Example:
        >>> fingerprint(b"abc")[:8], fingerprint({"seed": 0})[:12]
        ('ba7816bf', 'de7d7744ccd7')
        >>> fingerprint(Image.new("RGB", (2, 1))) == fingerprint(Image.new("RGB", (1, 2)))
        False
    """
    is_large = any(isinstance(part, nn.Module) for part in parts) and sum(map(_size, parts)) >= LARGE
    digest = partial(_hexdigest, parts, hashlib.sha256)
    return remembered(f"fingerprint-{_hexdigest(parts, xxhash.xxh3_128)}", digest) if is_large else digest()


def described_fingerprint(description: str, content: Any) -> str:
    """Return what made something as one line: words for people, and the start of the fingerprint of all that matters.

    Example:
        >>> described_fingerprint("by hand", {"seed": 0})
        'by hand [de7d7744ccd7]'
    """
    return f"{description} [{fingerprint(content)[:_DIGITS]}]"


def _hexdigest(parts: Iterable[Any], kind: Callable[[], Any]) -> str:
    digest = kind()
    for part in parts:
        for piece in _pieces(part):
            digest.update(piece)
    return str(digest.hexdigest())


def _size(part: Any) -> int:
    return sum(tensor.nbytes for tensor in part.state_dict().values()) if isinstance(part, nn.Module) else 0


def _pieces(part: Any) -> Iterator[Any]:
    if isinstance(part, bytes | bytearray | memoryview):
        yield part
    elif isinstance(part, str):
        yield part.encode()
    elif isinstance(part, Image.Image):
        # Equal bytes of another width and height, or read by another palette, are another image.
        yield f"{part.mode} {part.size}\n".encode()
        yield part.tobytes()
        yield pixel_reading(part)
    elif isinstance(part, torch.Tensor):
        yield f"{tuple(part.shape)} {part.dtype}\n".encode()
        yield part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(part, nn.Module):
        # Sorted, since the order of a state follows from how the module was built.
        for name, tensor in sorted(part.state_dict().items()):
            yield f"{name} ".encode()
            yield from _pieces(tensor)
    else:
        yield json.dumps(part, sort_keys=True).encode()
