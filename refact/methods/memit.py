"""MEMIT (arXiv 2210.07229) with ReFACT's search: several layers share the change."""

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
class MEMIT(ReFACT):
    """Several layers share the change, each by ridge regression (arXiv 2210.07229).

    The value is found at the last of the layers; each layer in turn takes its share of what is still missing there,
    keys and states being read again after each.
    """

    presets: ClassVar[tuple[str, ...]] = ()

    layer: Annotated[int | None, Doc("The last of the edited layers, counted from 0.")] = None
    rarity: Annotated[float, Doc("As in ReFACT; as published 0, all keys count alike.")] = 0.0
    depth: Annotated[
        int,
        Doc("How many layers share the change, the last of them `layer` (MEMIT: 6 of GPT-J; EMCID: 11 of CLIP-L)."),
    ] = 3
    ridge: Annotated[
        float, Doc("Ridge, relative to the median leverage; the published absolute values do not carry over.")
    ] = 0.02
    write: Annotated[str, Doc("MEMIT always writes at each edit's mean key.")] = "value"

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. Raises EditError."""
        from ..writing import multilayer

        return multilayer.memit(self, model, edits, onto)
