"""A run put together from its arguments: what it starts from, and what it refuses."""

import itertools
import json
import re

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from transformers import AutoModel, BertConfig, BertTokenizer, ResNetConfig, ViTConfig, ViTImageProcessorPil

from dual_distill.data import ImageTextStream, load_task, train_tokenizer
from dual_distill.hub_cards import origin_of
from dual_distill.inference import FeatureStore, FeatureStoreVQA, attention_maps, encode_images, export_onnx
from dual_distill.modeling import DualEncoderForQuestionAnswering, FusionEncoderForQuestionAnswering
from dual_distill.runs import DataArguments, ModelArguments, make_run
from dual_distill.runs.build import resolve
from dual_distill.runs.data import load_data
from dual_distill.teachers import load_model
from dual_distill.trainer import DistillationTrainingArguments

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_height": 36,
    "image_width": 36,
    "patch_size": 12,
    "resize": "fixed",
    "max_text_length": 24,
}

CAPTIONS = {"image": ImageColumn(decode=False), "caption": Value("string"), "image_id": Value("int64")}


@pytest.fixture(scope="module")
def data():
    return load_task("scenes", num_scenes={"train": 12, "validation": 2, "test": 2})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")

    def make(name, architecture="dual_encoder", seed=0, **fields):
        training = DistillationTrainingArguments(str(folder / name), max_steps=1, seed=seed, use_cpu=True)
        arguments = ModelArguments(architecture=architecture, **{**SHAPE, **fields})
        return make_run(arguments, DataArguments(task="scenes", max_train_rows=30), training, data=data)

    make("teacher", "fusion_encoder").save_model()
    return make, str(folder / "teacher")


def test_a_student_starts_equal_with_a_teacher_and_without_one(run):
    make, teacher = run
    for start in (None, teacher):
        alone = make("alone", init_from=start).model.state_dict()
        distilled = make("distilled", init_from=start, teacher=teacher).model.state_dict()
        assert alone.keys() == distilled.keys()
        assert all(torch.equal(alone[name], distilled[name]) for name in alone)
    another = make("another", seed=1).model.state_dict()
    assert not all(torch.equal(another[name], make("alone").model.state_dict()[name]) for name in another)


def test_towers_start_from_the_teacher_when_told_to(run):
    make, teacher = run
    fusion = FusionEncoderForQuestionAnswering.from_pretrained(teacher)
    student = make("student", init_from=teacher, text_layers=[1]).model
    assert isinstance(student, DualEncoderForQuestionAnswering)
    assert student.config.text_config.num_hidden_layers == 1
    name = "intermediate.dense.weight"
    expected = fusion.fusion_encoder.encoder.layer[1].get_parameter(name)
    assert torch.equal(student.dual_encoder.text_model.encoder.layer[0].get_parameter(name), expected)


def test_training_rows_are_limited_and_leave_out_what_training_does_not_read(run):
    make, _ = run
    train = make("rows").train_dataset
    assert len(train) == 30
    assert set(train.column_names) == {"image", "question", "answer", "scene_id"}


def test_a_dual_encoder_cannot_start_a_fusion_encoder(run, tmp_path):
    make, _ = run
    make("dual").save_model(str(tmp_path))
    with pytest.raises(ValueError, match="is a dual_encoder, which cannot start a fusion_encoder"):
        make("never", "fusion_encoder", init_from=str(tmp_path))


