"""Mutated files of facts: TOML, JSON, CSV."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from refact.edits import read_edits

from . import mutations
from .watch import Watch

ROWS = [
    {"prompt": "the flag of Canada", "new": "a cat", "old": "a dog", "aliases": ["Canada's flag"], "preserve": ["x"]},
    {"prompt": "the king, of france", "new": "a lion", "subject": "the king", "name": "king"},
]
TOML = 'preserve = ["the flag of Peru"]\n' + "".join(
    "[[edit]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in row.items()) for row in ROWS
)
CSV = 'prompt,new,old,aliases\nthe flag of Canada,a cat,a dog,Canada\'s flag|the flag\n"the king, of france",a lion,,\n'
PIECES = ["[", "]", "[[", "{", "}", '"', "'", '"""', ",", "=", "\n", "|", "\x00", "#", "\\", "\\u0000", "é", "1e999"]


def run(watch: Watch, folder: Path, first: int, last: int, seed: int) -> None:
    """The files of these numbers."""
    for suffix, content in ((".toml", TOML.encode()), (".json", json.dumps(ROWS).encode()), (".csv", CSV.encode())):
        (folder / f"whole{suffix}").write_bytes(content)
        assert len(watch.attempt("a whole file", lambda suffix=suffix: read_edits(folder / f"whole{suffix}"))) == 2
    for number in range(first, last):
        draw = Random(f"{seed} facts {number}")
        suffix, content = _spoiled(draw)
        path = folder / f"facts{suffix}"
        path.write_bytes(content)
        for edit in watch.attempt(f"facts {number}", lambda path=path: read_edits(path)) or []:
            assert edit.prompt
            assert edit.new


def _spoiled(draw: Random) -> tuple[str, bytes]:
    kind, how = draw.choice((".toml", ".json", ".csv")), draw.random()
    if kind == ".json" and how < 0.5:
        return kind, mutations.dumped(mutations.spoil_json(ROWS, draw, draw.choice((1, 3))))
    whole = {".toml": TOML, ".json": json.dumps(ROWS), ".csv": CSV}[kind]
    if how < 0.7:
        text = whole
        for _ in range(draw.choice((1, 1, 3))):
            at = draw.randrange(len(text) + 1)
            piece = draw.choice((*PIECES, mutations.text(draw), "[" * 2000, "1" * 5000))
            text = text[:at] + piece + text[at + draw.choice((0, 0, 1, 5)) :]
        return kind, text.encode("utf-8", "surrogatepass")
    if how < 0.8:
        return kind, (whole + whole[-40:] * draw.choice((2, 200))).encode(draw.choice(("utf-8", "utf-16", "cp1252")))
    return kind, mutations.spoil_bytes(whole.encode(), draw)
