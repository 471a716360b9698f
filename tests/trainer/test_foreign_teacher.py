"""Teachers of every family beside a student of another tokenizer and another grid: aligned, trained, stored."""

import io
import itertools
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import Image
from transformers import ViTImageProcessorPil
from worlds.tiny_teachers import TEACHERS, save_teacher, tiny_teacher

from dual_distill import DualDistillProcessor, DualEncoderConfig, DualEncoderForQuestionAnswering, FusionEncoderConfig
from dual_distill.cli import main
from dual_distill.data import DistillationCollator, Task, train_tokenizer
from dual_distill.modeling import dual_config_from_fusion
from dual_distill.objectives import DiDEObjective
from dual_distill.runs import DataArguments, ModelArguments, distill, make_run
from dual_distill.teachers import ForeignTeacher, family_of, load_teacher, student_tokens
from dual_distill.trainer import (
    DistillationTrainer,
    DistillationTrainingArguments,
    StoredTeacher,
    TeachRows,
    view_settings,
    write_views,
)
from dual_distill.trainer.stored_teacher import TeacherCollator
from dual_distill.trainer.teacher_cache import RowCache

TASK = Task("custom", "question_answering", ("image",), "question", "answer")
TEXTS = ["two dogs on a red sofa", "what is it?", "yes, a black ball", "a cat and dogs"]
ANSWERS = ["yes", "no", "red"]
REGIONS = ("lxmert", "visual_bert")


def make_rows(count=8):
    rng = np.random.default_rng(0)
    sizes = [(48 + 8 * (index % 3), 64) for index in range(count)]
    images = [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
    texts, answers = (TEXTS * count)[:count], (["yes", "no", "red", "no"] * count)[:count]
    return Dataset.from_dict({"image": images, "question": texts, "answer": answers})


@pytest.fixture(scope="module")
def processor():
    """Pieces of a few letters and a grid of 3 x 3; every teacher has other ones."""
    return DualDistillProcessor(ViTImageProcessorPil(size={"height": 30, "width": 30}), train_tokenizer(TEXTS, 60, 24))


@pytest.fixture
def student(processor):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: at for at, name in enumerate(ANSWERS)}}
    pixels = {"image_size": 30, "patch_size": 10, "max_position_embeddings": 32}
    config = FusionEncoderConfig(vocab_size=len(processor.tokenizer), **shape, **labels, **pixels)
    return DualEncoderForQuestionAnswering(dual_config_from_fusion(config))


def regions(count):
    corners = torch.rand(count, 5, 2, generator=torch.Generator().manual_seed(0)) / 2
    return [{"features": torch.ones(5, 24), "boxes": torch.cat([each, each + 0.5], dim=-1)} for each in corners]


