"""The errors that are a user's to mend, and the one way in which text of a file is printed.

Each error says what was given, what was expected and what to do. Its message is one line of printable characters,
whatever the file that it quotes holds.
"""

from __future__ import annotations

LONGEST = 900  # characters of a message
SHORT = 160  # characters of a text that is quoted from a file


def shown(text: object, limit: int = SHORT) -> str:
    """The text fit for a terminal: one line, without control or direction characters, shortened in the middle.

    What Python does not count as printable (escapes, line breaks and separators, bidirectional marks, lone surrogates)
    is written as its escape sequence. limit: most characters of the result.
    """
    line = str(text)
    if len(line) > 2 * limit:  # so that a text of megabytes is not escaped to be thrown away
        line = f"{line[:limit]}{line[-limit:]}"
        cut = True
    else:
        cut = False
    if not line.isprintable():
        line = "".join(c if c.isprintable() else _escaped(c) for c in line)
    if len(line) <= limit and not cut:
        return line
    tail = min(limit // 4, 40)
    return f"{line[: limit - tail - 5]} ... {line[-tail:]}"


def quoted(text: object, limit: int = SHORT) -> str:
    """The same between quotation marks, as Python's repr puts them."""
    line = shown(text, limit)
    return f'"{line}"' if "'" in line and '"' not in line else f"'{line}'"


def counted(count: int, noun: str) -> str:
    """ "1 fact", "2 facts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


class RefactError(ValueError):
    """Base of all errors that the command line shows as one line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(message, LONGEST))


class EditError(RefactError):
    """This edit cannot be made."""


class PatchError(RefactError):
    """This patch cannot be read, or does not belong to this model."""


class ModelError(RefactError):
    """This model cannot be found, read or edited."""


class DataError(RefactError):
    """This file of edits, cases or captions cannot be used."""
