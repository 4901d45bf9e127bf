"""AlphaEdit (arXiv 2410.02355) with ReFACT's search: layers written along directions of little energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_doc import Doc

from ..edits import Edit
from .refact import PooledSearch

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch


@dataclass(frozen=True)
class AlphaEdit(PooledSearch):
    """Layers written only along directions that hold a given share of the corpus's energy (arXiv 2410.02355).

    How many directions that is depends on the corpus: on the bundled model a share of 0.02 keeps most of them.
    """

    presets: ClassVar[tuple[str, ...]] = ("authors",)
    protects: ClassVar[bool] = False  # it has no place for an edit's `preserve`

    rarity: Annotated[float, Doc("As in ReFACT; as published 0, all keys count alike.")] = 0.0
    share: Annotated[
        float,
        Doc(
            "Share of E[k k^T]'s energy that the directions may hold together (the paper's 0.02 is an absolute "
            "eigenvalue)."
        ),
    ] = 0.02
    threshold: Annotated[
        float, Doc("Instead of the share: the largest eigenvalue of E[k k^T] along a direction (paper: 0.02).")
    ] = 0.0
    penalty: Annotated[
        float, Doc("L2 penalty, relative to the mean diagonal of K^T K over the directions (paper: 10, absolute).")
    ] = 0.01
    absolute: Annotated[bool, Doc("Whether the penalty is absolute, as published.")] = False
    depth: Annotated[
        int, Doc("How many layers share the change, the last of them `layer`; 0: all (paper: 5 of 28 to 48).")
    ] = 1
    residual: Annotated[str, Doc("What a layer shares: 'state', what is missing after the last one.")] = "state"
    write: Annotated[str, Doc("AlphaEdit always writes at each edit's mean key.")] = "value"

    @classmethod
    def authors(cls, **changes: Any) -> AlphaEdit:
        """AlphaEdit's closed form and its settings on GPT-J and Llama 3, five layers; the search is ReFACT's."""
        told: dict[str, Any] = {"depth": 5, "threshold": 0.02, "penalty": 10.0, "absolute": True, "shrink": 0.0}
        told |= {"max_steps": 25, "learning_rate": 0.5, "weight_decay": 0.5, "clamp": 0.75, "relative": False}
        told["hints"] = False
        return cls(**(told | {"objective": "contrastive", "distance": "l2", "reach": 1.0} | changes))

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; the facts of `onto` are held softly, as in the paper. Raises EditError."""
        from ..writing import nullspace

        return nullspace.alphaedit(self, model, edits, onto)
