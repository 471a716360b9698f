"""Teacher, dual encoder on hard labels, on soft labels, distilled: equal start, equal steps, equal time, on real data.

    python benchmarks/compare_variants.py easy_vqa --data path/to/easy_vqa [--seeds 0]
    python benchmarks/compare_variants.py nlvr --data path/to/nlvr1 --teacher runs/nlvr/teacher --splits dev test

Reads recipes/TASK.yaml, whose roles are the variants. Those at equal time are hard_labels and soft_labels with as many
more steps as their step is faster than a distilled one, by the measured time. A run that is finished already is read,
not repeated.
"""

import argparse
from pathlib import Path
from typing import Any

from _record import dual_distill, provenance
from _runs import make_parser, parse, record, train_once, training_of

STUDENTS = ("hard_labels", "soft_labels", "distilled")


def main() -> None:
    """Run, print a table and record it."""
    parser = make_parser(__doc__, "compare")
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--teacher", help="a trained teacher; without it, one is trained for each seed")
    parser.add_argument("--splits", nargs="+", default=["validation", "test"])
    options = parse(parser)
    source = provenance()

    runs = []
    for seed in options.seeds:
        folder = options.runs_dir / options.task / f"seed{seed}"
        teacher = options.teacher or str(folder / "teacher")
        if options.teacher is None:
            runs.append(train(options, "teacher", folder / "teacher", seed))
        else:
            runs.append({"variant": "teacher", "folder": teacher} | evaluate(options, teacher, baselines=True))
            print(f"teacher: {shares(options, runs[-1])}", flush=True)

        students = {one: train(options, one, folder / one, seed, teacher) for one in STUDENTS}
        runs += students.values()
        for variant in ("hard_labels", "soft_labels"):
            faster = students["distilled"]["train_seconds"] / students[variant]["train_seconds"]
            steps = ["--max_steps", str(round(students[variant]["steps"] * faster))]
            runs.append(train(options, variant, folder / f"{variant}_equal_time", seed, teacher, *steps))

    # Where the data lies is the user's affair.
    source["command"] = source["command"].replace(options.data, "DATA")
    source["seed"] = options.seeds
    record(options, f"{options.task}_variants", runs, source)


def train(
    options: argparse.Namespace, variant: str, folder: Path, seed: int, teacher: str | None = None, *words: str
) -> dict[str, Any]:
    """Train and evaluate one variant."""
    shared = ["--data", options.data, "--seed", str(seed)]
    if teacher is not None:
        shared += ["--init_from", teacher, *(["--teacher", teacher] if variant != "hard_labels" else [])]
    options = argparse.Namespace(**{**vars(options), "set": [*options.set, *words]})
    trained = train_once(options, options.task, variant, folder, *shared)

    result = {"variant": folder.name, "seed": seed, **training_of(trained)}
    result["command"] = result["command"].replace(options.data, "DATA")
    result |= evaluate(options, trained["folder"], baselines=variant == "teacher")
    seconds = f"{result['steps']} steps, {result['train_seconds']:.0f} s"
    print(f"seed {seed} {result['variant']}: {shares(options, result)} after {seconds}", flush=True)
    return result


def evaluate(options: argparse.Namespace, model: str, baselines: bool) -> dict[str, Any]:
    """Evaluate a checkpoint on every split; baselines that see no image are the same for all, so once is enough."""
    results = {}
    for split in options.splits:
        words = [model, "--task", options.task, "--data", options.data, "--split", split]
        words += ["--max-rows", "16"] if options.tiny else []
        results[split] = dual_distill("evaluate", *words, *([] if baselines else ["--no-baselines"]))
        results[split].pop("model")
    return results


def shares(options: argparse.Namespace, result: dict[str, Any]) -> str:
    """Return the accuracies for the terminal."""
    return " ".join(f"{split} {100 * result[split]['accuracy']:.2f} %" for split in options.splits)


if __name__ == "__main__":
    main()
