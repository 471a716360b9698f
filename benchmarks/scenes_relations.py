"""What it takes to learn relations: teachers on scenes by how many scenes there are and in which order they ask.

    python benchmarks/scenes_relations.py [--scenes 10000 60000] [--plan first:224 relation:3000]
    python benchmarks/scenes_relations.py --scenes 200000 --plan first:224 half:18000 --student half:5000

A teacher as the quickstart's (four layers of width 96, Muon, batches of 64), but for its rows: a plan is a list of
KIND:STEPS, where a kind is `first` (about one thing: existence, colour, shape), `relation`, `half` (as many relations
as all other questions together) or `all`. Within each part every row is seen once before any is seen twice. Accuracy on
test by question type, relations by whether a direction is asked or the only neighbour; and on relations it was trained
on, which tells what was learned by heart. With `--student` students from random weights follow, by a plan of their own:
with one interaction layer on soft labels, the attention of towers and layer, and hidden states ("distilled") or on hard
labels, and the paper's, whose pooled vectors interact, on soft labels and attention ("vectors"). What is finished in
RUNS_DIR is read, not made again. `--tiny` tries the script out and records nothing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import provenance, write
from datasets import DatasetDict
from transformers import ViTImageProcessorPil, set_seed

from dual_distill import (
    DistillationCollator,
    DistillationTrainer,
    DistillationTrainingArguments,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
    load_teacher,
)
from dual_distill.data import get_task, load_task, train_tokenizer
from dual_distill.modeling import DualDistillProcessor
from dual_distill.quickstart import PRESETS
from dual_distill.trainer import predict_answers

FIRST = ("exist", "colour", "shape")
SIZE = PRESETS["default"]
# Interaction layers, and what teaches; None: there is no teacher.
STUDENTS: dict[str, tuple[int, dict[str, float] | None]] = {
    "distilled": (1, {"interaction_attention_weight": 1.0, "interaction_hidden_weight": 1.0}),
    "hard labels": (1, None),
    "vectors": (0, {}),
}


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, nargs="+", default=[10_000, 60_000])
    parser.add_argument("--plan", nargs="+", default=["first:224", "relation:3000"])
    parser.add_argument("--student", nargs="*", default=[], help="plan of a student of each teacher (default: none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="scenes_relations", help="of the recorded result")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/relations"))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = provenance() | {"seed": options.seed}
    source["command"] = source["command"].replace(str(options.runs_dir), "RUNS")
    if options.tiny:
        options.runs_dir = Path(tempfile.mkdtemp())
    rows = [row for scenes in options.scenes for row in train(options, 60 if options.tiny else scenes)]
    if not options.tiny:
        write(options.name, rows, source)


def train(options: argparse.Namespace, num_scenes: int) -> list[dict[str, Any]]:
    """Train one teacher, and students of it if they are wanted, and ask them."""
    task, seed = get_task("scenes"), options.seed
    data = load_task("scenes", num_scenes={"train": num_scenes, "validation": 20, "test": 1_000}, seed=seed)
    processor = make_processor(data)
    answers = list(task.label_names or ())
    labels = {"id2label": dict(enumerate(answers)), "label2id": {name: at for at, name in enumerate(answers)}}
    set_seed(seed)
    config = FusionEncoderConfig(
        vocab_size=len(processor.tokenizer),
        image_size=36,
        patch_size=12,
        max_position_embeddings=24,
        hidden_size=SIZE.hidden_size,
        intermediate_size=2 * SIZE.hidden_size,
        num_hidden_layers=SIZE.num_hidden_layers,
        num_attention_heads=SIZE.num_attention_heads,
        initializer_range=SIZE.initializer_range,
        embedding_initializer_range=SIZE.embedding_initializer_range,
        **labels,
    )
    teacher: Any = FusionEncoderForQuestionAnswering(config)
    collator = DistillationCollator(processor, task, answers)
    name = f"{num_scenes} scenes, {' '.join(options.plan)}, seed {seed}".replace(":", " ")
    given = (options, num_scenes, data, collator)
    rows = [learn(*given, "teacher", options.plan, options.runs_dir / name, teacher, None)]
    for called, (layers, weights) in STUDENTS.items() if options.student else ():
        teacher, _ = load_teacher(options.runs_dir / name)
        shape = DualEncoderForQuestionAnswering.from_fusion_encoder(teacher, interaction_layers=layers).config
        set_seed(seed)
        student = DualEncoderForQuestionAnswering(shape)
        folder = options.runs_dir / f"{name}, {called} {' '.join(options.student)}".replace(":", " ")
        taught_by = None if weights is None else teacher
        rows.append(learn(*given, called, options.student, folder, student, taught_by, **(weights or {})))
    return rows


def learn(
    options: argparse.Namespace,
    num_scenes: int,
    data: DatasetDict,
    collator: DistillationCollator,
    called: str,
    planned: list[str],
    folder: Path,
    model: Any,
    teacher: Any,
    **weights: float,
) -> dict[str, Any]:
    """Train one model by a plan and ask it, or read what an earlier start found."""
    file = folder / "found.json"
    if file.is_file():
        return json.loads(file.read_text())
    plan = [(kind, 2 if options.tiny else int(steps)) for kind, steps in (part.split(":") for part in planned)]
    role = "teacher" if called == "teacher" else "student"
    arguments = DistillationTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=sum(steps for _, steps in plan),
        per_device_train_batch_size=SIZE.teacher_batch_size,
        learning_rate=getattr(SIZE, f"{role}_learning_rate"),
        muon_learning_rate=SIZE.muon_learning_rate,
        seed=options.seed,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        logging_steps=200,
        preflight=False,
        use_cpu=not torch.cuda.is_available(),
        **weights,
    )
    trainer = DistillationTrainer(
        model,
        arguments,
        teacher=teacher,
        train_dataset=data["train"].select(order(data, plan, options.seed)),
        data_collator=collator,
        processing_class=collator.processor,
    )
    began = time.process_time()
    trainer.train()
    seconds = round(time.process_time() - began)
    trainer.save_model(str(folder))

    kinds = np.array([kind_of(row) for row in data["test"].select_columns(["question", "question_type"])])
    right = is_right(model, data["test"], collator)
    types = np.array(data["train"]["question_type"])
    seen = data["train"].select(np.flatnonzero(types == "relation")[:2_000])
    found = {
        "scenes": num_scenes,
        "model": called,
        "plan": planned,
        "accuracy": float(right.mean()),
        "by_type": {str(kind): float(right[kinds == kind].mean()) for kind in sorted(set(kinds))},
        "relations_of_training": float(is_right(model, seen, collator).mean()),
        "processor_seconds": seconds,
    }
    print(found, flush=True)
    file.write_text(json.dumps(found))
    return found


def make_processor(data: DatasetDict) -> DualDistillProcessor:
    """Tokenizer of the questions, and images as they are."""
    tokenizer = train_tokenizer(data["train"]["question"], 500, 24)
    return DualDistillProcessor(ViTImageProcessorPil(size={"height": 36, "width": 36}), tokenizer)


def order(data: DatasetDict, plan: list[tuple[str, int]], seed: int) -> np.ndarray:
    """Rows of all steps, in the order of the plan."""
    rng = np.random.default_rng(seed)
    types = np.array(data["train"]["question_type"])
    relations, others = np.flatnonzero(types == "relation"), np.flatnonzero(types != "relation")
    pools = {
        "first": np.flatnonzero(np.isin(types, FIRST)),
        "relation": relations,
        "half": np.concatenate([others, *[relations] * round(len(others) / len(relations))]),
        "all": np.arange(len(types)),
    }
    parts = []
    for kind, steps in plan:
        wanted = steps * SIZE.teacher_batch_size
        epochs = -(-wanted // len(pools[kind]))
        parts.append(np.concatenate([rng.permutation(pools[kind]) for _ in range(epochs)])[:wanted])
    return np.concatenate(parts)


def kind_of(row: dict[str, str]) -> str:
    """Question type; of relations, what is asked for."""
    if row["question_type"] != "relation":
        return row["question_type"]
    return "relation, neighbour" if "next to" in row["question"] else "relation, direction"


def is_right(model: Any, rows: Any, collator: DistillationCollator) -> np.ndarray:
    """Whether each answer is right."""
    answers = predict_answers(model.eval(), rows, collator, 512)
    return np.array([one == label for one, label in zip(answers, rows["answer"], strict=True)])


if __name__ == "__main__":
    main()
