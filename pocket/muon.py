"""The optimiser of all parts: Muon for matrices, AdamW for the rest.

What these models learn is mostly a long list of facts, and there Muon needs fewer steps than AdamW (docs/LOG.md has
the measurements). `torch.optim.Muon` takes no convolutions, so this one is written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

ADAM = (
    "embedding",
    "embed_tokens",
    "embedder",
    "projection",
    "conv_in",
    "conv_out",
    "last",
    "final",
    "pad_token",
)  # weights at the ends of a network are AdamW's


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal matrix by matrix; steps as large as AdamW's (Jordan et al. 2024, arXiv 2502.16982).

    Convolutions (out, in, h, w) count as matrices (out, in * h * w).
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step; matrices of one shape are made orthogonal together."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for w in group["params"]:
                if w.grad is not None:
                    kept = self.state[w].setdefault("momentum", torch.zeros_like(w))
                    kept.lerp_(w.grad, 1 - group["momentum"])
                    wanted = w.grad.lerp(kept, group["momentum"]).flatten(1)
                    alike.setdefault(tuple(wanted.shape), []).append((w, wanted))
            for shape, found in alike.items():
                made = orthogonal(torch.stack([wanted for _, wanted in found]))
                for (w, _), one in zip(found, made):
                    w.mul_(1 - group["lr"] * group["weight_decay"])
                    w.add_(one.view(w.shape).to(w.dtype), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(g: Tensor, rounds: int = 5) -> Tensor:
    """Matrices (n, a, b) with the same singular vectors and singular values of about 1, by Newton-Schulz iteration."""
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Pair:
    """Both optimisers of a model as one; ratio: of Muon's rate to AdamW's."""

    def __init__(self, model: nn.Module, lr: float, decay: float, ratio: float) -> None:
        named = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
        inner = {name for name, w in named if w.dim() > 1 and not any(part in name for part in ADAM)}
        rest = [w for name, w in named if name not in inner]
        self.ratio, self.optimisers = ratio, list[torch.optim.Optimizer]()
        if inner:
            self.optimisers.append(Muon([w for name, w in named if name in inner], lr, decay))
        if rest:
            self.optimisers.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True))

    def step(self, rate: float) -> None:
        """One step of both; rate: AdamW's."""
        for one in self.optimisers:
            for group in one.param_groups:
                group["lr"] = rate * (self.ratio if isinstance(one, Muon) else 1.0)
            one.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for one in self.optimisers:
            one.zero_grad()

    def state_dict(self) -> dict:
        """Both states, by number."""
        return {str(at): one.state_dict() for at, one in enumerate(self.optimisers)}

    def load_state_dict(self, state: dict) -> None:
        """Take up both states."""
        for at, one in enumerate(self.optimisers):
            one.load_state_dict(state[str(at)])
