"""The settings of a method: its dataclass fields, whose types carry their meaning as `Annotated[..., Doc(...)]`.

This is the only list of settings: the command line's flags, its help and the documentation are made from it.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from annotated_doc import Doc


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
