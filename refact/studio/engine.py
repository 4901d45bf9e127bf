"""One model for everybody who has the page open, behind one lock: while a patch is applied, nothing else computes."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..edits import Edit, distinct
from ..errors import PatchError, RefactError
from ..evidence.judge import Judge, check_independent, load_judge
from ..methods.usual import usual_for
from ..models.model import Model
from ..patch import Patch, merge
from ..pocket import unfamiliar
from ..stores import Conflict, conflicts, solve_jointly
from ..verification import Fact, source_of, verify

PICTURES = 400  # that are kept for drawing the same again
JOINED = 16  # patches that are kept for joining the same facts again


@dataclass(frozen=True)
class Joined:
    """All facts in force as one patch (None: no fact), and why they could not be written together, if so."""

    patch: Patch | None
    note: str = ""

    @property
    def digest(self) -> str:
        """Names the change of weights; "" for none."""
        return self.patch.digest if self.patch else ""


@dataclass(frozen=True)
class Sighting:
    """What is seen in so many pictures; None where nobody can tell.

    rather: in how many the target is seen rather than the source. target: what it is called; called: what most of the
    pictures are called; first: how many are called as the target is, with so many names to choose from. nearer: how
    many came nearer to the target's pictures.
    """

    pictures: int = 0
    rather: int | None = None
    target: str = ""
    called: str = ""
    first: int | None = None
    names: int = 0
    nearer: int | None = None


class Engine:
    """What the page asks of the model; every method may be called from any thread.

    method: how facts are searched for; by default as `usual_for` says.
    judge: folder of a CLIP that looks at pictures; the bundled model has its own.
    """

    def __init__(self, model: Model, method: Any = None, judge: str | Path | None = None):
        self.model, self.method, self.lock = model, method, threading.RLock()
        self._judge_name = judge or ("pocket" if model.name == "pocket" else None)
        self._judge: Judge | None = None
        self._pictures: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._joined: OrderedDict[tuple, Joined] = OrderedDict()

    def warm(self) -> None:
        """Load what the first edit and the first picture need."""
        self.draw(["a picture"], [0])
        with self.lock:
            self.judge  # noqa: B018

    @property
    def judge(self) -> Judge | None:
        """The CLIP that looks at pictures; None where there is none."""
        if self._judge is None and self._judge_name is not None:
            judge = load_judge(self._judge_name)
            check_independent(judge, self.model)
            self._judge = judge
        return self._judge

    # -- patches

    def search(self, edit: Edit) -> Patch:
        """The patch of one fact, found on the model as it came; facts by text all in one layer, to be joined."""
        with self.lock:
            method = self.method or usual_for(self.model, [edit] if edit.targets_images else [])
            return method(self.model, [edit])

    def check(self, patch: Patch) -> None:
        """Raises PatchError where a patch does not belong to this model."""
        with self.lock, patch.applied(self.model):
            pass

    def join(self, facts: Sequence[tuple[Patch, float]]) -> Joined:
        """One patch that makes all these facts true, each at its strength.

        They are written together, so that none moves another at its own words; where they cannot be (a file by
        another program or with other settings), they are added up, and the note says so.
        """
        key = tuple((patch.digest, tuple(patch.names), strength) for patch, strength in facts)
        with self.lock:
            if key not in self._joined:
                self._joined[key] = self._join([patch for patch, _ in facts], [strength for _, strength in facts])
                if len(self._joined) > JOINED:
                    self._joined.popitem(last=False)
            self._joined.move_to_end(key)
            return self._joined[key]

    def _join(self, patches: list[Patch], strengths: list[float]) -> Joined:
        if not patches:
            return Joined(None)
        note = ""
        if len(patches) == 1:
            whole, names = patches[0], patches[0].names
        else:
            try:
                whole = solve_jointly(self.model, patches)
                names = [edit.name for edit in distinct(edit for patch in patches for edit in patch.edits)]
            except RefactError as error:
                weakened = [patch if s == 1 else patch.scaled(s) for patch, s in zip(patches, strengths)]
                return Joined(merge(weakened), f"The facts are added up as they are, since {error}.")
        each = [strength for patch, strength in zip(patches, strengths) for _ in patch.names]
        weaker = {name: strength for name, strength in zip(names, each) if strength != 1}
        return Joined(whole.scaled(weaker) if weaker else whole, note)

    def conflicts(self, patches: Sequence[Patch]) -> list[Conflict]:
        """What stands between the facts of these patches; nothing is known of those that other programs made."""
        try:
            with self.lock:
                return conflicts(self.model, patches) if len(patches) > 1 else []
        except PatchError:  # not made by ReFACT alike: `join` says so
            return []

    # -- pictures

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], joined: Joined | None = None) -> list[Any]:
        """A picture for each prompt and seed, seeds inner; the same ones are not drawn twice."""
        jobs = [(joined.digest if joined else "", prompt, seed) for prompt in prompts for seed in seeds]
        with self.lock:
            missing = [job for job in dict.fromkeys(jobs) if job not in self._pictures]
            with self._having(joined):
                for seed in sorted({seed for _, _, seed in missing}):
                    texts = [prompt for _, prompt, at in missing if at == seed]
                    for picture in self.model.generate(texts, [seed]):
                        self._pictures[(joined.digest if joined else "", picture.prompt, seed)] = picture.image
            drawn = [self._pictures[job] for job in jobs]
            while len(self._pictures) > PICTURES:
                self._pictures.popitem(last=False)
        return drawn

    def _having(self, joined: Joined | None) -> Any:
        return joined.patch.applied(self.model) if joined and joined.patch else nullcontext()

    # -- measures

    def verified(self, joined: Joined) -> dict[str, Fact]:
        """By name, whether each fact holds on the text side; facts with a target by picture are left out."""
        if joined.patch is None:
            return {}
        texts = [edit.name for edit in joined.patch.edits if not edit.targets_images]
        others = [name for name in joined.patch.names if name not in texts]
        part, rest = (joined.patch, None) if not others else _parted(joined.patch, texts, others)
        with self.lock, self._having(Joined(rest)):
            return {fact.name: fact for fact in verify(self.model, part)} if texts and part else {}

    @torch.no_grad()
    def moved(self, before: Joined, after: Joined, prompts: Sequence[str]) -> dict[str, float]:
        """How far each prompt's text states move between two patches, relative to their own size."""
        if not prompts:
            return {}
        states = []
        with self.lock:
            for joined in (before, after):
                with self._having(joined):
                    states.append([e.states(list(prompts)).flatten(1) for e in self.model.encoders.values()])
        shares = [(b - a).norm(dim=1) / a.norm(dim=1).clamp_min(1e-12) for a, b in zip(*states)]
        return dict(zip(prompts, torch.stack(shares).amax(0).tolist()))

    def sighted(self, edit: Edit, pictures: Sequence[Any], before: Sequence[Any], names: Sequence[str]) -> Sighting:
        """What is seen in pictures of an edited prompt, by the judge, with names of things that it may choose from.

        Without a judge, for a target by picture, the companion CLIP tells whether pictures came nearer to the
        target's than they were before.
        """
        with self.lock:
            if self.judge is not None:
                return _judged(self.judge, edit, pictures, names)
            if isinstance(edit.new, str):
                return Sighting()
            target, new, old = (
                torch.nn.functional.normalize(self.model.image_features(shown), dim=1)
                for shown in (list(edit.new), list(pictures), list(before))
            )
        return Sighting(len(pictures), nearer=int(((new - old) @ target.mean(0) > 0).sum()))

    def unknown(self, edit: Edit) -> bool:
        """Whether a fact has words that the bundled model was never taught; of another model nobody can tell."""
        return bool(unfamiliar(self.model, [edit]))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Pooled states (n, d) of texts by the model's first text encoder, of length 1."""
        with self.lock:
            found = next(iter(self.model.encoders.values())).embed(list(texts))
        return torch.nn.functional.normalize(found.float(), dim=1)


def _parted(patch: Patch, texts: Sequence[str], others: Sequence[str]) -> tuple[Patch | None, Patch | None]:
    """The patch of some edits and that of the others."""
    part, rest = patch, patch
    for name in others:
        part = part.without(name)
    for name in texts:
        rest = rest.without(name)
    return part, rest


def _judged(judge: Judge, edit: Edit, pictures: Sequence[Any], names: Sequence[str]) -> Sighting:
    told = [edit.new] if isinstance(edit.new, str) else []
    choices = list(dict.fromkeys([*told, *([edit.old] if edit.old and isinstance(edit.old, str) else []), *names]))
    found = _names(judge, pictures, choices)
    target = told[0] if told else _commonest(_names(judge, edit.new, choices))
    rather = _names(judge, pictures, [target, source_of(edit)]).count(target) if told else None
    return Sighting(len(pictures), rather, target, _commonest(found), found.count(target), len(choices))


def _names(judge: Judge, pictures: Sequence[Any], choices: Sequence[str]) -> list[str]:
    """What the judge calls each picture first."""
    return [choices[at] for at in judge.logits(pictures, choices).argmax(1)]


def _commonest(names: Sequence[str]) -> str:
    return Counter(names).most_common(1)[0][0]
