"""Two processes of half a batch each are one process with the whole batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_processes.py")


def run(folder, processes, rows, pair):
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), str(folder), str(rows), *pair.split()]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command[1:1] = torchrun
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "DS_ACCELERATOR": "cpu"}
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        said = started.communicate(timeout=300)[1]
    except subprocess.TimeoutExpired:  # its processes have said where they stand and ended: so it hangs itself
        started.send_signal(signal.SIGABRT)
        said = started.communicate()[1]
    assert started.returncode == 0, said[-8000:]
    world_size, logs = json.loads((folder / "logs.json").read_text())
    assert world_size == processes
    return load_file(folder / "model" / "model.safetensors"), logs


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [
        "with_teacher",
        "without_teacher",
        "with_teacher uneven",  # 13 rows: the last batch of two processes is filled up with rows that do not count
        "without_teacher uneven",
        "with_teacher few",  # 11 rows: one process has none of its own in the last batch
        "with_teacher attention_alone",  # the classifier takes part in no loss
        "with_teacher streamed",
        "with_teacher cached",  # in the second epoch one process knows its rows, the other asks
        "with_teacher zero2",
        "without_teacher zero3 uneven",
    ],
)
def test_two_processes_equal_one(pair, tmp_path):
    if "zero" in pair:
        pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    alone, expected = run(tmp_path / "one", 1, 8, pair)
    together, found = run(tmp_path / "two", 2, 4, pair)
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name.endswith("loss"):
                assert other[name] == pytest.approx(one[name], rel=1e-4), name
