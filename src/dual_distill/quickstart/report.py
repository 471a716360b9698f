"""What the quickstart found, as a table, `report.md` and `report.json`."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dual_distill.inference import PairLatency
from dual_distill.trainer import EvaluationReport


def write_report(
    output_dir: Path,
    settings: Mapping[str, Any],
    titles: Mapping[str, str],
    evaluations: Mapping[str, EvaluationReport],
    training_seconds: Mapping[str, float],
    latency: PairLatency,
    seconds: float,
) -> tuple[dict[str, Any], str]:
    """Write `report.md` and `report.json`; return the JSON and the table.

    Args:
        output_dir: where to.
        settings: preset, seed and sizes.
        titles: stage -> what the table calls it.
        evaluations: stage -> its test report; the teacher's holds the baselines.
        training_seconds: stage -> seconds of training.
        latency: milliseconds per pair.
        seconds: of the whole quickstart.
    """
    teacher = evaluations["teacher"]
    report: dict[str, Any] = {
        stage: {
            "accuracy": evaluation.accuracy,
            "accuracy_by_type": evaluation.accuracy_by_group,
            "train_seconds": training_seconds[stage],
        }
        for stage, evaluation in evaluations.items()
    }
    report |= {
        "text_only": {"accuracy": teacher.text_only, "method": teacher.text_only_method},
        "majority": {"accuracy": teacher.majority},
        "ms_per_pair": latency._asdict(),
        "test_rows": teacher.rows,
        "seconds": round(seconds, 1),
        "seed": settings["seed"],
        "settings": dict(settings),
        "output_dir": str(output_dir),
        "versions": {name: version(name) for name in ("dual-distill", "torch", "transformers")},
        "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
    }
    table = _table(titles, evaluations, training_seconds, latency)
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (output_dir / "report.md").write_text(_page(table, report))
    return report, table


def _table(
    titles: Mapping[str, str],
    evaluations: Mapping[str, EvaluationReport],
    training_seconds: Mapping[str, float],
    latency: PairLatency,
) -> str:
    kinds = list(evaluations["teacher"].accuracy_by_group)
    header = ["test accuracy, %", "all", *kinds, "ms / pair", "training, s"]
    ms = {
        "teacher": f"{latency.teacher:.3f}",
        "distilled": f"{latency.student:.3f} ({latency.student_stored_images:.3f} images stored)",
    }
    rows = [
        [
            titles[stage],
            f"{100 * evaluation.accuracy:.1f}",
            *(f"{100 * evaluation.accuracy_by_group[kind]:.1f}" for kind in kinds),
            ms.get(stage, "as distilled"),
            f"{training_seconds[stage]:.0f}",
        ]
        for stage, evaluation in evaluations.items()
    ]
    baselines = {
        "text alone": evaluations["teacher"].text_only,
        "most frequent answer": evaluations["teacher"].majority,
    }
    rows += [
        [name, f"{100 * share:.1f}", *("" for _ in range(len(header) - 2))]
        for name, share in baselines.items()
        if share is not None
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *rows]]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _page(table: str, report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    gap = report["teacher"]["accuracy"] - report["alone"]["accuracy"]
    closed = (report["distilled"]["accuracy"] - report["alone"]["accuracy"]) / gap if gap > 0 else None
    sentence = (
        f"Distillation closed {100 * closed:.0f} % of the gap between the dual encoder alone and its teacher."
        if closed is not None
        else "The dual encoder alone is not below the teacher, so there is no gap to close."
    )
    start = "the teacher's weights" if settings["student_start"] == "teacher" else "the same random weights"
    return f"""# dual-distill quickstart, preset {settings["preset"]}, seed {report["seed"]}

{table}

{sentence} Both students start from {start} and
train for {settings["student_steps"]:,} steps of {settings["student_batch_size"]}; the teacher trained for
{settings["teacher_steps"]:,} of {settings["teacher_batch_size"]}. {report["test_rows"]:,} test questions about
{settings["test_scenes"]:,} pictures that no other split contains. "text alone" answers without looking at the picture.

Without stored images a dual encoder is no faster than a fusion encoder of the same size; the speed comes from encoding
each image once.

![where each word looks](attention.png)

{report["seconds"]:.0f} seconds in all on {report["device"]}; {
        ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    }.

```python
from dual_distill import DualDistillProcessor, DualEncoderForQuestionAnswering

model = DualEncoderForQuestionAnswering.from_pretrained("{report["output_dir"]}/distilled")
processor = DualDistillProcessor.from_pretrained("{report["output_dir"]}/distilled")
```
"""


__all__ = ["write_report"]
