"""Every way a push can fail on the wire: one clear sentence, the repository as it was, and a second try that works."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dual_distill.hub_cards import PushError, push_folder

REPO = "me/model"
EVERY_PUSH_ASKS = ["create", "info", "validate-yaml", "preupload", "lfs-batch", "lfs-put", "lfs-verify", "commit"]
WORDS = {
    401: "hf auth login",
    403: "your token may not write there",
    404: "check the spelling and the token",
    409: "somebody else is changing it at this moment",
    429: "the Hub asks for a pause",
    500: "the Hub itself failed",
    "cut": "the Hub could not be reached",
}
# To a token that may not create repositories the client looks whether it is there already, and goes on. (Every second
# push here is answered 409, "there already", when it creates.)
GOES_ON = {("create", 401), ("create", 403)}
CASES = [(endpoint, how) for endpoint in EVERY_PUSH_ASKS for how in WORDS if (endpoint, how) != ("create", 409)]


@pytest.fixture
def pushed(hub, make_folder: Callable[..., Path]):
    """A Hub that holds a first push, and the folder of a second."""
    push_folder(make_folder("first", value=1.0), REPO)
    return hub, make_folder("second", value=2.0)


@pytest.mark.parametrize("endpoint, how", CASES)
def test_a_failure_is_a_sentence_changes_nothing_and_a_second_try_works(pushed, endpoint: str, how: int | str) -> None:
    hub, folder = pushed
    repo = hub.repos[REPO]
    head, files, branches = repo.branches["main"], dict(repo.files()), dict(repo.branches)
    hub.fail_at(endpoint, how)
    if (endpoint, how) in GOES_ON:
        assert push_folder(folder, REPO).changed
        return
    with pytest.raises(PushError) as caught:
        push_folder(folder, REPO)
    assert WORDS[how] in str(caught.value)
    assert str(caught.value).startswith(f"push to '{REPO}', ")
    assert repo.branches == branches
    assert repo.files() == files
    assert list(hub.repos) == [REPO]
    hub.recover()
    report = push_folder(folder, REPO)
    assert repo.branches["main"] == report.commit != head
    assert len(repo.commits) == 3  # the first, empty one, and one for each push
    assert repo.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_wrong_checksum_is_found_before_the_commit(pushed) -> None:
    hub, folder = pushed
    before = dict(hub.repos[REPO].files())
    hub.fail_at("lfs-put", "corrupt")
    with pytest.raises(PushError, match="status 400, the Hub refused what was sent"):
        push_folder(folder, REPO)
    assert hub.repos[REPO].files() == before
    assert "commit" not in hub.requests[hub.requests.index("commit") + 1 :]  # that one was the first push's
    hub.recover()
    push_folder(folder, REPO)
    assert hub.repos[REPO].files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_commit_whose_answer_is_lost_may_be_there_and_a_second_try_is_safe(pushed) -> None:
    hub, folder = pushed
    hub.fail_at("commit", "lost")
    with pytest.raises(PushError, match=r"could not be reached .*; the commit is there whole or not at all") as caught:
        push_folder(folder, REPO)
    assert caught.value.status is None
    weights = (folder / "model.safetensors").read_bytes()
    assert hub.repos[REPO].files()["model.safetensors"] == weights
    hub.recover()
    push_folder(folder, REPO)
    assert hub.repos[REPO].files()["model.safetensors"] == weights


def test_of_two_pushes_at_once_one_wins_and_the_other_says_so(pushed, make_folder: Callable[..., Path]) -> None:
    hub, folder = pushed
    winner = make_folder("winner", value=3.0)
    # The winner's whole push happens while the loser's commit is on its way.
    hub.before_commit = lambda: hub.repos[REPO].commit("main", {"model.safetensors": b"winner"}, "the winner")
    with pytest.raises(PushError, match="somebody else pushed to it while this push was on its way, and theirs stands"):
        push_folder(folder, REPO)
    assert hub.repos[REPO].files() == {"model.safetensors": b"winner"}
    push_folder(winner, REPO)
    assert hub.repos[REPO].files()["model.safetensors"] == (winner / "model.safetensors").read_bytes()


def test_a_branch_is_made_for_a_push_and_taken_back_when_it_fails(pushed) -> None:
    hub, folder = pushed
    repo = hub.repos[REPO]
    before = dict(repo.branches)
    hub.fail_at("commit", 500)
    with pytest.raises(PushError, match="the Hub itself failed"):
        push_folder(folder, REPO, revision="seed-2")
    assert repo.branches == before
    hub.recover()
    report = push_folder(folder, REPO, revision="seed-2")
    assert repo.branches == {**before, "seed-2": report.commit}
    assert b'revision="seed-2"' in repo.files("seed-2")["README.md"]


def test_no_network_and_offline(hub, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = make_folder()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push_folder(folder, REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(PushError, match=r"the Hub could not be reached .*; check the network"):
        push_folder(folder, REPO)
    assert not hub.requests


@pytest.mark.parametrize("name", ["no spaces", "a/b/c", "me/-model", "me/model.git", ""])
def test_a_name_that_is_not_allowed(hub, make_folder: Callable[..., Path], name: str) -> None:
    with pytest.raises(PushError, match="give it as owner/name"):
        push_folder(make_folder(), name)
    assert not hub.requests
