"""Write a generated world as an ordinary folder, which `dual-distill` reads like any other data.

    python benchmarks/worlds/write.py captions   runs/worlds/captions
    python benchmarks/worlds/write.py statements runs/worlds/statements
    python benchmarks/worlds/write.py regions    runs/worlds/light --jitter-px 2 --miss-rate 0.05 --shuffled

With equal --scenes and --seed all of them show the images of the task `scenes`, split by split. So a model that is
pre-trained on the captions can be fine-tuned on the questions, and a region store serves questions and captions alike.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, this file is outside of its package

from dual_distill.data import generate_scenes
from dual_distill.regions import RegionStore
from worlds.scene_captions import generate_scene_captions
from worlds.scene_regions import scene_region_store, train_scene_backbone
from worlds.scene_statements import generate_scene_statements

NUM_SCENES = {"train": 10_000, "validation": 300, "test": 1_000}
"""Split -> scenes that are written by default."""

TOKENIZER_TEXTS = "tokenizer_texts.txt"
"""Questions and statements beside the captions, a text a line: a tokenizer of all three worlds reads it as well."""

_KARPATHY_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_WORD_SCENES = {"train": 300}  # their texts hold every word


def write_captions(
    folder: Path, num_scenes: Mapping[str, int] = NUM_SCENES, captions_per_scene: int = 5, seed: int = 0
) -> None:
    """Write captions in Karpathy's format: `dataset_coco.json`, the images below, and `tokenizer_texts.txt`.

    Each sentence has a `hard_negative` beside its `raw`: the caption with one word exchanged, which makes it false.
    """
    data = _undecoded(generate_scene_captions(num_scenes, captions_per_scene, seed=seed), "image")
    images: dict[str, dict[str, Any]] = {}
    for split, rows in data.items():
        for row in rows:
            name = row["image_id"]
            if name not in images:
                _write_image(folder / split / f"{name}.png", row["image"])
                listed = {"filepath": split, "filename": f"{name}.png", "imgid": len(images)}
                images[name] = {**listed, "split": _KARPATHY_SPLITS[split], "sentences": []}

            sentence = {name: row[name] for name in ("hard_negative", "changed")}
            images[name]["sentences"].append({"raw": row["caption"], **sentence})

    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "scenes", "images": list(images.values())}))
    questions = generate_scenes(_WORD_SCENES)["train"]["question"]
    statements = generate_scene_statements(_WORD_SCENES)["train"]["sentence"]
    (folder / TOKENIZER_TEXTS).write_text("".join(f"{text}\n" for text in [*questions, *statements]))


def write_statements(
    folder: Path, num_scenes: Mapping[str, int] = NUM_SCENES, statements_per_scene: int = 1, seed: int = 0
) -> None:
    """Write statements about two images as a custom dataset: `train.jsonl` and the others, the images below.

    Columns: image_0 and image_1 (paths), sentence, label ("True" or "False"), family, sentence_id.
    """
    data = generate_scene_statements(num_scenes, statements_per_scene, seed=seed)
    for split, rows in _undecoded(data, "image_0", "image_1").items():
        lines = []
        for row in rows:
            written = {name: row[name] for name in ("sentence", "label", "family", "sentence_id")}
            for column in ("image_0", "image_1"):
                written[column] = f"{split}/{row[f'{column}_id']}.png"
                _write_image(folder / written[column], row[column])
            lines.append(json.dumps(written))

        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def write_regions(
    folder: Path,
    num_scenes: Mapping[str, int] = NUM_SCENES,
    width: int = 16,
    depth: int = 2,
    steps: int = 240,
    boxes: Path | None = None,
    jitter_px: float = 0.0,
    miss_rate: float = 0.0,
    shuffled: bool = False,
    seed: int = 0,
) -> None:
    """Train a backbone on the scenes of `train`, and write a region store of all scenes."""
    scenes = generate_scenes(num_scenes, seed=seed)
    backbone = train_scene_backbone(scenes["train"], width, depth, steps=steps, seed=seed)
    taken = None if boxes is None else RegionStore(boxes)
    detector = {"jitter_px": jitter_px, "miss_rate": miss_rate, "shuffled": shuffled, "seed": seed}
    scene_region_store(scenes, backbone, folder, boxes=taken, **detector)


def _undecoded(data: DatasetDict, *columns: str) -> DatasetDict:
    for column in columns:
        data = data.cast_column(column, datasets.Image(decode=False))
    return data


def _write_image(file: Path, image: Mapping[str, Any]) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image["bytes"])


def make_parser() -> argparse.ArgumentParser:
    """Build the parser: one subcommand a world, with the command that reads what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    worlds = parser.add_subparsers(dest="world", required=True, metavar="WORLD")

    captions = _world(
        worlds, "captions", "five captions an image, in Karpathy's format (for retrieval, pre-training and captioning)",
        "dual-distill train recipes/pretrain_scenes.yaml --role teacher --data OUT",
    )  # fmt: skip
    captions.add_argument("--captions-per-scene", type=int, default=5, metavar="N", help="1 to 10 (default: 5)")

    statements = _world(
        worlds, "statements", "statements about two images, true or false, as a custom dataset with two image columns",
        "dual-distill train recipes/scene_statements.yaml --role teacher --data OUT",
    )  # fmt: skip
    statements.add_argument("--statements-per-scene", type=int, default=1, metavar="N", help="1 to 12 (default: 1)")

    regions = _world(
        worlds, "regions", "boxes, object tags and features of the scenes, as a region store for DistillVLM",
        "dual-distill train recipes/scenes_regions.yaml --role teacher --regions OUT",
    )  # fmt: skip
    regions.add_argument("--width", type=int, default=16, metavar="N", help="channels, and width of a feature (16)")
    regions.add_argument("--depth", type=int, default=2, metavar="N", help="convolutions of the backbone (2)")
    regions.add_argument("--steps", type=int, default=240, metavar="N", help="of the backbone's training (240)")
    regions.add_argument(
        "--boxes", type=Path, metavar="STORE", help="take the boxes of this store (teacher adaptation)"
    )
    regions.add_argument("--jitter-px", type=float, default=0.0, metavar="PX", help="move each side by up to PX (0)")
    regions.add_argument("--miss-rate", type=float, default=0.0, metavar="SHARE", help="of objects not found (0)")
    regions.add_argument("--shuffled", action="store_true", help="in an order drawn anew for each scene")
    return parser


def _world(worlds: Any, name: str, what: str, read_by: str) -> argparse.ArgumentParser:
    """Add one subcommand with what all worlds take."""
    parser: argparse.ArgumentParser = worlds.add_parser(
        name, help=what, description=f"Write {what}.", epilog=f"read it with: {read_by}"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder; made")
    parser.add_argument(
        "--scenes", type=int, nargs=3, default=list(NUM_SCENES.values()), metavar=("TRAIN", "VALIDATION", "TEST"),
        help="scenes of each split (default: 10000 300 1000)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and what is said of them (default: 0)")
    return parser


def main() -> None:
    """Write one world."""
    options = vars(make_parser().parse_args())
    write = {"captions": write_captions, "statements": write_statements, "regions": write_regions}[options.pop("world")]
    folder = options.pop("out")
    num_scenes = dict(zip(NUM_SCENES, options.pop("scenes"), strict=True))
    try:
        write(folder, num_scenes, **options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
