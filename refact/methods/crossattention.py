"""The methods that edit the UNet's cross-attention instead of the text encoder: TIME and UCE."""

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
class TIME:
    """Cross-attention keys and values of the UNet, all rows of the prompt, aligned (arXiv 2303.08084).

    The defaults are those of its released code, but for prompts that it cannot align at all ("X as Y" then stands for
    the target), and for an edit's aliases, which are further pairs. The source's own rows, [BOS] first, are kept.
    """

    presets: ClassVar[tuple[str, ...]] = ("authors",)
    protects: ClassVar[bool] = False  # it has no place for an edit's `preserve`

    strength: Annotated[float, Doc("Ridge towards the old projection, lambda (authors' code: 0.1).")] = 0.1
    augmented: Annotated[
        bool, Doc("Whether 'A photo of', 'An image of' and 'A picture of' the texts are pairs too (--with_augs).")
    ] = False
    aliases: Annotated[bool, Doc("Whether an edit's other wordings are pairs too (not in the paper).")] = True

    @classmethod
    def authors(cls, **changes: Any) -> TIME:
        """As apply_time.py runs it with --with_to_k (bahjat-kawar/time-diffusion): lambda 0.1, the one pair."""
        return cls(**({"strength": 0.1, "aliases": False} | changes))

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. Raises EditError."""
        from ..writing import crossattention

        return crossattention.time(self, model, edits, onto)


@dataclass(frozen=True)
class UCE:
    """Cross-attention keys and values of the UNet, other concepts preserved (arXiv 2308.14761)."""

    presets: ClassVar[tuple[str, ...]] = ("authors", "tail")

    strength: Annotated[float, Doc("Ridge towards the old projection, lambda (authors' code: 0.5).")] = 0.5
    erase: Annotated[float, Doc("Weight of the edits (authors' code: 1).")] = 1.0
    keep: Annotated[float, Doc("Weight of the concepts to preserve (authors' code: 1).")] = 1.0
    rows: Annotated[
        str,
        Doc(
            "'last' maps the last content row (2025 script); 'tail' that row, [EOS] and all padding, and preserves "
            "every row of the other prompts (the script of 2023, train_erase.py)."
        ),
    ] = "last"
    aliases: Annotated[bool, Doc("Whether an edit's other wordings are pairs too (authors: named as concepts).")] = True

    @classmethod
    def authors(cls, **changes: Any) -> UCE:
        """As uce_sd_erase.py runs it (2025): the last content row, lambda 0.5, weights 1."""
        told: dict[str, Any] = {"rows": "last", "strength": 0.5, "erase": 1.0, "keep": 1.0, "aliases": False}
        return cls(**(told | changes))

    @classmethod
    def tail(cls, **changes: Any) -> UCE:
        """As train_erase.py ran it (2023): all rows from the last content one on, lambda 0.5, preserved at 0.1."""
        told: dict[str, Any] = {"rows": "tail", "strength": 0.5, "erase": 1.0, "keep": 0.1, "aliases": False}
        return cls(**(told | changes))

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; their `preserve` prompts are the concepts kept. Raises EditError."""
        from ..writing import crossattention

        return crossattention.uce(self, model, edits, onto)
