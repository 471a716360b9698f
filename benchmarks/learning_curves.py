"""Where the paper's curve goes: students of a quickstart's teacher over steps, by what teaches them and how they start.

    python benchmarks/learning_curves.py [--seeds 0 1 2] [--steps 500 1000 2000 4000 8000 16000] [--terms ...]
        [--runs-dir runs/quickstart]

Needs the teachers that benchmarks/quickstart_seeds.py leaves in RUNS_DIR/default-random-seedN. Each point is a run of
its own, with its whole schedule: the paper's student (pooled vectors interact; no interaction layer) on hard labels, on
the teacher's soft labels, on these and its attention of the last layer or of all, and on these and hard labels; from
random weights and from the teacher's; and one with an interaction layer, from random weights, on hard labels, on soft
labels, on these, both attentions and hidden states, and on all of that and hard labels. All other settings are those of
the quickstart's students. Seconds are of this process's processor, one thread. A finished run is read, not made again;
short runs of all seeds come first. `--time` times a step of each way of teaching, all in turn in one process, for
comparisons at equal seconds. `--tiny` tries the script out and records nothing.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _record import keep_freed_memory, provenance, write
from datasets import DatasetDict
from interaction_layers import load_scenes, training_fields
from transformers import TrainerCallback, set_seed

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
Weights = dict[str, Any] | None
TERMS: dict[str, Weights] = {
    "hard labels": None,
    "soft labels": {"attention_weight": 0.0},
    "soft labels, attention": {},
    "soft labels, attention of all layers": {"layer_map": {layer: layer for layer in range(4)}},
    "soft labels, attention, hard labels": {"label_weight": 1.0},
}
# What teaches a student with interaction layers; "distilled" is what taught it best (`interaction_layers.py terms`).
LAYER_TERMS: dict[str, Weights] = {
    "hard labels": None,
    "soft labels": {"attention_weight": 0.0},
    "distilled": {"interaction_attention_weight": 1.0, "interaction_hidden_weight": 1.0},
    "distilled, hard labels": {
        "interaction_attention_weight": 1.0,
        "interaction_hidden_weight": 1.0,
        "label_weight": 1.0,
    },
}
STARTS = ("random", "teacher", "one layer")
TIMED_STEPS = 30


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000, 16000])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument(
        "--terms", nargs="+", choices=list({**TERMS, **LAYER_TERMS}), help="what teaches (default: all)"
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--finished", action="store_true", help="record what is finished; train nothing")
    parser.add_argument("--time", action="store_true", help="train nothing to its end; time a step of each, in turn")
    parser.add_argument("--tiny", action="store_true", help="few scenes and two steps, to try the script out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = provenance() | {"seed": options.seeds}
    source["command"] = source["command"].replace(str(options.runs_dir), "RUNS")
    if options.time:
        keep_freed_memory()
        times = time_steps(options)
        if not options.tiny:
            write("learning_curves_steps", times, source)
        return

    runs = []
    for steps, start, seed in itertools.product(options.steps, options.starts, options.seeds):
        for terms in terms_of(start):
            if options.terms and terms not in options.terms:
                continue
            if not options.finished or file_of(options, seed, f"{terms}, {start}", steps).is_file():
                runs.append(run_once(options, seed, start, terms, steps))
    if not options.tiny:
        write("learning_curves", runs, source)


def run_once(options: argparse.Namespace, seed: int, start: str, terms: str, steps: int) -> dict[str, Any]:
    """Train and evaluate a student of a variant, or read what an earlier start of the script found."""
    layers, weights = int(start == "one layer"), terms_of(start)[terms]
    return finished(options, seed, f"{terms}, {start}", steps, layers, start == "teacher", weights) | {
        "start": start,
        "terms": terms,
    }


def file_of(options: argparse.Namespace, seed: int, name: str, steps: int) -> Path:
    """Where a run's result is kept."""
    folder = options.runs_dir / f"default-random-seed{seed}" / "learning_curves"
    return folder / f"{name}, {steps}{', tiny' if options.tiny else ''}.json"


def finished(
    options: argparse.Namespace, seed: int, name: str, steps: int, layers: int, from_teacher: bool, weights: Weights
) -> dict[str, Any]:
    """Train and evaluate a student of a seed's teacher, or read what an earlier start found under its name."""
    file = file_of(options, seed, name, steps)
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        teacher = file.parents[1] / "teacher"
        file.write_text(json.dumps(train(options, teacher, seed, steps, layers, from_teacher, weights)))
    found = {"seed": seed, "steps": steps, **json.loads(file.read_text())}
    accuracies = f"test {100 * found['accuracy']:.1f} %, teacher {100 * found['teacher_accuracy']:.1f}"
    print(f"seed {seed}, {name}, {steps:,} steps: {accuracies}", flush=True)
    return found


