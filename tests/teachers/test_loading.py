"""Loading: which class a checkpoint becomes, what its processor returns, and each refusal by its sentence."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderConfig,
    FusionEncoderForCaptioning,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from dual_distill.teachers import (
    largest_difference,
    load_config,
    load_model,
    load_processor,
    load_teacher,
    random_batch,
)
from dual_distill.teachers.vilt import VILT_CLASSES

ANSWERS = ["yes", "no", "two", "red"]


@pytest.fixture
def said(caplog):
    """What the conversion warns of."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("dual_distill.teachers")]


def rewrite(folder, change):
    """Change the weights of a folder in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **fields):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def save_captioner(folder, processor, **generation):
    shape = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = FusionEncoderConfig(**shape, intermediate_size=32, image_size=12, patch_size=4)
    model = FusionEncoderForCaptioning(config).eval()
    model.use_tokens_of(processor.tokenizer)
    model.generation_config.update(**generation)
    for one in (model, processor):
        one.save_pretrained(folder)
    return model


def test_a_captioner_writes_as_it_was_saved_to_write(vilt_processor, tmp_path):
    processor = DualDistillProcessor(vilt_processor.image_processor, vilt_processor.tokenizer)
    saved = save_captioner(tmp_path / "captioner", processor, num_beams=4, max_new_tokens=5, repetition_penalty=1.5)
    loaded = load_model(tmp_path / "captioner").model
    expected = {"num_beams": 4, "max_new_tokens": 5, "repetition_penalty": 1.5, "eos_token_id": 3}
    assert {name: getattr(loaded.generation_config, name) for name in expected} == expected

    batch = processor(images=Image.linear_gradient("L").resize((16, 12)).convert("RGB"))
    assert torch.equal(loaded.generate(**batch), saved.generate(**batch))
    assert loaded.generate(**batch).shape[1] == 1 + 5

    # And is saved so again; a teacher is the same model; a body writes nothing.
    loaded.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    assert load_teacher(tmp_path / "again").model.generation_config.num_beams == 4
    assert not load_model(tmp_path / "again", model_class=FusionEncoderModel).model.can_generate()

    file = tmp_path / "again" / "generation_config.json"
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"the generation_config.json of '.*again' cannot be read: "):
        load_model(tmp_path / "again")
    file.write_text('{"num_beams": 0}')
    with pytest.raises(ValueError, match=r"cannot be read: num_beams is 0, but must be at least 1"):
        load_model(tmp_path / "again")

    # What it leaves out is as the config says; a length of its own stays.
    for written, lengths in (('{"num_beams": 5}', (None, 20)), ('{"max_length": 9, "num_beams": 5}', (9, None))):
        file.write_text(written)
        partial = load_model(tmp_path / "again").model.generation_config
        assert (partial.num_beams, partial.max_length, partial.max_new_tokens) == (5, *lengths)
        assert (partial.bos_token_id, partial.eos_token_id, partial.pad_token_id) == (2, 3, 0)
    file.unlink()
    assert load_model(tmp_path / "again").model.generation_config.max_new_tokens == 20


@pytest.mark.parametrize("name", VILT_CLASSES)
def test_a_vilt_is_converted_on_the_way_in(name, save_vilt, said):
    vilt, folder = save_vilt(name)
    model, processor = load_model(folder)
    assert type(processor) is DualDistillProcessor
    assert not model.training
    batch = random_batch(model.config)
    found = largest_difference(vilt, model, batch)
    assert found["output"] == ("pooler_output" if name == "ViltModel" else "logits")
    assert found["largest_difference"] < 1e-5 < 1e-2 < found["largest_value"]
    assert said() == []


def test_the_configuration_alone_is_that_of_the_model(save_vilt):
    _, folder = save_vilt("ViltForQuestionAnswering")
    (folder / "model.safetensors").unlink()
    config = load_config(folder)
    assert (config.hidden_size, config.num_images, list(config.id2label.values())) == (16, 1, ANSWERS)
    new = load_config(
        folder, None, FusionEncoderForImagesAndTextClassification, new_head=True, label_names=["f", "t"], num_images=2
    )
    assert (new.num_images, new.modality_type_vocab_size, new.id2label) == (2, 3, {0: "f", 1: "t"})


@pytest.mark.parametrize("cls", [FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering])
def test_our_own_checkpoints_pass_through(cls, save_vilt, said, tmp_path):
    _, folder = save_vilt("ViltForQuestionAnswering")
    fusion, processor = load_model(folder)
    own = fusion if cls is FusionEncoderForQuestionAnswering else cls.from_fusion_encoder(fusion)
    own.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    model, again = load_model(tmp_path / "own", attn_implementation="eager")
    assert type(model) is cls
    assert model.config._attn_implementation == "eager"
    assert model.config.id2label == own.config.id2label
    for name, weight in own.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert again(text="what is it?")["input_ids"].tolist() == processor(text="what is it?")["input_ids"].tolist()
    assert said() == []


def test_sharded_weights_and_half_precision(save_vilt, tmp_path):
    vilt, folder = save_vilt("ViltForQuestionAnswering")
    (folder / "model.safetensors").unlink()
    vilt.to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").is_file()
    model, _ = load_model(folder)
    assert model.dtype == torch.float32  # whatever it was saved in
    assert torch.equal(model.fusion_encoder.pooler.dense.weight, vilt.vilt.pooler.dense.weight.float())
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"lacks {shard.name}, which model.safetensors.index.json names"):
        load_model(folder)


def noise_image(width, height, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_processor_gives_what_vilts_gives(save_vilt, vilt_processor):
    _, folder = save_vilt("ViltForQuestionAnswering")
    photos = [noise_image(40, 20, 0), noise_image(16, 16, 1), noise_image(14, 60, 2)]
    texts = ["what is it?", "red dog", "what is it? it is blue"]
    processor = load_model(folder).processor
    for images, words in ((photos, texts), (photos[:1], texts[:1]), (photos[2:], texts[2:])):
        expected = vilt_processor(images, words, padding=True, return_tensors="pt")
        found = processor(images=images, text=words)
        assert torch.equal(found["pixel_values"][:, 0], expected["pixel_values"])
        assert torch.equal(found["pixel_mask"][:, 0], expected["pixel_mask"])
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["attention_mask"], expected["attention_mask"])
        assert not expected["token_type_ids"].any()


def test_a_processor_as_transformers_4_saved_it(save_vilt):
    """A feature extractor's file of its own, with one number for the size; texts are cut where the positions end."""
    _, folder = save_vilt("ViltForQuestionAnswering")
    for file in folder.glob("*processor*"):
        file.unlink()
    old = {
        "do_resize": True,
        "feature_extractor_type": "ViltFeatureExtractor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({**old, "resample": 3, "size": 12, "size_divisor": 4}))
    processor = load_model(folder).processor
    batch = processor(images=noise_image(40, 20, 0), text="what is it? " * 20)
    # 20 x 40 px to a shorter side of 12, a longer one of at most 19, both cut to multiples of 4.
    assert batch["pixel_values"].shape == (1, 1, 3, 8, 16)
    assert batch["input_ids"].shape == (1, 12)


def test_model_and_processor_answer_together(save_vilt, vilt_processor):
    vilt, folder = save_vilt("ViltForQuestionAnswering")
    model, processor = load_model(folder)
    images, texts = [noise_image(40, 20, 0), noise_image(16, 16, 1)], ["what is it?", "red dog"]
    expected = vilt(**vilt_processor(images, texts, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(model(**processor(images=images, text=texts)).logits, expected, atol=1e-5, rtol=0)


def test_a_new_head_on_a_vilt_that_completes_words(save_vilt, said):
    vilt, folder = save_vilt("ViltForMaskedLM")
    model, _ = load_model(folder, model_class=FusionEncoderForQuestionAnswering, new_head=True, label_names=ANSWERS)
    assert type(model) is FusionEncoderForQuestionAnswering
    assert model.config.id2label == dict(enumerate(ANSWERS))
    assert model.config.label2id == {name: index for index, name in enumerate(ANSWERS)}
    for name, weight in model.fusion_encoder.state_dict().items():
        assert torch.equal(weight, vilt.vilt.state_dict()[name])
    assert model.classifier[3].weight.shape == (4, 32)
    assert 0.01 < model.classifier[3].weight.std() < 0.03  # drawn with the config's spread
    left_out, new = said()
    assert "the weights of its head are left out" in left_out
    assert "mlm_score.transform.dense.weight" in left_out
    names = [name for name in model.state_dict() if name.startswith("classifier")]
    assert "newly initialized, must be trained: " + ", ".join(names) in new


def test_a_new_head_replaces_one_of_the_same_shape(save_vilt, said):
    vilt, folder = save_vilt("ViltForQuestionAnswering")
    model, _ = load_model(
        folder, model_class=FusionEncoderForQuestionAnswering, new_head=True, label_names=["a", "b", "c", "d"]
    )
    assert not torch.equal(model.classifier[0].weight, vilt.classifier[0].weight)
    assert len(said()) == 2


def test_a_new_head_over_two_images_starts_the_second_from_the_first(save_vilt):
    vilt, folder = save_vilt("ViltModel")
    model, _ = load_model(
        folder,
        model_class=FusionEncoderForImagesAndTextClassification,
        new_head=True,
        label_names=["false", "true"],
        num_images=2,
    )
    assert type(model) is FusionEncoderForImagesAndTextClassification
    old = vilt.embeddings.token_type_embeddings.weight
    new = model.fusion_encoder.embeddings.token_type_embeddings.weight
    assert torch.equal(new, torch.cat([old, old[1:]]))
    assert model(**random_batch(model.config)).logits.shape == (3, 2)


def test_new_words_are_decoded_with_the_word_embeddings(save_vilt, said):
    _, folder = save_vilt("ViltForQuestionAnswering")
    model, _ = load_model(folder, model_class=FusionEncoderForMaskedLM, new_head=True)
    assert model.mlm_score.decoder.weight is model.get_input_embeddings().weight
    assert "mlm_score.decoder.weight" not in said()[1]
    assert "mlm_score.decoder.bias" in said()[1]


def test_a_bare_model_of_a_headed_one_leaves_the_head_out(save_vilt, said, tmp_path):
    vilt, folder = save_vilt("ViltForQuestionAnswering")
    model, processor = load_model(folder, model_class=FusionEncoderModel)
    assert type(model) is FusionEncoderModel
    assert torch.equal(model.pooler.dense.weight, vilt.vilt.pooler.dense.weight)
    assert "classifier.3.bias" in said()[0]
    # And back, through our own folder.
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    again, _ = load_model(
        tmp_path / "own", model_class=FusionEncoderForQuestionAnswering, new_head=True, label_names=ANSWERS
    )
    assert torch.equal(again.fusion_encoder.pooler.dense.weight, vilt.vilt.pooler.dense.weight)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"model_class": FusionEncoderForMaskedLM},
            "was saved as ViltForQuestionAnswering, not as FusionEncoderForMaskedLM; load it as it is, or set new_head",
        ),
        (
            {"model_class": DualEncoderForQuestionAnswering},
            "holds a dual_distill_fusion_encoder, which cannot be loaded as DualEncoderForQuestionAnswering",
        ),
        (
            {"model_class": (DualEncoderModel, DualEncoderForPreTraining), "new_head": True},
            "which cannot be loaded as DualEncoderModel or DualEncoderForPreTraining",
        ),
        ({"new_head": True}, "new_head is set but no class is named"),
        ({"model_class": FusionEncoderModel, "new_head": True}, "a FusionEncoderModel has no head to initialize"),
        ({"model_class": FusionEncoderForQuestionAnswering, "new_head": True}, "needs label_names"),
        (
            {"model_class": FusionEncoderForMaskedLM, "new_head": True, "label_names": ["a"]},
            "FusionEncoderForMaskedLM takes no label_names",
        ),
        (
            {"model_class": FusionEncoderForQuestionAnswering, "new_head": True, "label_names": ["a", "a"]},
            "has 2 names, 1 different",
        ),
        (
            {"model_class": FusionEncoderForQuestionAnswering, "new_head": True, "label_names": ["a"], "num_images": 2},
            "num_images is 2, but FusionEncoderForQuestionAnswering reads 1 a row",
        ),
        ({"label_names": ["a"]}, "label_names and num_images describe a new head"),
    ],
)
def test_refusals_of_a_head(arguments, message, save_vilt):
    _, folder = save_vilt("ViltForQuestionAnswering")
    for load in (load_model, load_config):
        with pytest.raises(ValueError, match=message):
            load(folder, **arguments)


