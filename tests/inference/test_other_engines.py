"""mteb, workers of datasets, and a data set for the Hub: each by the real package, on something tiny."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value, load_dataset
from huggingface_hub import DatasetCard

from dual_distill.inference import EncodeColumn, FeatureStore, encode_images
from dual_distill.modeling import DualEncoderForImageTextRetrieval

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


def stored(retriever, pictures, folder: Path) -> torch.Tensor:
    model, processor, _ = retriever
    encode_images(model, processor, {str(n): picture for n, picture in enumerate(pictures)}, folder)
    return FeatureStore(folder).read(range(len(pictures)))


def test_workers_of_datasets_encode_as_a_store_does(retriever, pictures, tmp_path: Path) -> None:
    model, processor, folder = retriever
    features = Features({"image": Image(), "text": Value("string")})
    rows = Dataset.from_dict({"image": pictures, "text": TEXTS}, features)
    encoded = rows.cast_column("image", Image(decode=False)).map(
        EncodeColumn(folder, image_column="image"), batched=True, batch_size=2, num_proc=2
    )
    np.testing.assert_allclose(encoded["vector"][:], stored(retriever, pictures, tmp_path / "store"), atol=1e-6)
    texts = rows.map(EncodeColumn(folder, text_column="text", output_column="t"), batched=True)
    with torch.inference_mode():
        np.testing.assert_allclose(texts["t"][:], model.embed_texts(**processor(text=TEXTS)), atol=1e-5)


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
