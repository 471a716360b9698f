"""DistillVLM on generated scenes with regions: is adaptation needed, and which term helps? Questions and captions.

    python benchmarks/distillvlm_scenes.py [--seeds 0 1 2] [--teacher-seed 0] [--tasks scenes scene_captioning]

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
                   package refuses this; the script writes the student's boxes into a copy of the teacher's config

Questions: accuracy on the test split. Captions: CIDEr of greedy captions of its images. There is no choice of
checkpoints. A run that is finished already is read, not repeated. The backbones are the same for every teacher's seed.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from _record import provenance
from _runs import data_words, evaluate_once, make_parser, mean_and_each, parse, record, train_once, training_of
from worlds.scene_regions import backbone_accuracy, scene_region_store, train_scene_backbone

from dual_distill.data import generate_scenes

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
    parser = make_parser(__doc__, "distillvlm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the students")
    parser.add_argument("--teacher-seed", type=int, default=0, help="of the teachers that they have in common")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of questions")
    parser.add_argument("--caption-variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of captions")
    options = parse(parser)
    source = provenance() | {"seed": options.seeds}

    backbones = make_stores(options)
    runs = [run for task in options.tasks for run in runs_of_task(options, task)]
    table = summary(runs)
    print(*(f"{row['task']:<18} {row['variant']:<18} {row['shown']}" for row in table), sep="\n")
    name = "distillvlm_scenes" + (f"_teacher{options.teacher_seed}" if options.teacher_seed else "")
    record(options, name, {"backbones": backbones, "table": table, "runs": runs}, source)


def runs_of_task(options: argparse.Namespace, task: str) -> list[dict[str, Any]]:
    """Train and test teacher, adapted teacher and every student of a task."""
    folder, recipe = options.runs_dir / f"teacher{options.teacher_seed}" / task, f"{task}_regions"
    shared, of_teacher = data_words(options, recipe), ["--seed", str(options.teacher_seed)]
    words = [*of_teacher, "--regions", store(options, "own")]
    own = train_once(options, recipe, "teacher", folder / "teacher", *shared, *words)
    words = [*of_teacher, "--init_from", own["folder"], "--regions", store(options, "adapted")]
    adapted = train_once(options, recipe, "adapted", folder / "adapted", *shared, *words)
    unadapted = claim_boxes(folder / "teacher", folder / "unadapted", folder / "adapted")

    runs = [
        {"task": task, "variant": variant, "seed": options.teacher_seed} | test(options, model, task, regions)
        for variant, model, regions in (
            ("teacher", own, "own"),
            ("teacher_unadapted", {**own, "folder": str(unadapted)}, "adapted"),
            ("teacher_adapted", adapted, "adapted"),
        )
    ]
    show(runs)

    for seed in options.seeds:
        for variant in options.variants if task == "scenes" else options.caption_variants:
            role, words = "hard_labels", ["--seed", str(seed), "--regions", store(options, "light")]
            if VARIANTS[variant] is not None:
                role, taught_by = "distilled", str(unadapted) if variant == "both_unadapted" else adapted["folder"]
                words += ["--teacher", taught_by, "--teacher_regions", store(options, "adapted"), *VARIANTS[variant]]
            done = train_once(options, recipe, role, folder / f"seed{seed}" / variant, *shared, *words)
            runs.append({"task": task, "variant": variant, "seed": seed} | test(options, done, task, "light"))
            show(runs[-1:])
    return runs


def make_stores(options: argparse.Namespace) -> dict[str, Any]:
    """Train both backbones and write the three stores, or read what they were."""
    folder = options.runs_dir
    noted = folder / "backbones.json"
    if noted.is_file():
        return json.loads(noted.read_text())

    scenes = generate_scenes(options.num_scenes)
    light_steps, heavy_steps = (2, 2) if options.tiny else (240, 600)
    light = train_scene_backbone(scenes["train"], width=16, depth=2, steps=light_steps)
    heavy = train_scene_backbone(scenes["train"], width=64, depth=3, steps=heavy_steps)
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
    noted.write_text(json.dumps(measured, indent=2) + "\n")
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
        (copy / "sealed.json").unlink(missing_ok=True)  # which says that the file is another
        for left in copy.glob("test*.json"):
            left.unlink()
    return copy


def test(options: argparse.Namespace, result: dict[str, Any], task: str, regions: str) -> dict[str, Any]:
    """How a model does on the test split, beside how it was trained."""
    words = ["--split", "test", "--regions", store(options, regions)]
    words += [*data_words(options, task), *(["--no-baselines"] if task == "scenes" else [])]
    words += ["--task", "scenes" if task == "scenes" else "coco_captioning"]
    evaluated = evaluate_once(Path(result["folder"]) / f"test_{regions}.json", result["folder"], *words)

    left_out = ("model", "task", "split")
    kept = {name: value for name, value in evaluated.items() if name not in left_out and value is not None}
    return {**kept, "score": evaluated[TASKS[task]], **training_of(result)}


def show(runs: list[dict[str, Any]]) -> None:
    """Print what was just measured."""
    for one in runs:
        print(f"{one['task']} seed {one['seed']} {one['variant']}: {TASKS[one['task']]} {one['score']:.4f}", flush=True)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and each seed, by task and variant."""
    rows = []
    for task, variant in dict.fromkeys((one["task"], one["variant"]) for one in runs):
        values = [one["score"] for one in runs if (one["task"], one["variant"]) == (task, variant)]
        rows.append({"task": task, "variant": variant, **mean_and_each(values, 4)})
    return rows


if __name__ == "__main__":
    main()