def test_a_config_that_names_no_class_needs_a_head(save_vilt):
    _, folder = save_vilt("ViltForImageAndTextRetrieval")
    edit_config(folder, architectures=None)
    with pytest.raises(ValueError, match="names the architecture of no class, which is not known here"):
        load_model(folder)
    assert (
        type(load_model(folder, model_class=FusionEncoderForImageTextRetrieval).model).__name__
        == "FusionEncoderForImageTextRetrieval"
    )
    edit_config(folder, architectures=["ViltForTokenClassification"])
    with pytest.raises(ValueError, match=r"names the architecture \['ViltForTokenClassification'\]"):
        load_model(folder)


def test_a_pickle_alone_is_refused_with_both_ways_out(save_vilt):
    _, folder = save_vilt("ViltForQuestionAnswering")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"no model.safetensors but pytorch_model.bin.*refs/pr/N.*save_pretrained"
    ) as refusal:
        load_model(folder)
    assert "\n" not in str(refusal.value)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no model.safetensors, and pickles are never read"):
        load_model(folder)


def test_the_one_variant_of_the_weights_is_read(save_vilt):
    """`save_pretrained(variant="fp16")`, whole and in shards, is safetensors like any other."""
    vilt, folder = save_vilt("ViltForQuestionAnswering")
    expected = load_model(folder).model.state_dict()
    (folder / "model.safetensors").unlink()
    vilt.half().save_pretrained(folder, variant="fp16")
    assert not (folder / "model.safetensors").is_file()
    found = load_teacher(folder).model
    assert found.dtype == torch.float32
    for name, weight in found.state_dict().items():
        assert torch.equal(weight, expected[name].half().float())

    (folder / "model.fp16.safetensors").unlink()
    vilt.save_pretrained(folder, variant="fp16", max_shard_size="5KB")
    assert len(list(folder.glob("model.fp16-*-of-*.safetensors"))) > 1
    assert all(
        torch.equal(load_model(folder).model.state_dict()[name], weight) for name, weight in found.state_dict().items()
    )
    vilt.save_pretrained(folder, variant="bf16")
    with pytest.raises(ValueError, match=r"several variants of the weights, model.bf16.safetensors and .*fp16"):
        load_model(folder)


