"""The optimisers on rows: they find known minima, each row for itself, and L-BFGS in fewer looks than Adam."""

from __future__ import annotations

import itertools

import pytest
import torch

from refact.search import descent

WIDTH = 12


def bowls(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (e, d) and curvatures (e, d, d) of quadratic losses, of condition numbers up to 100."""
    generator = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(count, WIDTH, WIDTH, generator=generator)).Q
    return torch.randn(count, WIDTH, generator=generator), turns @ torch.diag(torch.logspace(-2, 0, WIDTH)) @ turns.mT


def losses(rows, centres, curvatures) -> tuple[torch.Tensor, torch.Tensor]:
    away = rows - centres
    slope = (curvatures @ away[..., None])[..., 0]
    return 0.5 * (away * slope).sum(1), slope


def descended(name: str, looks: int, which: list[int], leaving: int = -1) -> torch.Tensor:
    """Where the problems end after so many looks; one of them may leave half-way."""
    centres, curvatures = (part[which] for part in bowls())
    optimiser = descent.of(name, torch.full((len(which),), 0.1), torch.full((len(which),), 50.0), WIDTH)
    rows = torch.zeros(len(which), WIDTH)
    for look in range(looks):
        at = torch.tensor([i for i in range(len(which)) if i != leaving or look < looks // 2])
        loss, slope = losses(rows[at], centres[at], curvatures[at])
        rows[at] = optimiser(rows[at], at, loss, slope)
    return losses(rows, centres, curvatures)[0]


def test_lbfgs_finds_the_minimum_sooner_than_adam():
    start = losses(torch.zeros(3, WIDTH), *bowls())[0]
    assert (descended("lbfgs", 30, [0, 1, 2]) < 5e-3 * start).all()
    assert descended("lbfgs", 30, [0, 1, 2]).mean() < 0.1 * descended("adam", 30, [0, 1, 2]).mean()
    assert (descended("adam", 400, [0, 1, 2]) < 1e-2 * start).all()


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_each_row_goes_its_own_way(name):
    """Alone, together, and when another one leaves."""
    together = descended(name, 20, [0, 1, 2])
    alone = torch.cat([descended(name, 20, [at]) for at in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(descended(name, 20, [0, 1, 2], leaving=1)[[0, 2]], together[[0, 2]])


def test_a_step_that_does_not_help_is_taken_back_and_shortened_until_it_settles():
    """A loss that rises wherever one goes: the trials come back to the start, and the problem is over."""
    optimiser = descent.of("lbfgs", torch.tensor([0.1]), torch.tensor([10.0]), 4)
    rows, which = torch.zeros(1, 4), torch.tensor([0])
    slope = torch.ones(1, 4)
    lengths = []
    for _ in range(30):
        rows = optimiser(rows, which, rows.norm(dim=1), slope)
        lengths.append(float(rows.norm()))
        if optimiser.settled[0]:
            break
    assert lengths[-1] == 0
    assert all(b < a for a, b in itertools.pairwise(lengths))


def test_other_optimisers_are_refused():
    with pytest.raises(ValueError, match="adam"):
        descent.of("sgd", torch.ones(1), torch.ones(1), 2)
