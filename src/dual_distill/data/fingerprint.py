"""One fingerprint for everything that is known by its content: SHA-256 in hexadecimal."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import nn

_DIGITS = 12


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of contents in hexadecimal.

    Args:
        parts: bytes as they are; a text as UTF-8; a PIL image by mode, size and pixels; a tensor by shape, dtype and
            values; a module by the names and tensors of its state; anything else as JSON with sorted keys.

    Example:
        >>> fingerprint(b"abc")[:8], fingerprint({"seed": 0})[:12]
        ('ba7816bf', 'de7d7744ccd7')
        >>> fingerprint(Image.new("RGB", (2, 1))) == fingerprint(Image.new("RGB", (1, 2)))
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(piece)
    return digest.hexdigest()


def described_fingerprint(description: str, content: Any) -> str:
    """Return what made something as one line: words for people, and the start of the fingerprint of all that matters.

    Example:
        >>> described_fingerprint("by hand", {"seed": 0})
        'by hand [de7d7744ccd7]'
    """
    return f"{description} [{fingerprint(content)[:_DIGITS]}]"


def _pieces(part: Any) -> Iterator[Any]:
    if isinstance(part, bytes | bytearray | memoryview):
        yield part
    elif isinstance(part, str):
        yield part.encode()
    elif isinstance(part, Image.Image):
        # Equal bytes of another width and height are another image.
        yield f"{part.mode} {part.size}\n".encode()
        yield part.tobytes()
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
