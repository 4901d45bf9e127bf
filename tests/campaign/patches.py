"""Mutated patches through all that reads them: show, load, import, verify, merge, solve, conflicts, apply."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import refact
from refact import exports
from refact import record as records
from refact.edits import Edit, read_edits
from refact.patch import Patch, from_lora, merge
from refact.stores import conflicts, solve_jointly
from refact.studio import sharing
from refact.studio.session import Session
from refact.verification import crowding, described, verify

from .. import tiny
from . import mutations
from .watch import Watch

DEEP = 5  # one file of so many goes through a model too
HOW: dict[str, Any] = {"max_steps": 2, "contexts": 2, "negatives": 2, "tokens": 1500, "layer": 1, "keep_ends": False}
FACTS = [
    Edit("the flag of Canada", old="a dog", new="a cat", aliases=("Canada's flag",), preserve=("the king",)),
    Edit("the king of france", new="a lion"),
]


def bases(model: Any, folder: Path) -> list[bytes]:
    """Whole patches of several methods."""
    methods = [
        refact.ReFACT(**HOW, hold=0.9999),
        refact.ReFACT(**HOW, hold=0.9999, ridge=0.1),
        refact.MEMIT(**HOW | {"layer": 2}, depth=2, hold=0.9999),
        refact.EmbEdit(max_steps=2, contexts=2),
    ]
    made = [method(model, FACTS[: 1 + number % 2]) for number, method in enumerate(methods)]
    made.append(merge([made[0].scaled(0.5), methods[0](model, FACTS[1:])]))
    found = []
    for number, patch in enumerate(made):
        path = folder / f"base-{number}.safetensors"
        patch.save(path)
        found.append(path.read_bytes())
    return found


def run(watch: Watch, folder: Path, first: int, last: int, seed: int) -> None:
    """The mutated patches of these numbers."""
    os.environ["REFACT_CACHE"] = str(folder / "cache")
    model = refact.load(tiny.folder("sd1", folder))
    whole = bases(model, folder)
    good = Patch.load(folder / "base-0.safetensors")
    use(watch, "a whole patch", folder / "base-0.safetensors", model, good)  # whatever is imported late is in by now
    if watch.failures:
        return
    path = folder / "mutated.safetensors"
    for number in range(first, last):
        draw = Random(f"{seed} patches {number}")
        path.write_bytes(mutations.spoil_patch(draw.choice(whole), draw))
        use(watch, f"patches {number}", path, model, good, number % DEEP == 0)


def _in_studio(watch: Watch, case: str, path: Path) -> None:
    """Uploaded, taken into a session's list, given out again as a file of facts that reads back."""
    folder = path.with_name("session")
    shutil.rmtree(folder, ignore_errors=True)
    session = Session(folder)
    pieces = watch.attempt(f"{case} studio upload", lambda: sharing.patches_of(path))
    if not pieces or watch.attempt(f"{case} studio keep", lambda: session.add(pieces[:20])) is None:
        return
    facts = watch.attempt(f"{case} studio export", lambda: sharing.exported(session, folder))
    if facts is not None and facts.suffix == ".toml" and session.prompts(session.facts[0]):
        watch.attempt(f"{case} studio read back", lambda: read_edits(facts))


def use(watch: Watch, case: str, path: Path, model: Any, good: Patch, deep: bool = True) -> None:
    """Everything that a person may do with a file; not deep: only what needs no model."""
    record = watch.attempt(f"{case} show", lambda: records.read_record(path))
    if record is not None:
        said = watch.attempt(
            f"{case} describe", lambda: f"{records.describe(path, record)}\n{exports.usage(path, record)}"
        )
        watch.check_text(f"{case} describe", said or "")
    watch.attempt(f"{case} import", lambda: from_lora(path))
    patch = watch.attempt(f"{case} load", lambda: Patch.load(path))
    if patch is None or not deep:
        return
    _in_studio(watch, case, path)
    facts = watch.attempt(f"{case} verify", lambda: verify(model, patch))
    told = watch.attempt(f"{case} tell", lambda: "\n".join([*described(facts or []), *crowding(patch.record)]))
    watch.check_text(f"{case} tell", told or "")
    watch.attempt(f"{case} merge", lambda: merge([good, patch]).save(path.with_name("merged.safetensors")))
    found = watch.attempt(f"{case} conflicts", lambda: "\n".join(map(str, conflicts(model, [patch, good]))))
    watch.check_text(f"{case} conflicts", found or "")
    watch.attempt(f"{case} solve", lambda: solve_jointly(model, [patch, good]))
    watch.attempt(f"{case} save", lambda: patch.save(path.with_name("saved.safetensors")))
