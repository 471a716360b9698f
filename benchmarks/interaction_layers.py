"""How many interaction layers, how many steps, and which terms teach them: students of a quickstart's teacher.

    python benchmarks/interaction_layers.py depth [--seeds 0 1 2] [--runs-dir runs/quickstart]
    python benchmarks/interaction_layers.py terms [--seeds 0 1 2]
    python benchmarks/interaction_layers.py optimizer [--seeds 0 1 2]
    python benchmarks/interaction_layers.py stored [--seeds 0 1 2]

Needs the teachers that benchmarks/quickstart_seeds.py leaves in RUNS_DIR/default-random-seedN. "depth" trains students
with 0 (the paper's interaction of pooled vectors), 1 and 2 layers for 1,000, 2,000 and 4,000 steps; "terms" trains
students with one layer for 2,000 steps on soft labels with the attention of the towers, of the layer or of both, with
the teacher's last hidden states behind the layer, and from the teacher's weights, both under AdamW; "optimizer" trains
the quickstart's distilled student under AdamW and under Muon for 750 and 1,500 steps. All other settings are those of
the quickstart's students. A finished student is read, not trained again. "stored" asks the quickstart's own distilled
student about stored images: what each number format and form costs in bytes and accuracy. `--tiny` tries the script out
and records nothing.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from _record import provenance, write
from datasets import DatasetDict
from transformers import set_seed

from dual_distill import DistillationCollator, DualEncoderForQuestionAnswering, distill, load_teacher
from dual_distill.data import get_task, load_task
from dual_distill.inference import FeatureStore, FeatureStoreVQA, encode_images
from dual_distill.quickstart import PRESETS
from dual_distill.teachers import load_model
from dual_distill.trainer import predict_answers, report_answers

TERMS: dict[str, dict[str, float]] = {
    "soft labels alone": {"attention_weight": 0.0},
    "attention of the towers": {},
    "attention of the layer": {"attention_weight": 0.0, "interaction_attention_weight": 1.0},
    "attention of both": {"interaction_attention_weight": 1.0},
    "attention of the towers, hidden states": {"interaction_hidden_weight": 1.0},
    "attention of both, hidden states": {"interaction_attention_weight": 1.0, "interaction_hidden_weight": 1.0},
}
OPTIMIZERS = {"AdamW": {}, "Muon": {"muon_learning_rate": PRESETS["default"].muon_learning_rate}}


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("depth", "terms", "optimizer", "stored"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", help="default: those named above")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--tiny", action="store_true", help="few scenes and two steps, to try the script out")
    options = parser.parse_args()
    source = provenance() | {"seed": options.seeds}

    runs = []
    for seed in options.seeds:
        if options.part == "depth":
            for layers in (0, 1, 2):
                hidden = {"interaction_hidden_weight": 1.0} if layers else {}
                for steps in options.steps or (1000, 2000, 4000):
                    runs.append(student(options, seed, f"{layers} layers", layers, steps, **hidden))
            continue
        if options.part == "optimizer":
            for steps in options.steps or (750, 1500):
                for name, rate in (
                    ("AdamW", {}),
                    ("Muon", {"muon_learning_rate": PRESETS["default"].muon_learning_rate}),
                ):
                    runs.append(student(options, seed, name, 1, steps, interaction_hidden_weight=1.0, **rate))
            continue
        if options.part == "stored":
            runs += stored(options, seed)
            continue
        for steps in options.steps or (2000,):
            runs += [student(options, seed, name, 1, steps, **weights) for name, weights in TERMS.items()]
            for name in ("attention of the towers, hidden states", "attention of both, hidden states"):
                named = f"{name}, from the teacher's weights"
                runs.append(student(options, seed, named, 1, steps, True, **TERMS[name]))
    if not options.tiny:
        write(f"interaction_layers_{options.part}", runs, source)


def student(
    options: argparse.Namespace,
    seed: int,
    name: str,
    layers: int,
    steps: int,
    from_teacher: bool = False,
    **weights: float,
) -> dict[str, Any]:
    """Train and evaluate one student, or read what an earlier start left."""
    folder = options.runs_dir / f"default-random-seed{seed}"
    output = folder / "interaction_layers" / f"{name} {steps}{' tiny' if options.tiny else ''}".replace(" ", "_")
    file = output / "result.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = _train(options, folder / "teacher", output, seed, layers, steps, from_teacher, weights)
        file.write_text(json.dumps(found))
    result = {"seed": seed, "variant": name, "layers": layers, "steps": steps, "weights": weights}
    result |= json.loads(file.read_text())
    seconds = f"{result['train_seconds']:.0f} s"
    accuracy = f"test {100 * result['accuracy']:.1f} % (teacher {100 * result['teacher_accuracy']:.1f})"
    print(f"seed {seed}, {name}, {steps:,} steps: {accuracy} in {seconds}", flush=True)
    return result


def stored(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Ask about stored images in every form; the first row answers from pixels."""
    folder = options.runs_dir / f"default-random-seed{seed}" / "distilled"
    model, processor = load_model(folder)
    model.eval()
    test, task = load_scenes(options, seed)["test"], get_task("scenes")
    collator = DistillationCollator(processor, task, list(model.config.id2label.values()))
    answers = predict_answers(model, test, collator, 512, "from pixels")
    rows = [{"seed": seed, "form": "pixels", "accuracy": report_answers(answers, test, task, None).accuracy}]

    # Six questions are asked about each image.
    names = [f"scene {index // 6}" for index in range(len(test))]
    images = dict(zip(names, test["image"], strict=True))
    pairs = list(zip(names, test["question"], strict=True))
    for keys_values, dtype in itertools.product((False, True), ("float32", "float16", "int8")):
        if keys_values and dtype == "int8":  # of tokens alone
            continue
        with tempfile.TemporaryDirectory() as store:
            encode_images(model, processor, images, store, dtype=dtype, keys_values=keys_values)
            size = sum(file.stat().st_size for file in Path(store).rglob("*") if file.is_file())
            found = FeatureStoreVQA(model, processor, FeatureStore(store)).answer_pairs(pairs, top_k=1)
        said = [one[0]["answer"] for one in found]
        accuracy = report_answers(said, test, task, None).accuracy
        form = f"{'keys and values' if keys_values else 'tokens'}, {dtype}"
        changed = sum(one != other for one, other in zip(said, answers, strict=True))
        rows.append({"seed": seed, "form": form, "accuracy": accuracy, "answers_changed": changed})
        rows[-1] |= {"bytes_an_image": round(size / len(images)), "answers": len(said)}
        shown = f"{100 * accuracy:.2f} %, {changed} answers changed, {rows[-1]['bytes_an_image']:,} bytes an image"
        print(f"seed {seed}, {form}: {shown}", flush=True)
    return rows


