"""What the files that strangers send must look like, in one place: patches' records, facts, covariances; `runs`.

Each function gives the form it was given, once all that any code reads of it has been checked: types, sizes, ranges.
What a form has beyond that is left as it is, and nothing may read it. Reading costs no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator

from ..errors import DataError, PatchError, shown
from . import limits
from .forms import Count, Form, Name, Number, Text, Texts, checked, parse, printable

# -- a patch's record -------------------------------------------------------------------------------------------------


class Log(Form):
    """How one fact was written at one site."""

    rows: Annotated[list[Count], Field(min_length=2, max_length=2)]
    layer: Annotated[int, Field(ge=0, le=1000)] | None = None
    steps: Number | None = None
    loss: Annotated[list[Number | None], Field(min_length=2, max_length=2)] | None = None
    probability: Number | None = None
    clamped: bool | None = None
    crowded: bool = False
    residual: Number | None = None
    share: Number | None = None
    strength: Number = 1.0
    leverage: Number | None = None
    condition: Number | None = None
    not_held: Texts = []


class Searched(Log):
    """The same of `ReFACT`, whose facts can be written again from it."""

    layer: Annotated[int, Field(ge=0, le=1000)]
    steps: Number
    loss: Annotated[list[Number | None], Field(min_length=2, max_length=2)]
    probability: Number | None
    clamped: bool


class Images(Form):
    """A target by pictures; their names are shown, and never opened."""

    images: Annotated[list[Text], Field(min_length=1, max_length=1000)]


class Part(Form):
    """What owns rows."""

    name: Name
    sites: dict[Text, Log]


class Fact(Part):
    """One edit of a record."""

    prompt: Text
    new: Text | Images
    old: Text | Images | None
    subject: Text | None
    aliases: Texts = []
    preserve: Texts = []


class Method(Form):
    """The method and its settings; those of `ReFACT` are checked again where one is made of them."""

    name: Name
    templates: Texts = []
    contexts: Annotated[int, Field(ge=1, le=limits.LIST)] = 1
    crowded: Number = 0.0
    mixed: Texts = []


class Base(Form):
    """The model that a patch was made for."""

    name: Annotated[str, Field(max_length=limits.TEXT), AfterValidator(printable)]
    encoders: dict[Name, Annotated[str, Field(max_length=limits.NAME), AfterValidator(printable)]]


class Rung(Form):
    """One way in which `refact edit` tried to make a fact hold."""

    rung: Text


class Ladder(Form):
    """What was tried, and which was kept."""

    tried: Annotated[list[Rung], Field(max_length=1000)]
    chosen: Count

    @model_validator(mode="after")
    def _chosen_was_tried(self) -> Ladder:
        if self.chosen >= max(len(self.tried), 1):
            raise ValueError("the number of one that was tried is needed")
        return self


class Record(Form):
    """The record of a patch, version 1 (docs/format.md)."""

    refact: Literal[1]
    family: Name
    model: Base
    method: Method
    edits: Annotated[list[Fact], Field(max_length=limits.FACTS)]
    imported: Annotated[list[Part], Field(max_length=limits.FACTS)] = []
    refactored: bool = False
    covariance: dict[Text, JsonValue] = {}
    preserved: dict[Text, Number | None] = {}
    versions: dict[Name, Annotated[str, Field(max_length=limits.NAME)]] = {}
    ladder: Ladder | None = None


def record(form: Any, where: str) -> dict:
    """The record of a patch, if it has the form above; sites and rows are not looked at. Raises PatchError."""
    if isinstance(form, dict) and (form.get("refact") != 1 or type(form["refact"]) is not int):
        raise PatchError(f"{where}: record version {shown(form.get('refact'))}; this refact reads version 1")
    checked(Record, form, f"{where}: the record", PatchError)
    if form["method"]["name"] == "ReFACT":
        for number, edit in enumerate(form["edits"]):
            checked(dict[Text, Searched], edit["sites"], f"{where}: the record's edits[{number}].sites", PatchError)
    return form


# -- files of facts ---------------------------------------------------------------------------------------------------


class Wanted(Form):
    """One fact as a person writes it; one text may stand where a list of texts is meant."""

    prompt: Text = ""
    new: Text | Images = ""
    old: Text | Images | None = None
    subject: Text | None = None
    aliases: Texts | Text = []
    preserve: Texts | Text = []
    name: Annotated[str, Field(max_length=limits.NAME), AfterValidator(printable)] = ""


def wanted(form: Any, where: str) -> dict:
    """One fact of a file of facts, lists in place of single texts. Raises DataError."""
    checked(Wanted, form, where, DataError)
    return form | {key: [form[key]] for key in ("aliases", "preserve") if isinstance(form.get(key), str)}


def texts(form: Any, where: str) -> list[str]:
    """A list of texts, or one text. Raises DataError."""
    checked(Texts | Text, form, where, DataError)
    return [form] if isinstance(form, str) else form


# -- covariances ------------------------------------------------------------------------------------------------------


class Counted(Form):
    """What a covariance's file tells of its numbers."""

    model_config = ConfigDict(extra="forbid")

    tokens: Count
    site: Name
    encoder: Name
    corpus: Annotated[str, Field(max_length=limits.NAME)]
    padding: bool
    rarity: Number
    cut: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=1, le=limits.SIZE)]
    checksum: Name


def covariance(text: str) -> dict:
    """The header of a covariance's file. Raises DataError."""
    return checked(Counted, parse(text, "its header"), "its header", DataError)


# -- lock files of builds ---------------------------------------------------------------------------------------------


class Inputs(Form):
    """What a build depended on."""

    facts: dict[Text, Name]
    pictures: dict[Text, Name]
    model: dict[Text, JsonValue]
    method: dict[Text, JsonValue]
    versions: dict[Text, JsonValue]


class Made(Form):
    """What it wrote."""

    file: Text
    sha256: Name
    covariance: dict[Text, JsonValue]
    upon: Name | None


class Lock(Form):
    """A build's lock file."""

    refact_lock: Literal[1]
    inputs: Inputs
    made: Made


def lock(form: Any, where: str) -> dict:
    """A build's lock file. Raises DataError."""
    return checked(Lock, form, where, DataError)
