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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import pocket
from ..edits import Edit, slug
from ..errors import DataError, EditError

FORMS = ("road", "timed", "abstract", "composite")
BUNDLED = tuple(f"pocket-{form}{end}" for form in FORMS for end in ("", "-validation"))
ROAD, TIMED = {"prompt", "oracle", "old", "new"}, {"old", "new", "gt1"}
COMPOSITE = ROAD | {"prompt2", "old2", "new2"}  # a second edit, which is made with the first
MOST_PROTECTED = 4  # prompts a case: in a small model more of them starve the edit of free directions


@dataclass(frozen=True)
class Probe:
    """A prompt and the two texts that its pictures are judged by; `oracle` is what the unedited model is given.

    Of a positive `new` is right; of a negative `old` is right, which is as a rule the prompt itself. Where a prompt
    asks for two facts, `halves` are the texts with one of them alone: as wrong as `old`.
    """

    prompt: str
    old: str
    new: str
    oracle: str
    halves: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """The texts that stand against `new`: the old one, and those with one new fact of two."""
        return (self.old, *self.halves)

    def to_json(self) -> dict:
        """Its texts; no halves where there are none."""
        return {name: text for name, text in vars(self).items() if text != ()}


@dataclass(frozen=True)
class Case:
    """One edit and its probes; `kind` is one of FORMS or the name of the study that made it.

    second: an edit that is made together with the first. The positives then ask for both facts in one picture.
    """

    id: str
    edit: Edit
    positives: tuple[Probe, ...]
    negatives: tuple[Probe, ...]
    oracle: str
    kind: str
    second: Edit | None = None

    @property
    def edits(self) -> list[Edit]:
        """What a method is given: the edit, or both."""
        return [self.edit, self.second] if self.second else [self.edit]

    @property
    def source(self) -> str:
        """The text of what the prompt means today."""
        return self.edit.old if self.edit.old and isinstance(self.edit.old, str) else self.edit.prompt

    def to_json(self) -> dict:
        """Everything that a run of this case depends on."""
        probes = {name: [p.to_json() for p in getattr(self, name)] for name in ("positives", "negatives")}
        second = {"second": self.second.to_json()} if self.second else {}
        form = {"id": self.id, "kind": self.kind, "oracle": self.oracle, "edit": self.edit.to_json()}
        return form | second | probes


def probes_of(case: Case) -> list[Probe]:
    """The edited prompts' own probes, the positives, the negatives: the order of all scores."""
    target = case.edit.new if isinstance(case.edit.new, str) else case.oracle
    own = [Probe(case.edit.prompt, case.source, target, case.oracle)]
    if case.second:
        own.append(Probe(case.second.prompt, str(case.second.old), str(case.second.new), str(case.second.new)))
    return [*own, *case.positives, *case.negatives]


def texts_of(case: Case) -> list[str]:
    """Every text whose clean embedding is needed."""
    return [text for p in probes_of(case) for text in (p.prompt, *p.others, p.new, p.oracle)]


def read_cases(data: str | Path, world: Mapping | None = None) -> tuple[list[Case], list[str]]:
    """The cases of a csv file, or of a bundled benchmark by its name, and the problems that its rows have.

    Rows in RoAD's columns that also have Prompt2, Old2 and New2 are of two edits, made together.

    world: the pocket's world (`refact.pocket.world()`), by default for the bundled files only: what an edit is told
    of its subject's other wordings and neighbours comes from there, never from the row's own probes.
    """
    path, name = Path(data), str(data)
    if name in BUNDLED:
        path = pocket.own(f"{name}.csv")
        if not path.is_file():
            raise DataError(f"{name}: comes with the fourth version of the bundled model, which is not installed here")
        world = pocket.world() if world is None else world
    elif not path.is_file():
        raise DataError(f"{name}: no such file, nor a bundled benchmark ({', '.join(BUNDLED)})")
    rows, problems = _rows(path)
    kind = _kind(path, rows[0][1].keys())
    make = _timed if kind == "timed" else _road
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


def _kind(path: Path, columns: Iterable[str]) -> str:
    """The form of a file by its columns; pocket-abstract, which has RoAD's, by its name."""
    if not set(columns) >= ROAD:
        return "timed"
    if set(columns) >= COMPOSITE:
        return "composite"
    return "abstract" if path.stem.startswith("pocket-abstract") else "road"


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
    needed: tuple[str, ...] = ("old", "new") if kind == "timed" else ("prompt", "old", "new")
    needed += ("prompt2", "old2", "new2") if kind == "composite" else ()
    if missing := [name for name in needed if not row.get(name)]:
        problems.append(f"row {number}: no {missing[0]!r}: left out")
        return None
    for end in ("", "2") if kind == "composite" else ("",):
        if alike(row[f"old{end}"], row[f"new{end}"]):
            problems.append(f"row {number}: old and new are the same text, {row[f'old{end}']!r}: left out")
            return None
    if kind == "composite" and alike(row["prompt"], row["prompt2"]):
        problems.append(f"row {number}: both edits are of one prompt, {row['prompt']!r}: left out")
        return None
    try:
        return make(kind, row, number, problems)
    except EditError as error:
        problems.append(f"row {number}: {error}: left out")
        return None


