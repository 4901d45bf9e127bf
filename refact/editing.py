"""From edits to a patch, in a text encoder: the loops behind the methods of `methods.py`.

sentences   every wording of the subject in every context      one trie an edit (suffix.py)
search      the change of the MLP's output that each edit needs (values.py), on the unedited encoder
write       all changes at once, in closed form                 (solve.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import bidirectional, covariance, solve, suffix, values
from .corpus import captions
from .edits import Edit, distinct
from .encoders import TextEncoder
from .errors import EditError
from .models import Model
from .patch import Patch
from .readings import Reading, reading, spaced
from .suffix import Sentence
from .targets import candidates, companion_of

PROTECTED_AT_ONCE = 16  # prompts a trie; its mask is square


@dataclass(frozen=True)
class Wanted:
    """What the search found for the edits of one layer."""

    keys: list[Float[Tensor, "_ d_in"]]  # an edit's distinct keys, float64
    offsets: Float[Tensor, "e d_out"]
    found: values.Found


@dataclass(frozen=True)
class Dropped:
    """A protected token that could not be held, for some edit would have died of it."""

    prompt: str
    token: int


Searcher = Callable[[TextEncoder, int], Wanted]
Writer = Callable[[TextEncoder, int, Wanted], "Written"]


@dataclass(frozen=True)
class Written:
    """How a method wrote what was wanted at one layer."""

    solution: solve.Solution
    targets: Float[Tensor, "n e"]  # what share of each edit's offset each key should get
    dropped: list[Dropped]
    covariance: dict  # for the record
    crowded: bool = False  # written with `method.crowded`, as the keys take too much of what is free


def refact(
    method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = (), searched: Searcher | None = None
) -> Patch:
    """One matrix an encoder, written for all edits at once, with the protected keys held.

    Several facts whose keys need more than the share `method.fill` of the free directions are written with the ridge
    `method.crowded`, their sources' and targets' own prompts let go: they hold nearly, and the rest stays; exactly
    they would hold at the rest's cost, or not fit. searched: what says what is wanted at a layer, where it is known
    already; by default `search`.
    """
    edits = distinct(edits)

    def written(encoder: TextEncoder, layer: int, wanted: Wanted) -> Written:
        prior, used = prior_of(method, model, encoder, layer)

        def solved(how: Any, crowded: bool = False) -> Written:
            held, dropped = protect(how, encoder, layer, edits, onto, wanted.keys, prior)
            keys, room = written_keys(how, wanted), how.fill * held.free
            may = how.crowded and not how.ridge and len(edits) > 1 and len(keys) > room
            if may and solve.fill(keys, held) > how.fill:
                return solved(replace(how, ridge=how.crowded, keep_ends=False), True)
            return Written(*write(how, wanted, held), dropped, used, crowded)

        return solved(method)

    return one_layer(method, model, edits, written, searched)


def one_layer(method: Any, model: Model, edits: list[Edit], writer: Writer, searched: Searcher | None = None) -> Patch:
    """In each encoder: search at one layer, let the method write what was found."""
    searched = searched or (lambda encoder, layer: search(method, model, encoder, layer, edits))
    factors, used = {}, {}
    logs: list[dict] = [{} for _ in edits]
    for encoder in chosen(model, method.encoders, t5=True):
        layer = chosen_layer(model, encoder, method.layer)
        wanted = searched(encoder, layer)
        site, written = encoder.site(layer), writer(encoder, layer, wanted)
        factors[site] = (wanted.offsets.T.float().contiguous(), written.solution.right.float())
        used[site] = written.covariance
        for log, entry in zip(logs, entries(wanted, written, layer)):
            log[site] = entry
    return patch_of(method, model, edits, factors, logs, used)


def chosen(model: Model, names: Sequence[str], t5: bool = False) -> list[TextEncoder]:
    """The encoders of these names, T5 among them where the method can; every CLIP encoder when none is named."""
    if missing := [name for name in names if name not in model.encoders]:
        raise EditError(f"{model.name} has no text encoder {missing[0]!r}; it has {', '.join(model.encoders)}")
    picked = [model.encoders[n] for n in names] or [e for e in model.encoders.values() if e.kind == "clip"]
    if not t5 and (others := [encoder.name for encoder in picked if encoder.kind == "t5"]):
        raise EditError(f"{others[0]} is a T5, which only ReFACT and AlphaEdit edit, as an experiment")
    return [encoder.in_float32() for encoder in picked]


def starting(encoder: TextEncoder, layer: int, edits: Sequence[Sequence[Sentence]], depth: int) -> suffix.Start:
    """The part of the encoder that edits can change, and their keys and values."""
    if encoder.kind == "t5":
        return bidirectional.start(encoder, layer, edits)
    return suffix.start(encoder.tower, layer, edits, depth)


def every_key(encoder: TextEncoder, layer: int, sentences: Sequence[Sentence]) -> tuple[Tensor, list[list[int]]]:
    """The keys at all positions of the sentences (nodes, d_in), and each sentence's nodes."""
    if encoder.kind == "t5":
        return bidirectional.all_keys(encoder, layer, sentences)
    return suffix.all_keys(encoder.tower, layer, sentences)


