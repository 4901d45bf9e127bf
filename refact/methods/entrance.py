"""The method that edits where the generator takes in its text: a transformer's projection of text states."""

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
class Entrance:
    """The transformer's projection of text states, in closed form as UCE edits cross-attention (arXiv 2308.14761).

    The text encoder stays as it is, and the patch is a LoRA of the transformer that diffusers loads. For the families
    whose text passes one projection: Z-Image, FLUX.2, Qwen-Image, Sana, Lumina 2 and PixArt.
    """

    strength: Annotated[
        float, Doc("Ridge towards the old projection (UCE: 0.5), relative to the keys' mean square.")
    ] = 0.5
    erase: Annotated[float, Doc("Weight of the edits (UCE: 1).")] = 1.0
    keep: Annotated[float, Doc("Weight of the prompts to preserve (UCE: 1).")] = 1.0
    rows: Annotated[
        str,
        Doc("'subject' moves the prompt's last own row (UCE), 'all' also what the pipeline writes after the prompt."),
    ] = "subject"

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; their `preserve` prompts are the concepts kept. Raises EditError."""
        from ..writing import entrance

        return entrance.entrance(self, model, edits, onto)
