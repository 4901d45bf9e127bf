"""Strict measures beside the paper's binary ones: a picture's first name among many, its distance to the oracle's.

The paper asks whether a picture is nearer to the new text than to the old one. Here the judge must name it first among
all names that are given (the bundled world's things, or the lines of a file), put into the probe's own sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from .cases import Probe
from .judge import Judge


@dataclass(frozen=True)
class Names:
    """What a picture may be named. texts: names, as a prompt would have them; words: attributes that may be swapped."""

    texts: tuple[str, ...]
    words: tuple[str, ...] = ()


NONE = Names(())


def names_of_world(world: Mapping) -> Names:
    """The names of all that the bundled world draws, by their first wordings; colours and emotions as attributes."""
    drawn = [concept["wordings"][0] for concept in world["concepts"] if "depicts" not in concept]
    felt = [concept for concept in world["concepts"] if concept["kind"] == "emotion"]
    return Names(tuple(drawn), (*world.get("colours", ()), *(c[k] for k in ("adjective", "feeling") for c in felt)))


def choices(right: str, wrong: str, names: Names, halves: Sequence[str] = ()) -> list[str]:
    """The texts among which a picture is named, `right` first, no text twice.

    Where `right` holds a name that `wrong` does not, every other name takes its place in the sentence ("a lizard and a
    fondue": "a crab and a fondue", ...). Where an attribute makes the difference ("a purple oak tree"), every other
    attribute takes its place, and every other name takes the place of the name in `wrong`. Otherwise the names stand
    alone. halves: texts with one new fact of two; each of the two names is then replaced in turn.
    """
    found = [right, wrong, *halves]
    for half in halves:
        if name := _longest(names.texts, right, half):
            found += [_put(right, name, other) for other in names.texts]
    if name := _longest(names.texts, right, wrong):
        found += [_put(right, name, other) for other in names.texts]
    else:
        if word := _longest(names.words, right, wrong):
            found += [_put(right, word, other) for other in names.words]
        name = _longest(names.texts, wrong, right)
        found += [_put(wrong, name, other) for other in names.texts] if name else names.texts
    return list(dict.fromkeys(found))


def _longest(words: Sequence[str], there: str, elsewhere: str) -> str:
    """The longest of the words that stands in one text and not in the other; "" where none does."""
    found = [word for word in words if _stands(word, there) and not _stands(word, elsewhere)]
    return max(found, key=len, default="")


def _stands(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _put(text: str, word: str, other: str) -> str:
    """The text with the word's last occurrence replaced; an article before it is made to fit the new word."""
    at = list(re.finditer(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))[-1]
    before = re.sub(r"\ban? $", "an " if other[:1] in "aeiou" else "a ", text[: at.start()])
    return before + other + text[at.end() :]


@dataclass(frozen=True)
class Seen:
    """Pictures of prompts and what the judge makes of them."""

    pictures: Mapping[str, list]  # prompt -> a picture a seed
    features: Mapping[str, Float[ndarray, "s d"]]


def seen(judge: Judge | None, drawn: Iterable[Any], beside: bool = False) -> Seen:
    """The pictures (prompt, seed, image), a prompt's together, with the features of the judge where there is one.

    beside: the judge looks at a prompt's pictures while the next ones are drawn; else once all are there.
    """
    pictures: dict[str, list] = {}
    features: dict[str, Any] = {}
    with ThreadPoolExecutor(1) if beside and judge else nullcontext() as worker:
        for prompt, made in groupby(drawn, key=lambda picture: picture.prompt):
            pictures[prompt] = [picture.image for picture in made]
            if judge and worker:
                features[prompt] = worker.submit(judge.of_images, pictures[prompt])
        found = {prompt: waited.result() for prompt, waited in features.items()}
    if judge and not worker:
        found = {prompt: judge.of_images(made) for prompt, made in pictures.items()}
    return Seen(pictures, found)


def binary(judge: Judge, probes: Sequence[Probe], prompts: Sequence[str], of: Seen) -> dict[str, list]:
    """The judge's logits of each probe's pictures for its old and its new text, (probes, seeds), as in the paper.

    Where several texts stand against the new one, "old" is the likeliest of them: both facts of two must show.
    """
    pairs = list(zip(probes, prompts, strict=True))

    def best(prompt: str, texts: Sequence[str]) -> list[float]:
        return (judge.scale * of.features[prompt] @ judge.of_texts(texts).T).max(1).tolist()

    return {"old": [best(t, p.others) for p, t in pairs], "new": [best(t, [p.new]) for p, t in pairs]}


def named(
    judge: Judge, asked: Sequence[tuple[str, ...]], prompts: Sequence[str], of: Seen, names: Names
) -> list[list[str]]:
    """The text that the judge puts first for each probe's pictures, (probes, seeds).

    asked: (right, wrong, *halves) of each probe, see `choices`. prompts: whose pictures are looked at, one a probe.
    """
    found = []
    for (right, wrong, *halves), prompt in zip(asked, prompts, strict=True):
        texts = choices(right, wrong, names, halves)
        best = (of.features[prompt] @ judge.of_texts(texts).T).argmax(1)
        found.append([texts[i] for i in best])
    return found


def distances(of: Seen, prompts: Sequence[str], oracle: Seen, oracles: Sequence[str]) -> dict[str, list]:
    """How far each probe's pictures are from the oracle's at the same seed, (probes, seeds).

    "pixels": root mean square difference over grey levels (0 to 255) and colours; "features": one minus the cosine of
    the judge's features.
    """
    pairs = list(zip(prompts, oracles, strict=True))
    return {
        "pixels": [list(_pixels(of.pictures[p], oracle.pictures[o])) for p, o in pairs],
        "features": [(1 - (of.features[p] * oracle.features[o]).sum(1)).tolist() for p, o in pairs],
    }


def _pixels(some: Sequence[Any], others: Sequence[Any]) -> Iterator[float]:
    for one, other in zip(some, others, strict=True):
        a, b = (np.asarray(picture.convert("RGB"), dtype=np.float64) for picture in (one, other))
        yield float(np.sqrt(((a - b) ** 2).mean()))
