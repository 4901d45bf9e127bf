"""CLIP text encoders of real shapes with random weights. python -m benchmarks.shaped CLIP-L FOLDER

A folder that `refact` opens like any bare CLIP: what `refact study scale -m FOLDER` runs on where no checkpoint is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from refact import pocket
from refact.encoders.encoder import text_tower

from . import machine

SHAPES = {  # layers, width, MLP width, heads
    "CLIP-L": (12, 768, 3072, 12),
    "OpenCLIP-H": (23, 1024, 4096, 16),
    "bigG": (32, 1280, 5120, 20),
    "tiny": (4, 32, 96, 4),
}


def model_of(shape: str) -> CLIPTextModel:
    """A text encoder of that shape, 77 positions, for the tokens of the bundled model."""
    layers, width, inner, heads = SHAPES[shape]
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return CLIPTextModel(config).eval().requires_grad_(False)


def tower_of(shape: str) -> torch.nn.Module:
    """Its tower, on the machine's device."""
    return text_tower(model_of(shape).to(machine.device()))


def tokenizer() -> CLIPTokenizer:
    """The bundled model's tokens, for 77 positions."""
    return CLIPTokenizer.from_pretrained(pocket.path() / "tokenizer", model_max_length=77)


def save(shape: str, folder: Path) -> None:
    """The encoder and its tokenizer as a bare CLIP folder."""
    model_of(shape).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    save(**vars(parser.parse_args()))
