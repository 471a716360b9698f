"""Image-text retrieval: the dual encoder by itself, and with its best k re-ranked by the fusion encoder.

    python benchmarks/retrieval.py --pretrained runs/pretraining [--coco path/to/coco_mini_ccby] [--seed 0]

Starts from what `pretraining_2x2.py` pre-trained: the fusion encoder, and the dual encoder of the seed with and without
its teacher. The fusion encoder is fine-tuned on retrieval; the plain dual encoder by contrast, the distilled one by
contrast and the fusion encoder's ranking of hard negatives. Recall and seconds on the 1,000 test scenes with five
captions each. With --coco the same models search 76 photographs with 380 captions: the way there, no more, for they
have seen nothing but coloured shapes.
"""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from _record import dual_distill, provenance
from _runs import data_words, make_parser, parse, record, train_once
from PIL import Image


def main() -> None:
    """Run, print and record."""
    parser = make_parser(__doc__, "retrieval")
    parser.add_argument("--pretrained", type=Path, help="runs of pretraining_2x2.py (default: beside the runs-dir)")
    parser.add_argument(
        "--coco", type=Path, help="folder with images.parquet and annotations/dataset_karpathy_format.json"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-seed", type=int, default=0)
    parser.add_argument("--rerank-top", type=int, default=16)
    options = parse(parser)
    source = provenance() | {"seed": options.seed}
    pretrained = options.pretrained or options.runs_dir.with_name("pretraining")
    shared = ["--seed", str(options.seed), *data_words(options, "retrieval_scenes")]

    def train(role: str, start: Path, *words: str) -> dict[str, Any]:
        words = (*shared, "--init_from", str(start), *words)
        return {"variant": role} | train_once(options, "retrieval_scenes", role, options.runs_dir / role, *words)

    teacher = train("teacher", pretrained / f"teacher{options.teacher_seed}" / "pretrained")
    of_seed = pretrained / f"seed{options.seed}"
    students = {
        "hard_labels": train("hard_labels", of_seed / "pretrained_plain"),
        "distilled": train("distilled", of_seed / "pretrained_distilled", "--teacher", teacher["folder"]),
    }

    data = {"scene_captions": str(options.worlds / "captions")}
    results: dict[str, Any] = {"training": [teacher, *students.values()], "retrieval": []}
    with tempfile.TemporaryDirectory() as folder:
        if options.coco is not None:
            lay_out(options.coco, Path(folder))
            data["coco_mini_ccby"] = folder
        for name, path in data.items():
            for role, student in students.items():
                words = [student["folder"], "--task", "coco_retrieval", "--data", path, "--split", "test"]
                reranked = ["--rerank", teacher["folder"], "--rerank-top", str(options.rerank_top)]
                report = dual_distill("evaluate", *words, *reranked)
                kept = {key: value for key, value in report.items() if key not in ("model", "rerank")}
                results["retrieval"].append({"data": name, "student": role, **kept})
                print(f"{name}, {role}:", json.dumps(kept["whole"]), json.dumps(kept["times"]), flush=True)

    if options.coco is not None:
        source["command"] = source["command"].replace(str(options.coco), "COCO_MINI")
    record(options, "retrieval", results, source)


def lay_out(source: Path, folder: Path) -> None:
    """Write the photographs of a Parquet file beside their captions, in Karpathy's format; all of them are test."""
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
