"""What the page proposes for a fact: what its words mean today, where they lie, how else they are said, what is near.

The bundled model's world is known; for another model the meaning is the nearest of a list of things and people.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from .. import pocket
from ..models.aliases import propose_aliases
from ..models.corpus import VOWEL_SOUND
from .engine import Engine

THINGS = ("animals", "foods", "plants", "vehicles", "buildings", "instruments", "people")  # of data/words.json
CHUNK = 64  # texts that are embedded before others get their turn
SIBLINGS = ("France", "Japan", "Brazil")  # whose things are looked at beside another country's
MOST_NEAR = 6


@dataclass(frozen=True)
class Proposal:
    """What goes into the form; "" and () where nothing is known. source: who says what the words mean today."""

    subject: str = ""
    old: str = ""
    source: str = ""
    aliases: tuple[str, ...] = ()
    other_aliases: tuple[str, ...] = ()  # by pattern: offered, not taken
    near: tuple[str, ...] = ()


class Proposer:
    """Proposals for one model."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._list: tuple[list[str], torch.Tensor] | None = None

    @cached_property
    def world(self) -> dict[str, dict]:
        """The bundled world's concepts by their names; empty for another model."""
        if self.engine.model.name != "pocket":
            return {}
        return {concept["id"]: concept for concept in pocket.world()["concepts"]}

    @cached_property
    def names(self) -> list[str]:
        """What a picture may be called: the things and flags of the world, else the list of things and people."""
        return [c["wordings"][0] for c in self.world.values() if "depicts" not in c] or things()

    def known(self, prompt: str) -> Proposal:
        """What the bundled world knows of a prompt, at once and without the model."""
        prompt = " ".join(prompt.split())
        said = [(wording, c) for c in self.world.values() for wording in c["wordings"] if _says(prompt, wording)]
        if not said:
            return Proposal(other_aliases=propose_aliases(prompt) if prompt else ())
        wording, concept = max(said, key=lambda pair: len(pair[0]))
        shown = self.world[concept["depicts"]]["wordings"][0] if concept.get("depicts") in self.world else wording
        at = prompt.casefold().find(wording.casefold())
        aliases = tuple(w for w in concept["wordings"] if w != wording)
        near = tuple(self.world[other]["wordings"][0] for other in concept["neighbours"] if other in self.world)
        return Proposal(
            subject="" if at < 0 or len(wording) == len(prompt) else prompt[at : at + len(wording)],
            old="" if shown.casefold() == prompt.casefold() else shown,
            source="the bundled model's own world",
            aliases=aliases,
            other_aliases=tuple(a for a in propose_aliases(wording) if a not in aliases),
            near=near[:MOST_NEAR],
        )

    def nearest(self, prompt: str) -> Proposal:
        """The same, with the nearest meaning of the list where the world knows none; asks the model."""
        known = self.known(prompt)
        prompt = " ".join(prompt.split())
        if known.source or not prompt:
            return known
        texts, states = self._meanings()
        order = (states @ self.engine.embed([prompt])[0]).argsort(descending=True).tolist()
        found = [texts[at] for at in order if not _says(prompt, _bare(texts[at]))]
        near = (*siblings(prompt), *found[1:3])
        source = f"the nearest of {len(texts)} things and people; correct it if it is wrong"
        if self.world:
            source = f"the nearest of {len(texts)} things, for the small model does not know these words"
        return Proposal("", found[0], source, (), known.other_aliases, near[:MOST_NEAR])

    def _meanings(self) -> tuple[list[str], torch.Tensor]:
        """The list with its states; read once."""
        if self._list is None:
            texts = self.names
            parts = [self.engine.embed(texts[at : at + CHUNK]) for at in range(0, len(texts), CHUNK)]
            self._list = texts, torch.cat(parts)
        return self._list


def things() -> list[str]:
    """Names of things with their article, then names of people, of the package's lists of words."""
    form = json.loads((Path(__file__).parents[1] / "data" / "words.json").read_text(encoding="utf-8"))
    nouns = dict.fromkeys(noun for name in THINGS for noun in form[name].split(", "))
    return [f"{'an' if VOWEL_SOUND.match(noun) else 'a'} {noun}" for noun in nouns] + form["persons"].split(", ")


def siblings(prompt: str) -> tuple[str, ...]:
    """The same of other countries: "the flag of Canada" -> "the flag of France"; nothing for other prompts."""
    what, of, owner = prompt.rpartition(" of ")
    if not of or not what.casefold().startswith("the ") or not owner[:1].isupper():
        return ()
    return tuple(f"{what} of {other}" for other in SIBLINGS if other.casefold() != owner.casefold())


def watched(proposal: Proposal, preserve: Sequence[str], prompt: str) -> list[str]:
    """The prompts beside a fact that are looked at: those that must stay, then those that are near."""
    prompts = dict.fromkeys((*preserve, *proposal.near))
    return [text for text in prompts if text.casefold() != prompt.casefold()][:MOST_NEAR]


def _says(prompt: str, words: str) -> bool:
    return f" {words.casefold()} " in f" {prompt.casefold()} ".replace(",", " ").replace("  ", " ")


def _bare(text: str) -> str:
    return text.partition(" ")[2] if text.startswith(("a ", "an ")) else text
