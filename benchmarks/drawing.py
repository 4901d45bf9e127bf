"""Pictures a second of `refact bench`, judging and writing included, beside a bare and compiled loop of diffusers.

Both draw the same prompts with the same seeds, batch and steps, in turns, in one process. python -m benchmarks.drawing
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import refact
from refact.evidence import bench, strict
from refact.evidence.cases import Case, read_cases
from refact.evidence.judge import Judge, load_judge
from refact.models.drawing import prepare

from . import machine, shaped


def pipeline(shape: str, dtype: torch.dtype) -> Any:
    """Stable Diffusion 1 with random weights: "SD1" in its real sizes, "tiny" with the same parts, small."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    small = shape == "tiny"
    text = shaped.model_of("tiny" if small else "CLIP-L")
    wide = (32, 64) if small else (320, 640, 1280, 1280)
    down = ("CrossAttnDownBlock2D",) * (len(wide) - 1) + ("DownBlock2D",)
    unet = UNet2DConditionModel(
        sample_size=8 if small else 64, block_out_channels=wide, down_block_types=down, norm_num_groups=32,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(wide) - 1),
        cross_attention_dim=text.config.hidden_size, attention_head_dim=8, layers_per_block=1 if small else 2,
    )  # fmt: skip
    sides = (32, 64) if small else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=sides, down_block_types=("DownEncoderBlock2D",) * len(sides), latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * len(sides), layers_per_block=1 if small else 2,
        sample_size=16 if small else 512,
    )  # fmt: skip
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_start=0.00085, beta_end=0.012)
    parts = {"text_encoder": text, "tokenizer": shaped.tokenizer(), "unet": unet, "vae": vae, "scheduler": scheduler}
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **more).to(dtype)


def bare(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], batch: int, options: dict[str, Any]) -> int:
    """Diffusers' own call, batch by batch; the count of pictures."""
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    for at in range(0, len(jobs), batch):
        some = jobs[at : at + batch]
        noise = [torch.Generator().manual_seed(seed) for _, seed in some]
        pipe([prompt for prompt, _ in some], generator=noise, **options)
    return len(jobs)


def compared(
    shape: str, cases: int = 1, seeds: int = 16, batch: int = 16, steps: int = 8, times: int = 3,
    compiled: bool = True, dtype: torch.dtype = torch.float32,
) -> dict[str, float]:  # fmt: skip
    """Pictures a second of both, the median of some turns, and their ratio. shape: "pocket", "SD1" or "tiny"."""
    if shape == "pocket":
        model = refact.load("pocket", dtype=dtype, compiled=compiled)
    else:
        made = prepare(pipeline(shape, dtype), machine.device(), [], compiled, False)
        model = refact.load(made)
    judge = load_judge("pocket", model.device)
    rows = read_cases("pocket-road-validation")[0][:cases]
    drawn = list(range(seeds))
    options = model._options(steps, None, None) | {"num_inference_steps": steps}
    model.pipe.set_progress_bar_config(disable=True)
    rates: dict[str, list[float]] = {"bare": [], "bench": []}
    for turn in range(times + 1):
        for name, run in (("bare", _bare), ("bench", _bench)):
            done: list[int] = []
            spent = machine.timed(
                lambda run=run, done=done: done.append(run(model, judge, rows, drawn, batch, options))
            )
            if turn:  # the first turn compiles
                rates[name].append(done[0] / spent)
    found = {f"{name} pictures/s": statistics.median(some) for name, some in rates.items()}
    return found | {"bench of bare": statistics.median(b / a for a, b in zip(rates["bare"], rates["bench"]))}


def _prompts(cases: Sequence[Case]) -> list[list[str]]:
    return [list(dict.fromkeys(probe.prompt for probe in bench.probes_of(case))) for case in cases]


def _bare(model: Any, judge: Judge, cases: Sequence[Case], seeds: list[int], batch: int, options: dict) -> int:
    return sum(bare(model.pipe, prompts, seeds, batch, options) for prompts in _prompts(cases))


def _bench(model: Any, judge: Judge, cases: Sequence[Case], seeds: list[int], batch: int, options: dict) -> int:
    with tempfile.TemporaryDirectory() as folder:
        how = {"judge": judge, "seeds": seeds, "batch_size": batch, "names": strict.NONE}
        bench.run(list(cases), model, ["baseline"], Path(folder) / "run", steps=options["num_inference_steps"], **how)
    return sum(len(prompts) * len(seeds) for prompts in _prompts(cases))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="pocket", choices=("pocket", "SD1", "tiny"))
    parser.add_argument("--plain", action="store_true", help="without torch.compile")
    for name, value in (("cases", 1), ("seeds", 16), ("batch", 16), ("steps", 8), ("times", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    print(compared(given.pop("shape"), compiled=not given.pop("plain"), **given))
