"""What a patch file says about itself, read and checked without torch: the safetensors header and the record in it.

The record is JSON under the metadata key "refact", version 1:
    refact     1
    family     "sd1"
    model      {"name": str, "encoders": {component: hash of its weights}}
    method     {"name": "ReFACT", ...its settings}
    edits      [{...Edit.to_json(), "sites": {site: {"rows": [start, stop], "layer": ..., "steps": ..., ...}}}]
    imported   [{"name": str, "file": str, "sites": {...}}]        LoRAs that tell no prompt; may be absent
    refactored true where rows no longer belong to one edit; may be absent
    ladder     {"tried": [{"rung": str, ...}], "chosen": int}       other settings that were tried; may be absent
    covariance, preserved, versions                                 what was used, measured, installed
A file is hostile until this module has checked it.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .edits import Edit, numbered
from .errors import PatchError, RefactError, counted, quoted, shown
from .families import FAMILIES, site_of
from .trust import limits, schema

VERSION = 1
KEY = "refact"  # of our record in a file's metadata
HEADER_LIMIT = limits.HEADER
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Entry(NamedTuple):
    """One tensor of a file; start and stop count bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds; the tensors' bytes begin at `data`."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    data: int


# -- the header -------------------------------------------------------------------------------------------------------


def read_header(path: str | Path) -> Header:
    """The checked header of a safetensors file. Raises PatchError."""
    try:
        with Path(path).open("rb") as file:
            return parse_header(file, str(path))
    except OSError as error:
        raise PatchError(f"{path}: cannot be read: {error.strerror or error}") from None


def parse_header(file: BinaryIO, where: str) -> Header:
    """The checked header of an open file; leaves the file at the first tensor's byte."""
    size = os.fstat(file.fileno()).st_size
    if size > limits.FILE:
        raise PatchError(f"{where}: of {size / 1e9:.1f} GB; a patch has at most {limits.FILE / 1e9:.1f}")
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_LIMIT):
        raise PatchError(f"{where}: not a safetensors file (it announces {length} bytes of header in a file of {size})")
    form = schema.parse(file.read(length), f"{where}: its header", PatchError)
    if not isinstance(form, dict):
        raise PatchError(f"{where}: its header is not a JSON object")
    metadata = form.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise PatchError(f"{where}: its metadata are not texts")
    tensors = {name: _entry(entry, f"{where}: tensor {name[:200]!r}") for name, entry in form.items()}
    _check_layout(tensors, size - 8 - length, where)
    return Header(tensors, metadata, 8 + length)


def _entry(form: object, what: str) -> Entry:
    match form:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)], **rest} if not rest:
            if dtype not in SIZES:
                raise PatchError(f"{what} has dtype {dtype!r}; known are {', '.join(SIZES)}")
            if not all(type(n) is int and n >= 0 for n in shape):
                raise PatchError(f"{what} has shape {shown(str(shape))}")
            if len(shape) > limits.SIDES:
                raise PatchError(f"{what} has {len(shape)} dimensions; no tensor may have more than {limits.SIDES}")
            if any(n > limits.SIDE for n in shape):
                raise PatchError(f"{what} has shape {shape}; no side may be longer than {limits.SIDE}")
            if type(start) is not int or type(stop) is not int:
                raise PatchError(f"{what} has offsets {start} and {stop}; whole numbers are needed")
            if not 0 <= start <= stop or stop - start != math.prod(shape) * SIZES[dtype]:
                raise PatchError(f"{what} of {dtype} {shape} does not fill bytes {start} to {stop}")
            return Entry(dtype, tuple(shape), start, stop)
    raise PatchError(f"{what} needs dtype, shape and data_offsets, not {str(form)[:200]}")


def _check_layout(tensors: dict[str, Entry], size: int, where: str) -> None:
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise PatchError(f"{where}: tensor {name[:200]!r} begins at byte {entry.start}, expected {end}")
        end = entry.stop
    if end != size:
        raise PatchError(f"{where}: its tensors need {end} bytes, the file has {size}")


# -- the record -------------------------------------------------------------------------------------------------------


