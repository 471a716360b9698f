"""Image-text retrieval: the dual encoder alone, and with its best k re-ranked by the fusion encoder; recall and
seconds.

    python benchmarks/retrieval.py --pretrained runs/pretraining [--coco path/to/coco_mini_ccby] [--seed 0]

Starts from what `pretraining_2x2.py` pre-trained: the fusion encoder, and the dual encoder of the seed with and without
its teacher. The fusion encoder is fine-tuned on retrieval; the plain dual encoder by contrast alone, the distilled one
by contrast and the fusion encoder's ranking of hard negatives. Measured on the 1,000 test scenes with five captions
each. With --coco the
same models search 76 photographs with 380 captions: the way there, no more, for they have seen nothing but coloured
shapes.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from _record import dual_distill, provenance, write
from PIL import Image

RECIPES = Path(__file__).parents[1] / "recipes"


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, default=Path("runs/pretraining"), help="runs of pretraining_2x2.py")
    parser.add_argument(
        "--coco", type=Path, help="folder with images.parquet and annotations/dataset_karpathy_format.json"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-seed", type=int, default=0)
    parser.add_argument("--rerank-top", type=int, default=16)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/retrieval"))
    options = parser.parse_args()
    source = provenance() | {"seed": options.seed}
    of_seed = options.pretrained / f"seed{options.seed}"
    teacher = run(options, "teacher", options.pretrained / f"teacher{options.teacher_seed}" / "pretrained")
    students = {
        "alone": run(options, "alone", of_seed / "pretrained_plain"),
        "distilled": run(options, "distilled", of_seed / "pretrained_distilled", "--teacher", teacher["output_dir"]),
    }
    data = {"scene_captions": ["--task", "scene_captions"]}
    results: dict[str, Any] = {"training": [teacher, *students.values()], "retrieval": []}
    with tempfile.TemporaryDirectory() as folder:
        if options.coco is not None:
            lay_out(options.coco, Path(folder))
            data["coco_mini_ccby"] = ["--task", "coco_retrieval", "--data", folder]
        for name, words in data.items():
            for arm, student in students.items():
                words_of_arm = [student["output_dir"], *words, "--split", "test"]
                words_of_arm += ["--rerank", teacher["output_dir"], "--rerank-top", str(options.rerank_top)]
                report = dual_distill("evaluate", *words_of_arm)
                kept = {key: value for key, value in report.items() if key not in ("model", "rerank")}
                results["retrieval"].append({"data": name, "student": arm, **kept})
                print(f"{name}, {arm}:", json.dumps(kept["whole"]), json.dumps(kept["times"]), flush=True)
    if options.coco is not None:
        source["command"] = source["command"].replace(str(options.coco), "COCO_MINI")
    write("retrieval", results, source)


def run(options: argparse.Namespace, arm: str, start: Path, *words: str) -> dict[str, Any]:
    """Train one model, or read what an earlier start of this command left."""
    folder = options.runs_dir / arm
    results = folder / "results.json"
    command = [
        "train",
        str(RECIPES / f"retrieval_scenes_{arm}.yaml"),
        "--seed",
        str(options.seed),
        "--init_from",
        str(start),
    ]
    command += ["--output_dir", str(folder), *words]
    if not results.is_file():
        dual_distill(*command)
    shown = ["dual-distill", "train", f"recipes/retrieval_scenes_{arm}.yaml", *command[2:]]
    return {"arm": arm, "command": " ".join(shown), **json.loads(results.read_text())}


def lay_out(source: Path, folder: Path) -> None:
    """Write the photographs of a Parquet file beside their captions, as Karpathy's format has them; all of them are test."""
    captions = json.loads((source / "annotations" / "dataset_karpathy_format.json").read_text())
    names = {}
    for row in pq.read_table(source / "images.parquet", columns=["image", "file_name"]).to_pylist():
        names[Path(row["file_name"]).name] = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
    for image in captions["images"]:
        file = folder / image.get("filepath", "") / image["filename"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(names[image["filename"]])).verify()
        file.write_bytes(names[image["filename"]])
        image["split"] = "test"
    (folder / "dataset_coco.json").write_text(json.dumps(captions))


if __name__ == "__main__":
    main()
