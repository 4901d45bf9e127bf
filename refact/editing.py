"""refact.edit: facts in, a patch out; tried in several ways where a fact does not hold at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .edits import Edit, distinct
from .errors import EditError, RefactError
from .methods.contexts import CONTEXTS, PAPER_CONTEXTS
from .methods.refact import POOLED, ReFACT
from .methods.usual import usual_for
from .models.aliases import propose_aliases
from .models.covariance import corpus_label
from .models.model import Model, load
from .patch import Patch
from .progress import Progress, plainly
from .stash import lifted
from .verification import unseen, verify
from .writing.loop import chosen_layer

STEPS = 100  # of a search that a search of fewer steps is repeated with, at least (paper)


@torch.inference_mode(False)
@torch.enable_grad()
def edit(
    model: Any,
    edits: Edit | Sequence[Edit],
    method: Any = None,
    onto: Patch | Sequence[Patch] = (),
    until_holds: bool = False,
    progress: Progress = plainly,
    kept: str | Path | None = None,
) -> Patch:
    """The patch that makes the edits true, by `method`; the model itself is left as it is.

    method: by default the settings with the best evidence for the model's family (`usual_for`).

    model: a `Model`, a live diffusers pipeline, or a name or path that `load` takes. Patches active in its text
    encoders are lifted while the edit is made; name them in `onto`, and their facts stay. until_holds: where a fact
    does not hold on the text side, other settings are tried one after another on this very model, and the best patch
    is kept; its record tells what was tried. progress: shows the loops of the statistics and of the search, and the
    ways that are tried, which on a large model can take minutes, for other layers need statistics of their own; an
    exception that it raises cancels the edit. kept: a folder of patches, in which this one is looked up by all that it
    depends on, and left otherwise; targets by picture are not. The search has its gradients even where the caller has
    turned them off, as ComfyUI does for its nodes. Raises EditError where an edit cannot be made with the settings
    asked for.
    """
    ready = model if isinstance(model, Model) else load(model, encoders=getattr(method, "encoders", None) or None)
    wanted = [edits] if isinstance(edits, Edit) else list(edits)
    onto = [onto] if isinstance(onto, Patch) else list(onto)
    if not wanted:
        raise EditError("no edits were given")
    method = method or usual_for(ready, wanted)
    with lifted(_modules(ready)), _showing(ready, progress):
        file = _file(kept, ready, wanted, method, onto, until_holds)
        if file is not None and file.is_file():
            return Patch.load(file)
        patch = method(ready, wanted, onto)
    if until_holds:
        patch = climb(ready, wanted, method, onto, patch, progress)
    if file is not None:
        patch.save(file)
    return patch


def climb(
    model: Model, edits: Sequence[Edit], method: Any, onto: Sequence[Patch], patch: Patch, progress: Progress = plainly
) -> Patch:
    """The patch itself where its facts hold on the text side or cannot be seen there; else the best that other settings
    give on this very model, tried one after another. The arguments are those of `edit`, and what came of them."""
    if unseen(patch):
        return patch
    with lifted(_modules(model)), _showing(model, progress):
        return _climbed(model, list(edits), method, onto, patch, progress)


def _modules(model: Model) -> dict[str, Any]:
    """What is in the text encoders, by paths that begin with the component."""
    towers = {name: encoder.tower for name, encoder in model.encoders.items()}
    return {f"{name}.{path}": part for name, tower in towers.items() for path, part in tower.named_modules()}


@contextmanager
def _showing(model: Model, progress: Progress) -> Iterator[None]:
    """Within the block what is done with the model goes through `progress`; `plainly` leaves it as it is."""
    before = model.progress
    model.progress = before if progress is plainly else progress
    try:
        yield
    finally:
        model.progress = before


def _file(
    kept: str | Path | None, model: Model, edits: list[Edit], method: Any, onto: Sequence[Patch], until_holds: bool
) -> Path | None:
    """Where a patch is kept: its name is a hash of the weights, the facts, the settings and the version."""
    if kept is None or any(edit.targets_images for edit in edits):
        return None
    depends = {
        "refact": __version__,
        "family": model.family.name,
        "model": [model.name, model.fingerprints()],
        "method": [type(method).__name__, dataclasses.asdict(method), until_holds],
        "corpus": corpus_label(getattr(method, "corpus", "") or model.corpus),
        "edits": [edit.to_json() for edit in distinct(edits)],
        "onto": [patch.digest for patch in onto],
        "companion": projection_print(model) if getattr(method, "space", "") else "",
        "words": words_print(model, edits),
    }
    name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return Path(kept) / f"{name[:32]}.safetensors"


def words_print(model: Model, edits: Sequence[Edit]) -> str:
    """A hash of the embeddings of all words of the edits: a word may be learned, and learned anew."""
    texts = [t for e in edits for t in (e.prompt, e.new, e.old, *e.aliases, *e.preserve) if isinstance(t, str)]
    total = hashlib.sha256()
    for encoder in model.encoders.values():
        module: Any = encoder.module
        words = module.get_input_embeddings()
        ids = encoder.tokenize(texts).ids.unique().to(words.weight.device)
        total.update(words(ids).detach().float().cpu().numpy().tobytes())
    return total.hexdigest()


def projection_print(model: Model) -> str:
    """A hash of the projection by which texts are compared, where the model has a companion CLIP."""
    weight = getattr(getattr(model.companion, "text_projection", None), "weight", None)
    return "" if weight is None else hashlib.sha256(weight.detach().float().cpu().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Standing:
    """How well a patch's facts hold on the text side, in prompts that no search has seen; compared in this order."""

    holds: float  # the share of facts that hold
    generality: float  # the share of unseen contexts and wordings in which they do, mean over the facts
    toward: float  # how much of the way to the target the prompts went, at most all of it, mean over the facts

    @classmethod
    def of(cls, model: Model, patch: Patch) -> Standing:
        """The standing of a patch on this model."""
        facts = verify(model, patch)
        rows = [(float(fact.holds), fact.generality, min(fact.toward, 1.0)) for fact in facts]
        return cls(*(sum(column) / len(rows) for column in zip(*rows)))

    @property
    def key(self) -> tuple[float, float, float]:
        return self.holds, self.generality, self.toward


