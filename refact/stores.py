"""Collections of facts: conflicts among them, patches made apart solved as one, a patch built from a file of facts.

A patch of `ReFACT` keeps what each edit's search found: its left factor is the offset, and its right factor gives the
share that arrives at the edit's own keys. So facts can be written again, together, without being searched again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .edits import Edit, distinct
from .encoders.devices import exact
from .encoders.encoder import TextEncoder
from .errors import PatchError, RefactError
from .methods.refact import ReFACT
from .models.model import Model
from .models.parallel import Cluster
from .patch import Patch, merge
from .search import values
from .search.wanted import Wanted, places_again, search
from .writing import held

OVERLAP, HARM = 0.5, 0.2  # what `conflicts` reports from
SEARCHING = {  # settings that say how an offset is found, not how it is written
    "embedding", "objective", "distance", "gap", "negatives", "relative", "optimiser", "learning_rate", "max_steps",
    "stop", "reach", "weight_decay", "clamp", "seed", "autocast", "batch",
}  # fmt: skip


# -- what a patch knows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A fact that was searched for before: its offset and its search's log at each site, and its strength."""

    edit: Edit
    offsets: Mapping[str, Float[Tensor, " d_out"]]  # float64, at strength 1
    logs: Mapping[str, dict]  # the record's entry
    strength: float


def method_of(patches: Sequence[Patch], apart: Sequence[str] = ()) -> ReFACT:
    """The method of the first of these patches, which wrote all of them alike, however each was searched for.

    apart: settings that may differ. Raises PatchError where there is none, or it is not `ReFACT`.
    """
    if not patches:
        raise PatchError("no patches were given")
    defaults = {field.name: field.default for field in dataclasses.fields(ReFACT)}
    forms = [defaults | patch.record["method"] for patch in patches]  # a setting newer than the patch: its default
    fields = set(defaults)
    for form in forms:
        if form["name"] != "ReFACT":
            raise PatchError(f"only facts by ReFACT are solved again, not by {form['name']}")
    mixed = {name for form in forms for name in form.get("mixed", ())}  # within one patch that was merged
    differing = sorted(
        name
        for name in fields - SEARCHING - set(apart)
        if name in mixed or any(form[name] != forms[0][name] for form in forms)
    )
    if differing:
        raise PatchError(f"these patches were written with different settings: {', '.join(differing)}")
    settings: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in forms[0].items() if n in fields}
    try:
        return ReFACT(**settings)
    except RefactError as error:
        raise PatchError(f"the settings in the record are none of ReFACT: {error}") from None


def known_of(model: Model, patch: Patch) -> list[Known]:
    """What a patch's searches found. Raises PatchError where its rows no longer tell."""
    if patch.record.get("refactored"):
        raise PatchError("this patch was re-factored: its facts can no longer be told apart")
    if patch.record.get("imported"):
        raise PatchError("an imported LoRA tells no prompt, so it cannot be solved again")
    if wrong := patch.mismatch(model):
        raise PatchError(f"made for {patch.record['model']['name']}, not for {model.name}: {'; '.join(wrong)}")
    how = method_of([patch], apart=("layer",))
    return [_known(model, patch, how, edit, form["sites"]) for edit, form in zip(patch.edits, patch.record["edits"])]


def _known(model: Model, patch: Patch, how: ReFACT, edit: Edit, sites: dict) -> Known:
    offsets = {}
    for site, log in sites.items():
        _check_site(model, patch, site, log["layer"])
        left, right = (factor.double() for factor in patch.factors[site])
        (row, stop), strength = log["rows"], log.get("strength", 1.0)
        written = log.get("share", 0.0 if how.ridge or log.get("crowded") else 1.0)  # exactly: all of it
        if stop != row + 1 or not strength:
            raise PatchError(f"{edit.name!r} has {stop - row} rows at strength {strength:g}: not one fact")
        if not written:
            raise PatchError(f"the record does not tell what share of {edit.name!r} was written: make it again")
        place = places_again(how, _encoder(model, site), log["layer"], edit)
        keys = place.keys if how.write == "offset" else place.at[None]
        share = float((keys @ right[row].to(keys.device)).mean())  # balancing the factors has moved it
        offsets[site] = left[:, row] * share / written / strength
        if not offsets[site].float().isfinite().all():
            raise PatchError(
                f"what is recorded of {edit.name!r} at {site} does not give a finite change: make it again"
            )
    return Known(edit, offsets, sites, strength)  # which is the same at every site


