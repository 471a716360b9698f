"""Muon for the matrices inside layers: who gets it, its first step, resumed runs, what is refused."""

import pytest
import torch
from torch import nn

from dual_distill.trainer import DistillationTrainer
from dual_distill.trainer.optimizer import Muon, MuonWithAdamW, orthogonalize, with_muon


class Net(nn.Module):
    """An embedding, a layer with a norm, and a head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))])
        self.head = nn.Linear(4, 3)

    def forward(self, ids):
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def make_pair(model, **settings):
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return with_muon(adamw, model, 0.5, is_sharded=False, **settings)


def test_the_matrix_of_a_layer_goes_along_the_nearest_orthogonal_one_and_the_rest_as_adamw_does():
    torch.manual_seed(0)
    model, plain = Net(), Net()
    plain.load_state_dict(model.state_dict())
    before = model.layers[0][1].weight.detach().clone()
    optimizer, adamw = make_pair(model), torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
    for one, by in ((model, optimizer), (plain, adamw)):
        one(torch.arange(5)).square().sum().backward()
        by.step()

    name = "layers.0.1.weight"
    for other, weight in model.named_parameters():
        if other != name:
            assert torch.equal(weight, plain.get_parameter(other)), other
    # Decay first; then the gradient with its singular values made alike, at AdamW's size. Five Newton-Schulz steps
    # leave them between about 0.7 and 1.2. Behind a layer norm one of the four is 0, and stays small.
    left, values, right = torch.linalg.svd(model.get_parameter(name).grad)
    step = (before * (1 - 0.5 * 0.1) - model.get_parameter(name).detach()) / (0.5 * 0.2 * 4**0.5)
    along = left.T @ step @ right.T
    assert values[2] > 0.05 > 1e-3 > values[3]
    assert ((along.diagonal()[:3] > 0.6) & (along.diagonal()[:3] < 1.3)).all()
    assert (along - along.diagonal().diag()).abs().max() < 0.05


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_values_go_through_the_polynomial_of_the_paper_and_directions_stay(shape):
    torch.manual_seed(1)
    matrices = torch.randn(3, *shape)
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    expected = left @ values.diag_embed() @ right
    # Each of fifteen products is rounded to bfloat16, and the polynomial is steep.
    torch.testing.assert_close(orthogonalize(matrices).double(), expected, atol=0.05, rtol=0)


def test_steps_are_those_of_torchs_muon_for_matrices_alone_and_together():
    torch.manual_seed(2)
    start = [torch.randn(*shape) for shape in ((4, 4), (4, 8), (4, 4), (8, 4), (4, 4))]
    gradients = [[torch.randn_like(one) for one in start] for _ in range(3)]
    settings = {"lr": 0.05, "weight_decay": 0.1}

    def trained(make, chosen):
        weights = [nn.Parameter(start[at].clone()) for at in chosen]
        optimizer = make(weights, **settings)
        for step in gradients:
            for at, weight in zip(chosen, weights, strict=True):
                # One of them sits a step out.
                weight.grad = None if at == 2 and step is gradients[1] else step[at].clone()
            optimizer.step()
        return [weight.detach() for weight in weights], optimizer

    together, ours = trained(Muon, range(5))
    theirs, other = trained(
        lambda *given, **named: torch.optim.Muon(*given, adjust_lr_fn="match_rms_adamw", **named), range(5)
    )
    for mine, its, before in zip(together, theirs, start, strict=True):
        # Both round to bfloat16, and sum in another order.
        assert (mine - its).abs().max() < 0.02 * (mine - before).abs().max()
    for at in range(5):
        torch.testing.assert_close(trained(Muon, [at])[0][0], together[at], atol=1e-6, rtol=0)
    # A run that began with torch's resumes with ours.
    mine, its = (optimizer.state_dict()["state"] for optimizer in (ours, other))
    assert all(mine[at].keys() == its[at].keys() for at in range(5))


def test_a_state_of_torchs_muon_is_taken_up_and_parts_change_nothing(monkeypatch):
    torch.manual_seed(3)
    start, first, second = (torch.randn(5, 4, 6) for _ in range(3))
    whole, resumed = ([nn.Parameter(one.clone()) for one in start] for _ in range(2))

    def step(optimizer, weights, gradients):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()

    settings = {"lr": 0.05, "weight_decay": 0.1}
    torchs, begun = (torch.optim.Muon(one, adjust_lr_fn="match_rms_adamw", **settings) for one in (whole, resumed))
    step(torchs, whole, first)
    step(torchs, whole, second)

    step(begun, resumed, first)
    ours = Muon(resumed, **settings)
    ours.load_state_dict({**ours.state_dict(), "state": begun.state_dict()["state"]})
    monkeypatch.setattr("dual_distill.trainer.optimizer._MOST_ELEMENTS", 50)  # two of 24 elements at once
    step(ours, resumed, second)
    for one, other, before in zip(whole, resumed, start, strict=True):
        # Both round to bfloat16, and sum in another order.
        assert (one - other).abs().max() < 0.02 * (one - before).abs().max()


def test_a_scheduler_and_a_saved_state_reach_both_parts():
    model = Net()
    optimizer = make_pair(model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.01]
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for part in optimizer._parts for group in part.param_groups] == [0.25, 0.005]
    model(torch.arange(5)).sum().backward()
    optimizer.step()
    again = make_pair(model)
    again.load_state_dict(optimizer.state_dict())
    assert isinstance(again, MuonWithAdamW)
    assert [group["lr"] for part in again._parts for group in part.param_groups] == [0.25, 0.005]
    assert again.state[model.layers[0][1].weight].keys() == {"momentum_buffer"}
    assert again._parts[0].state is again._parts[1].state is again.state


def test_a_schedule_that_ends_at_a_rate_of_its_own_begins_with_that_of_adamw(build):
    fields = {"muon_learning_rate": 0.5, "learning_rate": 0.01, "max_steps": 4, "warmup_steps": 0}
    trainer = build(**fields, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"lr_end": 0.004})
    trainer.train()
    # Both fall to four tenths, in a straight line.
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.5 * 0.4)
    assert trainer.lr_scheduler.get_last_lr()[-1] == pytest.approx(0.004)


def test_resumed_equals_uninterrupted(build, make_student, tmp_path):
    fields = {"muon_learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = build(make_student(seed=1), **fields)
    whole.train()
    plain = build(make_student(seed=1), **{**fields, "muon_learning_rate": None}, output_dir=tmp_path / "plain")
    plain.train()
    assert isinstance(whole.optimizer.optimizer, MuonWithAdamW)
    states = [trainer.model.state_dict() for trainer in (build(make_student(seed=1)), whole, plain)]
    name = "dual_encoder.text_model.encoder.layer.0.output.dense.weight"
    start, state, other = (one[name] for one in states)
    assert not torch.equal(start, state)
    assert not torch.equal(state, other)
    resumed = build(make_student(seed=9), **fields, output_dir=tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, states[1][name]), name


def test_refused_without_matrices_with_sharded_ones_and_with_an_optimizer_of_the_callers(build, make_student):
    head = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="muon_learning_rate is given, but no layer's matrix is trained"):
        with_muon(torch.optim.AdamW(head.parameters()), head, 0.1, is_sharded=False)
    with pytest.raises(ValueError, match="FSDP and DeepSpeed shard the matrices"):
        with_muon(torch.optim.AdamW(head.parameters()), head, 0.1, is_sharded=True)
    with pytest.raises(ValueError, match=r"muon_learning_rate is 0.0; give a number above 0"):
        build(muon_learning_rate=0.0)
    student = make_student()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    args = build(student, muon_learning_rate=0.1).args
    with pytest.raises(ValueError, match="muon_learning_rate is given, but the groups of the optimizer"):
        DistillationTrainer(student, args, optimizers=(optimizer, None))
