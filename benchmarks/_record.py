"""How a result is recorded: the command that gave it, commit, device and versions beside the figures."""

import json
import os
import platform
import subprocess
import sys
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


def provenance() -> dict[str, Any]:
    """Commit (with "+changes" if the tree is not clean), device, threads, versions, and this script's own command."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, check=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "recipes", "benchmarks/*.py")
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": git("rev-parse", "--short", "HEAD") + ("+changes" if changed else ""),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("dual-distill", "torch", "transformers", "datasets")},
    }


def write(name: str, results: dict[str, Any], commit_before: dict[str, Any]) -> None:
    """Write `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps({**commit_before, **results}, indent=2) + "\n")
    print(f"written: {file.relative_to(Path.cwd())}" if file.is_relative_to(Path.cwd()) else f"written: {file}")
