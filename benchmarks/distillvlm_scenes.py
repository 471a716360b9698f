"""DistillVLM on generated scenes with regions: is adaptation needed, and which term helps? Questions and captions.

    python benchmarks/distillvlm_scenes.py [--seeds 0 1 2] [--tasks scenes scene_captioning] [--runs-dir
    runs/distillvlm]

Two convolutional backbones are trained here. The teacher's is wide, and reads the true boxes; the student's is narrow,
and its boxes stand for a light detector's: each side moved by up to 2 px, 5 % of the objects missed, in another order.
No object tags: they would name colour and shape. The teacher is trained on its own boxes, and trained again ("adapted")
on the student's boxes in its own features. Every student starts from the same random weights and takes equal steps:

    alone          hard labels
    soft           the adapted teacher's answers (masked words)
    attention      soft, and squared difference of the last layer's attention matrices
    mse            soft, and squared difference of the last hidden states, token by token
    nce            soft, and the noise-contrastive loss of the last hidden states, with a queue of 4,096
    both           soft, attention and nce
    both_unadapted as both, by the teacher before it was adapted, reading its own features at the student's boxes. The
    package
                   refuses this pair; the script writes the student's boxes into a copy of the teacher's configuration

Questions: accuracy on the test split. Captions: CIDEr of greedy captions of its pictures. There is no choice of
checkpoints. A run that is finished already is read, not repeated.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from _record import dual_distill, provenance, write

from dual_distill.data import generate_scenes
from dual_distill.regions import backbone_accuracy, scene_region_store, train_scene_backbone

RECIPES = Path(__file__).parents[1] / "recipes"
NUM_SCENES = {"train": 10_000, "validation": 300, "test": 1_000}
TASKS = {"scenes": "accuracy", "scene_captioning": "cider"}
ARMS = {
    "alone": None,
    "soft": ("--attention_weight", "0", "--hidden_loss", "none", "--hidden_weight", "0"),
    "attention": ("--hidden_loss", "none", "--hidden_weight", "0"),
    "mse": ("--attention_weight", "0", "--hidden_loss", "mse"),
    "nce": ("--attention_weight", "0"),
    "both": (),
    "both_unadapted": (),
}


def main() -> None:
    """Run, print a table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the students; teachers have seed 0")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="of questions")
    parser.add_argument("--caption-arms", nargs="+", choices=ARMS, default=list(ARMS), help="of captions")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/distillvlm"))
    options = parser.parse_args()
    source = provenance() | {"seed": options.seeds}
    backbones = make_stores(options.runs_dir)
    runs: list[dict[str, Any]] = []
    for task in options.tasks:
        teachers = options.runs_dir / task
        own = run(options, f"{task}_regions_teacher", teachers / "teacher", 0, "--regions", store(options, "own"))
        adapted = run(
            options, f"{task}_regions_adapted", teachers / "adapted", 0,
            "--init_from", own["folder"], "--regions", store(options, "adapted"),
        )  # fmt: skip
        unadapted = claim_boxes(teachers / "teacher", teachers / "unadapted", teachers / "adapted")
        runs.append({"task": task, "arm": "teacher", "seed": 0} | test(options, own, task, "own"))
        before = {**own, "folder": str(unadapted)}
        runs.append({"task": task, "arm": "teacher_unadapted", "seed": 0} | test(options, before, task, "adapted"))
        runs.append({"task": task, "arm": "teacher_adapted", "seed": 0} | test(options, adapted, task, "adapted"))
        show(runs[-3:])
        for seed in options.seeds:
            for arm in options.arms if task == "scenes" else options.caption_arms:
                words = ["--regions", store(options, "light")]
                if ARMS[arm] is not None:
                    taught_by = str(unadapted) if arm == "both_unadapted" else adapted["folder"]
                    words += ["--teacher", taught_by, "--teacher_regions", store(options, "adapted"), *ARMS[arm]]
                recipe = f"{task}_regions_{'alone' if ARMS[arm] is None else 'distilled'}"
                done = run(options, recipe, teachers / f"seed{seed}" / arm, seed, *words)
                runs.append({"task": task, "arm": arm, "seed": seed} | test(options, done, task, "light"))
                show(runs[-1:])
    table = summary(runs)
    print(*(f"{row['task']:<18} {row['arm']:<18} {row['shown']}" for row in table), sep="\n")
    write("distillvlm_scenes", {"backbones": backbones, "table": table, "runs": runs}, source)


