"""`refact study ...`: the paper's studies and ours, each one command over the machinery of `refact bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RefactError, quoted
from ..methods.registry import method
from ..trust import limits
from .app import (
    App,
    AsJson,
    Autocast,
    JudgedBy,
    Limit,
    ModelName,
    NamesFile,
    Quiet,
    app,
    bar,
    numbers_of,
    open_model,
    parameters_of,
    say,
    seeds_of,
    signed,
    tell_json,
)
from .cluster import with_cluster
from .measure import judge_of, names_of, tell_scores

study = App(help="Layers, thresholds, sequences, probes, scale: one command each.", no_args_is_help=True)
app.add_typer(study, name="study")

Data = Annotated[str, typer.Argument(help="pocket-road, pocket-timed, or a csv in RoAD's or TIMED's columns.")]
Out = Annotated[Path, typer.Option(help="The study's folder. What is in it already is not done again.")]
By = Annotated[str, typer.Option("--method", help="The method that is studied.")]
Given = Annotated[str, typer.Option(help="Seeds, like 0-24.")]


def _shared(
    model: ModelName = "pocket",
    seeds: Given = "0-4",
    judge: JudgedBy = None,
    names: NamesFile = None,
    limit: Limit = None,
    autocast: Autocast = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The options of every study that ends in scores."""


def scored(command: Callable) -> Callable:
    """The command with those options; it is given the opened `ready` and the benchmark's `options`, and makes a run in
    its folder `out`, whose scores are printed afterwards.
    """
    own, shared = parameters_of(command, "ready", "options"), parameters_of(_shared)

    def wrapped(**given: Any) -> None:
        common = {p.name: given.pop(p.name) for p in shared}
        judge, hush = judge_of(common["judge"], common["model"]), common["quiet"] or common["as_json"]
        options = {"judge": judge, "seeds": seeds_of(common["seeds"]), "progress": bar(hush)}
        options["names"] = names_of(common["names"])
        options |= {name: common[name] for name in ("limit", "autocast")}
        command(**given, ready=open_model(common["model"]), options=options)
        tell_scores(given["out"], judge, common["quiet"], common["as_json"])

    return study.command()(signed(wrapped, command, [*own, *shared]))


@scored
def layers(
    data: Data,
    out: Out,
    layers: Annotated[str, typer.Option(help="Layers, like 0-6; all that take an edit when none are named.")] = "",
    by: By = "refact",
    *,
    ready: Any,
    options: dict,
) -> None:
    """Measure which layer takes edits best (the paper's Table 2).

    Example: refact study layers pocket-road-validation --out runs/layers
    """
    from ..studies import variants

    variants.layers(data, ready, method(by), out, seeds_of(layers) if layers else None, **options)


@scored
def tune(
    data: Data,
    out: Out,
    methods: Annotated[str, typer.Option(help="Names of methods, with commas.")] = "refact,time,uce,finetune,embedit",
    *,
    ready: Any,
    options: dict,
) -> None:
    """Six settings of each method on validation rows; the grid, its scores and the best are kept in tuning.json.

    `refact bench --tuned FOLDER` then takes each method with the setting that was best.

    Example: refact study tune pocket-road-validation --methods time,uce --seeds 0 --out runs/tuned
    """
    from ..studies import tuning

    tuning.tune(data, ready, tuning.labelled(name.strip() for name in methods.split(",")), out, **options)


@scored
def thresholds(
    data: Data,
    out: Out,
    values: Annotated[str, typer.Option(help="Probabilities, with commas.")] = "0.5,0.7,0.9,0.95,0.99,0.999",
    by: By = "refact",
    *,
    ready: Any,
    options: dict,
) -> None:
    """Measure how sure of the target the search should be before it stops (the paper's Figure 15).

    Example: refact study thresholds pocket-road-validation --out runs/stop
    """
    from ..studies import variants

    chosen = method(by, objective="contrastive")  # whose early stop this is
    variants.thresholds(data, ready, chosen, out, numbers_of(values), **options)


@scored
def variants(
    data: Data,
    out: Out,
    only: Annotated[str, typer.Option(help="Labels of some variants, with commas; all when none are named.")] = "",
    *,
    ready: Any,
    options: dict,
) -> None:
    """The paper's ablations and ours side by side: objective, distance, image targets, covariance, negatives, contexts.

    Example: refact study variants pocket-road-validation --out runs/variants
    """
    from ..evidence.bench import run
    from ..studies import variants as settings

    everything = settings.variants()
    names = [name.strip() for name in only.split(",") if name.strip()] or list(everything)
    if unknown := [name for name in names if name not in everything]:
        raise typer.BadParameter(f"no variant {unknown[0]!r}; there are {', '.join(everything)}")
    run(data, ready, {name: everything[name] for name in names}, out, **options)


