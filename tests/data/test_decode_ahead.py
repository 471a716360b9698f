"""What is decoded ahead comes in order, with an error in place of what cannot be read, whoever decodes it."""

import pytest
import torch

from dual_distill.data import ImageError, Prepared, decode_ahead, fill_shards, is_readable, run_by_shape
from dual_distill.data.sharded_table import PlannedShard


class Numbers:
    """Numbers by their names; "3" cannot be read."""

    ids = [str(number) for number in range(9)]

    def value(self, identifier):
        return int(identifier)


def prepare(identifier, value):
    if value == 3:
        raise ImageError(f"row {identifier}: broken")
    return Prepared(torch.full((1 + value % 2,), float(value)), {"name": identifier})


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_in_order_with_errors_in_their_places(num_workers):
    found = list(decode_ahead(Numbers(), ["5", "3", "x", "0"], prepare, num_workers))
    assert [type(one) for one in found] == [Prepared, ImageError, ImageError, Prepared]
    assert (found[0].values.tolist(), found[0].known) == ([5.0, 5.0], {"name": "5"})
    assert str(found[1]) == "row 3: broken"
    assert str(found[2]) == "row x: it was planned, but is not among those given now."
    assert not found[0].values.is_shared()
    assert [is_readable(Numbers(), prepare, name) for name in ("5", "3", "x")] == [True, False, False]


def test_an_error_of_another_kind_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        list(decode_ahead(Numbers(), ["1"], lambda identifier, value: 1 / 0))


def test_shards_are_filled_by_shape_in_the_order_of_their_plan():
    batches = []

    def run(batch):
        batches.append([row.known["name"] for row in batch])
        return [row.values.sum().item() for row in batch]

    shards = [PlannedShard(0, ["4", "1", "2", "3"]), PlannedShard(4, ["5", "7", "6"])]
    filled = list(fill_shards(shards, Numbers(), prepare, run, batch_size=2))
    assert batches == [["4", "2"], ["1"], ["5", "7"], ["6"]]
    assert filled[0] == (0, {"4": 4.0, "1": 2.0, "2": 2.0}, {"3": "row 3: broken"})
    assert list(filled[1].results) == ["5", "7", "6"]
    with pytest.raises(ValueError, match=r"row 3: broken Without strict, it is listed"):
        list(fill_shards(shards, Numbers(), prepare, run, batch_size=2, strict=True))


def test_rare_shapes_do_not_wait_for_ever():
    sizes = []
    seen = []

    def inputs():
        for width in range(1, 10):
            yield width, Prepared(torch.zeros(width))
        seen.extend(sizes)

    found = dict(run_by_shape(lambda batch: sizes.append(len(batch)) or [0] * len(batch), inputs(), batch_size=2))
    assert seen == [1, 1]  # eight shapes wait at most
    assert len(found) == 9
