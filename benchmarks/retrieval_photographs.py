"""Retrieval on people's captions of photographs: contrast alone, and beside it what a fusion encoder ranks.

    python benchmarks/retrieval_photographs.py --data path/to/coco_mini --bert path/to/model --efficientnet FILE.pth

76 photographs of COCO with five captions each (images.parquet: image, captions). BERT and image network are those of
benchmarks/daquar.py, which says where the two wheels are. The frozen network's last grid, averaged to 4 x 5 cells,
takes the place of pixels: every model reads 1,280 channels in patches of one cell. The teacher is the BERT's first
three layers as a fusion encoder, whose cells begin where a linear map of the training photographs finds their captions
(Merullo et al., ICLR 2023, arXiv 2209.15162), without which it stays at chance, and which learns to rank. Its students
are small dual encoders from random weights with the teacher's word pieces: contrast on labels alone, and beside it the
teacher's ranking of what the student finds hardest, and that with the teacher's attention of matched pairs; with the
paper's vectors alone, and with one interaction layer, which scores every pair. Equal steps. Four folds: three quarters
of the photographs train, the last is searched (19 photographs, 95 captions), so that each photograph is searched once;
recall in per cent over all folds.
What is finished in RUNS_DIR is read, not made again. `--tiny` tries the script out and records nothing.
"""

import argparse
import functools
import itertools
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
from daquar import TEACHER_SIZE
from datasets import Dataset
from efficientnet_lite import PIXELS, load_efficientnet_lite
from PIL import Image as Picture
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, ViTImageProcessorPil, set_seed

from dual_distill import DistillationTrainingArguments, DualEncoderForImageTextRetrieval, FusionEncoderConfig
from dual_distill.evaluation import RetrievalRecall
from dual_distill.modeling import FusionEncoderForImageTextRetrieval, dual_config_from_fusion
from dual_distill.teachers import start_from_bert
from dual_distill.trainer import RetrievalTrainer

GRID, FOLDS = (4, 5), 4
STUDENT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 384}
TEACHER_LAYERS = 3
# Of the map by which the teacher's cells begin: its penalty, and how long what it gives is beside word embeddings.
RIDGE, LENGTH = 1.0, 5.0
RANKING = {"ranking_negatives": 2}
LAYERS = {0: "vectors", 1: "one layer"}
# What teaches beside the contrastive loss; None: there is no teacher.
VARIANTS: dict[str, dict[str, float] | None] = {
    "contrast alone": None,
    "the teacher's ranking": {"attention_weight": 0.0},
    "its ranking and attention": {},
}


def read(options: argparse.Namespace) -> tuple[list[list[str]], Tensor]:
    """Captions of every photograph, and what the frozen network sees in it: `(76, 1280, 4, 5)`."""
    rows = Dataset.from_parquet(str(options.data / "images.parquet"), cache_dir=tempfile.mkdtemp())
    pictures = [Picture.open(BytesIO(row["image"])) for row in rows]
    model = load_efficientnet_lite(options.efficientnet).efficientnet.eval()
    processor = ViTImageProcessorPil(size=TEACHER_SIZE, **PIXELS)
    with torch.inference_mode():
        pixels = processor([each.convert("RGB") for each in pictures], return_tensors="pt")["pixel_values"]
        grids = torch.cat([model(part)[0] for part in pixels.split(16)])
        cells = nn.functional.adaptive_avg_pool2d(grids, GRID)
    # Long enough not to drown in the embeddings of places.
    return [row["captions"] for row in rows], 10 * nn.functional.normalize(cells, dim=1)


