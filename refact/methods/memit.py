"""MEMIT (arXiv 2210.07229) with ReFACT's search, and EMCID (arXiv 2403.13807) with its own: several layers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_doc import Doc

from ..edits import Edit
from .refact import PooledSearch
from .settings import check

if TYPE_CHECKING:
    from ..models.model import Model
    from ..patch import Patch

EMCID_CONTEXTS = ("An image of {}", "A photo of {}", "{}")  # of its TIMED and RoAD runs (timed_road_dataset.py)


@dataclass(frozen=True)
class MEMIT(PooledSearch):
    """Several layers share the change, each by ridge regression (arXiv 2210.07229).

    The value is found at the last of the layers; each layer in turn takes its share of what is still missing there,
    keys and states being read again after each.
    """

    presets: ClassVar[tuple[str, ...]] = ("authors",)

    layer: Annotated[int | None, Doc("The last of the edited layers, counted from 0.")] = None
    rarity: Annotated[float, Doc("As in ReFACT; as published 0, all keys count alike.")] = 0.0
    keep_ends: Annotated[
        bool, Doc("Whether the source's and the target's own prompts are held too (not in the paper).")
    ] = False
    depth: Annotated[
        int, Doc("How many layers share the change, the last of them `layer`; 0: all (MEMIT: 6 of GPT-J's 28).")
    ] = 3
    ridge: Annotated[
        float, Doc("Ridge, relative to the median leverage; the published absolute values do not carry over.")
    ] = 0.02
    absolute: Annotated[bool, Doc("Whether the ridge is lambda itself, as published (MEMIT: 15,000 on GPT-J).")] = False
    residual: Annotated[
        str, Doc("What a layer shares: 'state', what is missing after the last one, or 'released' (EMCID's code).")
    ] = "state"
    write: Annotated[str, Doc("MEMIT always writes at each edit's mean key.")] = "value"

    @classmethod
    def authors(cls, **changes: Any) -> MEMIT:
        """MEMIT's closed form with its settings for GPT-J (it has none for a text encoder); the search is ReFACT's."""
        told: dict[str, Any] = {"depth": 6, "ridge": 15_000.0, "absolute": True, "max_steps": 25, "clamp": 0.75}
        told |= {"learning_rate": 0.5, "weight_decay": 0.5, "relative": False, "hold_empty": False, "shrink": 0.0}
        told["hints"] = False
        return cls(**(told | {"objective": "contrastive", "distance": "l2", "reach": 1.0} | changes))

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. Raises EditError."""
        from ..writing import multilayer

        return multilayer.memit(self, model, edits, onto)


@dataclass(frozen=True)
class EMCID:
    """All layers up to `layer` share a change that the generator's own predictions ask for (arXiv 2403.13807).

    At each step the edited prompt's noise prediction shall be the target prompt's, on noised pictures of the source;
    0.01 of the pooled states' squared distance is added. The defaults follow MEMIT's definition of what a layer has to
    share and a ridge relative to the keys' leverage; `authors()` follows the released code in both.
    """

    presets: ClassVar[tuple[str, ...]] = ("authors",)

    layer: Annotated[
        int | None, Doc("The last of the edited layers, counted from 0; by default the last but one (EMCID: 10 of 12).")
    ] = None
    encoders: Annotated[tuple[str, ...], Doc("Text encoders that are edited; by default every CLIP encoder.")] = ()
    depth: Annotated[int, Doc("How many layers share the change; 0: all up to `layer` (EMCID: 0 to 10).")] = 0
    noise: Annotated[bool, Doc("Whether the generator's predictions count (EMCID: yes; its ablation: no).")] = True
    align: Annotated[float, Doc("Weight of the pooled states' mean squared distance (EMCID: 0.01).")] = 0.01
    max_steps: Annotated[int, Doc("Steps of Adam (EMCID: 200).")] = 200
    learning_rate: Annotated[float, Doc("Learning rate of Adam, in units of the state's size where `relative`.")] = 0.05
    relative: Annotated[bool, Doc("Whether the rate is relative; if not, absolute (EMCID: 0.2).")] = True
    weight_decay: Annotated[float, Doc("Weight of ||d|| / ||h0||^2, with h0 the state (EMCID: 5e-4).")] = 5e-4
    clamp: Annotated[float, Doc("Largest norm of the change, relative to the state's (EMCID: 1.5).")] = 1.5
    contexts: Annotated[int, Doc("How many templates are used.")] = 3
    templates: Annotated[tuple[str, ...], Doc("The sentences into which the prompt is put.")] = EMCID_CONTEXTS
    filled: Annotated[str, Doc("Templates are filled with the whole 'prompt', or with the 'subject' alone.")] = "prompt"
    lowercase: Annotated[bool, Doc("Whether an edit's texts are lowered first (EMCID: yes).")] = False
    ridge: Annotated[float, Doc("Ridge, relative to the median leverage (EMCID's 4000 to 6000: about 1.3 here).")] = 1.3
    absolute: Annotated[bool, Doc("Whether the ridge is lambda itself, as published.")] = False
    residual: Annotated[
        str,
        Doc(
            "What a layer shares: 'state', what is missing after the last layer (MEMIT), or 'released': the goal, a "
            "state, less the layer's own MLP output (EMCID's code)."
        ),
    ] = "state"
    keep_ends: Annotated[bool, Doc("Whether the source's and the target's own prompts are held (not in EMCID).")] = (
        False
    )
    hold_empty: Annotated[bool, Doc("Whether the empty prompt is held (not in EMCID).")] = True
    hold: Annotated[float, Doc("Least leverage that protected prompts must leave an edit.")] = 0.05
    covariance: Annotated[bool, Doc("Whether E[k k^T] is used; if not, the identity stands in its place.")] = True
    corpus: Annotated[str, Doc("Corpus of E[k k^T], as in ReFACT (EMCID: 100,000 captions of CCS).")] = ""
    tokens: Annotated[int, Doc("How many tokens of the corpus are read, where `texts` is 0.")] = 100_000
    texts: Annotated[int, Doc("How many texts of the corpus are read, instead of tokens (EMCID: 100,000).")] = 0
    cut: Annotated[int, Doc("Longest text of the corpus, in tokens; 0: as the encoder has it.")] = 0
    padding: Annotated[bool, Doc("Whether the pipeline's padding rows count in E[k k^T] too.")] = False
    rarity: Annotated[float, Doc("As in ReFACT; as published 0, all keys count alike.")] = 0.0
    shrink: Annotated[float, Doc("E[k k^T] becomes C + shrink * tr(C)/d * I before it is inverted.")] = 1e-4
    hints: Annotated[
        bool, Doc("Whether benchmarks tell it an edit's other wordings and prompts to protect (EMCID: neither).")
    ] = True
    seed: Annotated[int, Doc("Seed of the source's pictures, and of noise and time steps.")] = 0

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def authors(cls, **changes: Any) -> EMCID:
        """As its released code runs on RoAD (SilentView/EMCID: lambda 6000; 4000 on TIMED), layers 0 to 10 of 12."""
        told: dict[str, Any] = {"ridge": 6000.0, "absolute": True, "residual": "released", "relative": False}
        told |= {"learning_rate": 0.2, "lowercase": True, "filled": "prompt", "hold_empty": False, "shrink": 0.0}
        return cls(**(told | {"texts": 100_000, "hints": False} | changes))

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. Raises EditError, and ModelError where there is no generator to ask."""
        from ..writing import multilayer

        return multilayer.emcid(self, model, edits, onto)
