"""The generated scenes as a data set for the Hub: Parquet with images inside, and a card.

    python examples/publish_scenes.py scenes/ --scenes 1000
    hf upload me/scenes scenes/ --repo-type dataset

`load_dataset("scenes/")` reads the folder before, and the repository after; the viewer shows the images.
"""

# ruff: noqa: T201 - printing is what a script does
import argparse
from pathlib import Path

from datasets import DatasetDict, Image
from huggingface_hub import DatasetCard, DatasetCardData

import dual_distill
from dual_distill import load_task

ABOUT = """# Scenes of coloured shapes, with questions

Generated images of coloured shapes, and questions of {types} kinds whose answers follow from the drawing: nobody wrote
or photographed anything. Made by dual_distill {version} with
`load_task("scenes", num_scenes={num_scenes}, seed={seed})`, which gives the same rows again.

| column | |
|---|---|
| `image` | PNG |
| `question`, `answer`, `question_type` | text; {answers} answers |
| `scene_id` | equal for the questions to one image |
| `objects`, `boxes` | what is drawn, and where, in pixels: left, top, right, bottom |

**What it is for**: trying out training and distillation in minutes. What is learned here says nothing of photographs.
"""


def publish(folder: Path, num_scenes: dict[str, int], seed: int = 0) -> DatasetDict:
    """Write a folder, new or empty, and return what it holds."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{str(folder)!r} is not empty; give a new folder.")
    splits = load_task("scenes", num_scenes=num_scenes, seed=seed).cast_column("image", Image())
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")

    train = splits["train"]
    told = {"types": len(set(train["question_type"])), "answers": len(set(train["answer"]))}
    metadata = DatasetCardData(
        language="en",
        license="apache-2.0",
        task_categories=["visual-question-answering"],
        tags=["synthetic", "dual_distill"],
        pretty_name="Scenes of coloured shapes",
        configs=[
            {"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*"} for split in splits]}
        ],
    )
    text = ABOUT.format(**told, version=dual_distill.__version__, num_scenes=num_scenes, seed=seed)
    DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
    return splits


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=1000, help="of train; a tenth of it in validation and in test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    few = max(1, options.scenes // 10)
    print(publish(options.folder, {"train": options.scenes, "validation": few, "test": few}, options.seed))


if __name__ == "__main__":
    main()
