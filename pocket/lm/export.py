"""Checkpoints to the folder of a stock pipeline, float16. python -m pocket.lm.export [FOLDER]

It refuses where a part is not trained, or where the parts do not belong together.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

from .. import coordinates, narrow, training
from ..backdrops import SIDE
from ..export import OUT, opened_in_float32
from . import language, sentences, transformer

DEFAULTS = {"default_steps": 8, "default_guidance": 2.0, "default_size": SIDE, "corpus": "captions.txt"}
MOST = 28.0  # megabytes of weights


def pipeline() -> ZImagePipeline:
    """The whole pipeline."""
    lm, frame = training.trained("lm", language.build()), coordinates.load(torch.device("cpu"))
    vae, generator = training.trained("narrow", narrow.build()), training.trained("transformer", transformer.build())
    parts = {"lm": training.size_of(lm), "coordinates": training.size_of(frame)}
    for part in ("transformer", "narrow"):
        made_with = training.load(part)["kept"]
        training.check_parts(part, made_with, {key: size for key, size in parts.items() if key in made_with})
    vae.register_to_config(scaling_factor=narrow.SCALE)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=transformer.SHIFT)
    return ZImagePipeline(scheduler, vae, lm, sentences.tokenizer(), transformer.stock(generator))


def captions(count: int = 9500) -> str:
    """Random captions of the smaller world, one a line."""
    rng = random.Random(19)
    return "\n".join(sentences.caption(rng, sentences.scene(rng)) for _ in range(count)) + "\n"


def write(out: Path) -> float:
    """Write pocket_lm/ below `out`; megabytes of weights."""
    whole, folder = pipeline(), out / "pocket_lm"  # before anything goes
    shutil.rmtree(folder, ignore_errors=True)
    whole.to(torch.float16).save_pretrained(folder)
    opened_in_float32(folder / "text_encoder")
    (folder / "refact.json").write_text(json.dumps(DEFAULTS, indent=1) + "\n")
    (folder / "captions.txt").write_text(captions(), encoding="utf-8")
    return sum(file.stat().st_size for file in folder.glob("**/*.safetensors")) / 1e6


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    size = write(given)
    print(f"{given / 'pocket_lm'}: {size:.1f} MB of weights")
    if size > MOST:
        raise SystemExit(f"more than {MOST:.0f} MB")