def chosen_layer(model: Model, encoder: TextEncoder, layer: int | None) -> int:
    """The layer asked for, if it can matter; else the model's own default, else 7 of 12 by depth (paper, RoAD)."""
    if layer is None:
        layer = model.defaults.get("layer", round(encoder.n_layers * 7 / 12))
    encoder.check_layer(layer)
    return layer


def search(method: Any, model: Model, encoder: TextEncoder, layer: int, edits: Sequence[Edit]) -> Wanted:
    """What each edit needs at this layer, found on the unedited encoder, `method.batch` edits at a time."""
    others = captions(method.negatives, seed=method.seed)
    read = reading(encoder, method.embedding, others or captions(20), companion_of(model, method, edits, encoder))
    read = replace(read, precision=method.autocast)
    away = read.of_texts(others) if others else torch.zeros(0)
    asked = [sentences_of(encoder, read, edit, templates_of(method)) for edit in edits]
    groups = suffix.grouped([suffix.extent(sentences) for sentences in asked], method.batch)
    keys: dict[int, Tensor] = {}
    parts = []
    for group in groups:
        sentences, these = [asked[at] for at in group], [edits[at] for at in group]
        begun = starting(encoder, layer, sentences, read.depth)
        compared = candidates(model, read, these, templates_of(method), away, method.gap)
        scale, how = scale_of(method, begun), search_of(method, edits)
        keys |= {at: k.double() for at, k in zip(group, begun.keys)}
        with frozen(encoder.module, read.projection):
            parts.append(values.find(begun.suffix, read.of_states, compared, scale, encoder.width, how))
    order = [at for group in groups for at in group]
    found = values.Found.of_all(parts).at(sorted(range(len(order)), key=order.__getitem__))
    return Wanted([keys[at] for at in range(len(edits))], found.offsets.double(), found)


@contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Within the block no weight asks for a gradient, so that a search keeps no tensors for theirs."""
    asking = [w for module in modules if module is not None for w in module.parameters() if w.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


def search_of(method: Any, edits: Sequence[Edit]) -> values.Search:
    """The fields of a method that the search needs.

    Where targets are pictures the distance is cosine unless one is named. A contrast is no use there: text and picture
    features lie so far apart that one picture against many texts is won by leaving the texts, wherever to.
    """
    pictures = any(edit.targets_images for edit in edits)
    given = {name: getattr(method, name) for name in values.Search.__dataclass_fields__}
    given["distance"] = given["distance"] or ("cosine" if pictures else "l2")
    return values.Search(**given)


def scale_of(method: Any, begun: suffix.Start) -> values.Scale:
    """Rates and bounds: as the paper's code has them, or in units of the states that the offset is added to."""
    norms = torch.stack([v.norm(dim=1).mean() for v in begun.values])
    size = begun.sizes if method.relative else norms
    rates = begun.sizes / begun.values[0].shape[1] ** 0.5 if method.relative else torch.ones_like(norms)
    return values.Scale(norms, method.learning_rate * rates, method.clamp * size)


def templates_of(method: Any) -> tuple[str, ...]:
    """The contexts in use."""
    if not 1 <= method.contexts <= len(method.templates):
        raise EditError(f"contexts is 1 to {len(method.templates)}, the number of templates, not {method.contexts}")
    return method.templates[: method.contexts]


def wordings(edit: Edit) -> list[tuple[str, str]]:
    """(prompt, subject) of the edit and of each alias."""
    return [(edit.prompt, edit.words), *zip(edit.reworded(), edit.aliases)]


def sentences_of(encoder: TextEncoder, read: Reading, edit: Edit, templates: Sequence[str]) -> list[Sentence]:
    """Every wording in every context, wordings outer."""
    placed = [(template, *wording) for wording in wordings(edit) for template in templates]
    tokens = encoder.tokenize([template.replace("{}", prompt) for template, prompt, _ in placed])
    subjects = [
        encoder.locate(template.replace("{}", prompt), words, within=(template.index("{}"), len(prompt)))
        for template, prompt, words in placed
    ]
    return [
        read.sentence(ids, subject, end)
        for ids, subject, end in zip(tokens.ids.tolist(), subjects, tokens.ends.tolist())
    ]


