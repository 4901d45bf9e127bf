"""Does a patch do what it says? The text side, in a second; `evidence.sightings` looks at pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .edits import Edit
from .encoders.encoder import TextEncoder
from .errors import EditError, quoted, shown
from .models.model import Model
from .patch import Patch

PROBES = (
    "{}",
    "a drawing of {}",
    "{} seen from far away",
    "two friends look at {}",
    "{}, black and white",
)  # not in CONTEXTS

HALF = 0.5  # of the way to the target: a fact that holds and came less far is told apart
LARGE = 0.25  # a relative change of a prompt's conditioning that its pictures are likely to show


@dataclass(frozen=True)
class Fact:
    """Whether one edit holds on the text side, and what it did to the prompts that it names.

    holds: the edited prompt's embedding is nearer to the target's clean one than to the source's.
    generality: the share of contexts never used in the search, and of wordings, where it is.
    toward: how much of the way from source to target the embedding of the prompt went (1: all of it).
    moved: relative change of the conditioning of the source, the target, the preserved prompts and the empty one.
    preserve: the prompts that the edit was to leave as they are.
    """

    name: str
    prompt: str
    holds: bool
    generality: float
    toward: float
    moved: dict[str, float] = field(default_factory=dict)
    preserve: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """A JSON-able form."""
        return asdict(self)


def visible(patch: Patch) -> list[tuple[Edit, set[str]]]:
    """The edits with a target by text that change a text encoder, whose output shows them; each with those encoders."""
    forms = zip(patch.edits, patch.record["edits"])
    found = [
        (edit, {site.partition(".")[0] for site in form["sites"]}) for edit, form in forms if not edit.targets_images
    ]
    read = [(edit, {name for name in names if name.startswith("text_encoder")}) for edit, names in found]
    return [(edit, names) for edit, names in read if names]


def unseen(patch: Patch) -> str:
    """The reason why the text encoder's output shows of no fact whether it holds; "" where it does."""
    if visible(patch):
        return ""
    if not patch.edits:
        return "a patch that tells no fact"
    return "a target by picture" if patch.edits[0].targets_images else "a patch that changes no text encoder"


def verify(
    model: Model, patch: Patch, watch: Sequence[str] = (), strength: float = 1.0, force: bool = False
) -> list[Fact]:
    """A `Fact` for each of the patch's `visible` edits, by the encoder that it moved the most; `watch`: more prompts to
    look at. Raises EditError where there are none."""
    if reason := unseen(patch):
        more = ": use pictures and a judge (--images)" if patch.edits else ""
        raise EditError(f"{reason} cannot be verified on the text side{more}")
    edits = [edit for edit, _ in visible(patch)]
    encoders = [[e for e in model.encoders.values() if e.name in names] for _, names in visible(patch)]
    named = [list(dict.fromkeys(["", source_of(edit), target_of(edit), *edit.preserve, *watch])) for edit in edits]
    clean = [[_look(e, edit, prompts) for e in some] for some, edit, prompts in zip(encoders, edits, named)]
    with patch.applied(model, strength=strength, force=force):
        dirty = [[_look(e, edit, prompts) for e in some] for some, edit, prompts in zip(encoders, edits, named)]
    return [_fact(*row) for row in zip(edits, named, clean, dirty)]


def crowding(record: dict) -> list[str]:
    """A line that says so where facts were written with a ridge, because they would crowd their matrix; else none."""
    if not any(log.get("crowded") for edit in record["edits"] for log in edit["sites"].values()):
        return []
    ridge = record["method"].get("crowded", 0.0)
    return [f"so many facts crowd one matrix: written with a ridge of {ridge:g}, they hold nearly and the rest stays"]


def climbed(record: dict) -> list[str]:
    """A line where other settings than those asked for were tried, because a fact did not hold with them."""
    if "ladder" not in record:
        return []
    tried, chosen = record["ladder"]["tried"], record["ladder"]["chosen"]
    kept = f"kept: {shown(tried[chosen]['rung'])}" if chosen else "none did better"
    return [f"with the settings asked for not every fact holds; other settings tried: {len(tried) - 1}; {kept}"]