def make_stores(folder: Path) -> dict[str, Any]:
    """Train both backbones and write the three stores, or read what they were."""
    record = folder / "backbones.json"
    if record.is_file():
        return json.loads(record.read_text())
    scenes = generate_scenes(NUM_SCENES)
    light = train_scene_backbone(scenes["train"], width=16, depth=2, steps=240)
    heavy = train_scene_backbone(scenes["train"], width=64, depth=3, steps=600)
    boxes = scene_region_store(scenes, light, folder / "light", jitter_px=2, miss_rate=0.05, shuffled=True)
    stores = {
        "own": scene_region_store(scenes, heavy, folder / "own"),
        "light": boxes,
        "adapted": scene_region_store(scenes, heavy, folder / "adapted", boxes=boxes),
    }
    measured = {
        "validation": {
            name: backbone_accuracy(one, scenes["validation"]) for name, one in (("light", light), ("heavy", heavy))
        },
        "stores": {name: {"boxes": one.boxes_id, "features": one.features_id} for name, one in stores.items()},
    }
    record.write_text(json.dumps(measured, indent=2) + "\n")
    return measured


def store(options: argparse.Namespace, name: str) -> str:
    """Return the folder of a store."""
    return str(options.runs_dir / name)


def claim_boxes(teacher: Path, copy: Path, adapted: Path) -> Path:
    """Copy a teacher that was not adapted, and let its configuration claim the student's boxes."""
    if not copy.is_dir():
        shutil.copytree(teacher, copy)
        config, wanted = (json.loads((folder / "config.json").read_text()) for folder in (copy, adapted))
        config["region_boxes_id"] = wanted["region_boxes_id"]
        (copy / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for left in copy.glob("test*.json"):
            left.unlink()
    return copy


def run(options: argparse.Namespace, recipe: str, folder: Path, seed: int, *words: str) -> dict[str, Any]:
    """Train one model, or read what an earlier start of this command left."""
    results = folder / "results.json"
    command = ["train", str(RECIPES / f"{recipe}.yaml"), "--seed", str(seed), "--output_dir", str(folder), *words]
    if not results.is_file():
        dual_distill(*command)
    shown = ["dual-distill", "train", f"recipes/{recipe}.yaml", *command[2:]]
    return {**json.loads(results.read_text()), "folder": str(folder), "command": " ".join(shown)}


def test(options: argparse.Namespace, result: dict[str, Any], task: str, regions: str) -> dict[str, Any]:
    """How a model does on the test split, beside how it was trained."""
    file = Path(result["folder"]) / f"test_{regions}.json"
    if not file.is_file():
        words = [result["folder"], "--task", task, "--split", "test", "--regions", store(options, regions)]
        words += ["--data-options", json.dumps({"num_scenes": NUM_SCENES})]
        words += ["--no-baselines"] if task == "scenes" else []
        file.write_text(json.dumps(dual_distill("evaluate", *words)))
    evaluated = json.loads(file.read_text())
    kept = {
        name: value for name, value in evaluated.items() if name not in ("model", "task", "split") and value is not None
    }
    kept["score"] = evaluated[TASKS[task]]
    return kept | {"command": result["command"], "steps": result["steps"], "train_seconds": result["train_runtime"]}


def show(runs: list[dict[str, Any]]) -> None:
    """Print what was just measured."""
    for one in runs:
        print(f"{one['task']} seed {one['seed']} {one['arm']}: {TASKS[one['task']]} {one['score']:.4f}", flush=True)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and each seed, by task and arm."""
    rows = []
    for task, arm in dict.fromkeys((one["task"], one["arm"]) for one in runs):
        values = [one["score"] for one in runs if (one["task"], one["arm"]) == (task, arm)]
        shown = f"{statistics.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"
        rows.append({"task": task, "arm": arm, "mean": round(statistics.mean(values), 4), "shown": shown})
    return rows


if __name__ == "__main__":
    main()
