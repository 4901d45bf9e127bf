"""Cases: an edit with the prompts that probe it, read from csv files in RoAD's or TIMED's columns.

What is wrong with a file is said in a list of problems; a row that cannot be used is named there and left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..edits import Edit, slug
from ..errors import DataError, EditError

BUNDLED = ("pocket-road", "pocket-road-validation", "pocket-timed", "pocket-timed-validation")
ROAD, TIMED = {"prompt", "oracle", "old", "new"}, {"old", "new", "gt1"}
MOST_PROTECTED = 4  # prompts a case: in a small model more of them starve the edit of free directions


@dataclass(frozen=True)
class Probe:
    """A prompt and the two texts that its pictures are judged by; `oracle` is what the unedited model is given.

    Of a positive `new` is right; of a negative `old` is right, which is as a rule the prompt itself.
    """

    prompt: str
    old: str
    new: str
    oracle: str


@dataclass(frozen=True)
class Case:
    """One edit and its probes; `kind` is "road", "timed" or the name of the study that made it."""

    id: str
    edit: Edit
    positives: tuple[Probe, ...]
    negatives: tuple[Probe, ...]
    oracle: str
    kind: str

    @property
    def source(self) -> str:
        """The text of what the prompt means today."""
        return self.edit.old if self.edit.old and isinstance(self.edit.old, str) else self.edit.prompt

    def to_json(self) -> dict:
        """Everything that a run of this case depends on."""
        probes = {name: [vars(p) for p in getattr(self, name)] for name in ("positives", "negatives")}
        return {"id": self.id, "kind": self.kind, "oracle": self.oracle, "edit": self.edit.to_json(), **probes}


def probes_of(case: Case) -> list[Probe]:
    """The edit prompt's own probe, the positives, the negatives: the order of all scores."""
    target = case.edit.new if isinstance(case.edit.new, str) else case.oracle
    return [Probe(case.edit.prompt, case.source, target, case.oracle), *case.positives, *case.negatives]


def texts_of(case: Case) -> list[str]:
    """Every text whose clean embedding is needed."""
    return [text for p in probes_of(case) for text in (p.prompt, p.old, p.new, p.oracle)]


def read_cases(data: str | Path, world: Mapping | None = None) -> tuple[list[Case], list[str]]:
    """The cases of a csv file, or of a bundled benchmark by its name, and the problems that its rows have.

    world: the pocket's world (`refact.pocket.world()`), by default for the bundled files only: what an edit is told
    of its subject's other wordings and neighbours comes from there, never from the row's own probes.
    """
    path, name = Path(data), str(data)
    if name in BUNDLED:
        path = Path(__file__).parents[1] / "data" / f"{name}.csv"
        world = bundled_world() if world is None else world
    elif not path.is_file():
        raise DataError(f"{name}: no such file, nor a bundled benchmark ({', '.join(BUNDLED)})")
    rows, problems = _rows(path)
    kind = "road" if rows[0][1].keys() >= ROAD else "timed"
    make = _road if kind == "road" else _timed
    found: dict[str, Case] = {}
    for number, row in rows:
        if case := _case(make, kind, number, row, problems):
            if case.id in found:
                problems.append(f"row {number}: repeats an earlier row: left out")
            else:
                found[case.id] = case
    if not found:
        raise DataError(f"{path}: no row can be used: " + "; ".join(problems[:5]))
    return [told(case, world or {}) for case in found.values()], problems + _remarks(found.values())


def bundled_world() -> Mapping:
    """What the pocket model knows."""
    from .. import pocket

    return pocket.world()


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in line)]
    header = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in lines[0]] if lines else []
    if not (set(header) >= ROAD or set(header) >= TIMED):
        raise DataError(
            f"{path}: needs RoAD's columns (Prompt, Oracle, Old, New, Positive1, ...) "
            f"or TIMED's (old, new, positive1, gt1, ...); it has {', '.join(lines[0]) if lines else 'none'}"
        )
    if len(lines) == 1:
        raise DataError(f"{path}: has a header and no rows")
    rows, problems = [], []
    for number, line in enumerate(lines[1:], 1):
        if len(line) > len(header):
            problems.append(f"row {number}: has {len(line)} cells under {len(header)} columns: left out")
        else:
            rows.append((number, dict(zip(header, map(clean, line)))))
    if not rows:
        raise DataError(f"{path}: no row can be used: " + "; ".join(problems[:5]))
    return rows, problems


