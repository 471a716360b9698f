"""Learning captions: masked words with and without a teacher, what is written, its score, and its reward."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import BertTokenizer, ViltImageProcessorPil

from dual_distill.data import (
    CaptioningCollator,
    CaptionMasker,
    IndexedDataset,
    RegionSet,
    decode_image,
    fingerprint,
    get_task,
)
from dual_distill.evaluation import report_captions
from dual_distill.modeling import DualDistillProcessor, FusionEncoderConfig, FusionEncoderForCaptioning
from dual_distill.regions import RegionManifest, RegionStore, StoredImage, fill_store
from dual_distill.trainer import DistillationTrainingArguments, captions_by_image, captions_of_images, describe_images
from dual_distill.trainer.captioning_trainer import CaptioningTrainer, SelfCriticalTrainer, caption_log_probs
from dual_distill.trainer.evaluation import caption_texts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "dot", "is", "here"]
COLOURS = {"red": (220, 0, 0), "green": (0, 220, 0), "blue": (0, 0, 220)}
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def processor():
    images = ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4)
    return DualDistillProcessor(images, BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}))


@pytest.fixture(scope="module")
def data():
    """Three images of one colour, four captions each."""
    rows = []
    for number, (colour, rgb) in enumerate(COLOURS.items()):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), rgb).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        rows += [{"image": image, "caption": f"a {colour} dot is here", "image_id": number} for _ in range(4)]
    return Dataset.from_list(rows)


def make_model(processor, hidden_size=16, seed=1, **fields):
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 24,
        "max_caption_tokens": 12,
        "hidden_size": hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "image_size": 8,
        "patch_size": 4,
        "initializer_range": 0.1,
    }
    model = FusionEncoderForCaptioning(FusionEncoderConfig(**shape | fields))
    model.use_tokens_of(processor.tokenizer)
    return model


def make_collator(processor):
    return CaptioningCollator(
        processor, get_task("coco_captioning"), CaptionMasker(processor.tokenizer), max_text_length=12
    )


def make_arguments(folder, **fields):
    defaults = {
        "use_cpu": True,
        "per_device_train_batch_size": 12,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    return DistillationTrainingArguments(output_dir=str(folder), **{**defaults, **fields})


def make_trainer(folder, processor, data, model, teacher=None, **fields):
    arguments = make_arguments(folder, **fields)
    return CaptioningTrainer(
        model,
        arguments,
        teacher=teacher,
        data_collator=make_collator(processor),
        train_dataset=IndexedDataset(data),
        eval_dataset=data,
        processing_class=processor,
    )


@pytest.fixture(scope="module")
def taught(processor, data, tmp_path_factory):
    """A model that has learned the captions."""
    folder = tmp_path_factory.mktemp("taught")
    trainer = make_trainer(folder, processor, data, make_model(processor), num_train_epochs=150, learning_rate=1e-2)
    trainer.train()
    return trainer


def test_masked_words_teach_it_to_write(taught, processor, data):
    assert taught.evaluate()["eval_loss"] < 0.1
    written = describe_images(taught.model, data, make_collator(processor), batch_size=2)
    assert written == {number: f"a {colour} dot is here" for number, colour in enumerate(COLOURS)}
    assert describe_images(taught.model, data, make_collator(processor), num_beams=3) == written


def test_what_is_described_is_the_image_in_memory(processor, tmp_path, monkeypatch):
    """And not the file that it was opened from, nor its pixels through another JPEG."""
    Image.effect_noise((8, 8), 80).convert("RGB").save(tmp_path / "a.jpg")
    opened = Image.open(tmp_path / "a.jpg")
    opened.paste((220, 0, 0), (0, 0, 8, 4))
    images = [decode_image(tmp_path / "a.jpg", 0), opened]
    seen, model = [], make_model(processor)

    def generate(pixel_values, **_):
        seen.append(pixel_values)
        return torch.full((len(pixel_values), 2), SEP)

    monkeypatch.setattr(model, "generate", generate)
    assert captions_of_images(model, processor, images, batch_size=1) == ["", ""]
    expected = [processor.prepare_image(Image.fromarray(np.asarray(image))) for image in images]
    assert torch.equal(torch.cat(seen)[:, 0], torch.stack(expected))
    assert captions_of_images(model, processor, []) == []


def test_a_decoded_jpeg_is_found_in_a_region_store(processor, tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 80).convert("RGB").save(buffer, "JPEG", quality=95)
    image = decode_image(buffer.getvalue(), 0)
    regions = RegionSet(torch.ones(1, 4), torch.tensor([[0.0, 0, 8, 8]]), torch.ones(1), ["dot"], 8, 8)
    kept = StoredImage("a", fingerprint(buffer.getvalue()), fingerprint(image), regions)
    manifest = RegionManifest("by hand", "by hand", 4, "float32", 8, {})
    fill_store(tmp_path, manifest, ["a"], lambda ids: iter([kept]))

    ids = {"region_boxes_id": "by hand", "region_features_id": "by hand"}
    model = make_model(processor, visual_inputs="regions", region_feature_size=4, **ids)
    assert len(captions_of_images(model, processor, [image], reading={"regions": RegionStore(tmp_path)})) == 1


def test_what_was_written_is_scored_against_all_captions_of_the_image(data):
    pytest.importorskip("pycocoevalcap", reason='needs pip install "dual-distill[captions]"')
    references = captions_by_image(data, get_task("coco_captioning"))
    right = {number: f"a {colour} dot is here" for number, colour in enumerate(COLOURS)}
    report = report_captions(right, references)
    assert (report.images, report.captions, report.mean_words) == (3, 12, 5.0)
    assert report.cider == pytest.approx(10.0)
    assert report.bleu_4 == pytest.approx(1.0, abs=1e-6)
    assert report_captions(right | {0: "a blue dot"}, references).cider < 8
    with pytest.raises(ValueError, match=r"1 of 1 described images have no references \(the first is 5\)"):
        report_captions({5: "a dot"}, references)


def test_a_student_learns_from_a_teacher_at_the_masked_words(taught, processor, data, tmp_path):
    student = make_model(processor, hidden_size=8, seed=2)
    fields = {"num_train_epochs": 40, "method": "distillvlm", "attention_weight": 20.0, "queue_size": 200}
    fields |= {"learning_rate": 1e-2, "hidden_weight": 0.05}
    trainer = make_trainer(tmp_path, processor, data, student, taught.model, **fields)
    before = trainer.evaluate()
    assert {"eval_attention_loss", "eval_hidden_loss", "eval_soft_label_loss"} <= set(before)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_soft_label_loss"] < 0.6 * before["eval_soft_label_loss"]
    assert after["eval_attention_loss"] < before["eval_attention_loss"]


def test_attention_is_compared_where_captions_may_look(taught, processor, data, tmp_path):
    """A student that equals its teacher has no attention loss, and its pattern is that of captions."""
    trainer = make_trainer(
        tmp_path, processor, data, taught.model, taught.model, method="distillvlm", hidden_loss="none"
    )
    batch = make_collator(processor)([data[0], data[5]])
    seen = {}
    objective = trainer.distillation_objective.forward
    trainer.distillation_objective.forward = lambda *parts: seen.update(student=parts[0]) or objective(*parts)
    taught.model.eval()
    loss = trainer.compute_loss(taught.model, batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    pattern = seen["student"].attention_pattern
    words = batch["input_ids"].shape[1]
    assert not pattern[:, words:, :words].any()  # the image sees no word
    assert torch.equal(pattern[0, :words, :words], torch.ones(words, words).tril().bool())
    for parameter in taught.model.parameters():
        parameter.requires_grad_(True)  # the teacher was frozen


def test_training_rows_must_know_their_epoch(processor, data, tmp_path):
    with pytest.raises(ValueError, match=r"masking of words is drawn from a row.* give IndexedDataset"):
        CaptioningTrainer(
            make_model(processor), make_arguments(tmp_path), data_collator=make_collator(processor), train_dataset=data
        )


def test_texts_end_where_writing_ended(processor):
    written = torch.tensor(
        [[CLS, 5, 6, SEP, 0, 0], [CLS, 5, 6, 9, 10, 11], [CLS, SEP, SEP, SEP, SEP, SEP], [CLS, 8, SEP, 9, 9, SEP]]
    )
    assert caption_texts(processor.tokenizer, written) == ["a red", "a red dot is here", "", "blue"]


def test_the_probability_of_a_caption_is_that_of_its_words_one_after_the_other(processor, data):
    """As `generate` scores what it samples."""
    model = make_model(processor, seed=5).eval()
    batch = make_collator(processor).without_captions()([data[0], data[4], data[8]])
    torch.manual_seed(2)
    sampled = model.generate(
        **batch, do_sample=True, top_k=0, max_new_tokens=8, output_logits=True, return_dict_in_generate=True
    )
    log_probs = caption_log_probs(model, sampled.sequences, batch, model.config)
    expected = torch.zeros(3)
    for row in range(3):
        for place, logits in enumerate(sampled.logits):
            word = int(sampled.sequences[row, place + 1])
            expected[row] += logits[row].log_softmax(-1)[word]
            if word == SEP:
                break
    torch.testing.assert_close(log_probs.detach(), expected, atol=1e-4, rtol=1e-4)
    log_probs.sum().backward()
    assert model.mlm_score.transform.dense.weight.grad.abs().sum() > 0


WITH_REGIONS = {"visual_inputs": "regions", "region_feature_size": 4, "norm_first": False}


def context_of(processor, data, kind):
    """Three images of unequal sizes, patches alone, or regions with one tag or two."""
    if kind == "patches":
        batch = make_collator(processor).without_captions()([data[0], data[4], data[8]])
        batch["pixel_mask"] = torch.ones(3, 1, *batch["pixel_values"].shape[-2:])
        batch["pixel_mask"][1, :, :, 4:] = 0
        return batch
    return {
        "input_ids": torch.tensor([[CLS, SEP, 6, 9, SEP], [CLS, SEP, 7, SEP, 0], [CLS, SEP, 8, 9, SEP]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        "token_type_ids": torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]),
        "region_features": torch.randn(3, 3, 4),
        "region_boxes": torch.rand(3, 3, 6),
        "region_mask": torch.tensor([[True, True, True], [True, False, False], [True, True, True]]),
    }


def test_probability_with_regions_and_tags(processor):
    model = make_model(processor, seed=5, **WITH_REGIONS).eval()
    context = {name: value[:2] for name, value in context_of(processor, None, "regions").items()}
    torch.manual_seed(3)
    sampled = model.generate(
        **context, do_sample=True, top_k=0, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
    )
    log_probs = caption_log_probs(model, sampled.sequences, context, model.config)
    for row in range(2):
        words = sampled.sequences[row, 1:].tolist()
        length = words.index(SEP) + 1 if SEP in words else len(words)
        each = [sampled.logits[place][row].log_softmax(-1)[words[place]] for place in range(length)]
        torch.testing.assert_close(log_probs[row].detach(), sum(each), atol=1e-4, rtol=1e-4)


def slow_log_probs(model, written, context):
    """Each word, up to the end, from a [MASK] behind the words before it: a pass of its own, with tags and image."""
    found = []
    for row, ids in enumerate(written.tolist()):
        alone = {name: value[row : row + 1] for name, value in context.items()}
        total = 0.0
        for index in range(1, len(ids)):
            text = {"input_ids": torch.tensor([[*ids[:index], MASK]])}
            if "input_ids" in context:
                is_tag = (alone["token_type_ids"] * alone["attention_mask"]).bool()
                tags = alone["input_ids"][is_tag][None]
                segments = torch.tensor([[0] * (index + 1) + [1] * tags.shape[1]])
                text = {"input_ids": torch.cat([text["input_ids"], tags], 1), "token_type_ids": segments}
            images = {name: value for name, value in alone.items() if name.startswith(("pixel", "region"))}
            total = total + model(**text, **images).logits[0, index].log_softmax(-1)[ids[index]]
            if ids[index] == SEP:
                break
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["patches", "regions"])
def test_probability_and_gradient_are_those_of_a_pass_for_each_word(kind, checkpointing, processor, data):
    torch.manual_seed(4)
    model = make_model(processor, seed=5, **(WITH_REGIONS if kind == "regions" else {})).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    context = context_of(processor, data, kind)
    written = torch.tensor([[CLS, 5, 6, 9, 10, 11, SEP], [CLS, 8, SEP, 0, 0, 0, 0], [CLS, 7, 7, 5, 6, 9, 9]])
    weights = torch.tensor([0.3, -1.0, 2.0])

    gradients = []
    for log_probs in (
        slow_log_probs(model, written, context),
        caption_log_probs(model, written, context, model.config),
    ):
        model.zero_grad()
        (weights * log_probs).sum().backward()
        gradients.append((log_probs.detach(), {name: part.grad for name, part in model.named_parameters()}))

    (expected, wanted), (found, got) = gradients
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in wanted.items():
        assert (gradient is None) == (got[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["patches", "regions"])
def test_probability_reads_as_many_tokens_as_writing_did(kind, processor, data):
    model = make_model(processor, seed=5, **(WITH_REGIONS if kind == "regions" else {})).eval()
    context, read = context_of(processor, data, kind), []
    model.fusion_encoder.encoder.register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    with torch.no_grad():
        model.mlm_score.decoder.bias[SEP] -= 1e4
    written = model.generate(**context, max_new_tokens=9)
    by_writing = sum(read)
    read.clear()
    caption_log_probs(model, written, context, model.config)
    assert sum(read) == by_writing


def make_self_critical(folder, processor, data, model, **fields):
    return SelfCriticalTrainer(
        model,
        make_arguments(folder, **fields),
        data_collator=make_collator(processor),
        train_dataset=data,
        max_new_tokens=6,
        processing_class=processor,
    )


def test_a_sample_that_is_better_becomes_more_likely_and_a_worse_one_less(processor, data, tmp_path, monkeypatch):
    model = make_model(processor, seed=3)
    trainer = make_self_critical(tmp_path, processor, data, model)
    batch = trainer.data_collator([data[0], data[4], data[8]])
    good, bad = (torch.tensor([[CLS, *words, SEP]] * 3) for words in ([5, 6, 9, 10, 11], [9, 9, 9, 9, 9]))
    for sampled, greedy, sign in ((good, bad, 1), (bad, good, -1), (good, good, 0)):
        monkeypatch.setattr(model, "generate", lambda do_sample, pair=(greedy, sampled), **_: pair[do_sample])
        before = caption_log_probs(model, sampled, batch | {}, model.config).detach()
        loss = trainer.compute_loss(model, batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(1e-3 * gradient)
        change = (caption_log_probs(model, sampled, batch, model.config).detach() - before)[0].item()
        assert (change > 1e-6) - (change < -1e-6) == sign


def test_what_is_paid_does_not_depend_on_how_the_model_was_saved_to_write(processor, data, tmp_path, taught):
    model = make_model(processor)
    model.load_state_dict(taught.model.state_dict())
    model.generation_config.update(num_beams=3, suppress_tokens=list(range(5, 12)), max_new_tokens=1)
    own = model.generation_config.to_dict()
    trainer = make_self_critical(tmp_path, processor, data, model)
    batch = trainer.data_collator([data[0], data[4], data[8]])

    # It has learnt the captions, none of whose words it would write.
    for _ in range(2):
        losses, _ = trainer._losses(model, batch | {})
        assert losses["greedy_reward"] == pytest.approx(10.0, abs=0.1)
        assert losses["reward"] > 1.0
    assert model.generation_config.to_dict() == own


def test_reward_rises(processor, data, tmp_path, taught):
    """From a model that writes the wrong colour half of the time."""
    model = make_model(processor)
    model.load_state_dict(taught.model.state_dict())
    with torch.no_grad():
        model.mlm_score.decoder.bias[8] += 4.0  # it likes to say blue
    fields = {"per_device_train_batch_size": 3, "max_steps": 30, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    trainer = make_self_critical(tmp_path, processor, data, model, **fields)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 30
    assert sum(rewards[-10:]) > sum(rewards[:10])
    assert max(rewards[-10:]) > 8


def test_self_critical_training_takes_no_teacher(processor, data, tmp_path):
    with pytest.raises(ValueError, match="teacher is given, but self-critical training learns from a reward alone"):
        SelfCriticalTrainer(
            make_model(processor), make_arguments(tmp_path), data_collator=make_collator(processor), train_dataset=data,
            teacher=make_model(processor),
        )  # fmt: skip


def test_images_are_known_by_a_column(data):
    task = SimpleNamespace(name="t", image_id_column=None, text_column="caption")
    with pytest.raises(ValueError, match="task 't' has no image_id_column"):
        captions_by_image(data, task)
