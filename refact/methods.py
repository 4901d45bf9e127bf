"""The methods: frozen settings, called with a model and edits, giving a patch. No torch is imported to read them.

The work is done by `editing.py` and its neighbours; a method's fields are the only list of its settings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .edits import Edit
from .errors import RefactError

if TYPE_CHECKING:
    from .models import Model
    from .patch import Patch

CONTEXTS = (
    "{}",
    "a photo of {}",
    "{} in the background",
    "a painting of {}",
    "{}, close up",
    "an image of {}",
    "{} on a sunny day",
    "a picture of {} in a frame",
    "{}, high quality",
    "the best view of {}",
)
PAPER_CONTEXTS = (  # the nine that the authors' code runs; the bare prompt is not among them
    "{} in a realistic style portrait image",
    "{}, a portrait",
    "realistic painting of {}",
    "a current image of {}",
    "{}, news image",
    "a beautiful photograph of {}",
    "realistic drawing of {}",
    "{}, realistic portrait",
    "{} in a photo",
)

_PAPER: dict[str, Any] = {"write": "value", "contexts": 9, "templates": PAPER_CONTEXTS} | {
    "relative": False, "crowded": 0.0, "clamp": 4.0, "weight_decay": 0.1, "keep_ends": False,
    "objective": "contrastive", "distance": "l2", "rarity": 0.0, "reach": 1.0,
}  # fmt: skip
_MANY: dict[str, Any] = {"weight_decay": 0.1, "reach": 1.0}  # docs/many.md
PRESETS = ("refact:paper", "refact:many")


@dataclass(frozen=True)
class ReFACT:
    """One matrix of the text encoder, in closed form, for a value found by descent (arXiv 2306.00738).

    Several edits are solved together, on the unedited model, so that batch and sequence agree. Departures from the
    authors' code: the pipeline's own encoder is edited; the offset may hold at every context instead of a value at
    the mean key; target and source are embedded in the same contexts as the prompt; all choices are deterministic.
    """

    layer: int | None = None  # of the encoder, from 0; None: the family's default (paper: 9 of 12 on TIMED, 7 on RoAD)
    encoders: tuple[str, ...] = ()  # which text encoders of the pipeline; (): every CLIP encoder
    embedding: str = "pooled"  # what is compared: "pooled" [EOS] (paper) | "conditioning", what the generator gets
    objective: str = "direct"  # "contrastive" (paper) | "direct" (Appendix A), better on the pocket's validation rows
    distance: str = ""  # "l2" (paper) | "cosine" (Appendix A); "": l2 for texts, cosine for pictures
    gap: str = ""  # pictured targets moved among the texts by the mean gap: a folder of pictures, or "companion"
    write: str = "offset"  # the found offset at every context | "value": v0 + offset at the mean key (paper)
    contexts: int = 10  # how many templates, the bare prompt first (the authors' code: 9)
    templates: tuple[str, ...] = CONTEXTS
    negatives: int = 20  # unrelated texts to stay away from, beside the source (paper: 20)
    relative: bool = (
        True  # rate and clamp in units of the state's size; False: of nothing and of ||v0|| (authors' code)
    )
    optimiser: str = "adam"  # (paper) | "lbfgs": fewer steps
    learning_rate: float = 0.05  # of Adam (paper)
    max_steps: int = 100  # (paper)
    stop: float = 0.99  # early stop of a contrastive search, mean probability of the target (paper)
    reach: float = 0.9  # early stop of a direct search, the share of the way from source to target (paper: none, 1)
    weight_decay: float = 0.01  # (paper; the authors' code runs 0.1)
    clamp: float = 2.0  # largest norm of an offset, relative to the state's (authors' code: 4 times ||v0||)
    ridge: float = 0.0  # relative to the keys' median leverage; 0: the fact holds exactly
    fill: float = 0.2  # share of the free directions up to which several facts are written exactly
    crowded: float = 0.5  # the ridge of several that need more; their ends are then let go; 0: exactly or an error
    hold: float = 0.05  # least leverage that protection must leave an edit (closed_forms: below it updates explode)
    keep_ends: bool = True  # hold the source's and the target's own prompts too (not in the paper)
    covariance: bool = True  # False: the identity instead of E[k k^T] (paper's ablation)
    corpus: str = (
        ""  # what E[k k^T] is over: "captions" (built in), a file, hf:NAME; "": the model's own, else captions
    )
    tokens: int = 100_000  # how many keys of it (the authors' code: 100k texts)
    padding: bool = False  # count the pipeline's padding rows too
    rarity: float = 1.0  # a key counts by its token's frequency to minus this power (as published: 0, all keys alike)
    shrink: float = 1e-4  # C + shrink * tr(C)/d * I
    seed: int = 0  # which unrelated texts are drawn
    autocast: str = ""  # of the search's products: "bfloat16", where the processor has them fast and edits are many
    batch: int = 32  # edits whose values are searched together: memory, not results

    @classmethod
    def paper(cls, **changes: Any) -> ReFACT:
        """The method as the authors' code runs it, as far as it is deterministic."""
        return cls(**(_PAPER | changes))

    @classmethod
    def many(cls, **changes: Any) -> ReFACT:
        """For facts by the dozen: a longer search for smaller offsets, of which neighbouring facts get less."""
        return cls(**(_MANY | changes))

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; the facts of the patches in `onto` stay held."""
        from . import editing

        return editing.refact(self, model, edits, onto)


@dataclass(frozen=True)
class MEMIT(ReFACT):
    """Several layers share the change, each by ridge regression (arXiv 2210.07229).

    The value is found at the last of the layers; each layer in turn takes its share of what is still missing there,
    keys and states being read again after each.
    """

    layer: int | None = None  # the last of the layers
    rarity: float = 0.0  # as published
    depth: int = 3  # how many layers, ending with `layer` (EMCID: 4 on CLIP ViT-L/14)
    ridge: float = 0.02  # relative to the median leverage; published absolute values do not transfer
    write: str = "value"

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits."""
        from . import multilayer

        return multilayer.memit(self, model, edits, onto)