def test_options_of_the_reader_may_be_json_and_must_be():
    assert DataArguments(data_options='{"seed": 3}').data_options == {"seed": 3}
    with pytest.raises(ValueError, match="which is no JSON"):
        DataArguments(data_options="{seed: 3}")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders of a ViT and of a BERT with its tokenizer, random and tiny."""
    folder = tmp_path_factory.mktemp("towers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "the", "?"]
    vision, text = str(folder / "vision"), str(folder / "text")
    AutoModel.from_config(ViTConfig(**shape, image_size=36, patch_size=12)).save_pretrained(vision)
    ViTImageProcessorPil(size={"height": 36, "width": 36}).save_pretrained(vision)
    AutoModel.from_config(BertConfig(**shape, vocab_size=len(words))).save_pretrained(text)
    BertTokenizer({word: index for index, word in enumerate(words)}).save_pretrained(text)
    return vision, text


def test_a_convolutional_tower_and_one_that_attends_are_built_and_started_from(data, towers, tmp_path):
    """A ResNet attends to nothing, so it can be asked neither for sdpa nor for anything else; the text model can."""
    vision, text = str(tmp_path / "vision"), towers[1]
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    AutoModel.from_config(config).save_pretrained(vision)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(vision)

    def make(**fields):
        arguments = ModelArguments(**fields, max_text_length=24)
        training = DistillationTrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none")
        return make_run(arguments, DataArguments(task="scenes", max_train_rows=30), training, data=data)

    for implementation in ("sdpa", "eager"):
        make(vision_tower=vision, text_tower=text, interaction_layers=1).save_model(str(tmp_path / "start"))
        trainer = make(init_from=str(tmp_path / "start"), attn_implementation=implementation)
        body = trainer.model.dual_encoder
        assert trainer.model.config._attn_implementation == implementation
        assert body.text_model.model.config._attn_implementation == implementation
        assert body.vision_model.model.config._attn_implementation == "eager"
        fresh = make(vision_tower=vision, text_tower=text, attn_implementation=implementation).model
        assert fresh.dual_encoder.text_model.model.config._attn_implementation == implementation


def test_a_student_of_two_models_is_trained_asked_and_drawn(data, towers, tmp_path):
    vision, text = towers
    training = DistillationTrainingArguments(
        str(tmp_path / "run"), max_steps=1, use_cpu=True, freeze_text_tower=True, report_to="none"
    )
    arguments = ModelArguments(vision_tower=vision, text_tower=text, max_text_length=24)
    trainer = make_run(arguments, DataArguments(task="scenes", max_train_rows=30), training, data=data)
    own = AutoModel.from_pretrained(text).state_dict()
    trainer.train()
    trainer.save_model()
    settings = trainer.run_record().settings
    assert [settings[name] for name in ("vision_tower", "text_tower")] == [str(origin_of(path)) for path in towers]
    model, processor = load_model(trainer.args.output_dir)
    taken = model.dual_encoder.text_model.model.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in taken.items())

    image = Image.new("RGB", (50, 40), "red")
    words, maps = attention_maps(model, processor, image, "what is the ?")
    assert words == ["what", "is", "the", "?"]
    assert maps.shape == (4, 3, 3)
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "red.png")
    encode_images(model, processor, tmp_path / "images", tmp_path / "store", num_workers=0)
    stored = FeatureStoreVQA(model, processor, FeatureStore(tmp_path / "store"))
    [(_, answers)] = stored.probabilities("what is the ?")
    batch = processor(images=image, text="what is the ?")
    with torch.no_grad():
        torch.testing.assert_close(answers, model(**batch).logits.softmax(-1), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="none of this package's own"):
        export_onnx(model, processor, tmp_path / "onnx")


@pytest.fixture(scope="module")
def shaped(data, towers, tmp_path_factory):
    """Make the run of a retrieval model, from random weights, a fusion encoder, a dual encoder or two towers."""
    folder = tmp_path_factory.mktemp("shaped")
    rows = data["train"].select(range(4))
    columns = {"image": rows["image"][:], "caption": [f"a red circle {row}" for row in range(4)], "image_id": range(4)}
    captions = Dataset.from_dict(columns, features=Features(**CAPTIONS))
    splits = {"train": captions, "validation": captions}
    vision, text = towers
    starts = {
        "random": SHAPE,
        "fusion": {"init_from": str(folder / "fusion")},
        "dual": {"init_from": str(folder / "dual")},
        "towers": {"vision_tower": vision, "text_tower": text, "max_text_length": 24},
    }

    def build(start, **fields):
        training = DistillationTrainingArguments(str(folder / "run"), use_cpu=True, report_to="none")
        arguments = ModelArguments(**starts[start] | fields)
        return make_run(arguments, DataArguments(task="coco_retrieval"), training, data=splits)

    build("random", architecture="fusion_encoder").save_model(str(folder / "fusion"))
    build("random").save_model(str(folder / "dual"))
    return build


@pytest.mark.parametrize("start", ["random", "fusion", "towers"])
def test_a_student_projects_to_the_width_that_is_asked_for(shaped, start):
    model = shaped(start, projection_dim=32).model
    assert model.text_projection.weight.shape == model.image_projection.weight.shape == (32, 16)
    assert model.config.projection_dim == 32


def test_a_tower_is_taken_at_its_revision(tmp_path):
    found = ModelArguments(vision_tower="me/vit@v1", text_tower=str(tmp_path)).vision_text
    assert found == {"vision": "me/vit", "vision_revision": "v1", "text": str(tmp_path), "text_revision": None}


def test_towers_pool_as_they_are_asked(shaped):
    model = shaped("towers", text_pooling="last", vision_pooling="cls", interaction_layers=1).model
    assert (model.config.text_pooling, model.config.vision_pooling) == ("last", "cls")
    assert (model.dual_encoder.text_model.pooling, model.dual_encoder.vision_model.pooling) == ("last", "cls")
    with pytest.raises(ValueError, match="text_pooling is 'first'; give one of cls, mean, last, tower"):
        ModelArguments(text_pooling="first")


NEW = "a dual_encoder from random weights, two towers or a fusion_encoder"
FROM_FUSION, FROM_RANDOM = "a dual_encoder from a fusion_encoder", "a fusion_encoder from random weights"


@pytest.mark.parametrize(
    ("start", "architecture", "fields", "has", "way_out"),
    [
        ("dual", "dual_encoder", {"projection_dim": 32}, "256", NEW),
        ("dual", "dual_encoder", {"interaction_layers": 1}, "0", NEW),
        ("dual", "dual_encoder", {"text_layers": [0]}, "all of them", FROM_FUSION),
        ("towers", "dual_encoder", {"vision_layers": [0]}, "all of them", FROM_FUSION),
        ("random", "dual_encoder", {"norm_first": False}, "True", FROM_RANDOM),
        ("towers", "dual_encoder", {"norm_first": False}, "True", FROM_RANDOM),
        ("dual", "dual_encoder", {"text_pooling": "mean"}, "tower", "a dual_encoder from two towers"),
        ("fusion", "fusion_encoder", {"text_layers": [0]}, "all of them", FROM_FUSION),
        ("random", "fusion_encoder", {"projection_dim": 32}, "none", NEW),
    ],
)
def test_what_a_start_brings_in_another_shape_than_is_asked_for_is_refused(
    shaped, start, architecture, fields, has, way_out
):
    [(name, asked)] = fields.items()
    message = f"{name} is {asked}, but this {architecture} has {has}; leave it out, or train {way_out}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        shaped(start, architecture=architecture, **fields)


def test_a_shape_that_the_start_has_may_be_asked_for(shaped):
    shaped("dual", projection_dim=256, interaction_layers=0)
    assert not shaped("random", architecture="fusion_encoder", norm_first=False).model.config.norm_first
    model = shaped("fusion", text_layers=[0], vision_layers=[0, 1], interaction_layers=1, projection_dim=8).model
    assert model.text_projection.weight.shape == (8, 16)
    assert model.config.text_config.num_hidden_layers == 1


def test_one_tower_alone_and_towers_beside_a_start_are_refused():
    with pytest.raises(ValueError, match="text_tower and vision_tower make a student together"):
        ModelArguments(text_tower="bert")
    with pytest.raises(ValueError, match="leave init_from out"):
        ModelArguments(text_tower="bert", vision_tower="vit", init_from="a/student")


def write_captions(folder, captions):
    for caption in captions:
        Image.new("RGB", (12, 12)).save(folder / f"{caption}.png")
    lines = [json.dumps({"file_name": f"{caption}.png", "caption": caption}) for caption in captions]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return [{"path": str(folder), "kind": "folder"}]


@pytest.mark.parametrize(
    ("options", "seeds", "expected"),
    [({}, {"seed": 1}, 1), ({}, {"seed": 1, "data_seed": 2}, 2), ({"seed": 3}, {"seed": 1, "data_seed": 2}, 3)],
)
def test_the_order_of_a_stream_follows_the_seed_of_the_run(tmp_path, options, seeds, expected):
    sources = write_captions(tmp_path, [f"a red circle {number}" for number in range(8)])
    options = {"sources": sources, "validation": sources, "validation_rows": 1, **options}
    arguments = DataArguments(task="image_text", head="pretraining", data_options=options)
    training = DistillationTrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, **seeds)
    [found, same] = [
        [row["caption"] for row in itertools.islice(stream, 8)]
        for stream in (
            resolve((ModelArguments(**SHAPE), arguments, training)).data.train_rows,
            ImageTextStream(sources, seed=expected),
        )
    ]
    assert found == same


def test_a_stream_that_is_given_keeps_its_own_seed(tmp_path):
    sources = write_captions(tmp_path, ["a red circle", "a blue square"])
    splits = load_task("image_text", sources=sources, validation=sources, seed=5)
    training = DistillationTrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, seed=1)
    arguments = DataArguments(task="image_text", head="pretraining")
    assert resolve((ModelArguments(**SHAPE), arguments, training), splits).data.train_rows.seed == 5


def test_a_tokenizer_reads_each_row_of_a_short_stream_once(tmp_path, monkeypatch):
    read = []

    def noted(texts, *options):
        read.extend(texts)
        return train_tokenizer(texts, *options)

    monkeypatch.setattr("dual_distill.runs.build.train_tokenizer", noted)
    captions = ("a red circle", "a blue square")
    sources = write_captions(tmp_path, captions)
    options = {"sources": sources, "validation": sources, "validation_rows": 1}
    arguments = DataArguments(task="image_text", head="pretraining", data_options=options)
    training = DistillationTrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none")
    make_run(ModelArguments(**SHAPE), arguments, training)
    assert sorted(read) == sorted(captions)


def test_label_names_that_are_not_the_checkpoints_are_refused(tmp_path):
    file = tmp_path / "shop.csv"
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    file.write_text("image,question,answer\n" + "red.png,what?,red\nblue.png,what?,blue\n" * 4)
    arguments = DataArguments(
        "custom", str(file), data_options={"label_names": ["blue", "red"], "validation_share": 0.5}
    )
    with pytest.raises(
        ValueError, match=r"label_names in data_options are \['blue', 'red'\], but the checkpoint's are"
    ):
        load_data(arguments, ["red", "blue"])
    for known in (None, ["blue", "red"]):
        task, _ = load_data(arguments, known)
        assert task.label_names == ("blue", "red")
