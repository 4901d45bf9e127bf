"""Optimisers of many small problems side by side, of which each may leave at any step: Adam and L-BFGS on rows."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

PAIRS = 8  # steps and changes of slope that L-BFGS remembers
FIRST = 8.0  # its first step, in steps of Adam
LONGEST = 0.5  # its longest, of the bound
SHORTEST = 1e-3  # a shorter one is not made: the trial taken last is the end
ENOUGH = 1e-4  # what a step must bring, of what the slope promised (Armijo)
SHORTER = 0.35  # of a step that brought too little, tried next


@runtime_checkable
class Optimiser(Protocol):
    """Gives the next trial of some rows from the loss and slope at the last one."""

    settled: Tensor  # (e,) which problems' next trial is their last

    def __call__(self, rows: Tensor, which: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """rows (k, d): the last trials of the problems `which` (k,); loss (k,), gradient (k, d) there."""


def of(name: str, rates: Float[Tensor, " e"], bounds: Float[Tensor, " e"], width: int) -> Optimiser:
    """The optimiser of that name for e problems of d unknowns; rates: Adam's steps; bounds: of the unknowns' norms."""
    if name == "adam":
        return Adam(rates, width)
    if name == "lbfgs":
        return LBFGS(rates, bounds, width)
    raise ValueError(f"optimiser is 'adam' or 'lbfgs', not {name!r}")


class Adam:
    """arXiv 1412.6980; torch's own keeps one state for all rows."""

    def __init__(self, rates: Tensor, width: int):
        self.rates, self.step = rates, 0
        self.settled = torch.zeros_like(rates, dtype=torch.bool)
        self.mean, self.square = rates.new_zeros(2, len(rates), width)

    def __call__(self, rows: Tensor, which: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """One step, along each coordinate about as long as the rate."""
        self.step += 1
        self.mean[which] = mean = 0.9 * self.mean[which] + 0.1 * gradient
        self.square[which] = square = 0.999 * self.square[which] + 0.001 * gradient.square()
        unbiased = (square / (1 - 0.999**self.step)).sqrt() + 1e-8
        return rows - self.rates[which, None] * (mean / (1 - 0.9**self.step)) / unbiased


class LBFGS:
    """Limited-memory BFGS (Nocedal and Wright, algorithms 7.4 and 3.1), every evaluation of the loss a step.

    A trial that lowered its loss enough is taken, and the next one goes along the quasi-Newton direction; another is
    taken back and tried shorter.
    """

    def __init__(self, rates: Tensor, bounds: Tensor, width: int):
        count = len(rates)
        self.first, self.bounds = FIRST * rates * width**0.5, bounds
        self.settled = torch.zeros_like(rates, dtype=torch.bool)
        self.point, self.slope, self.move = rates.new_zeros(3, count, width)  # the last trial taken; the step from it
        self.loss = torch.full_like(rates, torch.inf)
        self.steps, self.turns = rates.new_zeros(2, PAIRS, count, width)  # newest last; zeros: none yet

    def __call__(self, rows: Tensor, which: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """The next trials."""
        step = rows - self.point[which]
        promised = (step * self.slope[which]).sum(1).clamp_max(0)
        brought = ~self.loss[which].isfinite() | (loss <= self.loss[which] + ENOUGH * promised)
        taken, refused = (where.nonzero().flatten() for where in (brought, ~brought))
        self._take(rows[taken], which[taken], loss[taken], gradient[taken])
        self.move[which[refused]] = SHORTER * step[refused]
        self.settled[which] = self.move[which].norm(dim=1) < SHORTEST * self.bounds[which]
        self.move.masked_fill_(self.settled[:, None], 0)
        return self.point[which] + self.move[which]

    def _take(self, rows: Tensor, which: Tensor, loss: Tensor, gradient: Tensor) -> None:
        step, turn = rows - self.point[which], gradient - self.slope[which]
        bent = ((step * turn).sum(1) > 1e-10 * turn.square().sum(1)) & self.loss[which].isfinite()
        curved = bent.nonzero().flatten()
        at = which[curved]
        for kept, new in ((self.steps, step[curved]), (self.turns, turn[curved])):
            kept[:, at] = torch.cat([kept[1:, at], new[None]])
        self.point[which], self.slope[which], self.loss[which] = rows, gradient, loss
        self.move[which] = self._direction(which, gradient)

    def _direction(self, which: Tensor, gradient: Tensor) -> Tensor:
        steps, turns = self.steps[:, which], self.turns[:, which]
        inner = (steps * turns).sum(2)
        weight = torch.where(inner > 0, 1 / inner.clamp_min(1e-30), 0.0)[..., None]  # 0: no pair there
        shares, down = [], gradient
        for s, y, w in zip(steps.flip(0), turns.flip(0), weight.flip(0)):
            shares.append(w * (s * down).sum(1, keepdim=True))
            down = down - shares[-1] * y
        newest = inner[-1] / turns[-1].square().sum(1).clamp_min(1e-30)
        down = (
            torch.where(newest > 0, newest, self.first[which] / gradient.norm(dim=1).clamp_min(1e-30))[:, None] * down
        )
        for s, y, w, share in zip(steps, turns, weight, reversed(shares)):
            down = down + (share - w * (y * down).sum(1, keepdim=True)) * s
        return -down * (LONGEST * self.bounds[which] / down.norm(dim=1).clamp_min(1e-30)).clamp_max(1)[:, None]
