"""The methods that edit the UNet's cross-attention instead of the text encoder: TIME and UCE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_doc import Doc

from ..edits import Edit
from .settings import check

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch


@dataclass(frozen=True)
class TIME:
    """Cross-attention keys and values of the UNet, all tokens of the prompt, aligned (arXiv 2303.08084)."""

    strength: Annotated[float, Doc("Ridge towards the old projection, lambda (paper: 0.1).")] = 0.1

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. Raises EditError."""
        from ..writing import crossattention

        return crossattention.time(self, model, edits, onto)


@dataclass(frozen=True)
class UCE:
    """Cross-attention keys and values of the UNet, last token, other concepts preserved (arXiv 2308.14761)."""

    strength: Annotated[float, Doc("Ridge towards the old projection, lambda (paper: 0.5).")] = 0.5
    erase: Annotated[float, Doc("Weight of the edits (paper: 1).")] = 1.0
    keep: Annotated[float, Doc("Weight of the concepts to preserve (paper: 1).")] = 1.0

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; their `preserve` prompts are the concepts kept. Raises EditError."""
        from ..writing import crossattention

        return crossattention.uce(self, model, edits, onto)
