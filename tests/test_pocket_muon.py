"""The optimiser of the bundled model's training, beside torch's own Muon, which takes matrices only."""

from __future__ import annotations

import torch
from torch import nn

from pocket.muon import Muon, Pair, orthogonal


def test_singular_values_come_near_to_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 64, 64), (2, 24, 96), (2, 96, 24)):
        found = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert (found > 0.5).float().mean() > 0.95
        assert found.max() < 1.35


def test_a_matrix_takes_the_steps_of_torchs_muon() -> None:
    torch.manual_seed(0)
    start, aim = torch.randn(24, 96), torch.randn(24, 96)
    weights = []
    for make in (lambda w: Muon([w], 0.01, 0.1), lambda w: torch.optim.Muon(
        [w], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )):  # fmt: skip
        w = nn.Parameter(start.clone())
        optimiser = make(w)
        for _ in range(5):
            optimiser.zero_grad()
            (w - aim).square().sum().backward()
            optimiser.step()
        weights.append(w.detach())
    assert (weights[0] - start).norm() > 0.5
    assert torch.allclose(*weights, atol=2e-3)


def test_each_weight_has_one_optimiser_and_a_state_goes_on() -> None:
    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.ModuleDict({"conv_in": nn.Conv2d(3, 8, 3), "middle": nn.Conv2d(8, 8, 3), "norm": nn.GroupNorm(2, 8)})

    def steps(net: nn.Module, pair: Pair, count: int) -> None:
        for _ in range(count):
            pair.zero_grad()
            net["norm"](net["middle"](net["conv_in"](torch.ones(1, 3, 8, 8)))).square().sum().backward()
            pair.step(0.01)

    whole, parted, later = model(), model(), model()
    pairs = [Pair(net, 0.01, 0.1, 4.0) for net in (whole, parted, later)]
    muon, adam = (one.param_groups[0]["params"] for one in pairs[0].optimisers)
    assert [w.shape for w in muon] == [(8, 8, 3, 3)]
    assert {id(w) for w in [*muon, *adam]} == {id(w) for w in whole.parameters()}
    steps(whole, pairs[0], 4)
    steps(parted, pairs[1], 2)
    later.load_state_dict(parted.state_dict())
    pairs[2].load_state_dict(pairs[1].state_dict())
    steps(later, pairs[2], 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), later.parameters()))
