"""Files, records and folders are there whole or not at all, and damage is named."""

import errno
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dual_distill import sealed


@pytest.fixture
def folder(tmp_path):
    with sealed.written(tmp_path / "made") as aside:
        (aside / "words.txt").write_text("one two")
        (aside / "inside").mkdir()
        (aside / "inside" / "numbers.bin").write_bytes(bytes(range(100)))
        sealed.write_json(aside / "run.json", {"steps": 3})
    return tmp_path / "made"


def test_a_folder_appears_whole_with_a_digest_a_file(folder):
    assert sealed.read_seal(folder) == {
        "inside/numbers.bin": sealed.digest_of(folder / "inside" / "numbers.bin"),
        "run.json": None,
        "words.txt": sealed.digest_of(folder / "words.txt"),
    }
    assert [path.name for path in folder.parent.iterdir()] == ["made"]
    sealed.verify(folder)


@pytest.mark.parametrize("name", ["words.txt", "inside/numbers.bin", "run.json", "sealed.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_named(folder, name, damage):
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    if (name, damage) == ("sealed.json", "delete"):
        assert not sealed.read_seal(folder)  # not sealed, so not to be resumed from
    else:
        with pytest.raises(ValueError, match=re.escape(str(file))):
            sealed.verify(folder)
    if name == "words.txt":
        sealed.verify(folder, "*.bin", "*.json")  # what is not read is not looked at


def write(folder, error=None):
    with sealed.written(folder) as aside:
        (aside / "words.txt").write_text("three")
        if error is not None:
            raise error


def test_an_error_leaves_what_was_there(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="No space left"):
        write(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_written_again_holds_nothing_of_before(folder):
    (folder / "notes.txt").write_text("by hand")
    write(folder)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "notes.txt",
        "sealed.json",
        "words.txt",
    ]
    sealed.verify(folder)


def test_a_folder_whose_writing_was_cut_short_is_refused(folder, monkeypatch):
    rename = Path.replace

    def killed(self, target):
        if target == folder / "words.txt":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(folder)
    with pytest.raises(ValueError, match=r"words.txt' is damaged: its content does not fit the sealed.json"):
        sealed.verify(folder)


def test_a_record_of_an_earlier_version_has_no_digest(tmp_path):
    (tmp_path / "run.json").write_text('{"steps": 3}')
    assert sealed.read_json(tmp_path / "run.json") == {"steps": 3}
    for content, problem in {"{": "no valid JSON", "[1]": "holds a list", '{"a": 1, "sha256": "0"}': "damaged"}.items():
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(ValueError, match=rf"run.json .*{problem}"):
            sealed.read_json(tmp_path / "run.json")


def test_a_second_process_is_refused_and_the_lock_dies_with_the_first(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    refused = pytest.raises(ValueError, match=r"another process is writing into .*; wait for its end")
    with refused, sealed.locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    # A forked worker of the process that was killed lives on without it.
    with sealed.locked(tmp_path), sealed.locked(tmp_path):
        pass


_HOLD = """
import os, sys, time
from dual_distill.sealed import locked
with locked(sys.argv[1]):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_large_file_is_read_once_by_all_processes_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sealed, "LARGE", 8)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "words.txt").write_text("some words")
    sealed.seal(folder)
    [noted] = (tmp_path / "home" / "dual_distill").iterdir()
    assert noted.read_text() == hashlib.sha256(b"some words").hexdigest()

    def read(*_):
        raise AssertionError("the file was read again")

    with monkeypatch.context() as unread:
        unread.setattr(hashlib, "file_digest", read)
        sealed.verify(folder)
        (folder / "words.txt").rename(folder / "other.txt")  # as `publish` does
        assert sealed.digest_of(folder / "other.txt") == noted.read_text()
    (folder / "other.txt").rename(folder / "words.txt")
    (folder / "words.txt").write_text("SOME words")
    with pytest.raises(ValueError, match=r"words.txt' is damaged"):
        sealed.verify(folder)


def test_what_is_remembered_is_bounded_and_no_home_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed, "_MOST_REMEMBERED", 3)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for number in range(5):
        assert sealed.remembered(f"name-{number}", lambda number=number: f"found {number}") == f"found {number}"
    assert len(list((tmp_path / "dual_distill").iterdir())) == 3
    assert sealed.remembered("name-4", lambda: "found again") == "found 4"
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    assert sealed.remembered("name-4", lambda: "found again") == "found again"
