"""What a push sends: one commit with these files and no others, and what survives from the commit before."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dual_distill.hub_cards import (
    DataOrigin,
    Measurement,
    ObjectiveRecord,
    Origin,
    PushError,
    RunRecord,
    push_folder,
    write_run,
)

REPO = "me/model"


def test_one_commit_holds_everything_and_nothing_else(hub, make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "trainer_state.json",
        "notes.txt",
    ):
        (folder / name).write_bytes(b"not for anyone else")
    (folder / "checkpoint-10").mkdir()
    report = push_folder(folder, REPO, message="First")
    sent = {"README.md", "config.json", "model.safetensors", "processor_config.json"}
    assert set(hub.repos[REPO].files()) == set(report.files) == sent
    assert hub.repos[REPO].titles == ["initial commit", "First"]
    assert hub.requests.count("commit") == 1
    assert {"checkpoint-10/", "optimizer.pt", "training_args.bin", "trainer_state.json"} < set(report.left_out)
    assert report.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    again = push_folder(folder, REPO)
    assert again.commit != report.commit or not again.changed


def test_a_dry_run_asks_nobody_and_says_what_would_go(hub, make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    planned = push_folder(folder, REPO, dry_run=True)
    assert not hub.requests
    assert (planned.dry_run, planned.commit) == (True, None)
    assert planned.files == push_folder(folder, REPO).files


def test_private_pull_request_and_branch(hub, make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    push_folder(folder, "me/secret", private=True)
    assert hub.repos["me/secret"].private
    push_folder(folder, REPO)
    head = hub.repos[REPO].branches["main"]
    with pytest.raises(PushError, match="'me/model' is public, but private was asked for"):
        push_folder(folder, REPO, private=True)
    other = make_folder("other", value=5.0)
    report = push_folder(other, REPO, create_pr=True)
    assert report.url is not None
    assert report.url.endswith("/discussions/1")
    assert hub.repos[REPO].branches["main"] == head
    assert hub.repos[REPO].files("refs/pr/1")["model.safetensors"] == (other / "model.safetensors").read_bytes()


def test_a_name_alone_is_one_of_my_own(hub, make_folder: Callable[..., Path]) -> None:
    assert push_folder(make_folder(), "model").repo_id == "me/model"
    assert b'from_pretrained("me/model")' in hub.repos["me/model"].files()["README.md"]


def test_hand_written_text_and_metadata_survive_a_second_push(hub, make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    push_folder(folder, REPO)
    files = hub.repos[REPO].files()
    card = (
        files["README.md"].decode().replace("---\n", "---\nlanguage: de\n", 1) + "\n## By hand\nTrained on my shop.\n"
    )
    edited = card.replace("# model", "# overwritten, for it is ours")
    hub.repos[REPO].commit("main", {**files, "README.md": edited.encode()}, "edited on the website")
    push_folder(folder, REPO)
    card = hub.repos[REPO].files()["README.md"].decode()
    assert card.endswith("<!-- dual_distill card ends -->\n\n## By hand\nTrained on my shop.\n")
    assert "\nlanguage: de\n" in card
    assert "overwritten" not in card
    # Text beside the weights, too, which differs: nobody's is thrown away.
    (folder / "README.md").write_text("## Another text\n")
    push_folder(folder, REPO)  # the Hub's was not touched since our last push, so the folder's is the newer one
    hub.repos[REPO].commit("main", {"README.md": edited.encode()}, "edited again")
    with pytest.raises(ValueError, match="both have hand-written text, and it differs"):
        push_folder(folder, REPO)


def test_weights_of_an_earlier_push_go_with_the_same_commit(hub, make_folder: Callable[..., Path]) -> None:
    push_folder(make_folder("whole"), REPO)
    folder = make_folder("in-shards", value=2.0)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    report = push_folder(folder, REPO)
    assert report.deleted == ("model.safetensors",)
    assert "model.safetensors" not in hub.repos[REPO].files()
    assert "model-00001-of-00001.safetensors" in hub.repos[REPO].files()


def test_nothing_that_was_pushed_names_token_home_or_user(
    hub, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "adalovelace"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "adalovelace")
    folder = make_folder(_name_or_path=str(home / "runs"))
    run = RunRecord(
        ObjectiveRecord("DiDEObjective", {"attention_weight": 1.0}),
        DataOrigin("shop", {"train": 10}),
        teacher=Origin("adalovelace/teacher", "0" * 40, on_hub=True),  # public: it is a repository's name
        measurements=(Measurement("accuracy", 0.5, "test", "dual-distill evaluate", teacher=0.6),),
    )
    write_run(folder, run)
    push_folder(folder, "adalovelace/model", with_code=True)
    everything = b"".join(hub.repos["adalovelace/model"].files().values())
    assert str(home).encode() not in everything
    assert b"hf_This" not in everything
    assert set(re.findall(rb"adalovelace[^\"\])`]*", everything)) == {b"adalovelace/model", b"adalovelace/teacher"}
    hub.requests.clear()
    for leak in (str(home / "runs"), "by adalovelace", "hf_ThisIsTheTokenOfTheTests" * 2):
        (folder / "recipe.yaml").write_text(f"seed: 0\nnote: {leak}\n")
        with pytest.raises(ValueError, match=r"recipe\.yaml holds .*, in line 2, and nothing was sent") as caught:
            push_folder(folder, "adalovelace/model")
        assert leak not in str(caught.value)
    assert not hub.requests
