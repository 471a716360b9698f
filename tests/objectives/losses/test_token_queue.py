"""The queue of negatives: order, wrap-around, what is saved, and two processes."""

from pathlib import Path

import pytest
import torch

from dual_distill.objectives import TokenQueue

SCRIPT = Path(__file__).with_name("two_queues.py")


def numbered(*values):
    return torch.tensor([[float(value), -float(value)] for value in values])


def numbers(queue):
    return queue.tokens_in_order()[:, 0].tolist()


def slow_queue(size, batches):
    held = []
    for batch in batches:
        held = (held + list(batch))[-size:]
    return held


def test_it_starts_empty_and_fills_in_order():
    queue = TokenQueue(4, 2)
    assert len(queue) == 0
    assert queue.negatives().shape == (0, 2)
    for batch, expected in (([1], [1.0]), ([2, 3], [1.0, 2.0, 3.0])):
        queue.collect(numbered(*batch))
        queue.write()
        assert numbers(queue) == expected
        assert sorted(queue.negatives()[:, 0].tolist()) == expected


@pytest.mark.parametrize("size", [1, 3, 5, 7, 40])
def test_first_in_first_out_whatever_the_batches(size):
    """Batches of 0 to 9 tokens, against a list: wrap-around, exactly full, larger than the queue."""
    sizes = [3, 0, 5, 1, 9, 2, 7, 7, 4]
    count, batches = 0, []
    queue = TokenQueue(size, 2)
    for number in sizes:
        batches.append(range(count, count + number))
        count += number
        queue.collect(numbered(*batches[-1]) if number else torch.empty(0, 2))
        queue.write()
        assert numbers(queue) == slow_queue(size, batches)
        assert torch.equal(queue.tokens_in_order()[:, 1], -queue.tokens_in_order()[:, 0])


@pytest.mark.parametrize("size", [2, 6, 50])
def test_what_is_collected_counts_from_the_next_step_on(size):
    """Three micro-batches and one write are one batch."""
    queue, whole = TokenQueue(size, 2), TokenQueue(size, 2)
    for start in range(0, 24, 8):
        before = numbers(queue)
        for tokens in (range(start, start + 3), range(start + 3, start + 4), range(start + 4, start + 8)):
            queue.collect(numbered(*tokens))
            assert numbers(queue) == before
        queue.write()
        whole.collect(numbered(*range(start, start + 8)))
        whole.write()
        assert numbers(queue) == numbers(whole)


def test_nothing_collected_beyond_its_size_is_kept():
    queue = TokenQueue(5, 2)
    for start in range(100):
        queue.collect(numbered(start, start + 1000))
    assert sum(map(len, queue._collected)) <= 7
    queue.write()
    assert numbers(queue) == [1097.0, 98.0, 1098.0, 99.0, 1099.0]
    queue.write()
    assert numbers(queue) == [1097.0, 98.0, 1098.0, 99.0, 1099.0]


def test_saved_and_taken_up_again_bit_by_bit():
    queue, other = TokenQueue(5, 3), TokenQueue(5, 3)
    for number in (2, 4, 3):
        queue.collect(torch.randn(number, 3))
        queue.write()
    other.load_state_dict(queue.state_dict())
    for both in (queue, other):
        torch.manual_seed(1)
        both.collect(torch.randn(4, 3))
        both.write()
    assert torch.equal(queue.tokens, other.tokens)
    assert torch.equal(queue.tokens_in_order(), other.tokens_in_order())
    assert len(queue) == len(other) == 5


def test_a_gradient_ends_at_the_queue():
    tokens = torch.randn(3, 2, requires_grad=True)
    queue = TokenQueue(4, 2)
    queue.collect(tokens * 2)
    queue.write()
    assert not queue.tokens.requires_grad


def test_wrong_width_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"tokens has shape \(3, 4\); give \(tokens, 2\)"):
        TokenQueue(4, 2).collect(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="size is 0; give a number above 0"):
        TokenQueue(0, 2)


def test_two_processes_hold_one_queue(scripts, tmp_path):
    """Unequal numbers of tokens, one process with none at all: both write rank 0's, then rank 1's."""
    for done in scripts(SCRIPT, tmp_path, environments=[{"RANK": "0"}, {"RANK": "1"}]):
        assert done.returncode == 0, done.stderr[-3000:]
    found = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert found[0] == found[1] == "3 100 101 200 5 102"
