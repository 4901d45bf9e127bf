"""AlphaEdit (arXiv 2410.02355) with ReFACT's search: one layer, along directions that the corpus hardly uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_doc import Doc

from ..edits import Edit
from .refact import ReFACT

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch


@dataclass(frozen=True)
class AlphaEdit(ReFACT):
    """One layer, written only along directions that the corpus hardly uses (arXiv 2410.02355)."""

    presets: ClassVar[tuple[str, ...]] = ()

    rarity: Annotated[float, Doc("As in ReFACT; as published 0, all keys count alike.")] = 0.0
    share: Annotated[
        float,
        Doc(
            "Share of E[k k^T]'s energy that the directions may hold together (the paper's 0.02 is an absolute "
            "eigenvalue)."
        ),
    ] = 0.02
    penalty: Annotated[
        float, Doc("L2 penalty, relative to the mean diagonal of K^T K over the directions (paper: 10, absolute).")
    ] = 0.01
    write: Annotated[str, Doc("AlphaEdit always writes at each edit's mean key.")] = "value"

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; the facts of `onto` are held softly, as in the paper. Raises EditError."""
        from ..writing import nullspace

        return nullspace.alphaedit(self, model, edits, onto)