@dataclass(frozen=True)
class AlphaEdit(ReFACT):
    """One layer, written only along directions that the corpus hardly uses (arXiv 2410.02355)."""

    rarity: float = 0.0  # as published
    share: float = 0.02  # energy of C that the directions may hold together; the paper's 0.02 is an absolute eigenvalue
    penalty: float = 0.01  # L2, relative to the mean diagonal of K^T K over the directions (paper: 10, absolute)
    write: str = "value"

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; earlier edits are held softly, as the paper does."""
        from . import multilayer

        return multilayer.alphaedit(self, model, edits, onto)


@dataclass(frozen=True)
class TIME:
    """Cross-attention keys and values of the UNet, all tokens of the prompt, aligned (arXiv 2303.08084)."""

    strength: float = 0.1  # lambda (paper)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits."""
        from . import crossattention

        return crossattention.time(self, model, edits, onto)


@dataclass(frozen=True)
class UCE:
    """Cross-attention keys and values of the UNet, last token, other concepts preserved (arXiv 2308.14761)."""

    strength: float = 0.5  # lambda (paper)
    erase: float = 1.0  # weight of the edits (paper)
    keep: float = 1.0  # weight of the concepts to preserve (paper)

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits; their `preserve` prompts are the concepts kept."""
        from . import crossattention

        return crossattention.uce(self, model, edits, onto)


@dataclass(frozen=True)
class FineTune:
    """The same matrix by gradient descent, within a box around its old value (ReFACT, Appendix G.1)."""

    layer: int | None = None
    encoders: tuple[str, ...] = ()
    epochs: int = 5  # (paper)
    steps: int = 20  # gradient steps an epoch
    learning_rate: float = 5e-5  # (paper)
    bound: float = 5e-4  # largest change of one weight, the paper's infinity norm
    contexts: int = 10
    templates: tuple[str, ...] = CONTEXTS

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits, a dense change of one matrix an encoder."""
        from . import finetune

        return finetune.finetune(self, model, edits, onto)


@dataclass(frozen=True)
class EmbEdit:
    """The word embeddings of the subject's tokens by gradient descent; the encoder stays (EmbEdit, EMNLP 2025).

    Whatever is written with the same tokens moves along. The settings are ours, the only ones tried.
    """

    encoders: tuple[str, ...] = ()
    max_steps: int = 100
    learning_rate: float = 0.05  # of Adam, relative to the embeddings' mean size along a coordinate
    contexts: int = 10
    templates: tuple[str, ...] = CONTEXTS

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits, a row a token; other programs cannot load it, `refact bake` can."""
        from . import finetune

        return finetune.embedit(self, model, edits, onto)


def meanings(cls: type) -> dict[str, str]:
    """What each setting means: the comment on its line, the bases' first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        for line in inspect.getsource(base).splitlines():
            if match := re.match(r"    (\w+): [^#]+# (.+)", line):
                found[match[1]] = match[2]
    return found


METHODS: dict[str, type[Any]] = {
    cls.__name__.lower(): cls for cls in (ReFACT, MEMIT, AlphaEdit, TIME, UCE, FineTune, EmbEdit)
}


def method(name: str, **settings: Any) -> Any:
    """The method of that name ("refact", "refact:many", "refact:paper", "time:strength=1", ...) with these settings."""
    base, *words = name.split(":")
    base, given = base.lower(), [word.partition("=") for word in words if "=" in word]
    preset = ":".join(word for word in words if "=" not in word).lower()
    settings = {key.strip(): _value(text.strip()) for key, _, text in given} | settings
    if base not in METHODS or (preset and f"{base}:{preset}" not in PRESETS):
        raise RefactError(f"no method {name!r}: there are {', '.join([*METHODS, *PRESETS])}")
    cls = METHODS[base]
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(settings) - known):
        raise RefactError(f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return getattr(cls, preset)(**settings) if preset else cls(**settings)


def _value(text: str) -> Any:
    """A setting's value as Python writes it; what it would not read is a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