@scored
def sequence(
    data: Data,
    out: Out,
    every: Annotated[int, typer.Option(min=1, help="Score after every this many edits.")] = 10,
    orders: Annotated[int, typer.Option(min=1, max=1000, help="How many permutations.")] = 3,
    hold: Annotated[bool, typer.Option(help="Hold earlier facts; --no-hold is the paper's way.")] = True,
    by: By = "refact",
    *,
    ready: Any,
    options: dict,
) -> None:
    """One edit after another on the same model (the paper's Figures 7 and 23).

    Example: refact study sequence pocket-road --every 20 --orders 2 --seeds 0 --out runs/sequence
    """
    from ..studies import sequence as one_after_another

    one_after_another.sequence(data, ready, method(by), out, every=every, orders=orders, hold=hold, **options)


@scored
def probes(
    data: Data,
    out: Out,
    kind: Annotated[str, typer.Option(help="companions | relations")] = "companions",
    methods: Annotated[str, typer.Option(help="Names of methods, with commas.")] = "refact,baseline",
    *,
    ready: Any,
    options: dict,
) -> None:
    """Measure what else changes with a fact: a second thing in the picture, or inverse and two-step questions.

    Example: refact study probes pocket-road-validation --kind relations --out runs/relations
    """
    from .. import pocket
    from ..evidence.bench import run
    from ..evidence.cases import read_cases
    from ..studies import probing

    makers = {"companions": probing.companions, "relations": lambda c: probing.relations(c, pocket.world())}
    if kind not in makers:
        raise typer.BadParameter(f"kind is {' or '.join(makers)}, not {kind!r}")
    cases = makers[kind](read_cases(data)[0][: options.pop("limit")])
    run(cases, ready, [name.strip() for name in methods.split(",")], out, **options)


@scored
def concepts(
    subject: Annotated[str, typer.Argument(help="What is edited, layer by layer: 'an apple'.")],
    to: Annotated[list[str], typer.Option(help="What it shall be: 'a blue apple'; may be repeated.")],
    out: Out,
    by: By = "refact",
    *,
    ready: Any,
    options: dict,
) -> None:
    """Edits as a probe of where a concept is made: one thing to each of several, in every layer (paper, section 5).

    Example: refact study concepts "an apple" --to "a blue apple" --to "a pink apple" --out runs/colours
    """
    from ..studies import probing, variants

    variants.layers(probing.concepts(subject, to), ready, method(by), out, **options)


@study.command()
def trace(
    prompt: Annotated[str, typer.Argument(help="A prompt that stands for something, such as a role.")],
    source: Annotated[str, typer.Option(help="What it means: 'a beaver'.")],
    other: Annotated[list[str], typer.Option(help="What it might mean instead; may be repeated.")],
    subject: Annotated[str | None, typer.Option(help="The words that carry the fact; else the whole prompt.")] = None,
    part: Annotated[str, typer.Option(help="What is restored: block | mlp | attention.")] = "mlp",
    model: ModelName = "pocket",
    as_json: AsJson = False,
) -> None:
    """Causal tracing: what each layer and token brings back of a fact once the subject is noise.

    Example: refact study trace "the national animal of Canada" --source "a beaver" --other "a panda" --other "a lion"
    """
    from ..studies.tracing import trace as traced

    encoder = next(iter(open_model(model).encoders.values()))
    found = traced(encoder, prompt, source, other, subject, part)
    if as_json:
        numbers = {"effect": found.effect.tolist(), "clean": found.clean, "corrupted": found.corrupted}
        tell_json(numbers | {"tokens": found.tokens})
        return
    typer.echo(f"p({source!r}) {found.clean:.3f}, with noise {found.corrupted:.3f}; share brought back:")
    words = [word.removesuffix("</w>")[:9] for word in found.tokens]
    typer.echo("layer " + " ".join(f"{word:>9}" for word in words))
    for number, row in enumerate(found.effect.tolist()):
        typer.echo(f"{number:5} " + " ".join(f"{value:9.2f}" for value in row))