def _climbed(
    model: Model, edits: list[Edit], method: Any, onto: Sequence[Patch], first: Patch, progress: Progress
) -> Patch:
    """The first patch on the ladder whose facts all hold, else the best; each rung changes the best way so far."""
    best, standing = first, Standing.of(model, first)
    if standing.holds == 1:
        return first
    tried: list[dict[str, Any]] = [{"rung": "as asked", **dataclasses.asdict(standing)}]
    chosen, rungs = 0, ladder(model, method)
    for name, changes in progress(rungs, "other settings", len(rungs)):
        other, told = (method, reworded(edits)) if changes is None else (_changed(method, changes), edits)
        if (other, told) == (method, edits):
            continue
        try:
            patch = other(model, told, onto)
        except RefactError as error:
            tried.append({"rung": name, "refused": str(error)})
            continue
        found = Standing.of(model, patch)
        tried.append({"rung": name, **dataclasses.asdict(found)})
        if found.key > standing.key:
            best, standing, method, edits, chosen = patch, found, other, told, len(tried) - 1
        if standing.holds == 1:
            break
    return dataclasses.replace(best, record=best.record | {"ladder": {"tried": tried, "chosen": chosen}})


Rung = tuple[str, dict[str, Any] | None]  # what it is called, and the settings it changes; None: other wordings


def ladder(model: Model, method: Any) -> list[Rung]:
    """What is tried where a fact does not hold, the cheapest first."""
    contexts = tuple(dict.fromkeys((*CONTEXTS, *PAPER_CONTEXTS)))
    other = "direct" if getattr(method, "objective", "") == "contrastive" else "contrastive"
    steps = max(STEPS, 2 * getattr(method, "max_steps", 0))
    return [
        ("the whole way, in more steps", {"reach": 1.0, "max_steps": steps}),
        (f"the {other} objective", {"objective": other}),
        *_otherwise_compared(method),
        (f"{len(contexts)} contexts", {"templates": contexts, "contexts": len(contexts)}),
        *((f"layer {layer}", {"layer": layer}) for layer in _layers(model, method)),
        ("other wordings by pattern", None),
    ]


def _otherwise_compared(method: Any) -> list[Rung]:
    """What the method does not compare; of ReFACT with all the settings that it then has by itself."""
    if getattr(method, "embedding", "") == "conditioning":
        return [("the pooled state is compared", POOLED)]
    if type(method) is not ReFACT:
        return [("what the generator is sent is compared", {"embedding": "conditioning"})]
    ours = {field.name: getattr(ReFACT(), field.name) for field in dataclasses.fields(ReFACT)}
    given = {name: getattr(method, name) for name in ("layer", "encoders", "corpus", "seed")}
    return [("what the generator is sent is compared, by ReFACT's own settings", ours | given)]


def reworded(edits: Sequence[Edit]) -> list[Edit]:
    """The edits with the other wordings that `propose_aliases` knows by pattern."""
    return [dataclasses.replace(e, aliases=tuple(dict.fromkeys(e.aliases + propose_aliases(e.words)))) for e in edits]


def _changed(method: Any, changes: dict[str, Any]) -> Any:
    """The method with other settings; as it is where it lacks one of them."""
    known = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **changes) if changes.keys() <= known else method


def _layers(model: Model, method: Any) -> list[int]:
    """Two lower layers, where a search finds more of the encoder above it: half as high, and the first."""
    asked, embedding = getattr(method, "layer", None), getattr(method, "embedding", "pooled")
    here = min(chosen_layer(model, encoder, asked, embedding) for encoder in model.encoders.values())
    return [layer for layer in dict.fromkeys((here // 2, 0)) if layer < here]
