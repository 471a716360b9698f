"""`owner/name@revision`, and what only looks like it."""

from pathlib import Path

import pytest

from dual_distill.hub_cards import Origin, origin_of, split_revision


@pytest.mark.parametrize(
    "name, expected",
    [
        ("me/student@v1", ("me/student", "v1")),
        ("me/student@refs/pr/4", ("me/student", "refs/pr/4")),
        ("student@main", ("student", "main")),
        ("me/student@seed@2", ("me/student", "seed@2")),  # branches may hold an @, names may not
        ("me/student", ("me/student", None)),
        ("/mnt/me@office/student", ("/mnt/me@office/student", None)),
        ("runs/of/me@v1", ("runs/of/me@v1", None)),
    ],
)
def test_a_revision_is_cut_off_a_name_of_the_hub_alone(name: str, expected: tuple[str, str | None]) -> None:
    assert split_revision(name) == expected


def test_a_folder_of_that_very_name_stays_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "student@v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert split_revision("runs/student@v1") == ("runs/student@v1", None)
    assert split_revision(Path("runs/student@v2")) == ("runs/student", "v2")
    (tmp_path / "runs" / "student").mkdir()
    with pytest.raises(ValueError, match="'runs/student' is a folder, which has no revision 'v2'; leave '@v2' out"):
        split_revision("runs/student@v2")


def test_two_revisions_that_differ_and_none_after_the_at_are_refused() -> None:
    assert split_revision("me/student@v1", "v1") == ("me/student", "v1")
    with pytest.raises(ValueError, match="names a revision, but 'v2' is given as well; give one of the two"):
        split_revision("me/student@v1", "v2")
    with pytest.raises(ValueError, match="names no revision after the @"):
        split_revision("me/student@")


def test_the_origin_of_a_name_with_a_revision_is_name_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, commit = tmp_path / "models--me--student", "c" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "v1").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert origin_of("me/student@v1") == Origin("me/student", commit, on_hub=True)
    assert origin_of("me/student", "v1") == Origin("me/student", commit, on_hub=True)
