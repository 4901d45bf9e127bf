"""How far a patch carries to encoders that differ from the one it was made on, as fine-tunes of one model do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..models.model import Model
from ..patch import Patch
from ..verification import verify

NOISES = (0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Carried:
    """How well a patch's facts hold on one perturbed encoder. Shares are fractions of 1."""

    noise: float  # of each weight matrix, relative to its norm
    apart: float  # how far the facts' prompts moved by the noise alone, relative change of the conditioning
    holds: float  # on the text side, against the perturbed encoder's own target and source
    generality: float
    toward: float  # mean share of the way from source to target
    mismatch: str  # what `apply` says without force


def transfer(model: Model, patch: Patch, noises: Sequence[float] = NOISES, seed: int = 0) -> list[Carried]:
    """The patch on the encoder as it is, then with Gaussian noise in every weight; the model ends as it was."""
    prompts = [edit.prompt for edit in patch.edits]
    before = [encoder.states(prompts) for encoder in model.encoders.values()]
    rows = []
    for noise in (0.0, *noises):
        with perturbed(model, noise, seed):
            after = [encoder.states(prompts) for encoder in model.encoders.values()]
            facts = verify(model, patch, force=True)
            mismatch = "; ".join(patch.mismatch(model))
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(after, before))
        holds, generality, toward = (
            sum(getattr(f, name) for f in facts) / len(facts) for name in ("holds", "generality", "toward")
        )
        rows.append(Carried(noise, apart, holds, generality, toward, mismatch))
    return rows


@contextmanager
def perturbed(model: Model, noise: float, seed: int = 0) -> Iterator[None]:
    """A context in which every matrix of the model's encoders has noise of this size, relative to its own norm."""
    matrices = [w for encoder in model.encoders.values() for w in encoder.module.parameters() if w.dim() == 2]
    random = torch.Generator().manual_seed(seed)
    stash = [w.data for w in matrices]
    try:
        for weight in matrices:
            moved = torch.randn(weight.shape, generator=random).to(weight)
            weight.data = weight.data + moved * (noise * weight.data.norm() / weight.numel() ** 0.5)
        yield
    finally:
        for weight, data in zip(matrices, stash):
            weight.data = data


def markdown(rows: Sequence[Carried]) -> str:
    """The rows as a table."""
    lines = ["| noise | prompts moved by it | hold | generality | toward |", "|--:|--:|--:|--:|--:|"]
    for r in rows:
        cells = (f"{100 * value:.1f} %" for value in (r.noise, r.apart, r.holds, r.generality, r.toward))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
