"""Draw what learning_curves.py and frontier.py recorded: accuracy over steps and seconds; over milliseconds and bytes.

    pip install matplotlib
    python benchmarks/draw_curves.py

Reads `results/learning_curves.json`, `learning_curves_steps.json`, `frontier_students.json` and `frontier_speed.json`;
writes `docs/images/learning_curves.png` and `frontier.png`. A line is the mean of the seeds, its band one standard
error of that mean; a point without a band is one seed's. In the frontier a student of four layers a tower stands where
a ViLT-B/32 with the same share of its depth as interaction layers was timed.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib import pyplot as plt

BENCHMARKS = Path(__file__).parent
IMAGES = BENCHMARKS.parent / "docs" / "images"
# One colour for each way of teaching, in both figures; told apart without colours too.
COLOURS = {
    "hard labels": "#d55e00",
    "soft labels": "#e69f00",
    "soft labels, attention": "#0072b2",
    "soft labels, attention of all layers": "#56b4e9",
    "soft labels, attention, hard labels": "#009e73",
    "distilled": "#0072b2",
    "distilled, hard labels": "#009e73",
}
MARKERS = dict(zip(COLOURS, "s^oDvov", strict=True))
TITLES = {
    "random": "the paper's interaction, random weights",
    "teacher": "the paper's interaction, the teacher's weights",
    "one layer": "one interaction layer, random weights",
}
# Interaction layers of a student of four layers a tower -> of the twelve that were timed.
TIMED = {0: 0, 1: 1, 2: 6, 4: 12}
NAMES = {0: "vectors", 1: "1 layer", 2: "half depth", 4: "full depth"}


def read(name: str) -> list[dict[str, Any]]:
    """Rows of a recorded result."""
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())["results"]


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean in per cent, and its standard error (0 for a single value)."""
    many = [100 * value for value in values]
    return mean(many), stdev(many) / math.sqrt(len(many)) if len(many) > 1 else 0.0


def draw_learning_curves() -> None:
    """Accuracy over steps (above) and over the seconds that they take (below), a panel for each start."""
    runs, timed = read("learning_curves"), read("learning_curves_steps")
    starts = [start for start in TITLES if any(run["start"] == start for run in runs)]
    teacher = mean({run["seed"]: 100 * run["teacher_accuracy"] for run in runs}.values())
    seconds = {(row["start"], row["terms"]): row["ms_a_step"] / 1000 for row in timed}
    size = (4.4 * len(starts), 7.6)
    figure, rows = plt.subplots(2, len(starts), figsize=size, sharey=True, sharex="row", squeeze=False)
    for panels, start in zip(zip(*rows, strict=True), starts, strict=True):
        points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for run in runs:
            if run["start"] == start:
                points[run["terms"]][run["steps"]].append(run["accuracy"])
        for terms, found in points.items():
            steps = sorted(found)
            means, errors = zip(*(mean_and_error(found[step]) for step in steps), strict=True)
            low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
            # The weights that a student starts from do not change what a step costs.
            each = seconds["one layer" if start == "one layer" else "random", terms]
            for panel, at in zip(panels, (steps, [each * step for step in steps]), strict=True):
                panel.plot(at, means, marker=MARKERS[terms], color=COLOURS[terms], label=terms, markersize=5)
                panel.fill_between(at, low, high, color=COLOURS[terms], alpha=0.2, linewidth=0)
        for panel in panels:
            panel.axhline(teacher, color="black", linestyle="--", linewidth=1, label="teacher")
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
        panels[0].set(xlabel="steps of 64 questions", title=TITLES[start])
        panels[1].set_xlabel("seconds of one core")
        panels[0].legend(fontsize=8)
    ticks = sorted({run["steps"] for run in runs})
    for row, at in zip(rows, (ticks, (50, 100, 200, 400, 800, 1600)), strict=True):
        for panel in row:
            panel.set_xticks(at, [f"{tick:,}" for tick in at])
            panel.minorticks_off()
        row[0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(IMAGES / "learning_curves.png", dpi=110)


def draw_frontier() -> None:
    """Accuracy over milliseconds a question (left) and over bytes an image as int8 (right)."""
    runs, timed = read("frontier_students"), read("frontier_speed")
    stored = {row["layers"]: row for row in timed if row["way"] == "image_stored"}
    fusion = next(row for row in timed if row["model"] == "fusion_encoder")
    teacher = mean({run["seed"]: 100 * run["teacher_accuracy"] for run in runs}.values())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
    for terms in ("distilled", "soft labels", "hard labels"):
        layers = sorted({run["layers"] for run in runs})
        of_layers = [
            [run["accuracy"] for run in runs if (run["layers"], run["terms"]) == (number, terms)] for number in layers
        ]
        means, errors = zip(*map(mean_and_error, of_layers), strict=True)
        style = {"marker": MARKERS[terms], "color": COLOURS[terms], "label": terms, "capsize": 3}
        milliseconds = [stored[TIMED[number]]["latency_ms"] for number in layers]
        left.errorbar(milliseconds, means, errors, **style)
        kilobytes = [stored[TIMED[number]]["bytes_an_image"]["int8"] / 1000 for number in layers]
        right.errorbar(kilobytes, means, errors, **style)
        if terms == "distilled":
            for number, at, height in zip(layers, milliseconds, means, strict=True):
                below = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
                left.annotate(NAMES[number], (at, height), (0, -16), **below)
    left.plot(fusion["latency_ms"], teacher, "*", color="black", markersize=12, label="fusion encoder (teacher)")
    for panel in (left, right):
        panel.axhline(teacher, color="black", linestyle="--", linewidth=1)
        panel.grid(alpha=0.3)
    left.set(xscale="log", xlabel="ms a question about a stored image (ViLT-B/32's shape)", ylabel="test accuracy, %")
    right.set(xscale="log", xlabel="kB stored of an image, int8")
    for panel, ticks in ((left, (20, 30, 50, 75, 100, 200)), (right, (1, 10, 150))):
        panel.set_xticks(ticks, map(str, ticks))
        panel.minorticks_off()
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(IMAGES / "frontier.png", dpi=120)


if __name__ == "__main__":
    draw_learning_curves()
    draw_frontier()
