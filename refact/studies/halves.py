"""The scale study by halves: each method's setting is chosen on half of the facts and reported on the other half."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..edits import Edit
from ..errors import RefactError
from ..evidence.cases import Probe
from ..evidence.provenance import form_of
from ..trust import disk
from . import scaling
from .scaling import WAYS, Row

CHOOSING, FILE = "choosing", "choice.json"  # a folder in the study's, and in it what was chosen


def halves(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The items at even places, and those at odd ones; facts are shuffled when they are made."""
    return list(items[::2]), list(items[1::2])


def worth(row: Row) -> float:
    """What a setting is chosen by: efficacy plus the geometric mean of generality and specificity, as in `tuning`.

    In pictures these are the facts' own prompts, their other words, and untouched prompts. On the text side alone: the
    facts that hold, and one minus the drift of untouched prompts. A refusal is worth nothing.
    """
    if row.refused:
        return 0.0
    if row.pictures is None or row.specific is None:
        holds, still = row.holds or 0.0, max(0.0, 1 - (row.drift or 0.0))
        return holds + (holds * still) ** 0.5
    general = row.pictures if row.reworded is None else row.reworded
    return row.pictures + (general * row.specific) ** 0.5


def scale(
    model: Any,
    facts: Sequence[Edit],
    counts: Iterable[int],
    grids: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    *,
    ways: Sequence[str] = WAYS[:2],
    others: Sequence[Sequence[Probe]] = (),
    keep: bool = False,
    **options: Any,
) -> list[Row]:
    """The rows of the second half of the facts, each method by the setting that did best on the first half.

    grids: method -> label -> setting, as many for each method. The choice is made at the largest count, in the first of
    the ways; a tie goes to the earlier setting. No fact is in both halves. `out`/choosing holds the rows of the first
    half, and in choice.json what was chosen. Other arguments are `scaling.scale`'s.
    """
    counts, out = sorted(set(counts)), Path(out)
    if len({len(grid) for grid in grids.values()}) != 1:
        sizes = {name: len(grid) for name, grid in grids.items()}
        raise RefactError(f"every method gets the same number of settings to choose from, not {sizes}")
    (first, second), (asked, again) = halves(facts), halves(others)
    if counts and counts[-1] > len(second):
        raise RefactError(f"each half has {len(second)} of {len(facts)} facts, not {counts[-1]}")
    tried = {label: setting for grid in grids.values() for label, setting in grid.items()}
    rows = scaling.scale(model, first, counts[-1:], tried, out / CHOOSING, ways=list(ways[:1]), others=asked, **options)
    found = {row.method: worth(row) for row in rows if (row.way, row.count) == (ways[0], counts[-1])}
    chosen = {name: max(grid, key=lambda label: found[label]) for name, grid in grids.items()}
    settings = {label: form_of(setting) for label, setting in tried.items()}
    form = {"chosen": chosen, "worth": found, "facts": [fact.name for fact in first], "settings": settings}
    disk.write(out / CHOOSING / FILE, json.dumps(form, indent=1).encode())
    best = {label: tried[label] for label in chosen.values()}
    return scaling.scale(model, second, counts, best, out, ways=ways, others=again, keep=keep, **options)
