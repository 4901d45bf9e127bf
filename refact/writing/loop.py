"""The loop that every method of a text encoder shares: for each encoder search, let the method write, keep a record.

It knows no method: a method is settings, with what it does of its own handed in as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import __version__, solve
from ..edits import Edit
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..models.model import Model
from ..patch import Patch
from ..search.keys import Dropped
from ..search.wanted import Wanted, search


@dataclass(frozen=True)
class Written:
    """How a method wrote what was wanted at one layer."""

    solution: solve.Solution
    targets: Float[Tensor, "n e"]  # what share of each edit's offset each key should get
    dropped: list[Dropped]
    covariance: dict  # for the record
    crowded: bool = False  # written with `method.crowded`, as the keys take too much of what is free


Searcher = Callable[[TextEncoder, int], Wanted]
Writer = Callable[[TextEncoder, int, Wanted], Written]


def one_layer(method: Any, model: Model, edits: list[Edit], writer: Writer, searched: Searcher | None = None) -> Patch:
    """In each encoder: search at one layer, let the method write what was found."""
    searched = searched or (lambda encoder, layer: search(method, model, encoder, layer, edits))
    factors, used = {}, {}
    logs: list[dict] = [{} for _ in edits]
    for encoder in chosen(model, method.encoders, t5=True):
        layer = chosen_layer(model, encoder, method.layer, method.embedding)
        wanted = searched(encoder, layer)
        site, written = encoder.site(layer), writer(encoder, layer, wanted)
        factors[site] = (wanted.offsets.T.float().contiguous(), written.solution.right.float())
        used[site] = written.covariance
        sent = {"reaches": encoder.reached(layer)} if encoder.kind == "decoder" else {}
        for log, entry in zip(logs, entries(wanted, written, layer)):
            log[site] = entry | sent
    return patch_of(method, model, edits, factors, logs, used)


def chosen(model: Model, names: Sequence[str], t5: bool = False) -> list[TextEncoder]:
    """The encoders of these names, T5 among them where the method can; every CLIP encoder when none is named."""
    if missing := [name for name in names if name not in model.encoders]:
        raise EditError(f"{model.name} has no text encoder {missing[0]!r}; it has {', '.join(model.encoders)}")
    clips = [e for e in model.encoders.values() if e.kind == "clip"]
    picked = [model.encoders[n] for n in names] or clips or list(model.encoders.values())
    if not t5 and (others := [encoder for encoder in picked if encoder.kind != "clip"]):
        kind = {"t5": "a T5", "decoder": "a language model"}[others[0].kind]
        raise EditError(f"{others[0].name} is {kind}, which only ReFACT and AlphaEdit edit")
    return [encoder.in_float32() for encoder in picked]


def chosen_layer(model: Model, encoder: TextEncoder, layer: int | None, embedding: str = "pooled") -> int:
    """The layer asked for, if it can matter; else the model's own default, else 7 of 12 by depth (paper, RoAD).

    A model may have another default for searches that compare its conditioning.
    """
    if layer is None:
        usual = model.defaults.get("layer", encoder.usual_layer)
        layer = model.defaults.get("conditioning_layer", usual) if embedding == "conditioning" else usual
    encoder.check_layer(layer)
    return layer


def entries(wanted: Wanted, written: Written, layer: int) -> Iterator[dict]:
    """What the patch records of each edit at one site."""
    solution, found = written.solution, wanted.found
    missing = ((solution.written - written.targets) @ wanted.offsets).cpu()
    targets, arrives, leverage = (part.cpu() for part in (written.targets, solution.written, solution.leverage))
    for i, offset in enumerate(wanted.offsets.cpu()):
        mine = targets[:, i] > 0
        yield {
            "rows": [i, i + 1],
            "layer": layer,
            "steps": int(found.steps[i]),
            "loss": [float(found.first[i]), float(found.last[i])],
            "probability": float(found.probability[i]),
            "clamped": bool(found.clamped[i]),
            "residual": float(missing[mine].norm(dim=1).max() / offset.norm().clamp_min(1e-30)),
            "share": float(arrives[mine, i].mean()),
            "leverage": float(leverage[mine].min()),
            "condition": solution.condition,
            "crowded": written.crowded,
            "not_held": sorted({d.prompt for d in written.dropped}),
        }


def patch_of(method: Any, model: Model, edits: Sequence[Edit], factors: dict, logs: list[dict], used: dict) -> Patch:
    """The patch with its record; its factors lie in the CPU's memory, wherever they were found."""
    factors = {site: (left.cpu(), right.cpu()) for site, (left, right) in factors.items()}
    touched = {site.partition(".")[0] for site in factors}
    record = {
        "refact": 1,
        "family": model.family.name,
        "model": {"name": model.name, "encoders": {k: v for k, v in model.fingerprints().items() if k in touched}},
        "method": {"name": type(method).__name__, **asdict(method)},
        "edits": [edit.to_json() | {"sites": log} for edit, log in zip(edits, logs)],
        "covariance": used,
        "versions": {"refact": __version__, "torch": torch.__version__} | elsewhere(model.device),
    }
    patch = Patch(factors, record)
    return replace(patch, record=record | {"preserved": drift(model, patch, edits)})


def elsewhere(device: torch.device) -> dict[str, str]:
    """The device, for a record; of the CPU nothing is said."""
    return {} if device.type == "cpu" else {"device": str(device)}


def alone(method: Any, onto: Sequence[Patch]) -> None:
    """EditError where a method that cannot hold earlier facts is asked to."""
    if onto:
        raise EditError(f"{type(method).__name__} cannot hold the facts of earlier patches: make it without onto")


def drift(model: Model, patch: Patch, edits: Sequence[Edit]) -> dict[str, float]:
    """How far each protected prompt's conditioning moved, relative to its own norm; the empty prompt is one."""
    prompts = ["", *dict.fromkeys(p for edit in edits for p in edit.preserve)]
    before = [encoder.states(prompts) for encoder in model.encoders.values()]
    with patch.applied(model):
        after = [encoder.states(prompts) for encoder in model.encoders.values()]
    moved = [((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)) for a, b in zip(after, before)]
    return dict(zip(prompts, torch.stack(moved).amax(0).tolist()))