def described(facts: Sequence[Fact]) -> list[str]:
    """Lines for a person: whether each fact holds, and how far other prompts moved. Large moves are marked.

    A prompt is listed under the first fact that names it; all facts of the patch have moved it together.
    """
    lines, listed = [], {fact.prompt for fact in facts}
    most = {prompt: max(f.moved.get(prompt, 0.0) for f in facts) for fact in facts for prompt in fact.moved}
    for fact in facts:
        verdict = "DOES NOT HOLD" if not fact.holds else "holds" if fact.toward >= HALF else "holds, BUT BARELY:"
        lines.append(f"{quoted(fact.prompt)} {verdict} (text side)")
        lines.append(
            f"  went {fact.toward:.0%} of the way to the target; {fact.generality:.0%} of other contexts follow"
        )
        for prompt in fact.moved:
            if prompt not in listed:
                listed.add(prompt)
                moved = most[prompt]
                hint = "though it was to stay" if prompt in fact.preserve else f"--preserve {quoted(prompt)}"
                warning = f"  <- changed too: {hint}" if moved > LARGE else ""
                lines.append(f"  moved {moved:8.3%}  {shown(prompt) or '(the empty prompt)'}{warning}")
    return lines


def source_of(edit: Edit) -> str:
    """What the edited prompt means today, as text."""
    return edit.old if isinstance(edit.old, str) else edit.prompt


@dataclass(frozen=True)
class _Look:
    prompts: Tensor  # pooled, every wording in every probe
    targets: Tensor  # pooled, the target in every probe
    sources: Tensor
    states: Tensor  # conditioning of the named prompts, one row each


@torch.no_grad()
def _look(encoder: TextEncoder, edit: Edit, named: list[str]) -> _Look:
    words = [edit.prompt, *edit.reworded()]
    texts = [probe.replace("{}", wording) for wording in words for probe in PROBES]
    new, old = ([probe.replace("{}", text) for probe in PROBES] for text in (target_of(edit), source_of(edit)))
    pooled = encoder.embed([*texts, *new, *old])
    prompts, targets, sources = pooled.split([len(texts), len(new), len(old)])
    return _Look(prompts, targets, sources, encoder.states(named).flatten(1))


def _fact(edit: Edit, named: list[str], clean: list[_Look], dirty: list[_Look]) -> Fact:
    nearer, toward, moved, went = [], [], [], []
    for before, after in zip(clean, dirty):
        wordings = len(after.prompts) // len(PROBES)
        new, old = before.targets.repeat(wordings, 1), before.sources.repeat(wordings, 1)
        to_new, to_old = ((after.prompts - x).norm(dim=1) for x in (new, old))
        nearer.append(to_new < to_old)
        toward.append(((after.prompts - before.prompts) * (new - before.prompts)).sum(1) / _sq(new - before.prompts))
        went.append(float((after.prompts[0] - before.prompts[0]).norm() / before.prompts[0].norm().clamp_min(1e-12)))
        moved.append((after.states - before.states).norm(dim=1) / before.states.norm(dim=1).clamp_min(1e-12))
    best = max(range(len(went)), key=went.__getitem__)
    return Fact(
        name=edit.name,
        prompt=edit.prompt,
        holds=bool(nearer[best][0]),
        generality=float(nearer[best][1:].float().mean()),
        toward=float(toward[best][0]),
        moved=dict(zip(named, torch.stack(moved).amax(0).tolist())),
        preserve=edit.preserve,
    )


def _sq(rows: Tensor) -> Tensor:
    return rows.square().sum(1).clamp_min(1e-12)


def target_of(edit: Edit) -> str:
    """What the edited prompt shall mean, as text. Raises EditError for a target by picture."""
    if not isinstance(edit.new, str):
        raise EditError("a target by picture has no text to judge by: use `refact bench`")
    return edit.new
