"""The baselines by gradient descent: FineTune (the same matrix) and EmbEdit (the subject's word embeddings)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_doc import Doc

from ..edits import Edit
from .contexts import CONTEXTS
from .settings import check

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch


@dataclass(frozen=True)
class FineTune:
    """The same matrix by gradient descent, within a box around its old value (ReFACT, Appendix G.1)."""

    protects: ClassVar[bool] = False  # it has no place for an edit's `preserve`

    layer: Annotated[int | None, Doc("Layer of the text encoder, counted from 0; by default the family's own.")] = None
    encoders: Annotated[tuple[str, ...], Doc("Text encoders that are edited; by default every CLIP encoder.")] = ()
    epochs: Annotated[int, Doc("Passes over the contexts (paper: 5).")] = 5
    steps: Annotated[int, Doc("Gradient steps in one epoch.")] = 20
    learning_rate: Annotated[float, Doc("Learning rate of Adam (paper: 5e-5).")] = 5e-5
    bound: Annotated[float, Doc("Largest change of one weight, the paper's infinity norm.")] = 5e-4
    contexts: Annotated[int, Doc("How many templates are used, the bare prompt first.")] = 10
    templates: Annotated[tuple[str, ...], Doc("The sentences into which the prompt is put.")] = CONTEXTS

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits, a dense change of one matrix an encoder. Raises EditError."""
        from ..writing import finetune

        return finetune.finetune(self, model, edits, onto)


@dataclass(frozen=True)
class EmbEdit:
    """The word embeddings of the subject's tokens by gradient descent; the encoder stays (EmbEdit, EMNLP 2025).

    Whatever is written with the same tokens moves along. The defaults are ours.
    """

    presets: ClassVar[tuple[str, ...]] = ("authors",)
    protects: ClassVar[bool] = False  # it has no place for an edit's `preserve`

    encoders: Annotated[tuple[str, ...], Doc("Text encoders that are edited; by default every CLIP encoder.")] = ()
    max_steps: Annotated[int, Doc("Steps of the descent.")] = 100
    learning_rate: Annotated[
        float, Doc("Learning rate of Adam, relative to the embeddings' mean size along a coordinate.")
    ] = 0.05
    relative: Annotated[bool, Doc("Whether the rate is relative; if not, absolute (authors' code: 1e-3).")] = True
    rows: Annotated[
        str, Doc("What is compared: the 'pooled' state, or the mean square over 'all' rows (authors' code).")
    ] = "pooled"
    stop: Annotated[float, Doc("The descent stops at this share of its first loss (authors' code: 0.35).")] = 0.0
    contexts: Annotated[int, Doc("How many templates are used, the bare prompt first (authors' code: 1).")] = 10
    templates: Annotated[tuple[str, ...], Doc("The sentences into which the prompt is put.")] = CONTEXTS
    hints: Annotated[
        bool,
        Doc("Whether benchmarks tell it other wordings and prompts to protect (authors' code: neither)."),
    ] = True

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def authors(cls, **changes: Any) -> EmbEdit:
        """As its released code runs (Charlotte-He/EmbEdit, reference/sd14_mse.py): all rows of the bare prompt."""
        told: dict[str, Any] = {"rows": "all", "relative": False, "learning_rate": 1e-3, "stop": 0.35, "contexts": 1}
        told["hints"] = False
        return cls(**(told | changes))

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits, a row a token; other programs cannot load it, `refact bake` can."""
        from ..writing import finetune

        return finetune.embedit(self, model, edits, onto)
