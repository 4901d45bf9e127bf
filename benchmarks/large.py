"""Edits, many facts, statistics and pictures at the sizes of real models, within ten minutes on one accelerator.

python -m benchmarks.large [--small] [--minutes 9] [--out FILE]

It prints a table for docs/speed.md: each figure beside the floor of this machine, by the rates that are measured first.
Weights are random: times do not depend on them. Rows that no time is left for say so. --small: tiny shapes, for a look
at whether all of it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import refact
from refact.encoders.encoder import TextEncoder
from refact.families import FAMILIES
from refact.models.model import Model
from refact.studies.scaling import phrases

from . import __main__ as basic
from . import drawing, language, machine, shaped

T5 = {"T5-XXL": (24, 4096, 10240, 64), "tiny": (2, 32, 64, 4)}  # layers, width, MLP width, heads
THOUSAND: dict[str, Any] = {  # docs/many.md
    "contexts": 5, "max_steps": 25, "write": "value", "keep_ends": False, "crowded": 0.0, "optimiser": "lbfgs",
    "learning_rate": 0.2, "embedding": "pooled", "covariance": False,
}  # fmt: skip
TEN_THOUSAND = THOUSAND | {"contexts": 1, "max_steps": 10, "ridge": 0.02}


def edit(model: Model, steps: int = 100, **changes: Any) -> dict[str, float]:
    """One edit of so many steps, with what is read and written around the search, by the paper's settings."""
    how = refact.ReFACT.paper(max_steps=steps, stop=1.0, covariance=False, space="", **changes)
    made: list[Any] = []
    spent = machine.seconds(lambda: made.append(how(model, phrases(1))), 1)
    logs = made[-1].record["edits"][0]["sites"].values()
    return {"s": spent, "residual": max(log["residual"] for log in logs), "steps": max(log["steps"] for log in logs)}


def edit_of_clip(shape: str, steps: int = 100) -> dict[str, float]:
    """The same at a CLIP's shape, beside the products that each step needs."""
    layers, width, inner, _ = shaped.SHAPES[shape]
    above = layers - round(layers * basic.LAYER / 12) - 1
    least = steps * basic.floor(basic.alike(1), above, width, inner)
    return edit(basic.shaped_model(shape), steps) | {"floor s": least}


def many(shape: str, count: int, **how: Any) -> dict[str, float]:
    """So many facts in one patch: seconds, the largest residual, and the share that holds on the text side."""
    model, edits, made = basic.shaped_model(shape), phrases(count), []
    encoder = model.encoders["text_encoder"]
    spent = machine.timed(lambda: made.append(refact.ReFACT(**how)(model, edits)))
    new, old = (encoder.embed([str(getattr(edit, name)) for edit in edits]) for name in ("new", "prompt"))
    with made[0].applied(model):
        now = encoder.embed([edit.prompt for edit in edits])
    holds = ((now - new).norm(dim=1) < (now - old).norm(dim=1)).double().mean()
    logs = [log for edit in made[0].record["edits"] for log in edit["sites"].values()]
    residual = max(log["residual"] for log in logs)
    return {"s": spent, "s a fact": spent / count, "residual": residual, "share that holds": float(holds)}


def t5(shape: str, steps: int = 100) -> dict[str, float]:
    """One edit of a T5 in bfloat16, as FLUX.1 has it."""
    from transformers import T5Config, T5EncoderModel

    layers, width, inner, heads = T5[shape]
    words = shaped.tokenizer()
    config = T5Config(
        vocab_size=32128, d_model=width, d_ff=inner, d_kv=64, num_layers=layers, num_heads=heads, use_cache=False,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    module = language.random(T5EncoderModel, config)
    family = FAMILIES["flux"]
    row = next(row for row in family.encoders if row.kind == "t5")
    encoder = TextEncoder(row.name, module.to(machine.device()), words, row)
    return edit(Model(shape, family, {row.name: encoder}), steps, encoders=(row.name,))


def rows_of(small: bool) -> dict[str, Callable[[], dict]]:
    """name -> what measures it, the most important first."""
    clip, tall, qwen, xxl, few = ("tiny",) * 4 + (True,) if small else ("CLIP-L", "bigG", "Qwen3-4B", "T5-XXL", False)
    steps, dtype = (3, torch.float32) if few else (100, torch.float16)
    many_pictures = {"cases": 1, "seeds": 2 if few else 25, "batch": 2 if few else 16, "steps": 2 if few else 25}
    return {
        f"one edit of {steps} steps, {clip} (Stable Diffusion 1)": lambda: edit_of_clip(clip, steps),
        f"one edit of {steps} steps, {tall} (SDXL's second encoder)": lambda: edit_of_clip(tall, steps),
        f"covariance of {600 if few else 100_000} tokens, {clip}": lambda: basic.covered(clip, 600 if few else 100_000),
        f"{3 if few else 1000} facts, {clip}": lambda: many(clip, 3 if few else 1000, **THOUSAND),
        f"pictures, {'tiny' if few else 'SD1'}, {dtype}": lambda: drawing.compared(
            "tiny" if few else "SD1", times=1 if few else 2, compiled=not few, dtype=dtype, **many_pictures
        ),
        f"search step, {qwen}, 1 edit": lambda: language.search(qwen, 1, machine.rate),
        f"1 fact, {qwen}": lambda: language.fact(qwen, 2 if few else 10),
        f"one edit of {steps} steps, {xxl}": lambda: t5(xxl, steps),
        f"{8 if few else 10_000} facts with a ridge, {clip}": lambda: many(clip, 8 if few else 10_000, **TEN_THOUSAND),
    }


def measured(rows: dict[str, Callable[[], dict]], minutes: float) -> dict[str, dict]:
    """The rows that fit into the time; each with the accelerator's largest memory."""
    begun, found = time.monotonic(), {}
    for name, row in rows.items():
        if time.monotonic() - begun > 60 * minutes:
            found[name] = {"not run": "no time was left"}
            continue
        gc.collect()
        found[name] = _with_memory(row)
        print(f"{name}: {_told(found[name])}", flush=True)
    return found


def _with_memory(row: Callable[[], dict]) -> dict:
    module = torch.get_device_module(machine.device()) if machine.device().type != "cpu" else None
    if module is None or not hasattr(module, "max_memory_allocated"):
        return row() | {"MB": basic.peak()}
    module.empty_cache()
    module.reset_peak_memory_stats()
    return row() | {"MB on the device": module.max_memory_allocated() / 1e6}


def _told(row: dict) -> str:
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def table(about: str, floors: dict[str, float], rows: dict[str, dict]) -> str:
    """What is pasted into docs/speed.md."""
    lines = [f"{about}. Its rates: {_told(floors)}.", "", "| what | measured |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {_told(row)} |" for name, row in rows.items())])


def main() -> None:
    """Print the table, and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row is begun after this time")
    parser.add_argument("--out", type=Path, default=Path("build/large.json"))
    given = parser.parse_args()
    floors = machine.floors(512 if given.small else 4096)
    rows = measured(rows_of(given.small), given.minutes)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": machine.named(), "floors": floors, "rows": rows}, indent=1) + "\n")
    print(table(machine.named(), floors, rows))


if __name__ == "__main__":
    main()
