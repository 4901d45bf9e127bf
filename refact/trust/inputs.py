"""The lock file of a build: what went in and what came out, as hashes, to compare builds on other machines.

It lies beside the patch, "facts.lock.json" beside "facts.safetensors", and is meant to be kept with the file of facts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import shown
from . import disk, schema

FORM = 1


def path_of(output: Path) -> Path:
    """The lock file that belongs to a patch."""
    return output.with_suffix(".lock.json")


def digest(content: bytes) -> str:
    """sha256, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def hash_of(form: Any) -> str:
    """sha256 of a JSON form, whatever the order of its keys."""
    return digest(json.dumps(form, sort_keys=True).encode())


def inputs_of(facts: Iterable[dict], pictures: Iterable[Path], model: dict, method: dict, versions: dict) -> dict:
    """All that a build depends on: each fact and picture by its hash, the model, the settings, the versions."""
    return {
        "facts": {fact["prompt"]: hash_of(fact) for fact in facts},
        "pictures": {str(path): digest(path.read_bytes()) for path in pictures},
        "model": model,
        "method": json.loads(json.dumps(method)),
        "versions": versions,
    }


def write(output: Path, inputs: dict, covariance: dict, upon: str | None) -> None:
    """The lock file of the patch that has just been written. upon: hash of the earlier patch whose searches it uses."""
    made = {"file": output.name, "sha256": digest(output.read_bytes()), "covariance": covariance, "upon": upon}
    form = {"refact_lock": FORM, "inputs": inputs, "made": made}
    disk.write(path_of(output), json.dumps(form, indent=1, sort_keys=True).encode() + b"\n")


def read(output: Path) -> dict | None:
    """The lock file of a patch; None where there is none. Raises DataError."""
    path = path_of(output)
    return schema.lock(schema.parse(path.read_bytes(), str(path)), str(path)) if path.is_file() else None


def differing(there: Any, here: Any, key: str = "") -> list[str]:
    """The leaves at which two forms differ, one line each: "versions.torch: 2.12.0 there, 2.13.0 here"."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [] if there == here else [f"{shown(key)}: {_leaf(there)} there, {_leaf(here)} here"]
    names = sorted(there.keys() | here.keys())
    return [
        line
        for name in names
        for line in differing(there.get(name), here.get(name), f"{key}.{name}" if key else str(name))
    ]


def _leaf(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return "none" if value is None else shown(value, 60)
