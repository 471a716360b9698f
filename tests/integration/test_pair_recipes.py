"""Recipes of pre-training and retrieval through the command, on tiny scenes and on a few rows in the official formats.

Each run starts from and is taught by what the recipe before it left, down to fine-tuning on answers and statements.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining
from worlds.write import TOKENIZER_TEXTS, write_captions, write_statements

from dual_distill.modeling import DualEncoderForImageTextRetrieval, FusionEncoderForImageTextRetrieval
from dual_distill.teachers import load_model

RECIPES = Path(__file__).parents[2] / "recipes"
STARTS = {
    "pretrain_scenes/teacher": {},
    "pretrain_scenes/hard_labels": {},
    "pretrain_scenes/distilled": {"teacher": "pretrain_scenes/teacher"},
    "retrieval_scenes/teacher": {"init_from": "pretrain_scenes/teacher"},
    "retrieval_scenes/hard_labels": {"init_from": "pretrain_scenes/hard_labels"},
    "retrieval_scenes/distilled": {"init_from": "pretrain_scenes/distilled", "teacher": "retrieval_scenes/teacher"},
    "pretrain/teacher": {"init_from": "mlm"},
    "pretrain/distilled": {"init_from": "pretrain/teacher", "teacher": "pretrain/teacher"},
    "retrieval/teacher": {"init_from": "mlm"},
    "retrieval/distilled": {"init_from": "pretrain/distilled", "teacher": "retrieval/teacher"},
    "retrieval/teacher@flickr30k": {"init_from": "mlm"},
    "retrieval/distilled@flickr30k": {"init_from": "pretrain/distilled", "teacher": "retrieval/teacher@flickr30k"},
}
FINE_TUNED = {
    "scenes/teacher": {"init_from": "pretrain_scenes/teacher"},
    "scenes/hard_labels": {"init_from": "pretrain_scenes/hard_labels"},
    "scenes/distilled": {"init_from": "pretrain_scenes/distilled", "teacher": "scenes/teacher"},
    "scene_statements/teacher": {"init_from": "pretrain_scenes/teacher"},
    "scene_statements/hard_labels": {"init_from": "pretrain_scenes/hard_labels"},
    "scene_statements/distilled": {"init_from": "pretrain_scenes/distilled", "teacher": "scene_statements/teacher"},
}
SCENES = {"train": 12, "validation": 12, "test": 12}
TERMS = {
    "pretrain/teacher": {"itm_loss", "mlm_loss"},
    "pretrain/hard_labels": {"itc_loss", "itm_loss", "mlm_loss", "in_batch_recall"},
    "pretrain/distilled": {
        *("itc_loss", "itm_loss", "mlm_loss", "in_batch_recall"),
        *("attention_loss", "itm_distillation_loss", "mlm_distillation_loss"),
    },
    "retrieval/teacher": {"right_first_share"},
    "retrieval/hard_labels": {"itc_loss", "mean_recall", "text_to_image_recall@1", "image_to_text_recall@10"},
    "retrieval/distilled": {"itc_loss", "ranking_loss", "attention_loss", "mean_recall", "image_to_text_recall@5"},
}


def jpg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 32), (20 * number % 256, 90, 7 * number % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_karpathy(folder: Path, name: str) -> None:
    (folder / "images").mkdir(parents=True)
    images = []
    for number, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        (folder / "images" / f"{number}.jpg").write_bytes(jpg(number))
        sentences = [
            {"raw": f"a {'red' if number % 2 else 'blue'} shape {word}.", "sentid": 2 * number + turn}
            for turn, word in enumerate(("is there", "show a color"))
        ]
        images.append(
            {"filepath": "images", "filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences}
        )
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": images, "dataset": name}))


def write_tars(folder: Path, count: int = 2, rows: int = 6) -> None:
    folder.mkdir(parents=True)
    for shard in range(count):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for row in range(rows):
                number = rows * shard + row
                caption = f"the shape is {number} red two"
                # As Visual Genome is fetched: many phrases a picture, in the file beside it.
                text = (
                    ("json", json.dumps({"phrases": [caption, "a red shape"]}))
                    if folder.name == "vg"
                    else ("txt", caption)
                )
                for suffix, content in (("jpg", jpg(number + 30)), (text[0], text[1].encode())):
                    entry = tarfile.TarInfo(f"{number:09}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    for name in ("coco", "flickr30k"):
        write_karpathy(root / name, name)
    for name in ("vg", "cc3m", "sbu"):
        write_tars(root / name)
    write_captions(root / "scene_captions", SCENES)
    write_statements(root / "scene_statements", SCENES)
    return root


@pytest.fixture(scope="module")
def words_of(pairs: Path, vilts: dict, tiny_training: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    root = tmp_path_factory.mktemp("runs")

    def words(name: str, trained: Callable) -> list[str]:
        recipe, role = name.partition("@")[0].split("/")
        found = [str(RECIPES / f"{recipe}.yaml"), "--role", role, "--output_dir", str(root / name), *tiny_training]
        for field, start in {**STARTS, **FINE_TUNED}[name].items():
            found += [f"--{field}", vilts.get(start) or trained(start)[0]]
        if name.startswith("scenes"):
            return [*found, "--data_options", json.dumps({"num_scenes": SCENES})]
        if "scene" in name:
            data = pairs / ("scene_statements" if "statements" in name else "scene_captions")
            texts = ["--tokenizer_texts", str(data / TOKENIZER_TEXTS)] if name.startswith("pretrain") else []
            return [*found, "--data", str(data), *texts]
        return [*found, "--data", str(pairs if recipe == "pretrain" else pairs / (name.partition("@")[2] or "coco"))]

    return words


@pytest.fixture(scope="module")
def trained(words_of: Callable, dual_distill: Callable) -> Callable[[str], tuple[str, dict]]:
    done: dict[str, tuple[str, dict]] = {}

    def run(name: str) -> tuple[str, dict]:
        if name not in done:
            printed = dual_distill("train", *words_of(name, run), "--json", "--debug")
            assert printed.code == 0, printed.err
            results = json.loads(printed.out)
            done[name] = results["output_dir"], results
        return done[name]

    return run


@pytest.mark.parametrize("name", STARTS)
def test_a_recipe_runs_says_every_term_and_its_model_loads(name: str, trained: Callable) -> None:
    folder, results = trained(name)
    assert results["steps"] == 2
    kind = name.partition("@")[0].replace("_scenes", "")
    assert {f"eval_{term}" for term in TERMS[kind]} <= results.keys()
    assert all(value == value for value in results.values())  # no NaN
    is_fusion = "/teacher" in name
    if name.startswith("pretrain"):
        auto = AutoModelForPreTraining
    else:
        auto = FusionEncoderForImageTextRetrieval if is_fusion else DualEncoderForImageTextRetrieval
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(model).__name__.startswith("Fusion" if is_fusion else "Dual")
    saved = load_file(Path(folder, "model.safetensors"))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in saved.items())
    record = json.loads(Path(folder, "run.json").read_text())
    measured = {one["metric"] for one in record.get("measurements", [])}
    quality = {name.removeprefix("eval_") for name in results if "recall" in name or "share" in name}
    assert quality == {name for name in measured if not name.endswith("loss")}
    assert "loss" in measured
    assert ("teacher" in record) == ("teacher" in STARTS[name])


def test_retrieval_takes_over_what_pre_training_learned(trained: Callable) -> None:
    """Two steps at a small rate change little: the projections are those of pre-training."""
    before = load_file(Path(trained("pretrain_scenes/hard_labels")[0], "model.safetensors"))
    after = load_file(Path(trained("retrieval_scenes/hard_labels")[0], "model.safetensors"))
    for name in ("text_projection.weight", "image_projection.weight", "logit_scale"):
        torch.testing.assert_close(after[name], before[name], atol=0.01, rtol=0)


@pytest.mark.parametrize("name", FINE_TUNED)
def test_what_was_pre_trained_is_fine_tuned_on_answers_and_statements(name: str, trained: Callable) -> None:
    """The head is new, the body the pre-trained one after two small steps, and a fine-tuned teacher may help."""
    folder, results = trained(name)
    assert 0 <= results["eval_accuracy"] <= 1
    assert ("eval_attention_loss" in results) == name.endswith("distilled")
    model, before = load_model(folder).model, load_model(trained(FINE_TUNED[name]["init_from"])[0]).model
    assert model.config.num_images == (2 if "statements" in name else 1)
    for key in ("fusion_encoder.", "dual_encoder.text_model.", "dual_encoder.vision_model."):
        compared = [part for part in before.state_dict() if part.startswith(key) and "query.weight" in part]
        for part in compared:
            torch.testing.assert_close(model.state_dict()[part], before.state_dict()[part], atol=0.01, rtol=0)
        assert bool(compared) == (("fusion" in key) == name.endswith("teacher"))


@pytest.mark.parametrize("name", ["pretrain_scenes/distilled", "pretrain/distilled", "retrieval_scenes/teacher"])
def test_dry_runs_say_what_the_run_does(
    name: str, words_of: Callable, trained: Callable, dual_distill: Callable, tmp_path: Path
) -> None:
    words = [*words_of(name, trained), "--output_dir", tmp_path / "never"]
    printed = dual_distill("train", *words, "--dry-run", "--json", "--debug")
    assert printed.code == 0, printed.err
    plan = json.loads(printed.out)
    assert plan["steps"] == trained(name)[1]["steps"]
    assert (plan["num_labels"], plan["rows_per_step"]) == (0, 4)
    assert plan["memory_bytes"]["activations"] > 0
    if name.startswith("pretrain/"):
        assert plan["rows"] == {"train": None, "validation": 8}
        assert plan["epochs"] is None
    else:
        assert plan["rows"]["train"] == 60
    assert plan["teacher"] == (None if name.endswith("teacher") else "FusionEncoderForPreTraining")
    shown = dual_distill("train", *words, "--dry-run").out
    assert "none, images with captions" in shown
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["--task", "scenes", "--head", "pretraining"],
            "head is 'pretraining', which learns from image_text, but task 'scenes' has",
        ),
        (
            ["--task", "image_text", "--head", "pretraining"],
            "needs data_options with sources .* but sources is missing",
        ),
        (
            ["--task", "image_text", "--data_options", '{"source": 1}'],
            "Task 'image_text' has no option 'source'; did you mean 'sources'",
        ),
        (
            ["--task", "custom", "--head", "pretraining", "--data", "x.csv"],
            "task custom has labels; for captions take task image_text",
        ),
    ],
)
def test_what_does_not_fit_is_said(words: list[str], problem: str, dual_distill: Callable, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}")
    printed = dual_distill("train", recipe, *words, "--output_dir", tmp_path / "run", "--use_cpu", "true")
    assert printed.code == 2
    assert re.search(problem, printed.err), printed.err


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in {**STARTS, **FINE_TUNED} if name.endswith("/distilled")])
def test_a_resumed_run_is_the_whole_one(
    name: str, words_of: Callable, trained: Callable, check_resume: Callable
) -> None:
    check_resume(words_of(name, trained))
