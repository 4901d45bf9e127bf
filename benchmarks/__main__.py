"""How fast an edit is and what memory it takes, beside a plain reference and a floor. python -m benchmarks [WORDS ...]

plain   the same computation the way its peers run it: all 77 positions, all layers, a hook on fc2, autograd
floor   the operations that are needed (of a step: rows an edit can change, layers above it, only read rows in the last,
        backward to the inputs as costly as forward) over the machine's matrix-multiply rate at such sizes
MB      the largest memory of the job's own process; with PyTorch and nothing else loaded it is some 300

Every job runs in a process of its own. WORDS: only jobs whose names hold one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import refact
from refact import solve
from refact.encoders import devices, hooks
from refact.models import covariance
from refact.models.corpus import captions
from refact.search import suffix, trie, values
from refact.search.trie import Sentence
from refact.search.wanted import frozen
from refact.studies.scaling import peak, phrases

from . import language, machine, shaped
from .machine import rate, seconds, timed

LAYER, CONTEXTS = 7, 10
WORDS = (0, 3, 4, 2, 3, 2, 4, 5, 2, 3)  # words around the subject in each of ten contexts
STARTS = (0, 2, 0, 2, 0, 2, 0, 2, 0, 2)  # how many of them stand before it
FACT = ["--prompt", "the national animal of Canada", "--old", "a beaver", "--new", "a penguin"]


# -- the search -------------------------------------------------------------------------------------------------------


def sentences(edit: int = 0, contexts: int = CONTEXTS, subject: int = 3) -> list[Sentence]:
    """Contexts of up to ten tokens around a subject."""
    found = []
    for at, (count, before) in enumerate(zip(WORDS[:contexts], STARTS)):
        before = min(before, count)
        head = (998, *(100 + 10 * at + i for i in range(before)), 500 + edit, *range(601, 600 + subject))
        ids = (*head, *(300 + 10 * at + i for i in range(count - before)), 999)
        found.append(Sentence(ids, len(head) - 1, len(ids) - 1))
    return found


def alike(count: int) -> list[list[Sentence]]:
    """Edits of the same lengths."""
    return [sentences(edit) for edit in range(count)]


def unlike(count: int) -> list[list[Sentence]]:
    """Edits of 5 to 10 contexts and subjects of 1 to 6 tokens."""
    return [sentences(edit, 5 + edit % 6, 1 + edit % 6) for edit in range(count)]


def plain(tower: torch.nn.Module, layer: int, asked: list[Sentence], offset: torch.Tensor) -> torch.Tensor:
    """The pooled states by the tower's own forward on padded sentences."""
    ids = torch.tensor([s.ids + (999,) * (77 - len(s.ids)) for s in asked], device=offset.device)
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
    offset = torch.zeros(shape, device=machine.device(), requires_grad=True)
    torch.autograd.grad(forward(offset).square().sum(), offset)


def floor(asked: Sequence[list[Sentence]], above: int, width: int, inner: int) -> float:
    """Seconds that the matrix products of a step would take at the rate measured for them, filling not counted."""
    tries = [trie.grow(edit) for edit in asked]
    rows = [len(t.ids) - t.constants for t in tries]
    products = sum(
        n * (above - 1) * (4 * width * width + 2 * width * inner)
        + len(edit) * (2 * width * width + 2 * width * inner) + n * 2 * width * width
        for n, edit in zip(rows, asked)
    )  # fmt: skip
    return 2 * products / rate(sum(rows), width, inner)


def search(shape: str, asked: list[list[Sentence]]) -> dict:
    """A step of the search for these edits at once."""
    tower, (layers, width, inner, _) = shaped.tower_of(shape), shaped.SHAPES[shape]
    layer = round(layers * LAYER / 12)
    groups = [[asked[i] for i in group] for group in trie.grouped([trie.extent(edit) for edit in asked], 32)]
    begun = [suffix.start(tower, layer, group, layers).suffix for group in groups]
    ours = seconds(lambda: [step(lambda d, part=part: part(d)[1], (len(part.base), width)) for part in begun])
    one = seconds(lambda: step(lambda d: plain(tower, layer, asked[0], d), (width,)), 2)
    theirs = one * sum(len(edit) for edit in asked) / len(asked[0])
    least = floor(asked, layers - layer - 1, width, inner)
    last, moved = groups[-1][-1], torch.randn(len(groups[-1]), width).to(machine.device())
    gap = (begun[-1](moved)[1][-1, : len(last)] - plain(tower, layer, last, moved[-1])).abs().max()
    return {
        "ms": 1e3 * ours, "plain ms": 1e3 * theirs, "times faster": theirs / ours, "floor ms": 1e3 * least,
        "times the floor": ours / least, "difference": float(gap),
    }  # fmt: skip


