"""refact.edit: facts in, a patch out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .edits import Edit
from .methods.refact import ReFACT
from .models.model import Model, load
from .patch import Patch


def edit(model: Any, edits: Edit | Sequence[Edit], method: Any = None, onto: Sequence[Patch] = ()) -> Patch:
    """The patch that makes the edits true, by `method` (default `ReFACT()`); the model itself is left as it is.

    model: a `Model`, a live diffusers pipeline, or a name or path that `load` takes. onto: patches whose facts stay.
    """
    method = method or ReFACT()
    ready = model if isinstance(model, Model) else load(model, encoders=getattr(method, "encoders", None) or None)
    return method(ready, [edits] if isinstance(edits, Edit) else list(edits), onto)
