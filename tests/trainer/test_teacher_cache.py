"""The teacher's outputs on disk: the same loss, asked once, and never another teacher's."""

import json

import pytest
import torch
from transformers import TrainerControl

from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
)
from dual_distill.objectives import DiDEObjective
from dual_distill.trainer.teacher_cache import ROW_KEYS, KeyedCollator, TeacherCache, TeacherCacheCallback, row_keys

TINY = {
    "vocab_size": 60,
    "max_position_embeddings": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
    "num_images": 2,
}
SETTINGS = {"teacher": "abc", "layers": [-1], "seed": 3}
OBJECTIVE = DiDEObjective(layer_map={0: 0, 1: 1})


@pytest.fixture
def pair():
    teacher = FusionEncoderForImagesAndTextClassification(FusionEncoderConfig(**TINY))
    student = DualEncoderForImagesAndTextClassification.from_fusion_encoder(teacher)
    for model in (teacher, student):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return teacher.eval(), student.eval()


@pytest.fixture
def batch():
    batch = {
        "input_ids": torch.randint(1, 60, (3, 7)),
        "attention_mask": (torch.arange(7)[None] < torch.tensor([[7], [3], [5]])).long(),
        "pixel_values": torch.randn(3, 2, 3, 12, 12),
        "pixel_mask": torch.ones(3, 2, 12, 12, dtype=torch.long),
        "labels": torch.tensor([0, 1, 2]),
    }
    batch["pixel_mask"][0, :, 8:] = batch["pixel_mask"][1, -1, :, 4:] = 0
    return batch


def asking(teacher, objective=OBJECTIVE):
    """The teacher as the trainer calls it, with a count of the rows that it was asked."""
    asked = []

    def ask(rows):
        assert "labels" not in rows
        asked.append(len(rows["input_ids"]))
        layers = objective.teacher_layers
        return teacher(**rows, output_query_states=layers or None, output_key_states=layers or None)

    return ask, asked


def losses(objective, student, teacher_outputs, batch):
    layers = objective.student_layers
    outputs = student(
        **{k: v for k, v in batch.items() if k != "labels"}, output_query_states=layers, output_key_states=layers
    )
    return objective(outputs, teacher_outputs, batch)


def widened(batch):
    """The same rows with more padding, full of noise, on every side."""
    text, pixels = torch.randint(1, 60, (3, 8)), torch.randn(3, 2, 3, 16, 16)
    wide = {"input_ids": text, "attention_mask": torch.zeros(3, 8, dtype=torch.long), "labels": batch["labels"]}
    wide |= {"pixel_values": pixels, "pixel_mask": torch.zeros(3, 2, 16, 16, dtype=torch.long)}
    for name in ("input_ids", "attention_mask"):
        wide[name][:, :7] = batch[name]
    wide["pixel_values"][..., :12, :12] = batch["pixel_values"]
    wide["pixel_mask"][..., :12, :12] = batch["pixel_mask"]
    return wide


def test_cached_outputs_give_the_same_loss_and_the_teacher_is_asked_once(tmp_path, pair, batch):
    teacher, student = pair
    ask, asked = asking(teacher)
    with torch.no_grad():
        expected = losses(OBJECTIVE, student, ask({k: v for k, v in batch.items() if k != "labels"}), batch)
        asked.clear()
        cache = TeacherCache(tmp_path / "cache", "attention", SETTINGS, patch_size=4)
        first = losses(OBJECTIVE, student, cache.outputs(batch, ask, OBJECTIVE), batch)
        cache.flush()
        again = TeacherCache(tmp_path / "cache", "attention", SETTINGS, patch_size=4)
        wide = widened(batch)
        later = losses(OBJECTIVE, student, again.outputs(wide, ask, OBJECTIVE), wide)
    assert asked == [3]
    assert len(again) == 6  # a text with each of its images
    assert expected["attention_loss"] > 0.05
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(later[name], first[name], atol=1e-5, rtol=0)


def test_only_rows_that_are_missing_are_computed(tmp_path, pair, batch):
    ask, asked = asking(pair[0])
    cache = TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4)
    cache.outputs({name: value[:1] for name, value in batch.items()}, ask, OBJECTIVE)
    found = cache.outputs(batch, ask, OBJECTIVE)
    assert asked == [1, 2]
    with torch.no_grad():
        expected = pair[0](**{name: value for name, value in batch.items() if name != "labels"}).logits
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=0)


def test_logits_alone(tmp_path, pair, batch):
    objective = DiDEObjective(attention_weight=0.0)
    ask, asked = asking(pair[0], objective)
    cache = TeacherCache(tmp_path, "logits", SETTINGS, patch_size=4, shard_bytes=1)
    first = cache.outputs(batch, ask, objective)
    later = TeacherCache(tmp_path, "logits", SETTINGS, patch_size=4).outputs(batch, ask, objective)
    assert asked == [3]
    assert torch.equal(first.logits, later.logits)
    assert later.cross_modal_scores == []
    with pytest.raises(ValueError, match="the objective compares attention, but the teacher cache keeps logits alone"):
        cache.outputs(batch, ask, OBJECTIVE)


