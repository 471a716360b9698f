"""The quickstart for several seeds: is the teacher good, and does distillation help, whatever the seed?

    python benchmarks/quickstart_seeds.py [--preset default] [--seeds 0 1 2] [--student-start random]

Each seed runs in a process of its own; a seed that is finished already is read, not repeated.
"""

import argparse
import json
from pathlib import Path

from _record import dual_distill, provenance, write


def main() -> None:
    """Run, print a table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--student-start", default="random", choices=("random", "teacher"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args()
    source = provenance()
    runs = []
    for seed in options.seeds:
        folder = options.runs_dir / f"{options.preset}-{options.student_start}-seed{seed}"
        if (folder / "report.json").is_file():
            report = json.loads((folder / "report.json").read_text())
        else:
            words = ["--preset", options.preset, "--seed", str(seed), "--student-start", options.student_start]
            report = dual_distill("quickstart", *words, "--output-dir", str(folder))
        runs.append(report)
        print(f"seed {seed}: {row(report)}", flush=True)
    source["seed"] = options.seeds
    write(f"quickstart_{options.preset}_{options.student_start}_start", runs, source)


def row(report: dict) -> str:
    """Return one line for the terminal."""
    shares = " ".join(
        f"{name} {100 * report[name]['accuracy']:.1f}" for name in ("teacher", "hard_labels", "distilled", "text_only")
    )
    return f"{shares} % in {report['seconds']:.0f} s"


if __name__ == "__main__":
    main()
