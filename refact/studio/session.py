"""What one browser has kept: its facts as patch files in a folder of their own, and how the list came about."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..patch import Patch
from ..record import parts_of, read_record
from ..trust.disk import write

KEPT_STATES = 100  # how far back undo goes
MOST_FACTS = 200  # of one session
NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Kept:
    """A fact of the list: the patch file that makes it, how strongly, whether it is switched on, its pictures."""

    file: str
    strength: float = 1.0
    on: bool = True
    pictures: tuple[str, ...] = ()

    @property
    def in_force(self) -> bool:
        """Whether it does anything."""
        return self.on and self.strength != 0


State = tuple[Kept, ...]


class Session:
    """One browser's facts, the one that was tried last, and undo; every change is on disk before it returns.

    folder: made with the first fact. lock: held around changes, for a browser may have the page open twice.
    """

    def __init__(self, folder: Path, lock: Any = None):
        self.folder, self.lock = folder, lock or threading.RLock()
        self.states: list[State] = [()]
        self.at = 0
        self.draft: Kept | None = None
        if self._index.is_file():
            self._read()

    @property
    def _index(self) -> Path:
        return self.folder / "session.json"

    @property
    def facts(self) -> State:
        """The list as it is now."""
        return self.states[self.at]

    def path(self, kept: Kept) -> Path:
        """The patch file of a fact."""
        return self.folder / kept.file

    def patch(self, kept: Kept) -> Patch:
        """The patch of a fact."""
        return Patch.load(self.path(kept))

    def prompts(self, kept: Kept) -> list[str]:
        """The prompts that a fact's file changes, read without its tensors."""
        return [edit["prompt"] for edit in read_record(self.path(kept))["edits"]]

    def named(self, file: str) -> Kept:
        """The fact of that file. Raises DataError where the list has none."""
        found = [kept for kept in self.facts if kept.file == file]
        if not found:
            raise DataError("this fact is no longer in the list; it may have been removed in another window")
        return found[0]

    # -- changes

    def try_out(self, patch: Patch, strength: float = 1.0, pictures: Sequence[Any] = ()) -> Kept:
        """Put a patch aside as the fact that is being tried; nothing is in force by that."""
        with self._latest():
            file, names = self._store(patch, pictures)
            self.draft = Kept(file, strength, pictures=names)
            self._write()
        return self.draft

    def retry(self, kept: Kept) -> None:
        """Make a fact, as it is or with another strength, the one that is being tried."""
        with self._latest():
            self.draft = kept
            self._write()

    def keep(self) -> list[str]:
        """Add the fact that was tried to the list; the prompts of facts that it takes the place of."""
        with self._latest():
            if self.draft is None:
                raise DataError("there is no fact to keep: try one first")
            draft, self.draft = self.draft, None
            return self._add([draft])

    def discard(self) -> None:
        """Forget the fact that was tried."""
        with self._latest():
            self.draft = None
            self._write()

    def add(self, patches: Sequence[Patch]) -> list[str]:
        """Add patches to the list in one step; the prompts of facts that they take the place of."""
        with self._latest():
            return self._add([Kept(self._store(patch)[0]) for patch in patches])

    def change(self, file: str, **changes: Any) -> None:
        """Switch a fact on or off (`on`), or give it another `strength`."""
        with self._latest():
            old = self.named(file)
            new = replace(old, **changes)
            if new != old:
                self._push(tuple(new if kept.file == file else kept for kept in self.facts))

    def remove(self, file: str) -> None:
        """Take a fact out of the list."""
        with self._latest():
            self.named(file)
            self._push(tuple(kept for kept in self.facts if kept.file != file))

    @property
    def can_undo(self) -> bool:
        """Whether there was a list before this one."""
        return self.at > 0

    @property
    def can_redo(self) -> bool:
        """Whether something was undone that nothing has replaced."""
        return self.at + 1 < len(self.states)

    def undo(self) -> None:
        """The list as it was before the last change; nothing where there was none."""
        self._go(-1)

    def redo(self) -> None:
        """The change that was undone last, made again."""
        self._go(+1)

    # -- on disk

    @contextmanager
    def _latest(self) -> Iterator[None]:
        """Within the block the session is as its file tells, whatever another window has done, and nobody else's."""
        with self.lock:
            if self._index.is_file():
                self._read()
            yield

    def _go(self, step: int) -> None:
        with self._latest():
            if 0 <= self.at + step < len(self.states):
                self.at += step
                self._write()

    def _add(self, more: list[Kept]) -> list[str]:
        new = {_plain(prompt) for kept in more for prompt in self.prompts(kept)}
        files = {kept.file for kept in more}
        replaced, left = [], []
        for kept in self.facts:
            prompts = self.prompts(kept)
            same = kept.file in files or (prompts and {_plain(prompt) for prompt in prompts} <= new)
            if same:
                replaced += [] if kept.file in files else prompts
            else:
                left.append(kept)
        if len(left) + len(more) > MOST_FACTS:
            raise DataError(f"the list holds at most {MOST_FACTS} facts; `refact build` makes larger collections")
        self._push((*left, *more))
        return replaced

    def _push(self, state: State) -> None:
        self.states = [*self.states[: self.at + 1], state][-KEPT_STATES:]
        self.at = len(self.states) - 1
        self._write()

    def _store(self, patch: Patch, pictures: Sequence[Any] = ()) -> tuple[str, tuple[str, ...]]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stem = secrets.token_hex(6)
        patch.save(self.folder / f"{stem}.safetensors")
        names = tuple(f"{stem}-{number}.png" for number in range(1, len(pictures) + 1))
        for name, picture in zip(names, pictures):
            picture.save(self.folder / name)
        return f"{stem}.safetensors", names

    def _write(self) -> None:
        form = {"refact_studio": 1, "at": self.at, "states": [[asdict(kept) for kept in s] for s in self.states]}
        form["draft"] = asdict(self.draft) if self.draft else None
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(self._index, json.dumps(form).encode())
        self._sweep()

    def _sweep(self) -> None:
        """Delete the files that no state of the list names any more."""
        used = {kept for state in self.states for kept in state} | ({self.draft} if self.draft else set())
        names = {name for kept in used for name in (kept.file, *kept.pictures)}
        for file in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.png")]:
            if file.name not in names:
                file.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            form = json.loads(self._index.read_text(encoding="utf-8"))
            self.states = [tuple(_kept(entry) for entry in state) for state in form["states"]]
            self.at, self.draft = int(form["at"]), _kept(form["draft"]) if form["draft"] else None
            self.facts  # noqa: B018  raises where `at` points outside the list
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{self._index} is damaged ({error}): move it away to begin with an empty list") from None


def _kept(form: dict) -> Kept:
    kept = Kept(**form | {"pictures": tuple(form["pictures"])})
    if any(Path(name).name != name for name in (kept.file, *kept.pictures)):
        raise ValueError("a file outside the session's folder")
    return kept


def _plain(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


class Sessions:
    """All browsers' sessions under one folder. A session's name is a secret of 128 bits that its browser holds."""

    def __init__(self, folder: Path):
        self.folder, self._lock = folder, threading.RLock()

    def new(self) -> str:
        """A name that nobody can guess."""
        return secrets.token_hex(16)

    def known(self, name: Any) -> str:
        """The name if it is of the right form, else a new one: what a browser sends is never a path."""
        return name if isinstance(name, str) and NAME.fullmatch(name) else self.new()

    def open(self, name: Any) -> Session:
        """The session of that name. Raises DataError for a name of another form."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise DataError("this window has lost its session: reload the page")
        return Session(self.folder / name, self._lock)


def pieces(patch: Patch) -> list[Patch]:
    """A patch fact by fact, where its facts can be told apart; else as it is."""
    if patch.record.get("refactored") or len(parts_of(patch.record)) == 1:
        return [patch]
    return [patch[name] for name in patch.names]
