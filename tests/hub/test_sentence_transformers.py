"""A saved retrieval student as an embedding model of sentence-transformers, which the extra of that name installs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn.functional import normalize
from transformers import BertTokenizer, PreTrainedModel, ViltImageProcessorPil, ViTImageProcessorPil

from dual_distill import DualDistillProcessor, DualEncoderConfig, DualEncoderForImageTextRetrieval
from dual_distill.hub_cards.architectures import add_code
from dual_distill.hub_cards.checkpoint_folder import collect

sentence_transformers = pytest.importorskip(
    "sentence_transformers", minversion="6", reason="sentence-transformers is not installed"
)
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "in", "the", "image", "?"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS, TOKENS = {"image_size": 16, "patch_size": 8, **SHAPE}, {"vocab_size": 11, "max_position_embeddings": 8, **SHAPE}
TOWERS = {
    "own": (PIXELS, TOKENS),
    "siglip and bert": (
        {"model_type": "siglip_vision_model", **PIXELS},
        {"model_type": "bert", "pad_token_id": 0, **TOKENS},
    ),
    "dinov2 and llama": (
        {"model_type": "dinov2", **PIXELS},
        {"model_type": "llama", "pad_token_id": 0, "num_key_value_heads": 2, **TOKENS},
    ),
}
# Of unequal lengths and sizes, so that padding is at work; the last is cut off.
TEXTS = ["what is in the image?", "what", "the image", "what is in the image what is in the image"]
IMAGES = [Image.linear_gradient("L").rotate(30 * i).resize((16 + 8 * i, 16)).convert("RGB") for i in range(4)]

Saved = tuple[DualEncoderForImageTextRetrieval, DualDistillProcessor, Path]


@pytest.fixture
def make_retriever(tmp_path: Path) -> Callable[..., Saved]:
    """A dual encoder for retrieval with noise on every parameter, its processor, and the folder that holds both."""

    def make(towers: str = "own", name: str = "student", **fields: int) -> Saved:
        vision, text = TOWERS[towers]
        config = DualEncoderConfig(vision_config=vision, text_config=text, projection_dim=12, **fields)
        model = DualEncoderForImageTextRetrieval(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        tokenizer = BertTokenizer({word: index for index, word in enumerate(WORDS)})
        # Towers of others read images of one size.
        size = {"shortest_edge": 16} if towers == "own" else {"height": 16, "width": 16}
        options = {"size_divisor": 8} if towers == "own" else {}
        images = (ViltImageProcessorPil if towers == "own" else ViTImageProcessorPil)(size=size, **options)
        processor = DualDistillProcessor(images, tokenizer)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return model, processor, tmp_path / name

    return make


@torch.inference_mode()
def own_vectors(model: PreTrainedModel, processor: DualDistillProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each text and image by itself, in unit vectors."""
    texts = [model.get_text_features(**processor(text=text, max_length=8)).pooler_output for text in TEXTS]
    images = [model.get_image_features(**processor(images=image)).pooler_output[:, 0] for image in IMAGES]
    return normalize(torch.cat(texts), dim=-1), normalize(torch.cat(images), dim=-1)


@pytest.mark.parametrize("towers", TOWERS)
def test_the_folder_gives_our_vectors_and_is_saved_and_loaded_again(make_retriever, towers, tmp_path) -> None:
    model, processor, folder = make_retriever(towers)
    texts, images = own_vectors(model, processor)
    embedder = sentence_transformers.SentenceTransformer(str(folder))
    embedder.save_pretrained(str(tmp_path / "again"))
    for one in (embedder, sentence_transformers.SentenceTransformer(str(tmp_path / "again"))):
        assert one.similarity_fn_name == "cosine"
        assert one.get_embedding_dimension() == 12
        found = one.encode(TEXTS), one.encode(IMAGES)
        np.testing.assert_allclose(found[0], texts, atol=1e-5)
        np.testing.assert_allclose(found[1], images, atol=1e-5)
        np.testing.assert_allclose(one.similarity(*found), texts @ images.T, atol=1e-5)
    # And is ours still.
    again = DualEncoderForImageTextRetrieval.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(own_vectors(again, processor), (texts, images))


def test_it_learns_by_a_loss_of_theirs(make_retriever, tmp_path: Path) -> None:
    embedder = sentence_transformers.SentenceTransformer(str(make_retriever()[2]))
    before = {name: weight.clone() for name, weight in embedder.state_dict().items()}
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, use_cpu=True, per_device_train_batch_size=4
    )
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=embedder,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": TEXTS, "positive": IMAGES}),
        loss=losses.MultipleNegativesRankingLoss(embedder),
    )
    assert trainer.train().training_loss > 0
    moved = {name.split(".")[2] for name, weight in embedder.state_dict().items() if not weight.equal(before[name])}
    assert {"text_projection", "image_projection", "dual_encoder"} <= moved
    trainer.save_model(str(tmp_path / "learned"))
    learned = DualEncoderForImageTextRetrieval.from_pretrained(tmp_path / "learned")
    assert torch.equal(learned.text_projection.weight, embedder[0].model.text_projection.weight)


def test_it_teaches_a_student_by_a_loss_of_theirs(make_retriever, tmp_path: Path) -> None:
    teacher = sentence_transformers.SentenceTransformer(str(make_retriever()[2]))
    student = sentence_transformers.SentenceTransformer(str(make_retriever("siglip and bert", "other")[2]))
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=30, learning_rate=1e-2, use_cpu=True, per_device_train_batch_size=4
    )
    rows = Dataset.from_dict({"image": IMAGES, "label": teacher.encode(IMAGES).tolist()})
    distance = losses.EmbedDistillLoss(student, distance_metric="cosine")
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=student, args=arguments, train_dataset=rows, loss=distance
    )

    def cosine() -> float:
        return student.similarity_pairwise(student.encode(IMAGES), teacher.encode(IMAGES)).mean().item()

    before = cosine()
    trainer.train()
    assert cosine() > before + 0.1


def run(code: str, *, with_package: bool) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in which the package may be absent."""
    absent = "" if with_package else "import sys; sys.modules['dual_distill'] = None\n"
    words = [sys.executable, "-c", f"{absent}from sentence_transformers import SentenceTransformer\n{code}"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_code_of_the_folder_runs_where_the_user_says_so_alone(make_retriever, tmp_path: Path) -> None:
    model, processor, folder = make_retriever()
    checkpoint = collect(folder)
    with_code = tmp_path / "with_code"
    with_code.mkdir()
    for name, content in add_code(checkpoint.files, checkpoint.architecture).items():
        (with_code / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())

    encode = "print('FOUND', SentenceTransformer({!r}, trust_remote_code={}).encode(['what']).tolist())"
    found = run(encode.format(str(with_code), True), with_package=False)
    assert "FOUND" in found.stdout, found.stderr
    [vector] = json.loads(found.stdout.split("FOUND", 1)[1])
    np.testing.assert_allclose(vector, own_vectors(model, processor)[0][1], atol=1e-5)

    refused = run(encode.format(str(with_code), False), with_package=False)
    assert refused.returncode
    assert "trust_remote_code=True" in refused.stderr
