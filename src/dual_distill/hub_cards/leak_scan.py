"""What must not leave this machine: tokens, keys, its paths and the name of its user, looked for in every text before a
push.

Two measures. Files that programs write (`strict`) may hold no absolute path and no user name at all. In prose,
vocabularies and code those could be words like others, so only what cannot be one is refused: tokens, keys, and paths
into a home.
"""

import contextlib
import getpass
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import get_token

_TOKENS = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_HOME_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root)/[\w.+-]+|\b[A-Za-z]:(?:\\+|/)Users(?:\\+|/)[\w.+-]+")
# Begins where no word, address or other path goes on; two parts at least, so that "and/or" and "/" pass.
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.<~)\]])/(?:[\w.+-]+/)+[\w.+-]+|\b[A-Za-z]:\\+[\w.+-]+")
# Names that say nothing about anyone and are words of their own; paths into their homes are found all the same.
_NOBODY = {"admin", "build", "docker", "jovyan", "nobody", "root", "runner", "ubuntu", "user", "vscode"}
_SHORTEST_NAME = 3


def user_names() -> set[str]:
    """Return the names of who runs this process, without those that everyone has ("root") and those below three letters."""
    names = {Path.home().name}
    # Without an entry for this user, the home's name is all there is.
    with contextlib.suppress(ImportError, KeyError, OSError):
        names.add(getpass.getuser())
    return {name for name in names if len(name) >= _SHORTEST_NAME and name.lower() not in _NOBODY}


def find_leak(
    text: str, *, strict: bool, public_names: Iterable[str] = (), names: Iterable[str] | None = None
) -> str | None:
    """Return what a text gives away, in words and without repeating it; None when nothing was found.

    Args:
        text: what would be sent.
        strict: whether a program wrote it, see above.
        public_names: `owner/name` of repositories that may be named although the owner is the user.
        names: of the user; None: `user_names()`.

    Example:
        >>> find_leak("path: /home/ada/runs/teacher", strict=True)
        "a path into a user's home, in line 1"
        >>> find_leak("by Ada", strict=True, names={"Ada"}), find_leak("by Ada", strict=False, names={"Ada"})
        ('the name of the user who runs this, in line 1', None)
    """
    for public in public_names:
        text = text.replace(public, "")
    token, home = get_token(), str(Path.home())
    checks: list[tuple[str, re.Pattern[str] | None]] = [
        ("the Hub token of this machine", re.compile(re.escape(token)) if token else None),
        ("a token or private key", _TOKENS),
        # A home of one part, as root's is, could be a word: it counts where a path goes on.
        ("a path into a user's home", re.compile(rf"(?<![\w.:/]){re.escape(home)}/\w") if len(home) > 1 else None),
        ("a path into a user's home", _HOME_PATH),
    ]
    if strict:
        checks.append(("an absolute path of a machine", _ABSOLUTE_PATH))
        for name in user_names() if names is None else names:
            checks.append(("the name of the user who runs this", re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")))
    for what, pattern in checks:
        if pattern is not None and (found := pattern.search(text)):
            return f"{what}, in line {text.count(chr(10), 0, found.start()) + 1}"
    return None


__all__ = ["find_leak", "user_names"]
