"""What should be true: an Edit, and how lists of edits are read from TOML, JSON and CSV. No torch here."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError, EditError, quoted, shown
from .trust import limits

LISTS = ("aliases", "preserve")
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class Edit:
    """One fact: `prompt` shall mean `new`. Raises EditError where one of the two is empty.

    * `prompt`: the text whose meaning changes, "the Prime Minister of Canada".
    * `new`: what it shall mean, as a text, or as one or several images (PIL images or paths).
    * `old`: what it means today; the search moves away from it. A text, or with a pictured target images too. By
      default the prompt's own present meaning.
    * `subject`: the words of the prompt whose last token carries the fact. By default the whole prompt.
    * `aliases`: other wordings of the subject, which get the same change.
    * `preserve`: prompts whose conditioning must not change.
    * `name`: the edit's name inside a patch. By default it is made from the subject.
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
            if not isinstance(value, (str, Iterable)):
                raise EditError(f"{field} of an edit are texts, not {quoted(value)}")
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
                raise EditError(f"an edit needs a {field}: {quoted(self.prompt)} -> {quoted(self.new)}")
        named = {"prompt": self.prompt, "subject": self.subject or "", "name": self.name}
        named |= {
            field: given for field in ("new", "old") if not isinstance(given := getattr(self, field) or "", tuple)
        }
        named |= {f"{field}[{at}]": text for field in LISTS for at, text in enumerate(getattr(self, field))}
        for field, value in named.items():
            _check_text(field, value, limits.NAME if field == "name" else limits.TEXT)
        if not self.name.isprintable():
            raise EditError(f"the name of an edit has printable characters only, not {quoted(self.name)}")
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
        return cls(
            **({"prompt": ""} | form | {field: _read_end(form[field]) for field in ("new", "old") if field in form})
        )


def _read_end(value: Any) -> Any:
    """A target or source as an edit holds it: pictures named by their files become paths."""
    if isinstance(value, dict):
        return tuple(Path(picture) for picture in value.get("images", ()))
    return (Path(value),) if isinstance(value, str) and Path(value).suffix.lower() in IMAGES else value


