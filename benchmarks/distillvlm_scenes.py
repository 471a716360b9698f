"""DistillVLM on generated scenes with regions: is adaptation needed, and which term helps? Questions and captions.

    python benchmarks/distillvlm_scenes.py [--seeds 0 1 2] [--tasks scenes scene_captioning] [--runs-dir runs/distillvlm]

Two convolutional backbones are trained here. The teacher's is wide, and reads the true boxes; the student's is narrow,
and its boxes stand for a light detector's: each side moved by up to 2 px, 5 % of the objects missed, in another order.
No object tags: they would name colour and shape. The teacher is trained on its own boxes, and trained again ("adapted")
on the student's boxes in its own features. Every student starts from the same random weights and takes equal steps:

    hard_labels    no teacher
    soft_labels    the adapted teacher's answers (masked words)
    attention      soft_labels, and the MSE of the last layer's attention matrices
    mse            soft_labels, and the MSE of the last hidden states, token by token
    nce            soft_labels, and the noise-contrastive loss of the last hidden states, with a queue of 4,096
    both           soft_labels, attention and nce
    both_unadapted as both, by the teacher before it was adapted, reading its own features at the student's boxes. The
                   package refuses this; the script writes the student's boxes into a copy of the teacher's configuration

Questions: accuracy on the test split. Captions: CIDEr of greedy captions of its images. There is no choice of
checkpoints. A run that is finished already is read, not repeated.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from _record import dual_distill, provenance, train_once, write
from worlds.scene_regions import backbone_accuracy, scene_region_store, train_scene_backbone
from worlds.write import write_captions

from dual_distill.data import generate_scenes

NUM_SCENES = {"train": 10_000, "validation": 300, "test": 1_000}
TASKS = {"scenes": "accuracy", "scene_captioning": "cider"}
VARIANTS = {
    "hard_labels": None,
    "soft_labels": ("--attention_weight", "0", "--hidden_loss", "none", "--hidden_weight", "0"),
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
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of questions")
    parser.add_argument("--caption-variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of captions")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/distillvlm"))
    parser.add_argument(
        "--captions", type=Path, default=Path("runs/worlds/captions"), help="written unless it is there"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], help="further words for every training run, such as --max_steps=10"
    )
    options = parser.parse_args()
    if "scene_captioning" in options.tasks and not options.captions.is_dir():
        write_captions(options.captions)
    source = provenance() | {"seed": options.seeds}
    backbones = make_stores(options.runs_dir)
    runs: list[dict[str, Any]] = []
    for task in options.tasks:
        teachers = options.runs_dir / task
        recipe, shared = f"{task}_regions", [*captions_of(options, task), *options.set]
        own = train_once(recipe, "teacher", teachers / "teacher", *shared, "--regions", store(options, "own"))
        words = ["--init_from", own["folder"], "--regions", store(options, "adapted")]
        adapted = train_once(recipe, "adapted", teachers / "adapted", *shared, *words)
        unadapted = claim_boxes(teachers / "teacher", teachers / "unadapted", teachers / "adapted")
        runs.append({"task": task, "variant": "teacher", "seed": 0} | test(options, own, task, "own"))
        before = {**own, "folder": str(unadapted)}
        runs.append({"task": task, "variant": "teacher_unadapted", "seed": 0} | test(options, before, task, "adapted"))
        runs.append({"task": task, "variant": "teacher_adapted", "seed": 0} | test(options, adapted, task, "adapted"))
        show(runs[-3:])
        for seed in options.seeds:
            for variant in options.variants if task == "scenes" else options.caption_variants:
                words = ["--regions", store(options, "light")]
                if VARIANTS[variant] is not None:
                    taught_by = str(unadapted) if variant == "both_unadapted" else adapted["folder"]
                    words += [
                        "--teacher",
                        taught_by,
                        "--teacher_regions",
                        store(options, "adapted"),
                        *VARIANTS[variant],
                    ]
                role = "hard_labels" if VARIANTS[variant] is None else "distilled"
                folder = teachers / f"seed{seed}" / variant
                done = train_once(recipe, role, folder, "--seed", str(seed), *shared, *words)
                runs.append({"task": task, "variant": variant, "seed": seed} | test(options, done, task, "light"))
                show(runs[-1:])
    table = summary(runs)
    print(*(f"{row['task']:<18} {row['variant']:<18} {row['shown']}" for row in table), sep="\n")
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


def captions_of(options: argparse.Namespace, task: str) -> list[str]:
    """Return the words that say where the captions lie; questions are generated."""
    return ["--data", str(options.captions)] if task == "scene_captioning" else []


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


def test(options: argparse.Namespace, result: dict[str, Any], task: str, regions: str) -> dict[str, Any]:
    """How a model does on the test split, beside how it was trained."""
    file = Path(result["folder"]) / f"test_{regions}.json"
    if not file.is_file():
        words = [result["folder"], "--split", "test", "--regions", store(options, regions)]
        if task == "scenes":
            words += ["--task", task, "--data-options", json.dumps({"num_scenes": NUM_SCENES}), "--no-baselines"]
        else:
            words += ["--task", "coco_captioning", *captions_of(options, task)]
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
        print(f"{one['task']} seed {one['seed']} {one['variant']}: {TASKS[one['task']]} {one['score']:.4f}", flush=True)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and each seed, by task and variant."""
    rows = []
    for task, variant in dict.fromkeys((one["task"], one["variant"]) for one in runs):
        values = [one["score"] for one in runs if (one["task"], one["variant"]) == (task, variant)]
        shown = f"{statistics.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"
        rows.append({"task": task, "variant": variant, "mean": round(statistics.mean(values), 4), "shown": shown})
    return rows


if __name__ == "__main__":
    main()
