"""A fact is tried: searched for, measured, and its pictures drawn before and after, one step at a time.

Nothing stays applied to the model between two steps, so that a trial can be left at any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from ..edits import Edit, distinct
from ..patch import Patch
from ..verification import PROBES
from .engine import Engine, Joined
from .verdict import Verdict, clashes, counted

TICK = 0.5  # seconds between two signs of life of a search
QUICK = 1.5  # seconds for a pair of pictures, below which several are drawn at a time
TOGETHER = 4  # prompts
MOST_WORDINGS = 3  # aliases that are drawn


@dataclass(frozen=True)
class View:
    """A prompt before and after; no pictures until they are drawn.

    kind: "fact", the words themselves; "context" and "wording", in others; "near", what should stay; "end", what the
    words meant and shall mean.
    """

    kind: str
    prompt: str
    before: Any = None
    after: Any = None


@dataclass(frozen=True)
class Trial:
    """How far a trial has come. stage: what is being done; part: how much of it all; done: nothing more comes."""

    edit: Edit
    views: tuple[View, ...]
    stage: str = "Waiting for the model"
    part: float = 0.0
    patch: Patch | None = None
    verdict: Verdict | None = None
    done: bool = False
    cancelled: bool = False

    def drawn(self) -> int:
        """How many views have their pictures."""
        return sum(view.after is not None for view in self.views)


def views_of(edit: Edit, near: Sequence[str]) -> tuple[View, ...]:
    """What is drawn of a fact: itself, other contexts and wordings, what is near, and both its meanings."""
    ends = [text for text in (edit.old, edit.new) if isinstance(text, str) and text != edit.prompt]
    texts = [
        *(("fact" if probe == "{}" else "context", probe.replace("{}", edit.prompt)) for probe in PROBES),
        *(("wording", wording) for wording in edit.reworded()[:MOST_WORDINGS]),
        *(("near", prompt) for prompt in near),
        *(("end", text) for text in ends),
    ]
    kinds = {prompt: kind for kind, prompt in reversed(texts)}
    return tuple(View(kind, prompt) for prompt, kind in reversed(kinds.items()))


def tried(
    engine: Engine,
    edit: Edit,
    others: Sequence[tuple[Patch, float]] = (),
    near: Sequence[str] = (),
    strength: float = 1.0,
    patch: Patch | None = None,
    names: Sequence[str] = (),
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Trial]:
    """The steps of trying a fact beside the ones in force; the last one is `done`.

    others: (patch, strength) of the facts in force. near: prompts that should stay. patch: of the fact, where it was
    found before. names: of things that the pictures may be called. stopped: whether the user wants no more, asked
    between the steps.
    """
    trial = Trial(edit, views_of(edit, near), "Looking for the change", 0.02, patch)
    yield trial
    if patch is None:
        for seconds, found in _in_background(lambda: engine.search(edit)):
            if stopped():
                yield replace(trial, stage="Stopped", done=True, cancelled=True)
                return
            patch = found
            # nobody knows how long a search takes: it nears a third of the bar
            yield replace(trial, stage=f"Looking for the change, {seconds:.0f} s", part=0.3 - 0.28 / (1 + seconds / 8))
    assert patch is not None
    before, after = engine.join(others), engine.join([*others, (patch, strength)])
    trial = replace(trial, stage="Drawing", part=0.3, patch=patch)
    yield trial
    verdict = measured(engine, edit, [p for p, _ in others], patch, (before, after), near)
    trial = replace(trial, verdict=verdict, part=0.35)
    yield trial
    yield from _pictured(engine, trial, before, after, names, seed, stopped)


def _pictured(
    engine: Engine,
    trial: Trial,
    before: Joined,
    after: Joined,
    names: Sequence[str],
    seed: int,
    stopped: Callable[[], bool],
) -> Iterator[Trial]:
    """The trial with more and more of its pictures, the fact's own first."""
    at, group = 0, 1
    while at < len(trial.views):
        if stopped():
            yield replace(trial, stage="Stopped", done=True, cancelled=True)
            return
        began = time.monotonic()
        prompts = [view.prompt for view in trial.views[at : at + group]]
        old, new = engine.draw(prompts, [seed], before), engine.draw(prompts, [seed], after)
        views = list(trial.views)
        for i, (one, other) in enumerate(zip(old, new), at):
            views[i] = replace(views[i], before=one, after=other)
        at += len(prompts)
        stage = f"Drawing, {at} of {len(views)}"
        trial = replace(trial, views=tuple(views), stage=stage, part=0.35 + 0.65 * at / len(views))
        yield trial
        group = TOGETHER if time.monotonic() - began < QUICK * len(prompts) else 1
    yield replace(trial, verdict=_sighted(engine, trial, names), stage="Done", part=1.0, done=True)


def _sighted(engine: Engine, trial: Trial, names: Sequence[str]) -> Verdict:
    """The verdict with what the pictures show."""
    shown = [view for view in trial.views if view.kind in ("fact", "context", "wording")]
    sighting = engine.sighted(trial.edit, [v.after for v in shown], [v.before for v in shown], names)
    return replace(trial.verdict or Verdict(), sighting=sighting)


def measured(
    engine: Engine,
    edit: Edit,
    others: Sequence[Patch],
    patch: Patch,
    joined: tuple[Joined, Joined],
    near: Sequence[str],
) -> Verdict:
    """The text side of the verdict: whether the fact holds and the others still do, and what moved."""
    before, after = joined
    facts, earlier = engine.verified(after), engine.verified(before)
    assert after.patch is not None
    edits = after.patch.edits
    named = distinct(e for made in (*others, patch) for e in made.edits)  # as they are when they are joined
    fact = facts.get(named[-1].name) if patch.edits else None
    holds, contexts = counted(fact, len(PROBES), 1 + len(edit.aliases)) if fact else (None, 0)
    broken = tuple(f.prompt for name, f in facts.items() if name in earlier and earlier[name].holds and not f.holds)
    return Verdict(
        holds=holds,
        contexts=contexts,
        moved=engine.moved(before, after, near),
        broken=broken,
        clashes=clashes(engine.conflicts([*others, patch]), {e.name: e.prompt for e in edits}),
        notes=(after.note,) if after.note else (),
        unknown=engine.unknown(edit),
    )


def _in_background(work: Callable[[], Any]) -> Iterator[tuple[float, Any]]:
    """(seconds gone, None) again and again while work runs in a thread of its own; then (seconds, its result)."""
    executor, began = ThreadPoolExecutor(1), time.monotonic()
    future = executor.submit(work)
    executor.shutdown(wait=False)
    while wait([future], timeout=TICK).not_done:
        yield time.monotonic() - began, None
    yield time.monotonic() - began, future.result()
