"""What comes in from a browser and what goes out to it: pictures, patch files, lists of facts, runs' reports."""

from __future__ import annotations

import json
import secrets
import zipfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..edits import Edit, slug
from ..errors import DataError, RefactError
from ..evidence.report import write as write_report
from ..patch import Patch
from ..studies.pages import SECTIONS
from .session import Kept, Session, pieces

UPLOAD = 32 * 2**20  # bytes of one file
PICTURES = {"PNG", "JPEG", "WEBP"}
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MOST_PICTURES = 8
WIDEST = 4096  # pixels a side of a picture that is taken
SIDE = 768  # pixels to which it is made smaller


# -- in ----------------------------------------------------------------------------------------------------------------


def pictures_of(paths: Sequence[str | Path]) -> tuple[Any, ...]:
    """Uploaded pictures as RGB images of moderate size. Raises DataError for what is no picture, or too large a one."""
    if len(paths) > MOST_PICTURES:
        raise DataError(f"{len(paths)} pictures were given; at most {MOST_PICTURES} are used")
    return tuple(_picture(Path(path)) for path in paths)


def _picture(path: Path) -> Any:
    if path.stat().st_size > UPLOAD:
        raise DataError(f"{path.name} is larger than {UPLOAD // 2**20} MB")
    try:
        with Image.open(path, formats=sorted(PICTURES)) as picture:
            if max(picture.size) > WIDEST:
                raise DataError(f"{path.name} has {picture.width} x {picture.height} pixels; at most {WIDEST} a side")
            small = picture.convert("RGB")
    except DataError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path.name} is not a picture in PNG, JPEG or WebP") from None
    small.thumbnail((SIDE, SIDE))
    return small


def patches_of(path: str | Path) -> list[Patch]:
    """The facts in an uploaded patch file, one by one. Raises RefactError, which tells of the file by name only."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise DataError(f"{path.name}: a file of facts ends in .safetensors")
    if path.stat().st_size > UPLOAD:
        raise DataError(f"{path.name} is larger than {UPLOAD // 2**20} MB")
    try:
        return pieces(Patch.load(path))
    except RefactError as error:
        raise type(error)(str(error).replace(str(path), path.name)) from None


# -- out ---------------------------------------------------------------------------------------------------------------


def fresh(folder: Path, name: str) -> Path:
    """A path of that name in a new folder whose own name nobody can guess."""
    place = folder / secrets.token_hex(16)
    place.mkdir(parents=True, mode=0o700)
    return place / name


def file_name(patch: Patch) -> str:
    """What the file of these facts is called: by the fact where there is one."""
    return f"{slug(patch.names[0])}.safetensors" if len(patch.names) == 1 else "facts.safetensors"


def exported(session: Session, folder: Path) -> Path:
    """The facts that are switched on as facts.toml; with their pictures in facts.zip where there are such."""
    rows, pictures = [], []
    for kept in session.facts:
        if kept.on:
            for edit in session.patch(kept).edits:
                rows.append(_table(edit, kept))
                pictures += [session.folder / name for name in kept.pictures]
    text = HEAD + "\n".join(rows)
    if not pictures:
        path = fresh(folder, "facts.toml")
        path.write_text(text, encoding="utf-8")
        return path
    path = fresh(folder, "facts.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("facts.toml", text)
        for picture in pictures:
            archive.write(picture, picture.name)
    return path


HEAD = "# Made by refact studio. In this file's folder:  refact build facts.toml -o facts.safetensors\n\n"


def _table(edit: Edit, kept: Kept) -> str:
    """One [[edit]] of facts.toml; JSON's texts and lists are TOML's too."""
    new = {"images": list(kept.pictures)} if edit.targets_images else edit.new
    form: dict[str, Any] = {"prompt": edit.prompt, "old": edit.old, "new": new, "subject": edit.subject}
    form |= {"aliases": list(edit.aliases), "preserve": list(edit.preserve)}
    lines = [f"{key} = {_toml(value)}" for key, value in form.items() if value]
    weaker = (
        [f"# kept at strength {kept.strength:g}, which a list of facts does not tell"] if kept.strength != 1 else []
    )
    return "\n".join(["[[edit]]", *weaker, *lines, ""])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- runs --------------------------------------------------------------------------------------------------------------


def runs_in(folder: Path) -> list[str]:
    """The runs and studies in a folder, by name, the latest first."""
    told = ("run.json", *SECTIONS)
    found = [path for path in folder.glob("*") if path.is_dir() and any((path / name).is_file() for name in told)]
    return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def report(folder: Path, name: str, place: Path) -> Path:
    """The report of one of the runs in a folder as an HTML file. Raises DataError for a name that is not among them."""
    if name not in runs_in(folder):
        raise DataError(f"there is no run {name!r}")
    return write_report([folder / name], fresh(place, f"{slug(name)}.html"), studies=SECTIONS)


def framed(page: str) -> str:
    """A page inside another one, where its scripts reach nothing outside it."""
    shut = escape(page, quote=True)
    return f'<iframe class="report" sandbox="allow-scripts" title="Report" srcdoc="{shut}"></iframe>'
