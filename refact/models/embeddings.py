"""Words that textual inversion has added: read from a file and taught to a model's CLIP text encoders.

So a target may be a person or a thing that the model never saw: learn its word, then edit a fact to it
(ReFACT, arXiv 2306.00738, section 7). Once the patch is made, the file is no longer needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..encoders.encoder import TextEncoder
from ..errors import ModelError

NAMELESS = ("emb_params", "clip_l", "clip_g")  # keys of A1111's files and of SDXL's: the word is the file's name


def read(path: str | Path) -> tuple[str, list[Tensor]]:
    """The word and its vectors, (n, d) for each encoder that the file is for. Raises ModelError."""
    path = Path(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: no embedding in safetensors form: {error}") from None
    tensors = {key: t[None] if t.ndim == 1 else t for key, t in tensors.items()}
    if not tensors or any(t.ndim != 2 or not t.is_floating_point() for t in tensors.values()):
        raise ModelError(f"{path}: an embedding holds rows of numbers, not {sorted(tensors)[:3]}")
    if set(tensors) <= set(NAMELESS):
        return path.stem, list(tensors.values())
    if len(tensors) > 1:
        raise ModelError(f"{path}: an embedding is one word, not {', '.join(sorted(tensors)[:5])}")
    return next(iter(tensors.items()))[0], list(tensors.values())


def teach(encoders: dict[str, TextEncoder], path: str | Path) -> str:
    """Add the file's word to the encoders whose token embeddings are as wide as its rows; the word is returned.

    Raises ModelError where no encoder has that width, or where a tokenizer has the word already.
    """
    word, vectors = read(path)
    fits = [(e, rows) for e in encoders.values() if e.kind == "clip" for rows in vectors if rows.shape[1] == _wide(e)]
    if not fits:
        have = ", ".join(f"{name} {_wide(e)}" for name, e in encoders.items() if e.kind == "clip")
        raise ModelError(f"{path}: its rows are {vectors[0].shape[1]} wide; this model's encoders: {have}")
    for encoder, rows in fits:
        _add(encoder, word, rows, str(path))
    return word


def _table(encoder: TextEncoder) -> nn.Embedding:
    return encoder.tower.embeddings.token_embedding


def _wide(encoder: TextEncoder) -> int:
    return _table(encoder).weight.shape[1]


def _add(encoder: TextEncoder, word: str, rows: Tensor, where: str) -> None:
    words = [word, *(f"{word}_{i}" for i in range(1, len(rows)))]
    if known := [w for w in words if w in encoder.tokenizer.get_vocab()]:
        raise ModelError(f"{where}: the tokenizer of {encoder.name} has the word {known[0]!r} already; rename it")
    encoder.tokenizer.add_tokens(words)
    old = _table(encoder)
    places = encoder.tokenizer.convert_tokens_to_ids(words)
    table = nn.Embedding(max(*places, len(old.weight) - 1) + 1, old.weight.shape[1]).to(old.weight)
    with torch.no_grad():
        table.weight[: len(old.weight)] = old.weight
        table.weight[places] = rows.to(old.weight)
    encoder.tower.embeddings.token_embedding = table.requires_grad_(old.weight.requires_grad)
    encoder.tower.config.vocab_size = len(table.weight)