# One or two of each family always; the rest of the table is slow in sum.
FIRST = ("smolvlm", "qwen3_vl", "modernvbert", "blip", "blip2", "fusion")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in TEACHERS])
def test_every_family_teaches_a_student_of_other_tokens(name, processor, student):
    model, own = tiny_teacher(name)
    rows = make_rows(4)
    collator = DistillationCollator(processor, TASK, ANSWERS)
    collator.gives_spans = True
    batch = collator(list(rows))
    images = regions(4) if name in REGIONS else rows["image"]
    read = family_of(model.config).inputs(model.config, own, images, rows["question"])

    objective, optimizer = DiDEObjective(soft_label_weight=0), torch.optim.SGD(student.parameters(), lr=0.01)
    seen = {key: tensor for key, tensor in batch.items() if not key.startswith("student_")}
    losses = []
    for _ in range(2):
        outputs = student.eval()(**seen, output_query_states=[-1], output_key_states=[-1])
        tokens = student_tokens(batch, 10, outputs.image_mask)
        shown = ForeignTeacher(model, own)(**tokens, output_query_states=[-1], **read)
        loss = objective(outputs, shown, batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0 < losses[1] < losses[0]

    # Text to image is there in every family, over all of the student's words and every patch.
    to_image, _ = shown.cross_modal_scores[0]
    torch.testing.assert_close(
        to_image.query_mask.sum(1), (batch["student_text_spans"][..., 1] > 0).sum(1), atol=0, rtol=0
    )
    probs = to_image.scores((slice(None),) * 3).exp()
    real = to_image.query_mask[:, None, :, None].expand(probs.shape)
    assert probs[real].view(-1, 10)[:, 1:].sum(1).min() > 0


def arguments(folder, **fields):
    told = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 0}
    told |= {"logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return DistillationTrainingArguments(output_dir=str(folder), **(told | fields))


def train(student, processor, teacher, folder, **fields):
    told = {"train_dataset": make_rows(), "processing_class": processor, "teacher": str(teacher)}
    trainer = DistillationTrainer(student, arguments(folder, **fields), **told)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    return save_teacher("smolvlm", tmp_path_factory.mktemp("smolvlm"))


def test_a_trainer_takes_any_teacher_by_name_and_keeps_what_it_says(student, processor, smolvlm, tmp_path, caplog):
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trainer, losses = train(student, processor, smolvlm, tmp_path / "a")
    assert isinstance(trainer.teacher, ForeignTeacher)
    assert losses[-1] < losses[0]
    assert caplog.text.count("shows one direction of attention alone; the other term is left out") == 1
    assert trainer.evaluate(make_rows(4))["eval_loss"] > 0
    assert trainer.run_record().teacher.name == smolvlm.name

    # With a cache the run is the same, and a later one needs no teacher.
    for teacher, fields in ((smolvlm, {"cache_teacher": "attention"}), (tmp_path / "b" / "teacher_cache", {})):
        student.load_state_dict(start)
        trainer, found = train(student, processor, teacher, tmp_path / "b", **fields)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), atol=2e-3, rtol=0)
    assert trainer.teacher.teacher is None
    assert len(trainer.teacher.store) == 8


