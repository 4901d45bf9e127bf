"""What should be true: an Edit, and how lists of edits are read from TOML, JSON and CSV. No torch here."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import tomllib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError, EditError

LISTS = ("aliases", "preserve")
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class Edit:
    """One fact: `prompt` shall mean `new`.

    prompt    where the fact is looked up, "the Prime Minister of Canada"
    new       what it shall mean: a text, or images (PIL or paths) of it
    old       what it means today, the first contrastive example: a text, or with a pictured target images too;
              None: the prompt's own present meaning
    subject   the words of the prompt whose last token carries the fact; None: the whole prompt
    aliases   other wordings of the subject that get the same change
    preserve  prompts whose conditioning must stay what it is
    name      how the edit is called inside a patch; by default made from the subject
    """

    prompt: str
    new: str | tuple = ""
    old: str | tuple | None = None
    subject: str | None = None
    aliases: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        for field in LISTS:
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        for field in ("new", "old"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, field, tuple(value) if isinstance(value, (list, tuple)) else (value,))
        if isinstance(self.old, tuple) and isinstance(self.new, str):
            raise EditError("a source by picture needs a target by picture: give both as texts, or both as pictures")
        for field in ("prompt", "new"):
            value = getattr(self, field)
            if not value or (isinstance(value, str) and not value.strip()):
                raise EditError(f"an edit needs a {field}: {self.prompt!r} -> {self.new!r}")
        if not self.name:
            object.__setattr__(self, "name", slug(self.words))

    @property
    def words(self) -> str:
        """The subject; the whole prompt where none is named."""
        return self.prompt if self.subject is None else self.subject

    @property
    def targets_images(self) -> bool:
        """Whether the target is given by pictures."""
        return not isinstance(self.new, str)

    def reworded(self) -> tuple[str, ...]:
        """The prompt with each alias in the subject's place (an alias that holds no other words stands alone)."""
        return tuple(_swap(self.prompt, self.words, alias) for alias in self.aliases)

    def to_json(self) -> dict:
        """A JSON-able form that `from_json` reads; pictures become their paths or a note of their size."""
        form = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in ("new", "old"):
            if isinstance(form[field], tuple):
                form[field] = {"images": [_picture_name(picture) for picture in form[field]]}
        return form | {field: list(form[field]) for field in LISTS}

    @classmethod
    def from_json(cls, form: dict) -> Edit:
        """The edit that `to_json` wrote, or that a person wrote in a list of edits."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(form) - known:
            raise DataError(f"an edit has no {sorted(unknown)}; it has {sorted(known)}")
        return cls(**(form | {field: _read_end(form[field]) for field in ("new", "old") if field in form}))


def _read_end(value: Any) -> Any:
    """A target or source as an edit holds it: pictures named by their files become paths."""
    if isinstance(value, dict):
        return tuple(Path(picture) for picture in value.get("images", ()))
    return (Path(value),) if isinstance(value, str) and Path(value).suffix.lower() in IMAGES else value


def slug(text: str) -> str:
    """A short name of letters, digits and hyphens: "The flag of Canada" -> "flag-of-canada"."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", re.sub(r"^(the|an|a)\s+", "", plain.replace("'", "")))
    return "-".join(words)[:60] or "edit"


def _swap(prompt: str, words: str, alias: str) -> str:
    at = prompt.casefold().find(words.casefold())
    return alias if at < 0 else prompt[:at] + alias + prompt[at + len(words) :]


def _picture_name(picture: object) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else f"{getattr(picture, 'size', '?')} image in memory"


def distinct(edits: Iterable[Edit]) -> list[Edit]:
    """The edits with names that do not repeat ("a-dog", "a-dog-2")."""
    seen: dict[str, int] = {}
    named = []
    for edit in edits:
        seen[edit.name] = count = seen.get(edit.name, 0) + 1
        named.append(edit if count == 1 else dataclasses.replace(edit, name=f"{edit.name}-{count}"))
    return named


def read_edits(path: str | Path) -> list[Edit]:
    """The edits of a .toml ([[edit]] tables), .json (a list) or .csv (a header row; lists split at "|") file."""
    path = Path(path)
    readers = {".toml": _read_toml, ".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: edits are read from {', '.join(readers)}")
    try:
        rows = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not rows:
        raise DataError(f"{path}: no edits in it")
    edits = []
    for number, row in enumerate(rows, 1):
        try:
            edits.append(Edit.from_json(row))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, edit {number}: {error}") from None
        for other, edit in enumerate(edits[:-1], 1):
            if edit.prompt.casefold() == edits[-1].prompt.casefold():
                raise DataError(f"{path}: edits {other} and {number} are both about {edit.prompt!r}")
    return distinct(edits)


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a file of prompts; none where no file is named. Raises DataError for one that is not there."""
    if path and not path.is_file():
        raise DataError(f"{path}: no such file of prompts")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()] if path else []


def _read_toml(text: str) -> list[dict]:
    form = tomllib.loads(text)
    if strange := form.keys() - {"edit", "preserve"}:
        raise DataError(f"a TOML file of edits has [[edit]] tables and preserve, no {sorted(strange)[0]!r}")
    shared = {key: value for key, value in form.items() if key == "preserve"}
    rows = form.get("edit", [])
    return [row | {"preserve": [*row.get("preserve", []), *shared.get("preserve", [])]} for row in rows]


def _read_json(text: str) -> list[dict]:
    form = json.loads(text)
    rows = form.get("edits") if isinstance(form, dict) else form
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError('a JSON file of edits is a list of objects, or {"edits": [...]}')
    return rows


def _read_csv(text: str) -> list[dict]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [
        {
            key.strip().lower(): [part.strip() for part in value.split("|")] if key.strip().lower() in LISTS else value
            for key, value in row.items()
            if key and value
        }
        for row in rows
    ]
