"""The judge: an independent CLIP, other seed and sizes, plainly trained on rendered scenes. python -m pocket.judge"""

from __future__ import annotations

import argparse

import torch

from . import clip

TEXT = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
IMAGE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": 8,
}
SHAPE = {"text": TEXT, "image": IMAGE, "seed": 77}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clip.train(given.steps, "judge", swaps=False, **SHAPE)