def covariance_of(method: Any, model: Model, encoder: TextEncoder, layer: int) -> tuple[Float[Tensor, "d d"], dict]:
    """E[k k^T] at a layer, shrunk (the identity when a method does without), and what to record of it."""
    if not method.covariance:
        return torch.eye(encoder.linear(layer).in_features, dtype=torch.float64), {"corpus": None}
    corpus = method.corpus or model.corpus
    how = {"tokens": method.tokens, "padding": method.padding, "rarity": method.rarity}
    seen = covariance.obtain(encoder, layer, corpus=corpus, **how)
    record = how | {"hash": seen.hash(), "tokens": seen.tokens, "corpus": seen.corpus}
    return seen.shrunk(method.shrink), record | {"shrink": method.shrink}


def prior_of(method: Any, model: Model, encoder: TextEncoder, layer: int) -> tuple[solve.Prior, dict]:
    """The prior at a layer, and what to record of its covariance."""
    matrix, record = covariance_of(method, model, encoder, layer)
    return solve.prior(matrix), record


def protect(
    method: Any, encoder: TextEncoder, layer: int, edits: Sequence[Edit], onto: Sequence[Patch], keys, prior
) -> tuple[solve.Prior, list[Dropped]]:
    """The prior that holds the empty prompt, every `preserve` prompt and the facts of earlier patches."""
    kept = [p for edit in edits for p in (*edit.preserve, *(ends_of(edit) if method.keep_ends else ()))]
    labels, rows = token_keys(encoder, layer, list(dict.fromkeys(kept)))
    for patch in onto:
        earlier = torch.cat(list(keys_of_patch(encoder, layer, patch)))
        rows, labels = torch.cat([rows, earlier]), labels + [Dropped(", ".join(patch.names), 0)] * len(earlier)
    held, dropped = solve.hold_what_can_be(prior, torch.cat(keys), rows, method.hold)
    return held, [labels[i] for i in dropped]


def ends_of(edit: Edit) -> list[str]:
    """The texts of source and target, as far as they are texts of their own."""
    return [text for text in (edit.old, edit.new) if isinstance(text, str) and text != edit.prompt]


def token_keys(encoder: TextEncoder, layer: int, prompts: Sequence[str]) -> tuple[list[Dropped], Tensor]:
    """The keys of the prompts' tokens, each prefix once: all 77 rows of the empty prompt, which guidance reads in
    every picture; of the others all to [EOS] and some of the padding rows, where the generator gets those."""
    tokens = encoder.tokenize(["", *prompts])
    labels, rows, seen = [], [], set()
    for at in range(0, len(tokens.ids), PROTECTED_AT_ONCE):
        ids, ends = (t[at : at + PROTECTED_AT_ONCE].tolist() for t in (tokens.ids, tokens.ends))
        group = [Sentence(tuple(row), 0, end) for row, end in zip(ids, ends)]
        keys, paths = every_key(encoder, layer, group)
        for prompt, sentence, path in zip(["", *prompts][at:], group, paths):
            for position in _held_rows(encoder, sentence, prompt):
                read = sentence.ids[: position + 1] if encoder.kind == "clip" else (prompt, position)
                if read not in seen:
                    seen.add(read)
                    labels.append(Dropped(prompt, position))
                    rows.append(keys[path[position]])
    return labels, torch.stack(rows).double()


def _held_rows(encoder: TextEncoder, sentence: Sentence, prompt: str) -> list[int]:
    if not prompt and encoder.kind == "clip":
        return list(range(len(sentence.ids)))
    padding = spaced(sentence.end, len(sentence.ids)) if encoder.row.rows == "last" else []
    return sorted({*range(sentence.end + 1), *padding})


def keys_of_patch(encoder: TextEncoder, layer: int, patch: Patch) -> Iterator[Tensor]:
    """The keys of a patch's edits at a layer, from the prompts that it records."""
    templates = tuple(patch.record["method"].get("templates", ("{}",)))[: patch.record["method"].get("contexts", 1)]
    for edit in patch.edits:
        yield keys_of(encoder, layer, edit, templates)


