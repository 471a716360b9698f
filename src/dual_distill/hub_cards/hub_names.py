"""`owner/name@revision`: how one word on a command line names a commit of the Hub, wherever a checkpoint's name is taken."""

import re
from pathlib import Path

# The Hub's own rule for names is narrower; what passes here and is no name is refused by the Hub in its words.
_NAME_AT_REVISION = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@(.*)")


def split_revision(name_or_path: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """Return a checkpoint's name without its `@revision`, and the revision.

    A folder that exists under the whole name is that folder, and nothing is cut off.

    Args:
        name_or_path: a folder, `owner/name`, or `owner/name@revision` with a branch, tag, commit or `refs/pr/N`.
        revision: the same, given apart.

    Returns:
        Name and revision; None: none was given.

    Raises:
        ValueError: two revisions that differ, nothing after the @, or what stands before it is a folder here.

    Example:
        >>> split_revision("me/student@v1"), split_revision("me/student"), split_revision("me/student@v1", "v1")
        (('me/student', 'v1'), ('me/student', None), ('me/student', 'v1'))
    """
    name = str(name_or_path)
    found = _NAME_AT_REVISION.fullmatch(name)
    if found is None or Path(name).is_dir():
        return name, revision
    repo, named = found.groups()
    if not named:
        raise ValueError(
            f"{name!r} names no revision after the @; give a branch, tag or commit there, or leave the @ out."
        )
    if revision is not None and revision != named:
        raise ValueError(
            f"{name!r} names the revision {named!r}, but {revision!r} is given as well; give one of the two."
        )
    if Path(repo).is_dir():
        raise ValueError(f"{repo!r} is a folder, which has no revision {named!r}; leave {'@' + named!r} out.")
    return repo, named


__all__ = ["split_revision"]
