"""Find the change of an MLP's output that an edit needs: descent through the layers above the edit only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.precision import lowered
from ..progress import Progress, plainly
from . import descent, objectives


@runtime_checkable
class Forward(Protocol):
    """What a search goes through: `suffix.Suffix`, or another of its kind."""

    def __call__(self, offsets: Tensor) -> tuple[Tensor | None, Tensor]:
        """Offsets (e, d) -> rows (e, c, s, d) or None, and pooled states (e, c, d)."""

    def select(self, which: Tensor) -> Forward:
        """The same for some of the edits."""


@dataclass(frozen=True)
class Candidates:
    """What each sentence of each edit is compared with; entry 0 is the target, then the contrastive ones."""

    features: Float[Tensor, "e c m f"]
    weights: Float[Tensor, "e c"]  # of the sentences; 0 where one is filling; each edit's sum to 1

    def select(self, which: Tensor) -> Candidates:
        """The same for some of the edits."""
        return Candidates(self.features[which], self.weights[which])


@dataclass(frozen=True)
class Found:
    """The offsets, and how the search went; all per edit."""

    offsets: Float[Tensor, "e d"]
    first: Float[Tensor, " e"]  # loss without an edit
    last: Float[Tensor, " e"]  # loss at the offset returned
    probability: Float[Tensor, " e"]  # of the target, mean over the sentences
    steps: Float[Tensor, " e"]
    clamped: Bool[Tensor, " e"]  # whether the norm's bound is active at the end

    @classmethod
    def of_all(cls, parts: Sequence[Found]) -> Found:
        """Those of several searches, one after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def of(self, at: int) -> Found:
        """One edit's alone."""
        return self.at([at])

    def here(self) -> Found:
        """On the CPU, where records are made of them."""
        return Found(*(getattr(self, name).cpu() for name in self.__dataclass_fields__))

    def at(self, which: Sequence[int]) -> Found:
        """Those of some edits, in this order."""
        return Found(*(getattr(self, name)[list(which)] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Search:
    """How to search; the fields of a method that concern the search, see `methods.ReFACT`."""

    objective: str
    distance: str
    max_steps: int
    stop: float
    weight_decay: float
    reach: float = 1.0
    optimiser: str = "adam"
    autocast: str = ""


@dataclass(frozen=True)
class Scale:
    """The sizes that a search goes by, per edit."""

    norms: Float[Tensor, " e"]  # of the unedited outputs, ||v0||
    rates: Float[Tensor, " e"]  # Adam's step along one coordinate
    bounds: Float[Tensor, " e"]  # the largest norm of an offset


def find(
    suffix: Forward,
    features: Callable[[Tensor | None, Tensor], Tensor],
    candidates: Candidates,
    scale: Scale,
    width: int,
    search: Search,
    progress: Progress = plainly,
    label: str = "search",
) -> Found:
    """The offsets that minimise the objective.

    Every edit stops for itself, once its target's probability passes `search.stop` (contrastive), or once it has come
    `search.reach` of the way from source to target (direct); the others go on. `suffix` maps offsets to states,
    `features` states to what the candidates are made of. Weight decay is the authors' term, decay * ||d|| / ||v0||^2.
    progress: sees each step; an exception that it raises ends the search.
    """
    count, device = len(scale.norms), scale.norms.device
    offsets = torch.zeros(count, width, device=device)
    log = torch.zeros(4, count, device=device)  # first loss, last loss, probability, steps
    lowest, best = torch.full((2, count), torch.inf, device=device), offsets.clone()  # loss and probability there
    optimiser = descent.of(search.optimiser, scale.rates, scale.bounds, width)
    active = loaded = torch.arange(count, device=device)
    working, compared = suffix, candidates
    for step in progress(range(search.max_steps + 1), label, search.max_steps + 1):
        if len(active) <= 0.75 * len(loaded):
            loaded, working, compared = active, suffix.select(active), candidates.select(active)
        trial = offsets[loaded].requires_grad_()
        loss, probability, toward = _evaluate(trial, working, features, compared, scale.norms[loaded], search)
        (gradient,) = torch.autograd.grad(loss.sum(), trial)
        if step == 0:
            log[0] = loss.detach()
        log[1, loaded], log[2, loaded] = loss.detach(), probability.detach()
        lower = loss.detach() < lowest[0, loaded]
        best[loaded] = torch.where(lower[:, None], trial.detach(), best[loaded])
        lowest[:, loaded] = torch.where(lower, log[1:3, loaded], lowest[:, loaded])
        done = probability > search.stop if search.objective == "contrastive" else toward > search.reach
        done |= optimiser.settled[loaded]
        running = torch.isin(loaded, active) & ~done
        going = running.nonzero().flatten()  # the one thing of a step that an accelerator is waited for
        active = loaded[going]
        if step == search.max_steps or not len(active):
            if search.optimiser == "lbfgs":  # the last of its trials may be one that it would take back
                offsets[active], log[1:3, active] = best[active], lowest[:, active]
            break
        log[3, active] = step + 1
        moved = optimiser(trial.detach()[going], active, loss.detach()[going], gradient[going])
        offsets[active] = _clamp(moved, scale.bounds[active])
    return Found(offsets, log[0], log[1], log[2], log[3], offsets.norm(dim=1) >= scale.bounds * (1 - 1e-4))


def _evaluate(trial, suffix, features, candidates: Candidates, norms: Tensor, search: Search) -> tuple[Tensor, ...]:
    """Of each edit: the loss, the target's probability, and how much of the way from source to target it has come."""
    with lowered(trial.device, search.autocast):
        rows, pooled = suffix(trial)
    states = (None if rows is None else rows.float(), pooled.float())
    similarity = objectives.similarities(features(*states), candidates.features, search.distance)
    loss, probability = objectives.loss(search.objective, similarity)
    decay = search.weight_decay * trial.square().sum(1).clamp_min(1e-24).sqrt() / norms.square()
    whole, nothing = (
        objectives.similarities(candidates.features[:, :, i], candidates.features[:, :, :1], search.distance)[..., 0]
        for i in (0, 1)
    )
    toward = (similarity[..., 0].detach() - nothing) / (whole - nothing).clamp_min(1e-6)
    loss, probability, toward = ((part * candidates.weights).sum(1) for part in (loss, probability, toward))
    return loss + decay, probability, toward


def _clamp(rows: Tensor, bound: Tensor) -> Tensor:
    return rows * (bound / rows.norm(dim=1).clamp_min(1e-12)).clamp_max(1)[:, None]
