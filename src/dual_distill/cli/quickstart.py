"""Generate images with questions, train a teacher and three students on them, and show what distillation does.

A fusion encoder is the teacher. One dual encoder learns from hard labels; two are distilled: with the paper's
interaction of two pooled vectors, and with one layer in which the text's tokens read the image's stored tokens. Shown
are accuracy, speed, and where each of them looks. A second start of the same command continues after the last finished
stage.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_distill.quickstart import PRESETS, finding, quickstart, report_table

from .options import option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add size, start and seed."""
    presets = "smoke: a minute, learns nothing; default: minutes on two cores; thorough: far longer (default: default)"
    parser.add_argument("--preset", choices=PRESETS, default="default", help=presets)
    start = "the students start from the same random weights, or from the teacher's (default: random)"
    parser.add_argument("--student-start", choices=("random", "teacher"), default="random", help=start)
    option(parser, "--seed", "N", "of scenes, weights and order (default: 0)", default=0)
    option(parser, "--output-dir", "PATH", "of everything (default: quickstart-PRESET-seedSEED)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run all stages."""
    folder = options.output_dir or Path(f"quickstart-{options.preset}-seed{options.seed}")
    return quickstart(options.preset, options.seed, options.student_start, folder)


def table(report: Mapping[str, Any]) -> str:
    """Lay out table and finding, and the commands that take up what was written."""
    folder, example, settings = Path(report["output_dir"]).absolute(), report["example"], report["settings"]
    scenes = {split: settings[f"{split}_scenes"] for split in ("train", "validation", "test")}
    options = json.dumps({"seed": settings["seed"], "num_scenes": scenes})

    student = folder / "distilled"
    commands = [
        ["predict", student, "--image", folder / example["image"], example["question"]],
        ["evaluate", student, "--task", "scenes", "--data-options", options],
        ["push", student, "me/distilled-scenes", "--dry-run"],
    ]
    # The program of this very environment, so that nothing has to be activated.
    program = Path(sys.executable).with_name("dual-distill")
    start = [program] if program.is_file() else [sys.executable, "-m", "dual_distill"]
    lines = [shlex.join(str(word) for word in (*start, *command)) for command in commands]

    written = f"written to {folder}: report.md, attention.png, checkpoints; next, for example:"
    return "\n".join(["", report_table(report), "", finding(report), "", written, *lines])
