"""What benchmarks of whole runs share: worlds written once, recipes trained once, models evaluated once.

A second start of a script reads what an earlier one left. With `--tiny` everything is small and of no use, lies in
runs/tiny, and nothing is recorded: it shows that a script runs.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from _record import RESULTS, dual_distill, write
from worlds.write import NUM_SCENES, TOKENIZER_TEXTS, write_captions, write_statements

TINY_SCENES = {"train": 40, "validation": 12, "test": 12}
TINY_TRAINING = (
    *("--max_steps", "2", "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "16"),
    *(
        "--hidden_size",
        "16",
        "--num_hidden_layers",
        "2",
        "--num_attention_heads",
        "4",
        "--load_best_model_at_end",
        "false",
    ),
    *("--save_strategy", "no", "--eval_strategy", "no", "--use_cpu", "true"),
)


def make_parser(description: str | None, runs_dir: str) -> argparse.ArgumentParser:
    """Build a parser with the options of every benchmark of runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs", runs_dir), help="models; read where they are there"
    )
    parser.add_argument("--worlds", type=Path, default=Path("runs/worlds"), help="data; written unless it is there")
    parser.add_argument(
        "--set", nargs="*", default=[], help="further words for every training run, such as --set=--max_steps=10"
    )
    parser.add_argument("--tiny", action="store_true", help="models of no use, to try the script out")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; a tiny run gets folders, scenes and training of its own."""
    options = parser.parse_args()
    options.num_scenes = NUM_SCENES
    if options.tiny:
        options.runs_dir, options.worlds = Path("runs/tiny", options.runs_dir.name), Path("runs/tiny/worlds")
        options.num_scenes = TINY_SCENES
        options.set = [*TINY_TRAINING, *options.set]
    return options


def world(options: argparse.Namespace, name: str) -> Path:
    """Return the folder of a world, "captions" or "statements", which is written unless it is there."""
    folder = options.worlds / name
    if not folder.is_dir():
        {"captions": write_captions, "statements": write_statements}[name](folder, options.num_scenes)
    return folder


def data_words(options: argparse.Namespace, recipe: str) -> list[str]:
    """Return the words that tell a recipe of generated scenes where its data lies, or how much of it there is."""
    if recipe.startswith("scenes"):
        return ["--data_options", json.dumps({"num_scenes": options.num_scenes})]
    folder = world(options, "statements" if recipe == "scene_statements" else "captions")
    texts = ["--tokenizer_texts", str(folder / TOKENIZER_TEXTS)] if recipe == "pretrain_scenes" else []
    return ["--data", str(folder), *texts]


def train_once(options: argparse.Namespace, recipe: str, role: str, folder: Path, *words: str) -> dict[str, Any]:
    """Train one role of a recipe, or read what an earlier start left; its results, folder and command."""
    command = ["train", f"recipes/{recipe}.yaml", "--role", role, "--output_dir", str(folder), *words, *options.set]
    results = folder / "results.json"
    if not results.is_file():
        dual_distill(command[0], str(RESULTS.parents[1] / command[1]), *command[2:])
    shown = " ".join(["dual-distill", *command])
    return {**json.loads(results.read_text()), "folder": str(folder), "command": shown}


def evaluate_once(file: Path, model: str, *words: str) -> dict[str, Any]:
    """Evaluate a model and keep what was found in a file, or read it."""
    if not file.is_file():
        file.write_text(json.dumps(dual_distill("evaluate", model, *words)))
    return json.loads(file.read_text())


def training_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return what is recorded of how a model was trained."""
    return {"command": result["command"], "steps": result["steps"], "train_seconds": result["train_runtime"]}


def mean_and_each(values: list[float], digits: int, unit: str = "") -> dict[str, Any]:
    """Return the mean over seeds, and it beside each value in words."""
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    mean = statistics.mean(values)
    return {"mean": round(mean, digits), "shown": f"{mean:.{digits}f}{unit} ({each})"}


def record(options: argparse.Namespace, name: str, results: Any, source: dict[str, Any]) -> None:
    """Write the results, unless they are those of a tiny run."""
    if options.tiny:
        print(f"tiny: nothing is recorded in {name}.json")
    else:
        write(name, results, source)