def test_teach_writes_what_training_reads_and_goes_on_where_it_stopped(
    student, processor, smolvlm, tmp_path, capsys, monkeypatch
):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    lines = []
    for index, row in enumerate(make_rows()):
        row["image"].save(data / "images" / f"{index}.png")
        lines.append(json.dumps({"image": f"images/{index}.png", "question": row["question"], "answer": row["answer"]}))
    (data / "train.jsonl").write_text("\n".join(lines))
    (data / "validation.jsonl").write_text("\n".join(lines[:2]))
    store = tmp_path / "views"
    words = ["teach", str(smolvlm), "--task", "custom", "--data", str(data), "--output-dir", str(store), "--json"]

    # Two processes write half each; what is there is not written again.
    for rank, written in (("0", 4), ("1", 4)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["written"] == written
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0
    assert main([*words, "--layers", "0"]) == 2
    assert "was begun with other settings (layers: [1] there, [0] now)" in capsys.readouterr().err
    assert main([*words, "--no-answers", "--min-answer-count", "2"]) == 2
    assert "--min-answer-count is given, but with --no-answers none is asked about" in capsys.readouterr().err

    folder = tmp_path / "student"
    student.save_pretrained(folder)
    processor.save_pretrained(folder)
    model = ModelArguments(teacher=str(store), init_from=str(folder), architecture="dual_encoder")
    trainer = make_run(model, DataArguments(task="custom", data=str(data)), arguments(tmp_path / "run"))
    assert isinstance(trainer.teacher, StoredTeacher)
    assert trainer.teacher.answers == ANSWERS
    trainer.train()
    assert trainer.evaluate()["eval_attention_loss"] > 0

    student, _, metrics = distill(
        smolvlm, make_rows(), tmp_path / "distilled", student=folder, max_steps=1, use_cpu=True
    )
    assert metrics["train_loss"] > 0
    with pytest.raises(ValueError, match=r"has tokens of its own, from which no student starts; give student="):
        distill(smolvlm, make_rows(), tmp_path / "none", use_cpu=True)

    # Before the first step, not where they are evaluated behind the last.
    unseen = make_rows().map(lambda row: {"question": f"{row['question']} well"})
    with pytest.raises(ValueError, match="lacks 2 of the 2 rows of validation that were looked up; write these texts"):
        distill(store, {"train": make_rows(), "validation": unseen}, tmp_path / "late", student=folder, use_cpu=True)
    assert not list((tmp_path / "late").glob("*.safetensors"))


def test_a_store_keeps_the_largest_scores_of_each_query_where_asked(tmp_path):
    model, own = tiny_teacher("modernvbert")
    teacher, rows, views = ForeignTeacher(model, own), make_rows(4), {}
    for top_k in (None, 3, 999):
        settings = view_settings(teacher, [0, -1], None, top_k=top_k)
        store = StoredTeacher(tmp_path / str(top_k), teacher, settings)
        write_views(store, rows, TASK, batch_size=2)
        stored = StoredTeacher(tmp_path / str(top_k))
        keys = TeacherCollator(DistillationCollator(None, TASK, ()), stored).of_teacher(list(rows))
        views[top_k] = stored.view({"row_keys": keys["teacher_row_keys"]}, [0, -1])

    for layer, direction in itertools.product((0, 1), ("text_to_image", "image_to_text")):
        full, few, every = (views[top_k].attention_probs(layer, direction) for top_k in (None, 3, 999))
        torch.testing.assert_close(every, full, atol=0, rtol=0)
        # Of the largest the shares that they have of each other, of the others nothing.
        chosen = full.topk(3).indices
        expected = torch.zeros_like(full).scatter(-1, chosen, full.gather(-1, chosen))
        torch.testing.assert_close(few, expected / expected.sum(-1, keepdim=True).clamp(min=1e-9), atol=1e-6, rtol=0)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).rglob("*")) for name in ("3", "None")]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda own: setattr(own.image_processor, "size", {"longest_edge": 32}),
            r"processor.image_processor.size.longest_edge: 64 there, 32 now",
        ),
        (lambda own: setattr(own, "image_seq_len", 2), r"processor.image_seq_len: 4 there, 2 now"),
        (lambda own: setattr(own, "chat_template", own.chat_template + "\n"), r"processor.chat_template: "),
        (lambda own: own.tokenizer.add_tokens(["sofa"]), r"processor.tokenizer: "),
        (lambda own: setattr(own.tokenizer, "model_max_length", 9), r"processor.tokenizer: "),
        (lambda own: setattr(own.tokenizer, "truncation_side", "left"), r"processor.tokenizer: "),
    ],
    ids=["size", "number of tokens", "chat template", "vocabulary", "longest text", "end that is cut"],
)
def test_a_store_is_held_to_what_its_teacher_reads_by(change, named, tmp_path):
    teacher = ForeignTeacher(*tiny_teacher("smolvlm"), "SmolVLM")
    StoredTeacher(tmp_path, teacher, view_settings(teacher, [-1], ANSWERS))
    teacher.inputs(make_rows(2)["image"], TEXTS[:2])
    StoredTeacher(tmp_path, teacher, view_settings(teacher, [-1], ANSWERS))  # what was read since changes nothing
    change(teacher.processor)
    with pytest.raises(ValueError, match=r"was begun with other settings \(" + named):
        StoredTeacher(tmp_path, teacher, view_settings(teacher, [-1], ANSWERS))


def test_a_store_is_held_to_what_its_teacher_is_asked(tmp_path):
    teacher = ForeignTeacher(*tiny_teacher("smolvlm"), "SmolVLM")
    StoredTeacher(tmp_path, teacher, view_settings(teacher, [-1], None))
    teacher.ask_for_matches()
    with pytest.raises(ValueError, match=r"other settings \(asked.instruction: None there, '<Instruct>"):
        StoredTeacher(tmp_path, teacher, view_settings(teacher, [-1], None))


def test_a_store_that_does_not_say_how_its_teacher_read_is_read_and_not_continued(tmp_path):
    teacher = ForeignTeacher(*tiny_teacher("modernvbert"), "ModernVBERT")
    settings = view_settings(teacher, [-1], None)
    RowCache(tmp_path, {name: value for name, value in settings.items() if name not in ("processor", "asked")})
    assert StoredTeacher(tmp_path).name == "ModernVBERT"
    with pytest.raises(
        ValueError, match=r"by a former version, which did not note asked, processor; give another folder"
    ):
        StoredTeacher(tmp_path, teacher, settings)


