"""What the scale study looks at: pooled states of texts, and a judge's answers about pictures, before and after."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..encoders.encoder import TextEncoder
from ..evidence.cases import Probe
from ..evidence.judge import Judge
from ..models.model import Model
from ..patch import Patch
from ..verification import source_of

FEATURES = ("texts", "before", "after")  # of untouched prompts, by the judge


class Clean:
    """Pooled states under the unedited encoder; every list of texts is read once, in batches that are its own."""

    def __init__(self, model: Model):
        self._encoder = _encoder(model)
        self._known: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Of these texts."""
        if (key := tuple(texts)) not in self._known:
            self._known[key] = self._encoder.embed(key)
        return self._known[key]


def _encoder(model: Model) -> TextEncoder:
    """The first text encoder as it is now, in float32."""
    return next(iter(model.encoders.values())).in_float32()


def texts(
    model: Model, clean: Clean, facts: list[Edit], patches: Sequence[Patch], untouched: list[str]
) -> dict[str, list]:
    """Whether each fact holds on the text side, and how far each untouched prompt moves."""
    targets, sources = clean([str(fact.new) for fact in facts]), clean([probe_of(fact).old for fact in facts])
    before = clean(untouched)
    with _active(model, patches):
        both = _encoder(model).embed([*(fact.prompt for fact in facts), *untouched])
    asked, after = both[: len(facts)], both[len(facts) :]
    holds = (asked - targets).norm(dim=1) < (asked - sources).norm(dim=1)
    return {"holds": holds.tolist(), "drift": ((after - before).norm(dim=1) / before.norm(dim=1)).tolist()}


def probe_of(fact: Edit) -> Probe:
    """The fact's own prompt, with what it meant and what it shall mean."""
    return Probe(fact.prompt, source_of(fact), str(fact.new), str(fact.new))


@dataclass(frozen=True)
class Seeing:
    """What a judge sees in pictures, one of each prompt."""

    judge: Judge
    autocast: str | None
    untouched: list[str]  # what an untouched prompt's picture may be named

    def __call__(
        self,
        model: Model,
        facts: list[Probe],
        others: list[Sequence[Probe]],
        untouched: list[str],
        patches: Sequence[Patch],
    ) -> dict[str, list]:
        """Of each fact, in its own and in other words: is it the target? Of each untouched prompt: is it as before?

        And the judge's features of the untouched prompts, of their pictures before and of those after.
        """
        again = [probe for some in others for probe in some]
        last = [probe is some[-1] for some in others for probe in some]
        asked = [(p.new, p.old) for p in (*facts, *again)]
        asked += zip(untouched, itertools.cycle([fact.new for fact in facts]))
        before = self.draw(model, untouched)
        with _active(model, patches):
            after = self.draw(model, [*(p.prompt for p in (*facts, *again)), *untouched])
        hits = [bool(np.argmax(self.judge.logits([image], texts)) == 0) for image, texts in zip(after, asked)]
        ends = len(facts), len(facts) + len(again)
        seen = {"pictures": hits[: ends[0]], "reworded": hits[ends[0] : ends[1]], "specific": hits[ends[1] :]}
        seen["untold"] = [hit for hit, untold in zip(seen["reworded"], last) if untold]
        return seen | (self._compared(untouched, before, after[ends[1] :]) if untouched else {})

    def _compared(self, prompts: list[str], before: list[Any], after: list[Any]) -> dict[str, list]:
        one, other = (self.judge.logits(images, self.untouched).argmax(1) for images in (before, after))
        rows = (self.judge.of_texts(prompts), self.judge.of_images(before), self.judge.of_images(after))
        return {"kept": (one == other).tolist()} | {name: list(row) for name, row in zip(FEATURES, rows)}

    def draw(self, model: Model, prompts: Sequence[str]) -> list[Any]:
        """The prompts' pictures."""
        made = model.generate(prompts, [0], batch_size=32, autocast=self.autocast) if prompts else []
        return [picture.image for picture in made]


def _active(model: Model, patches: Sequence[Patch]) -> ExitStack:
    with ExitStack() as stack, torch.no_grad():
        for patch in patches:
            stack.enter_context(patch.applied(model))
        return stack.pop_all()
