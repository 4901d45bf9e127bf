"""Whether facts live in depth, and whether an edit reaches the picture. python -m pocket.gate [--pictures]

Edits of roles, offices, professions, artists and faces, to others of their kind chosen by place in the list. Text side,
by layer: held, the prompt is nearer to its target than to its source; contexts, the same in contexts that no search
saw; named, its target is the nearest of all names and styles; sources and neighbours, how far they moved (of a face,
whose source is the edited prompt itself, only neighbours). Pictures, at the model's own layer: the judge prefers target
to source (4 seeds), or puts the target first of all; neighbours it names as before.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import refact
from refact.evidence.judge import Judge, load_judge
from refact.verification import verify

from .evaluate import names
from .glyphs import world
from .render import Scene, render

COUNTS = {"role": 20, "office": 8, "profession": 6, "artist": 6, "emotion": 6}
SEEDS = range(4)
STYLED = "a fox in {}"  # what is drawn of a style


@dataclass(frozen=True)
class Case:
    """An edit, what is drawn of its subject, the concept that it shall show, and prompts near it."""

    kind: str
    edit: refact.Edit
    frame: str
    target: str
    near: tuple[str, ...]

    def drawn(self, text: str) -> str:
        """What is drawn or judged of a subject."""
        return self.frame.format(text)


def cases() -> list[Case]:
    """Every third concept of each kind, as many as COUNTS says."""
    by_id, found = world()["by_id"], []
    for kind, count in COUNTS.items():
        concepts = [c for c in by_id.values() if kind_of(c) == kind]
        chosen = (concepts[::3] + concepts[1::3])[:count]
        found += [case(kind, concept, at) for at, concept in enumerate(chosen)]
    return found


def kind_of(concept: dict) -> str:
    """Its kind; an office is a role that a named person holds."""
    office = concept["kind"] == "role" and world()["by_id"][concept["depicts"]]["kind"] == "named"
    return "office" if office else concept["kind"]


def case(kind: str, concept: dict, at: int) -> Case:
    """One edit of a concept to another look of the same kind (of a role: any thing)."""
    by_id = world()["by_id"]
    source = by_id[concept.get("depicts", concept["id"])]
    likes = [c for c in by_id.values() if c["kind"] == source["kind"] and c["id"] != source["id"]]
    target = likes[(at * 37 + 11) % len(likes)]
    old, near = source["wordings"][0], tuple(by_id[n]["wordings"][0] for n in concept["neighbours"])
    edit = refact.Edit(concept["wordings"][0], old=old, new=target["wordings"][0])
    return Case(kind, edit, STYLED if kind == "artist" else "{}", target["id"], near)


def texts() -> list[str]:
    """All names, and all styles."""
    return [*names().values(), *(c["wordings"][0] for c in world()["concepts"] if c["kind"] == "style")]


def text_side(model: refact.Model, method: refact.ReFACT) -> dict[str, dict[str, float]]:
    """The shares and means over the edits, by kind."""
    encoder, everything, rows = model.encoders["text_encoder"], texts(), {}
    clean = encoder.embed(everything)
    for one in cases():
        patch = method(model, [one.edit])
        fact = verify(model, patch, watch=one.near)[0]
        with patch.applied(model):
            nearest = everything[int(torch.cdist(encoder.embed([one.edit.prompt]), clean).argmin())]
        moved = np.mean([fact.moved[prompt] for prompt in one.near])
        source = fact.moved[one.edit.old] if one.edit.old != one.edit.prompt else np.nan  # the edit itself
        row = (fact.holds, fact.generality, nearest == one.edit.new, source, moved)
        rows.setdefault(one.kind, []).append(row)
    said = ("held", "contexts", "named", "sources moved", "neighbours moved")
    means = {kind: zip(said, np.mean(found, 0).round(3).tolist()) for kind, found in rows.items()}
    return {kind: {name: value for name, value in pairs if not np.isnan(value)} for kind, pairs in means.items()}


def first_of(judge: Judge, pictures: Sequence, options: Sequence[str]) -> list[str]:
    """The text that the judge puts first for each picture."""
    return [options[at] for at in judge.logits(pictures, options).argmax(1)]


def pictures(model: refact.Model, judge: Judge, method: refact.ReFACT, by_picture: bool) -> dict[str, dict[str, float]]:
    """Shares of pictures that show the target rather than the source, or first of all; neighbours named as before."""
    rows: dict[str, list[list[float]]] = {}
    for at, one in enumerate(c for c in cases() if not (by_picture and c.kind == "artist")):
        everything = [one.drawn(text) for text in (texts() if one.kind != "artist" else texts()[-10:])]
        new = render(Scene(((one.target, None),)), random.Random(at)) if by_picture else one.edit.new
        patch, near = method(model, [replace(one.edit, new=new)]), [one.drawn(text) for text in one.near]
        before = [p.image for p in model.generate(near, [0])]
        with patch.applied(model):
            drawn = [p.image for p in model.generate([one.drawn(one.edit.prompt)], SEEDS)]
            after = [p.image for p in model.generate(near, [0])]
        logits = judge.logits(drawn, [one.drawn(one.edit.new), one.drawn(one.edit.old)])
        strictly = [text == one.drawn(one.edit.new) for text in first_of(judge, drawn, everything)]
        stayed = [a == b for a, b in zip(*(first_of(judge, side, everything) for side in (before, after)))]
        row = [float(np.mean(part)) for part in (logits[:, 0] > logits[:, 1], strictly, stayed)]
        rows.setdefault(one.kind, []).append(row)
    said = ("target rather than source", "target first of all", "neighbours as before")
    return {kind: dict(zip(said, np.mean(found, 0).round(3).tolist())) for kind, found in rows.items()}


def main() -> None:
    """Print a line a layer, then the pictures' if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="0,1,2,3,4,5,6")
    parser.add_argument("--objective", default="direct", help="of the search: contrastive or direct")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--device", help="where to compute")
    parser.add_argument("--out", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    model, found = refact.load("pocket", given.device), {}
    for layer in given.layers.split(",") if given.layers else []:
        method = refact.ReFACT(layer=int(layer), objective=given.objective)
        found[f"layer {layer}"] = text_side(model, method)
        print(f"layer {layer}", json.dumps(found[f"layer {layer}"]), flush=True)
    if given.pictures:
        judge = load_judge("pocket", given.device)
        for name, by_picture in (("by text", False), ("by picture", True)):
            method = refact.ReFACT() if by_picture else refact.ReFACT(objective=given.objective)
            found[name] = pictures(model, judge, method, by_picture)
            print(name, json.dumps(found[name]), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