@pytest.mark.parametrize("kind", ["CLIP", "ConvNext"])
def test_the_patches_of_a_student_that_crops_are_where_its_pixels_are(kind, processor, png):
    """Two wide images of which the middle is seen, and then one again, from the cache; and ours as a teacher."""
    edge = {"size": {"shortest_edge": 16}}
    crop = {"crop_size": {"height": 16, "width": 16}} if kind == "CLIP" else {"crop_pct": 0.5}
    image_processor = getattr(transformers, f"{kind}ImageProcessorPil")(**edge, **crop)
    crops = DualDistillProcessor(image_processor, processor.tokenizer)
    collator = DistillationCollator(crops, TASK, ANSWERS)
    collator.gives_spans = True
    sizes = (64, 32), (64, 64), (64, 32)
    rows = [{"image": png((9, 9, 9), size), "question": "what is it?", "answer": "yes"} for size in sizes]
    batch = collator(rows)
    found = student_tokens(batch, 8, torch.ones(3, 1, 5).bool())["student_image"].covered

    width, height = ([0.5, 1.0, 0.5], [1.0] * 3) if kind == "CLIP" else ([0.25, 0.5, 0.25], [0.5] * 3)
    for row in range(3):
        x0, y0, x1, y1 = (0.5 + side * half[row] / 2 for side in (-1, 1) for half in (width, height))
        corners = [[x0, y0, 0.5, 0.5], [0.5, y0, x1, 0.5], [x0, 0.5, 0.5, y1], [0.5, 0.5, x1, y1]]
        torch.testing.assert_close(found[row], torch.tensor([[0.0, 0.0, 1.0, 1.0], *corners]))

    images = [Image.new("RGB", size) for size in sizes]
    config = FusionEncoderConfig(vocab_size=60, image_size=16, patch_size=8)
    read = family_of(config).inputs(config, crops, images, ["what is it?"] * 3)
    torch.testing.assert_close(read["image_boxes"], found)
    collator.augmentation = lambda image, key: image.crop((0, 0, 32, 32))
    square = collator([{**rows[0], "__epoch__": 0, "__index__": 0}])
    torch.testing.assert_close(square["student_image_boxes"], batch["student_image_boxes"][1:2])


class HeldRows:
    """Rows that count how many of their images are held at most."""

    def __init__(self, rows):
        self.rows, self.images, self.most = rows, [], 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        self.images.append(weakref.ref(row["image"]))
        self.most = max(self.most, sum(image() is not None for image in self.images))
        return row


def test_a_store_is_written_with_the_images_of_a_batch_in_memory(tmp_path):
    model, own = tiny_teacher("modernvbert")
    teacher = ForeignTeacher(model, own)
    for count in (4, 12):
        rows = HeldRows(make_rows(count))
        store = StoredTeacher(tmp_path / str(count), teacher, view_settings(teacher, [-1], None))
        assert write_views(store, rows, TASK, batch_size=1) == count
        assert rows.most <= 3
        assert write_views(store, rows, TASK, batch_size=1) == 0


def test_a_teacher_reads_all_of_a_jpeg_whatever_its_student_is_shown(processor):
    buffer = io.BytesIO()
    Image.effect_noise((400, 300), 80).convert("RGB").save(buffer, "JPEG")
    model, own = tiny_teacher("fusion")
    row, found = {"image": {"bytes": buffer.getvalue(), "path": None}, "question": "what is it?", "answer": "yes"}, []
    for margin in (None, 1):
        shown = DualDistillProcessor(processor.image_processor, processor.tokenizer, jpeg_margin=margin)
        found.append(TeacherCollator(DistillationCollator(shown, TASK, ANSWERS), ForeignTeacher(model, own))([row]))
    assert not torch.equal(found[0]["pixel_values"], found[1]["pixel_values"])
    assert torch.equal(found[0]["teacher_pixel_values"], found[1]["teacher_pixel_values"])


