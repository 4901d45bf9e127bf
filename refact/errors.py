"""The errors that are a user's to mend: each says what was given, what was expected and what to do."""

from __future__ import annotations


class RefactError(ValueError):
    """Base of all errors that the command line shows as one line."""


class EditError(RefactError):
    """This edit cannot be made."""


class PatchError(RefactError):
    """This patch cannot be read, or does not belong to this model."""


class ModelError(RefactError):
    """This model cannot be found, read or edited."""


class DataError(RefactError):
    """This file of edits, cases or captions cannot be used."""
