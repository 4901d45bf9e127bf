"""How many facts hold at once, and what else moves: the scale study, on the text side, and in pictures with a judge.

Facts are made here, as many as wanted: the bundled world's roles, flags and things, or phrases of the caption corpus
for any other encoder. A row of the study is one method, one way (at once, in sequence, or each fact alone on the
unedited model, which the others are measured against) and one number of facts.
"""

from __future__ import annotations

import functools
import json
import random
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..edits import Edit, distinct
from ..errors import RefactError
from ..evidence.bench import begin, folder_name
from ..evidence.cases import Probe, hints, told_to
from ..evidence.judge import Judge
from ..evidence.metrics import SHOWN, clip_score, fid
from ..evidence.provenance import form_of, made_of
from ..evidence.results import read_json
from ..models.corpus import captions
from ..models.model import Model
from ..models.parallel import Cluster, spread
from ..patch import Patch
from ..progress import Progress, plainly
from ..trust import disk
from ..trust.runs import rows as rows_of
from ..verification import source_of
from .looking import FEATURES, Clean, Seeing, probe_of, texts

WAYS = ("at once", "in sequence", "alone")
STEPS = 20  # patches that a sequence is made of, at most
UNTOUCHED = 1000  # prompts that no fact is about
FILE = "scale.json"  # of the study's folder
LOOKED_AT = 150  # facts, and untouched prompts, whose pictures are judged, at most


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
    residual: float | None = None  # largest miss at an edit's keys when it was written, relative to its offset
    pictures: float | None = None  # of the facts' pictures: the judge prefers the target
    reworded: float | None = None  # of pictures of the facts in other words, at places: the same
    untold: float | None = None  # the same, of words that no alias gave away
    specific: float | None = None  # of untouched prompts' pictures: the judge prefers the prompt to a fact's target
    kept: float | None = None  # the same: of all untouched prompts it names the same one as before
    clip_score: float | None = None  # of the untouched prompts' pictures, by the judge (unedited: `clip_before`)
    clip_before: float | None = None
    fid: float | None = None  # of the same pictures to those of the unedited model, on the judge's features
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


def roles(world: Mapping, seed: int = 0, told: bool = False) -> list[Edit]:
    """Every role of the world shall be another thing of its group, every flag another flag.

    told: with the other wordings that `cases.hints` gives away, all but the last.
    """
    rng, by_id = random.Random(seed), {c["id"]: c for c in world["concepts"]}
    found = []
    for concept in world["concepts"]:
        if concept["kind"] not in ("role", "flag"):
            continue
        now = by_id[concept.get("depicts", concept["id"])]
        peers = [c for c in by_id.values() if c["kind"] == now["kind"] and c["group"] == now["group"] and c != now]
        new = rng.choice(peers)["wordings"][0]
        old = now["wordings"][0] if concept["kind"] == "role" else None
        aliases = hints(concept["wordings"][0], world)[0] if told else ()
        found.append(Edit(concept["wordings"][0], old=old, new=new, aliases=aliases, name=concept["id"]))
    rng.shuffle(found)
    return found


def reworded(world: Mapping, facts: Sequence[Edit]) -> list[list[Probe]]:
    """Each of `roles` in its other wordings, the last of which no alias tells, at a place: its generality."""
    by_id, found = {c["id"]: c for c in world["concepts"]}, []
    for i, fact in enumerate(facts):
        place = world["places"][i % len(world["places"])]
        old, new = f"{source_of(fact)} {place}", f"{fact.new} {place}"
        texts = [f"{wording} {place}" for wording in by_id[fact.name]["wordings"][1:]]
        found.append([Probe(text, old, new, new) for text in texts])
    return found


def things(world: Mapping) -> list[str]:
    """Prompts that no fact of `roles` is about: every thing alone, and at some places."""
    names = [c["wordings"][0] for c in world["concepts"] if c["kind"] == "object"]
    return names + [f"{name} {place}" for place in world["places"][:4] for name in names]


