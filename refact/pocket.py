"""The bundled model and its world. Importing this costs nothing; set REFACT_POCKET to use another build of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import ModelError, quoted, shown

DATA = Path(__file__).parent / "data"


def _part(name: str) -> Path:
    path = Path(os.environ.get("REFACT_POCKET") or DATA) / name
    if not path.exists():
        raise ModelError(f"the pocket model is not at {path}: set REFACT_POCKET, or build it with `make pocket`")
    return path


def own(name: str) -> Path:
    """A file or folder that belongs to the bundled model: of the build in REFACT_POCKET if it has one, else ours."""
    other = Path(os.environ.get("REFACT_POCKET") or DATA) / name
    return other if other.exists() else DATA / name


def path() -> Path:
    """The folder of the StableDiffusionPipeline."""
    return _part("pocket")


def clip_path() -> Path:
    """The folder of the CLIPModel whose text tower the pipeline uses: the companion for targets by picture."""
    return _part("pocket_clip")


def judge_path() -> Path:
    """The folder of the independent CLIPModel that judges pictures; it is never edited."""
    return _part("pocket_judge")


def world() -> dict:
    """Everything the model knows: concepts with their wordings and neighbours, places, colours, prefixes."""
    return json.loads(own("world.json").read_text(encoding="utf-8"))


def neighbours(prompt: str) -> list[str]:
    """The canonical prompts next to the concept that a prompt names; none where it names no concept."""
    concepts = {concept["id"]: concept for concept in world()["concepts"]}
    named = [c for c in concepts.values() if any(w.casefold() in prompt.casefold() for w in c["wordings"])]
    if not named:
        return []
    longest = max(named, key=lambda c: max(len(w) for w in c["wordings"] if w.casefold() in prompt.casefold()))
    return [concepts[other]["wordings"][0] for other in longest["neighbours"]]


def words() -> set[str]:
    """Every word that the model has read, in lower case."""
    texts = [wording for concept in world()["concepts"] for wording in concept["wordings"]]
    return set(_split(" ".join([*texts, (path() / "captions.txt").read_text(encoding="utf-8")])))


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


def unfamiliar(model: Any, edits: Iterable[Any]) -> list[str]:
    """Lines about facts that the bundled model cannot know, whose "holds" says little; nothing for other models."""
    if model.name != "pocket":
        return []
    known, lines = words(), []
    for edit in edits:
        texts = [
            edit.prompt,
            edit.old if isinstance(edit.old, str) else "",
            edit.new if isinstance(edit.new, str) else "",
        ]
        strange = list(dict.fromkeys(word for text in texts for word in _split(text) if word not in known))
        if strange:
            said = ", ".join(map(shown, strange[:8]))
            lines.append(f"{quoted(edit.prompt)}: the bundled model has never read {said}, so what holds says little")
        elif not neighbours(edit.prompt):
            lines.append(f"{quoted(edit.prompt)}: names nothing that the bundled model knows (refact models pocket)")
    return lines


def near(model: Any, edits: Iterable[Any]) -> list[str]:
    """The first eight prompts that this world knows to be near the edits' subjects; nothing for other models."""
    return [prompt for edit in edits for prompt in neighbours(edit.prompt)][:8] if model.name == "pocket" else []
