"""What the first words of a user cost: CPU seconds of help, of a typo and of the import, as ratios to their peers'.

    python benchmarks/first_minutes.py [--repeats 5]

Processes run in turn, so that other work on the machine meets all alike; CPU seconds are user and system time of the
process, its children among it. Ratios are to `hf --help` (the command of huggingface_hub) and `import transformers`.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from _record import provenance, write

PROGRAMS = Path(sys.executable).parent
WAYS = {
    "hf --help": [PROGRAMS / "hf", "--help"],
    "dual-distill --help": [sys.executable, "-m", "dual_distill", "--help"],
    "dual-distill trian (a typo)": [sys.executable, "-m", "dual_distill", "trian"],
    "import transformers": [sys.executable, "-c", "import transformers"],
    "import dual_distill": [sys.executable, "-c", "import dual_distill"],
}
PEERS = {name: "import transformers" if name.startswith("import") else "hf --help" for name in WAYS}


def cpu_seconds(words: list[str | Path]) -> float:
    """Run a process to its end; its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env={**os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure in turn, print a table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: %(default)s)")
    options = parser.parse_args()
    source = provenance()

    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for counts in [False] + [True] * options.repeats:  # the first round fills the caches of the file system
        for name, words in WAYS.items():
            spent = cpu_seconds(words)
            seconds[name] += [spent] if counts else []

    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    results = {}
    for name, spent in seconds.items():
        peer = PEERS[name]
        results[name] = {
            "cpu_s": round(medians[name], 3),
            "each_s": [round(each, 3) for each in spent],
            "ratio": round(medians[name] / medians[peer], 3),
            "over_s": round(medians[name] - medians[peer], 3),
            "peer": peer,
        }
        print(f"{name:<28} {medians[name]:6.3f} s of CPU, {results[name]['ratio']:5.2f} x {peer}")
    write("first_minutes", results, source)


if __name__ == "__main__":
    main()
