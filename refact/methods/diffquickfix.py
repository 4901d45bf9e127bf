"""DiffQuickFix (arXiv 2310.13730): the output of the text encoder's first self-attention, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_doc import Doc

from ..edits import Edit
from .settings import check

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch


@dataclass(frozen=True)
class DiffQuickFix:
    """The out-projection of the first self-attention maps the last subject token's input to the target's output.

    No search: ridge regression towards the old matrix, as in TIME, but inside the text encoder. Its authors say that
    the first self-attention is the encoder's only causal state; what they released names no other settings, so lambda
    is ours to choose (tuned on validation rows).
    """

    protects: ClassVar[bool] = False  # it has no place for an edit's `preserve`

    layer: Annotated[int, Doc("Layer whose self-attention is edited, counted from 0 (paper: 0).")] = 0
    encoders: Annotated[tuple[str, ...], Doc("Text encoders that are edited; by default every CLIP encoder.")] = ()
    strength: Annotated[float, Doc("Ridge towards the old matrix, relative to the keys' mean square length.")] = 0.01
    aliases: Annotated[bool, Doc("Whether an edit's other wordings are pairs too (not in the paper).")] = True

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. Raises EditError."""
        from ..writing import attention

        return attention.diffquickfix(self, model, edits, onto)
