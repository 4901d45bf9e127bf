"""Checkpoints to the folders that the package ships, float16. python -m pocket.export [FOLDER]

World, benchmarks and the covariance of the new encoder's keys are written, too. It refuses where a part is not trained:
until all are there, refact/data stays what it is. After it come `pocket.gate`, `pocket.evaluate` and `pocket.card`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel

import refact
from refact.models.covariance import file_name, obtain
from refact.models.tokenizers import write_vocabulary
from refact.search.gap import mean_of

from . import benchmark, clip, coordinates, judge, narrow, scenes, tokenizer, training, unet, world
from .backdrops import SIDE
from .render import compose, row_of

DEFAULTS = {
    "layer": 3,
    "conditioning_layer": 1,
    "default_steps": 8,
    "default_guidance": 3.5,
    "default_size": SIDE,
    "companion": "../pocket_clip",
    "corpus": "captions.txt",
}
OUT = Path(__file__).parent.parent / "refact" / "data"
TOKENS = 100_000  # of captions, for the covariance
MOST = 48.0  # megabytes of weights, all parts together


def text_encoder(model: CLIPModel) -> CLIPTextModel:
    """The text tower alone, as the pipeline holds it."""
    alone = CLIPTextModel(model.config.text_config)
    own = {name.removeprefix("text_model."): w for name, w in model.text_model.state_dict().items()}
    alone.load_state_dict({name: own[name.removeprefix("text_model.")] for name in alone.state_dict()})
    return alone.eval()


def pipeline(model: CLIPModel) -> StableDiffusionPipeline:
    """The whole pipeline; its UNet takes the text encoder's own rows."""
    generator, vae = training.trained("unet", unet.build()), training.trained("narrow", narrow.build())
    frame = coordinates.load(torch.device("cpu"))
    parts = {"reader": training.size_of(model), "coordinates": training.size_of(frame)}
    for part in ("unet", "narrow"):
        made_with = training.load(part)["kept"]
        training.check_parts(part, made_with, {key: size for key, size in parts.items() if key in made_with})
    coordinates.fold(generator, frame)
    vae.register_to_config(scaling_factor=narrow.SCALE)
    scheduler = DDIMScheduler(**unet.NOISE, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(model), tokenizer=tokenizer.load(), scheduler=scheduler, unet=generator,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def opened_in_float32(folder: Path) -> None:
    """Have a text encoder opened in float32, as diffusers opens the other parts: transformers goes by the config."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def published_names(folder: Path) -> None:
    """Give a CLIP text encoder's file the names with `text_model.` that every version of transformers reads."""
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
        shown = compose(torch.tensor([row_of(scenes.sample(rng), rng) for _ in range(count)])) * 2 - 1
        features = model.get_image_features(pixel_values=shown).pooler_output
    return [round(x, 5) for x in mean_of([features]).tolist()]


def write_clip(model: CLIPModel, folder: Path) -> None:
    """A CLIPModel with its tokenizer and its picture preprocessing: 128 x 128, [-1, 1]."""
    model.half().save_pretrained(folder)
    tokenizer.load().save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=half, image_std=half, do_convert_rgb=True
    ).save_pretrained(folder)


def write(out: Path) -> float:
    """Write pocket/, pocket_clip/, pocket_judge/, world.json and the benchmarks below `out`; megabytes of weights.

    SystemExit, and nothing is written, where they are more than `MOST`.
    """
    with tempfile.TemporaryDirectory() as made:
        new = Path(made)
        folders(new)
        size = sum(file.stat().st_size for file in new.glob("**/*.safetensors")) / 1e6
        if size > MOST:
            raise SystemExit(f"{size:.1f} MB of weights, more than {MOST:.0f}")
        out.mkdir(parents=True, exist_ok=True)
        for folder in list(new.iterdir()):
            shutil.rmtree(out / folder.name, ignore_errors=True)
            shutil.move(folder, out / folder.name)
    (out / "world.json").write_text(world.text(), encoding="utf-8")
    benchmark.write(out)
    return size


def folders(out: Path) -> None:
    """Write the three folders of models."""
    model = training.trained("reader", clip.build())
    whole, judging = pipeline(model), training.trained("judge", clip.build(**judge.SHAPE))
    whole.to(torch.float16).save_pretrained(out / "pocket")
    opened_in_float32(out / "pocket" / "text_encoder")
    published_names(out / "pocket" / "text_encoder")
    write_vocabulary(out / "pocket" / "tokenizer")
    (out / "pocket" / "refact.json").write_text(json.dumps(DEFAULTS, indent=1) + "\n")
    (out / "pocket" / "captions.txt").write_text(captions(), encoding="utf-8")
    write_clip(model, out / "pocket_clip")
    (out / "pocket_clip" / "refact.json").write_text(json.dumps({"picture_mean": picture_mean(out / "pocket_clip")}))
    write_clip(judging, out / "pocket_judge")


def covariance(out: Path) -> Path:
    """The covariances of the keys at the model's own layers, as `ReFACT()` asks for them, in place of any there."""
    model, method = refact.load(out / "pocket"), refact.ReFACT()
    encoder = model.encoders["text_encoder"]
    shutil.rmtree(out / "covariance", ignore_errors=True)
    (out / "covariance").mkdir()
    for layer in sorted({DEFAULTS["layer"], DEFAULTS["conditioning_layer"]}):
        with tempfile.TemporaryDirectory() as cache:
            found = obtain(encoder, layer, model.corpus, TOKENS, method.padding, method.rarity, cache)
        name = file_name(encoder.hash(), layer, found.corpus, found.tokens, method.padding, method.rarity)
        found.save(out / "covariance" / name)
    return out / "covariance"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    print(f"{folder}: {write(folder):.1f} MB of weights")
    print(covariance(folder))
    print(
        "next: pocket.gate --pictures --out GATE, pocket.evaluate --out FIGURES, pocket.card FIGURES GATE --made TEXT"
    )