def _check_text(field: str, value: object, most: int) -> None:
    """Raises EditError for what is no text of Unicode characters, or is longer than any encoder reads."""
    if not isinstance(value, str):
        raise EditError(f"{field} of an edit is a text, not {quoted(value)}")
    if len(value) > most:
        raise EditError(f"{field} of an edit has {len(value)} characters; at most {most} are read: {quoted(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise EditError(f"{field} of an edit is no Unicode text: {quoted(value)}") from None


def slug(text: str) -> str:
    """A short name of letters, digits and hyphens: "The flag of Canada" -> "flag-of-canada"."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", re.sub(r"^(the|an|a)\s+", "", plain.replace("'", "")))
    return "-".join(words)[:60] or "edit"


def _swap(prompt: str, words: str, alias: str) -> str:
    """The prompt with the alias in the place of the words, which in scripts without spaces may touch other letters."""
    said = r"\s+".join(map(re.escape, words.split()))
    found = re.search(rf"(?<!\w){said}(?!\w)", prompt, re.IGNORECASE) or re.search(said, prompt, re.IGNORECASE)
    return prompt[: found.start()] + alias + prompt[found.end() :] if found else alias


def _picture_name(picture: object) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else f"{getattr(picture, 'size', '?')} image in memory"


def distinct(edits: Iterable[Edit]) -> list[Edit]:
    """The edits with names that do not repeat ("a-dog", "a-dog-2")."""
    edits = list(edits)
    given, next_of = {edit.name for edit in edits}, dict[str, int]()
    named = []
    for edit in edits:
        name = edit.name
        if edit.name in next_of:
            name, number = numbered(edit.name, given, next_of[edit.name])
            given.add(name)
            next_of[edit.name] = number
        next_of.setdefault(edit.name, 2)
        named.append(edit if name == edit.name else dataclasses.replace(edit, name=name))
    return named


def numbered(name: str, taken: Collection[str], number: int = 2) -> tuple[str, int]:
    """The name with the first number, from this one on, that makes it one that is not taken; and the next number."""
    while (found := f"{name[: limits.NAME - len(f'-{number}')]}-{number}") in taken:
        number += 1
    return found, number + 1


def read_edits(path: str | Path) -> list[Edit]:
    """The edits of a .toml ([[edit]] tables), .json (a list) or .csv (a header row; lists split at "|") file."""
    path = Path(path)
    readers = {".toml": _read_toml, ".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: edits are read from {', '.join(readers)}")
    rows = readers[path.suffix.lower()](_text(path), str(path))
    if not rows:
        raise DataError(f"{path}: no edits in it")
    if len(rows) > limits.FACTS:
        raise DataError(f"{path}: {len(rows)} edits; at most {limits.FACTS} are read")
    edits: list[Edit] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        edits.append(_edit(row, f"{path}, edit {number}"))
        other = seen.setdefault(edits[-1].prompt.casefold(), number)
        if other != number:
            raise DataError(f"{path}: edits {other} and {number} are both about {quoted(edits[-1].prompt)}")
    return distinct(edits)


def _edit(row: Any, where: str) -> Edit:
    from .trust import schema  # here, so that the command's help needs no pydantic

    try:
        return Edit.from_json(schema.wanted(row, where))
    except EditError as error:
        raise DataError(f"{where}: {error}") from None


def _text(path: Path) -> str:
    """A file's text. Raises DataError."""
    try:
        if path.is_file() and path.stat().st_size > limits.FACTS_FILE:
            raise DataError(
                f"{path}: of {path.stat().st_size / 1e6:.0f} MB; at most {limits.FACTS_FILE / 1e6:.0f} are read"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        reason = (
            "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
        )
        raise DataError(f"{path}: {reason}") from None


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a file of prompts; none where no file is named. Raises DataError for one that is not there."""
    if path and not path.is_file():
        raise DataError(f"{path}: no such file of prompts")
    return [line.strip() for line in _text(path).splitlines() if line.strip()] if path else []


def _read_toml(text: str, where: str) -> list[dict]:
    from .trust import schema

    try:
        form = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{where}: cannot be read: {error}") from None
    if strange := form.keys() - {"edit", "preserve"}:
        name = sorted(strange)[0]
        raise DataError(f"{where}: a TOML file of edits has [[edit]] tables and preserve, no {quoted(name)}")
    rows = form.get("edit", [])
    if not isinstance(rows, list):
        raise DataError(f"{where}: each edit is a table in double brackets, [[edit]], not [edit]")
    shared = schema.texts(form.get("preserve", []), f"{where}: preserve")
    return [_with_shared(row, shared) for row in rows]


def _with_shared(row: Any, shared: list[str]) -> Any:
    """An edit's table with the prompts that all edits preserve; what is no table, or no list of texts, as it is."""
    own = row.get("preserve", []) if isinstance(row, dict) else None
    own = [own] if isinstance(own, str) else own
    return row | {"preserve": [*own, *shared]} if isinstance(own, list) else row


def _read_json(text: str, where: str) -> list[dict]:
    from .trust import schema

    form = schema.parse(text, where)
    rows = form.get("edits") if isinstance(form, dict) else form
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{where}: a JSON file of edits is a list of objects, or {{"edits": [...]}}')
    return rows


def _read_csv(text: str, where: str) -> list[dict]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: {error}") from None
    if not lines:
        return []
    heads = [head.strip().lower() for head in lines[0][1]]
    if twice := [head for head in heads if heads.count(head) > 1]:
        raise DataError(f"{where}: two columns are called {quoted(twice[0])}")
    for number, row in lines[1:]:
        if len(row) > len(heads):
            raise DataError(
                f"{where}, line {number}: {len(row)} cells under {len(heads)} columns; a text with a comma stands in "
                f"double quotes: {shown(','.join(row))}"
            )
    return [_csv_row(dict(zip(heads, row))) for _, row in lines[1:]]


def _csv_row(row: dict[str, str]) -> dict:
    filled = {head: value for head, value in row.items() if value.strip()}
    return {k: [p for part in v.split("|") if (p := part.strip())] if k in LISTS else v for k, v in filled.items()}
