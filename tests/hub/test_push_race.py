"""Two processes push at the same time, both from the same head: one wins, the other says so, nothing is mixed."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

from dual_distill.hub_cards import push_folder

REPO = "me/model"


def test_of_two_processes_one_wins_whole_and_the_other_says_so(
    hub, hub_environment: dict[str, str], make_folder: Callable[..., Path], fresh_processes
) -> None:
    # They differ in weights, in answers and so in the card.
    folders = [
        make_folder("two-answers", value=1.0),
        make_folder(
            "three-answers", value=2.0, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2}
        ),
    ]
    hub.commits_wait_at = threading.Barrier(2)  # neither commit is looked at before the other has arrived
    code = "import sys; from dual_distill.cli import main; sys.exit(main())"
    ended = fresh_processes(*((code, "push", folder, REPO, "--json") for folder in folders), **hub_environment)
    hub.commits_wait_at = None
    codes, printed = [one.returncode for one in ended], [(one.stdout, one.stderr) for one in ended]
    winner = codes.index(0)
    loser = 1 - winner
    assert codes[loser] != 0, printed
    assert "somebody else pushed to it while this push was on its way, and theirs stands" in printed[loser][1]
    assert "Traceback" not in printed[loser][1]
    assert printed[loser][0] == ""

    repo, report = hub.repos[REPO], json.loads(printed[winner][0])
    assert repo.branches == {"main": report["commit"]}
    assert len(repo.commits) == 2  # the first, empty one, and the winner's
    files = repo.files()
    assert {name: len(content) for name, content in files.items()} == report["files"]
    for name in ("config.json", "model.safetensors", "processor_config.json"):
        assert files[name] == (folders[winner] / name).read_bytes()
    assert f"it knows {(2, 3)[winner]} answers".encode() in files["README.md"]

    # The loser's second try goes on top of it.
    assert push_folder(folders[loser], REPO).changed
    assert repo.files()["model.safetensors"] == (folders[loser] / "model.safetensors").read_bytes()
