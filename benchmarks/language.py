"""Language models of real shapes with random bfloat16 weights, as text encoders: a step of a search, a whole edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3Model
from transformers.initialization import no_init_weights

import refact
from refact.encoders import hooks
from refact.encoders.encoder import TextEncoder
from refact.encoders.widened import Widened
from refact.families import FAMILIES
from refact.models.model import Model
from refact.search import cached
from refact.search.sentences import reading_for, sentences_of
from refact.search.trie import Sentence
from refact.studies.scaling import phrases

from . import machine, shaped

SHAPES = {  # layers, width, MLP width, heads, heads of keys and values, width of a head, words
    "Qwen3-0.6B": (28, 1024, 3072, 16, 8, 128, 151936),
    "Qwen3-4B": (36, 2560, 9728, 32, 8, 128, 151936),
    "tiny": (6, 32, 96, 4, 2, 8, 4096),
}
CHAT = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
BLOCK = 1 << 20


def random(cls: Any, config: Any) -> Any:
    """A module of that class with random bfloat16 weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with no_init_weights():
            module = cls(config)
    finally:
        torch.set_default_dtype(before)
    fill(module)
    return module


def encoder_of(shape: str) -> TextEncoder:
    """An encoder of that shape, read as Z-Image reads its own: the states before the last layer."""
    layers, width, inner, heads, few, head, words = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=words, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, head_dim=head,
        num_attention_heads=heads, num_key_value_heads=few, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    module = random(Qwen3Model, config)
    tokenizer = shaped.tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "user", "assistant"], special_tokens=True)
    tokenizer.chat_template = CHAT
    return TextEncoder("text_encoder", module.to(machine.device()), tokenizer, FAMILIES["z-image"].encoders[0])


@torch.no_grad()
def fill(module: torch.nn.Module) -> None:
    """Random weights, one block of numbers again and again: billions of draws would take minutes."""
    noise = 0.02 * torch.randn(BLOCK).bfloat16()
    for weight in module.parameters():
        if weight.dim() < 2:
            weight.fill_(1.0)
            continue
        flat = weight.requires_grad_(False).view(-1)
        for at in range(0, len(flat), BLOCK):
            flat[at : at + BLOCK] = noise[: len(flat[at : at + BLOCK])]


def asked(encoder: TextEncoder, layer: int, count: int) -> tuple[list[list[Sentence]], Any]:
    """Sentences of some edits in ten contexts, and what reads them."""
    read = reading_for(encoder, "conditioning", ["a dog", "a red cat", "a house on a hill"], layer=layer)
    return [sentences_of(encoder, read, edit, refact.ReFACT().templates) for edit in phrases(count)], read


def plain(encoder: TextEncoder, layer: int, sentences: Sequence[Sentence], offset: torch.Tensor) -> torch.Tensor:
    """What is sent of the last rows, by the library's own forward of every whole sentence; weights as they are."""
    longest = max(len(s.ids) for s in sentences)
    ids = torch.tensor([s.ids + (0,) * (longest - len(s.ids)) for s in sentences], device=encoder.device)
    rows, at = torch.arange(len(sentences)), torch.tensor([s.subject for s in sentences])

    def moved(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[rows, at] += offset
        return out

    with hooks.replace(encoder.linear(layer), moved), hooks.read(encoder.layers[-1]) as seen, Widened():
        encoder.tower(inputs_embeds=encoder.part.embedded(ids), use_cache=False)
    return seen[0][rows, torch.tensor([s.end for s in sentences])]


def search(shape: str, count: int, rate: Any, times: int = 3) -> dict:
    """A step of the search for some edits at once, beside the plain forward, and the products that are needed."""
    encoder, (_, width, inner, heads, few, head, _) = encoder_of(shape), SHAPES[shape]
    layer = encoder.usual_layer
    sentences, read = asked(encoder, layer, count)
    begun = cached.start(encoder, layer, sentences, read.taps).suffix

    def step(forward: Any, size: tuple[int, ...]) -> float:
        offset = torch.zeros(size, device=encoder.device, requires_grad=True)
        return machine.timed(lambda: torch.autograd.grad(forward(offset).square().sum(), offset))

    ours = min(step(lambda d: begun(d)[0], (count, width)) for _ in range(times))
    theirs = count * min(step(lambda d: plain(encoder, layer, sentences[0], d), (width,)) for _ in range(times - 1))
    rows, above = len(begun.base), max(read.taps) - layer - 1
    products = rows * above * (2 * width * head * (heads + few) + 3 * width * inner)
    least = 2 * products / rate(rows, width, inner)
    offset = torch.randn(count, width).to(encoder.device)
    last = plain(encoder, layer, sentences[0], offset[0])
    found = torch.stack([begun(offset)[0][0, i, len(s.rows) - 1] for i, s in enumerate(sentences[0])])
    gap = ((found - last).abs().max() / last.abs().max()).detach()
    return {
        "ms": 1e3 * ours, "plain ms": 1e3 * theirs, "times faster": theirs / ours, "floor ms": 1e3 * least,
        "times the floor": ours / least, "rows": rows, 
        "difference": float(gap),
    }  # fmt: skip


def fact(shape: str, steps: int = 10) -> dict:
    """One whole edit: ten contexts, ten steps, no covariance; and what its weights alone take."""
    encoder = encoder_of(shape)
    model = Model(shape, FAMILIES["z-image"], {"text_encoder": encoder})
    method, made = refact.ReFACT(max_steps=steps, covariance=False, reach=10.0), []
    spent = machine.timed(lambda: made.append(method(model, phrases(1))))
    (patch,) = made
    log = next(iter(patch.record["edits"][0]["sites"].values()))
    weights = sum(weight.numel() * weight.element_size() for weight in encoder.module.parameters())
    return {"s": spent, "steps": log["steps"], "residual": log["residual"], "weights MB": weights / 1e6}
