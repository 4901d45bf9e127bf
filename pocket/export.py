"""Checkpoints to the folders that the package ships, float16. python -m pocket.export [FOLDER]

A part that is not trained yet is written with fresh weights, so that the others can be tried early.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel

from refact.models.tokenizers import write_vocabulary
from refact.search.gap import mean_of

from . import autoencoder, clip, judge, scenes, tokenizer, training, unet

DEFAULTS = {
    "layer": 3,
    "default_steps": 8,
    "default_guidance": 3.5,
    "default_size": 64,
    "companion": "../pocket_clip",
    "corpus": "captions.txt",
}
OUT = Path(__file__).parent.parent / "refact" / "data"
CARD = Path(__file__).parent / "CARD.md"


def weights(name: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model with its checkpoint's weights, where there is one."""
    if found := training.load(name):
        model.load_state_dict(found.get("average", found["model"]))
    else:
        print(f"{name}: no checkpoint, fresh weights")
    return model.eval()


def text_encoder(model: CLIPModel) -> CLIPTextModel:
    """The text tower alone, as the pipeline holds it."""
    alone = CLIPTextModel(model.config.text_config)
    own = {name.removeprefix("text_model."): w for name, w in model.text_model.state_dict().items()}
    alone.load_state_dict({name: own[name.removeprefix("text_model.")] for name in alone.state_dict()})
    return alone.eval()


def shipped_scale() -> float:
    """The scale of the latents that the shipped UNet was trained on, where the pool that gave it is gone."""
    file = OUT / "pocket" / "vae" / "config.json"
    return json.loads(file.read_text())["scaling_factor"] if file.exists() else 1.0


def pipeline(model: CLIPModel) -> StableDiffusionPipeline:
    """The whole pipeline."""
    vae = weights("autoencoder", autoencoder.build())
    pool = training.load("latents")
    vae.register_to_config(scaling_factor=float(1 / pool["rows"].float().std()) if pool else shipped_scale())
    scheduler = DDIMScheduler(**unet.NOISE, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(model), tokenizer=tokenizer.load(), scheduler=scheduler,
        unet=weights("unet", unet.build()), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def published_names(folder: Path) -> None:
    """Give a text encoder's file the names with `text_model.` that every version of transformers reads.

    And have it opened in float32, as diffusers opens the other parts: transformers goes by the config, else in halves.
    """
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    file = folder / "model.safetensors"
    found = load_file(file)
    named = {n if n.startswith("text_model.") else f"text_model.{n}": w for n, w in found.items()}
    save_file(named, file, metadata={"format": "pt"})


def captions(count: int = 9500) -> str:
    """Random captions of the world, one a line: what the covariance of the encoder's keys is taken over."""
    rng = random.Random(17)
    return "\n".join(scenes.caption(rng, scenes.sample(rng)) for _ in range(count)) + "\n"


def picture_mean(folder: Path, count: int = 512) -> list[float]:
    """The mean direction of pictures in the CLIP of this folder, over random scenes of the world."""
    rng = random.Random(18)
    model = CLIPModel.from_pretrained(folder).float().eval()
    with torch.no_grad():
        shown = training.pixels([scenes.sample(rng) for _ in range(count)], rng)
        features = model.get_image_features(pixel_values=shown).pooler_output
    return [round(x, 5) for x in mean_of([features]).tolist()]


def write_clip(model: CLIPModel, folder: Path) -> None:
    """A CLIPModel with its tokenizer and its picture preprocessing: 64 x 64, [-1, 1]."""
    model.half().save_pretrained(folder)
    tokenizer.load().save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    CLIPImageProcessor(
        size={"height": 64, "width": 64}, do_center_crop=False, image_mean=half, image_std=half, do_convert_rgb=True
    ).save_pretrained(folder)


def main(out: Path) -> None:
    """Write pocket/, pocket_clip/ and pocket_judge/ below `out`."""
    model = weights("clip", clip.build())
    whole = pipeline(model)  # before the old folders go: it may need their scale
    for name in ("pocket", "pocket_clip", "pocket_judge"):
        shutil.rmtree(out / name, ignore_errors=True)
    whole.to(torch.float16).save_pretrained(out / "pocket")
    published_names(out / "pocket" / "text_encoder")
    write_vocabulary(out / "pocket" / "tokenizer")
    (out / "pocket" / "refact.json").write_text(json.dumps(DEFAULTS, indent=1) + "\n")
    (out / "pocket" / "captions.txt").write_text(captions(), encoding="utf-8")
    if CARD.exists():
        shutil.copy(CARD, out / "pocket" / "README.md")
    write_clip(model, out / "pocket_clip")
    (out / "pocket_clip" / "refact.json").write_text(json.dumps({"picture_mean": picture_mean(out / "pocket_clip")}))
    write_clip(weights("judge", clip.build(**judge.SHAPE)), out / "pocket_judge")
    size = sum(file.stat().st_size for file in out.glob("pocket*/**/*.safetensors"))
    print(f"{out}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
