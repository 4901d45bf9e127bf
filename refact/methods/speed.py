"""SPEED (arXiv 2503.07392, ICLR 2026): an eraser of concepts that writes where retained concepts have no energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_doc import Doc

from ..edits import Edit
from .settings import check

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch


@dataclass(frozen=True)
class SPEED:
    """Cross-attention values of the UNet, changed along directions that the retained concepts hardly use.

    An eraser: its authors map a concept to a general one ("Van Gogh" to "art") or to nothing. Here the prompt is the
    concept and the target stands for the general one. The settings of ours are relative and keep no random choice.
    """

    presets: ClassVar[tuple[str, ...]] = ("authors",)

    projections: Annotated[str, Doc("Which projections change: 'values' (authors) or 'both', keys and values.")] = (
        "both"
    )
    threshold: Annotated[
        float, Doc("A direction is free below this eigenvalue of the retained rows' second moment (authors: 0.1).")
    ] = 0.1
    scale: Annotated[float, Doc("Ridge of the change in the free directions (authors: 1; 0.05 for many).")] = 0.01
    relative: Annotated[
        bool, Doc("Whether threshold and scale are in units of the states' mean square; if not, absolute (authors).")
    ] = True
    retain: Annotated[
        str,
        Doc(
            "Texts to retain beside each edit's `preserve`: a file, one a line, or 'corpus', the model's own captions "
            "(authors: lists of a thousand names). With none at all, the empty prompt's rows."
        ),
    ] = "corpus"
    texts: Annotated[int, Doc("How many of them are read.")] = 1000
    filtered: Annotated[
        bool, Doc("Whether only retained rows that a plain edit would move more than the mean count (authors).")
    ] = True
    augment: Annotated[
        int, Doc("Copies of each retained row, moved along the projection's weakest direction (authors: 10).")
    ] = 10
    hold_empty: Annotated[
        bool, Doc("Whether [BOS] and the middles of the empty prompt's other rows are held exactly (authors).")
    ] = True
    aliases: Annotated[bool, Doc("Whether an edit's other wordings are concepts too.")] = True
    seed: Annotated[int, Doc("Seed of the copies, and of the middles' first guess.")] = 0

    @classmethod
    def authors(cls, **changes: Any) -> SPEED:
        """As train_erase_null.py runs it (Ouxiang-Li/SPEED): values, 0.1, scale 1, ten copies, what is named kept."""
        told: dict[str, Any] = {"projections": "values", "threshold": 0.1, "scale": 1.0, "relative": False}
        told |= {"retain": "", "aliases": False}
        return cls(**(told | changes))

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. Raises EditError where no direction is free."""
        from ..writing import speed

        return speed.speed(self, model, edits, onto)