def _check_site(model: Model, patch: Patch, site: str, layer: int) -> None:
    """Raises PatchError where a site is not that of this layer of an encoder in memory, or its factors do not fit."""
    encoder = model.encoders.get(site.partition(".")[0])
    if encoder is None or layer >= encoder.n_layers or encoder.site(layer) != site:
        raise PatchError(f"{model.name} has no text encoder in memory whose layer {layer} is {site}")
    linear, (left, right) = encoder.linear(layer), patch.factors[site]
    if (linear.out_features, linear.in_features) != (len(left), right.shape[1]):
        raise PatchError(f"{site} of {model.name} is no matrix of {len(left)} by {right.shape[1]}, as the patch has it")


def _encoder(model: Model, site: str) -> TextEncoder:
    return model.encoders[site.partition(".")[0]].in_float32()


# -- solved again ------------------------------------------------------------------------------------------------------


def solve_jointly(model: Model, patches: Sequence[Patch]) -> Patch:
    """One patch with all the facts of these, written together as if they had been one batch: none harms another.

    Nothing is searched again. Facts of different layers are written layer by layer, and then stand in that order.
    Raises PatchError where the patches were not all written by `ReFACT` alike, for this model.
    """
    how = method_of(patches, apart=("layer",))
    known = [fact for patch in patches for fact in known_of(model, patch)]
    edits = distinct(fact.edit for fact in known)
    groups: dict[tuple[str, ...], dict[str, Known]] = {}
    for edit, fact in zip(edits, known):
        groups.setdefault(tuple(sorted(fact.offsets)), {})[edit.name] = fact
    if len(groups) == 1:
        return _solved(model, how, edits, next(iter(groups.values())))
    parts = []
    for facts in groups.values():
        layers = {log["layer"] for fact in facts.values() for log in fact.logs.values()}
        if len(layers) > 1:
            raise PatchError("these patches were written with different settings: layer")
        there = dataclasses.replace(how, layer=layers.pop())
        parts.append(_solved(model, there, [edit for edit in edits if edit.name in facts], facts))
    return merge(parts)


def build(
    model: Model,
    edits: Sequence[Edit],
    method: ReFACT,
    before: Patch | None = None,
    cluster: Cluster | None = None,
) -> tuple[Patch, list[str]]:
    """The patch of a list of facts, and the names of those searched for: the ones that `before` does not have as they
    are now. All are then written together. Facts with a picture are always searched for again. cluster: where to
    search for them.
    """
    edits, known = distinct(edits), {} if before is None else _known_before(model, before, method)
    kept = {e.name: known[e.name] for e in edits if e.name in known and known[e.name].edit == e}
    return _solved(model, method, edits, kept, cluster), [e.name for e in edits if e.name not in kept]


def _known_before(model: Model, patch: Patch, method: ReFACT) -> dict[str, Known]:
    """What an earlier build found, at full strength; nothing where it was made otherwise or no longer tells."""
    try:
        found = known_of(model, patch) if method_of([patch]) == method else []
    except PatchError:
        return {}
    return {f.edit.name: dataclasses.replace(f, strength=1.0) for f in found if not f.edit.targets_images}


def _solved(
    model: Model, method: ReFACT, edits: list[Edit], known: Mapping[str, Known], cluster: Cluster | None = None
) -> Patch:
    def searched(encoder: TextEncoder, layer: int) -> Wanted:
        site = encoder.site(layer)
        new = [edit for edit in edits if edit.name not in known]
        old = [edit for edit in edits if edit.name in known]
        each = {e.name: (places_again(method, encoder, layer, e), _found(known[e.name], site)) for e in old}
        written = {e.name: each[e.name][1].offsets[0].double().to(exact(encoder.device)) for e in old}
        if new:
            fresh = search(method, model, encoder, layer, new, cluster)
            each |= {edit.name: (fresh.places[at], fresh.found.of(at)) for at, edit in enumerate(new)}
            written |= {edit.name: fresh.offsets[at] for at, edit in enumerate(new)}
        found = values.Found.of_all([each[edit.name][1] for edit in edits])
        return Wanted([each[e.name][0] for e in edits], torch.stack([written[e.name] for e in edits]), found)

    patch = held.refact(method, model, edits, searched=searched)
    weakened = {name: fact.strength for name, fact in known.items() if fact.strength != 1.0}
    return patch.scaled(weakened) if weakened else patch


def _found(fact: Known, site: str) -> values.Found:
    if site not in fact.offsets:
        raise PatchError(f"{fact.edit.name!r} was not written at {site}")
    log = fact.logs[site]
    numbers = (*log["loss"], log["probability"], float(log["steps"]))
    first, last, probability, steps = (torch.tensor([x if x is not None else torch.nan]) for x in numbers)
    return values.Found(fact.offsets[site][None], first, last, probability, steps, torch.tensor([log["clamped"]]))


