"""What a trial found, in sentences for somebody who knows nothing of text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..edits import Edit
from ..stores import Conflict
from ..verification import LARGE, Fact, source_of
from .engine import Sighting

STILL = 0.05  # a relative change of a prompt's text states that nobody will see in its pictures
READ = ", as the model reads the words"
JUDGE = "A second model, which judges pictures,"
UNKNOWN = "The small model was never taught what these words mean, so whatever follows says little."
Line = tuple[str, str]  # (tone: "good", "warn", "bad" or "plain", a sentence)


@dataclass(frozen=True)
class Verdict:
    """holds, contexts: in how many it holds (None: only pictures can tell). sighting: what is seen in its pictures.

    moved: of each prompt that was to stay, the relative change. broken: kept facts that no longer hold. unknown:
    whether the fact has words that the bundled model was never taught.
    """

    holds: int | None = None
    contexts: int = 0
    sighting: Sighting = field(default_factory=Sighting)
    moved: Mapping[str, float] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    clashes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unknown: bool = False

    @property
    def shaken(self) -> list[str]:
        """The prompts that were to stay and have probably changed in pictures too, the worst first."""
        return [p for p, share in sorted(self.moved.items(), key=lambda pair: -pair[1]) if share > LARGE]


def counted(fact: Fact, probes: int, wordings: int) -> tuple[int, int]:
    """In how many of the contexts of all wordings a fact holds, and how many there are."""
    total = probes * wordings
    return round(fact.generality * (total - 1)) + fact.holds, total


def sentences(edit: Edit, verdict: Verdict) -> list[Line]:
    """The verdict, the most important first."""
    return [
        *([("warn", UNKNOWN)] if verdict.unknown else []),
        *_held(verdict),
        *_pictured(edit, verdict),
        *_stayed(verdict),
        *(("bad", f"The fact about “{prompt}”, which you kept before, no longer holds.") for prompt in verdict.broken),
        *(("warn", sentence) for sentence in verdict.clashes),
        *(("plain", sentence) for sentence in verdict.notes),
    ]


def _held(v: Verdict) -> list[Line]:
    if v.holds is None:
        return []
    if v.holds == v.contexts:
        return [("good", f"It holds in {v.holds} of {v.contexts} contexts{READ}.")]
    tone = _tone(v.holds, v.contexts)
    more = " Try a higher strength, or other words for the new meaning." if tone == "bad" else ""
    return [(tone, f"It holds in only {v.holds} of {v.contexts} contexts{READ}.{more}")]


def _pictured(edit: Edit, v: Verdict) -> list[Line]:
    s = v.sighting
    if s.nearer is not None:
        told = f"{s.nearer} of {s.pictures} pictures came nearer to yours; look at them to see whether near enough."
        return [("plain" if s.nearer == s.pictures else _tone(s.nearer, s.pictures), told)]
    if s.first is None:
        return []
    if s.rather is None:
        most = "" if s.called == s.target else f"; most of them it calls “{s.called}”"
        what = f"“{s.target}”, and so {s.first} of {s.pictures} pictures after the change{most}"
        return [(_tone(s.first, s.pictures), f"{JUDGE} calls yours {what}.")]
    what = f"“{s.target}” rather than “{source_of(edit)}” in {s.rather} of {s.pictures} pictures"
    lines = [(_tone(s.rather, s.pictures), f"{JUDGE} sees {what}.")]
    if 2 * s.first < s.pictures and s.called != s.target:
        lines.append(("warn", f"With {s.names} names to choose from, it calls most of them “{s.called}”."))
    return lines


def _tone(count: int, total: int) -> str:
    return "good" if count == total else "warn" if 2 * count >= total else "bad"


def _stayed(v: Verdict) -> list[Line]:
    if not v.moved:
        return []
    shaken = v.shaken
    lines = [("warn", f"“{p}” moved by {share(v.moved[p])}: its picture has probably changed too.") for p in shaken]
    calm = {prompt: moved for prompt, moved in v.moved.items() if prompt not in shaken}
    if calm:
        furthest = max(calm, key=lambda prompt: calm[prompt])
        still = calm[furthest] <= STILL
        who = "The others" if shaken else "The prompts near it"
        how = "stayed" if still else "moved a little"
        said = f"{who} {how}: “{furthest}” the most, by {share(calm[furthest])}."
        lines.append(("good" if still else "plain", said))
    return lines


def share(value: float) -> str:
    """ "2 %", "0.3 %", "less than 0.1 %"."""
    percent = 100 * value
    if percent < 0.1:
        return "less than 0.1 %"
    return f"{percent:.0f} %" if percent >= 2 else f"{percent:.1f} %"


def clash(conflict: Conflict, prompts: Mapping[str, str]) -> str:
    """A conflict between two facts as a sentence; prompts: what the facts are about, by their names."""
    one, other = (f"“{prompts.get(name, name)}”" for name in (conflict.first, conflict.second))
    return {
        "target": f"{one} and {other} say two different things of the same words: only one should be on.",
        "twice": f"{one} and {other} are the same fact, twice.",
        "overlap": f"{one} and {other} are {conflict.size:.0%} alike to the model, so one may spoil the other.",
        "harm": f"{other} would move {one} by {conflict.size:.0%} of its own change, "
        "if the two were not written together.",
    }[conflict.kind]


def clashes(conflicts: Sequence[Conflict], prompts: Mapping[str, str]) -> tuple[str, ...]:
    """The sentences of the conflicts that remain when facts are written together, each said once."""
    return tuple(dict.fromkeys(clash(c, prompts) for c in conflicts if c.kind != "harm"))