def test_a_vilt_without_a_pooler_gets_a_new_one(save_vilt, said):
    """`ViltModel(add_pooling_layer=False)` is whole; with a head that reads the pooler it would be damaged."""
    _, folder = save_vilt("ViltModel")
    rewrite(folder, lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("pooler.")])
    load_model(folder)
    assert "newly initialized, must be trained: pooler.dense.weight, pooler.dense.bias" in said()[0]
    load_model(folder, model_class=FusionEncoderForQuestionAnswering, new_head=True, label_names=ANSWERS)
    rewrite(folder, lambda weights: weights.pop("layernorm.bias"))
    with pytest.raises(ValueError, match="does not fit FusionEncoderModel"):
        load_model(folder)


def test_a_damaged_checkpoint_names_what_is_wrong(save_vilt):
    _, folder = save_vilt("ViltForQuestionAnswering")

    def damage(weights):
        for layer in range(3):
            del (
                weights[f"vilt.encoder.layer.{layer}.output.dense.bias"],
                weights[f"vilt.encoder.layer.{layer}.output.dense.weight"],
            )
        weights["vilt.extra"] = torch.ones(1)
        weights["classifier.3.bias"] = torch.ones(7)

    rewrite(folder, damage)
    with pytest.raises(ValueError, match="does not fit FusionEncoderForQuestionAnswering") as refusal:
        load_model(folder)
    for part in (
        'Missing key(s) in state_dict: "fusion_encoder.encoder.layer.0.output.dense.weight", "fusion_encoder.',
        '[...]; Unexpected key(s) in state_dict: "fusion_encoder.extra"',
        "size mismatch for classifier.3.bias: copying a param with shape torch.Size([7]) from checkpoint",
    ):
        assert part in str(refusal.value)
    # A new head replaces the head alone.
    with pytest.raises(ValueError, match="Missing key"):
        load_model(folder, model_class=FusionEncoderForQuestionAnswering, new_head=True, label_names=ANSWERS)