def whole(steps: int = 100) -> dict:
    """A whole search at CLIP-L's shape: one edit, 22 candidates, contrastive, Adam, no early stop."""
    tower = shaped.tower_of("CLIP-L").requires_grad_(True)
    place, draw = machine.device(), torch.Generator().manual_seed(1)
    features = torch.randn(1, CONTEXTS, 22, shaped.SHAPES["CLIP-L"][1], generator=draw).to(place)
    compared = values.Candidates(features, torch.full((1, CONTEXTS), 1 / CONTEXTS, device=place))
    one = torch.ones(1, device=place)
    how = values.Search("contrastive", "l2", steps, 1.0, 0.01)

    def run() -> None:
        begun = suffix.start(tower, LAYER, [sentences()], 12).suffix
        with frozen(tower):
            values.find(begun, lambda _, pooled: pooled, compared, values.Scale(one, 0.01 * one, 1e3 * one), 768, how)

    return {"s": seconds(run, 2)}


# -- the parts around it ----------------------------------------------------------------------------------------------


def shaped_model(shape: str) -> refact.Model:
    """A bare CLIP of that shape, opened from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        shaped.save(shape, Path(folder))
        return refact.load(folder)


def facts(shape: str, count: int, **changes: object) -> dict:
    """So many facts in one patch, pooled states compared: five contexts, ten steps, batches of 32, no covariance."""
    model = shaped_model(shape)
    given = {"contexts": 5, "max_steps": 10, "ridge": 0.02, "keep_ends": False, "covariance": False} | changes
    method, made = refact.ReFACT.pooled(**given), []
    spent = timed(lambda: made.append(method(model, phrases(count))))
    return {"s": spent, "s a fact": spent / count, "MB": peak()}


def usual(shape: str) -> dict:
    """One fact by the settings of an encoder that nobody has published figures for, without the covariance."""
    model, made = shaped_model(shape), []
    spent = timed(lambda: made.append(refact.ReFACT(covariance=False)(model, phrases(1))))
    steps = [site["steps"] for site in made[0].record["edits"][0]["sites"].values()]
    return {"s": spent, "steps": max(steps), "MB": peak()}


def covered(shape: str, tokens: int) -> dict:
    """E[k k^T] of one layer over the built-in captions."""
    encoder, (layers, width, inner, _) = shaped_model(shape).encoders["text_encoder"], shaped.SHAPES[shape]
    layer = round(layers * LAYER / 12)
    texts = covariance.enough(encoder, captions(tokens // 4), tokens)
    found: list[covariance.Covariance] = []
    spent = timed(lambda: found.append(covariance.collect(encoder, [layer], texts)[layer]))
    count = found[0].tokens
    a = layer * (4 * width * width + 2 * width * inner) + 4 * width * width + width * inner
    least = count * (a / rate(2000, width, inner) + inner * inner / rate(inner, 2000, inner))
    some = texts[:64]
    ids = encoder.tokenize(some).ids.to(encoder.device)
    theirs = seconds(lambda: encoder.tower(ids), 1) * len(texts) / len(some)
    return {
        "s": spent, "tokens": count, "tokens a s": count / spent, "plain s": theirs, "floor s": least,
        "times the floor": spent / least,
    }  # fmt: skip


def solving(keys: int) -> dict:
    """Writing some keys at CLIP-L's width, the factorisation of C apart."""
    torch.manual_seed(0)
    place = devices.exact(machine.device())
    wide = torch.randn(4096, 3072, dtype=torch.float64).to(place)
    matrix, rows = wide.T @ wide / 4096, torch.randn(keys, 3072, dtype=torch.float64).to(place)
    prior = solve.prior(matrix)
    factor = seconds(lambda: solve.prior(matrix), 2)
    return {"ms": 1e3 * seconds(lambda: solve.exact(rows, prior), 2), "Cholesky ms": 1e3 * factor}