def load_scenes(options: argparse.Namespace, seed: int) -> DatasetDict:
    """Draw the scenes of a seed, as many as the quickstart draws."""
    size = PRESETS["default"]
    num_scenes = {"train": size.train_scenes, "validation": size.validation_scenes, "test": size.test_scenes}
    return load_task("scenes", num_scenes=dict.fromkeys(num_scenes, 20) if options.tiny else num_scenes, seed=seed)


def training_fields(options: argparse.Namespace, seed: int, steps: int) -> dict[str, Any]:
    """Arguments of a student's training as the quickstart's, but for its optimizer and what teaches it."""
    size = PRESETS["default"]
    told: dict[str, Any] = {"max_steps": 2 if options.tiny else steps, "seed": seed}
    told |= {"per_device_train_batch_size": size.student_batch_size, "learning_rate": size.student_learning_rate}
    return told | {
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 500,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def _train(
    options: argparse.Namespace,
    teacher: Path,
    output: Path,
    seed: int,
    layers: int,
    steps: int,
    from_teacher: bool,
    weights: dict[str, float],
) -> dict[str, Any]:
    task, data = get_task("scenes"), load_scenes(options, seed)

    taught_by, processor = load_teacher(teacher)
    set_seed(seed)
    own = range(-layers, 0) if from_teacher else None
    model = DualEncoderForQuestionAnswering.from_fusion_encoder(
        taught_by, interaction_layers=layers, interaction_from=own
    )
    if not from_teacher:
        set_seed(seed)
        model = DualEncoderForQuestionAnswering(model.config)

    trained = distill(
        teacher, {"train": data["train"]}, output, student=model, **training_fields(options, seed, steps), **weights
    )
    collator = DistillationCollator(processor, task, list(taught_by.config.id2label.values()))
    accuracies = []
    for one in (trained.student, taught_by.eval()):
        answers = predict_answers(one, data["test"], collator, 512, output.name)
        accuracies.append(report_answers(answers, data["test"], task, None).to_dict())
    by_type = accuracies[0]["accuracy_by_group"]
    return {
        "accuracy": accuracies[0]["accuracy"],
        "accuracy_by_type": by_type,
        "teacher_accuracy": accuracies[1]["accuracy"],
        "train_seconds": trained.metrics["train_runtime"],
    }


if __name__ == "__main__":
    main()
