"""Generate images with questions, train a teacher and three students on them, and show what distillation does.

A fusion encoder is the teacher. One dual encoder learns from hard labels; two are distilled: with the paper's
interaction of two pooled vectors, and with one layer in which the text's tokens read the image's stored tokens. Shown
are accuracy, speed, and where each of them looks. A second start of the same command continues after the last finished
stage.
"""

from collections.abc import Sequence
from pathlib import Path

from dual_distill.quickstart import PRESETS, quickstart, report_table

from .options import add_options, command_parser, show


def run(words: Sequence[str]) -> None:
    """Run all stages and print the table."""
    parser = command_parser(__name__, __doc__)
    presets = "smoke: under a minute, learns nothing; default: minutes on two cores; thorough: hours (default: default)"
    parser.add_argument("--preset", choices=PRESETS, default="default", help=presets)
    start = "the students start from the same random weights, or from the teacher's (default: random)"
    parser.add_argument("--student-start", choices=("random", "teacher"), default="random", help=start)
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and order (default: 0)")
    parser.add_argument("--output-dir", type=Path, help="of everything (default: quickstart-PRESET-seedSEED)")
    add_options(parser, "--json", "--debug")

    options = parser.parse_args(words)
    folder = options.output_dir or Path(f"quickstart-{options.preset}-seed{options.seed}")
    show(
        options,
        lambda _: quickstart(options.preset, options.seed, options.student_start, folder),
        lambda report: f"\n{report_table(report)}\n\nwritten to {folder}: report.md, attention.png, checkpoints",
    )
