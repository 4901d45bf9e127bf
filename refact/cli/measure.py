"""`refact bench` and `refact report`: the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import shown
from ..trust import disk
from .app import (
    AsJson,
    AtOnce,
    Autocast,
    Companion,
    Compiled,
    Device,
    Dtype,
    Limit,
    ModelName,
    NamesFile,
    Offload,
    Quiet,
    app,
    bar,
    open_model,
    say,
    seeds_of,
    tell_json,
)
from .cluster import with_cluster


@app.command()
@with_cluster
def bench(
    data: Annotated[str, typer.Argument(help="pocket-road, pocket-timed, or a csv in RoAD's or TIMED's columns.")],
    out: Annotated[Path, typer.Option(help="The run's folder. What is in it already is not done again.")],
    model: ModelName = "pocket",
    methods: Annotated[
        str, typer.Option(help="Names, with commas; time:strength=1 sets one. rewrite changes prompts only.")
    ] = "refact,baseline,oracle",
    seeds: Annotated[str, typer.Option(help="Seeds, like 0-24 (the paper's).")] = "0-4",
    judge: Annotated[
        str | None,
        typer.Option(help="Folder of the judging CLIP. Without one only the text encoder's output is scored."),
    ] = None,
    clip: Companion = None,
    tuned: Annotated[
        Path | None, typer.Option(help="A folder of `refact study tune`: its methods with the settings chosen there.")
    ] = None,
    names: NamesFile = None,
    limit: Limit = None,
    keep_images: Annotated[
        int, typer.Option(min=0, max=10_000, help="How many seeds' pictures to keep for the report.")
    ] = 1,
    autocast: Autocast = None,
    batch_size: AtOnce = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Do two cases, and say what the whole will take on 1, 8 and 64 workers.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    compiled: Compiled = False,
    offload: Offload = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    cluster: Any,
) -> None:
    """Run the paper's evaluation: efficacy, generality, specificity of each method on each case, resumable.

    Example: refact bench pocket-road --methods refact,time,uce,baseline,oracle --seeds 0-4 --out runs/road
    """
    from ..evidence.bench import run
    from ..evidence.estimate import estimated

    judge, drawn = judge_of(judge, model), seeds_of(seeds)
    here = "cpu" if cluster else device  # the GPU is a worker's
    ready = open_model(model, here, dtype, companion=clip, compiled=compiled, offload=offload)
    how: dict = {
        "names": names_of(names),
        "limit": limit,
        "keep_images": keep_images,
        "autocast": autocast,
        **({"batch_size": batch_size} if batch_size else {}),
        "cluster": cluster,
        "progress": bar(quiet or as_json),
    }
    if estimate:
        found = estimated(data, ready, named(methods, tuned), out, seeds=drawn, judge=judge, **how)
        tell_json(found.to_json()) if as_json else say(quiet, *found.lines())
        return
    run(data, ready, named(methods, tuned), out, seeds=drawn, judge=judge, **how)
    tell_scores(out, judge, quiet, as_json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    strip: Annotated[Path | None, typer.Option(help="Also write a picture with some cases of the first run.")] = None,
    cases: Annotated[int, typer.Option(min=1, max=100, help="How many cases that picture shows.")] = 4,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained HTML page about runs: tables, plots, and a strip of pictures for every case.

    Example: refact report runs/road -o road.html --strip road.png
    """
    from .. import pictures
    from ..evidence import strips
    from ..evidence.report import write
    from ..studies.pages import SECTIONS

    disk.check(output)
    if strip:
        pictures.check_name(strip)
    say(quiet, shown(write(folders, output, studies=SECTIONS)))
    if strip:
        say(quiet, shown(pictures.save(strips.strip(folders[0], cases), strip)))


def named(methods: str, tuned: Path | None) -> Any:
    """The names of methods, or the methods by name with the settings that a tuning chose for them."""
    from ..studies import tuning

    names = [name.strip() for name in methods.split(",") if name.strip()]
    return tuning.tuned(names, tuned) if tuned else names


def names_of(file: Path | None) -> Any:
    """The names of a file, one a line; None where no file is given. Raises DataError for a file that is not there."""
    from ..edits import read_prompts
    from ..evidence.strict import Names

    return Names(tuple(dict.fromkeys(read_prompts(file)))) if file else None


def judge_of(judge: str | None, model: str) -> str | None:
    """The judge that was named; the bundled one for the bundled model."""
    return judge or ("pocket" if model == "pocket" else None)


def tell_scores(folder: Path, judge: str | None, quiet: bool, as_json: bool) -> None:
    """Print a run's scores, text side and pictures apart."""
    from ..evidence.results import markdown, read_run, summary

    sides = {side: summary(read_run(folder), side) for side in (("image", "text") if judge else ("text",))}
    if as_json:
        tell_json(sides)
        return
    for side, found in sides.items():
        about = f"in pictures, judged by {judge}" if side == "image" else "text side only, no picture was looked at"
        say(quiet, f"{shown(folder)}: {shown(about)}", markdown(found), "")
