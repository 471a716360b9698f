"""Encoding once: equal to the model's own features, the same bits after any interruption, alone or shared out."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertConfig, PreTrainedModel, ViTConfig, ViTImageProcessorPil

from dual_distill.data import fingerprint
from dual_distill.inference import FeatureStore, FeatureStoreVQA, encode_images, encode_texts
from dual_distill.inference.model_identity import model_identity, processor_settings
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    FusionEncoderForQuestionAnswering,
    own_fields,
)

SCRIPT = Path(__file__).with_name("encode_in_a_process.py")
TEXTS = ["is there a red circle?", "red?", "how many blue squares are there?", "is there a blue circle?", "red?"]


@pytest.fixture
def model(answering_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return answering_model(DualEncoderForQuestionAnswering)


@pytest.fixture
def images(pictures: list[Image.Image]) -> dict[str, Image.Image]:
    """Eleven images in five shapes."""
    return {f"image {number}": pictures[number % 5].rotate(90 * (number // 5 % 2) * 2) for number in range(11)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def encode(model: PreTrainedModel, processor: DualDistillProcessor, images: object, store: Path, **settings: object):
    return encode_images(model, processor, images, store, **{"batch_size": 2, "shard_size": 4, **settings})


def test_a_stored_vector_is_the_models_own(model, answering_processor, images, tmp_path) -> None:
    report = encode(model, answering_processor, images, tmp_path / "store", projected=True)
    assert (report.rows, report.encoded, report.missing_shards, report.unreadable) == (11, 11, 0, {})
    store = FeatureStore(tmp_path / "store")
    assert store.ids() == list(images)
    with torch.no_grad():
        for name, image in images.items():
            pixels = answering_processor(images=image)["pixel_values"]
            pooled = model.get_image_features(pixels).pooler_output[0]
            torch.testing.assert_close(store.read(store.indices([name])), pooled, atol=1e-5, rtol=0)
            projected = store.read(store.indices([name]), "projected")
            torch.testing.assert_close(projected, model.project_images(pooled), atol=1e-5, rtol=0)


def test_texts_are_stored_once_each(model, answering_processor, tmp_path) -> None:
    report = encode_texts(model, answering_processor, TEXTS, tmp_path / "store", batch_size=2, shard_size=3)
    store = FeatureStore(report.store)
    assert store.ids() == TEXTS[:4]
    with torch.no_grad():
        for text in TEXTS:
            inputs = answering_processor(text=text)
            torch.testing.assert_close(
                store[text], model.get_text_features(**inputs).pooler_output[0], atol=1e-5, rtol=0
            )


def test_half_precision_is_the_full_one_rounded(model, answering_processor, images, tmp_path) -> None:
    encode(model, answering_processor, images, tmp_path / "full")
    encode(model, answering_processor, images, tmp_path / "half", dtype="float16")
    full, half = FeatureStore(tmp_path / "full"), FeatureStore(tmp_path / "half")
    assert torch.equal(half.read(range(11)), full.read(range(11)).half())


def test_workers_change_no_bit(model, answering_processor, images, tmp_path) -> None:
    images["image 5"] = b"no image"
    reports = [encode(model, answering_processor, images, tmp_path / str(n), num_workers=n) for n in (0, 1, 3)]
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "3")
    assert reports[0].unreadable == reports[2].unreadable != {}


def test_encoding_draws_nothing_from_the_random_numbers_of_others(model, answering_processor, images, tmp_path) -> None:
    before = torch.get_rng_state()
    encode(model, answering_processor, images, tmp_path / "store", num_workers=1)
    assert torch.equal(torch.get_rng_state(), before)


KILLED_BEFORE = {
    "the plan": ("plan-*", "shard-*"),
    "the first shard": ("shard-*",),
    "the second shard": ("shard-00001*", "shard-00002*"),
    "the second shard, while another process had done the next": ("shard-00001*",),
}


@pytest.mark.parametrize("gone", KILLED_BEFORE.values(), ids=KILLED_BEFORE)
def test_a_killed_run_continues_to_the_same_bits(gone, model, answering_processor, images, tmp_path) -> None:
    images["image 5"] = b"no image"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    encode(model, answering_processor, images, whole)
    shutil.copytree(whole, killed)
    for pattern in gone:
        for path in killed.glob(pattern):
            path.unlink()
    (killed / ".shard-00001.arrow.0123456789ab").write_bytes(b"half a file")
    encode(model, answering_processor, images, killed)
    assert contents(killed) == contents(whole)


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(folder / "model"), str(folder / "images"), str(folder / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def encode_whole(folder: Path) -> None:
    """What one process makes that nobody stops; it loads the model, since the last bits also depend on how weights lie
    in memory."""
    process = start(folder, WORLD_SIZE="1")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    (folder / "store").rename(folder / "whole")


@pytest.fixture
def saved(model, answering_processor, images, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    answering_processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images" / "below").mkdir(parents=True)
    for name, image in images.items():
        image.save(tmp_path / "images" / "below" / f"{name}.png")
    return tmp_path


def test_shared_out_by_rank(model, answering_processor, images, tmp_path, monkeypatch) -> None:
    encode(model, answering_processor, images, tmp_path / "whole")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, encoded, missing in (("1", 4, 2), ("0", 7, 0)):
        monkeypatch.setenv("RANK", rank)
        report = encode(model, answering_processor, images, tmp_path / "shared")
        assert (report.encoded, report.missing_shards) == (encoded, missing)
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_for_real_and_continued_by_two_processes_at_once(saved) -> None:
    encode_whole(saved)
    killed = start(saved, KILL_AT="4", RANK="0")  # its first shard is written, the next is begun
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    assert [path.name for path in (saved / "store").glob("shard-*")] == ["shard-00000.arrow"]
    with pytest.raises(ValueError, match="lacks 2 of 3 shards"):
        FeatureStore(saved / "store")
    both = [start(saved, RANK=rank) for rank in ("0", "1")]
    for process, encoded in zip(both, (3, 4), strict=True):
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        assert said.split()[0] == str(encoded)
    assert contents(saved / "store") == contents(saved / "whole")


@pytest.mark.slow
def test_several_encoders_on_one_store_leave_one_another_alone(saved) -> None:
    encode_whole(saved)
    encoders = [start(saved, WORLD_SIZE="1") for _ in range(5)]  # without shares: each does what is not done yet
    for encoder in encoders:
        _, errors = encoder.communicate()
        assert encoder.returncode == 0, errors
    assert contents(saved / "store") == contents(saved / "whole")


def test_a_name_that_several_images_have_without_their_extension_finds_none(
    model, answering_processor, pictures, tmp_path
) -> None:
    named = {"cat.png": pictures[0], "cat.jpg": pictures[1], "dog.png": pictures[2]}
    encode(model, answering_processor, named, tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    assert store.indices(["cat.jpg", "dog", "cat.png"]) == [1, 2, 0]
    with pytest.raises(ValueError, match=r"lacks 1 of the images asked for: 'cat'\. Its ids are like 'cat.png'"):
        store.indices(["cat"])


def test_new_images_are_encoded_alone(model, answering_processor, images, tmp_path) -> None:
    first = dict(list(images.items())[:5])
    store = tmp_path / "store"
    encode(model, answering_processor, first, store)
    before = contents(store)
    assert encode(model, answering_processor, first, store).encoded == 0
    assert contents(store) == before
    turned = dict(sorted(images.items(), reverse=True))
    report = encode(model, answering_processor, turned, store)
    assert (report.encoded, report.rows) == (6, 11)
    after = contents(store)
    assert {name: after[name] for name in before} == before
    assert FeatureStore(store).ids() == [*first, *(name for name in turned if name not in first)]


def test_unreadable_images_are_listed_and_encoded_when_mended(model, answering_processor, images, tmp_path) -> None:
    good = dict(images)
    images["image 2"], images["image 9"], images["image 10"] = b"no image", str(tmp_path / "nowhere.png"), b""
    images["thin"] = Image.new("RGB", (4000, 1))
    report = encode(model, answering_processor, images, tmp_path / "store")
    assert (report.rows, report.encoded) == (8, 8)
    assert list(report.unreadable) == ["image 2", "image 9", "image 10", "thin"]
    assert "row image 2: the bytes are not an image" in report.unreadable["image 2"]
    assert "nowhere.png" in report.unreadable["image 9"]
    assert "4000 x 1 pixels cannot be resized" in report.unreadable["thin"]
    before = contents(tmp_path / "store")
    assert encode(model, answering_processor, images, tmp_path / "store").encoded == 0
    assert contents(tmp_path / "store") == before
    mended = encode(model, answering_processor, good | {"thin": images["thin"]}, tmp_path / "store")
    assert (mended.encoded, mended.rows, list(mended.unreadable)) == (3, 11, ["thin"])
    encode(model, answering_processor, good, tmp_path / "good")
    store, expected = FeatureStore(tmp_path / "store"), FeatureStore(tmp_path / "good")
    for name in good:
        torch.testing.assert_close(store[name], expected[name], atol=1e-5, rtol=0)


def test_a_shard_of_which_nothing_can_be_read_is_empty(model, answering_processor, images, tmp_path) -> None:
    mixed = {"a": b"no image", "b": b"nor this", "c": images["image 0"], "d": images["image 1"]}
    encode(model, answering_processor, mixed, tmp_path / "store", shard_size=2)
    store = FeatureStore(tmp_path / "store")
    assert (store.ids(), list(store.unreadable())) == (["c", "d"], ["a", "b"])
    assert torch.equal(torch.cat([piece for _, piece in store.pieces()]), store.read([0, 1]))


def test_strict_ends_at_the_first_unreadable_image_and_keeps_what_is_done(
    model, answering_processor, images, tmp_path
) -> None:
    images["image 6"] = b"no image"
    with pytest.raises(ValueError, match=r"row image 6: the bytes are not an image .* Without strict, it is listed"):
        encode(model, answering_processor, images, tmp_path / "store", strict=True)
    assert [path.name for path in (tmp_path / "store").glob("shard-*")] == ["shard-00000.arrow"]


def test_a_planned_image_that_vanished_is_listed(model, answering_processor, images, tmp_path) -> None:
    encode(model, answering_processor, images, tmp_path / "store")
    (tmp_path / "store" / "shard-00002.arrow").unlink()
    gone = images.pop("image 9")
    report = encode(model, answering_processor, images, tmp_path / "store")
    assert "was planned, but is not among those given now" in report.unreadable["image 9"]
    assert encode(model, answering_processor, images | {"image 9": gone}, tmp_path / "store").unreadable == {}


def test_verify_finds_an_image_that_changed(model, answering_processor, images, tmp_path) -> None:
    encode(model, answering_processor, images, tmp_path / "store")
    assert encode(model, answering_processor, images, tmp_path / "store", verify=True).encoded == 0
    images["image 3"] = Image.new("RGB", (20, 20))
    assert encode(model, answering_processor, images, tmp_path / "store").encoded == 0
    with pytest.raises(ValueError, match=r"1 images are not those .* such as 'image 3'; give changed images new names"):
        encode(model, answering_processor, images, tmp_path / "store", verify=True)


def test_another_model_processor_or_setting_is_refused(model, answering_processor, images, tmp_path) -> None:
    store = tmp_path / "store"
    model.name_or_path = "cache/models--runs--a/snapshots/0123456789abcdef"
    encode(model, answering_processor, images, store)
    model.name_or_path = "a copy"
    encode(model, answering_processor, images, store)
    with pytest.raises(ValueError, match=r"was begun with other settings \(dtype: 'float32' there, 'float16' now\)"):
        encode(model, answering_processor, images, store, dtype="float16")
    with pytest.raises(ValueError, match=r"was begun with other settings \(batch_size: 2 there, 3 now\)"):
        encode(model, answering_processor, images, store, batch_size=3)
    with pytest.raises(ValueError, match=r"is a store of images, but one of texts is needed"):
        encode_texts(model, answering_processor, TEXTS, store)
    answering_processor.image_processor.image_mean = (0.4, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"processor.image_mean: \[0.5, 0.5, 0.5\] there, \[0.4, 0.5, 0.5\] now"):
        encode(model, answering_processor, images, store)
    with torch.no_grad():
        model.dual_encoder.vision_model.layernorm.bias[0] += 1e-6
    model.name_or_path = "b"
    with pytest.raises(
        ValueError, match=r"the model 'runs/a' at 0123456789ab \(weights \w{12}, float32\), not with 'b' \("
    ):
        encode(model, answering_processor, images, store)


def test_a_model_that_pools_in_another_way_is_another_model(answering_processor, images, tmp_path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = BertConfig(vocab_size=len(answering_processor.tokenizer), max_position_embeddings=20, **shape)
    image = ViTConfig(image_size=16, patch_size=8, **shape)
    image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    processor = DualDistillProcessor(image_processor, answering_processor.tokenizer)

    def pooling(of_text: str, of_image: str) -> PreTrainedModel:
        towers = DualEncoderConfig(text_config=text, vision_config=image, text_pooling=of_text, vision_pooling=of_image)
        torch.manual_seed(0)
        return DualEncoderForQuestionAnswering(towers).eval()

    encode(pooling("cls", "mean"), processor, images, tmp_path / "store")
    assert encode(pooling("cls", "mean"), processor, images, tmp_path / "store").encoded == 0
    for others in (("cls", "cls"), ("mean", "mean")):
        with pytest.raises(ValueError, match=r"they differ in config\. Take the model that made it, or encode"):
            FeatureStoreVQA(pooling(*others), processor, FeatureStore(tmp_path / "store"))


def test_the_identity_of_own_towers_is_that_of_stores_of_before(model, answering_processor) -> None:
    towers = {part: getattr(model.config, part) for part in ("text_config", "vision_config")}
    fields = {part: {one: getattr(own, one) for one in own_fields(type(own))} for part, own in towers.items()}
    assert model_identity(model)["config_sha256"] == fingerprint(fields)
    assert [*processor_settings("text", model, answering_processor)] == ["tokenizer_sha256", "max_tokens"]


def test_texts_that_were_cut_at_the_other_end_are_refused(model, answering_processor, tmp_path) -> None:
    encode_texts(model, answering_processor, TEXTS, tmp_path / "store")
    answering_processor.tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match=r"other settings \(processor.tokenizer_sha256: "):
        encode_texts(model, answering_processor, TEXTS, tmp_path / "store")


def test_models_that_encode_no_image_alone_are_refused(answering_model, answering_processor, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="FusionEncoderForQuestionAnswering reads text and image together"):
        encode(answering_model(FusionEncoderForQuestionAnswering), answering_processor, images, tmp_path / "store")
    two = answering_model(DualEncoderForImagesAndTextClassification, num_images=2)
    with pytest.raises(ValueError, match="The model reads 2 images together"):
        encode(two, answering_processor, images, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_broken_model_is_named_by_its_first_bad_vector(model, answering_processor, images, tmp_path) -> None:
    torch.nn.init.constant_(model.dual_encoder.vision_model.layernorm.bias, float("nan"))
    with pytest.raises(ValueError, match="The pooled vector of 'image 0' holds NaN"):
        encode(model, answering_processor, images, tmp_path / "store")


@pytest.mark.parametrize(
    "settings, message", [({"shard_size": 0}, "shard_size is 0"), ({"dtype": "int8"}, "dtype is 'int8'")]
)
def test_settings_out_of_range(settings, message, model, answering_processor, images, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        encode(model, answering_processor, images, tmp_path / "store", **settings)


def test_a_rank_without_its_world(model, answering_processor, images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is 2 and WORLD_SIZE 2"):
        encode(model, answering_processor, images, tmp_path / "store")