def test_a_full_buffer_is_written_out_and_another_process_reads_it(tmp_path, pair, batch):
    ask, asked = asking(pair[0])
    one = TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4, shard_bytes=1)
    other = TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4, shard_bytes=1)
    one.outputs(batch, ask, OBJECTIVE)
    other.outputs({name: value.flip(0) for name, value in batch.items() if name != "labels"}, ask, OBJECTIVE)
    assert sum(asked) == 6  # neither knew of the other
    other.refresh()
    assert sorted(file.name for file in tmp_path.glob("shard*")) == ["shard-00000.arrow", "shard-00001.arrow"]
    third = TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4)
    third.outputs(batch, ask, OBJECTIVE)
    assert sum(asked) == 6


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end", "on_evaluate", "on_train_end"])
def test_the_callback_writes_what_waits_and_before_a_checkpoint_not_behind_it(tmp_path, pair, batch, event):
    cache = TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4)
    cache.outputs(batch, asking(pair[0])[0], OBJECTIVE)
    callback, control = TeacherCacheCallback(cache), TrainerControl()
    callback.on_step_end(None, None, control)
    assert not list(tmp_path.glob("shard-*"))
    control.should_save = True
    getattr(callback, event)(None, None, control)
    assert len(list(tmp_path.glob("shard-*"))) == 1


@pytest.mark.parametrize("change", ["word", "pixel", "size", "image"])
def test_another_content_is_another_key_and_padding_is_none(batch, change):
    keys = row_keys(batch)
    assert torch.equal(keys, row_keys(widened(batch)))
    other = {name: value.clone() for name, value in batch.items()}
    if change == "word":
        other["input_ids"][0, 0] += 1
    elif change == "pixel":
        other["pixel_values"][0, 1, 2, 7, 11] += 1e-3
    elif change == "size":
        other["pixel_mask"][0, 0, :, 8:] = 0
    else:
        other["pixel_values"][0] = other["pixel_values"][0].flip(0)
    assert (row_keys(other) != keys).any(1).tolist() == [True, False, False]


def test_the_collator_adds_the_keys(batch):
    collate = KeyedCollator(lambda rows: dict(batch))
    assert torch.equal(collate([])[ROW_KEYS], row_keys(batch))


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        ("attention", {**SETTINGS, "teacher": "xyz"}, r"other settings \(teacher: 'abc' there, 'xyz' now\)"),
        ("attention", {**SETTINGS, "seed": 4}, "seed: 3 there, 4 now"),
        ("attention", {"teacher": "abc", "layers": (-1,)}, "seed: 3 there, None now"),
        ("logits", SETTINGS, "kind: 'attention' there, 'logits' now"),
    ],
)
def test_other_settings_are_refused(tmp_path, kind, settings, message):
    TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4)
    with pytest.raises(ValueError, match=message):
        TeacherCache(tmp_path, kind, settings, patch_size=4)
    assert json.loads((tmp_path / "cache.json").read_text())["seed"] == 3


def test_what_is_no_cache_or_damaged_is_refused(tmp_path, pair, batch):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"is no teacher cache and is not empty \(notes\); give a new or empty folder"):
        TeacherCache(tmp_path, "logits", SETTINGS, patch_size=4)
    cache = TeacherCache(tmp_path / "new", "attention", SETTINGS, patch_size=4)
    cache.outputs(batch, asking(pair[0])[0], OBJECTIVE)
    cache.flush()
    [file] = (tmp_path / "new").glob("shard-*")
    deeper = DiDEObjective(layer_map={0: 0, 1: 1, -1: -1})
    with pytest.raises(ValueError, match=r"scores of 2 layers, the batch asks for .* of 3; give the cache of this"):
        cache.outputs(batch, asking(pair[0])[0], deeper)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"is missing or damaged .* remove it and repeat training .* makes it anew"):
        TeacherCache(tmp_path / "new", "attention", SETTINGS, patch_size=4)


def test_a_flipped_bit_among_the_scores_is_never_read_as_good(tmp_path, pair, batch):
    cache = TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4)
    cache.outputs(batch, asking(pair[0])[0], OBJECTIVE)
    cache.flush()
    [file] = tmp_path.glob("shard-*")
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1
    file.write_bytes(content)
    again = TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4)
    with pytest.raises(ValueError, match=r"shard-00000.arrow' is missing or damaged .*SHA-256"):
        again.outputs(batch, asking(pair[0])[0], OBJECTIVE)


def test_a_cache_of_the_format_before_is_refused(tmp_path):
    (tmp_path / "cache.json").write_text(json.dumps({"format": 1, "kind": "attention", **SETTINGS}))
    (tmp_path / "rows-000-000000.safetensors").write_bytes(b"rows of that format")
    with pytest.raises(
        ValueError, match=r"has format 1, but this version reads 2; repeat training with cache_teacher into another"
    ):
        TeacherCache(tmp_path, "attention", SETTINGS, patch_size=4)
