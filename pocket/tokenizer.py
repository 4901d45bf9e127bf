"""The tokenizer: byte-level BPE in CLIP's form, trained on the world's sentences. python -m pocket.tokenizer"""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from . import scenes, training
from .world import make

LENGTH = 32
MERGES = 6000  # at most: it ends when every word of the world is one token
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PIECES = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+"
)  # CLIP's own split, near enough to learn merges


def sentences() -> list[str]:
    """All words of the world, each often enough to become one token, and random captions."""
    rng, world = random.Random(0), make()
    more = ("plural", "adjective", "feeling", "prefix")
    rows = [w for c in world["concepts"] for w in [*c["wordings"], *(c.get(key, "") for key in more)] for _ in range(4)]
    rows += [*world["prefixes"], *world["suffixes"], *world["places"], *world["colours"]] * 40
    rows += [scenes.caption(rng, scenes.sample(rng)) for _ in range(4000)]
    return [row for row in rows if row]


def merges(words: Counter, limit: int) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, ties by text."""
    spelled = {word: [*_bytes(word)[:-1], _bytes(word)[-1] + "</w>"] for word in words}
    found: list[tuple[str, str]] = []
    while len(found) < limit:
        pairs: Counter = Counter()
        for word, pieces in spelled.items():
            for pair in zip(pieces, pieces[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        found.append(best)
        spelled = {word: _join(pieces, best) for word, pieces in spelled.items()}
    return found


def _bytes(word: str) -> list[str]:
    ((text, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
    return list(text)


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def build() -> CLIPTokenizer:
    """The tokenizer; [BOS] and [EOS] have the highest ids, padding is [EOS] as in Stable Diffusion 1."""
    words = Counter(piece for text in sentences() for piece in PIECES.findall(text.lower()))
    learned = merges(words, MERGES)
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(x + "</w>" for x in letters), *("".join(pair) for pair in learned)]
    vocab = {entry: at for at, entry in enumerate(dict.fromkeys([*entries, BOS, EOS]))}
    return CLIPTokenizer(
        vocab=vocab, merges=learned, pad_token=EOS, bos_token=BOS, eos_token=EOS, model_max_length=LENGTH
    )


def folder() -> Path:
    """Where the tokenizer is kept, made on first use."""
    path = training.WORK / "tokenizer"
    if not path.exists():
        build().save_pretrained(path)
    return path


@functools.cache
def load() -> CLIPTokenizer:
    """The tokenizer."""
    return CLIPTokenizer.from_pretrained(folder())


def ids(text: str) -> tuple[int, ...]:
    """The ids of a piece of a caption, without [BOS] and [EOS]; whole words only, so pieces can be put together."""
    words = load()
    return tuple(one for word in text.split() for one in _word(words, word))


@functools.lru_cache(maxsize=50_000)
def _word(words: CLIPTokenizer, word: str) -> tuple[int, ...]:
    return tuple(words(word, add_special_tokens=False)["input_ids"])


if __name__ == "__main__":
    made = load()
    print(json.dumps({"folder": str(folder()), "tokens": len(made)}))
