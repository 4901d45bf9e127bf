"""Methods by name: those of this package, and those that other installed packages offer as `refact.methods`.

A package offers one in its pyproject.toml (docs/extending.md):

    [project.entry-points."refact.methods"]
    mymethod = "mypackage.module:MyMethod"
"""

from __future__ import annotations

import ast
import dataclasses
from importlib.metadata import EntryPoint
from typing import Any

from ..errors import RefactError
from ..offered import Offered
from .alphaedit import AlphaEdit
from .crossattention import TIME, UCE
from .diffquickfix import DiffQuickFix
from .entrance import Entrance
from .finetune import EmbEdit, FineTune
from .memit import EMCID, MEMIT
from .refact import ReFACT
from .speed import SPEED

GROUP = "refact.methods"
BUILT_IN: dict[str, type] = {
    cls.__name__.lower(): cls
    for cls in (ReFACT, MEMIT, EMCID, AlphaEdit, TIME, UCE, SPEED, Entrance, DiffQuickFix, FineTune, EmbEdit)
}


def _wrong(point: EntryPoint, cls: Any) -> str:
    fits = isinstance(cls, type) and dataclasses.is_dataclass(cls) and "__call__" in dir(cls)
    return "" if fits else "a dataclass that can be called"


METHODS: Offered[type] = Offered(GROUP, BUILT_IN, RefactError, _wrong, str.lower)  # by lower-case name


def presets() -> list[str]:
    """The named settings of this package's methods, as `method` takes them: "refact:paper"."""
    return [f"{name}:{preset}" for name, cls in BUILT_IN.items() for preset in getattr(cls, "presets", ())]


def method(name: str, **settings: Any) -> Any:
    """The method of that name ("refact", "refact:many", "time:strength=1", ...) with these settings.

    A setting's value may hold colons: "refact:authors:layer=7:corpus=hf:wikitext:wikitext-103-raw-v1".

    Raises RefactError for a name, preset or setting that does not exist.
    """
    base, *words = name.split(":")
    first = next((at for at, word in enumerate(words) if "=" in word), len(words))
    base, preset = base.lower(), ":".join(words[:first]).lower()
    given = [word.partition("=") for word in _whole(words[first:])]
    settings = {key.strip(): _value(text.strip()) for key, _, text in given} | settings
    if base not in METHODS:
        raise RefactError(f"no method {name!r}: there are {', '.join([*METHODS, *presets()])}")
    cls: Any = METHODS[base]
    if preset and preset not in getattr(cls, "presets", ()):
        raise RefactError(f"no method {name!r}: there are {', '.join([*METHODS, *presets()])}")
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(settings) - known):
        raise RefactError(f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return getattr(cls, preset)(**settings) if preset else cls(**settings)


def _whole(words: list[str]) -> list[str]:
    """The settings of a name split at colons, those inside values put back."""
    found: list[str] = []
    for word in words:
        found = [*found, word] if "=" in word else [*found[:-1], f"{found[-1]}:{word}"]
    return found


def _value(text: str) -> Any:
    """A setting's value as Python writes it; what it would not read is a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