def read_record(path: str | Path) -> dict:
    """The checked record of a patch file. Raises PatchError."""
    return record_of(read_header(path), str(path))


def record_of(header: Header, where: str) -> dict:
    """The checked record in a header."""
    if KEY not in header.metadata:
        raise PatchError(f"{where}: no patch, it has no record of edits; a LoRA is read by `refact import`")
    record = schema.parse(header.metadata[KEY], f"{where}: its record", PatchError)
    family = record.get("family") if isinstance(record, dict) else None
    return check_record(record, ranks_of(header, family), where)


def ranks_of(header: Header, family: object) -> dict[str, int]:
    """Rank of each site that a file has factors for."""
    ranks = {}
    for name, entry in header.tensors.items():
        found = site_of(name, family if isinstance(family, str) else None)
        if found and found[1] == "down" and entry.shape:
            ranks[found[0]] = entry.shape[0]
    return ranks


def check_record(record: Any, ranks: dict[str, int], where: str) -> dict:
    """The record itself, if it has the form above and names only these sites and rows. Raises PatchError."""
    if not isinstance(record, dict):
        raise PatchError(f"{where}: the record is not a JSON object")
    schema.record(record, where)
    if record["family"] not in FAMILIES:
        raise PatchError(f"{where}: family {quoted(record['family'])}; known are {', '.join(FAMILIES)}")
    names = set()
    for part in parts_of(record):
        if part["name"] in names:
            raise PatchError(f"{where}: its facts need names that differ; two are {quoted(part['name'])}")
        names.add(part["name"])
        _check_sites(part["sites"], ranks, f"{where}: edit {quoted(part['name'])}")
    for edit in record["edits"]:
        try:
            Edit.from_json({key: value for key, value in edit.items() if key != "sites"})
        except RefactError as error:
            raise PatchError(f"{where}: edit {quoted(edit['name'])}: {error}") from None
    return record


def _check_sites(sites: dict, ranks: dict[str, int], what: str) -> None:
    for site, entry in sites.items():
        if site not in ranks:
            raise PatchError(f"{what} names site {quoted(site)}, for which there are no factors")
        start, stop = entry["rows"]
        if not 0 <= start < stop <= ranks[site]:
            raise PatchError(f"{what}: site {quoted(site)} has rows 0 to {ranks[site]}, not {start} to {stop}")


def parts_of(record: dict) -> list[dict]:
    """All that owns rows: edits, then imported LoRAs."""
    return [*record["edits"], *record.get("imported", [])]


def plain(value: Any) -> Any:
    """The value as JSON has it: tuples are lists, paths texts, numbers that are not finite null. Raises PatchError."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise PatchError(f"a record holds JSON values, not {type(value).__name__}")


def rows_of(record: dict, site: str) -> set[int]:
    """The rows of a site that belong to the record's edits."""
    return {row for part in parts_of(record) if site in part["sites"] for row in range(*part["sites"][site]["rows"])}


def check_owned(record: dict, ranks: dict[str, int]) -> None:
    """Raises PatchError where rows belong to no edit: a patch does nothing that its record does not tell."""
    for site, rank in ranks.items():
        if free := set(range(rank)) - rows_of(record, site):
            raise PatchError(f"patch: rows {sorted(free)[:5]} of {site} belong to no edit of the record")


def changed(record: dict) -> dict:
    """A copy of the record for a patch that is no longer the one whose effect on prompts was measured."""
    return copy.deepcopy({key: value for key, value in record.items() if key not in ("preserved", "ladder")})