@study.command()
@with_cluster
def scale(
    out: Out,
    counts: Annotated[str, typer.Option(help="How many facts, with commas.")] = "1,10,100",
    methods: Annotated[str, typer.Option(help="Names of methods, with commas.")] = "refact:many,memit,alphaedit",
    ways: Annotated[
        str, typer.Option(help="'at once', 'in sequence', 'alone' (each on its own), with commas.")
    ] = "at once,in sequence",
    model: ModelName = "pocket",
    aliases: Annotated[bool, typer.Option(help="Tell other wordings of the pocket's facts, all but the last.")] = True,
    pictures: Annotated[bool, typer.Option(help="Look at pictures too, with the judge.")] = False,
    split: Annotated[
        bool,
        typer.Option("--split", help="Choose each method's setting of six on half of the facts; report on the others."),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Save the patches that this run makes.")] = False,
    judge: JudgedBy = None,
    autocast: Autocast = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    cluster: Any,
) -> None:
    """Measure how many facts hold, at once and in sequence, and how far a thousand other prompts move.

    Example: refact study scale --counts 1,10,100 --out runs/scale
    """
    from .. import pocket
    from ..evidence.judge import load_judge
    from ..studies import halves, scaling, tuning

    ready, numbers, own = open_model(model, "cpu" if cluster else None), _counts(counts), model == "pocket"
    facts = scaling.roles(pocket.world(), told=aliases) if own else scaling.phrases(max(numbers) * (1 + split))
    untouched = scaling.things(pocket.world()) if own else ()
    others = scaling.reworded(pocket.world(), facts) if own else ()
    looking = load_judge(judge_of(judge, model) or "", ready.device) if pictures else None
    names = [name.strip() for name in methods.split(",")]
    hows, shown = [way.strip() for way in ways.split(",")], bar(quiet or as_json)
    about: dict[str, Any] = {"others": others, "untouched": untouched, "ways": hows}
    how: dict[str, Any] = {"judge": looking, "autocast": autocast, "keep": keep, "progress": shown}
    how["cluster"] = cluster
    if split:
        rows = halves.scale(ready, facts, numbers, tuning.labelled(names), out, **about, **how)
    else:
        rows = scaling.scale(ready, facts, numbers, {name: method(name) for name in names}, out, **about, **how)
    tell_json([asdict(r) for r in rows]) if as_json else say(quiet, scaling.markdown(rows))


@study.command()
def quality(
    files: Annotated[list[str], typer.Argument(help="Patches, each alone; FILE+FILE for several at once.")],
    out: Out,
    captions: Annotated[str, typer.Option(help="A text or csv file; by default what edits use as corpus.")] = "",
    count: Annotated[int, typer.Option(min=1, max=10**6, help="How many captions, each drawn once.")] = 300,
    reference: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Pictures to compare with; by default the model's, other seeds."
        ),
    ] = None,
    model: ModelName = "pocket",
    judge: JudgedBy = None,
    autocast: Autocast = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure CLIP score, FID, KID and CMMD of pictures of captions, before and after (the paper's general quality).

    Example: refact study quality facts.safetensors --captions coco.csv --count 1000 --out runs/quality
    """
    from itertools import islice

    from ..evidence.bench import folder_name
    from ..evidence.metrics import SHOWN
    from ..models.covariance import texts_of
    from ..patch import Patch
    from ..studies import quality as captioned

    if (looking := judge_of(judge, model)) is None:
        raise typer.BadParameter("quality is judged by a CLIP that the model does not hold: name its folder (--judge)")
    ready = open_model(model)
    texts = list(islice(texts_of(captions or ready.corpus), count))
    labels = ["+".join(Path(part).stem for part in name.split("+")) for name in files]
    if len({folder_name(label) for label in [*labels, "before", "reference"]}) < len(labels) + 2:
        raise typer.BadParameter(f"files need names that differ, and that are not 'before' or 'reference': {labels}")
    patches = {label: [Patch.load(part) for part in name.split("+")] for label, name in zip(labels, files)}
    how: dict[str, Any] = {"reference": reference, "autocast": autocast, "progress": bar(quiet or as_json)}
    found = captioned.quality(ready, texts, patches, out, looking, **how)
    said = {
        name: [f"{head} {k * scores[key]:.2f}" for key, (head, k) in SHOWN.items()] for name, scores in found.items()
    }
    rows = [f"{label:24} " + "  ".join(words) for label, words in said.items()]
    tell_json(found) if as_json else say(quiet, *rows)


@study.command()
def transfer(
    file: Annotated[Path, typer.Argument(help="The patch.")],
    noise: Annotated[str, typer.Option(help="Noise in every matrix, relative to its norm.")] = "0.003,0.01,0.03,0.1",
    model: ModelName = "pocket",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure whether a patch still works on encoders that differ from its own, as fine-tunes do (text side).

    Example: refact study transfer canada.safetensors --noise 0.01,0.1
    """
    from ..patch import Patch
    from ..studies import transfer as carrying

    rows = carrying.transfer(open_model(model), Patch.load(file), numbers_of(noise))
    tell_json([asdict(r) for r in rows]) if as_json else say(quiet, carrying.markdown(rows))


def _counts(text: str) -> list[int]:
    counts = numbers_of(text, int)
    if not all(0 < count <= limits.FACTS for count in counts):
        raise RefactError(f"counts of facts are from 1 to {limits.FACTS}, not {quoted(text)}")
    return counts
