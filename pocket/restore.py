"""The shipped float16 weights back to checkpoints at step 0, to train on from. python -m pocket.restore

Optimisers start afresh. A checkpoint that is there already is kept.
"""

from __future__ import annotations

import shutil

from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPModel

from refact import pocket

from . import training

PARTS = {
    "clip": lambda: CLIPModel.from_pretrained(pocket.clip_path()),
    "judge": lambda: CLIPModel.from_pretrained(pocket.judge_path()),
    "autoencoder": lambda: AutoencoderTiny.from_pretrained(pocket.path() / "vae"),
    "unet": lambda: UNet2DConditionModel.from_pretrained(pocket.path() / "unet"),
}

if __name__ == "__main__":
    if not (training.WORK / "tokenizer").exists():
        shutil.copytree(pocket.path() / "tokenizer", training.WORK / "tokenizer")
    for name, read in PARTS.items():
        if training.load(name) is None:
            weights = {key: w.float() if w.is_floating_point() else w for key, w in read().state_dict().items()}
            training.save(name, model=weights, average={k: w.clone() for k, w in weights.items()}, step=0)
