"""What the drivers share. A driver loads patches with one program's own code, in that program's Python, without refact.

    python drivers/NAME.py CHECKOUT CASES

CASES/FAMILY/before.safetensors and after.safetensors hold the weights of a few fc2, by site, before and after the
patch; every other file there is the patch in one form. What is printed is one JSON object:
{"version": ..., "results": {family: {form: {"result": ..., "difference": ..., "effect": ...}}}}.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

SHAPES = {768: (12, 3072), 1024: (16, 4096), 1280: (20, 5120)}  # width: heads, inner width
Apply = Callable[[str, Path, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
USED: list[str] = []  # versions of the libraries whose modules were patched: what loads depends on them too


class Refused(Exception):
    """The program did not take the file, in its own words."""


# -- stand-ins --------------------------------------------------------------------------------------------------------


class _Anything(type):
    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)

    def __call__(cls, *args, **kwargs):
        return super().__call__()

    def __iter__(cls):
        return iter(())

    def __getitem__(cls, _):
        return cls

    def __or__(cls, _):
        return cls

    __ror__ = __or__


def _anything(name: str) -> type:
    return _Anything(name, (), {"__init_subclass__": classmethod(lambda cls, **_: None)})


class _StandIn(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if any(name == known or name.startswith(f"{known}.") for known in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def _ask_transformers(names: tuple[str, ...]) -> None:
    """Let transformers 5 find out which of these are installed, which it remembers: it wants a version of what is."""
    try:
        from transformers.utils import import_utils
    except ImportError:
        return
    for name in names:
        getattr(import_utils, f"is_{name}_available", bool)()


def stand_in(*names: str) -> None:
    """Empty modules for libraries that the program's LoRA code imports and does not use, where they are not installed;
    a name that begins with "!" is replaced even so."""
    _ask_transformers(names)
    missing = []
    for name in names:
        if name.startswith("!"):
            missing.append(name[1:])
            continue
        try:
            there = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            missing.append(name)
    sys.meta_path.insert(0, _Finder(tuple(missing)))


# -- towers -----------------------------------------------------------------------------------------------------------


def tower(width: int, projected: bool, layers: int = 3) -> nn.Module:
    """A text encoder of transformers, as wide as a published one; its memory is not filled."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, __version__

    USED[:] = [f" with transformers {__version__}"]
    heads, inner = SHAPES[width]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        vocab_size=100,
    )
    with torch.device("meta"):
        module = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    return module.to_empty(device="cpu").float().requires_grad_(False)


def towers(family: str, before: dict[str, torch.Tensor]) -> dict[str, nn.Module]:
    """The text encoders of a family, with these weights at the sites."""
    made: dict[str, nn.Module] = {}
    for site, weight in before.items():
        component = site.partition(".")[0]
        projected = family == "sd3" or component == "text_encoder_2"
        made.setdefault(component, tower(len(weight), projected))
        linear(made[component], site).weight.data = weight.clone()
    return made


def linear(module: nn.Module, site: str) -> nn.Linear:
    """The module at a site, on both layouts of transformers."""
    path = site.partition(".")[2]
    return module.get_submodule(path if hasattr(module, "text_model") else path.removeprefix("text_model."))


def weights(made: dict[str, nn.Module], sites) -> dict[str, torch.Tensor]:
    return {site: linear(made[site.partition(".")[0]], site).weight.detach().clone() for site in sites}


# -- the run ----------------------------------------------------------------------------------------------------------


def judged(before: dict, after: dict, found: dict) -> dict:
    """How a file was loaded: "loads" where every site changed as it should, "ignored" where none did."""
    effect = max(float((after[site] - before[site]).abs().max()) for site in before)
    off = {site: float((found[site].float() - after[site]).abs().max()) for site in before}
    same = [bool(torch.equal(found[site].float(), before[site])) for site in before]
    right = [difference < 1e-3 * effect for difference in off.values()]
    result = "loads" if all(right) else "ignored" if all(same) else "in part" if any(right) else "wrong"
    return {"result": result, "difference": max(off.values()), "effect": effect}


def main(apply: Apply, version: Callable[[Path], str], families: tuple[str, ...]) -> None:
    """Run every file of every family that the program has, and print what became of it."""
    checkout, cases = Path(sys.argv[1]), Path(sys.argv[2])
    results: dict[str, dict] = {}
    for family in families:
        before, after = (load_file(cases / family / f"{name}.safetensors") for name in ("before", "after"))
        for file in sorted((cases / family).glob("*.safetensors")):
            if file.stem in ("before", "after"):
                continue
            words = io.StringIO()
            try:
                with contextlib.redirect_stdout(words):
                    found = apply(family, file, before)
                results.setdefault(family, {})[file.stem] = judged(before, after, found)
            except Refused as error:
                results.setdefault(family, {})[file.stem] = {"result": "refused", "why": str(error)[:200]}
    print(json.dumps({"version": version(checkout) + "".join(USED), "results": results}))


def reading(file: str, pattern: str) -> Callable[[Path], str]:
    """The version that a file of the checkout states."""
    import re

    def version(checkout: Path) -> str:
        found = re.search(pattern, (checkout / file).read_text(encoding="utf-8"))
        return found.group(1) if found else "unknown"

    return version
