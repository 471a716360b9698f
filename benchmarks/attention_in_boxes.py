"""Does the word look at the object? COCO's captions and boxes, asked of what benchmarks/daquar.py left.

    python benchmarks/attention_in_boxes.py --data path/to/coco_mini_ccby --runs-dir RUNS [--seeds 0]

A caption's word that names a category of the image's objects ("dogs", "pizza"; the last word of "dining table") is
looked up: the share of its attention that lies inside the boxes of that category, cells by their overlap. Chance is
what a word gets that looks everywhere alike, the boxes' share of the image; a word's gain is the share over chance, and
its standard error is over images, whose words are no independent samples.
Teacher and students never saw these photographs or sentences: they learned from questions about rooms. Words of objects
whose boxes fill less than half of the image count, and that every model reads (a long caption is cut). `--tiny` tries
the script out and records nothing.
"""

import argparse
import json
import math
import statistics
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from _record import provenance, write
from daquar import INTERACTION, VARIANTS
from datasets import Dataset, Image
from PIL import Image as Picture

from dual_distill.inference import attention_maps
from dual_distill.teachers import load_model

FINE = (60, 80)


def objects_of(folder: Path) -> dict[int, dict[str, list[list[float]]]]:
    """Boxes of each image by the last word of their category; x, y, width and height in pixels."""
    found: dict[int, dict[str, list[list[float]]]] = {}
    for split in ("train2017", "val2017"):
        file = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        names = {one["id"]: one["name"].split()[-1] for one in file["categories"]}
        for one in file["annotations"]:
            of_image = found.setdefault(one["image_id"], {})
            of_image.setdefault(names[one["category_id"]], []).append(one["bbox"])
    return found


def inside(boxes: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """Which cells of a fine grid lie inside a box, by their centres."""
    rows, columns = FINE
    y = (np.arange(rows)[:, None] + 0.5) / rows * size[1]
    x = (np.arange(columns)[None] + 0.5) / columns * size[0]
    hit = np.zeros(FINE, dtype=bool)
    for left, top, width, height in boxes:
        hit |= (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
    return hit


def named(word: str, categories: dict[str, list[list[float]]]) -> str | None:
    """The category that a word names, in singular or plural."""
    word = word.lower()
    return next((name for name in categories if word in (name, f"{name}s", f"{name}es")), None)


def shares(model: Any, processor: Any, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Of every image the `(W, 2)` words that name an object: share of attention inside the boxes, and chance."""
    of_images = []
    for row in rows:
        found = []
        for caption in row["captions"]:
            words, maps = attention_maps(model, processor, row["image"], caption, grid=FINE)
            for word, each in zip(words, maps, strict=True):
                name = named(word, row["objects"])
                if name is None:
                    continue
                hit = inside(row["objects"][name], row["image"].size)
                if 0 < hit.mean() < 0.5:
                    found.append((each[hit].sum() / each.sum() if each.any() else np.nan, hit.mean()))
        if found:
            of_images.append(np.array(found))
    return of_images


def main() -> None:
    """Ask every model, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/daquar"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of students")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    source = provenance() | {"seed": options.seeds}
    source["command"] = source["command"].replace(str(options.data), "DATA").replace(str(options.runs_dir), "RUNS")

    objects = objects_of(options.data)
    images = Dataset.from_parquet(str(options.data / "images.parquet"))
    if isinstance(images.features["image"], Image):
        images = images.cast_column("image", Image(decode=False))
    rows = []
    for row in images:
        if objects.get(row["image_id"]):
            data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            picture = Picture.open(BytesIO(data)).convert("RGB")
            rows.append({"image": picture, "captions": row["captions"], "objects": objects[row["image_id"]]})
    rows = rows[:2] if options.tiny else rows

    folders = {"teacher": options.runs_dir / "teacher"}
    for seed in options.seeds:
        folders |= {
            f"{name}, seed {seed}": options.runs_dir / f"{INTERACTION}, {name}, seed {seed}" for name in VARIANTS
        }
    asked = {}
    for name, folder in folders.items():
        model, processor = load_model(folder)[:2]
        asked[name] = shares(model, processor, rows)

    read = [
        np.all([np.isfinite(each[:, 0]) for each in of_image], axis=0) for of_image in zip(*asked.values(), strict=True)
    ]
    results: dict[str, Any] = {}
    for name, of_images in asked.items():
        of_images = [words[real] for words, real in zip(of_images, read, strict=True) if real.any()]
        words = np.concatenate(of_images)
        gains = [float((words[:, 0] / words[:, 1]).mean()) for words in of_images]
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        results |= {"images": len(gains), "words": len(words), "chance": round(float(words[:, 1].mean()), 4)}
        results[name] = {"share": round(float(words[:, 0].mean()), 4)}
        results[name] |= {"gain": round(statistics.mean(gains), 3), "standard_error": round(error, 3)}
        print(f"{name}: {results[name]}, chance {results['chance']} ({len(words)} words)", flush=True)
    if not options.tiny:
        write("attention_in_boxes", results, source)


if __name__ == "__main__":
    main()