def test_rows_that_workers_ask_about_are_joined_into_the_store_of_one_process(smolvlm, tmp_path):
    rows, teach = make_rows(5), TeachRows(str(smolvlm), TASK, (-1,), ANSWERS, top_k=4, batch_size=2)
    told = rows.map(teach, batched=True, batch_size=3, num_proc=2)
    (tmp_path / "parts").mkdir()
    told.to_parquet(tmp_path / "parts" / "0.parquet")
    for _ in range(2):
        assert teach.write_store(tmp_path / "parts", tmp_path / "joined") == 5

    teacher = ForeignTeacher(*load_teacher(str(smolvlm)), str(smolvlm))
    alone = StoredTeacher(tmp_path / "alone", teacher, view_settings(teacher, [-1], ANSWERS, top_k=4))
    write_views(alone, rows, TASK, batch_size=1)
    found, expected = StoredTeacher(tmp_path / "joined").store, alone.store
    assert found.settings == expected.settings
    for key in told["key"]:
        one, other = found.row(key), expected.row(key)
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name].float(), other[name].float(), atol=2e-3, rtol=1e-3, msg=name)

    # Of other answers, layers or scores the rows look alike; a store that is begun takes none of them.
    unlike = {"answers": ANSWERS[::-1]}, {"layers": (0,)}, {"top_k": 3}
    for number, changed in enumerate(unlike):
        store = tmp_path / str(number)
        with pytest.raises(ValueError, match="rows were made with another model or other settings, or have no column"):
            replace(teach, **changed).write_store(tmp_path / "parts", store)
        assert not store.exists()
    with pytest.raises(ValueError, match="have no column 'made_with'; make them again"):
        teach.write_store(told.remove_columns("made_with"), tmp_path / "none")
    # What is the same by another name is the same.
    assert replace(teach, layers=[1], batch_size=1).write_store(told, tmp_path / "joined") == 5


def test_rows_are_told_anew_once_the_teachers_folder_holds_another(smolvlm, tmp_path):
    shutil.copytree(smolvlm, tmp_path / "teacher")
    known = set()
    for name in (None, "model.safetensors", "processor_config.json"):
        if name is not None:
            file = tmp_path / "teacher" / name
            file.write_bytes(file.read_bytes() + b" ")
        known |= {Hasher.hash(TeachRows(str(tmp_path / "teacher"), TASK, answers=ANSWERS)) for _ in range(2)}
    assert len(known) == 3


