"""What was written is there whole or not at all, and what is read is what was written.

| what | how it is written | how a reader knows |
|---|---|---|
| a file | under a hidden name, fsync, rename | it is there |
| a record in JSON | likewise | `sha256` in it, of the rest of its content |
| a folder | hidden, fsync of each file, rename | `sealed.json` in it, with the SHA-256 of each file |

Files go into a folder that is there already behind their new `sealed.json`: one that was cut short is refused by its
readers, never read as a mixture of old and new. Every room writes and reads through this module, hence it lies below
them all and imports the standard library alone.
"""

import fcntl
import fnmatch
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

SEAL = "sealed.json"
LOCK = ".lock"
LARGE = 2**24  # bytes from which on to look at a file costs more than a moment
_MOST_REMEMBERED = 1_000
# Of a sealed folder, what is written anew by itself, with a SHA-256 of its own.
_OWN_DIGEST = ("run.json",)
_locked: set[Path] = set()

FilePath = str | os.PathLike[str]


def write_file(file: Path, content: Sequence[Any] | str | Callable[[Any], None], exclusive: bool = False) -> bool:
    """Write a text, pieces of bytes, or what a function writes into a stream, under a hidden name and rename.

    Any number of processes may write one file. A hidden file is locked for as long as its writer lives, and what one
    left that was killed goes with the next write.

    Args:
        file: written over where it is there.
        content: a text, buffers that come one after the other, or a function of a stream; it may be called again.
        exclusive: whether a file that is there is kept.

    Returns:
        False where another process was faster with a file that is to be kept.
    """
    remove_leftovers(file.parent, file.name)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    with temporary.open("xb") as stream:
        with suppress(OSError):  # a file system without locks: then nothing is taken for a leftover either
            fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            pieces: Any = [content.encode()] if isinstance(content, str) else content
            if callable(pieces):
                pieces(stream)
            else:
                stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
            if exclusive:
                os.link(temporary, file)
            else:
                temporary.replace(file)
        except FileNotFoundError:  # taken for a leftover before it was locked
            return write_file(file, content, exclusive)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    _sync(file.parent)
    return True


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the hidden files of writers of `name` that were killed."""
    for leftover in folder.glob(f".{name}." + 12 * "[0-9a-f]"):
        with suppress(OSError), leftover.open("r+b") as stream:
            # Fails while its writer lives, which holds this lock.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink(missing_ok=True)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a record with the SHA-256 of its content.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "record.json")
        >>> write_json(file, {"steps": 10})
        >>> read_json(file)
        {'steps': 10}
    """
    write_file(file, _sealed_text(values))


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object, of a record without its SHA-256; one of an earlier version, or of others, has none.

    Raises:
        ValueError: the file is no JSON object, or its content does not fit its SHA-256.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no valid JSON ({error}); write or fetch it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}; an object was expected.")
    if values.pop("sha256", None) is not None and text != _sealed_text(values):
        problem = "is damaged or was changed by hand: its content does not fit its sha256"
        raise ValueError(f"{file} {problem}; copy it again, or delete it and let the same command write it.")
    return values


