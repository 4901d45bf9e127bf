"""More commands, registered by `cli.py`: collections of facts, stats, models, and those of the evidence."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated

import typer

from .cli import (
    AsJson,
    Device,
    Dtype,
    ModelName,
    Quiet,
    app,
    bar,
    check_output,
    open_model,
    say,
    seeds_of,
    tell,
    with_settings,
)
from .edits import read_edits, read_prompts
from .errors import RefactError
from .methods import ReFACT
from .study import Autocast, judge_of, tell_scores


@app.command()
@functools.partial(with_settings, classes=(ReFACT,), defaults=ReFACT.many())
def build(
    edits: Annotated[Path, typer.Argument(help="The facts: a .toml, .json or .csv file.")],
    settings: dict,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The patch; what it has already is not searched again.")
    ],
    model: ModelName = "pocket",
    preserve_file: Annotated[Path | None, typer.Option(help="A file of prompts that must stay, one a line.")] = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a patch from a file of facts, or bring one up to date: only facts that changed are searched for again.

    Searched as by refact:many, longer than `refact edit` does.

    Example: refact build facts.toml -o facts.safetensors

    Exit code 3: the file was written, but a fact does not hold on the text side.
    """
    from .patch import Patch
    from .pocket import near
    from .stores import build as make
    from .verification import verify

    check_output(output)
    kept = tuple(read_prompts(preserve_file))
    wanted = [dataclasses.replace(edit, preserve=(*edit.preserve, *kept)) for edit in read_edits(edits)]
    ready = open_model(model, device, None)
    patch, new = make(ready, wanted, ReFACT.many(**settings), Patch.load(output) if output.exists() else None)
    patch.save(output)
    say(quiet or as_json, f"{len(wanted)} facts, {len(new)} of them searched for: {', '.join(new[:8]) or 'none'}")
    tell(verify(ready, patch, watch=near(ready, wanted)), output, quiet, as_json)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="The patches.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    solve: Annotated[bool, typer.Option("--solve", help="Write them anew, together: none moves another.")] = False,
    model: ModelName = "pocket",
    quiet: Quiet = False,
) -> None:
    """Put several patches into one file; each fact can still be switched off or weakened.

    Summed as they are; with --solve written anew on --model as if made in one go, without searching again.

    Example: refact merge canada.safetensors france.safetensors -o facts.safetensors
    """
    from .patch import Patch
    from .patch import merge as merge_patches

    check_output(output)
    patches = [Patch.load(file) for file in files]
    facts = [(edit.prompt, str(edit.new)) for patch in patches for edit in patch.edits]
    if twice := [fact for fact in facts if facts.count(fact) > 1]:
        raise RefactError(f"{twice[0][0]!r} -> {twice[0][1]!r} is in several of them: merged, it would be made twice")
    if solve:
        from .stores import solve_jointly

        merged = solve_jointly(open_model(model), patches)
    else:
        merged = merge_patches(patches)
    merged.save(output)
    say(quiet, f"{output}: {len(merged.names)} facts, {output.stat().st_size / 1024:.0f} KB")


