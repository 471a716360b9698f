"""Where the paper's curve goes: students of a quickstart's teacher over steps, by what teaches them and how they start.

    python benchmarks/learning_curves.py [--seeds 0 1 2] [--steps 500 1000 2000 4000] [--runs-dir runs/quickstart]

Needs the teachers that benchmarks/quickstart_seeds.py leaves in RUNS_DIR/default-random-seedN. Each point is a run of
its own, with its whole schedule: the paper's student (pooled vectors interact; no interaction layer) on hard labels, on
the teacher's soft labels, on these and its attention of the last layer or of all, and on these and hard labels; from
random weights and from the teacher's. All other settings are those of the quickstart's students. Seconds are of this
process's processor, one thread, so that other work beside it does not count. A finished run is read, not made again;
short runs of all seeds come first. `--tiny` tries the script out and records nothing.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _record import provenance, write
from interaction_layers import load_scenes, training_fields
from transformers import set_seed

from dual_distill import (
    DistillationCollator,
    DistillationTrainer,
    DistillationTrainingArguments,
    DualEncoderForQuestionAnswering,
    load_teacher,
)
from dual_distill.data import get_task
from dual_distill.quickstart import PRESETS
from dual_distill.trainer import predict_answers, report_answers

# What teaches, as fields of the training arguments; None: there is no teacher.
TERMS: dict[str, dict[str, Any] | None] = {
    "hard labels": None,
    "soft labels": {"attention_weight": 0.0},
    "soft labels, attention": {},
    "soft labels, attention of all layers": {"layer_map": {layer: layer for layer in range(4)}},
    "soft labels, attention, hard labels": {"label_weight": 1.0},
}


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--starts", nargs="+", choices=("random", "teacher"), default=["random", "teacher"])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--tiny", action="store_true", help="few scenes and two steps, to try the script out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = provenance() | {"seed": options.seeds}
    source["command"] = source["command"].replace(str(options.runs_dir), "RUNS")

    runs = []
    for steps, start, seed, terms in itertools.product(options.steps, options.starts, options.seeds, TERMS):
        runs.append(run_once(options, seed, start, terms, steps))
    if not options.tiny:
        write("learning_curves", runs, source)


def run_once(options: argparse.Namespace, seed: int, start: str, terms: str, steps: int) -> dict[str, Any]:
    """Train and evaluate a student, or read what an earlier start of the script found."""
    folder = options.runs_dir / f"default-random-seed{seed}"
    file = folder / "learning_curves" / f"{terms}, {start}, {steps}{', tiny' if options.tiny else ''}.json"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(train(options, folder / "teacher", seed, start, terms, steps)))
    found = {"seed": seed, "start": start, "terms": terms, "steps": steps, **json.loads(file.read_text())}
    accuracies = f"test {100 * found['accuracy']:.1f} %, teacher {100 * found['teacher_accuracy']:.1f}"
    print(f"seed {seed}, {terms}, from {start}, {steps:,} steps: {accuracies}", flush=True)
    return found


def train(options: argparse.Namespace, folder: Path, seed: int, start: str, terms: str, steps: int) -> dict[str, Any]:
    """Train a student as the quickstart does, but for what teaches it; accuracies on test and validation."""
    task, data = get_task("scenes"), load_scenes(options, seed)
    teacher, processor = load_teacher(folder)
    set_seed(seed)
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(teacher)
    if start == "random":
        set_seed(seed)
        student = DualEncoderForQuestionAnswering(student.config)

    weights = TERMS[terms]
    collator = DistillationCollator(processor, task, list(teacher.config.id2label.values()))
    arguments = DistillationTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        muon_learning_rate=PRESETS["default"].muon_learning_rate,
        **training_fields(options, seed, steps),
        preflight=False,
        **(weights or {}),
    )
    trainer = DistillationTrainer(
        student,
        arguments,
        teacher=None if weights is None else teacher,
        train_dataset=data["train"],
        data_collator=collator,
        processing_class=processor,
    )
    began = time.process_time()
    trainer.train()
    found: dict[str, Any] = {"processor_seconds": round(time.process_time() - began, 1)}

    for name, model, split in (
        ("", student, "test"),
        ("validation_", student, "validation"),
        ("teacher_", teacher, "test"),
    ):
        answers = predict_answers(model.eval(), data[split], collator, 512, name)
        report = report_answers(answers, data[split], task, None).to_dict()
        found |= {f"{name}accuracy": report["accuracy"], f"{name}accuracy_by_type": report["accuracy_by_group"]}
    return found


if __name__ == "__main__":
    main()
