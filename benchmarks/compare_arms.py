"""Teacher, dual encoder on hard labels, on soft labels, distilled: equal start, equal steps, equal time, on real data.

    python benchmarks/compare_arms.py easy_vqa --data path/to/easy_vqa [--seeds 0]
    python benchmarks/compare_arms.py nlvr --data path/to/nlvr1 --teacher runs/nlvr/teacher --splits validation dev test

Reads recipes/TASK.yaml, whose roles are the variants. Those at equal time are
hard_labels and soft_labels with as many more steps as their step is faster than a distilled one, by the measured time.
"""

import argparse
from pathlib import Path
from typing import Any

from _record import dual_distill, provenance, write

STUDENTS = ("hard_labels", "soft_labels", "distilled")


def main() -> None:
    """Run, print a table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--teacher", type=Path, help="a trained teacher; without it, one is trained for each seed")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--splits", nargs="+", default=["validation", "test"])
    parser.add_argument(
        "--set", nargs="*", default=[], help="further words for every training run, such as --set=--max_steps=10"
    )
    options = parser.parse_args()
    source = provenance()
    runs = []
    for seed in options.seeds:
        folder = options.runs_dir / options.task / f"seed{seed}"
        teacher = options.teacher or folder / "teacher"
        if options.teacher is None:
            runs.append(train(options, "teacher", teacher, seed))
        else:
            runs.append({"variant": "teacher", "folder": str(teacher)} | evaluate(options, teacher, baselines=True))
            print(f"teacher: {shares(options, runs[-1])}", flush=True)
        students = {}
        for variant in STUDENTS:
            students[variant] = train(options, variant, folder / variant, seed, teacher)
            runs.append(students[variant])
        for variant in ("hard_labels", "soft_labels"):
            steps = round(
                students[variant]["steps"] * students["distilled"]["train_seconds"] / students[variant]["train_seconds"]
            )
            name = f"{variant}_equal_time"
            runs.append(train(options, variant, folder / name, seed, teacher, steps=steps, name=name))
    # Where the data lies is the user's affair.
    source["command"] = source["command"].replace(options.data, "DATA")
    source["seed"] = options.seeds
    write(f"{options.task}_arms", runs, source)


def train(
    options: argparse.Namespace,
    variant: str,
    folder: Path,
    seed: int,
    teacher: Path | None = None,
    steps: int | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Train and evaluate one variant."""
    words = [
        "train",
        f"recipes/{options.task}.yaml",
        "--role",
        variant,
        "--data",
        options.data,
        "--output_dir",
        str(folder),
    ]
    words += ["--seed", str(seed), *options.set]
    if teacher is not None:
        words += ["--init_from", str(teacher)] + (["--teacher", str(teacher)] if variant != "hard_labels" else [])
    if steps is not None:
        words += ["--max_steps", str(steps)]
    trained = dual_distill(*words)
    result: dict[str, Any] = {
        "variant": name or variant,
        "seed": seed,
        "command": " ".join(["dual-distill", *words]).replace(options.data, "DATA"),
        "steps": trained["steps"],
        "train_seconds": trained["train_runtime"],
    }
    result |= evaluate(options, folder, baselines=variant == "teacher")
    seconds = f"{result['steps']} steps, {result['train_seconds']:.0f} s"
    print(f"seed {seed} {result['variant']}: {shares(options, result)} after {seconds}", flush=True)
    return result


def evaluate(options: argparse.Namespace, folder: Path, baselines: bool) -> dict[str, Any]:
    """Evaluate a checkpoint on every split; text-only and majority baselines are the same for all, so once is enough."""
    results = {}
    for split in options.splits:
        words = ["evaluate", str(folder), "--task", options.task, "--data", options.data, "--split", split]
        results[split] = dual_distill(*words, *([] if baselines else ["--no-baselines"]))
        results[split].pop("model")
    return results


def shares(options: argparse.Namespace, result: dict[str, Any]) -> str:
    """Return the accuracies for the terminal."""
    return " ".join(f"{split} {100 * result[split]['accuracy']:.2f} %" for split in options.splits)


if __name__ == "__main__":
    main()