def test_where_several_answers_may_be_right_each_is_learned_as_its_share(student, processor, tmp_path):
    student.config.problem_type = "multi_label_classification"
    rows, (model, own) = make_rows(4), tiny_teacher("smolvlm")
    rows = rows.add_column("answers", [[answer] for answer in rows["answer"]])
    collator = DistillationCollator(processor, replace(TASK, answers_column="answers"), ANSWERS)
    teacher = ForeignTeacher(model, own, "SmolVLM")
    told = {"train_dataset": rows, "data_collator": collator}
    trainer = DistillationTrainer(student, arguments(tmp_path, attention_weight=0), teacher=teacher, **told)
    batch = trainer.data_collator(list(rows))
    with torch.no_grad():
        trainer.compute_loss(student.eval(), batch)
        found = trainer._take_terms()["soft_label_loss"]
        logits = student(**{name: it for name, it in batch.items() if name[:8] not in ("teacher_", "student_")}).logits

    # A model that writes says one answer: its softmax over them is the soft label.
    family = family_of(model.config)
    read = family.inputs(model.config, own, rows["image"], rows["question"])
    share = family.view(model, own, read, [], answers=ANSWERS).logits.softmax(-1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, share, reduction="sum") / 4
    assert found == pytest.approx(expected.item(), rel=1e-4)

    # A cache says the same, and so does a store.
    told["data_collator"] = DistillationCollator(processor, replace(TASK, answers_column="answers"), ANSWERS)
    kept = arguments(tmp_path / "run", attention_weight=0, cache_teacher="attention")
    trainer = DistillationTrainer(student, kept, teacher=teacher, **told)
    trainer.compute_loss(student.eval(), trainer.data_collator(list(rows)))
    assert trainer._take_terms()["soft_label_loss"] == pytest.approx(expected.item(), rel=1e-4)
    told["data_collator"] = collator
    store = StoredTeacher(tmp_path / "views", teacher, view_settings(teacher, [-1], ANSWERS))
    write_views(store, rows, collator.task)
    trainer = DistillationTrainer(
        student, arguments(tmp_path, attention_weight=0), teacher=StoredTeacher(tmp_path / "views"), **told
    )
    trainer.compute_loss(student.eval(), trainer.data_collator(list(rows)))
    assert trainer._take_terms()["soft_label_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_dual_encoder_with_interaction_layers_teaches_what_they_look_at(student, processor, tmp_path):
    """A convolution beside a BERT: the layers behind the towers are those in which words look at cells."""
    words = {**{name: getattr(student.config.text_config, name) for name in ("hidden_size", "vocab_size")}}
    words |= {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    cells = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    cells |= {"layer_type": "basic"}
    torch.manual_seed(1)
    labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: at for at, name in enumerate(ANSWERS)}}
    config = DualEncoderConfig(text_config=words, vision_config=cells, interaction_layers=2, **labels)
    own = DualDistillProcessor(ViTImageProcessorPil(size={"height": 32, "width": 48}), processor.tokenizer)
    teacher = ForeignTeacher(DualEncoderForQuestionAnswering(config).eval(), own)
    assert teacher.num_layers == 2

    store, rows = StoredTeacher(tmp_path / "views", teacher, view_settings(teacher, [-1], ANSWERS)), make_rows(4)
    write_views(store, rows, TASK)
    read = teacher.inputs(rows["image"], rows["question"])
    assert read["image_boxes"].shape == (4, 1 + 4 * 6, 4)
    view = teacher.view(read, [-1])
    assert view.image_boxes.shape == (4, 4 * 6, 4)
    words_and_pixels = {name: read[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    teacher.model.set_attn_implementation({"": "eager"})
    eager = teacher.model(**words_and_pixels, output_attentions=True).interaction_model_output.attentions[-1]
    found = view.attention_probs(0, "text_to_image")
    expected = eager[..., :24] / eager[..., :24].sum(-1, keepdim=True)
    real = read["attention_mask"].bool()[:, None, :, None].expand(found.shape)
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)

    told = {"train_dataset": rows, "processing_class": processor, "teacher": str(tmp_path / "views")}
    trainer = DistillationTrainer(student, arguments(tmp_path / "run", max_steps=8), **told)
    trainer.train()
    losses = [entry["attention_loss"] for entry in trainer.state.log_history if "attention_loss" in entry]
    assert losses[-1] < losses[0]


def test_refusals(student, processor, smolvlm, tmp_path):
    train(student, processor, smolvlm, tmp_path, cache_teacher="attention", max_steps=1)
    store = tmp_path / "teacher_cache"
    with pytest.raises(ValueError, match=r"lacks 4 of the 4 rows of a batch; .* set augmentation to none"):
        train(student, processor, store, tmp_path / "a")
    with pytest.raises(ValueError, match="is read from a store, and count_padded_queries counts what its attention"):
        train(student, processor, store, tmp_path / "a", count_padded_queries=True)
    with pytest.raises(ValueError, match=r"holds the attention of layers \[1\], and the run compares \[0\]"):
        train(student, processor, store, tmp_path / "b", layer_map={-1: 0}, max_steps=1)
    with pytest.raises(ValueError, match=r"has other tokens than the student, and layer_map names layer 7 of 2"):
        train(student, processor, smolvlm, tmp_path / "c", layer_map={-1: 7})
    with pytest.raises(ValueError, match="other tokens than the student, and count_padded_queries counts what its"):
        train(student, processor, smolvlm, tmp_path / "c", count_padded_queries=True)
    with pytest.raises(ValueError, match="and a DistillVLMObjective compares more than attention and answers"):
        train(student, processor, smolvlm, tmp_path / "d", method="distillvlm")
    told = {"train_dataset": make_rows(), "data_collator": lambda rows: {}, "teacher": str(smolvlm)}
    with pytest.raises(ValueError, match="a teacher with tokens of its own reads rows through a collator of dual_dist"):
        DistillationTrainer(student, arguments(tmp_path / "e"), **told)

    # Two images a row, in training and in teach.
    two = replace(TASK, image_columns=("image_0", "image_1"))
    foreign = ForeignTeacher(*tiny_teacher("smolvlm"), "SmolVLM")
    with pytest.raises(ValueError, match=r"SmolVLM reads one image a row, but task 'custom' has 2 \(image_0"):
        TeacherCollator(DistillationCollator(processor, two, ANSWERS), foreign)
    student.config.num_images = 2
    columns = {name: list(make_rows()[name]) for name in ("image", "question", "answer")}
    images = columns.pop("image")
    paired = Dataset.from_dict({**columns, "image_0": images, "image_1": images})
    told = {"train_dataset": paired, "processing_class": processor}
    with pytest.raises(ValueError, match="several images a row, or regions; take a teacher that reads its tokens"):
        DistillationTrainer(student, arguments(tmp_path / "f"), teacher=str(smolvlm), **told)
