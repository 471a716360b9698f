"""Two processes are one with the whole batch: losses, draws and gradients, with negatives from the other process."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_processes_pretraining.py")
KINDS = {
    "fusion": ("itm_loss", "mlm_loss", "loss"),
    "dual": ("itc_loss", "itm_loss", "mlm_loss", "loss"),
    "retrieval": ("loss",),
}
CASES = ("unequal rows", "duplicates", "nothing to draw")


@pytest.fixture(scope="module", params=["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def found(request, tmp_path_factory, scripts):
    """What one process found, and what each of two did."""
    folder = tmp_path_factory.mktemp("processes")
    [done] = scripts(SCRIPT, folder, request.param)
    assert done.returncode == 0, done.stderr[-3000:]
    return tuple(load_file(folder / f"{name}.safetensors") for name in ("alone", "process_0", "process_1"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_average_to_those_of_the_whole_batch(kind, case, found):
    alone, *both = found
    for name in KINDS[kind]:
        key = f"{kind}/{case}/{name}"
        mean = (both[0][key] + both[1][key]) / 2
        torch.testing.assert_close(mean, alone[key], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_averaged_gradients_are_those_of_the_whole_batch(kind, case, found):
    alone, *both = found
    prefix = f"{kind}/{case}/grad/"
    names = [name for name in alone if name.startswith(prefix)]
    assert len(names) > 50
    for name in names:
        for process in both:
            torch.testing.assert_close(process[name], alone[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name", ["fusion/{}/negative_image_rows", "dual/{}/negative_image_rows", "dual/{}/negative_text_rows"]
)
def test_the_same_negatives_are_drawn(name, case, found):
    alone, *both = (each[name.format(case)] for each in found)
    assert torch.equal(torch.cat(both), alone)
    if case == "nothing to draw":
        assert alone.tolist() == [-1] * 4
    else:
        own = len(both[0])
        assert (both[0] >= own).any() or (both[1] < own).any()  # from the other process
