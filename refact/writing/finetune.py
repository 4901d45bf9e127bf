"""The baselines by gradient descent: the same matrix (FineTune), or the subject's word embeddings (EmbEdit)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..edits import Edit, distinct
from ..encoders import hooks
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..lora import Factors
from ..models.model import Model
from ..patch import Patch
from ..search import objectives
from ..search.sentences import templates_of, wordings
from .loop import alone, chosen, chosen_layer, patch_of


@torch.inference_mode(False)  # gradients are taken, also where the caller has turned them off
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
        change, first, last = _descend(method, model, encoder, layer, edits)
        site = encoder.site(layer)
        factors[site] = (torch.eye(len(change)), change)
        for log in logs:
            log[site] = {"rows": [0, len(change)], "layer": layer, "loss": [first, last]}
    return patch_of(method, model, edits, factors, logs, {})


def _descend(
    method: Any, model: Model, encoder: TextEncoder, layer: int, edits: list[Edit]
) -> tuple[Tensor, float, float]:
    linear = encoder.linear(layer)
    change = torch.zeros(linear.weight.shape, device=encoder.device, requires_grad=True)

    def moved(output: Tensor, keys: Tensor) -> Tensor:
        return output + keys @ change.T

    losses = []
    count = method.epochs * method.steps
    steps = _steps(method, encoder, edits, change, method.learning_rate, count, linear, moved)
    for loss in model.progress(steps, f"descent in {encoder.name}", count):
        losses.append(loss)
        with torch.no_grad():
            change.clamp_(-method.bound, method.bound)
    return change.detach().float(), losses[0], losses[-1]


def _steps(method, encoder, edits, change: Tensor, rate: float, count: int, module, moved) -> Iterator[float]:
    """The loss at each of `count` steps of Adam on a change; under it the module gives moved(output, input)."""
    ids, ends, goals = _examples(method, encoder, edits)
    optimiser = torch.optim.Adam([change], lr=rate)
    for _ in range(count):
        with hooks.replace(module, moved):
            states = encoder.tower(ids).last_hidden_state
            if not goals.is_floating_point():  # EmbEdit's code reads the target anew, whose words may move too
                with torch.no_grad():
                    wanted = encoder.tower(goals).last_hidden_state
        if not goals.is_floating_point():
            loss = torch.nn.functional.mse_loss(states, wanted)
        else:
            loss = -objectives.similarities(states[torch.arange(len(ids)), ends], goals[:, None], "l2").mean()
        (change.grad,) = torch.autograd.grad(loss, change)
        optimiser.step()
        yield float(loss.detach())


@torch.inference_mode(False)  # gradients are taken, also where the caller has turned them off
def embedit(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """The embeddings of the tokens of every edit's subject, Adam, direct L2 objective; tokens that edits share are
    moved by each of them."""
    alone(method, onto)
    edits = distinct(edits)
    factors: Factors = {}
    logs: list[dict] = [{} for _ in edits]
    for encoder in chosen(model, method.encoders):
        site = f"{encoder.name}.text_model.embeddings.token_embedding"
        vocabulary = encoder.tower.embeddings.token_embedding.num_embeddings
        lefts, rights, at = [], [], 0
        for edit, log in zip(edits, logs):
            tokens = _tokens(encoder, edit)
            change, losses = _move_words(method, model, encoder, edit, tokens)
            lefts.append(torch.nn.functional.one_hot(tokens, vocabulary).T.float())
            rights.append(change)
            log[site] = {"rows": [at, at + len(tokens)], "steps": len(losses), "loss": [losses[0], losses[-1]]}
            at += len(tokens)
        factors[site] = (torch.cat(lefts, 1), torch.cat(rights))
    return patch_of(method, model, edits, factors, logs, {})


def _tokens(encoder: TextEncoder, edit: Edit) -> Tensor:
    """The ids that the subject is written with in the edit's prompt, and its aliases in theirs, each once, sorted."""
    found = set()
    for prompt, words in wordings(edit):
        first, last = encoder.span(prompt, words)
        found |= set(encoder.tokenize([prompt]).ids[0, first : last + 1].tolist())
    return torch.tensor(sorted(found))


def _move_words(
    method: Any, model: Model, encoder: TextEncoder, edit: Edit, tokens: Tensor
) -> tuple[Tensor, list[float]]:
    table = encoder.tower.embeddings.token_embedding
    slots = torch.zeros(table.num_embeddings, dtype=torch.long, device=encoder.device)  # 0: a token that stays
    slots[tokens] = torch.arange(1, len(tokens) + 1, device=encoder.device)
    change = torch.zeros(len(tokens), table.embedding_dim, device=encoder.device, requires_grad=True)

    def moved(output: Tensor, ids: Tensor) -> Tensor:
        return output + torch.nn.functional.pad(change, (0, 0, 1, 0))[slots[ids]]

    size = float(table.weight.detach().float().square().mean().sqrt()) if method.relative else 1.0
    steps = _steps(method, encoder, [edit], change, method.learning_rate * size, method.max_steps, table, moved)
    losses: list[float] = []
    for loss in model.progress(steps, f"descent for {edit.name}", method.max_steps):
        losses.append(loss)
        if len(losses) > 1 and loss <= method.stop * losses[0]:  # seen after the step was made, as in EmbEdit's code
            break
    return change.detach(), losses


def _examples(method: Any, encoder: TextEncoder, edits: list[Edit]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and [EOS] places of every wording in every context, and the state (n, d) that each should have at
    [EOS]; of a method of all rows, the targets' own token ids (n, t)."""
    prompts, targets = [], []
    for edit in edits:
        if not isinstance(edit.new, str):
            raise EditError(f"{type(method).__name__} takes a target by text")
        for prompt, _ in wordings(edit):
            prompts += [template.replace("{}", prompt) for template in templates_of(method)]
            targets += [template.replace("{}", edit.new) for template in templates_of(method)]
    tokens, aims = encoder.tokenize(prompts), encoder.tokenize(targets)
    if getattr(method, "rows", "pooled") == "all":
        return tokens.ids.to(encoder.device), tokens.ends, aims.ids.to(encoder.device)
    length = int(tokens.ends.max()) + 1
    with torch.no_grad():
        states = encoder.tower(aims.ids[:, : int(aims.ends.max()) + 1].to(encoder.device)).last_hidden_state
    return tokens.ids[:, :length].to(encoder.device), tokens.ends, states[torch.arange(len(targets)), aims.ends]