@disk.alone
def scale(
    model: Model,
    facts: Sequence[Edit],
    counts: Iterable[int],
    methods: Mapping[str, Any],
    out: str | Path,
    *,
    ways: Sequence[str] = WAYS[:2],
    others: Sequence[Sequence[Probe]] = (),
    untouched: Sequence[str] = (),
    judge: Judge | None = None,
    autocast: str | None = None,
    keep: bool = False,
    cluster: Cluster | None = None,
    progress: Progress = plainly,
) -> list[Row]:
    """A row for each method, way and count; `out`/scale.json keeps them, and those that are there are not made again.

    others: each fact in other words, last those that no alias gives away. untouched: prompts that no fact is about;
    captions of the corpus by default. Raises RefactError for more facts than were given, DataError where `out` holds
    a study with other settings. keep: save the patches of the rows made now, in `out`. cluster: over whose workers the
    rows are spread, the long ones first.
    """
    path, counts = Path(out) / FILE, sorted(set(counts))
    if unknown := [way for way in ways if way not in WAYS]:
        raise RefactError(f"no way {unknown[0]!r}: there are {', '.join(WAYS)}")
    if counts and counts[-1] > len(facts):
        raise RefactError(f"{len(facts)} facts can be made here, not {counts[-1]}")
    untouched = list(untouched) or captions(UNTOUCHED, seed=991)
    rows = [row for row in read(out) if not row.refused] if path.exists() else []  # what was refused is tried again
    made = {(row.method, row.way, row.count) for row in rows}
    wanted = [(name, way, count) for name in methods for way in ways for count in counts]
    settings: dict[str, Any] = {"study": "scale", "model": made_of(model, drawn=judge is not None)}
    settings |= {"judge": judge.hash if judge else None, "autocast": autocast}
    settings |= {"methods": {name: form_of(made) for name, made in methods.items()}, "first": facts[0].to_json()}
    begin(
        path.parent,
        json.loads(
            json.dumps(settings | {"others": [p.prompt for some in others for p in some], "untouched": untouched})
        ),
        [],
    )
    units = [Unit(*unit) for unit in wanted if unit not in made]
    if cluster is not None:
        units.sort(key=lambda unit: -unit.count)
    make = functools.partial(Measuring, dict(methods), list(facts), list(others), untouched, autocast, keep)
    order = {unit: at for at, unit in enumerate(wanted)}
    before, new = rows, []
    for row, patches in progress(spread(make, [model, judge], units, cluster), "scale", len(units)):
        new.append(row)
        rows = before + sorted(new, key=lambda one: order[one.method, one.way, one.count])
        for number, patch in enumerate(patches):
            stem = f"{folder_name(row.method)}-{folder_name(row.way)}-{row.count}"
            patch.save(path.parent / f"{stem}-{number}.safetensors")
        disk.write(path, json.dumps([asdict(row) for row in rows], indent=1).encode())
    return rows


@dataclass(frozen=True)
class Unit:
    """A row that is to be made."""

    method: str
    way: str
    count: int

    def __str__(self) -> str:
        return f"{self.method} {self.way} with {self.count}"


class Measuring:
    """A model, and a judge or none, called with units: the row of each, and its patches where they are to be kept."""

    def __init__(
        self,
        methods: Mapping[str, Any],
        facts: list[Edit],
        others: list[Sequence[Probe]],
        untouched: list[str],
        autocast: str | None,
        keep: bool,
        model: Model,
        judge: Judge | None,
    ):
        self._methods, self._facts, self._others, self._untouched = methods, facts, others, untouched
        self._model, self._keep, self._clean = model, keep, Clean(model)
        self._seeing = Seeing(judge, autocast, untouched[:LOOKED_AT]) if judge else None

    def __call__(self, unit: Unit) -> tuple[Row, list[Patch]]:
        """Of one unit."""
        about = (self._facts[: unit.count], self._others[: unit.count], self._untouched)
        row, patches = _row(self._model, unit, self._methods[unit.method], *about, self._clean, self._seeing)
        return row, patches if self._keep else []


