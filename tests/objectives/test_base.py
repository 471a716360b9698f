"""The contract that every objective keeps: weighted terms, requests, saved state, and the paper that a card cites."""

import pytest
import torch
from torch import nn

from dual_distill.objectives import (
    DiDEObjective,
    DistillVLMObjective,
    Objective,
    Paper,
    PreTrainingObjective,
    RankingObjective,
)


class WithState(Objective):
    """An objective with a parameter and a buffer of its own."""

    def __init__(self, size=2):
        super().__init__({"attention_weight": 2.0, "other_weight": 0.5}, layer_map={0: 3})
        self.scale = nn.Parameter(torch.ones(size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


def test_the_loss_is_the_weighted_sum_of_the_terms():
    losses = WithState().weighted({"attention_loss": torch.tensor(3.0), "other_loss": torch.tensor(4.0)}, start=1.0)
    assert {name: value.item() for name, value in losses.items()} == {
        "attention_loss": 3.0,
        "other_loss": 4.0,
        "loss": 9.0,
    }


def test_what_is_asked_for_follows_from_the_layers():
    objective = WithState()
    takes = {"output_query_states", "output_key_states"}
    student = {"output_query_states": [0], "output_key_states": [0]}
    assert objective.student_requests(takes) == student
    assert objective.student_requests(takes | {"join_states"}) == student | {"join_states": False}
    assert objective.teacher_requests(takes) == {"output_query_states": [3], "output_key_states": [3]}
    assert objective.teacher_requests({"input_ids"}) == {"output_attentions": True}
    assert objective.needs_teacher
    assert DiDEObjective(0.0, 0.0, 1.0).student_requests(takes) == {}
    assert not DiDEObjective(0.0, 0.0, 1.0).needs_teacher


def test_the_state_is_saved_and_read_bit_by_bit(tmp_path):
    written, read = WithState(), WithState()
    with torch.no_grad():
        written.scale.copy_(torch.tensor([0.1, -7.0]))
        written.seen.fill_(5)
    parameter = read.scale
    written.save_state(tmp_path)
    read.load_state(tmp_path)
    assert all(torch.equal(tensor, written.state_dict()[name]) for name, tensor in read.state_dict().items())
    assert read.scale is parameter  # an optimizer keeps it

    with pytest.raises(ValueError, match=r"is of another objective than this run's .*size mismatch for scale"):
        WithState(size=3).load_state(tmp_path)
    (tmp_path / Objective.state_file).write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged"):
        read.load_state(tmp_path)
    (tmp_path / Objective.state_file).unlink()
    with pytest.raises(ValueError, match=r"holds no objective\.safetensors"):
        read.load_state(tmp_path)


def test_an_objective_without_state_leaves_no_file(tmp_path):
    DiDEObjective().save_state(tmp_path)
    DiDEObjective().load_state(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("objective", [DiDEObjective, DistillVLMObjective, PreTrainingObjective, RankingObjective])
def test_every_method_cites_its_paper(objective):
    paper = objective.paper
    assert isinstance(paper, Paper)
    assert paper.title in paper.bibtex
    assert paper.url in paper.bibtex
    assert paper.title in paper.reference