def _sealed_text(values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({**values, "sha256": digest}, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def written(target: FilePath, is_new: bool = False) -> Iterator[Path]:
    """Give an empty hidden folder, which becomes the folder `target` at the end, or part of it; on an error it goes.

    Raises:
        ValueError: there is something at a `target` that `is_new`.
    """
    target = Path(target).absolute()
    if is_new and target.exists() and not _is_new(target):
        raise ValueError(f"{str(target)!r} is there already and not an empty folder; name a new one.")
    aside = (target.parent if _is_new(target) else target) / f".{target.name}.unfinished" / target.name
    begin(aside)
    try:
        yield aside
        seal(aside)
        publish(aside, target)
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def begin(aside: Path) -> None:
    """Make the hidden folder that a folder is written in, without what a killed process left there."""
    shutil.rmtree(aside.parent, ignore_errors=True)
    aside.mkdir(parents=True)


def _is_new(folder: Path) -> bool:
    return not folder.is_dir() or not any(folder.iterdir())


def seal(folder: Path) -> None:
    """Bring a folder to the disk, and write the SHA-256 of each of its files; those in `sealed.json` stay as noted."""
    digests = read_seal(folder)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(files.keys() - {SEAL, *digests}):
        _sync(files[name])
        digests[name] = None if name in _OWN_DIGEST else digest_of(files[name])
    for part in {file.parent for file in files.values()}:
        _sync(part)
    write_json(folder / SEAL, {"files": digests})


def publish(aside: Path, target: Path) -> None:
    """Move a sealed folder to its name; where there is one, its files into it, and out what they take the place of."""
    if _is_new(target):
        aside.rename(target)
    else:
        new, before = read_seal(aside), {}
        with suppress(ValueError):
            before = read_seal(target)
        for name in (SEAL, *new):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).replace(target / name)
        for name in before.keys() - new.keys():
            (target / name).unlink(missing_ok=True)
        _sync(target)
    _sync(target.parent)


def read_seal(folder: FilePath) -> dict[str, str | None]:
    """Return file -> SHA-256 of a sealed folder, None of one that has its own; empty where nothing is sealed.

    Raises:
        ValueError: `sealed.json` is damaged.
    """
    file = Path(folder, SEAL)
    return read_json(file)["files"] if file.is_file() else {}


def verify(folder: FilePath, *patterns: str) -> None:
    """Refuse a sealed folder in which a file is not as it was saved; others pass.

    Args:
        folder: of a model, a checkpoint, a record.
        *patterns: of the files that will be read; none: all of them.

    Raises:
        ValueError: a file is missing or damaged; it is named.
    """
    for name, sha256 in read_seal(folder).items():
        if patterns and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            continue
        file = Path(folder, name)
        if sha256 is None and file.is_file():
            read_json(file)
        elif not file.is_file() or digest_of(file) != sha256:
            problem = "is damaged: its content does not fit" if file.is_file() else "is missing, but stands in"
            way_out = f"copy it again, or, if you changed it yourself, delete {SEAL}"
            raise ValueError(f"{str(file)!r} {problem} the {SEAL} beside it; {way_out}.")


def guard(saved_class: Any, *patterns: str) -> None:
    """Let `from_pretrained` of a class verify these files of a folder, and `save_pretrained` take off its seal."""
    load, save = saved_class.from_pretrained.__func__, saved_class.save_pretrained

    @wraps(load)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        verify(str(pretrained_model_name_or_path), *patterns)
        return load(cls, pretrained_model_name_or_path, *args, **kwargs)

    @wraps(save)
    def save_pretrained(self: Any, save_directory: FilePath, *args: Any, **kwargs: Any) -> Any:
        Path(save_directory, SEAL).unlink(missing_ok=True)
        return save(self, save_directory, *args, **kwargs)

    saved_class.from_pretrained, saved_class.save_pretrained = classmethod(from_pretrained), save_pretrained


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; of a large one it is remembered."""

    def digest() -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return remembered_of(file, "sha256", digest)


def remembered_of(file: Path, what: str, find: Callable[[], str]) -> str:
    """Return what `find` says of the content of a file; of a large one once for all processes, until it is changed.

    A change is told by size, time and inode. A small file is looked at each time: its time might not tell.
    """
    status = file.stat()
    if status.st_size < LARGE:
        return find()
    known_by = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return remembered(f"{what}-" + "-".join(f"{number:x}" for number in known_by), find)


def remembered(name: str, find: Callable[[], str]) -> str:
    """Return what the cache of this user holds under a name; else what `find` says, which is then held there."""
    folder = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface", "dual_distill")
    with suppress(OSError):
        return (folder / name).read_text()
    found = find()
    with suppress(OSError):  # a home that cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, found)
        for oldest in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)[:-_MOST_REMEMBERED]:
            oldest.unlink(missing_ok=True)
    return found


@contextmanager
def locked(folder: FilePath, writes: bool = True) -> Iterator[None]:
    """Keep other processes from writing into a folder, if this one `writes`; the lock dies with its process.

    Raises:
        ValueError: another process writes into it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(folder), locked(folder):  # one process, one lock
        ...     print(Path(folder, LOCK).is_file())
        True
    """
    file = Path(folder, LOCK).resolve()
    if file in _locked or not writes:
        yield
        return

    file.parent.mkdir(parents=True, exist_ok=True)
    # Of the process, as `flock` is not: a worker that is forked meanwhile does not hold it on.
    with file.open("ab") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            way_out = "wait for its end, or give another folder"
            raise ValueError(f"another process is writing into {str(folder)!r}; {way_out}.") from error
        except OSError:  # a file system without locks
            pass
        _locked.add(file)
        # A kill right behind `publish` leaves it, empty, and what is finished is not written again.
        shutil.rmtree(file.with_name(f".{file.parent.name}.unfinished"), ignore_errors=True)
        try:
            yield
        finally:
            _locked.remove(file)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
