"""Edit facts in text-to-image models.

import refact
model = refact.load("pocket")
patch = refact.edit(model, refact.Edit("the national animal of Canada", old="a beaver", new="a penguin"))
patch.save("canada.safetensors")
with patch.applied(model):
    model.generate("the national animal of Canada on the beach", seeds=[0])[0].image.save("after.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {  # names are imported when first used, so that `import refact` costs milliseconds and no torch
    "Edit": "edits",
    "read_edits": "edits",
    "RefactError": "errors",
    "EditError": "errors",
    "PatchError": "errors",
    "ModelError": "errors",
    "DataError": "errors",
    "Model": "models.model",
    "load": "models.model",
    "from_state_dict": "models.live",
    "from_modules": "models.live",
    "save_adapter": "models.adapter",
    "Patch": "patch",
    "merge": "patch",
    "bake": "exports",
    "export": "exports",
    "edit": "editing",
    "verify": "verification",
    "build": "stores",
    "conflicts": "stores",
    "solve_jointly": "stores",
    "ReFACT": "methods.refact",
    "MEMIT": "methods.memit",
    "AlphaEdit": "methods.alphaedit",
    "DiffQuickFix": "methods.diffquickfix",
    "EMCID": "methods.memit",
    "TIME": "methods.crossattention",
    "SPEED": "methods.speed",
    "UCE": "methods.crossattention",
    "Entrance": "methods.entrance",
    "FineTune": "methods.finetune",
    "EmbEdit": "methods.finetune",
    "METHODS": "methods.registry",
    "method": "methods.registry",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from .editing import edit as edit
    from .edits import Edit as Edit
    from .edits import read_edits as read_edits
    from .exports import bake as bake
    from .exports import export as export
    from .models.adapter import save_adapter as save_adapter
    from .models.live import from_modules as from_modules
    from .models.live import from_state_dict as from_state_dict
    from .models.model import Model as Model
    from .models.model import load as load
    from .patch import Patch as Patch
    from .patch import merge as merge


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'refact' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
