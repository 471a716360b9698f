"""Draw what learning_curves.py and frontier.py recorded: accuracy over steps; over milliseconds and stored bytes.

    pip install matplotlib
    python benchmarks/draw_curves.py

Reads `results/learning_curves.json`, `frontier_students.json` and `frontier_speed.json`; writes
`docs/images/learning_curves.png` and `frontier.png`. A line is the mean of the seeds, its band one standard error of
that mean. In the frontier a student of four layers a tower stands where a ViLT-B/32 with the same share of its depth
as interaction layers was timed.
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
}
MARKERS = dict(zip(COLOURS, "s^oDvo", strict=True))
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
    """Accuracy over steps, a panel for each start; dashed: the teachers."""
    runs = read("learning_curves")
    starts = [start for start in TITLES if any(run["start"] == start for run in runs)]
    figure, panels = plt.subplots(1, len(starts), figsize=(4.6 * len(starts), 4.2), sharey=True, squeeze=False)
    teacher = mean({run["seed"]: 100 * run["teacher_accuracy"] for run in runs}.values())
    for panel, start in zip(panels[0], starts, strict=True):
        points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for run in runs:
            if run["start"] == start:
                points[run["terms"]][run["steps"]].append(run["accuracy"])
        for terms, found in points.items():
            steps = sorted(found)
            means, errors = zip(*(mean_and_error(found[step]) for step in steps), strict=True)
            panel.plot(steps, means, marker=MARKERS[terms], color=COLOURS[terms], label=terms, markersize=5)
            low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
            panel.fill_between(steps, low, high, color=COLOURS[terms], alpha=0.2, linewidth=0)
        panel.axhline(teacher, color="black", linestyle="--", linewidth=1, label="teacher")
        panel.set(xscale="log", xlabel="steps of 64 questions", title=TITLES[start])
        ticks = sorted({run["steps"] for run in runs})
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0][0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(IMAGES / "learning_curves.png", dpi=120)


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
