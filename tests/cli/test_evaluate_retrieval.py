"""`dual-distill evaluate` on images with captions, as a user meets it."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import ViltImageProcessorPil
from worlds.write import write_captions

from dual_distill.cli.evaluate import _evaluate_answers
from dual_distill.cli.options import run_command
from dual_distill.data import get_task, load_task, train_tokenizer
from dual_distill.inference import evaluate_retrieval
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    FusionEncoderConfig,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForPreTraining,
)

run = partial(run_command, "evaluate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dual and a fusion encoder."""
    folder = tmp_path_factory.mktemp("models")
    write_captions(folder / "scenes", {"validation": 2, "test": 6}, captions_per_scene=2)
    tokenizer = train_tokenizer(load_task("coco_retrieval", folder / "scenes")["test"]["caption"])
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 36}, size_divisor=12), tokenizer)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text, image = {"vocab_size": len(tokenizer), "max_position_embeddings": 40}, {"image_size": 36, "patch_size": 12}
    torch.manual_seed(0)
    models = {
        "dual": DualEncoderForImageTextRetrieval(
            DualEncoderConfig(text_config=shape | text, vision_config=shape | image, projection_dim=8)
        ),
        "layers": DualEncoderForImageTextRetrieval(
            DualEncoderConfig(
                text_config=shape | text, vision_config=shape | image, projection_dim=8, interaction_layers=1
            )
        ),
        "fusion": FusionEncoderForImageTextRetrieval(FusionEncoderConfig(**shape, **text, **image)),
    }
    for model in models.values():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    dual, fusion = (
        DualEncoderForPreTraining(models["dual"].config),
        FusionEncoderForPreTraining(models["fusion"].config),
    )
    dual.load_state_dict(models["dual"].state_dict(), strict=False)
    fusion.fusion_encoder.load_state_dict(models["fusion"].fusion_encoder.state_dict())
    with torch.no_grad():
        fusion.itm_score.fc.weight[1] = fusion.itm_score.fc.weight[0] + models["fusion"].rank_output.weight[0]
    models |= {"dual_pretraining": dual, "fusion_pretraining": fusion}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


@pytest.fixture
def words(folder: Path) -> list[str]:
    return [str(folder / "dual"), "--task", "coco_retrieval", "--data", str(folder / "scenes"), "--device", "cpu"]


