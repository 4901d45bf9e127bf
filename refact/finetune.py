"""The baseline that moves the same matrix by gradient descent instead of in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import hooks, objectives
from .editing import alone, chosen, chosen_layer, patch_of, templates_of, wordings
from .edits import Edit, distinct
from .encoders import TextEncoder
from .errors import EditError
from .lora import Factors
from .models import Model
from .patch import Patch


def finetune(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """A dense change of fc2, Adam within |change| <= bound, direct L2 objective (ReFACT, Appendix G.1).

    The paper penalises the infinity norm; here it is bounded, which needs no weight for the penalty.
    """
    alone(method, onto)
    edits = distinct(edits)
    factors: Factors = {}
    logs: list[dict] = [{} for _ in edits]
    for encoder in chosen(model, method.encoders):
        layer = chosen_layer(model, encoder, method.layer)
        change, first, last = _descend(method, encoder, layer, edits)
        site = encoder.site(layer)
        factors[site] = (torch.eye(len(change)), change)
        for log in logs:
            log[site] = {"rows": [0, len(change)], "layer": layer, "loss": [first, last]}
    return patch_of(method, model, edits, factors, logs, {})


def _descend(method: Any, encoder: TextEncoder, layer: int, edits: list[Edit]) -> tuple[Tensor, float, float]:
    ids, ends, goals = _examples(method, encoder, edits)
    linear = encoder.linear(layer)
    change = torch.zeros_like(linear.weight, requires_grad=True)
    optimiser = torch.optim.Adam([change], lr=method.learning_rate)
    losses = []
    for _ in range(method.epochs * method.steps):
        with hooks.replace(linear, lambda output, keys: output + keys @ change.T):
            states = encoder.tower(ids).last_hidden_state
        pooled = states[torch.arange(len(ids)), ends]
        loss = -objectives.similarities(pooled, goals[:, None], "l2").mean()
        losses.append(float(loss.detach()))
        (change.grad,) = torch.autograd.grad(loss, change)
        optimiser.step()
        with torch.no_grad():
            change.clamp_(-method.bound, method.bound)
    return change.detach().float(), losses[0], losses[-1]


def _examples(method: Any, encoder: TextEncoder, edits: list[Edit]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and [EOS] places of every wording in every context, and the state that each should have."""
    prompts, targets = [], []
    for edit in edits:
        if not isinstance(edit.new, str):
            raise EditError("FineTune takes a target by text")
        for prompt, _ in wordings(edit):
            prompts += [template.replace("{}", prompt) for template in templates_of(method)]
            targets += [template.replace("{}", edit.new) for template in templates_of(method)]
    tokens = encoder.tokenize(prompts)
    length = int(tokens.ends.max()) + 1
    with torch.no_grad():
        aims = encoder.tokenize(targets)
        states = encoder.tower(aims.ids[:, : int(aims.ends.max()) + 1]).last_hidden_state
    return tokens.ids[:, :length], tokens.ends, states[torch.arange(len(targets)), aims.ends]
