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
from _record import dual_distill, provenance, train_once, write
from PIL import Image
from worlds.write import write_captions


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
    parser.add_argument(
        "--captions", type=Path, default=Path("runs/worlds/captions"), help="written unless it is there"
    )
    options = parser.parse_args()
    source = provenance() | {"seed": options.seed}
    of_seed = options.pretrained / f"seed{options.seed}"
    if not options.captions.is_dir():
        write_captions(options.captions)

    def train(role: str, start: Path, *words: str) -> dict[str, Any]:
        shared = ["--seed", str(options.seed), "--init_from", str(start), "--data", str(options.captions)]
        return {"variant": role} | train_once("retrieval_scenes", role, options.runs_dir / role, *shared, *words)

    teacher = train("teacher", options.pretrained / f"teacher{options.teacher_seed}" / "pretrained")
    students = {
        "hard_labels": train("hard_labels", of_seed / "pretrained_plain"),
        "distilled": train("distilled", of_seed / "pretrained_distilled", "--teacher", teacher["folder"]),
    }
    data = {"scene_captions": ["--task", "coco_retrieval", "--data", str(options.captions)]}
    results: dict[str, Any] = {"training": [teacher, *students.values()], "retrieval": []}
    with tempfile.TemporaryDirectory() as folder:
        if options.coco is not None:
            lay_out(options.coco, Path(folder))
            data["coco_mini_ccby"] = ["--task", "coco_retrieval", "--data", folder]
        for name, words in data.items():
            for role, student in students.items():
                reranked = ["--rerank", teacher["folder"], "--rerank-top", str(options.rerank_top)]
                report = dual_distill("evaluate", student["folder"], *words, "--split", "test", *reranked)
                kept = {key: value for key, value in report.items() if key not in ("model", "rerank")}
                results["retrieval"].append({"data": name, "student": role, **kept})
                print(f"{name}, {role}:", json.dumps(kept["whole"]), json.dumps(kept["times"]), flush=True)
    if options.coco is not None:
        source["command"] = source["command"].replace(str(options.coco), "COCO_MINI")
    write("retrieval", results, source)


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