def test_a_cut_file_is_refused(save_vilt):
    _, folder = save_vilt("ViltModel")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors of .* is damaged"):
        load_model(folder)


def test_an_untied_decoder_is_refused(save_vilt):
    _, folder = save_vilt("ViltForMaskedLM")
    rewrite(folder, lambda weights: weights.update({"mlm_score.decoder.weight": torch.ones(60, 16)}))
    with pytest.raises(ValueError, match="differ, but the model ties them"):
        load_model(folder)


def test_a_model_of_another_kind_and_a_folder_without_one(tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'bert'; give one of type dual_distill_fusion_encoder"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"the config.json of .* cannot be read"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config.json; give the folder or repository of a saved model"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="is a folder, which has no revision 'main'"):
        load_model(tmp_path, "main")


def test_an_adapter_is_named_as_what_it_is(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter of peft, not a model; load it onto its base with peft"):
        load_model(tmp_path)


def test_a_folder_whose_name_has_an_at_is_a_folder(save_vilt, tmp_path):
    _, folder = save_vilt("ViltModel")
    load_model(folder.rename(tmp_path / "vilt@v1"))
    with pytest.raises(ValueError, match=r"vilt@v1' is a folder, which has no revision 'v1'"):
        load_model(tmp_path / "vilt@v1", "v1")


def test_a_checkpoint_without_a_processor(save_vilt):
    _, folder = save_vilt("ViltModel")
    for file in [*folder.glob("*processor*"), *folder.glob("*token*")]:
        file.unlink()
    with pytest.raises(ValueError, match="has no processor that can be read"):
        load_model(folder)


def test_a_config_that_cannot_be_converted_names_the_checkpoint(save_vilt):
    _, folder = save_vilt("ViltModel")
    edit_config(folder, max_image_length=5)
    with pytest.raises(ValueError, match=r"vilt' cannot be converted: max_image_length is 5"):
        load_model(folder)


def test_a_config_that_no_model_can_have_is_refused_in_a_sentence(save_vilt, tmp_path):
    _, folder = save_vilt("ViltModel")
    load_model(folder).model.save_pretrained(tmp_path / "ours")
    edit_config(tmp_path / "ours", image_size=13)
    with pytest.raises(ValueError, match=r"config.json of .*ours' cannot be read: image_size 13 does not divide"):
        load_model(tmp_path / "ours")
    edit_config(folder, num_attention_heads=3)
    with pytest.raises(ValueError, match=r"vilt' cannot be converted: hidden_size 16 is no multiple"):
        load_model(folder)


def test_layers_without_end_are_refused_before_they_are_built(save_vilt, tmp_path):
    _, folder = save_vilt("ViltForQuestionAnswering")
    edit_config(folder, num_hidden_layers=10**8)
    with pytest.raises(ValueError, match="cannot be converted: num_hidden_layers is 100,000,000; at most 1,000"):
        load_model(folder)

    own = DualEncoderConfig(architectures=["DualEncoderModel"]).to_dict()
    tower = {"text_config": {**own["text_config"], "num_hidden_layers": 10**8}}
    for field, change in (("num_hidden_layers", tower), ("interaction_layers", {"interaction_layers": 10**8})):
        (folder / "config.json").write_text(json.dumps({**own, **change}))
        with pytest.raises(ValueError, match=f"cannot be read: {field} is 100,000,000; at most 1,000 are built"):
            load_model(folder)


def test_files_that_are_nested_too_deeply_or_are_no_files(save_vilt, tmp_path):
    vilt, folder = save_vilt("ViltForQuestionAnswering")
    vilt.save_pretrained(folder, max_shard_size="5KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shard = sorted(folder.glob("model-*-of-*.safetensors"))[0]
    shard.unlink()
    os.mkfifo(shard)  # opened, it waits for somebody who writes
    with pytest.raises(ValueError, match=rf"lacks {shard.name}, which model\.safetensors\.index\.json names"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is no valid JSON \(maximum recursion depth"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="names no files"):
        load_model(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"the config.json of .* cannot be read: maximum recursion depth"):
        load_model(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model(folder)


def test_a_revision_of_a_repository_is_read_from_the_cache(save_vilt, monkeypatch, tmp_path):
    """A repository as the Hub's cache holds it: weights on a pull request, none on main; no network is asked."""
    _, folder = save_vilt("ViltForQuestionAnswering")
    cached = tmp_path / "hub" / "models--owner--name"
    (cached / "refs" / "refs" / "pr").mkdir(parents=True)
    main, request = "a" * 40, "b" * 40
    (cached / "refs" / "main").write_text(main)
    (cached / "refs" / "refs" / "pr" / "4").write_text(request)
    (cached / "snapshots" / main).mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (cached / "snapshots" / main / file.name).write_bytes(file.read_bytes())
    (cached / "snapshots" / main / "pytorch_model.bin").write_bytes(b"never read")
    folder.rename(cached / "snapshots" / request)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match=r"'owner/name' has no model.safetensors but pytorch_model.bin"):
        load_model("owner/name")
    assert load_model("owner/name", revision="refs/pr/4").model.config.num_labels == 4
    assert load_model("owner/name@refs/pr/4").model.config.num_labels == 4
    assert load_config("owner/name@refs/pr/4", "refs/pr/4").num_labels == 4
    with pytest.raises(ValueError, match="names a revision, but 'main' is given as well; give one of the two"):
        load_processor("owner/name@refs/pr/4", "main")
    with pytest.raises(ValueError, match=r"'owner/name' .* could not be fetched from the Hub at revision 'refs/pr/6'"):
        load_model("owner/name@refs/pr/6")
    with pytest.raises(ValueError, match=r"'owner/name' .* could not be fetched from the Hub at revision 'refs/pr/5'"):
        load_model("owner/name", revision="refs/pr/5")
    with pytest.raises(ValueError, match="'owner/other' is not a folder here and could not be fetched from the Hub"):
        load_model("owner/other")


def test_a_teacher_is_frozen_and_a_model_is_not(save_vilt):
    _, folder = save_vilt("ViltForQuestionAnswering")
    teacher, model = load_teacher(folder).model, load_model(folder).model
    assert type(teacher) is type(model) is FusionEncoderForQuestionAnswering
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_options_of_other_families_are_refused_of_ours(save_vilt):
    _, folder = save_vilt("ViltForQuestionAnswering")
    assert load_teacher(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"is loaded as a model of ours, without device_map, quantization_config"):
        load_teacher(folder, device_map="cpu", quantization_config=None)


def test_a_configuration_names_the_class_that_it_loads_as(save_vilt):
    _, folder = save_vilt("ViltForMaskedLM")
    assert load_config(folder).architectures == ["FusionEncoderForMaskedLM"]
    assert load_config(folder, model_class=FusionEncoderModel).architectures == ["FusionEncoderModel"]


def test_weights_that_are_not_finite_are_refused_by_name(save_vilt):
    _, folder = save_vilt("ViltForQuestionAnswering")
    rewrite(folder, lambda weights: weights["classifier.3.bias"].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"has 1 weights that are not finite \(the first is classifier.3.bias\)"):
        load_model(folder)


def test_loading_draws_nothing_and_looks_for_damage_once(save_vilt, monkeypatch, tmp_path):
    _, folder = save_vilt("ViltForQuestionAnswering")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dual_distill.sealed.LARGE", 0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = load_model(folder).model
    assert torch.equal(torch.rand(3), expected)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())

    with monkeypatch.context() as unread:
        unread.setattr(torch.Tensor, "isfinite", lambda *_: pytest.fail("the weights were looked through again"))
        again = load_model(folder).model
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)

    rewrite(folder, lambda weights: weights["classifier.3.bias"].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"1 weights that are not finite \(the first is classifier.3.bias\)"):
        load_model(folder)


def test_tied_weights_are_one_parameter(save_vilt):
    _, folder = save_vilt("ViltForMaskedLM")
    model = load_model(folder).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