def keys_of(encoder: TextEncoder, layer: int, edit: Edit, templates: Sequence[str]) -> Float[Tensor, "n d_in"]:
    """An edit's distinct keys at a layer, over its wordings and contexts, float64."""
    plain = Reading(encoder, None)
    begun = starting(encoder, layer, [sentences_of(encoder, plain, edit, templates)], plain.depth)
    return begun.keys[0].double()


def write(method: Any, wanted: Wanted, prior: solve.Prior) -> tuple[solve.Solution, Tensor]:
    """The right factor, and what share of each edit's offset each key should get."""
    keys = written_keys(method, wanted)
    groups = torch.eye(len(wanted.keys), dtype=torch.float64, device=keys.device)
    if method.write == "offset":
        groups = groups.repeat_interleave(torch.tensor([len(k) for k in wanted.keys], device=keys.device), 0)
    if method.ridge:
        return solve.ridge(keys, prior, method.ridge * solve.typical(keys, prior), groups), groups
    return solve.exact(keys, prior, groups), groups


def written_keys(method: Any, wanted: Wanted) -> Tensor:
    """The keys (n, d_in) that the closed form is given: each context's, or each edit's mean."""
    if method.write not in ("value", "offset"):
        raise EditError(f"write is 'value' or 'offset', not {method.write!r}")
    return torch.cat(wanted.keys) if method.write == "offset" else torch.stack([k.mean(0) for k in wanted.keys])


def entries(wanted: Wanted, written: Written, layer: int) -> Iterator[dict]:
    """What the patch records of each edit at one site."""
    solution, targets = written.solution, written.targets
    found, missing = wanted.found, (solution.written - targets) @ wanted.offsets
    for i, offset in enumerate(wanted.offsets):
        mine = targets[:, i] > 0
        yield {
            "rows": [i, i + 1],
            "layer": layer,
            "steps": int(found.steps[i]),
            "loss": [float(found.first[i]), float(found.last[i])],
            "probability": float(found.probability[i]),
            "clamped": bool(found.clamped[i]),
            "residual": float(missing[mine].norm(dim=1).max() / offset.norm().clamp_min(1e-30)),
            "share": float(solution.written[mine, i].mean()),
            "leverage": float(solution.leverage[mine].min()),
            "condition": solution.condition,
            "crowded": written.crowded,
            "not_held": sorted({d.prompt for d in written.dropped}),
        }


def patch_of(method: Any, model: Model, edits: Sequence[Edit], factors: dict, logs: list[dict], used: dict) -> Patch:
    """The patch with its record."""
    from . import __version__

    touched = {site.partition(".")[0] for site in factors}
    record = {
        "refact": 1,
        "family": model.family.name,
        "model": {"name": model.name, "encoders": {k: v for k, v in model.fingerprints().items() if k in touched}},
        "method": {"name": type(method).__name__, **asdict(method)},
        "edits": [edit.to_json() | {"sites": log} for edit, log in zip(edits, logs)],
        "covariance": used,
        "versions": {"refact": __version__, "torch": torch.__version__},
    }
    patch = Patch(factors, record)
    return replace(patch, record=record | {"preserved": drift(model, patch, edits)})


def alone(method: Any, onto: Sequence[Patch]) -> None:
    """EditError where a method that cannot hold earlier facts is asked to."""
    if onto:
        raise EditError(f"{type(method).__name__} cannot hold the facts of earlier patches: make it without onto")


def drift(model: Model, patch: Patch, edits: Sequence[Edit]) -> dict[str, float]:
    """How far each protected prompt's conditioning moved, relative to its own norm; the empty prompt is one."""
    prompts = ["", *dict.fromkeys(p for edit in edits for p in edit.preserve)]
    before = [encoder.states(prompts) for encoder in model.encoders.values()]
    with patch.applied(model):
        after = [encoder.states(prompts) for encoder in model.encoders.values()]
    moved = [((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)) for a, b in zip(after, before)]
    return dict(zip(prompts, torch.stack(moved).amax(0).tolist()))


def edit(model: Any, edits: Edit | Sequence[Edit], method: Any = None, onto: Sequence[Patch] = ()) -> Patch:
    """The patch that makes the edits true, by `method` (default `ReFACT()`); the model itself is left as it is.

    model: a `Model`, a live diffusers pipeline, or a name or path that `load` takes. onto: patches whose facts stay.
    """
    from .methods import ReFACT
    from .models import load

    method = method or ReFACT()
    ready = model if isinstance(model, Model) else load(model, encoders=getattr(method, "encoders", None) or None)
    return method(ready, [edits] if isinstance(edits, Edit) else list(edits), onto)