# -- conflicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conflict:
    """Two facts that cannot both be had as they are.

    kind   "target"   one wording, two targets
           "twice"    one wording, one target
           "overlap"  keys that nearly coincide, targets that differ; size: the share of one that the other spans
           "harm"     the second fact moves the first at its own keys; size: by how much of the first's own change
    """

    kind: str
    first: str
    second: str
    size: float
    site: str = ""

    def __str__(self) -> str:
        where = f" at {self.site}" if self.site else ""
        return {
            "target": f"{self.first} and {self.second} give the same words different targets",
            "twice": f"{self.first} and {self.second} are the same fact",
            "overlap": f"{self.first} and {self.second}: {self.size:.0%} of their keys coincide{where}",
            "harm": f"{self.second} moves {self.first} by {self.size:.0%} of its own change{where}",
        }[self.kind]


def conflicts(model: Model, patches: Sequence[Patch], overlap: float = OVERLAP, harm: float = HARM) -> list[Conflict]:
    """What stands between the facts of patches, the gravest kind first, before they are merged.

    "overlap" from keys alone, k_i C^-1 k_j^T squared and normalised; "harm" is what a plain sum does, and what
    `solve_jointly` heals unless the keys coincide.
    """
    how = method_of(patches, apart=("layer",))
    known = [fact for patch in patches for fact in known_of(model, patch)]
    named = [dataclasses.replace(fact, edit=edit) for fact, edit in zip(known, distinct(f.edit for f in known))]
    found = list(_by_words([fact.edit for fact in named]))
    clashing = {(c.first, c.second) for c in found}
    for site in dict.fromkeys(site for fact in named for site in fact.offsets):
        here = [fact for fact in named if site in fact.offsets]
        found += _by_keys(model, how, site, here, _rows(patches, site), clashing, (overlap, harm))
    return sorted(found, key=lambda c: (("target", "twice", "overlap", "harm").index(c.kind), -c.size))


def _by_words(edits: Sequence[Edit]) -> list[Conflict]:
    said = [{_plain(text) for text in (edit.prompt, *edit.reworded())} for edit in edits]
    pairs = [(a, b) for a, b in combinations(range(len(edits)), 2) if said[a] & said[b]]
    kinds = ["twice" if _target(edits[a]) == _target(edits[b]) else "target" for a, b in pairs]
    return [Conflict(kind, edits[a].name, edits[b].name, 1.0) for kind, (a, b) in zip(kinds, pairs)]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removeprefix("the ")


def _target(edit: Edit) -> Any:
    return _plain(edit.new) if isinstance(edit.new, str) else edit.new


def _rows(patches: Sequence[Patch], site: str) -> list[tuple[Tensor, Tensor]]:
    """(left column, right row) of each edit at a site, in order, as they are active."""
    found = []
    for patch in patches:
        for form in patch.record["edits"]:
            if site in form["sites"]:
                row = form["sites"][site]["rows"][0]
                left, right = patch.factors[site]
                found.append((left[:, row].double(), right[row].double()))
    return found


def _by_keys(
    model: Model,
    how: ReFACT,
    site: str,
    facts: Sequence[Known],
    rows: Sequence[tuple[Tensor, Tensor]],
    clashing: set[tuple[str, str]],
    bounds: tuple[float, float],
) -> list[Conflict]:
    encoder, layer = _encoder(model, site), facts[0].logs[site]["layer"]
    prior, _ = held.prior_of(how, model, encoder, layer)
    keys = [places_again(how, encoder, layer, fact.edit).keys for fact in facts]
    directions = [torch.nn.functional.normalize(prior.whiten(k), dim=1) for k in keys]
    found = []
    for a, b in combinations(range(len(facts)), 2):
        names = facts[a].edit.name, facts[b].edit.name
        shared = float((directions[a] @ directions[b].T).square().max())
        if shared >= bounds[0] and names not in clashing and _target(facts[a].edit) != _target(facts[b].edit):
            found.append(Conflict("overlap", *names, shared, site))
        for one, other in ((a, b), (b, a)):
            left, right = rows[other]
            moved = float(
                (keys[one] @ right.to(keys[one].device)).abs().mean() * left.norm() / facts[one].offsets[site].norm()
            )
            if moved >= bounds[1] and _target(facts[one].edit) != _target(facts[other].edit):
                found.append(Conflict("harm", facts[one].edit.name, facts[other].edit.name, moved, site))
    return found
