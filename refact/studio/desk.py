"""What the page does for a browser, without a word of how it looks: everything here can be tested without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..edits import Edit, slug
from ..errors import EditError, RefactError
from ..exports import usage
from ..patch import Patch
from . import sharing
from .engine import Engine, Joined
from .proposals import Proposer, watched
from .session import Kept, Session, Sessions
from .trial import Trial, tried
from .verdict import clashes

LONGEST = 300  # characters of a text
MOST = 40  # wordings, or prompts that must stay


@dataclass
class Form:
    """What a person wrote about a fact, as it came from the page."""

    prompt: str = ""
    new: str = ""
    pictures: Sequence[str] = ()  # paths of uploads
    old: str = ""
    subject: str = ""
    aliases: Sequence[str] = ()
    preserve: Sequence[str] = ()

    def edit(self) -> Edit:
        """The fact. Raises RefactError with a sentence on what is missing or too much."""
        prompt, new, old, subject = (
            " ".join((t or "").split()) for t in (self.prompt, self.new, self.old, self.subject)
        )
        aliases, preserve = _texts(self.aliases), _texts(self.preserve)
        if not prompt:
            raise EditError(
                "Write the words that shall change their meaning, for example: the national animal of Canada"
            )
        if not new and not self.pictures:
            raise EditError("Write what these words shall mean, or give pictures of it.")
        if new and self.pictures:
            raise EditError("Give either the new meaning in words or pictures of it, not both.")
        if new.casefold() in (prompt.casefold(), old.casefold()):
            raise EditError(f"“{new}” is what the words mean today: there is nothing to change.")
        if max(map(len, (prompt, new, old, subject, *aliases, *preserve))) > LONGEST:
            raise EditError(f"A text has at most {LONGEST} characters.")
        if len(aliases) > MOST or len(preserve) > MOST:
            raise EditError(f"At most {MOST} other wordings, and {MOST} prompts that must stay.")
        if subject and subject.casefold() not in prompt.casefold():
            raise EditError(f"“{subject}” is not a part of “{prompt}”.")
        target: Any = new or sharing.pictures_of(self.pictures)
        return Edit(prompt, target, old or None, subject or None, aliases, preserve)


def form_of(edit: Edit) -> Form:
    """A fact as it stands in the form; its pictures are not uploaded again."""
    new = edit.new if isinstance(edit.new, str) else ""
    old = edit.old if isinstance(edit.old, str) else ""
    return Form(edit.prompt, new, (), old, edit.subject or "", list(edit.aliases), list(edit.preserve))


@dataclass
class Shared:
    """What a list of facts amounts to. file: to download; usage: how other programs load it."""

    count: int
    file: Path | None = None
    listed: Path | None = None  # facts.toml or facts.zip
    usage: str = ""
    lines: tuple[str, ...] = ()  # conflicts, and what else there is to say


@dataclass
class Desk:
    """Engine, sessions and folders of one server. served: where files for download are put; runs: reports' source."""

    engine: Engine
    sessions: Sessions
    served: Path
    runs: Path
    _jobs: dict[str, threading.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.proposer = Proposer(self.engine)

    # -- jobs

    def begin(self, name: str) -> None:
        """A job of this session is about to wait for the model; from now on it can be cancelled."""
        self._jobs[name] = threading.Event()

    def cancel(self, name: str) -> None:
        """The session's job ends at its next step."""
        if name in self._jobs:
            self._jobs[name].set()

    # -- trials

    def try_out(self, name: str, form: Form, strength: float = 1.0) -> Iterator[Trial]:
        """The steps of trying the fact of a form; its patch is put aside as the session's draft."""
        edit = form.edit()
        session = self.sessions.open(name)
        taken = [edit.name for kept in session.facts for edit in session.patch(kept).edits]
        edit = replace(edit, name=_unused(slug(edit.words), taken))
        near = watched(self.proposer.nearest(edit.prompt), edit.preserve, edit.prompt)
        stored = False
        for trial in self._tried(name, session, edit, near, strength, None):
            if trial.patch is not None and not trial.cancelled and not stored:
                pictures = () if isinstance(edit.new, str) else edit.new
                session.try_out(trial.patch, strength, pictures)
                stored = True
            yield trial

    def look(self, name: str, kept: Kept, strength: float | None = None) -> Iterator[Trial]:
        """The steps of looking at a fact that was found before; it becomes the session's draft."""
        session = self.sessions.open(name)
        patch = session.patch(kept)
        if not patch.edits:
            raise EditError("This file came from another program and does not tell its words: use the gallery.")
        edit, chosen = patch.edits[0], kept.strength if strength is None else strength
        if edit.targets_images:
            edit = replace(edit, new=sharing.pictures_of([session.folder / name for name in kept.pictures]))
        session.retry(replace(kept, strength=chosen, on=True))
        near = watched(self.proposer.nearest(edit.prompt), edit.preserve, edit.prompt)
        yield from self._tried(name, session, edit, near, chosen, patch)

    def _tried(
        self, name: str, session: Session, edit: Edit, near: Sequence[str], strength: float, patch: Patch | None
    ) -> Iterator[Trial]:
        job = self._jobs.setdefault(name, threading.Event())
        others = self.in_force(session, but=edit.prompt)
        return tried(self.engine, edit, others, near, strength, patch, self.proposer.names, stopped=job.is_set)

    def in_force(self, session: Session, but: str = "") -> list[tuple[Patch, float]]:
        """The facts that are switched on, as (patch, strength), without the ones about the prompt `but`."""
        chosen = [kept for kept in session.facts if kept.in_force]
        if but:
            chosen = [kept for kept in chosen if but.casefold() not in (p.casefold() for p in session.prompts(kept))]
        return [(session.patch(kept), kept.strength) for kept in chosen]

    # -- what is shared

    def shared(self, name: str) -> Shared:
        """The session's facts as one file, as a list, and what there is to say of them."""
        session = self.sessions.open(name)
        facts = self.in_force(session)
        found = Shared(len(facts))
        if any(kept.on for kept in session.facts):
            found.listed = sharing.exported(session, self.served)
        if not facts:
            return found
        joined = self.engine.join(facts)
        assert joined.patch is not None
        found.file = sharing.fresh(self.served, sharing.file_name(joined.patch))
        joined.patch.save(found.file)
        found.usage = usage(found.file, joined.patch.record, found.file.name)
        named = {edit.name: edit.prompt for edit in joined.patch.edits}
        between = clashes(self.engine.conflicts([patch for patch, _ in facts]), named)
        found.lines = (*between, *([joined.note] if joined.note else []))
        return found

    def load(self, name: str, path: str | Path) -> tuple[int, list[str]]:
        """Add the facts of an uploaded file: how many, and the prompts of facts that they replace."""
        patches = sharing.patches_of(path)
        for patch in patches:
            self.engine.check(patch)
        return len(patches), self.sessions.open(name).add(patches)

    # -- pictures over seeds

    def gallery(self, name: str, prompt: str, seeds: Sequence[int]) -> Iterator[tuple[int, Any, Any]]:
        """(seed, picture of the model as it came, with the facts in force or None), one after the other."""
        prompt = " ".join((prompt or "").split())
        if not prompt:
            raise EditError("Write what shall be drawn.")
        if len(prompt) > LONGEST:
            raise EditError(f"A text has at most {LONGEST} characters.")
        facts = self.in_force(self.sessions.open(name))
        joined, job = self.engine.join(facts), self._jobs.setdefault(name, threading.Event())
        for seed in seeds:
            if job.is_set():
                return
            (before,) = self.engine.draw([prompt], [seed], Joined(None))
            (after,) = self.engine.draw([prompt], [seed], joined) if facts else (None,)
            yield seed, before, after


def _texts(texts: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for line in texts or () if (text := " ".join(str(line).split()))))


def _unused(name: str, taken: Sequence[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def sentence(error: RefactError) -> str:
    """An error's text as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "”")) else ".")
