"""refact.edit: facts in, a patch out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import __version__
from .edits import Edit, distinct
from .methods.refact import ReFACT
from .models.covariance import corpus_label
from .models.model import Model, load
from .patch import Patch
from .progress import Progress, plainly
from .stash import lifted


def edit(
    model: Any,
    edits: Edit | Sequence[Edit],
    method: Any = None,
    onto: Sequence[Patch] = (),
    progress: Progress = plainly,
    kept: str | Path | None = None,
) -> Patch:
    """The patch that makes the edits true, by `method` (default `ReFACT()`); the model itself is left as it is.

    model: a `Model`, a live diffusers pipeline, or a name or path that `load` takes. It is edited as it is without
    patches: those that are active in it are lifted meanwhile; name them in `onto`, and their facts stay. progress:
    wraps the loops of the covariance and of the search; an exception that it raises cancels the edit. kept: a folder
    of patches, where this one is looked up by all that it depends on, and left otherwise; targets by picture are not.
    """
    method = method or ReFACT()
    ready = model if isinstance(model, Model) else load(model, encoders=getattr(method, "encoders", None) or None)
    wanted = [edits] if isinstance(edits, Edit) else list(edits)
    with lifted(ready.modules()), _showing(ready, progress):
        file = _file(kept, ready, wanted, method, onto)
        if file is not None and file.is_file():
            return Patch.load(file)
        patch = method(ready, wanted, onto)
    if file is not None:
        patch.save(file)
    return patch


@contextmanager
def _showing(model: Model, progress: Progress) -> Iterator[None]:
    """Within the block what is done with the model goes through `progress`; `plainly` leaves it as it is."""
    before = model.progress
    model.progress = before if progress is plainly else progress
    try:
        yield
    finally:
        model.progress = before


def _file(kept: str | Path | None, model: Model, edits: list[Edit], method: Any, onto: Sequence[Patch]) -> Path | None:
    """Where a patch is kept: its name is a hash of the weights, the facts, the settings and the version."""
    if kept is None or any(edit.targets_images for edit in edits):
        return None
    depends = {
        "refact": __version__,
        "family": model.family.name,
        "model": [model.name, model.fingerprints()],
        "method": [type(method).__name__, asdict(method)],
        "corpus": corpus_label(getattr(method, "corpus", "") or model.corpus),
        "edits": [edit.to_json() for edit in distinct(edits)],
        "onto": [patch.digest for patch in onto],
    }
    name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return Path(kept) / f"{name[:32]}.safetensors"
