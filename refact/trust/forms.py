"""How a form that came from a file is checked: strict JSON, words and numbers with bounds, errors in one line."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import DataError, RefactError, quoted, shown
from . import limits


def parse(text: bytes | str, what: str, error: type[RefactError] = DataError) -> Any:
    """Strict JSON: no key twice, no NaN or Infinity, no integer over 64 bits, no depth over `limits.DEPTH`.

    Raises `error`.
    """
    try:
        form = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_refuse)
    except (ValueError, RecursionError) as reason:
        raise error(f"{what} is not valid JSON: {reason}") from None
    if _deeper(form, limits.DEPTH):
        raise error(f"{what} is nested deeper than {limits.DEPTH} levels")
    return form


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    if len(form := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return form


def _integer(digits: str) -> int:
    """Where a number is needed it may be written as an integer, which no tensor or plot takes beyond 64 bits."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"the integer {digits[:10]}... does not fit into 64 bits")
    return int(digits)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _deeper(form: Any, depth: int) -> bool:
    """Whether JSON is nested deeper than this; without recursion."""
    level = [form]
    for _ in range(depth + 1):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


# -- words ------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("printable characters alone are allowed")
    return text


def _plain_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.=+-]*", text, re.ASCII) or ".." in text:
        raise ValueError("a name of letters, digits, dots and hyphens is needed")
    return text


Text = Annotated[str, Field(max_length=limits.TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=limits.NAME), AfterValidator(printable)]
FileName = Annotated[str, Field(max_length=limits.NAME), AfterValidator(_plain_name)]
Texts = Annotated[list[Text], Field(max_length=limits.LIST)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
Count = Annotated[int, Field(ge=0, le=2**31)]
Seed = Annotated[int, Field(ge=0, le=limits.SEED)]


class Form(BaseModel):
    """An object of which only the named parts are read; types are taken literally."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


# -- how a form is checked --------------------------------------------------------------------------------------------


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def checked(kind: Any, form: Any, where: str, error: type[RefactError]) -> Any:
    """The form itself. Raises `error` with the first thing that is wrong: where it is, what is there, what may be."""
    made(kind, form, where, error)
    return form


def made(kind: Any, form: Any, where: str, error: type[RefactError]) -> Any:
    try:
        return _adapter(kind).validate_python(form)
    except (ValidationError, RecursionError) as found:
        raise error(f"{where}{_told(found)}") from None


def _told(found: ValidationError | RecursionError) -> str:
    if isinstance(found, RecursionError):
        return " is nested too deep"
    problems = found.errors(include_url=False, include_context=False)
    first = min(problems, key=lambda problem: len(problem["loc"]) and -len(problem["loc"]))
    place = _place(first["loc"])
    if first["type"] == "missing":
        return f" has no {quoted(place)}"
    reason = _SAID.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return f"{chr(39)}s {quoted(place)}: {reason}, not {_seen(first['input'])}" if place else f": {reason}"


_SAID = dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), "a JSON object is needed") | {
    "list_type": "a list is needed",
    "string_type": "a text is needed",
    "string_unicode": "a text of Unicode characters is needed",
    "int_type": "a whole number is needed",
    "float_type": "a number is needed",
    "bool_type": "true or false is needed",
    "finite_number": "a finite number is needed",
}


def _place(parts: tuple) -> str:
    """edits[0].sites.unet.rows; of a union's alternatives the name of the one that came nearest is left out."""
    kinds = {"Images", "str", "constrained-str", "float", "list", "dict"}
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if part not in kinds)
    return path.removeprefix(".")


def _seen(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return quoted(value, 60) if isinstance(value, str) else shown(repr(value), 60)