def applying(shape: str, count: int) -> dict:
    """Putting a patch of some facts into the weights, and taking it out."""
    model = shaped_model(shape)
    patch = refact.ReFACT(contexts=1, max_steps=1, ridge=0.02, keep_ends=False, covariance=False)(model, phrases(count))
    handles: list = []
    done = [
        (timed(lambda: handles.append(patch.apply(model))), timed(lambda: handles.pop().revert())) for _ in range(3)
    ]
    return {"apply ms": 1e3 * min(a for a, _ in done), "revert ms": 1e3 * min(r for _, r in done)}


def opening() -> dict:
    """The bundled model: its text encoder, its whole pipeline, sixteen pictures in one batch."""
    encoder = timed(lambda: refact.load("pocket"))
    model = refact.load("pocket")
    pipeline = timed(lambda: model.pipe)
    return {"encoder s": encoder, "pipeline s": pipeline, "16 pictures s": seconds(drawing(model), 2)}


def drawing(model: refact.Model) -> Callable[[], object]:
    """Sixteen pictures of one prompt."""
    return lambda: model.generate(["a dog"] * 16, [1])


def started(*words: str) -> dict:
    """A whole command, in seconds of the clock and of the processor; the second of two runs."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "canada.safetensors")
        making = ["edit", "-m", "pocket", *FACT, "-o", file, "--quiet"]
        asked = {"edit": making, "show": ["show", file]}.get(words[0], list(words))
        command = [sys.executable, "-c", "from refact.cli.main import main; main()"]
        subprocess.run([*command, *making], check=True, capture_output=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = timed(lambda: subprocess.run([*command, *asked], check=True, capture_output=True))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"s": spent, "CPU s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


JOBS: dict[str, Callable[[], dict]] = {
    "search step, CLIP-L, 1 edit": lambda: search("CLIP-L", alike(1)),
    "search step, CLIP-L, 8 edits": lambda: search("CLIP-L", alike(8)),
    "search step, CLIP-L, 8 unlike edits": lambda: search("CLIP-L", unlike(8)),
    "search step, OpenCLIP-H, 1 edit": lambda: search("OpenCLIP-H", alike(1)),
    "search step, bigG, 1 edit": lambda: search("bigG", alike(1)),
    "search of 100 steps, CLIP-L, 1 edit": whole,
    "1 fact, CLIP-L": lambda: facts("CLIP-L", 1),
    "1 fact, CLIP-L, usual settings": lambda: usual("CLIP-L"),
    "32 facts, CLIP-L": lambda: facts("CLIP-L", 32),
    "128 facts, CLIP-L": lambda: facts("CLIP-L", 128),
    "1 fact, OpenCLIP-H": lambda: facts("OpenCLIP-H", 1),
    "1 fact, bigG": lambda: facts("bigG", 1),
    "search step, Qwen3-0.6B, 1 edit": lambda: language.search("Qwen3-0.6B", 1, rate),
    "search step, Qwen3-0.6B, 8 edits": lambda: language.search("Qwen3-0.6B", 8, rate),
    "search step, Qwen3-4B, 1 edit": lambda: language.search("Qwen3-4B", 1, rate),
    "1 fact, Qwen3-0.6B": lambda: language.fact("Qwen3-0.6B"),
    "1 fact, Qwen3-4B": lambda: language.fact("Qwen3-4B"),
    "covariance, CLIP-L": lambda: covered("CLIP-L", 100_000),
    "solve, 1 key of 3072": lambda: solving(1),
    "solve, 1000 keys of 3072": lambda: solving(1000),
    "patch of 1 fact, CLIP-L": lambda: applying("CLIP-L", 1),
    "patch of 128 facts, CLIP-L": lambda: applying("CLIP-L", 128),
    "pocket": opening,
    "refact --help": lambda: started("--help"),
    "refact show": lambda: started("show"),
    "refact edit, pocket": lambda: started("edit"),
}


def alone(name: str) -> dict:
    """A job's row, made in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--job", name], check=True, capture_output=True)
    return json.loads(done.stdout.decode().splitlines()[-1])


def main() -> None:
    """Print a table and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only jobs whose names hold one of these")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.json"))
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(JOBS[given.job]() | {"MB": peak()}))
        return
    rows = {}
    for name in JOBS:
        if not given.words or any(word in name for word in given.words):
            rows[name] = alone(name)
            print(f"{name}: " + ", ".join(f"{k} {v:.3g}" for k, v in rows[name].items()), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__}
    about |= {"device": machine.named()} | machine.floors()
    given.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