class Fold:
    """One quarter of the photographs to search, and three to train on."""

    def __init__(self, options: Any, number: int, captions: list[list[str]], cells: Tensor):
        self.options, self.cells, self.captions = options, cells, captions
        self.teacher = options.runs_dir / f"teacher {number}"
        self.tokenizer = AutoTokenizer.from_pretrained(options.bert, trust_remote_code=False)
        self.patches = {"visual_inputs": "patches", "num_channels": cells.shape[1], "patch_size": 1}
        self.patches |= {"image_size": list(GRID), "max_position_embeddings": 32}
        order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist()
        self.searched = order[number::FOLDS]
        held_out = set(self.searched)
        pairs = [(image, text) for image in order if image not in held_out for text in captions[image]]
        self.train = [{"image": image, "text": text, "id": at} for at, (image, text) in enumerate(pairs)]

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Word pieces of captions."""
        found = self.tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of matched pairs; equal photographs are no negatives of each other."""
        images, ids = (torch.tensor([row[name] for row in rows]) for name in ("image", "id"))
        seen = {"pixel_values": self.cells[images], "image_ids": images, "caption_ids": ids}
        return self.tokens([row["text"] for row in rows]) | seen

    def fit(self, model: Any, steps: int, batch: int, rate: float, seed: int, teacher: Any, **fields: Any) -> None:
        """Train a model, in place."""
        arguments = DistillationTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=2 if self.options.tiny else steps,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            seed=seed,
            save_strategy="no",
            report_to="none",
            logging_steps=50,
            preflight=False,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            **fields,
        )
        RetrievalTrainer(
            model, arguments, teacher=teacher, train_dataset=self.train, data_collator=self.collate
        ).train()

    @torch.no_grad()
    def linear_map(self) -> tuple[Tensor, Tensor]:
        """Weight `(1280, 384)` and bias that map a training photograph's mean cell to its captions' mean sentence."""
        bert = AutoModel.from_pretrained(self.options.bert, trust_remote_code=False).eval()
        images = sorted({row["image"] for row in self.train})
        sentences = []
        for image in images:
            told = self.tokens(self.captions[image])
            mask = told["attention_mask"][..., None]
            each = (bert(**told).last_hidden_state * mask).sum(1) / mask.sum(1)
            sentences.append(nn.functional.normalize(each, dim=-1).mean(0))
        seen, wanted = self.cells[images].mean((2, 3)), torch.stack(sentences)
        own, mean = seen - seen.mean(0), wanted.mean(0)
        ridge = RIDGE * own.square().sum(1).mean() * torch.eye(len(own))
        weight = own.T @ torch.linalg.solve(own @ own.T + ridge, wanted - mean)
        return weight, mean - seen.mean(0) @ weight

    def teach(self) -> list[list[float]]:
        """Train and save the teacher; its scores."""
        set_seed(0)
        model = start_from_bert(self.options.bert, FusionEncoderForImageTextRetrieval, **self.patches).model
        model.config.num_hidden_layers = TEACHER_LAYERS
        del model.fusion_encoder.encoder.layer[TEACHER_LAYERS:]
        projection = model.fusion_encoder.embeddings.patch_embeddings.projection
        weight, bias = self.linear_map()
        with torch.no_grad():
            projection.weight.copy_(LENGTH * weight.T[:, :, None, None])
            projection.bias.copy_(LENGTH * bias)
        self.fit(model, self.options.teacher_steps, 8, 1e-4, 0, None, **RANKING)
        model.save_pretrained(self.teacher)
        return self.search(model)

    def learn(self, layers: int, seed: int, weights: dict[str, float] | None) -> list[list[float]]:
        """Train a student from random weights; its scores."""
        # Wide beginnings, as narrow models need them.
        drawn = {"initializer_range": 0.12, "embedding_initializer_range": 0.5}
        shape = FusionEncoderConfig(vocab_size=len(self.tokenizer), **self.patches, **drawn, **STUDENT)
        set_seed(seed)
        config = dual_config_from_fusion(shape, interaction_layers=layers)
        config.projection_dim = STUDENT["hidden_size"]
        student = DualEncoderForImageTextRetrieval(config)
        teacher = None
        if weights is not None:
            teacher = FusionEncoderForImageTextRetrieval.from_pretrained(self.teacher)
        self.fit(student, self.options.steps, 16, 5e-4, seed, teacher, **RANKING, **(weights or {}))
        return self.search(student)

    @torch.inference_mode()
    def search(self, model: Any) -> list[list[float]]:
        """Score every caption of the searched photographs with every one of them, `(95, 19)`: a row a caption."""
        model.eval()
        texts = self.tokens([text for image in self.searched for text in self.captions[image]])
        pixels = self.cells[self.searched]
        if isinstance(model, FusionEncoderForImageTextRetrieval):
            ask = model(**texts, pixel_values=pixels.expand(len(texts["input_ids"]), -1, -1, -1, -1), return_dict=True)
            return ask.logits.tolist()
        if model.config.interaction_layers:
            # Each text reads every photograph.
            rows = zip(texts["input_ids"], texts["attention_mask"], strict=True)
            with_each = pixels[:, None]
            asked = [
                model.match_scores(
                    input_ids=ids.expand(len(pixels), -1),
                    attention_mask=mask.expand(len(pixels), -1),
                    pixel_values=with_each,
                )[:, 0]
                for ids, mask in rows
            ]
            return torch.stack(asked).tolist()
        return (model.embed_texts(**texts) @ model.embed_images(pixels).T).tolist()