def merged(records: Sequence[dict], ranks: Sequence[dict[str, int]]) -> dict:
    """The record of stacked patches, rows moved, repeated names numbered; settings are those that all share.

    `mixed` names the settings that they do not share; of contexts that differ it has all.

    ranks: rank of each site of each patch. Raises PatchError where they were made for different models.
    """
    total = changed(records[0])
    offsets = dict(ranks[0])
    for record, more in zip(records[1:], ranks[1:]):
        _check_same_model(total, record)
        _take_over(total, changed(record), offsets)
        offsets = {site: offsets.get(site, 0) + more.get(site, 0) for site in offsets | more}
    methods = [record["method"] for record in records]
    shared = {key: value for key, value in methods[0].items() if all(m.get(key) == value for m in methods)}
    total["method"] = shared | {"name": " + ".join(dict.fromkeys(method["name"] for method in methods))}
    mixed = {key for method in methods for key in (*(method.keys() - shared.keys()), *method.get("mixed", ()))}
    if mixed := mixed - {"name", "mixed"}:
        total["method"]["mixed"] = sorted(mixed)
    if {"templates", "contexts"} & mixed:
        every = [t for method in methods for t in method.get("templates", ["{}"])[: method.get("contexts", 1)]]
        total["method"] |= {"templates": list(dict.fromkeys(every)), "contexts": len(set(every))}
    if "with_bare" in mixed:
        total["method"]["with_bare"] = True
    return total


def _check_same_model(one: dict, other: dict) -> None:
    names = f"{one['model']['name']} ({one['family']}) and {other['model']['name']} ({other['family']})"
    hashes, others = one["model"]["encoders"], other["model"]["encoders"]
    different = sorted(part for part in hashes.keys() & others.keys() if hashes[part] != others[part])
    if different or one["family"] != other["family"]:
        what = f"their {', '.join(different)} differ" if different else "their families differ"
        raise PatchError(f"patches of {names} cannot be one patch: {what}")


def _take_over(total: dict, record: dict, offsets: dict[str, int]) -> None:
    taken = {part["name"] for part in parts_of(total)}
    for part in parts_of(record):
        if part["name"] in taken:
            part["name"], _ = numbered(part["name"], taken)
        taken.add(part["name"])
        for site, entry in part["sites"].items():
            entry["rows"] = [row + offsets.get(site, 0) for row in entry["rows"]]
    for key in ("edits", "imported"):
        total[key] = [*total.get(key, []), *record.get(key, [])]
    if not total["model"]["encoders"]:
        total["model"] = record["model"]
    total["model"]["encoders"] |= record["model"]["encoders"]
    total["refactored"] = total.get("refactored", False) or record.get("refactored", False)
    covariance = total.setdefault("covariance", {})
    for site, used in record.get("covariance", {}).items():
        before = covariance.setdefault(site, used)
        seen = before["merged"] if isinstance(before, dict) and isinstance(before.get("merged"), list) else [before]
        covariance[site] = before if used in seen else {"merged": [*seen, used]}


# -- for people -------------------------------------------------------------------------------------------------------


def describe(path: str | Path, record: dict) -> str:
    """What the patch changes, a line for each edit; no text of the file can end a line or move the cursor."""
    family = FAMILIES[record["family"]]
    kilobytes = Path(path).stat().st_size / 1024
    made = f"made for {shown(record['model']['name'])} ({family.title}) by {shown(record['method']['name'])}"
    lines = [f"{shown(path)}: {counted(len(parts_of(record)), 'fact')}, {kilobytes:.1f} KB", made]
    lines += [f"  {shown(edit['name'])}: {_meaning(edit)}{_where(edit)}" for edit in record["edits"]]
    lines += [f"  {shown(part['name'])}: imported{_where(part)}" for part in record.get("imported", [])]
    if record.get("refactored"):
        lines.append("re-factored: its facts can no longer be told apart")
    return "\n".join([*lines, family.note] if family.note else lines)


def _meaning(edit: dict) -> str:
    was = f" (was {_end(edit['old'])})" if edit.get("old") else ""
    return f"{quoted(edit['prompt'])} -> {_end(edit['new'])}{was}"


def _end(form: str | dict) -> str:
    """A target or a source: its words, or how many pictures."""
    return quoted(form) if isinstance(form, str) else counted(len(form["images"]), "picture")


def _where(part: dict) -> str:
    strengths = {entry["strength"] for entry in part["sites"].values() if "strength" in entry}
    weaker = f", strength {', '.join(f'{s:g}' for s in sorted(strengths)[:4])}" if strengths else ""
    sites = [shown(site) for site in part["sites"]]
    where = ", ".join(sites) if len(sites) <= 4 else f"{len(sites)} sites, {sites[0]} ..."
    return f"  [{where}{weaker}]"
