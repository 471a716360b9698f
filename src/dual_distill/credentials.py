"""Addresses without what they let in: a URL loses its credentials before it is printed or recorded."""

import re

_USER = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/@'\"\\]+@", re.IGNORECASE)
_VALUE = re.compile(r"([?&][\w-]*(?:token|key|secret|signature|password|sig)=)[^\s&'\"\\]+", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """Return a text whose URLs have no user, password, token or signature.

    Example:
        >>> without_credentials("https://ada:s3cret@example.org/a.png?token=abc&size=2 is not an image")
        'https://example.org/a.png?token=...&size=2 is not an image'
        >>> without_credentials("hf://datasets/me/photos@main/a.tar")
        'hf://datasets/me/photos@main/a.tar'
    """
    return _VALUE.sub(r"\1...", _USER.sub(r"\1", text))
