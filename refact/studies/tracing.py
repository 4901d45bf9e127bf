"""Causal tracing: where in a text encoder a fact sits, by restoring one state at a time after noise on the subject.

The procedure of Meng et al. (arXiv 2202.05262) on what the encoder's pooled embedding says: p(source) among clean
texts. It reads the unedited encoder and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..encoders.encoder import TextEncoder
from ..encoders.hooks import read, replace
from ..errors import EditError
from ..search import objectives

PARTS = {
    "block": lambda layer: layer,
    "mlp": lambda layer: layer.mlp,
    "attention": lambda layer: layer.self_attn.out_proj,
}


@dataclass(frozen=True)
class Trace:
    """How much of the fact each restored state brings back: 0 as corrupted, 1 as clean."""

    effect: Float[Tensor, "layers positions"]
    clean: float  # p(source) of the prompt as it is
    corrupted: float  # and with noise on the subject, mean over the samples
    tokens: tuple[str, ...]  # the words at the positions, [BOS] to [EOS]
    subject: tuple[int, int]  # its first and last position


def trace(
    encoder: TextEncoder,
    prompt: str,
    source: str,
    others: Sequence[str],
    subject: str | None = None,
    part: str = "block",
    noise: float = 3.0,
    samples: int = 8,
    seed: int = 0,
) -> Trace:
    """What each (layer, position) restores of the fact that `prompt` means `source` rather than one of `others`.

    part: what is restored, a layer's "block" state, its "mlp" or its "attention" output. noise: its deviation, in
    those of the token embeddings (3 in the paper). EditError when the encoder does not know the fact: p(source)
    must fall under noise, or there is nothing to restore.
    """
    if encoder.kind != "clip" or part not in PARTS:
        raise EditError(f"tracing needs a CLIP encoder and a part of {', '.join(PARTS)}, not {encoder.kind}, {part!r}")
    span = encoder.span(prompt, prompt if subject is None else subject)
    end = int(encoder.tokenize([prompt]).ends[0])
    compared = encoder.embed([source, *others])
    modules = [PARTS[part](layer) for layer in encoder.layers]
    ask = _asker(encoder, prompt, compared, samples)
    states, clean = _clean(modules, ask)
    table: nn.Embedding = encoder.tower.embeddings.token_embedding  # type: ignore[union-attr,assignment]
    hit = _corrupted(table.weight.detach(), span, noise, samples, seed)
    with replace(table, hit):
        corrupted = ask()
        if clean - corrupted < 0.01:
            raise EditError(
                f"p({source!r}) is {clean:.3f} at {prompt!r}, {corrupted:.3f} under noise: nothing to trace"
            )
        restored = torch.tensor(
            [[_with(module, states[i], at, ask) for at in range(end + 1)] for i, module in enumerate(modules)]
        )
    tokens = encoder.tokenizer.convert_ids_to_tokens(encoder.tokenize([prompt]).ids[0, : end + 1].tolist())
    return Trace((restored - corrupted) / (clean - corrupted), clean, corrupted, tuple(tokens), span)


def _asker(encoder: TextEncoder, prompt: str, compared: Tensor, samples: int) -> Callable[[], float]:
    """A function that returns the mean probability of the first of `compared`, under whatever hooks are active."""

    def ask() -> float:
        found = encoder.embed([prompt] * samples)
        similarity = objectives.similarities(found, compared.expand(samples, -1, -1), "l2")
        return float(similarity.softmax(-1)[:, 0].mean())

    return ask


def _clean(modules: Sequence[nn.Module], ask: Callable[[], float]) -> tuple[list[Tensor], float]:
    with ExitStack() as stack:
        seen = [stack.enter_context(read(module, "output")) for module in modules]
        clean = ask()
    return [outputs[0][:1] for outputs in seen], clean


def _corrupted(
    table: Tensor, span: tuple[int, int], noise: float, samples: int, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, span[1] - span[0] + 1, table.shape[1])
    added = (noise * table.float().std().cpu() * torch.randn(shape, generator=generator)).to(table)

    def hit(states: Tensor, _: Tensor) -> Tensor:
        states = states.clone()
        states[:, span[0] : span[1] + 1] += added[: len(states)]
        return states

    return hit


def _with(module: nn.Module, clean: Tensor, position: int, ask: Callable[[], float]) -> float:
    """The probability with one state restored."""

    def restore(states: Tensor, _: Tensor) -> Tensor:
        states = states.clone()
        states[:, position] = clean[:, position]
        return states

    with replace(module, restore):
        return ask()
