"""What of a folder may be published: each refusal by its sentence, each file by its kind."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dual_distill.hub_cards import push_folder
from dual_distill.hub_cards.architectures import add_code, read_architecture
from dual_distill.hub_cards.checkpoint_folder import collect, refuse_leaks


def test_what_goes_what_stays_and_how_many_parameters(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(_name_or_path="runs/elsewhere", auto_map={"AutoConfig": "a.B"})
    for name in ("training_args.bin", "trainer_state.json", "stage.json"):
        (folder / name).write_text("{}")
    (folder / "attention.png").write_bytes(b"\x89PNG\r\n\x1a\n and more")
    found = collect(folder)
    assert set(found.files) == {"attention.png", "config.json", "model.safetensors", "processor_config.json"}
    assert found.left_out == ("stage.json", "trainer_state.json", "training_args.bin")
    assert found.parameters == 8
    assert not {"_name_or_path", "auto_map"} & set(json.loads(found.files["config.json"]))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "anything.pkl"])
def test_a_pickle_is_refused_by_name(make_folder: Callable[..., Path], name: str) -> None:
    folder = make_folder()
    (folder / name).write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=f"{name} in .* is a pickle, which runs code on whoever loads it"):
        collect(folder)


def test_a_truncated_or_foreign_safetensors_file_is_refused(make_folder: Callable[..., Path]) -> None:
    file = make_folder() / "model.safetensors"
    whole = file.read_bytes()
    other = b"\x80\x04 a pickle under another name"
    for content in (whole[:-4], whole + b"more", whole[:20], other, b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file, or truncated or damaged"):
            collect(file.parent)


def test_weights_that_stand_in_two_files_are_refused(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    shutil.copyfile(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00001-of-00002.safetensors and model.safetensors both hold weight"):
        collect(folder)


def test_a_link_is_not_followed_out_of_the_folder(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    (folder.parent / "private.yaml").write_text("a: 1")
    (folder / "recipe.yaml").symlink_to(folder.parent / "private.yaml")
    with pytest.raises(ValueError, match=r"recipe.yaml in .* is a symbolic link; put the file itself there"):
        collect(folder)


@pytest.mark.parametrize(("kind", "broken"), [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2)])
def test_weights_that_are_not_finite_are_not_sent(make_folder: Callable[..., Path], kind: str, broken: int) -> None:
    file = make_folder() / "model.safetensors"
    header = json.dumps({"weight": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * broken]}}).encode()
    exponent = {"F64": 0x7FF0, "F32": 0x7F80, "F16": 0x7C00, "BF16": 0x7F80}[kind].to_bytes(2, "little")
    # The largest number that is one, and infinity.
    for last in (int.from_bytes(exponent, "little") - 1).to_bytes(2, "little"), exponent:
        numbers = bytes(broken) + bytes(broken - 2) + last
        file.write_bytes(len(header).to_bytes(8, "little") + header + numbers)
        if last != exponent:
            push_folder(file.parent, "me/model", dry_run=True)
    with pytest.raises(ValueError, match=r"weight in model.safetensors is not finite: .* nothing was sent"):
        push_folder(file.parent, "me/model", dry_run=True)


def test_other_files_that_are_not_what_their_names_say(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    for name, content, message in (
        ("attention.png", b"GIF89a", "is no PNG image"),
        ("tokenizer_config.json", b"{", "is no valid JSON"),
        ("generation_config.json", b"[]", "holds a list; an object was expected"),
        ("recipe.yaml", b"\xff\xfe", "is no text in UTF-8"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            collect(folder)
        (folder / name).unlink()


def test_a_folder_without_config_or_weights(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no config\.json, so it holds no checkpoint"):
        collect(tmp_path)
    folder = make_folder()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"has no model-00001-of-00002\.safetensors"):
        collect(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors, so it holds no weights"):
        collect(folder)


def test_answers_may_be_names_but_no_other_text_of_a_program_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "mark")
    refuse_leaks({"config.json": json.dumps({"id2label": {"0": "mark"}}).encode(), "tokenizer.json": b'{"mark": 7}'})
    with pytest.raises(ValueError, match=r"run\.json holds the name of the user who runs this"):
        refuse_leaks({"run.json": b'{"by": "mark"}'})
    with pytest.raises(ValueError, match=r"run\.json holds an absolute path of a machine, in line 1"):
        refuse_leaks({"run.json": b'{"data": "/mnt/disk/vqa"}'})
    with pytest.raises(ValueError, match=r"README\.md holds a path into a user's home"):
        refuse_leaks({"README.md": b"see /home/somebody/notes"})
    refuse_leaks({"README.md": b"and/or https://a.b/home/of/it, 3/4, </b>", "run.json": b'{"a": "easy_vqa/soft 3/4"}'})
    assert_refused = [b"hf_" + b"a" * 34, b"-----BEGIN RSA PRIVATE KEY-----", b"ghp_" + b"1" * 36]
    for token in assert_refused:
        with pytest.raises(ValueError, match="holds a token or private key"):
            refuse_leaks({"modeling.py": b"# " + token})


def test_code_is_complete_and_points_to_itself(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    found = collect(folder)
    files = add_code(found.files, found.architecture)
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert (
        auto_map["AutoModelForVisualQuestionAnswering"] == "modeling_dual_encoder_heads.DualEncoderForQuestionAnswering"
    )
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForVisualQuestionAnswering"}
    assert json.loads(files["processor_config.json"])["auto_map"] == {
        "AutoProcessor": "processing_dual_distill.DualDistillProcessor"
    }
    assert "__init__.py" not in files
    modules = {name for name in files if name.endswith(".py")}
    assert {"modeling_dual_encoder.py", "processing_dual_distill.py", "configuration_dual_encoder.py"} <= modules
    # Sentences may name the package; what travels must not import it.
    assert not [name for name in modules if re.search(rb"^\s*(from|import) dual_distill", files[name], re.MULTILINE)]
    with pytest.raises(ValueError, match="names the architecture 'DualEncoderForVideos', which this version"):
        read_architecture("DualEncoderForVideos")
    with pytest.raises(ValueError, match="no Auto class of transformers loads FusionEncoderForImageTextRetrieval"):
        add_code(found.files, read_architecture("FusionEncoderForImageTextRetrieval"))
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"there is no processor_config\.json beside the model"):
        add_code(collect(folder).files, found.architecture)


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "README.md", "config.json"])
def test_a_named_pipe_is_no_file_of_a_checkpoint(name: str, make_folder: Callable[..., Path]) -> None:
    """Opened, it would wait for somebody who writes."""
    folder = make_folder()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name in ("model.safetensors", "config.json"):
        with pytest.raises(ValueError, match=f"has no {name}"):
            collect(folder)
    else:
        assert name not in collect(folder).files


# Made up, each of the form that its issuer gives it.
SECRETS = {
    "Hugging Face": "hf_" + "aB3d" * 9,
    "Hugging Face, organisation": "api_org_" + "aB3d" * 9,
    "GitHub": "ghp_" + "aB3d" * 9,
    "GitHub, application": "ghs_" + "aB3d" * 9,
    "GitHub, fine-grained": "github_pat_" + "aB3d" * 20,
    "GitLab": "glpat-" + "aB3d" * 5,
    "GitLab, runner": "glrt-" + "aB3d" * 5,
    "Google": "AIza" + "aB3d-_7" * 5,
    "Google, OAuth": "ya29." + "aB3d" * 12,
    "npm": "npm_" + "aB3d" * 9,
    "npm, .npmrc": "//registry.example.org/:_authToken=1f3a-aB3d",
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + "aB3_" * 20,
    "Stripe": "sk_live_" + "aB3d" * 6,
    "Stripe, restricted": "rk_live_" + "aB3d" * 6,
    # {"alg":"HS256","typ":"JWT"}, {"sub":"1234567890"}, and no signature of these
    "JSON web token": f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{'aB3d' * 10}",
    "user and password": "https://ada:s3cret@example.org/data.tar",
    "password of a database": "postgresql://ada:s3cret@db.example.org/runs",
    "path of a home, as an address": "file:///home/ada/runs/teacher",
    "path of a home on macOS, as an address": "file:///Users/ada/runs",
    "private key": "-----BEGIN PRIVATE KEY-----",
    "RSA": "-----BEGIN RSA PRIVATE KEY-----",
    "OpenSSH": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "PGP": "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "AWS": "AKIA" + "AB3D" * 4,
    "AWS, secret": "aws_secret_access_key = " + "aB3/" * 10,
    "Slack": "xoxb-" + "123456789-" * 2 + "aB3d" * 6,
    "Slack, webhook": "https://hooks.slack.com/services/T0AB/B0AB/" + "aB3d" * 6,
    "OpenAI": "sk-proj-" + "aB3d" * 12,
    "SendGrid": f"SG.{('aB3d' * 6)[:22]}.{('aB3d' * 11)[:43]}",
    "Azure": "AccountKey=" + "aB3d" * 21 + "a1==",
}


@pytest.mark.parametrize("issuer", SECRETS)
@pytest.mark.parametrize("name", ["README.md", "modeling_dual_encoder.py", "run.json", "tokenizer.json"])
def test_a_secret_leaves_in_no_file(issuer: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} holds .*, and nothing was sent") as refusal:
        refuse_leaks({name: json.dumps({"note": f"see {SECRETS[issuer]} there"}).encode()})
    assert SECRETS[issuer] not in str(refusal.value)


def test_what_only_resembles_a_secret_may_leave() -> None:
    harmless = ["hf://datasets/me/photos@main/a.tar", "https://example.org:8080/a@b", "https://example.org/?a=b:c@d"]
    harmless += ["sk-learn", "npm_config", "eyJ", "a/b", "ghp_", "sk_live", "{user}:{password}@host"]
    harmless += ["-----BEGIN PUBLIC KEY-----"]
    refuse_leaks({"tokenizer.json": json.dumps(harmless).encode(), "README.md": "\n".join(harmless).encode()})
