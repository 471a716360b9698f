"""Pre-training with and without distillation, times fine-tuning with and without: four students beside a teacher.

    python benchmarks/pretraining_2x2.py [--seeds 0 1 2] [--tasks scenes scene_statements] [--runs-dir runs/pretraining]

On generated scenes: a fusion encoder is pre-trained on captions (matching, masked words) and fine-tuned on each task;
it teaches. A dual encoder is pre-trained on the same captions from random weights, on its own losses or with the
pre-trained fusion encoder's attention, matching and masked words beside them; each of the two is fine-tuned on hard
labels, or on the fine-tuned teacher's answers and attention. Equal steps and equal starts in every row. Validation,
early stopping or a choice of checkpoint there is none; accuracies are those of the test split. A run that is finished
already is read, not repeated.
"""

import argparse
from pathlib import Path
from typing import Any

from _record import provenance
from _runs import data_words, evaluate_once, make_parser, mean_and_each, parse, record, train_once, training_of, world

TASKS = ("scenes", "scene_statements")
STATEMENTS = ("--image-column", "image_0", "image_1", "--text-column", "sentence", "--label-column", "label")
TUNINGS = {"plain": "hard_labels", "distilled": "distilled"}


def main() -> None:
    """Run, print a table and record it."""
    parser = make_parser(__doc__, "pretraining")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of students")
    parser.add_argument("--teacher-seeds", type=int, nargs="+", help="of the teacher beside each (default: the same)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parse(parser)
    source = provenance() | {"seed": options.seeds}

    runs: list[dict[str, Any]] = []
    for seed, teacher_seed in zip(options.seeds, options.teacher_seeds or options.seeds, strict=True):
        runs += runs_of_seed(options, seed, teacher_seed)

    table = summary(runs, options.tasks)
    print(*(f"{row['task']:<18} {row['what']:<42} {row['shown']}" for row in table), sep="\n")
    only = "" if options.tasks == list(TASKS) else "_" + "_".join(options.tasks)
    record(options, f"pretraining_2x2{only}", {"table": table, "runs": runs}, source)


def runs_of_seed(options: argparse.Namespace, seed: int, teacher_seed: int) -> list[dict[str, Any]]:
    """Pre-train, fine-tune and test everything of one seed."""
    of_teacher, folder = options.runs_dir / f"teacher{teacher_seed}", options.runs_dir / f"seed{seed}"

    def train(recipe: str, role: str, where: Path, *words: str) -> dict[str, Any]:
        own_seed = teacher_seed if role == "teacher" else seed
        return train_once(options, recipe, role, where, "--seed", str(own_seed), *data_words(options, recipe), *words)

    teacher = train("pretrain_scenes", "teacher", of_teacher / "pretrained")
    taught = ["--teacher", teacher["folder"]]
    students = {
        "plain": train("pretrain_scenes", "hard_labels", folder / "pretrained_plain"),
        "distilled": train("pretrain_scenes", "distilled", folder / "pretrained_distilled", *taught),
    }

    runs: list[dict[str, Any]] = []
    for task in options.tasks:
        tuned = train(task, "teacher", of_teacher / task, "--init_from", teacher["folder"])
        shared = {"task": task, "seed": seed, "teacher_seed": teacher_seed}
        runs.append({**shared, "variant": "teacher"} | test(options, tuned, task))
        for start, student in students.items():
            for tuning, role in TUNINGS.items():
                words = ["--init_from", student["folder"]]
                words += ["--teacher", tuned["folder"]] if role == "distilled" else []
                done = train(task, role, folder / f"{task}_{start}_{tuning}", *words)
                cell = {"pretraining": start, "fine_tuning": tuning}
                runs.append({**shared, **cell} | test(options, done, task))
                print(f"{task} seed {seed}: {start} / {tuning} {100 * runs[-1]['accuracy']:.2f} %", flush=True)

    runs.append({"variant": "teacher pre-training", "seed": teacher_seed, **figures(teacher)})
    return runs + [{"variant": name, "seed": seed, **figures(student)} for name, student in students.items()]


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a training run."""
    return {name: value for name, value in result.items() if name not in ("folder", "output_dir", "seed")}


def test(options: argparse.Namespace, result: dict[str, Any], task: str) -> dict[str, Any]:
    """The accuracy on the test split beside how the model was trained."""
    if task == "scene_statements":
        words = ["--task", "custom", "--data", str(world(options, "statements")), *STATEMENTS]
    else:
        words = ["--task", task, *data_words(options, task)]
    file = Path(result["folder"]) / "test.json"
    evaluated = evaluate_once(file, result["folder"], *words, "--split", "test", "--no-baselines")
    kept = {name: evaluated[name] for name in evaluated if name.startswith("accuracy") or name == "rows"}
    return kept | training_of(result)


def summary(runs: list[dict[str, Any]], tasks: list[str]) -> list[dict[str, Any]]:
    """Mean and range over the seeds for each cell, teacher first."""
    cells = {"teacher": {"variant": "teacher"}}
    for start in TUNINGS:
        for tuning in TUNINGS:
            wanted = {"pretraining": start, "fine_tuning": tuning}
            cells[f"pre-training {start}, fine-tuning {tuning}"] = wanted

    rows = []
    for task in tasks:
        for what, cell in cells.items():
            fitting = [one for one in runs if {"task": task, **cell}.items() <= one.items()]
            shown = mean_and_each([100 * one["accuracy"] for one in fitting], 2, " %")
            rows.append({"task": task, "what": what, **shown})
    return rows


if __name__ == "__main__":
    main()
