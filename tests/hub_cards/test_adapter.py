"""An adapter's folder: its base is named and pinned, its card says so, and what nobody could load is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from dual_distill.hub_cards import push_folder, write_card
from dual_distill.hub_cards.checkpoint_folder import collect

COMMIT = "b" * 40


def test_an_adapter_s_card_names_its_base_and_how_both_are_loaded(make_adapter: Callable[..., Path]) -> None:
    folder = make_adapter()
    card = write_card(folder, repo_id="me/adapter", metadata={"license": "mit"}).read_text()
    commit = "a" * 40
    for words in (
        "A LORA adapter of [me/student](https://huggingface.co/me/student), commit",
        f"`{commit}`: with it, that dual encoder answers questions about images",
        "It holds 4 parameters, of rank 2, on the layers named `query`, `value`; everything else is the base's.",
        f'{{"pretrained_model_name_or_path": "me/student", "revision": "{commit}"}}',
        'PeftModel.from_pretrained(base, "me/adapter").eval()',
        "DualDistillProcessor.from_pretrained(**pinned)",  # none lies beside the adapter
    ):
        assert words in card
    compile(card.split("```python\n")[1].split("```")[0], "quick start", "exec")
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("me/student", "adapter", "peft")
    assert {"lora", "dual-encoder"} <= set(data.tags)
    for absent in ("None", "Undefined", "\n\n\n", "More Information Needed"):
        assert absent not in card


def test_the_base_s_commit_is_found_in_the_cache_of_the_hub(
    make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = make_adapter(revision=None)
    with pytest.raises(ValueError, match="'me/student' is no folder and was not loaded from the Hub on this machine"):
        collect(folder)
    snapshot = tmp_path / "models--me--student" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--student" / "refs").mkdir()
    (tmp_path / "models--me--student" / "refs" / "main").write_text(COMMIT)
    for base in ("me/student", str(snapshot)):  # the second as a model is called that our own loader read
        make_adapter(revision=None, base_model_name_or_path=base)
        published = collect(folder)
        assert published.adapter is not None
        assert published.adapter["base_model_name_or_path"] == "me/student"
        sent = json.loads(published.files["adapter_config.json"])
        assert (sent["base_model_name_or_path"], sent["revision"]) == ("me/student", COMMIT)
    assert json.loads((folder / "adapter_config.json").read_text())["revision"] is None  # the folder stays as it was


def test_adapters_that_nobody_else_could_load_are_refused(make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    for fields, message in (
        (
            {"base_model_name_or_path": str(tmp_path)},
            "has a base model that is no repository of the Hub, and nobody else",
        ),
        (
            {"base_model_name_or_path": None},
            "names no base model, and nobody else could load the adapter; push the base first",
        ),
        ({"auto_mapping": None, "task_type": "FEATURE_EXTRACTION"}, "does not say which class its base is"),
    ):
        with pytest.raises(ValueError, match=message):
            collect(make_adapter(**fields))
    folder = make_adapter()
    with pytest.raises(ValueError, match="an adapter brings no code"):
        push_folder(folder, "me/adapter", with_code=True, dry_run=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has config\.json and adapter_config\.json, a model and an adapter"):
        collect(folder)
    (folder / "config.json").unlink()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin .* is a pickle"):
        collect(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        collect(folder)


def test_the_empty_form_that_peft_leaves_for_a_card_is_nobody_s_text(make_adapter: Callable[..., Path]) -> None:
    folder, form = make_adapter(), ModelCard.from_template(ModelCardData())
    form.data.library_name, form.data.base_model = "peft", "/runs/student"
    form.text += "\n### Framework versions\n\n- PEFT 0.21.2"
    form.save(folder / "README.md")
    assert "More Information Needed" in (folder / "README.md").read_text()
    assert "More Information Needed" not in write_card(folder).read_text()
    form.text = form.text.replace("## Model Details", "## What it is")  # somebody began to write
    form.save(folder / "README.md")
    assert "## What it is" in write_card(folder).read_text()


def test_a_base_whose_name_is_none_of_the_hub_is_refused_with_a_commit_too(make_adapter: Callable[..., Path]) -> None:
    """The card's example is code, and holds it."""
    folder = make_adapter(base_model_name_or_path='x/y"}; __import__("os").system("id"); pinned = {"a": "x')
    with pytest.raises(ValueError, match="is no folder and was not loaded from the Hub on this machine"):
        collect(folder)
