"""Whether facts live in depth, and whether an edit reaches the picture. python -m pocket.gate [--pictures]

Twenty role edits (every third role, to a thing chosen by place in the list; none is a row of the benchmarks' making).
Text side, by layer: held, the prompt is nearer to its target than to its source; contexts, the same in contexts that
no search saw; named, its target is the nearest of all things and flags; sources and neighbours, how far they moved.
Pictures, at the model's own layer: the judge prefers target to source (4 seeds); neighbours it names as before.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

import numpy as np
import torch

import refact
from refact import pocket
from refact.evidence.judge import Judge, load_judge
from refact.verification import verify

from .evaluate import names
from .render import Scene, render

COUNT, SEEDS = 20, range(4)


def cases() -> list[tuple[refact.Edit, str, list[str]]]:
    """(edit, id of the target, neighbours' prompts)."""
    concepts = {c["id"]: c for c in pocket.world()["concepts"]}
    roles = [c for c in concepts.values() if c["kind"] == "role"][::3][:COUNT]
    things = [c for c in concepts.values() if c["kind"] == "object"]
    found = []
    for at, role in enumerate(roles):
        target = things[(at * 37 + 11) % len(things)]
        old = concepts[role["depicts"]]["wordings"][0]
        edit = refact.Edit(role["wordings"][0], old=old, new=target["wordings"][0])
        found.append((edit, target["id"], [concepts[n]["wordings"][0] for n in role["neighbours"]]))
    return found


def text_side(model: refact.Model, method: refact.ReFACT) -> dict[str, float]:
    """The shares and means over the edits."""
    encoder, everything, rows = model.encoders["text_encoder"], list(names().values()), []
    clean = encoder.embed(everything)
    for edit, _, near in cases():
        patch = method(model, [edit])
        fact = verify(model, patch, watch=near)[0]
        with patch.applied(model):
            nearest = int(torch.cdist(encoder.embed([edit.prompt]), clean).argmin())
        moved = np.mean([fact.moved[prompt] for prompt in near])
        rows.append((fact.holds, fact.generality, everything[nearest] == edit.new, fact.moved[edit.old], moved))
    return dict(zip(("held", "contexts", "named", "sources moved", "neighbours moved"), np.mean(rows, 0).tolist()))


def pictures(model: refact.Model, judge: Judge, method: refact.ReFACT, by_picture: bool) -> str:
    """How many pictures show the target, and how many neighbours are named as before."""
    hits, stayed, everything = [], [], names()
    for at, (edit, target, near) in enumerate(cases()):
        shown = render(Scene(((target, None),)), random.Random(at))
        patch = method(model, [replace(edit, new=shown) if by_picture else edit])
        before = model.generate(near, [0])
        with patch.applied(model):
            drawn, after = model.generate([edit.prompt], SEEDS), model.generate(near, [0])
        logits = judge.logits([p.image for p in drawn], [edit.new, edit.old])
        hits += (logits[:, 0] > logits[:, 1]).tolist()
        one, other = (judge.logits([p.image for p in side], everything).argmax(1) for side in (before, after))
        stayed += (one == other).tolist()
    return f"target shown {sum(hits)}/{len(hits)}, neighbours named as before {sum(stayed)}/{len(stayed)}"


def main() -> None:
    """Print a line a layer, then the pictures' if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="0,1,2,3,4,5,6")
    parser.add_argument("--objective", default="direct", help="of the search: contrastive or direct")
    parser.add_argument("--pictures", action="store_true")
    given = parser.parse_args()
    model = refact.load("pocket")
    for layer in given.layers.split(",") if given.layers else []:
        found = text_side(model, refact.ReFACT(layer=int(layer), objective=given.objective))
        print(f"layer {layer}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    if given.pictures:
        judge, method = load_judge("pocket"), refact.ReFACT(objective=given.objective)
        print("by text:", pictures(model, judge, method, False), flush=True)
        print("by picture:", pictures(model, judge, refact.ReFACT(), True), flush=True)


if __name__ == "__main__":
    main()