def test_recalls_both_ways_alone_and_re_ranked(folder, words, capsys) -> None:
    rerank = ["--rerank", str(folder / "fusion"), "--rerank-top", "3", "--fold-images", "2"]
    run([*words, *rerank, "--json"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    processor = DualDistillProcessor.from_pretrained(folder / "dual")
    report = evaluate_retrieval(
        load_task("coco_retrieval", folder / "scenes")["test"],
        get_task("coco_retrieval"),
        DualEncoderForImageTextRetrieval.from_pretrained(folder / "dual"),
        processor,
        FusionEncoderForImageTextRetrieval.from_pretrained(folder / "fusion"),
        processor,
        rerank_top=3,
        fold_images=2,
    )
    assert result["whole"] == report.whole
    assert result["mean_of_folds"] == report.mean_of_folds
    assert (result["images"], result["captions"], result["folds"], result["rerank_top"]) == (6, 12, 3, 3)
    assert [time["way"] for time in result["times"]] == ["dual", "rerank", "fusion"]
    assert result["rerank"] == str(folder / "fusion")


def test_a_stream_is_not_evaluated(folder: Path) -> None:
    with pytest.raises(ValueError, match="task 'image_text' is a stream to train on alone; evaluate on another"):
        run([str(folder / "dual"), "--task", "image_text"])


@pytest.mark.parametrize("again", [[], ["--rerank-with-layers", "--rerank-top", "3"]])
def test_the_nearest_images_of_each_caption_are_written(folder, words, capsys, tmp_path, again) -> None:
    file, model = tmp_path / "new" / "found.jsonl", "layers" if again else "dual"
    run([str(folder / model), *words[1:], *again, "--predictions", str(file), "--top-k", "2", "--json"])
    recalls = json.loads(capsys.readouterr().out)["whole"]["reranked" if again else "dual"]["text_to_image"]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    data = load_task("coco_retrieval", folder / "scenes")["test"]
    assert [row["caption"] for row in rows] == data["caption"][:]
    assert [row["label"] for row in rows] == [row["image_id"] for row in rows] == data["image_id"][:]
    assert all(row["prediction"] == row["top_k"][0]["answer"] and len(row["top_k"]) == 2 for row in rows)
    assert sum(row["right"] for row in rows) / 12 == pytest.approx(recalls["recall@1"])


def test_pre_trained_checkpoints_do_without_training(folder, words, capsys) -> None:
    """A matching head's margin ranks as the retrieval head that was made of it."""
    run([*words, "--rerank", str(folder / "fusion")])
    apart = capsys.readouterr().out.splitlines()
    run([str(folder / "dual_pretraining"), *words[1:], "--rerank", str(folder / "fusion_pretraining")])
    together = capsys.readouterr().out.splitlines()
    table = slice(1, 7)
    assert together[table] == apart[table]
    assert "re-ranked" in together[3]


def test_the_models_own_layers_re_rank_without_a_second_model(folder, words, capsys) -> None:
    run([str(folder / "layers"), *words[1:], "--rerank-with-layers", "--rerank-top", "3", "--json"])
    result = json.loads(capsys.readouterr().out)
    model = DualEncoderForImageTextRetrieval.from_pretrained(folder / "layers")
    processor = DualDistillProcessor.from_pretrained(folder / "layers")
    rows, task = load_task("coco_retrieval", folder / "scenes")["test"], get_task("coco_retrieval")
    report = evaluate_retrieval(rows, task, model, processor, rerank_with_layers=True, rerank_top=3)
    assert (result["whole"], result["rerank_top"]) == (report.whole, 3)
    run([str(folder / "layers"), *words[1:], "--rerank-with-layers"])
    shown = capsys.readouterr().out
    assert "top 16 re-ranked" in shown
    assert "layers, all pairs" in shown
    with pytest.raises(ValueError, match="rerank_with_layers is set, but the model has no interaction layers"):
        run([*words, "--rerank-with-layers"])


def test_the_table(folder, words, capsys, tmp_path) -> None:
    run([*words, "--rerank", str(folder / "fusion"), "--output-dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "6 images, 12 captions" in out
    assert out.count("top 16 re-ranked") == out.count("dual encoder alone") == 2
    assert "72 pairs, measured" in out
    assert json.loads((tmp_path / "evaluation.json").read_text())["split"] == "test"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--rerank-top", "4"],
            "--rerank-top needs what orders candidates anew; give --rerank MODEL or --rerank-with-layers",
        ),
        (
            ["--edition", "2021", "--no-baselines", "--regions", "x", "--num-tags", "0"],
            "--edition, --no-baselines, --regions, --num-tags is given, but task .* is evaluated by its ranking",
        ),
        (["--top-k", "5"], "--top-k is given, but not --predictions, of which it says how many; leave it out"),
        (
            ["--task", "coco_captioning", "--edition", "2017", "--top-k", "5"],
            "--edition, --top-k is given, but task 'coco_captioning' is evaluated by its captions",
        ),
        (["--split", "dev"], "has no split 'dev'; it has validation, test"),
        (["--data-options", "[1]"], "data_options is '\\[1\\]'; give a JSON object"),
        (["--submission", "x.json"], "--submission is given, but task .* is evaluated by its ranking"),
        (
            ["--task", "scenes", "--rerank", "x", "--fold-images", "2"],
            "--rerank, --fold-images is given, but task 'scenes' is evaluated by its answers; leave it out",
        ),
    ],
)
def test_each_error_by_its_message(words, more: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([*words, *more])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "--output-dir, --no-baselines is given, but split 'test' has no labels; leave it out"),
        ("no", "--edition is of the VQA score, but task 'scenes' has one right answer a row; leave it out"),
    ],
)
def test_options_that_say_nothing_of_these_rows_are_refused(answer: str | None, message: str) -> None:
    rows = Dataset.from_dict({"question": ["is it?"], "answer": [answer], "question_id": [3]})
    told = {"split": "test", "predictions": Path("found.jsonl"), "output_dir": Path("runs"), "no_baselines": True}
    options = argparse.Namespace(submission=None, edition="2017", top_k=None, **told)
    with pytest.raises(ValueError, match=message):
        _evaluate_answers(options, get_task("scenes"), {"test": rows}, rows)


def test_a_fusion_encoder_alone_is_pointed_to_its_place(folder, words, capsys: Callable) -> None:
    with pytest.raises(
        ValueError, match=r"is a fusion encoder, which reads each pair; give the dual encoder .* by --rerank"
    ):
        run([str(folder / "fusion"), *words[1:]])
