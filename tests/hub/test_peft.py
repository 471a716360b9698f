"""LoRA on the student through our trainer, its adapter pushed and loaded again; needs peft, which is no dependency."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import PreTrainedModel

from dual_distill.hub_cards import push_folder
from dual_distill.modeling import DualDistillProcessor, DualEncoderForQuestionAnswering
from dual_distill.teachers import load_model
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

peft = pytest.importorskip("peft", reason="peft is not installed")
ANSWERS = ["yes", "no", "red", "blue"]


def rows(processor: DualDistillProcessor) -> list[dict[str, torch.Tensor]]:
    """Eight rows of one image each, in eight greys."""
    batch = processor(
        text=["what is in the image?"] * 8, images=[Image.new("RGB", (16, 16), (30 * i,) * 3) for i in range(8)]
    )
    return [{**{name: batch[name][i] for name in batch}, "labels": torch.tensor(i % len(ANSWERS))} for i in range(8)]


def stack(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def logits_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits


@pytest.fixture
def base(
    hub, make_model, save_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[PreTrainedModel, DualDistillProcessor]:
    """A student that lies on the Hub and was loaded from there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    processor = save_model(make_model("dual"), tmp_path / "student")
    push_folder(tmp_path / "student", "me/student")
    # By our own loader: its models are called by the path of the cache.
    return load_model("me/student").model, processor


def test_lora_trains_through_our_trainer_and_its_adapter_goes_there_and_back(
    hub, base, make_model, tmp_path: Path, capsys
) -> None:
    student, processor = base
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    wrapped = peft.get_peft_model(
        student, peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    )
    trainer = DistillationTrainer(
        wrapped,
        DistillationTrainingArguments(
            output_dir=str(tmp_path / "out"),
            use_cpu=True,
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=0.05,
            head_learning_rate_factor=2.0,
            warmup_steps=0,
            save_steps=2,
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
            hub_model_id="me/adapter",
        ),
        teacher=make_model("fusion"),
        train_dataset=rows(processor),
        data_collator=stack,
        processing_class=processor,
    )
    trainer.train()
    # The adapter and the head learned, the head at its own rate; everything else is the base's, bit for bit.
    rates = {id(weight): group["initial_lr"] for group in trainer.optimizer.param_groups for weight in group["params"]}
    for name, weight in wrapped.named_parameters():
        assert weight.requires_grad == ("lora_" in name or "modules_to_save" in name), name
        if weight.requires_grad:
            assert rates.pop(id(weight)) == (0.1 if "classifier." in name else 0.05), name
    assert not rates
    for name, weight in wrapped.state_dict().items():
        original = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        if original in before:
            assert torch.equal(weight, before[original]), name
    assert all(weight.abs().max() > 0 for name, weight in wrapped.named_parameters() if "lora_B" in name)

    report = trainer.push_to_hub()
    sent = {"README.md", "run.json", "adapter_config.json", "adapter_model.safetensors"}
    processor_files = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    files = hub.repos["me/adapter"].files()
    assert set(files) == set(report.files) == sent | processor_files
    assert len(hub.repos["me/adapter"].titles) == 2  # the first, empty commit and ours
    card = files["README.md"].decode()
    commit = hub.repos["me/student"].branches["main"]
    metadata = ModelCard(card).data
    assert (metadata.base_model, metadata.base_model_relation) == ("me/student", "adapter")
    assert "More Information Needed" not in card
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert commit in card

    batch = stack(rows(processor))
    trained = logits_of(wrapped, batch)
    assert (trained - logits_of(make_model("dual"), batch)).abs().max() > 1e-3
    fresh = DualEncoderForQuestionAnswering.from_pretrained("me/student", revision=commit)
    assert torch.equal(logits_of(peft.PeftModel.from_pretrained(fresh, "me/adapter"), batch), trained)
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.splitlines()[0].split()[0] in ANSWERS

    # A checkpoint of the middle of the run is an adapter too, without the form that peft writes for a card.
    assert {file.name for file in (tmp_path / "out" / "checkpoint-2").iterdir()} >= sent - {"README.md"}
    assert not (tmp_path / "out" / "checkpoint-2" / "README.md").exists()
    with pytest.raises(ValueError, match="holds an adapter of peft, not a model"):
        load_model("me/adapter")
    with pytest.raises(OSError, match="holds a whole model, and an adapter cannot stand beside it"):
        push_folder(tmp_path / "out", "me/student")
    # Merged into its base it is a model like any other.
    whole = tmp_path / "whole"
    wrapped.merge_and_unload().save_pretrained(whole)
    processor.save_pretrained(whole)
    merged = load_model(whole).model
    torch.testing.assert_close(logits_of(merged, batch), trained, atol=1e-5, rtol=1e-4)


def test_lora_without_a_teacher_continues_from_a_checkpoint(base, make_model, tmp_path: Path) -> None:
    student, processor = base

    def train(model: PreTrainedModel, steps: int, folder: str, resume: bool = False) -> torch.nn.Module:
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"]))
        arguments = DistillationTrainingArguments(
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            max_steps=steps,
            lr_scheduler_type="constant",
            per_device_train_batch_size=4,
            warmup_steps=0,
            save_steps=2,
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        trainer = DistillationTrainer(wrapped, arguments, train_dataset=rows(processor), data_collator=stack)
        trainer.train(resume_from_checkpoint=resume or None)
        return wrapped

    in_one_go = train(student, 4, "in-one-go")
    train(make_model("dual"), 2, "in-two")
    continued = train(make_model("dual"), 4, "in-two", resume=True)
    for (name, weight), (_, other) in zip(in_one_go.named_parameters(), continued.named_parameters(), strict=True):
        torch.testing.assert_close(weight, other, msg=name)


def test_a_whole_model_does_not_go_where_an_adapter_lies(hub, base, tmp_path: Path) -> None:
    student, _ = base
    wrapped = peft.get_peft_model(student, peft.LoraConfig(r=1, target_modules=["query"]))
    wrapped.save_pretrained(tmp_path / "adapter")  # with the form that peft writes for a card
    assert "More Information Needed" in (tmp_path / "adapter" / "README.md").read_text()
    push_folder(tmp_path / "adapter", "me/adapter")
    assert b"More Information Needed" not in hub.repos["me/adapter"].files()["README.md"]
    with pytest.raises(OSError, match="holds an adapter, and a whole model cannot stand beside it"):
        push_folder(tmp_path / "student", "me/adapter")
