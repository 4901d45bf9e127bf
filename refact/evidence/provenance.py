"""What a run was made of and with: the settings that must agree when it goes on, and the versions that need not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..encoders.fingerprints import Fingerprint
from ..methods.registry import METHODS
from ..models.sources import digest_of
from .cases import Case
from .judge import Judge

FORM = 1  # of the files; a run of another form is refused


def settings_of(name: str, cases: Sequence[Case], model: Any, judge: Judge | None, plan: Any) -> dict:
    """All that the scores depend on, as JSON."""
    digest = hashlib.sha256(json.dumps([c.to_json() for c in cases], sort_keys=True).encode()).hexdigest()[:16]
    form = {
        "form": FORM,
        "data": {"name": name, "cases": len(cases), "hash": digest, "kind": cases[0].kind if cases else None},
        "model": made_of(model, drawn=bool(judge or plan.keep_images)),
        "judge": judge and {"name": judge.name, "hash": judge.hash},
        **{f.name: getattr(plan, f.name) for f in dataclasses.fields(plan) if f.name not in ("methods", "names")},
        "names": dataclasses.asdict(plan.names),
        "methods": {label: form_of(method) for label, method in plan.methods.items()},
    }
    return json.loads(json.dumps(form))


def made_of(model: Any, drawn: bool) -> dict:
    """What a model is, as far as a run depends on it. drawn: whether that is its pictures, and so its generator."""
    form = {"name": model.name, "family": model.family.name, "fingerprints": model.fingerprints(whole=drawn)}
    if given := getattr(model, "_companion", None):  # named by the user; the bundled one belongs to its model
        form["companion"] = (
            digest_of(sorted(Path(given).expanduser().glob("*.safetensors")))
            if isinstance(given, (str, Path))
            else Fingerprint()(dict(given.named_parameters()))
        )
    if getattr(model, "dtype", torch.float32) != torch.float32:
        form["dtype"] = str(model.dtype)
    if getattr(model, "compiled", False):  # it moves the last digits
        form["compiled"] = True
    return form


def form_of(method: Any) -> dict | None:
    """A method's name and settings; None for the unedited model."""
    return method and {"name": type(method).__name__, **dataclasses.asdict(method)}


def known_then(asked: dict | None, there: dict | None) -> dict | None:
    """A method's form less the settings that a run's form does not have yet and that stand at their default.

    So a run that was begun before a setting existed goes on, as long as nobody asks for another value of it.
    """
    if not asked or not there or (cls := METHODS.get(str(asked.get("name")).lower())) is None:
        return asked
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    new = {key for key, value in asked.items() if key not in there and key in defaults and defaults[key] == value}
    return {key: value for key, value in asked.items() if key not in new}


def versions() -> dict[str, str]:
    """What the run was made with; not compared."""
    import torch
    import transformers

    from .. import __version__

    return {
        "refact": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def differing(one: Any, other: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves at which two JSON forms differ, by their dotted names."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return {} if one == other else {key: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in one.keys() | other.keys():
        found |= differing(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    return found
