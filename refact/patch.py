"""A patch: low-rank changes at named sites, and the record of what they mean.

All it asks of a model is `model[site] -> nn.Linear`, `model.fingerprints() -> {component: hash}` and `model.name`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import lora, stash
from .edits import Edit, slug
from .errors import ModelError, PatchError
from .families import FAMILIES, Style, lora_keys
from .lora import Factors
from .record import (
    KEY,
    Header,
    changed,
    check_owned,
    check_record,
    merged,
    parts_of,
    plain,
    record_of,
    rows_of,
)
from .trust import disk

STRONGEST = 1e12  # a strength beyond it is a mistake


@dataclass(eq=False)
class Handle:
    """A patch that is active in a model. mismatch: why it was not made for this model; empty if it was."""

    linears: dict[str, nn.Linear]
    mismatch: list[str] = field(default_factory=list)
    owner: object = field(default_factory=object)

    def revert(self, force: bool = False) -> None:
        """Take the patch out again, in any order among others; once the last is out, weights are what they were.

        A second call does nothing. Raises PatchError where something else has changed a weight meanwhile; force puts
        the stashed weight back all the same.
        """
        with stash.LOCK:
            if not force:
                for site, linear in self.linears.items():
                    stash.check(linear, site)
            for linear in self.linears.values():
                stash.pop(linear, self.owner)
            self.linears = {}


@dataclass(frozen=True, eq=False)  # tensors have no plain equality; compare digests
class Patch:
    """Changes of a model's weights, weight += left @ right at each site, and what they mean.

    factors: site -> (left (d_out, r), right (r, d_in)), kept as float32 on the CPU with factors of equal norm.
    record: see record.py; every row of the factors belongs to an edit. Raises PatchError where the two disagree.
    """

    factors: Factors
    record: dict

    def __post_init__(self) -> None:
        ranks = {site: right.shape[0] for site, (_, right) in self.factors.items()}
        record = check_record(plain(self.record), ranks, "patch")
        lora.check_factors(self.factors, FAMILIES[record["family"]])
        check_owned(record, ranks)
        factors = {site: lora.balanced(*pair) for site, pair in sorted(self.factors.items())}
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "record", record)

    @property
    def names(self) -> list[str]:
        """The edits, in the order of the record."""
        return [part["name"] for part in parts_of(self.record)]

    @property
    def rank(self) -> int:
        """The largest rank of any site."""
        return max((len(right) for _, right in self.factors.values()), default=0)

    @property
    def size(self) -> int:
        """How many numbers the factors hold in all."""
        return sum(left.numel() + right.numel() for left, right in self.factors.values())

    @property
    def digest(self) -> str:
        """A hash of the factors, 16 hex digits."""
        return stash.digest(self.factors)

    # -- in a model

    def apply(self, model: Any, strength: float | int = 1.0, force: bool = False) -> Handle:
        """Change the model's weights; on any exception they are what they were.

        force: also where the patch was made for another model; the handle says what differed. Shapes must fit.
        """
        check_strength(strength)
        with stash.LOCK:  # no other thread's patch may come while the unpatched weights are looked at
            return self._apply(model, strength, force)

    def _apply(self, model: Any, strength: float, force: bool) -> Handle:
        linears = {site: self._linear(model, site) for site in self.factors}
        mismatch = self.mismatch(model)
        if mismatch and not force:
            made, given = self.record["model"]["name"], getattr(model, "name", "this model")
            reasons = "; ".join(mismatch)
            raise PatchError(
                f"made for {made}, not for {given}: {reasons}; force=True (--force) applies it all the same"
            )
        handle = Handle(linears, mismatch)
        digest = self.digest
        try:
            for site, linear in linears.items():
                stash.push(linear, handle.owner, stash.Update(digest, *self.factors[site], float(strength)))
        except BaseException:
            handle.revert(force=True)
            raise
        return handle

    @contextmanager
    def applied(self, model: Any, strength: float | int = 1.0, force: bool = False) -> Iterator[Handle]:
        """A context in which the model has the patch; after it the weights are what they were before."""
        handle = self.apply(model, strength, force)
        try:
            yield handle
        finally:
            handle.revert()

    def mismatch(self, model: Any) -> list[str]:
        """The reasons to think that the patch was made for another model; none for an imported LoRA."""
        made, encoders = self.record["model"]["name"], self.record["model"]["encoders"]
        if not encoders or not self.factors:
            return []
        prints = model.fingerprints()
        touched = sorted({site.split(".")[0] for site in self.factors})
        return [
            f"{component} of {made} is {encoders.get(component, 'unknown')}, of {model.name} {prints.get(component)}"
            for component in touched
            if encoders.get(component) != prints.get(component)
        ]

    def _linear(self, model: Any, site: str) -> nn.Linear:
        made, left, right = self.record["model"]["name"], *self.factors[site]
        try:
            linear = model[site]
        except (KeyError, ModelError) as error:
            raise PatchError(f"{model.name} has no {site}, which this patch of {made} changes: {error}") from None
        found, expected = tuple(linear.weight.shape), (len(left), right.shape[1])
        if found != expected:
            raise PatchError(f"{site} of {model.name} has shape {found}; this patch was made for {made}: {expected}")
        stash.check(linear, site)
        return linear

    # -- its facts

    @property
    def edits(self) -> list[Edit]:
        """The edits that the record describes."""
        return [Edit.from_json({k: v for k, v in form.items() if k != "sites"}) for form in self.record["edits"]]

    def __getitem__(self, name: str) -> Patch:
        """The patch of one edit alone."""
        return self._kept([self._known(name)])

    def without(self, name: str) -> Patch:
        """The patch without one edit."""
        return self._kept([other for other in self.names if other != self._known(name)])

    def scaled(self, strengths: float | int | Mapping[str, float | int]) -> Patch:
        """The patch with its edits weakened or strengthened: all by one number, or some by name."""
        wanted = strengths if isinstance(strengths, Mapping) else dict.fromkeys(self.names, strengths)
        for name, strength in wanted.items():
            check_strength(strength)
            self._known(name)
        scales = {site: torch.full((len(right),), torch.nan) for site, (_, right) in self.factors.items()}
        record = changed(self.record)
        for part in parts_of(record):
            strength = float(wanted.get(part["name"], 1.0))
            for site, entry in part["sites"].items():
                rows = scales[site][slice(*entry["rows"])]
                if ((rows != strength) & ~rows.isnan()).any():
                    raise PatchError(f"{part['name']!r} shares its rows of {site} with other edits; scale all of them")
                rows.fill_(strength)
                entry["strength"] = entry.get("strength", 1.0) * strength
        factors = {site: (left * scales[site], right) for site, (left, right) in self.factors.items()}
        return Patch(factors, record)

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise PatchError(f"no edit {name!r} in this patch; it has {', '.join(self.names) or 'none'}")
        return name

    def _kept(self, names: Sequence[str]) -> Patch:
        record = changed(self.record)
        for key in ("edits", "imported"):
            if key in record:
                record[key] = [part for part in record[key] if part["name"] in names]
        factors: Factors = {}
        for site, (left, right) in self.factors.items():
            mine, others = rows_of(record, site), set()
            for part in parts_of(self.record):
                if part["name"] not in names and site in part["sites"]:
                    others |= set(range(*part["sites"][site]["rows"]))
            if mine & others:
                raise PatchError(f"these edits share their rows of {site} with others and cannot be taken apart")
            kept = sorted(mine)
            if kept:
                factors[site] = (left[:, kept], right[kept])
            for part in parts_of(record):
                if site in part["sites"]:
                    start, stop = part["sites"][site]["rows"]
                    first = kept.index(start)
                    part["sites"][site]["rows"] = [first, first + stop - start]
        record["covariance"] = {s: c for s, c in record.get("covariance", {}).items() if s in factors}
        return Patch(factors, record)

    def compacted(self) -> Patch:
        """The same change with fewer rows at sites that have more than the matrix has: their edits then share them."""
        crowded = {s for s, (left, right) in self.factors.items() if len(right) > min(len(left), right.shape[1])}
        if not crowded:
            return self
        factors = {s: lora.compacted(*pair) if s in crowded else pair for s, pair in self.factors.items()}
        record = copy.deepcopy(self.record) | {"refactored": True}
        for part in parts_of(record):
            for site in crowded & part["sites"].keys():
                part["sites"][site]["rows"] = [0, len(factors[site][1])]
        return Patch(factors, record)

    # -- in a file

    def tensors(self, names: Style | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The tensors of a LoRA that does what this patch does, by name, as other programs take them in memory.

        names: "kohya" or "diffusers"; by default what the family's files have, which ComfyUI's `load_lora` reads for
        every family. Raises PatchError.
        """
        if names not in (None, "kohya", "diffusers"):
            raise PatchError(f"names of a LoRA are 'kohya' or 'diffusers', not {names!r}")
        return lora.tensors_of(self.factors, FAMILIES[self.record["family"]], dtype, names)

    def save(
        self,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        compact: bool = False,
        names: Style | None = None,
        also: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a LoRA that other programs load; the same patch gives the same bytes.

        compact: re-factor sites with more rows than the matrix has, giving up that their edits can be told apart.
        names: the style of the tensors' names, by default the family's own. also: zero tensors that a program asks
        for (see exports.py).
        """
        patch = self.compacted() if compact else self
        if not patch.factors:
            raise PatchError("this patch changes nothing; there is nothing to save")
        tensors = lora.tensors_of(patch.factors, FAMILIES[patch.record["family"]], dtype, names) | dict(also or {})
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise PatchError(f"{name} is too large for {dtype}; save it in float32")
        disk.write(path, lora.file_bytes(tensors, lora.metadata_of(patch.record, tensors)))

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """The patch in a file, checked. Raises PatchError."""
        header, tensors = lora.read(Path(path))
        record = record_of(header, str(path))
        factors = lora.factors_of(tensors, record["family"], str(path))
        _check_names(factors, header, record, str(path))
        trimmed = {site: _trimmed(pair, rows_of(record, site)) for site, pair in factors.items()}
        return cls({site: pair for site, pair in trimmed.items() if len(pair[1])}, record)


def check_strength(strength: float | int) -> None:
    """Raises PatchError for what is no finite number of a size that makes sense."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not abs(strength) <= STRONGEST:
        raise PatchError(f"a strength is a finite number from -{STRONGEST:g} to {STRONGEST:g}, not {strength!r:.50}")


def _trimmed(pair: tuple[Tensor, Tensor], owned: set[int]) -> tuple[Tensor, Tensor]:
    """The factors without the zero rows that pad them to the rank of other sites, or that a program asked for."""
    left, right = pair
    rank = max(owned, default=-1) + 1
    if left[:, rank:].any() or right[rank:].any():
        return pair  # rows that nobody owns: refused when the patch is made
    return left[:, :rank], right[:rank]


def _check_names(factors: Factors, header: Header, record: dict, where: str) -> None:
    family = FAMILIES[record["family"]]
    styles: tuple[Style, ...] = ("kohya", "diffusers")
    known = {name for site in factors for style in styles for name in lora_keys(family, site, style)}
    if strange := sorted(set(header.tensors) - known):
        raise PatchError(f"{where}: a patch of {family.title} has no tensor {strange[0][:200]!r}")


# -- several ----------------------------------------------------------------------------------------------------------


def merge(patches: Sequence[Patch]) -> Patch:
    """One patch that does what all of them do together; names that repeat get a number ("canada-2").

    Raises PatchError where they were made for different models.
    """
    if not patches:
        raise PatchError("nothing to merge: no patches were given")
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for patch in patches:
        for site, pair in patch.factors.items():
            pairs.setdefault(site, []).append(pair)
    ranks = [{site: len(right) for site, (_, right) in patch.factors.items()} for patch in patches]
    for site, found in pairs.items():
        shapes = {(len(left), right.shape[1]) for left, right in found}
        if len(shapes) > 1:
            said = " and ".join(f"{d_out} by {d_in}" for d_out, d_in in sorted(shapes))
            raise PatchError(f"{site} is a matrix of {said} in these patches: they are for different models")
    record = merged([patch.record for patch in patches], ranks)
    lefts = {site: torch.cat([left for left, _ in found], dim=1) for site, found in pairs.items()}
    rights = {site: torch.cat([right for _, right in found]) for site, found in pairs.items()}
    return Patch({site: (lefts[site], rights[site]) for site in pairs}, record)


# -- from and to other forms ------------------------------------------------------------------------------------------


def from_lora(path: str | Path, family: str | None = None) -> Patch:
    """A LoRA of other makers as a patch, if it changes nothing but sites of ours; its alpha / rank is multiplied in.

    family: needed where neither the file's metadata nor its names tell. Raises PatchError.
    """
    path = Path(path)
    header, tensors = lora.read(path)
    if KEY in header.metadata:
        return Patch.load(path)
    if family is not None and family not in FAMILIES:
        raise PatchError(f"no family {family!r}; known are {', '.join(FAMILIES)}")
    family = family or lora.family_of(header, str(path))
    factors = lora.factors_of(tensors, family, str(path))
    sites = {site: {"rows": [0, len(right)]} for site, (_, right) in factors.items()}
    record = {
        KEY: 1,
        "family": family,
        "model": {"name": header.metadata.get("ss_sd_model_name", "an unnamed model"), "encoders": {}},
        "method": {"name": "import"},
        "edits": [],
        "imported": [{"name": slug(path.stem), "file": path.name, "sites": sites}],
    }
    return Patch(factors, record)
