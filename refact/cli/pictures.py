"""`refact generate` and `refact verify`: pictures before and after, and whether facts hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RefactError, quoted, shown
from .app import (
    AsJson,
    AtOnce,
    Compiled,
    Device,
    Dtype,
    Embeddings,
    ModelName,
    Offload,
    Patches,
    Quiet,
    Seeds,
    app,
    open_model,
    patches_of,
    say,
    seeds_of,
    tell_json,
)

MOST_PIXELS = 10**8  # of a grid


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be repeated.")],
    model: ModelName = "pocket",
    patch: Patches = None,
    seeds: Seeds = "0-3",
    steps: Annotated[int | None, typer.Option(min=1, max=10_000, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    batch_size: AtOnce = None,
    cell: Annotated[int, typer.Option(min=8, max=1024, help="Width of one picture in the grid, in pixels.")] = 192,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("grid.png"),
    force: Annotated[bool, typer.Option(help="Apply a patch that was made for another model.")] = False,
    embedding: Embeddings = None,
    device: Device = None,
    dtype: Dtype = None,
    compiled: Compiled = False,
    offload: Offload = False,
    quiet: Quiet = False,
) -> None:
    """Draw prompts before and after patches, side by side.

    Example: refact generate --prompt "the national animal of Canada" --patch canada.safetensors -o grid.png
    """
    from contextlib import ExitStack

    from .. import pictures

    pictures.check_name(output)
    if guidance is not None and not math.isfinite(guidance):
        raise RefactError(f"--guidance is a finite number, not {guidance}")
    drawn, loaded = seeds_of(seeds), patches_of(patch or [])
    if (asked := len(prompt) * len(drawn) * (1 + bool(loaded)) * cell**2) > MOST_PIXELS:
        raise RefactError(f"a picture of {asked / 1e6:.0f} million pixels: ask for fewer seeds or a smaller --cell")
    ready = open_model(model, device, dtype, embeddings=embedding, compiled=compiled, offload=offload)
    before = ready.generate(prompt, drawn, steps, guidance, batch_size=batch_size)
    with ExitStack() as stack:
        for one, strength in loaded:
            stack.enter_context(one.applied(ready, strength=strength, force=force))
        after = ready.generate(prompt, drawn, steps, guidance, batch_size=batch_size) if loaded else []
    rows = []
    for at, text in enumerate(prompt):
        mine = slice(at * len(drawn), (at + 1) * len(drawn))
        rows.append((f"{text} (before)" if loaded else text, [p.image for p in before[mine]]))
        rows += [(f"{text} (after)", [p.image for p in after[mine]])] if loaded else []
    say(quiet, shown(pictures.save(pictures.grid(rows, cell), output)))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The patch.")],
    model: ModelName = "pocket",
    images: Annotated[bool, typer.Option(help="Judge pictures instead of the text side.")] = False,
    judge: Annotated[
        str | None, typer.Option(help="Folder of the judging CLIP. The bundled model has its own.")
    ] = None,
    seeds: Seeds = "0-9",
    picture: Annotated[
        list[Path] | None, typer.Option(help="With --images: a picture that a fact's target was given by; repeatable.")
    ] = None,
    watch: Annotated[list[str] | None, typer.Option(help="More prompts that should not move.")] = None,
    fail_under: Annotated[
        float,
        typer.Option(min=0, max=1, help="Exit with code 3 when a smaller share of the facts (or pictures) is right."),
    ] = 1.0,
    force: Annotated[bool, typer.Option(help="Apply a patch that was made for another model.")] = False,
    embedding: Embeddings = None,
    device: Device = None,
    dtype: Dtype = None,
    compiled: Compiled = False,
    offload: Offload = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check the facts of a patch: on the text side in a second, or in pictures with a judge.

    Example: refact verify canada.safetensors -m pocket --images --seeds 0-9 --fail-under 0.9
    """
    from ..evidence.sightings import Seen, look
    from ..patch import Patch
    from ..pocket import near
    from ..verification import Fact, described, verify

    drawn, patch = seeds_of(seeds), Patch.load(file)
    ready = open_model(model, device, dtype, embeddings=embedding, compiled=compiled, offload=offload)
    facts: list[Seen] | list[Fact]
    if images:
        facts = look(ready, patch, drawn, judge=judge, force=force, targets=picture or ())
        share = sum(fact.share for fact in facts) / len(facts)
        verdict = f"{share:.0%} of the pictures show their fact"
        lines = [
            f"{f.share:.0%} [{f.low:.0%}, {f.high:.0%}] of {f.count} pictures show it: {quoted(f.prompt)}"
            for f in facts
        ]
    else:
        facts = verify(ready, patch, watch=[*(watch or []), *near(ready, patch.edits)], force=force)
        share, lines = sum(fact.holds for fact in facts) / len(facts), described(facts)
        verdict = f"{share:.0%} of the facts hold (text side)"
        told = {fact.name for fact in facts}
        unseen = [edit for edit in patch.edits if edit.name not in told]
        lines += [f"{quoted(edit.prompt)} shows in pictures alone: --images" for edit in unseen]
    if as_json:
        more = {} if images else {"unseen": [edit.name for edit in unseen]}
        tell_json({"share": share, "facts": [fact.to_json() for fact in facts]} | more)
    else:
        say(quiet, *lines, verdict)
    if share < fail_under:
        raise typer.Exit(3)
