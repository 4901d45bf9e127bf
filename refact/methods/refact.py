"""ReFACT, the method of the paper (Arad, Orgad and Belinkov, NAACL 2024, arXiv 2306.00738), with our additions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_doc import Doc

from ..edits import Edit
from .contexts import CONTEXTS, MODIFIERS, PAPER_CONTEXTS
from .settings import check

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch

POOLED: dict[str, Any] = {  # a search on the pooled state, and the only one whose targets may be pictures
    "embedding": "pooled", "optimiser": "adam", "max_steps": 100, "reach": 0.9,
    "weight_decay": 0.01, "modifiers": (),
}  # fmt: skip
_PAPER: dict[str, Any] = POOLED | {  # docs/paper.md says where each comes from
    "objective": "contrastive", "distance": "l2", "space": "projected", "negatives": 20, "ends": "bare",
    "contexts": 9, "templates": PAPER_CONTEXTS, "filled": "subject", "with_bare": True, "write": "value",
    "relative": False, "weight_decay": 0.01, "clamp": 0.0, "reach": 1.0, "crowded": 0.0,
    "keep_ends": False, "hold_empty": False, "rarity": 0.0, "shrink": 0.0, "hints": False,
}  # fmt: skip
_AUTHORS: dict[str, Any] = _PAPER | {
    "negatives": 0, "max_steps": 99, "weight_decay": 0.1, "clamp": 4.0, "exact_at": "prompt", "first_context": "{}",
    "inverse": "float32", "lowercase": True, "texts": 100_000, "cut": 60,
}  # fmt: skip
_PUBLISHED: dict[str, Any] = _PAPER | {"hold_empty": True, "shrink": 1e-4, "hints": True}  # docs/families.md
_MANY: dict[str, Any] = POOLED | {"weight_decay": 0.1, "reach": 1.0}  # docs/many.md


@dataclass(frozen=True)
class ReFACT:
    """Change one matrix of the text encoder, in closed form, for a value found by descent (arXiv 2306.00738).

    Several edits are solved together, on the unedited model, so that a batch and a sequence agree. The defaults are
    ours; `paper()` is what the paper says, `authors()` what its released code runs, and docs/paper.md says where the
    three differ.
    """

    presets: ClassVar[tuple[str, ...]] = ("paper", "authors", "published", "pooled", "many")

    layer: Annotated[
        int | None,
        Doc(
            "Layer of the text encoder that is edited, counted from 0; by default the family's own "
            "(paper: 9 of 12 on TIMED, 7 on RoAD)."
        ),
    ] = None
    encoders: Annotated[
        tuple[str, ...], Doc("Text encoders of the pipeline that are edited; by default every CLIP encoder.")
    ] = ()
    embedding: Annotated[
        str,
        Doc(
            "What is compared: 'conditioning', the rows that the generator is sent from the subject on, against those "
            "that it is sent for the target in the same sentence, or 'pooled', the [EOS] state (paper). A call with a "
            "target by picture compares pooled, by the settings of that search where they are not given."
        ),
    ] = "conditioning"
    objective: Annotated[
        str,
        Doc(
            "'contrastive' (paper) or 'direct' (paper, Appendix A), which is better on the bundled model's "
            "validation rows."
        ),
    ] = "direct"
    distance: Annotated[
        str, Doc("'l2' (paper) or 'cosine' (paper, Appendix A); by default l2 for texts and cosine for pictures.")
    ] = ""
    space: Annotated[
        str,
        Doc(
            "'projected' compares in CLIP's projected space (paper), with the companion CLIP's projection where the "
            "encoder comes without one; by default states are compared as the encoder gives them."
        ),
    ] = ""
    ends: Annotated[
        str, Doc("Source and target are embedded in the prompt's 'contexts', or 'bare' (paper, authors' code).")
    ] = "contexts"
    gap: Annotated[
        str,
        Doc(
            "Moves pictured targets among the texts by the mean gap between the two: a folder of pictures, or "
            "'companion' for the mean that lies beside the companion CLIP."
        ),
    ] = ""
    write: Annotated[
        str,
        Doc("'offset' writes the found change at every context, 'value' writes v0 + change at the mean key (paper)."),
    ] = "offset"
    exact_at: Annotated[
        str,
        Doc(
            "The key at which a written value holds exactly: the 'mean' key (paper), or the bare 'prompt' own key, "
            "along the mean key's direction all the same (authors' code)."
        ),
    ] = "mean"
    first_context: Annotated[
        str,
        Doc(
            "The template whose own output is v0, in value, weight decay and clamp (authors' code: one drawn by "
            "chance); by default the mean over the contexts."
        ),
    ] = ""
    contexts: Annotated[int, Doc("How many templates are used, the bare prompt first (authors' code: 9).")] = 10
    templates: Annotated[tuple[str, ...], Doc("The sentences into which the prompt is put.")] = CONTEXTS
    filled: Annotated[
        str, Doc("Templates are filled with the whole 'prompt', or with the 'subject' alone (paper, authors' code).")
    ] = "prompt"
    modifiers: Annotated[
        tuple[str, ...],
        Doc(
            "Words after the article of a prompt such as 'a rose'; the change is written so that the rose's key after "
            "'a small' gets it too (not in the paper)."
        ),
    ] = MODIFIERS
    with_bare: Annotated[
        bool, Doc("Whether the search also runs over the bare prompt where no template is it (authors' code).")
    ] = False
    lowercase: Annotated[bool, Doc("Whether an edit's texts are lowered first (authors' code).")] = False
    negatives: Annotated[int, Doc("How many unrelated texts to stay away from, beside the source (paper: 20).")] = 20
    away: Annotated[str, Doc("A folder of pictures to stay away from, for pictured targets (paper: from MS-COCO).")] = (
        ""
    )
    relative: Annotated[
        bool,
        Doc(
            "Whether rate and bound are in units of the state's size; if not, the rate is absolute and the bound "
            "is in units of ||v0|| (authors' code)."
        ),
    ] = True
    optimiser: Annotated[str, Doc("'lbfgs', which needs fewer steps, or 'adam' (paper).")] = "lbfgs"
    learning_rate: Annotated[float, Doc("Learning rate of Adam (paper: 0.05).")] = 0.05
    max_steps: Annotated[int, Doc("Most steps of the search (paper: 100).")] = 20
    stop: Annotated[float, Doc("A contrastive search stops at this mean probability of the target (paper: 0.99).")] = (
        0.99
    )
    reach: Annotated[
        float, Doc("A direct search stops at this share of the way from source to target (paper: no stop, 1).")
    ] = 1.0
    weight_decay: Annotated[
        float, Doc("Weight of the change's own size, whose bound is `clamp` (paper: 0.01; the authors' code: 0.1).")
    ] = 0.0
    clamp: Annotated[
        float,
        Doc("Largest norm of a change, relative to the state's; 0: none (paper). Authors' code: 4 times the value's."),
    ] = 2.0
    ridge: Annotated[
        float, Doc("Ridge, relative to the keys' median leverage; with 0 the fact holds exactly (paper).")
    ] = 0.0
    fill: Annotated[float, Doc("Share of the free directions up to which several facts are written exactly.")] = 0.2
    crowded: Annotated[
        float,
        Doc(
            "Ridge for several facts that need more than that share; their sources' and targets' own prompts are then "
            "not held. With 0 they are written exactly, or refused where they do not fit."
        ),
    ] = 0.5
    hold: Annotated[
        float, Doc("Least leverage that protected prompts must leave an edit; below it the change would explode.")
    ] = 0.05
    keep_ends: Annotated[
        bool, Doc("Whether the source's and the target's own prompts are held too (not in the paper).")
    ] = True
    hold_empty: Annotated[
        bool, Doc("Whether the empty prompt is held, which guidance reads in every picture (not in the paper).")
    ] = True
    covariance: Annotated[
        bool, Doc("Whether E[k k^T] is used; if not, the identity stands in its place (paper's ablation).")
    ] = True
    corpus: Annotated[
        str,
        Doc(
            "Corpus of E[k k^T]: 'captions' (built in), a file, hf:NAME or hf:NAME:CONFIGURATION, or the authors' .npz "
            "of the moments themselves; by default the model's own, else captions."
        ),
    ] = ""
    tokens: Annotated[int, Doc("How many tokens of the corpus are read, where `texts` is 0.")] = 100_000
    texts: Annotated[int, Doc("How many texts of the corpus are read, instead of tokens (authors' code: 100,000).")] = 0
    cut: Annotated[int, Doc("Longest text of the corpus, in tokens; 0: as the encoder has it (authors' code: 60).")] = 0
    padding: Annotated[bool, Doc("Whether the pipeline's padding rows count in E[k k^T] too.")] = False
    rarity: Annotated[
        float,
        Doc("A key counts in E[k k^T] by its token's frequency to minus this power (as published: 0, all alike)."),
    ] = 1.0
    shrink: Annotated[
        float, Doc("E[k k^T] becomes C + shrink * tr(C)/d * I before it is inverted (paper: as it is, 0).")
    ] = 1e-4
    inverse: Annotated[
        str, Doc("Precision in which E[k k^T] is inverted for a value: 'float64' or 'float32' (authors' code).")
    ] = "float64"
    hints: Annotated[
        bool, Doc("Whether benchmarks tell it an edit's other wordings and prompts to protect (paper: neither).")
    ] = True
    seed: Annotated[int, Doc("Seed of the draw of unrelated texts.")] = 0
    autocast: Annotated[
        str,
        Doc("'bfloat16' computes the search in it, 'tf32' in TF32: quicker with many edits, where the device has it."),
    ] = ""
    batch: Annotated[int, Doc("How many edits are searched for together; it changes memory, not results.")] = 32

    @classmethod
    def paper(cls, **changes: Any) -> ReFACT:
        """The method as the paper says it; what it leaves open is deterministic (docs/paper.md)."""
        return cls(**(_PAPER | changes))

    @classmethod
    def authors(cls, **changes: Any) -> ReFACT:
        """The method as its released code runs it (technion-cs-nlp/ReFACT 8b6df79), to the digit (docs/paper.md).

        What that code draws by chance is an argument, `first_context`: of its ten prompts the one that gives v0. Its
        list of edits is a sequence on one model; here edits of one call are solved together.
        """
        return cls(**(_AUTHORS | changes))

    @classmethod
    def published(cls, **changes: Any) -> ReFACT:
        """The paper's settings with what cannot hurt: the empty prompt is held, and the covariance can be inverted.

        The default for Stable Diffusion 1.x, whose encoder is the only one with published figures (docs/families.md).
        """
        return cls(**(_PUBLISHED | changes))

    @classmethod
    def pooled(cls, **changes: Any) -> ReFACT:
        """A search on the pooled state alone, quicker where an encoder has many rows; stops at 0.9 of the way."""
        return cls(**(POOLED | changes))

    @classmethod
    def many(cls, **changes: Any) -> ReFACT:
        """For facts by the dozen: a longer search for smaller changes, of which neighbouring facts get less."""
        return cls(**(_MANY | changes))

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; the facts of the patches in `onto` stay held. Raises EditError."""
        from ..writing import held

        pictured = self.embedding == "conditioning" and any(edit.targets_images for edit in edits)
        return held.refact(self._compared_pooled() if pictured else self, model, edits, onto)

    def _compared_pooled(self) -> ReFACT:
        """With the pooled search's settings in the place of those that stand at their defaults."""
        usual = ReFACT()
        return replace(self, **{k: v for k, v in POOLED.items() if getattr(self, k) == getattr(usual, k)})


@dataclass(frozen=True)
class PooledSearch(ReFACT):
    """ReFACT's search on the pooled state, for methods that write in another way and were tuned with it."""

    presets: ClassVar[tuple[str, ...]] = ()

    embedding: Annotated[str, Doc("As in ReFACT.")] = POOLED["embedding"]
    optimiser: Annotated[str, Doc("As in ReFACT.")] = POOLED["optimiser"]
    max_steps: Annotated[int, Doc("As in ReFACT.")] = POOLED["max_steps"]
    reach: Annotated[float, Doc("As in ReFACT.")] = POOLED["reach"]
    weight_decay: Annotated[float, Doc("As in ReFACT.")] = POOLED["weight_decay"]
    modifiers: Annotated[tuple[str, ...], Doc("As in ReFACT.")] = POOLED["modifiers"]
