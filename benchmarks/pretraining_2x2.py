"""Pre-training with and without distillation, times fine-tuning with and without: four students a task, teacher beside
them.

    python benchmarks/pretraining_2x2.py [--seeds 0 1 2] [--tasks scenes scene_statements] [--runs-dir runs/pretraining]

On generated scenes: a fusion encoder is pre-trained on captions (matching, masked words) and fine-tuned on each task;
it teaches. A dual encoder is pre-trained on the same captions from random weights, on its own losses alone or with the
pre-trained fusion encoder's attention, matching and masked words beside them; each of the two is fine-tuned on hard
labels, or on the fine-tuned teacher's answers and attention. Equal steps and equal starts in every row. Validation,
early stopping or a choice of checkpoint there is none; accuracies are those of the test split. A run that is finished
already is read, not repeated.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from _record import dual_distill, provenance, train_once, write
from worlds.write import TOKENIZER_TEXTS, write_captions, write_statements

TASKS = ("scenes", "scene_statements")
STATEMENTS = (
    *("--task", "custom", "--image-column", "image_0", "image_1"),
    *("--text-column", "sentence", "--label-column", "label"),
)


def main() -> None:
    """Run, print a table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of students")
    parser.add_argument("--teacher-seeds", type=int, nargs="+", help="of the teacher beside each (default: the same)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/pretraining"))
    parser.add_argument(
        "--set", nargs="*", default=[], help="further words for every training run, such as --max_steps=10"
    )
    parser.add_argument("--worlds", type=Path, default=Path("runs/worlds"), help="data; written unless it is there")
    options = parser.parse_args()
    for name, make in (("captions", write_captions), ("statements", write_statements)):
        if not (options.worlds / name).is_dir():
            make(options.worlds / name)
    source = provenance() | {"seed": options.seeds}
    runs: list[dict[str, Any]] = []
    for seed, teacher_seed in zip(options.seeds, options.teacher_seeds or options.seeds, strict=True):
        of_teacher, folder = options.runs_dir / f"teacher{teacher_seed}", options.runs_dir / f"seed{seed}"
        pretraining = "pretrain_scenes"
        teacher = train(options, pretraining, "teacher", of_teacher / "pretrained", teacher_seed)
        words = ["--teacher", teacher["folder"]]
        students = {
            "plain": train(options, pretraining, "hard_labels", folder / "pretrained_plain", seed),
            "distilled": train(options, pretraining, "distilled", folder / "pretrained_distilled", seed, *words),
        }
        for task in options.tasks:
            words = ["--init_from", teacher["folder"]]
            tuned = train(options, task, "teacher", of_teacher / task, teacher_seed, *words)
            shared = {"task": task, "seed": seed, "teacher_seed": teacher_seed}
            runs.append({**shared, "variant": "teacher"} | test(options, tuned, task))
            for start, student in students.items():
                for tuning, role in (("plain", "hard_labels"), ("distilled", "distilled")):
                    words = ["--init_from", student["folder"]]
                    words += ["--teacher", tuned["folder"]] if tuning == "distilled" else []
                    done = train(options, task, role, folder / f"{task}_{start}_{tuning}", seed, *words)
                    cell = {"pretraining": start, "fine_tuning": tuning}
                    runs.append({**shared, **cell} | test(options, done, task))
                    print(f"{task} seed {seed}: {start} / {tuning} {100 * runs[-1]['accuracy']:.2f} %", flush=True)
        runs.append({"variant": "teacher pre-training", "seed": teacher_seed, **figures(teacher)})
        runs += [{"variant": name, "seed": seed, **figures(student)} for name, student in students.items()]
    table = summary(runs, options.tasks)
    print(*(f"{row['task']:<18} {row['what']:<42} {row['shown']}" for row in table), sep="\n")
    only = "" if options.tasks == list(TASKS) else "_" + "_".join(options.tasks)
    write(f"pretraining_2x2{only}", {"table": table, "runs": runs}, source)


def train(options: argparse.Namespace, recipe: str, role: str, folder: Path, seed: int, *words: str) -> dict[str, Any]:
    """Train one model on the worlds, or read what an earlier start of this command left."""
    data = {"pretrain_scenes": options.worlds / "captions", "scene_statements": options.worlds / "statements"}
    given = ["--data", str(data[recipe])] if recipe in data else []
    if recipe == "pretrain_scenes":
        given += ["--tokenizer_texts", str(data[recipe] / TOKENIZER_TEXTS)]
    return train_once(recipe, role, folder, "--seed", str(seed), *given, *words, *options.set)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a training run."""
    return {name: value for name, value in result.items() if name not in ("folder", "output_dir", "seed")}


def test(options: argparse.Namespace, result: dict[str, Any], task: str) -> dict[str, Any]:
    """The accuracy on the test split beside how the model was trained."""
    file = Path(result["folder"]) / "test.json"
    if not file.is_file():
        words = STATEMENTS if task == "scene_statements" else ("--task", task)
        given = ["--data", str(options.worlds / "statements")] if task == "scene_statements" else []
        found = dual_distill("evaluate", result["folder"], *words, *given, "--split", "test", "--no-baselines")
        file.write_text(json.dumps(found))
    evaluated = json.loads(file.read_text())
    kept = {name: evaluated[name] for name in evaluated if name.startswith("accuracy") or name == "rows"}
    return kept | {"command": result["command"], "steps": result["steps"], "train_seconds": result["train_runtime"]}


def summary(runs: list[dict[str, Any]], tasks: list[str]) -> list[dict[str, Any]]:
    """Mean and range over the seeds for each cell, teacher first."""
    rows = []
    for task in tasks:
        cells = [("teacher", {"variant": "teacher"})]
        cells += [
            (f"pre-training {start}, fine-tuning {tuning}", {"pretraining": start, "fine_tuning": tuning})
            for start in ("plain", "distilled")
            for tuning in ("plain", "distilled")
        ]
        for what, wanted in cells:
            values = [
                100 * one["accuracy"]
                for one in runs
                if one.get("task") == task and all(one.get(name) == value for name, value in wanted.items())
            ]
            shown = f"{statistics.mean(values):.2f} % ({', '.join(f'{value:.2f}' for value in values)})"
            rows.append({"task": task, "what": what, "mean": round(statistics.mean(values), 2), "shown": shown})
    return rows


if __name__ == "__main__":
    main()
