"""How fast an edit is, beside a plain reference and beside the floor. python -m benchmarks [--quick] [--out FILE]

plain   the same search the way its peers run it: all 77 positions, all layers, a hook on fc2, autograd
floor   the operations that a step needs (rows an edit can change, layers above it, only read rows in the last;
        backward to the inputs costs as much as forward) over the machine's matrix-multiply rate at such sizes
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from refact import editing, hooks, solve, suffix, values
from refact.encoders import text_tower
from refact.suffix import Sentence

LAYER, CONTEXTS = 7, 10
SHAPES = {"CLIP-L": (12, 768, 3072, 12), "OpenCLIP-H": (23, 1024, 4096, 16), "bigG": (32, 1280, 5120, 20)}
WORDS = (0, 3, 4, 2, 3, 2, 4, 5, 2, 3)  # words around the subject in each of ten contexts
STARTS = (0, 2, 0, 2, 0, 2, 0, 2, 0, 2)  # how many of them stand before it


def seconds(fn: Callable[[], object], times: int = 5) -> float:
    """The fastest of some runs, after one to warm up."""
    fn()
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        fn()
        found.append(time.perf_counter() - begun)
    return min(found)


def tower_of(shape: str) -> torch.nn.Module:
    """A text tower of that shape with random weights."""
    layers, width, inner, heads = SHAPES[shape]
    config = CLIPTextConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, eos_token_id=999, bos_token_id=998,
    )  # fmt: skip
    torch.manual_seed(0)
    return text_tower(CLIPTextModel(config).eval().requires_grad_(False))


def sentences(edit: int = 0) -> list[Sentence]:
    """Ten contexts of 5 to 10 tokens around a subject of three."""
    found = []
    for at, (count, before) in enumerate(zip(WORDS, STARTS)):
        before = min(before, count)
        head = (998, *(100 + 10 * at + i for i in range(before)), 500 + edit, 501, 502)
        ids = (*head, *(300 + 10 * at + i for i in range(count - before)), 999)
        found.append(Sentence(ids, len(head) - 1, len(ids) - 1))
    return found


def plain(tower: torch.nn.Module, layer: int, asked: list[Sentence], offset: torch.Tensor) -> torch.Tensor:
    """The pooled states by the tower's own forward on padded sentences."""
    ids = torch.tensor([s.ids + (999,) * (77 - len(s.ids)) for s in asked])
    rows, at = torch.arange(len(asked)), torch.tensor([s.subject for s in asked])

    def moved(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[rows, at] += offset
        return out

    with hooks.replace(list(tower.encoder.layers)[layer].mlp.fc2, moved):
        states = tower(ids).last_hidden_state
    return states[rows, torch.tensor([s.end for s in asked])]


def step(forward: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> None:
    """One forward and one backward to the offset."""
    offset = torch.zeros(shape, requires_grad=True)
    torch.autograd.grad(forward(offset).square().sum(), offset)


def floor(begun: suffix.Suffix) -> float:
    """Seconds that the matrix products of a step would take at the rate measured for them."""
    edits, rows, width = begun.base.shape
    inner = begun.above[0].mlp.fc1.out_features
    read = begun.ends.shape[1]
    last = read * (2 * width * width + 2 * width * inner) + rows * 2 * width * width
    products = rows * (len(begun.above) - 1) * (4 * width * width + 2 * width * inner) + last
    a, b = torch.randn(edits * rows, width), torch.randn(inner, width)
    rate = 2 * a.shape[0] * width * inner / seconds(lambda: torch.nn.functional.linear(a, b), 20)
    return 2 * 2 * edits * products / rate


def search(shape: str, batch: int) -> dict:
    """A step of the search for `batch` edits at once."""
    tower = tower_of(shape)
    layer = round(SHAPES[shape][0] * LAYER / 12)
    asked = [sentences(edit) for edit in range(batch)]
    begun = suffix.start(tower, layer, asked, len(tower.encoder.layers)).suffix
    width = SHAPES[shape][1]
    ours = seconds(lambda: step(lambda d: begun(d)[1], (batch, width)))
    theirs = seconds(lambda: step(lambda d: plain(tower, layer, asked[0], d), (width,)), 2) * batch
    least = floor(begun)
    gap = (begun(torch.ones(batch, width))[1][0] - plain(tower, layer, asked[0], torch.ones(width))).abs().max()
    return {
        "what": f"search step, {shape}, {batch} edit(s)", "ms": 1e3 * ours, "plain ms": 1e3 * theirs,
        "times faster": theirs / ours, "floor ms": 1e3 * least,
        "times the floor": ours / least, "difference": float(gap),
    }  # fmt: skip


def whole(steps: int = 100) -> dict:
    """A whole search at CLIP-L's shape: one edit, 22 candidates, contrastive, Adam, no early stop."""
    tower = tower_of("CLIP-L").requires_grad_(True)
    features = torch.randn(1, CONTEXTS, 22, SHAPES["CLIP-L"][1], generator=torch.Generator().manual_seed(1))
    compared = values.Candidates(features, torch.full((1, CONTEXTS), 1 / CONTEXTS))
    one = torch.ones(1)
    how = values.Search("contrastive", "l2", steps, 1.0, 0.01)

    def run() -> None:
        begun = suffix.start(tower, LAYER, [sentences()], 12).suffix
        with editing.frozen(tower):
            values.find(begun, lambda _, pooled: pooled, compared, values.Scale(one, 0.01 * one, 1e3 * one), 768, how)

    return {"what": f"search of {steps} steps, CLIP-L, 1 edit", "s": seconds(run, 2)}


def solving(keys: int) -> dict:
    """Writing some keys at CLIP-L's width, the factorisation of C apart."""
    torch.manual_seed(0)
    wide = torch.randn(4096, 3072, dtype=torch.float64)
    matrix, rows = wide.T @ wide / 4096, torch.randn(keys, 3072, dtype=torch.float64)
    prior = solve.prior(matrix)
    factor = seconds(lambda: solve.prior(matrix), 2)
    return {
        "what": f"solve, {keys} key(s) of 3072", "ms": 1e3 * seconds(lambda: solve.exact(rows, prior), 2),
        "Cholesky ms": 1e3 * factor,
    }  # fmt: skip


def main() -> None:
    """Print a table and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="CLIP-L only")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.json"))
    given = parser.parse_args()
    jobs: list[Callable[[], dict]] = [lambda b=b: search("CLIP-L", b) for b in (1, 8)]
    if not given.quick:
        jobs += [lambda: search("OpenCLIP-H", 1), lambda: search("bigG", 1)]
    jobs.append(whole)
    jobs += [lambda n=n: solving(n) for n in (1, 1000)]
    rows = []
    for job in jobs:
        rows.append(job())
        text = ", ".join(f"{k} {v:.3g}" for k, v in rows[-1].items() if k != "what")
        print(f"{rows[-1]['what']}: {text}", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
