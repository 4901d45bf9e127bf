"""The keys of edits and of prompts: what the edited matrix is given at their tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..encoders.devices import doubled
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..patch import Patch
from .aligned import read_from
from .readings import Reading, spaced
from .sentences import PLAIN, every_key, sentences_of, starting, wordings
from .trie import Sentence

PROTECTED_AT_ONCE = 16  # prompts a trie; its mask is square


@dataclass(frozen=True)
class Dropped:
    """A protected token that could not be held, for some edit would have died of it."""

    prompt: str
    token: int


def keys_of(
    encoder: TextEncoder, layer: int, edit: Edit, templates: Sequence[str], filled: str = "prompt"
) -> Float[Tensor, "n d_in"]:
    """An edit's distinct keys at a layer, over its wordings and contexts, float64."""
    plain = Reading(encoder, None)
    begun = starting(encoder, layer, [sentences_of(encoder, plain, edit, templates, filled)], plain)
    return doubled(begun.keys[0])


def keys_with(
    encoder: TextEncoder, layer: int, edit: Edit, words: Sequence[str]
) -> list[tuple[Float[Tensor, " d_in"], Float[Tensor, "n d_in"]]]:
    """Of each wording that begins with "a" or "an": its own key, and its keys with a word after the article.

    Wordings whose subject cannot be told in such a sentence, or for which there is no room, are left out.
    """
    plain, found = Reading(encoder, None), []
    for prompt, subject in wordings(edit):
        match = re.fullmatch(r"an? (\S.*)", prompt, re.IGNORECASE)
        noun = re.sub(r"^an? ", "", subject, flags=re.IGNORECASE)
        if not match or not words or noun not in match[1]:
            continue
        other = [f"{'an' if word[0] in 'aeiou' else 'a'} {word} {match[1]}" for word in words]
        said = [Edit(prompt=text, new=edit.new, subject=noun) for text in (prompt, *other)]
        try:
            sentences = [sentence for one in said for sentence in sentences_of(encoder, plain, one, (PLAIN,))]
        except EditError:
            continue
        begun = starting(encoder, layer, [sentences], plain)
        keys = doubled(begun.keys[0])[begun.places[0]]
        found.append((keys[0], keys[1:]))
    return found


def keys_of_patch(encoder: TextEncoder, layer: int, patch: Patch) -> Iterator[Tensor]:
    """The keys of a patch's edits at a layer, from the prompts that it records."""
    how = patch.record["method"]
    if "filled" in how.get("mixed", ()):
        raise EditError(
            "this merge has facts whose contexts were filled in two ways: hold the patches that it was made of"
        )
    templates = tuple(how.get("templates", (PLAIN,)))[: how.get("contexts", 1)]
    if how.get("with_bare"):
        templates = tuple(dict.fromkeys((PLAIN, *templates)))
    for edit in patch.edits:
        yield keys_of(encoder, layer, edit, templates, how.get("filled", "prompt"))


def token_keys(
    encoder: TextEncoder, layer: int, prompts: Sequence[str], empty: bool = True
) -> tuple[list[Dropped], Tensor]:
    """The keys of the prompts' tokens, each prefix once: all 77 rows of the empty prompt, which guidance reads in
    every picture, where it is asked for; of the others all to [EOS] and some of the padding rows, where the generator
    gets those. What the frame of a language model writes before a prompt is held with the empty one."""
    prompts = [*([""] if empty else []), *prompts]
    if not prompts:
        return [], doubled(torch.zeros(0, encoder.linear(layer).in_features, device=encoder.device))
    tokens = encoder.tokenize(prompts)
    labels, rows, seen = [], [], set()
    for at in range(0, len(tokens.ids), PROTECTED_AT_ONCE):
        ids, ends = (t[at : at + PROTECTED_AT_ONCE].tolist() for t in (tokens.ids, tokens.ends))
        group = [_protected(encoder, row, end) for row, end in zip(ids, ends)]
        keys, paths = every_key(encoder, layer, group)
        for prompt, sentence, path in zip(prompts[at:], group, paths):
            for place, position in enumerate(_held_rows(encoder, sentence, prompt)):
                read = (*sentence.ids[: position + 1], position) if encoder.causal else (prompt, position)
                if read not in seen:
                    seen.add(read)
                    labels.append(Dropped(prompt, position))
                    rows.append(keys[path[place if encoder.kind == "decoder" else position]])
    return labels, doubled(torch.stack(rows))


def _protected(encoder: TextEncoder, ids: list[int], end: int) -> Sentence:
    if encoder.kind != "decoder":
        return Sentence(tuple(ids), 0, end)
    return read_from(encoder, ids, 0, end)


def _held_rows(encoder: TextEncoder, sentence: Sentence, prompt: str) -> list[int]:
    if encoder.kind == "decoder":
        return list(sentence.rows)
    if not prompt and encoder.kind == "clip":
        return list(range(len(sentence.ids)))
    padding = spaced(sentence.end, len(sentence.ids)) if encoder.row.rows == "last" else []
    return sorted({*range(sentence.end + 1), *padding})
