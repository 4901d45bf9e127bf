"""How many facts hold at once, and what else moves: the scale study, on the text side, and in pictures with a judge.

Facts are made here, as many as wanted: the bundled world's roles, flags and things, or phrases of the caption corpus
for any other encoder. A row of the study is one method, one way (at once, or in sequence) and one number of facts.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .benchmark import begin, form_of, write
from .corpus import captions
from .edits import Edit, distinct
from .errors import RefactError
from .judge import Judge
from .models import Model
from .patch import Patch
from .progress import Progress, plainly

WAYS = ("at once", "in sequence")
STEPS = 20  # patches that a sequence is made of, at most
UNTOUCHED = 1000  # prompts that no fact is about


@dataclass(frozen=True)
class Row:
    """What became of `count` facts. Shares are of 1; drift is the relative change of the pooled state."""

    method: str
    way: str
    count: int
    holds: float | None = None  # nearer to the target than to what the prompt meant
    first: float | None = None  # the same for the first ten facts
    drift: float | None = None  # of untouched prompts, mean
    drift_95: float | None = None  # 95th percentile
    pictures: float | None = None  # of 100 facts' pictures: the judge prefers the target
    kept: float | None = None  # of 100 untouched prompts' pictures: the judge names the same as before
    seconds: float = 0.0  # an edit
    steps: float = 0.0  # an edit
    megabytes: float = 0.0  # the process's peak so far
    refused: str = ""


def phrases(count: int, seed: int = 0) -> list[Edit]:
    """Facts for any encoder: each caption of the corpus shall mean another, no subject twice."""
    texts: list[str] = []
    many = 3 * count + 50
    while len(texts) < 2 * count:
        texts, many = list(dict.fromkeys(" ".join(t.split()[:6]) for t in captions(many, seed=seed))), 2 * many
    return distinct(Edit(old, new=new) for old, new in zip(texts[: 2 * count : 2], texts[1::2]))


def roles(world: Mapping, seed: int = 0) -> list[Edit]:
    """Every role of the world shall be another thing of its group, every flag another flag."""
    rng, by_id = random.Random(seed), {c["id"]: c for c in world["concepts"]}
    found = []
    for concept in world["concepts"]:
        if concept["kind"] == "object":
            continue
        now = by_id[concept.get("depicts", concept["id"])]
        peers = [c for c in by_id.values() if c["kind"] == now["kind"] and c["group"] == now["group"] and c != now]
        new = rng.choice(peers)["wordings"][0]
        old = now["wordings"][0] if concept["kind"] == "role" else None
        found.append(Edit(concept["wordings"][0], old=old, new=new, name=concept["id"]))
    rng.shuffle(found)
    return found


def things(world: Mapping) -> list[str]:
    """Prompts that are about none of `roles`: every thing alone, and at some places."""
    names = [c["wordings"][0] for c in world["concepts"] if c["kind"] == "object"]
    return names + [f"{name} {place}" for place in world["places"][:4] for name in names]


def scale(
    model: Model,
    facts: Sequence[Edit],
    counts: Iterable[int],
    methods: Mapping[str, Any],
    out: str | Path,
    *,
    ways: Sequence[str] = WAYS,
    untouched: Sequence[str] = (),
    judge: Judge | None = None,
    autocast: str | None = None,
    progress: Progress = plainly,
) -> list[Row]:
    """A row for each method, way and count; `out`/scale.json keeps them, and those that are there are not made again.

    untouched: prompts that no fact is about; captions of the corpus by default. Raises RefactError for more facts
    than were given, DataError where `out` holds a study with other settings.
    """
    path, counts = Path(out) / "scale.json", sorted(set(counts))
    if counts and counts[-1] > len(facts):
        raise RefactError(f"{len(facts)} facts can be made here, not {counts[-1]}")
    untouched = list(untouched) or captions(UNTOUCHED, seed=991)
    rows = [Row(**form) for form in json.loads(path.read_text())] if path.exists() else []
    made = {(row.method, row.way, row.count) for row in rows}
    wanted = [(name, way, count) for name in methods for way in ways for count in counts]
    settings: dict[str, Any] = {"study": "scale", "model": model.fingerprints(), "judge": judge.hash if judge else None}
    settings["autocast"] = autocast
    settings |= {"methods": {name: form_of(made) for name, made in methods.items()}, "first": facts[0].to_json()}
    begin(path.parent, json.loads(json.dumps(settings | {"untouched": untouched})), [])
    for name, way, count in progress([w for w in wanted if w not in made], "scale", len(wanted) - len(made)):
        rows.append(_row(model, list(facts[:count]), name, way, methods[name], untouched, judge, autocast))
        write(path, json.dumps([asdict(row) for row in rows], indent=1).encode())
    return rows


def _row(
    model: Model,
    facts: list[Edit],
    name: str,
    way: str,
    method: Any,
    untouched: list[str],
    judge: Judge | None,
    autocast: str | None,
) -> Row:
    begun = time.perf_counter()
    try:
        patches = sequence(model, facts, method) if way == "in sequence" else [method(model, facts)]
    except RefactError as error:
        return Row(name, way, len(facts), refused=str(error), megabytes=peak())
    seconds = (time.perf_counter() - begun) / len(facts)
    logs = [log for patch in patches for form in patch.record["edits"] for log in form["sites"].values()]
    found: dict[str, Any] = _texts(model, facts, patches, untouched) | (
        _pictures(model, facts, patches, judge, untouched, autocast) if judge else {}
    )
    steps = float(np.mean([log.get("steps") or 0 for log in logs]))
    return Row(name, way, len(facts), seconds=seconds, steps=steps, megabytes=peak(), **found)


def sequence(model: Model, facts: Sequence[Edit], method: Any) -> list[Patch]:
    """The facts one after another, in at most `STEPS` patches, each holding those before it where the method can."""
    size = -(-len(facts) // STEPS)
    patches: list[Patch] = []
    for at in range(0, len(facts), size):
        group = list(facts[at : at + size])
        patches.append(method(model, group, patches) if hasattr(method, "hold") else method(model, group))
    return patches


def peak() -> float:
    """The process's largest memory so far, in megabytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1e6 if sys.platform == "darwin" else 1e3)


