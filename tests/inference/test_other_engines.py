"""mteb, workers of datasets, and a data set for the Hub: each by the real package, on something tiny."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, load_dataset, load_from_disk
from huggingface_hub import DatasetCard

from dual_distill import load_model
from dual_distill.inference import EncodeColumn, FeatureStore, encode_images
from dual_distill.modeling import DualEncoderForImageTextRetrieval, DualEncoderForQuestionAnswering

TEXTS = ["is there a red circle?", "how many blue squares are there?", "red?", "are there xylophones?", "blue circle"]


@pytest.fixture
def retriever(answering_model, answering_processor, tmp_path: Path) -> Any:
    model = answering_model(DualEncoderForImageTextRetrieval, projection_dim=8)
    for one in (model, answering_processor):
        one.save_pretrained(tmp_path / "model")
    return model, answering_processor, str(tmp_path / "model")


def test_mteb_scores_what_we_score(example, retriever, pictures) -> None:
    for name in ("mteb", "sentence_transformers"):
        pytest.importorskip(name)
    module, (model, processor, folder) = example("evaluate_with_mteb"), retriever
    tasks = [module.retrieval_task(pictures, TEXTS, f"Local{way}", way == "I2T") for way in ("T2I", "I2T")]
    found = module.scores(folder, tasks)
    with torch.inference_mode():
        texts = model.embed_texts(**processor(text=TEXTS))
        images = torch.cat([model.embed_images(**processor(images=picture)) for picture in pictures])
    for name, similarities in (("LocalT2I", texts @ images.T), ("LocalI2T", images @ texts.T)):
        ranks = (similarities > similarities.diagonal()[:, None]).sum(-1)
        for top_k in (1, 3):
            assert found[name][f"recall_at_{top_k}"] == pytest.approx((ranks < top_k).float().mean().item(), abs=1e-4)
        assert found[name]["main_score"] == pytest.approx((1 / (ranks + 2.0).log2()).mean().item(), abs=1e-4)


@pytest.fixture
def photos(pictures) -> dict[str, bytes]:
    """By ids in their order; one is no image."""
    found = {}
    for number, picture in enumerate(pictures):
        file = io.BytesIO()
        picture.save(file, "PNG")
        found[f"photo {number}"] = file.getvalue()
    return {**found, "photo 9": b"nothing"}


def check_store(folder: Path, retriever, photos, tmp_path: Path) -> None:
    """The same as one process makes, bit by bit, where each picture has a batch of its own."""
    # Loaded, since the last bits also depend on how weights lie in memory.
    encode_images(*load_model(retriever[2]), photos, tmp_path / "alone", shard_size=4, batch_size=1)
    found, expected = FeatureStore(folder), FeatureStore(tmp_path / "alone")
    assert found.ids() == expected.ids()
    assert found.unreadable() == expected.unreadable() != {}
    assert torch.equal(found.read(range(5)), expected.read(range(5)))
    assert found.manifest == expected.manifest
    for shard in (found.table.shard_file(0), found.table.shard_file(1)):
        assert shard.read_bytes() == expected.table.shard_file(int(shard.stem[-5:])).read_bytes()


def test_what_workers_of_datasets_encode_is_joined_into_a_store(retriever, photos, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"name": list(photos), "image": list(photos.values()), "text": [*TEXTS, "blue?"]})
    encode = EncodeColumn(retriever[2], image_column="image", id_column="name", batch_size=1)
    encoded = rows.map(encode, batched=True, batch_size=2, num_proc=2)
    (tmp_path / "parts").mkdir()
    for part in (0, 1):
        encoded.shard(2, part, contiguous=True).to_parquet(tmp_path / "parts" / f"{part}.parquet")
    report = encode.write_store(tmp_path / "parts", tmp_path / "store", shard_size=4)
    assert (report.rows, report.encoded, list(report.unreadable)) == (5, 5, ["photo 9"])
    check_store(tmp_path / "store", retriever, photos, tmp_path)
    assert encode.write_store(encoded, tmp_path / "store").encoded == 0

    of_texts = EncodeColumn(retriever[2], text_column="text")
    texts = rows.map(of_texts, batched=True)
    assert of_texts.write_store(texts, tmp_path / "texts", dtype="float16").rows == 6
    with torch.inference_mode():
        expected = retriever[0].embed_texts(**retriever[1](text=rows["text"][:]))
    np.testing.assert_allclose(FeatureStore(tmp_path / "texts").read(range(6)), expected, atol=1e-3)


def test_a_text_that_occurs_again_is_stored_once_and_one_without_words_is_refused(retriever, tmp_path: Path) -> None:
    of_texts = EncodeColumn(retriever[2], text_column="text")
    rows = Dataset.from_dict({"text": ["red?", TEXTS[0], "red?"]}).map(of_texts, batched=True)
    assert of_texts.write_store(rows, tmp_path / "texts").rows == 2
    store = FeatureStore(tmp_path / "texts")
    assert store.ids() == ["red?", TEXTS[0]]
    np.testing.assert_allclose(store.read([0, 1]), rows.with_format("numpy")["vector"][:2], atol=1e-6)
    for text in (None, " "):
        with pytest.raises(ValueError, match=f"A text is {text!r}, but must be a string with words in it"):
            of_texts({"text": ["red?", text]})


def test_what_cannot_be_joined_is_refused(retriever, photos, answering_model, tmp_path: Path) -> None:
    encode = EncodeColumn(retriever[2], image_column="image", id_column="name")
    made_with = encode({"image": [photos["photo 0"]], "name": ["a"]})["made_with"]
    one = {"name": ["a"], "sha256": [""], "problem": [""], "made_with": made_with}
    with pytest.raises(ValueError, match=r"The vector of 'a' has the shape \(3,\), not \(8,\) as those of"):
        encode.write_store(Dataset.from_dict({**one, "vector": [[1.0] * 3]}), tmp_path / "a")
    with pytest.raises(ValueError, match="The dataset has no column 'vector', only name, sha256, problem, made_with"):
        encode.write_store(Dataset.from_dict(one), tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no \*.parquet; give the folder that the workers wrote"):
        encode.write_store(tmp_path / "empty", tmp_path / "c")
    answering_model(DualEncoderForQuestionAnswering, interaction_layers=1).save_pretrained(tmp_path / "layers")
    retriever[1].save_pretrained(tmp_path / "layers")
    with pytest.raises(ValueError, match="holds tokens, not one vector an image; encode it by `dual-distill encode`"):
        EncodeColumn(str(tmp_path / "layers"), image_column="image").write_store(tmp_path, tmp_path / "d")


def test_rows_of_another_model_or_other_settings_are_not_joined(retriever, photos, tmp_path: Path) -> None:
    model, processor, folder = retriever
    encode = EncodeColumn(folder, image_column="image", id_column="name")
    rows = Dataset.from_dict({"name": list(photos), "image": list(photos.values())}).map(encode, batched=True)
    for kind in ("copy", "jpeg", "weights"):
        processor.jpeg_margin = 2 if kind == "jpeg" else None
        with torch.no_grad():
            model.text_projection.weight.add_(float(kind == "weights"))
        for one in (model, processor):
            one.save_pretrained(tmp_path / kind)
    for kind in ("jpeg", "weights"):
        with pytest.raises(ValueError, match="rows were made with another model or other settings, or have no column"):
            EncodeColumn(str(tmp_path / kind), image_column="image", id_column="name").write_store(rows, tmp_path / "a")
    with pytest.raises(ValueError, match="have no column 'made_with'; make them again"):
        encode.write_store(rows.remove_columns("made_with"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    copy = EncodeColumn(str(tmp_path / "copy"), image_column="image", id_column="name", batch_size=1)
    assert copy.write_store(rows, tmp_path / "b").rows == 5


def test_a_model_that_was_trained_again_into_its_folder_encodes_anew(retriever, tmp_path: Path) -> None:
    model, processor, folder = retriever
    Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "rows")
    rows, encode = load_from_disk(tmp_path / "rows"), EncodeColumn(folder, text_column="text")

    def check(encoded: Dataset) -> None:
        with torch.inference_mode():
            expected = model.embed_texts(**processor(text=TEXTS))
        np.testing.assert_allclose(encoded.with_format("numpy")["vector"][:], expected, atol=1e-5)

    # Equal content gives equal rows, which `datasets` does not make again.
    first = rows.map(encode, batched=True)
    check(first)
    copies = [rows.map(one, batched=True) for one in (encode, EncodeColumn(folder, text_column="text"))]
    assert {copy._fingerprint for copy in copies} == {first._fingerprint}

    with torch.no_grad():
        model.text_projection.weight.mul_(-2)
    model.save_pretrained(folder)
    check(rows.map(encode, batched=True))
    check(rows.map(EncodeColumn(folder, text_column="text"), batched=True))
    before = rows.map(encode, batched=True)
    processor.tokenizer.model_max_length = 4
    processor.save_pretrained(folder)
    after = rows.map(encode, batched=True)
    check(after)
    assert after["vector"] != before["vector"]

    # Sent to workers that see a model which this machine does not.
    away = EncodeColumn("no/such/folder", text_column="text")
    assert copy.copy(away).model == away.model


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["spark", "ray"])
def test_two_workers_of_other_engines_make_the_same_store(engine, example, retriever, photos, tmp_path: Path) -> None:
    pytest.importorskip({"spark": "pyspark"}.get(engine, engine))
    rows = Dataset.from_dict({"name": list(photos), "image": list(photos.values())})
    rows.to_parquet(tmp_path / "photos.parquet")
    encode = EncodeColumn(retriever[2], image_column="image", id_column="name", batch_size=1)
    module = example("encode_with_workers")
    getattr(module, f"with_{engine}")(encode, tmp_path / "photos.parquet", tmp_path / "parts", workers=2)
    module.join(encode, tmp_path / "parts", tmp_path / "store", shard_size=4)
    check_store(tmp_path / "store", retriever, photos, tmp_path)


def test_generated_scenes_are_a_data_set_of_the_hub(example, tmp_path: Path) -> None:
    module = example("publish_scenes")
    written = module.publish(tmp_path / "scenes", {"train": 4, "validation": 1, "test": 2}, seed=3)
    found = load_dataset(str(tmp_path / "scenes"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in found.items()} == {"train": 24, "validation": 6, "test": 12}
    assert found["train"].features["image"] == Image()
    assert found["test"][5] == written["test"][5]
    card = DatasetCard.load(tmp_path / "scenes" / "README.md")
    assert card.data.task_categories == ["visual-question-answering"]
    assert [one["split"] for one in card.data.configs[0]["data_files"]] == ["train", "validation", "test"]
    with pytest.raises(SystemExit, match="is not empty"):
        module.publish(tmp_path / "scenes", {"train": 1})