class AttentionShare(TrainerCallback):
    """Weighs the attention terms by a function of how much of the training has passed."""

    def __init__(self, trainer: DistillationTrainer, share: Callable[[float], float]):
        self.trainer, self.share = trainer, share
        self.full = {name: weight for name, weight in self._weights().items() if "attention" in name}

    def _weights(self) -> dict[str, float]:
        # Of the objective as it is now: each run makes its own.
        assert self.trainer.distillation_objective is not None
        return self.trainer.distillation_objective.weights

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Set the weights of this step."""
        share = self.share(state.global_step / state.max_steps)
        self._weights().update({name: share * weight for name, weight in self.full.items()})


class Student(NamedTuple):
    """What is ready to be trained and asked."""

    trainer: DistillationTrainer
    teacher: Any
    data: DatasetDict
    collator: DistillationCollator


def make_student(
    options: argparse.Namespace, folder: Path, seed: int, steps: int, layers: int, from_teacher: bool, weights: Weights
) -> Student:
    """Make a student as the quickstart does, but for what teaches it."""
    task, data = get_task("scenes"), load_scenes(options, seed)
    teacher, processor = load_teacher(folder)
    given = dict(weights or {})
    # A student that starts from the teacher's weights takes its last layers for its own, unless it is said otherwise.
    start = given.pop("interaction_from", range(-layers, 0)) if from_teacher else None
    attention_share = given.pop("attention_share", None)
    set_seed(seed)
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(
        teacher, interaction_layers=layers, interaction_from=start
    )
    if not from_teacher:
        set_seed(seed)
        student = DualEncoderForQuestionAnswering(student.config)

    collator = DistillationCollator(processor, task, list(teacher.config.id2label.values()))
    fields = {"muon_learning_rate": PRESETS["default"].muon_learning_rate, "preflight": False}
    fields |= {**training_fields(options, seed, steps), **given}
    trainer = DistillationTrainer(
        student,
        DistillationTrainingArguments(output_dir=tempfile.mkdtemp(), **fields),
        teacher=None if weights is None else teacher,
        train_dataset=data["train"],
        data_collator=collator,
        processing_class=processor,
    )
    if attention_share:
        trainer.add_callback(AttentionShare(trainer, attention_share))
    return Student(trainer, teacher, data, collator)


def train(*given: Any) -> dict[str, Any]:
    """Train a student (arguments of `make_student`); accuracies on test and validation."""
    trainer, teacher, data, collator = make_student(*given)
    began = time.process_time()
    trainer.train()
    found: dict[str, Any] = {"processor_seconds": round(time.process_time() - began, 1)}

    for name, model, split in (
        ("", trainer.model, "test"),
        ("validation_", trainer.model, "validation"),
        ("teacher_", teacher, "test"),
    ):
        answers = predict_answers(model.eval(), data[split], collator, 512, name)
        report = report_answers(answers, data[split], get_task("scenes"), None).to_dict()
        found |= {f"{name}accuracy": report["accuracy"], f"{name}accuracy_by_type": report["accuracy_by_group"]}
    return found


class StepTimes(TrainerCallback):
    """Notes when each step begins, from batch to batch."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def on_step_begin(self, *args: Any, **given: Any) -> None:
        """Note it."""
        self.began.append(time.perf_counter())


def time_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a step of every way of teaching, one after another in each of three rounds."""
    ways = [(start, terms) for start in ("random", "one layer") for terms in terms_of(start)]
    times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    folder = options.runs_dir / f"default-random-seed{options.seeds[0]}" / "teacher"
    for _, way in itertools.product(range(3), ways):
        layers = int(way[0] == "one layer")
        made = make_student(options, folder, 0, TIMED_STEPS, layers, False, terms_of(way[0])[way[1]])
        noted = StepTimes()
        made.trainer.add_callback(noted)
        made.trainer.train()
        # The first steps make room for what the later ones reuse.
        times[way] += [later - one for one, later in itertools.pairwise(noted.began[len(noted.began) // 3 :])]
    rows = [
        {"start": start, "terms": terms, "ms_a_step": round(1000 * statistics.median(found), 2)}
        for (start, terms), found in times.items()
    ]
    print(*rows, sep="\n")
    return rows


def terms_of(start: str) -> dict[str, Weights]:
    """What teaches a student of a kind."""
    return LAYER_TERMS if start == "one layer" else TERMS


if __name__ == "__main__":
    main()
