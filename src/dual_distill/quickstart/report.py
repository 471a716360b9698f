"""What the quickstart found, as a table, `report.md` and `report.json`."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dual_distill.sealed import write_file
from dual_distill.trainer import EvaluationReport

STAGES = {
    "teacher": "teacher (fusion encoder)",
    "hard_labels": "dual encoder, one interaction layer, hard labels",
    "distilled_pooled": "dual encoder, the paper's interaction, distilled",
    "distilled": "dual encoder, one interaction layer, distilled",
}
"""Name of a trained stage and of its folder -> what the report calls it."""

_PAGE = Path(__file__).with_name("report_page.md")


def write_report(
    output_dir: Path,
    settings: Mapping[str, Any],
    evaluations: Mapping[str, EvaluationReport],
    stages: Mapping[str, Mapping[str, Any]],
    shown: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Write `report.md` and `report.json`; return the latter. The teacher's evaluation holds the baselines.

    `stages` has the seconds of each; `shown` has `ms_per_pair`, and as `example` a test image's file in the folder, a
    question about it, the right answer and the rule by which it was chosen.
    """
    teacher = evaluations["teacher"]
    report: dict[str, Any] = {}
    for stage, found in evaluations.items():
        shares = {"accuracy": found.accuracy, "accuracy_by_type": found.accuracy_by_group}
        report[stage] = {**shares, "train_seconds": stages[stage]["seconds"]}
    report |= {
        "text_only": {"accuracy": teacher.text_only, "method": teacher.text_only_method},
        "majority": {"accuracy": teacher.majority},
        **shown,
        "test_rows": teacher.rows,
        "seconds": round(seconds, 1),
        "seed": settings["seed"],
        "settings": dict(settings),
        "output_dir": str(output_dir),
        "versions": {name: version(name) for name in ("dual-distill", "torch", "transformers")},
        "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
    }
    write_file(output_dir / "report.json", json.dumps(report, indent=2) + "\n")

    # The page takes its words from the same report.
    start = "the teacher's weights" if settings["student_start"] == "teacher" else "the same random weights"
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    words = {**settings, **report, "versions": versions, "start": start}
    page = _PAGE.read_text().format(**words, table=report_table(report), finding=finding(report))
    write_file(output_dir / "report.md", page)
    return report


def report_table(report: Mapping[str, Any]) -> str:
    """Lay a report out: a line for each model and baseline, in Markdown."""
    kinds, ms = list(report["teacher"]["accuracy_by_type"]), report["ms_per_pair"]
    milliseconds = {
        "teacher": f"{ms['teacher']:.3f}",
        "hard_labels": "as distilled",
        "distilled_pooled": f"{ms['pooled']:.3f} ({ms['pooled_stored_images']:.3f} images stored)",
        "distilled": f"{ms['student']:.3f} ({ms['student_stored_images']:.3f} images stored)",
    }
    header = ["test accuracy, %", "all", *kinds, "ms / row", "training, s"]
    rows = [header, ["-"] * len(header)]
    for stage, title in STAGES.items():
        found = report[stage]
        shares = [found["accuracy"], *(found["accuracy_by_type"][kind] for kind in kinds)]
        percent = [f"{100 * share:.1f}" for share in shares]
        rows.append([title, *percent, milliseconds[stage], f"{found['train_seconds']:.0f}"])
    for name, title in (("text_only", "question-only baseline"), ("majority", "most frequent answer")):
        rows.append([title, f"{100 * report[name]['accuracy']:.1f}", *[""] * (len(header) - 2)])

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows[1] = ["-" * width for width in widths]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def finding(report: Mapping[str, Any]) -> str:
    """Say in one sentence what the table shows about distillation, if anything."""
    settings = report["settings"]
    if settings["preset"] == "smoke":
        steps = f"{settings['teacher_steps']} steps of a teacher and {settings['student_steps']} of a student"
        return f"Preset smoke: {steps} teach nothing; the table shows that every stage runs, and nothing else."

    shares = [report[stage]["accuracy"] for stage in ("teacher", "hard_labels", "distilled")]
    teacher, plain, distilled = shares
    # Standard errors, of shares of the same rows taken as if they were of different ones.
    of_teacher, of_plain, of_distilled = (share * (1 - share) / report["test_rows"] for share in shares)
    error = (of_teacher + of_plain) ** 0.5
    if teacher - plain <= 3 * error:
        above = f"The teacher is {100 * (teacher - plain):.1f} points above the dual encoder on hard labels"
        within = f"within three standard errors ({300 * error:.1f})"
        return f"{above}, {within}: so few steps or rows show nothing about distillation."
    closed, reached = (distilled - plain) / (teacher - plain), distilled / teacher
    error = (of_distilled + (1 - closed) ** 2 * of_plain + closed**2 * of_teacher) ** 0.5 / (teacher - plain)
    gap = f"{100 * closed:.0f} % (standard error {100 * error:.0f}) of the gap between the hard-label dual encoder"
    error = (of_distilled + reached**2 * of_teacher) ** 0.5 / teacher
    reached_share = f"{100 * reached:.1f} % (standard error {100 * error:.1f}) of its teacher's accuracy"
    return f"Distillation closed {gap} and its teacher: the student with the layer is at {reached_share}."
