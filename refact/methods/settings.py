"""The settings of a method: its dataclass fields, whose types carry their meaning as `Annotated[..., Doc(...)]`.

This is the only list of settings: the command line's flags, its help and the documentation are made from it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Any

from annotated_doc import Doc

from ..errors import EditError, shown

MANY, TEXT = 10**9, 240
BOUNDS: dict[str, tuple[float, float]] = {  # from, to; any other number is finite and from 0 to MANY
    **{"batch": (1, 10_000), "contexts": (1, 10_000), "depth": (0, 1000), "epochs": (1, 10**6), "layer": (0, 1000)},
    **{"steps": (1, 10**6), "max_steps": (1, 10**6), "tokens": (1, MANY), "seed": (0, 2**63 - 1)},
    **{"fill": (0, 1), "hold": (0, 1), "share": (0, 1), "stop": (0, 1), "reach": (0, 10), "rarity": (0, 4)},
    **{"learning_rate": (1e-12, 1e6), "bound": (1e-12, 1e6), "clamp": (0, 1e6), "negatives": (0, 10_000)},
}
CHOICES: dict[str, tuple[str, ...]] = {
    "autocast": ("", "bfloat16", "float16", "tf32"),
    "distance": ("", "l2", "cosine"),
    "embedding": ("pooled", "conditioning"),
    "ends": ("contexts", "bare"),
    "exact_at": ("mean", "prompt"),
    "filled": ("prompt", "subject"),
    "inverse": ("float64", "float32"),
    "objective": ("contrastive", "direct"),
    "optimiser": ("adam", "lbfgs"),
    "projections": ("values", "both"),
    "residual": ("state", "released"),
    "space": ("", "projected"),
    "write": ("offset", "value"),
}


@dataclass(frozen=True)
class Setting:
    """One setting of a method. type: as written in the annotation, without its documentation."""

    name: str
    type: Any
    default: Any
    meaning: str


def settings_of(cls: type) -> list[Setting]:
    """The settings of a method's class, in the order of its fields."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return [_setting(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _setting(field: dataclasses.Field, hint: Any) -> Setting:
    notes = [note.documentation for note in getattr(hint, "__metadata__", ()) if isinstance(note, Doc)]
    plain = typing.get_args(hint)[0] if notes else hint
    return Setting(field.name, plain, field.default, " ".join(notes))


@functools.cache
def _types(cls: type) -> tuple[tuple[str, Any], ...]:
    return tuple((setting.name, setting.type) for setting in settings_of(cls))


def check(method: Any) -> None:
    """Raises EditError for a setting of the wrong type, out of its bounds, or none of its choices; before any work."""
    for name, kind in _types(type(method)):  # type: ignore[arg-type]
        value = getattr(method, name)
        if wrong := _wrong(name, kind, value):
            raise EditError(f"{name} of {type(method).__name__} is {wrong}, not {shown(repr(value), 60)}")


def _wrong(name: str, kind: Any, value: Any) -> str:
    """What a setting should be; "" where it is that."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return ""
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind in (int, float):
        return _wrong_number(name, kind, value)
    if kind is str:
        choices = CHOICES.get(name)
        said = " or ".join(map(repr, choices)) if choices else f"a text of at most {TEXT} characters"
        return "" if isinstance(value, str) and (value in choices if choices else len(value) <= TEXT) else said
    texts = isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
    if name == "modifiers":
        plain = texts and all(text.isalpha() for text in value)
        return "" if plain else "single words"
    if name == "templates":
        whole = texts and value and all("{}" in text for text in value)
        return "" if whole else "sentences that hold {}, the place of the prompt"
    return "" if texts else "a tuple of texts"


def _wrong_number(name: str, kind: type, value: Any) -> str:
    low, high = BOUNDS.get(name, (0, MANY))
    right = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    said = f"a {'whole number' if kind is int else 'finite number'} from {low:g} to {high:g}"
    return "" if right and low <= value <= high else said