def _texts(model: Model, facts: list[Edit], patches: Sequence[Patch], untouched: list[str]) -> dict[str, float]:
    encoder = next(iter(model.encoders.values())).in_float32()
    targets = encoder.embed([str(fact.new) for fact in facts])
    sources = encoder.embed([fact.prompt if fact.old is None else fact.old for fact in facts])
    before = encoder.embed(untouched)
    with _active(model, patches):
        asked, after = encoder.embed([fact.prompt for fact in facts]), encoder.embed(untouched)
    holds = (asked - targets).norm(dim=1) < (asked - sources).norm(dim=1)
    moved = (after - before).norm(dim=1) / before.norm(dim=1)
    shares = {"holds": holds.float().mean(), "first": holds[:10].float().mean()}
    return {k: float(v) for k, v in (shares | {"drift": moved.mean(), "drift_95": moved.quantile(0.95)}).items()}


def _pictures(
    model: Model,
    facts: list[Edit],
    patches: Sequence[Patch],
    judge: Judge,
    untouched: list[str],
    autocast: str | None = None,
) -> dict[str, float]:
    some, others = facts[:100], untouched[:100]
    how: dict[str, Any] = {"batch_size": 32, "autocast": autocast}
    before = model.generate(others, [0], **how)
    with _active(model, patches):
        asked, after = (model.generate(p, [0], **how) for p in ([fact.prompt for fact in some], others))
    pairs = [[str(fact.new), fact.prompt if fact.old is None else fact.old] for fact in some]
    hits = [np.argmax(judge.logits([picture.image], texts)) == 0 for picture, texts in zip(asked, pairs)]
    one, other = (judge.logits([p.image for p in side], others).argmax(1) for side in (before, after))
    return {"pictures": float(np.mean(hits)), "kept": float(np.mean(one == other))}


def _active(model: Model, patches: Sequence[Patch]) -> ExitStack:
    with ExitStack() as stack, torch.no_grad():
        for patch in patches:
            stack.enter_context(patch.applied(model))
        return stack.pop_all()


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    names = "method, way, facts, hold, first ten, drift, drift at 95 %, pictures, kept, s an edit, steps, MB"
    lines = ["| " + names.replace(",", " |") + " |", "|---|---|" + "--:|" * 10]
    for row in rows:
        shares = [row.holds, row.first, row.drift, row.drift_95, row.pictures, row.kept]
        cells = ["-" if share is None else f"{100 * share:.1f} %" for share in shares]
        end = [f"{row.seconds:.2f}", f"{row.steps:.0f}", f"{row.megabytes:.0f}"]
        what = [row.refused, *[""] * 8] if row.refused else [*cells, *end]
        lines.append("| " + " | ".join([row.method, row.way, str(row.count), *what]) + " |")
    return "\n".join(lines)
