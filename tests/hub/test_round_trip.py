"""Pushed here, loaded by a stranger: fresh processes, with this package and without it, through HTTP, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from dual_distill.hub_cards import (
    DataOrigin,
    Measurement,
    ObjectiveRecord,
    Origin,
    RunRecord,
    Speed,
    origin_of,
    push_folder,
    push_pretrained,
    write_run,
)
from dual_distill.modeling import DualDistillProcessor
from dual_distill.teachers import load_model

ANSWERS = ["yes", "no", "red", "blue"]

# Prints a digest of the weights, and the logits as exact hexadecimal numbers for an image and question that both sides
# know.
COMPARE = """
import hashlib, json, torch
from PIL import Image
torch.set_num_threads(1)  # the order of sums depends on the number of threads
batch = processor(text="what is in the image?", images=Image.linear_gradient("L").resize((16, 16)).convert("RGB"))
with torch.inference_mode():
    logits = model(**batch).logits[0].double().tolist()
weights = hashlib.sha256(b"".join(value.numpy().tobytes() for name, value in sorted(model.state_dict().items())))
print("FOUND " + json.dumps([weights.hexdigest(), [value.hex() for value in logits]]))
"""
WITHOUT_PACKAGE = "import sys\nsys.modules['dual_distill'] = None  # importing it fails\n"


def found_in(printed: str) -> list[tuple[str, list[str]]]:
    """Digest of the weights and logits, for each COMPARE that ran."""
    lines = [line for line in printed.splitlines() if line.startswith("FOUND ")]
    return [(digest, logits) for digest, logits in (json.loads(line.removeprefix("FOUND ")) for line in lines)]


def numbers(logits: list[str]) -> list[float]:
    return [float.fromhex(value) for value in logits]


def quick_start(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def found_here(
    model: PreTrainedModel, processor: DualDistillProcessor, capsys: pytest.CaptureFixture[str]
) -> tuple[str, list[str]]:
    exec(COMPARE, {"model": model, "processor": processor})
    [found] = found_in(capsys.readouterr().out)
    return found


def test_a_distilled_dual_encoder_loads_with_the_package_and_without_and_its_quick_start_runs_as_pasted(
    hub,
    hub_environment: dict[str, str],
    tmp_path: Path,
    make_model,
    save_model,
    capsys: pytest.CaptureFixture[str],
    run_fresh,
) -> None:
    model, folder = make_model("dual"), tmp_path / "student"
    processor = save_model(model, folder)
    run = RunRecord(
        ObjectiveRecord("DiDEObjective", {"attention_weight": 1.0}),
        DataOrigin("shop", {"train": 90, "test": 10}, hub_ids=["me/shop"], revision="b" * 40),
        teacher=Origin("me/teacher", "a" * 40, on_hub=True),
        start=Origin("me/teacher", "a" * 40, on_hub=True),
        measurements=(
            Measurement("accuracy", 0.5, "test", "dual-distill evaluate", rows=10, teacher=0.6, text_only=0.4),
        ),
        speed=Speed(2.0, 1.5, "a processor", "dual-distill benchmark", 0.1),
    )
    write_run(folder, run)
    push_folder(folder, "me/student", metadata={"license": "apache-2.0"})
    card = hub.repos["me/student"].files()["README.md"].decode()
    checked = ModelCard(card).data
    assert checked.base_model == "me/teacher"
    [result] = checked.eval_results
    assert (result.metric_value, result.dataset_split, result.dataset_type) == (0.5, "test", "me/shop")

    # The model from the Hub, and in the same process the one from the folder.
    local = f"model = DualEncoderForQuestionAnswering.from_pretrained({str(folder)!r})\n"
    printed = run_fresh(quick_start(card) + COMPARE + local + COMPARE, cwd=tmp_path, **hub_environment)
    assert printed.splitlines()[0].split()[0] in ANSWERS
    loaded, from_folder = found_in(printed)
    assert loaded == from_folder  # bit for bit
    # The process that pushed, on the weights as it saved them: those it drew lie elsewhere in memory, and matrix
    # products may round differently with that.
    assert found_here(type(model).from_pretrained(folder).eval(), processor, capsys) == loaded
    digest, logits = found_here(model, processor, capsys)
    assert loaded[0] == digest
    assert numbers(loaded[1]) == pytest.approx(numbers(logits), abs=1e-5)

    push_folder(folder, "me/student-with-code", with_code=True)
    card = hub.repos["me/student-with-code"].files()["README.md"].decode()
    [without] = found_in(run_fresh(WITHOUT_PACKAGE + quick_start(card) + COMPARE, cwd=tmp_path, **hub_environment))
    assert without == loaded


def test_a_fusion_encoder_loads_without_the_package_from_the_code_beside_it(
    hub,
    hub_environment: dict[str, str],
    tmp_path: Path,
    make_model,
    save_model,
    capsys: pytest.CaptureFixture[str],
    run_fresh,
) -> None:
    model, folder = make_model("fusion"), tmp_path / "teacher"
    processor = save_model(model, folder)
    push_folder(folder, "me/teacher", with_code=True)
    assert "auto_map" not in json.loads((folder / "config.json").read_text())  # the folder stays as it was
    card = hub.repos["me/teacher"].files()["README.md"].decode()
    [found] = found_in(run_fresh(WITHOUT_PACKAGE + quick_start(card) + COMPARE, cwd=tmp_path, **hub_environment))
    digest, logits = found_here(model, processor, capsys)
    assert found[0] == digest
    assert numbers(found[1]) == pytest.approx(numbers(logits), abs=1e-5)


def test_a_model_pushes_itself_in_one_commit(hub, make_model) -> None:
    model = make_model("dual")
    address = push_pretrained(model, "me/itself", commit_message="From the model")
    repo = hub.repos["me/itself"]
    assert repo.titles == ["initial commit", "From the model"]
    assert address.endswith(repo.branches["main"])
    assert set(repo.files()) == {"README.md", "config.json", "model.safetensors"}
    push_pretrained(model, "me/itself", tags=["mine"])
    assert {"mine", "dual_distill"} <= set(ModelCard(repo.files()["README.md"].decode()).data.tags)
    with pytest.raises(TypeError, match="commit_description"):
        push_pretrained(model, "me/itself", commit_description="mine")


def test_a_name_with_a_revision_loads_that_commit(
    hub, tmp_path: Path, make_model, save_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = make_model("dual")
    save_model(model, tmp_path / "student")
    first = push_folder(tmp_path / "student", "me/student").commit
    with torch.no_grad():
        model.classifier[0].bias.add_(1)
    model.save_pretrained(tmp_path / "student")
    push_folder(tmp_path / "student", "me/student")
    now, then = (load_model(name).model.classifier[0].bias for name in ("me/student", f"me/student@{first}"))
    assert torch.equal(now, model.classifier[0].bias)
    torch.testing.assert_close(now - then, torch.ones_like(now))
    assert origin_of(f"me/student@{first}") == Origin("me/student", first, on_hub=True)
