"""How a result is recorded: the command that gave it, commit, device and versions beside the figures."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def dual_distill(*words: str) -> dict[str, Any]:
    """Run one `dual-distill` command with --json; return its line. Its progress goes to this process's stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "dual_distill", *words, "--json"], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def keep_freed_memory() -> None:
    """Start this script again with a C library that keeps what is freed, as guides to training on a CPU advise.

    glibc hands large freed blocks back to the system at once, so each step asks for their pages anew, which varies more
    than what is compared here. Elsewhere than under glibc the variables mean nothing.
    """
    settings = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**28)}
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def provenance() -> dict[str, Any]:
    """Commit (with "-dirty" if sources were changed), device, versions, start, and this script's own command."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=RESULTS.parents[1], capture_output=True, check=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "recipes", "benchmarks/*.py")
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else ""),
        "device": device(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("dual-distill", "torch", "transformers", "datasets")},
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("MALLOC_", "OMP_"))},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device() -> str:
    """GPU by name, or processor by name with cores and threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def write(name: str, results: Any, source: dict[str, Any]) -> None:
    """Write `results/NAME.json`: where the figures come from (`provenance()`, taken before the run), then they."""
    RESULTS.mkdir(exist_ok=True)
    duration = datetime.now(UTC) - datetime.fromisoformat(source["started"])
    file = RESULTS / f"{name}.json"
    record = {**source, "duration_s": round(duration.total_seconds()), "results": results}
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {file.relative_to(Path.cwd())}" if file.is_relative_to(Path.cwd()) else f"written: {file}")