def clean(text: str) -> str:
    """NFC, with single spaces and no line breaks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _case(make, kind: str, number: int, row: dict[str, str], problems: list[str]) -> Case | None:
    needed = ("prompt", "old", "new") if kind == "road" else ("old", "new")
    if missing := [name for name in needed if not row.get(name)]:
        problems.append(f"row {number}: no {missing[0]!r}: left out")
        return None
    if row["old"].casefold() == row["new"].casefold():
        problems.append(f"row {number}: old and new are the same text, {row['old']!r}: left out")
        return None
    try:
        return make(row, number, problems)
    except EditError as error:
        problems.append(f"row {number}: {error}: left out")
        return None


def _road(row: dict[str, str], number: int, problems: list[str]) -> Case:
    positives = [
        (row.get(f"positive{i}", ""), row.get(f"positiveold{i}", ""), row.get(f"positivenew{i}", ""), i)
        for i in _numbers(row, "positive")
    ]
    negatives = [
        (text := row.get(f"negative{i}", ""), text, row.get(f"negativenew{i}", ""), i)
        for i in _numbers(row, "negative")
    ]
    edit = Edit(row["prompt"], old=row["old"], new=row["new"])
    return _made("road", edit, row.get("oracle") or row["new"], positives, negatives, row, number, problems)


def _timed(row: dict[str, str], number: int, problems: list[str]) -> Case:
    positives, negatives = (
        [(text := row.get(f"{name}{i}", ""), text, row.get(f"{right}{i}", ""), i) for i in _numbers(row, name)]
        for name, right in (("positive", "gt"), ("negative", "gn"))
    )
    edit = Edit(row["old"], old=row["old"], new=row["new"])
    return _made("timed", edit, row["new"], positives, negatives, row, number, problems)


def _numbers(row: dict[str, str], name: str) -> list[int]:
    return sorted(int(key.removeprefix(name)) for key in row if re.fullmatch(name + r"\d+", key))


def _made(kind, edit: Edit, oracle: str, positives, negatives, row, number: int, problems: list[str]) -> Case:
    probes: dict[str, list[Probe]] = {"positive": [], "negative": []}
    for name, group in (("positive", positives), ("negative", negatives)):
        for prompt, old, new, i in group:
            if not (prompt and old and new):
                if prompt or new or (old and name == "positive"):
                    problems.append(f"row {number}: {name} {i} is not whole: that probe is left out")
                continue
            if old.casefold() == new.casefold():
                problems.append(f"row {number}: {name} {i} has one text for old and new, {old!r}: it is never right")
            given = row.get(f"positiveoracle{i}") or new if name == "positive" else prompt
            probes[name].append(Probe(prompt, old, new, given))
    case = Case("", edit, tuple(probes["positive"]), tuple(probes["negative"]), oracle, kind)
    key = key_of(case)
    return replace(case, id=key, edit=replace(edit, name=key))


def key_of(case: Case) -> str:
    """A file name for a case: its subject and target for people, a hash of all of its texts against collisions."""
    form = case.to_json() | {"id": ""}
    digest = hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:8]
    target = case.edit.new if isinstance(case.edit.new, str) else "image"
    readable = f"{slug(case.edit.prompt)[:40]}--{slug(target)[:30]}-{digest}"
    return unicodedata.normalize("NFKD", readable).encode("ascii", "ignore").decode()


def _remarks(cases: Iterable[Case]) -> list[str]:
    cases = list(cases)
    wordings = [(c.edit.words.casefold(), p.prompt.casefold()) for c in cases for p in c.positives]
    other = sum(subject not in prompt for subject, prompt in wordings)
    found = []
    if other:
        found.append(
            f"{other} of {len(wordings)} positives do not contain their subject verbatim: they test paraphrases"
        )
    if short := sum(len(c.positives) < 5 or len(c.negatives) < 5 for c in cases):
        found.append(f"{short} of {len(cases)} cases have fewer than 5 positives or 5 negatives")
    if known := sum(alike(p.prompt, c.edit.prompt) for c in cases for p in c.negatives):
        found.append(f"{known} negatives have the very prompt that is edited: no method can be right on both")
    return found


def alike(one: str, other: str) -> bool:
    """Whether two prompts differ by letter case alone."""
    return one.casefold() == other.casefold()


def told(case: Case, world: Mapping) -> Case:
    """The case with what a person who knows the world would tell a method: `hints` of its subject."""
    aliases, preserve = hints(case.edit.words, world)
    target = case.edit.new if isinstance(case.edit.new, str) else ""
    kept = tuple(p for p in preserve if not alike(p, target))
    return replace(case, edit=replace(case.edit, aliases=aliases, preserve=kept))


def hints(subject: str, world: Mapping) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Other wordings of a subject and prompts near it to protect, from the world alone.

    The last of the other wordings is never told, nor are the neighbours at even places (from 0): they are what a
    benchmark may test with.
    """
    concepts = {concept["id"]: concept for concept in world.get("concepts", ())}
    named = [c for c in concepts.values() if any(alike(w, subject) for w in c["wordings"])]
    if not named:
        return (), ()
    others = [w for w in named[0]["wordings"] if not alike(w, subject)]
    near = [concepts[i] for i in named[0].get("neighbours", ()) if i in concepts]
    return tuple(others[:-1]), tuple(c["wordings"][0] for c in near[1::2])[:MOST_PROTECTED]