def _row(
    model: Model,
    unit: Unit,
    method: Any,
    facts: list[Edit],
    others: list[Sequence[Probe]],
    untouched: list[str],
    clean: Clean,
    seeing: Seeing | None,
) -> tuple[Row, list[Patch]]:
    begun, name, way = time.perf_counter(), unit.method, unit.way
    try:
        patches = _MAKERS[way](model, told_to(method, facts), method)
    except RefactError as error:
        return Row(name, way, len(facts), refused=str(error), megabytes=peak()), []
    seconds = (time.perf_counter() - begun) / len(facts)
    logs = [log for patch in patches for form in patch.record["edits"] for log in form["sites"].values()]
    found: dict[str, list] = {}
    parts = len(facts) if way == "alone" else 1  # each fact alone answers for a part of the untouched prompts
    for i in range(parts):
        active, mine = patches[i::parts], facts[i::parts]
        seen = texts(model, clean, mine, active, untouched[i % len(untouched) :: parts])
        if seeing:
            shown, again = ([*map(probe_of, facts)][:LOOKED_AT][i::parts], others[:LOOKED_AT][i::parts])
            seen |= seeing(model, shown, again, seeing.untouched[i % len(seeing.untouched) :: parts], active)
        for key, values in seen.items():
            found.setdefault(key, []).extend(values)
    scores = _quality(*(found.pop(name, []) for name in FEATURES))
    shares: dict[str, Any] = scores | {key: float(np.mean(values)) for key, values in found.items() if values}
    shares |= {"first": float(np.mean(found["holds"][:10])), "drift_95": float(np.quantile(found["drift"], 0.95))}
    shares |= {"residual": max((log["residual"] for log in logs if "residual" in log), default=None)}
    steps = float(np.mean([log.get("steps") or 0 for log in logs]))
    return Row(name, way, len(facts), seconds=seconds, steps=steps, megabytes=peak(), **shares), patches


def _quality(texts: list[np.ndarray], before: list[np.ndarray], after: list[np.ndarray]) -> dict[str, float]:
    if not texts:
        return {}
    said, one, other = np.stack(texts), np.stack(before), np.stack(after)
    scores = {"clip_score": clip_score(other, said), "clip_before": clip_score(one, said)}
    return scores | ({"fid": fid(other, one)} if len(one) > 1 else {})


def at_once(model: Model, facts: Sequence[Edit], method: Any) -> list[Patch]:
    """All facts in one patch."""
    return [method(model, facts)]


def alone(model: Model, facts: Sequence[Edit], method: Any) -> list[Patch]:
    """A patch for each fact, made on the unedited model without regard to the others."""
    return [method(model, [fact]) for fact in facts]


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


_MAKERS = {"at once": at_once, "in sequence": sequence, "alone": alone}


def read(folder: str | Path) -> list[Row]:
    """The rows of a study's folder."""
    path = Path(folder) / FILE
    return rows_of(Row, read_json(path, "its rows are made again"), str(path))


SHARES = {  # the columns of a table, and what is drawn as a curve
    "holds": ("hold", "Facts that hold on the text side."),
    "first": ("first ten", ""),
    "drift": ("drift", "How far the pooled states of untouched prompts move, relative, mean."),
    "drift_95": ("drift at 95 %", ""),
    "pictures": ("pictures", "Facts whose picture the judge takes for the target."),
    "reworded": ("reworded", "The same in other words, at a place."),
    "untold": ("untold", "The same in words that no alias gave away."),
    "specific": ("specific", "Untouched prompts whose picture the judge does not take for a fact's target."),
    "kept": ("kept", "Untouched prompts whose picture gets the same name as before, of all of them."),
}
SCORES = {"clip_score": SHOWN["clip_score"], "clip_before": ("CLIP score before", 1), "fid": SHOWN["fid"]}


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as a table's cells, heads first."""
    measures = [head for head, _ in SHARES.values()] + [head for head, _ in SCORES.values()]
    table = [["method", "way", "facts", *measures, "residual", "s an edit", "steps", "MB"]]
    for row in rows:
        found = [_cell(getattr(row, name), 100, " %") for name in SHARES]
        found += [_cell(getattr(row, name), scale) for name, (_, scale) in SCORES.items()]
        found += ["-" if row.residual is None else f"{row.residual:.0e}"]
        found += [f"{row.seconds:.2f}", f"{row.steps:.0f}", f"{row.megabytes:.0f}"]
        rest = [row.refused, *[""] * (len(found) - 1)] if row.refused else found
        table.append([row.method, row.way, str(row.count), *rest])
    return table


def _cell(value: float | None, scale: float = 1, unit: str = "") -> str:
    return "-" if value is None else f"{scale * value:.1f}{unit}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    heads, *body = ["| " + " | ".join(row) + " |" for row in cells(rows)]
    return "\n".join([heads, "|---|---|" + "--:|" * (heads.count("|") - 3), *body])