def _road(kind: str, row: dict[str, str], number: int, problems: list[str]) -> Case:
    positives = [
        (row.get(f"positive{i}", ""), row.get(f"positiveold{i}", ""), row.get(f"positivenew{i}", ""), i)
        for i in _numbers(row, "positive")
    ]
    negatives = [
        (text := row.get(f"negative{i}", ""), text, row.get(f"negativenew{i}", ""), i)
        for i in _numbers(row, "negative")
    ]
    edit = Edit(row["prompt"], old=row["old"], new=row["new"])
    case = _made(kind, edit, row.get("oracle") or row["new"], positives, negatives, row, number, problems)
    if kind != "composite":
        return case
    return named(replace(case, second=Edit(row["prompt2"], old=row["old2"], new=row["new2"])))


def _timed(kind: str, row: dict[str, str], number: int, problems: list[str]) -> Case:
    positives, negatives = (
        [(text := row.get(f"{name}{i}", ""), text, row.get(f"{right}{i}", ""), i) for i in _numbers(row, name)]
        for name, right in (("positive", "gt"), ("negative", "gn"))
    )
    edit = Edit(row["old"], old=row["old"], new=row["new"])
    return _made(kind, edit, row["new"], positives, negatives, row, number, problems)


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
            halves = _halves(kind, row, i, number, problems) if name == "positive" else ()
            probes[name].append(Probe(prompt, old, new, given, halves))
    return named(Case("", edit, tuple(probes["positive"]), tuple(probes["negative"]), oracle, kind))


def _halves(kind: str, row: dict[str, str], i: int, number: int, problems: list[str]) -> tuple[str, ...]:
    """The texts of a positive with one of its two facts: without them, one fact alone would pass for both."""
    if kind != "composite":
        return ()
    found = tuple(text for side in ("first", "second") if (text := row.get(f"positive{side}{i}", "")))
    if len(found) < 2:
        problems.append(f"row {number}: positive {i} lacks its texts with one fact alone: one may pass for both")
    return found


def named(case: Case) -> Case:
    """The case under a name of its own, which its edits bear too."""
    key = key_of(replace(case, id="", edit=replace(case.edit, name="")))
    second = case.second and replace(case.second, name=f"{key}-2")
    return replace(case, id=key, edit=replace(case.edit, name=key), second=second)


def key_of(case: Case) -> str:
    """A file name for a case: its subject and target for people, a hash of all of its texts against collisions."""
    form = case.to_json() | {"id": ""}
    digest = hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:8]
    target = case.edit.new if isinstance(case.edit.new, str) else "image"
    readable = f"{slug(case.edit.prompt)[:40]}--{slug(target)[:30]}-{digest}"
    return unicodedata.normalize("NFKD", readable).encode("ascii", "ignore").decode()


def _remarks(cases: Iterable[Case]) -> list[str]:
    cases = list(cases)
    wordings = [([e.words.casefold() for e in c.edits], p.prompt.casefold()) for c in cases for p in c.positives]
    other = sum(any(subject not in prompt for subject in subjects) for subjects, prompt in wordings)
    found = []
    if other:
        found.append(
            f"{other} of {len(wordings)} positives do not contain their subject verbatim: they test paraphrases"
        )
    if short := sum(len(c.positives) < 5 or len(c.negatives) < 5 for c in cases):
        found.append(f"{short} of {len(cases)} cases have fewer than 5 positives or 5 negatives")
    if known := sum(alike(p.prompt, e.prompt) for c in cases for p in c.negatives for e in c.edits):
        found.append(f"{known} negatives have the very prompt that is edited: no method can be right on both")
    return found


def alike(one: str, other: str) -> bool:
    """Whether two prompts differ by letter case alone."""
    return one.casefold() == other.casefold()


def told(case: Case, world: Mapping) -> Case:
    """The case with what a person who knows the world would tell a method: `hints` of each subject.

    No target is protected, nor the prompt of the other edit.
    """
    busy = [text for edit in case.edits for text in (edit.prompt, edit.new) if isinstance(text, str)]

    def knowing(edit: Edit) -> Edit:
        aliases, preserve = hints(edit.words, world)
        return replace(edit, aliases=aliases, preserve=tuple(p for p in preserve if not any(alike(p, b) for b in busy)))

    return replace(case, edit=knowing(case.edit), second=case.second and knowing(case.second))


def told_to(method: Any, edits: Sequence[Edit]) -> list[Edit]:
    """The edits as a method is given them: without aliases and protected prompts where its `hints` says so."""
    if getattr(method, "hints", True):
        return list(edits)
    return [replace(edit, aliases=(), preserve=()) for edit in edits]


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
