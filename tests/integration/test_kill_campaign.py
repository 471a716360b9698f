"""Whatever writes is killed at a few of its operations on files, started again, and ends as if it had not been."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs LD_PRELOAD and a C compiler")
def test_a_kill_at_any_operation_changes_nothing():
    command = [sys.executable, BENCHMARKS / "kill_campaign.py", "--no-record", "--trials", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_flipped_byte_is_named_in_every_kind_of_file():
    command = [sys.executable, BENCHMARKS / "damaged_files.py", "--no-record", "--flips", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