@app.command()
def conflicts(
    files: Annotated[list[Path], typer.Argument(help="Patches by ReFACT, in the order in which they are to be used.")],
    model: ModelName = "pocket",
    overlap: Annotated[float, typer.Option(help="Report keys that coincide by this share.")] = 0.5,
    harm: Annotated[float, typer.Option(help="Report facts moved by this share of their own change.")] = 0.2,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say which facts of patches contradict, overlap or harm each other, before they are merged.

    Example: refact conflicts canada.safetensors france.safetensors

    Exit code 3: there are conflicts.
    """
    from .patch import Patch
    from .stores import conflicts as between

    found = between(open_model(model), [Patch.load(file) for file in files], overlap, harm)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(conflict) for conflict in found], indent=1))
    else:
        say(quiet, *map(str, found), f"{len(found)} conflict(s)")
    if found:
        raise typer.Exit(3)


@app.command()
def bench(
    data: Annotated[str, typer.Argument(help="pocket-road, pocket-timed, or a csv in RoAD's or TIMED's columns.")],
    out: Annotated[Path, typer.Option(help="The run's folder; what is in it already is not done again.")],
    model: ModelName = "pocket",
    methods: Annotated[
        str, typer.Option(help="Names, with commas; time:strength=1 sets one.")
    ] = "refact,baseline,oracle",
    seeds: Annotated[str, typer.Option(help="Seeds, like 0-24 (the paper's).")] = "0-4",
    judge: Annotated[str | None, typer.Option(help="Folder of the judging CLIP; none: the text side only.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many cases.")] = None,
    keep_images: Annotated[int, typer.Option(help="How many seeds' pictures to keep for the report.")] = 1,
    autocast: Autocast = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, or 'local'.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the paper's evaluation: efficacy, generality, specificity of each method on each case, resumable.

    Example: refact bench pocket-road --methods refact,time,uce,baseline,oracle --seeds 0-4 --out runs/road
    """
    from .benchmark import run

    judge = judge_of(judge, model)
    ready = model if ray else open_model(model, device, dtype)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    drawn, shown = seeds_of(seeds), bar(quiet or as_json)
    how: dict = {"limit": limit, "keep_images": keep_images, "autocast": autocast, "ray": ray, "progress": shown}
    run(data, ready, names, out, seeds=drawn, judge=judge, **how)
    tell_scores(out, judge, quiet, as_json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    strip: Annotated[Path | None, typer.Option(help="A picture to write too: some cases of the first run.")] = None,
    cases: Annotated[int, typer.Option(help="How many cases that picture shows.")] = 4,
    quiet: Quiet = False,
) -> None:
    """One self-contained HTML page about runs: tables, plots, and a strip of pictures for every case.

    Example: refact report runs/road -o road.html --strip road.png
    """
    from . import pictures, strips
    from .report import write

    say(quiet, str(write(folders, output)))
    if strip:
        say(quiet, str(pictures.save(strips.strip(folders[0], cases), strip)))


@app.command()
def stats(
    model: ModelName = "pocket",
    layer: Annotated[list[int] | None, typer.Option(help="Layers; by default every one that takes edits.")] = None,
    corpus: Annotated[
        str, typer.Option(help="captions (built in), a text or csv file, or hf:NAME; by default what edits use.")
    ] = "",
    tokens: Annotated[int, typer.Option(help="How many tokens to read.")] = 100_000,
    padding: Annotated[bool, typer.Option(help="Count the pipeline's padding rows too.")] = False,
    rarity: Annotated[float, typer.Option(help="Weight of a key: its token's frequency to minus this power.")] = 1.0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Collect the second moments of the MLPs' inputs over a corpus, and keep it in the cache ($REFACT_CACHE).

    Example: refact stats -m stable-diffusion-v1-5/stable-diffusion-v1-5 --layer 7 --layer 9
    """
    from .covariance import obtain

    ready = open_model(model, device, None)
    for encoder in ready.encoders.values():
        for one in layer if layer else encoder.effective:
            made = obtain(encoder, one, corpus or ready.corpus, tokens, padding, rarity, progress=bar(quiet))
            say(quiet, f"{encoder.site(one)}: {made.tokens} tokens of {made.corpus}")


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="'pocket', a folder or a hub id; nothing: the families.")] = None,
    as_json: AsJson = False,
) -> None:
    """The families of models that can be edited; or what one model is; or the bundled model's world.

    Example: refact models pocket --json
    """
    from .families import FAMILIES

    if name is None:
        rows = {f.name: {"title": f.title, "encoders": [e.name for e in f.encoders]} for f in FAMILIES.values()}
        lines = [f"{key:6} {row['title']:32} {', '.join(row['encoders'])}" for key, row in rows.items()]
        typer.echo(json.dumps(rows, indent=1) if as_json else "\n".join(lines))
    elif name == "pocket":
        from . import pocket

        world = pocket.world()
        named = {c["id"]: c["wordings"][0] for c in world["concepts"]}
        shows = {c["id"]: f" -> {named[c['depicts']]}" for c in world["concepts"] if c["kind"] == "role"}
        text = "\n".join(f"{c['kind']:7} {named[c['id']]}{shows.get(c['id'], '')}" for c in world["concepts"])
        typer.echo(json.dumps(world, indent=1, ensure_ascii=False) if as_json else text)
    else:
        ready = open_model(name)
        form = {"name": ready.name, "family": ready.family.name, "encoders": ready.fingerprints()}
        typer.echo(json.dumps(form, indent=1) if as_json else "\n".join(f"{k}: {v}" for k, v in form.items()))