def recall(scores: list[list[list[float]]], each: int) -> dict[str, float]:
    """Recall in per cent over the folds, from texts to images and back."""
    forth, back = RetrievalRecall(), RetrievalRecall()
    for fold in scores:
        table = torch.tensor(fold)
        owners = torch.arange(len(table)) // each
        found = [[int(owner)] for owner in owners]
        forth.add_batch(predictions=table, references=found)
        own = [(owners == image).nonzero()[:, 0].tolist() for image in range(table.shape[1])]
        back.add_batch(predictions=table.T, references=own)
    named = {"text to image": forth.compute(), "image to text": back.compute()}
    return {f"{way} R@{k}": round(100 * result[f"recall@{k}"], 2) for way, result in named.items() for k in (1, 5)}


def main() -> None:
    """Train, search, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--bert", "--efficientnet"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of students; the teachers have seed 0")
    parser.add_argument("--more-seeds", type=int, nargs="*", default=[], help="of the students without a layer alone")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/retrieval_photographs"))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.runs_dir, options.seeds = Path(tempfile.mkdtemp()), [0]
    named = {getattr(options, name): name.upper() for name in ("data", "bert", "efficientnet", "runs_dir")}
    sys.argv = [named.get(Path(word), word) for word in sys.argv]
    source = provenance() | {"seed": [*options.seeds, *options.more_seeds]}
    torch.set_num_threads(1)
    options.runs_dir.mkdir(parents=True, exist_ok=True)

    captions, cells = read(options)
    results: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[list[list[float]]]] = {}

    def keep(name: str, number: int, make: Callable[[], list[list[float]]]) -> None:
        """Read what an earlier start left of a fold, or make it; the recall so far."""
        file = options.runs_dir / f"{name}, fold {number}.json"
        if not file.is_file():
            began = time.process_time()
            found = {"scores": make(), "processor_seconds": round(time.process_time() - began, 1)}
            file.write_text(json.dumps(found))
        found = json.loads(file.read_text())
        scores.setdefault(name, []).append(found["scores"])
        seconds = results.setdefault(name, {}).get("processor_seconds", 0) + found["processor_seconds"]
        results[name] |= {"processor_seconds": round(seconds, 1), **recall(scores[name], len(captions[0]))}
        print(f"{name}, {number + 1} of {FOLDS} folds: {results[name]}", flush=True)

    for number in range(FOLDS):
        fold = Fold(options, number, captions, cells)
        keep("teacher", number, fold.teach)
        wanted = itertools.product((*options.seeds, *options.more_seeds), LAYERS, options.variants)
        for seed, layers, name in wanted:
            if layers and seed in options.more_seeds:
                continue
            called = f"{LAYERS[layers]}, {name}, seed {seed}"
            keep(called, number, functools.partial(fold.learn, layers, seed, VARIANTS[name]))
    if not options.tiny:
        write("retrieval_photographs", results, source)


if __name__ == "__main__":
    main()
