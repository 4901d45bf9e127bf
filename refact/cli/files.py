"""What is done with patch files: show, import, merge, conflicts, bake."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RefactError, counted, quoted, shown
from .app import (
    AsJson,
    Device,
    Dtype,
    ModelName,
    Patches,
    Quiet,
    app,
    check_output,
    open_model,
    patches_of,
    say,
    tell_json,
)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="The patch.")],
    check: Annotated[
        list[Path] | None, typer.Option(help="A public key that is trusted; may be repeated. Exit 2 if none signed it.")
    ] = None,
    cite: Annotated[
        bool, typer.Option("--cite", help="Print BibTeX of what made the patch, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a patch changes, and the exact lines that use it in diffusers, ComfyUI and A1111.

    Example: refact show canada.safetensors --check team.key.pub
    """
    from ..exports import usage
    from ..methods import citations
    from ..record import describe, read_record

    record = read_record(file)
    if cite:
        say(False, citations.cite(record))
        return
    if check:
        from ..trust import signatures

        signer = signatures.check(file.read_bytes(), check, str(file))
        say(as_json, f"signed by {signer}, and unchanged since")
    tell_json(record) if as_json else say(False, describe(file, record), "", usage(file, record))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A LoRA that changes fc2 layers of a text encoder only.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The patch to write.")],
    family: Annotated[
        str | None, typer.Option(help="sd1, sd2, sdxl, sd3 or flux, where the file does not say.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Turn a LoRA of another program into a patch.

    Example: refact import lora.safetensors -o patch.safetensors
    """
    from ..patch import from_lora

    check_output(output)
    patch = from_lora(file, family=family)
    patch.save(output)
    say(quiet, f"{shown(output)}: {', '.join(map(shown, patch.factors))}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The patch.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; for PEFT a new folder.")],
    names: Annotated[str | None, typer.Option(help="kohya or diffusers: the style of the tensors' names.")] = None,
    program: Annotated[str | None, typer.Option("--for", help="invokeai or peft.")] = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Write a patch under other names or in another form, for programs that do not read it as it is.

    Example: refact export canada.safetensors --names kohya -o canada-kohya.safetensors
    """
    from .. import exports
    from ..models.precision import dtype_of
    from ..patch import Patch

    if not names and not program:
        raise RefactError("give --names kohya, --names diffusers, --for invokeai or --for peft")
    if program != "peft":
        check_output(output)
    patch = Patch.load(file)
    exports.export(patch, output, names, program, dtype_of(dtype))  # type: ignore[arg-type]
    say(quiet, exports.told(program, output, patch.record))


@app.command()
def bake(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    model: ModelName = "pocket",
    patch: Patches = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Write a whole pipeline with the patches inside, which diffusers from 0.30 and transformers from 4.44 on read.

    Example: refact bake -m pocket --patch canada.safetensors -o canada-model
    """
    from ..exports import bake as bake_patches
    from ..models.sources import quiet as hushed

    loaded, ready = patches_of(patch or []), open_model(model, device, dtype)
    with hushed() if quiet else nullcontext():
        bake_patches(ready, [one.scaled(s) if s != 1 else one for one, s in loaded], output)
    say(quiet, f"{shown(output)}: a pipeline with {counted(sum(len(one.names) for one, _ in loaded), 'fact')} changed")


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="The patches.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    solve: Annotated[
        bool, typer.Option("--solve", help="Write all facts anew, so that none disturbs another.")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out the fact of this name (refact show prints names). Repeatable.")
    ] = None,
    model: ModelName = "pocket",
    quiet: Quiet = False,
) -> None:
    """Put several patches into one file, or take facts out of a file with --without.

    The changes are added up. With --solve all facts are written anew on --model, as if they had been made together,
    without another search.

    Example: refact merge canada.safetensors france.safetensors -o facts.safetensors
    """
    from ..patch import Patch
    from ..patch import merge as merge_patches

    check_output(output)
    patches = _without([Patch.load(file) for file in files], without or [])
    facts = [(edit.prompt, str(edit.new)) for patch in patches for edit in patch.edits]
    if twice := [fact for fact in facts if facts.count(fact) > 1]:
        raise RefactError(
            f"{quoted(twice[0][0])} -> {quoted(twice[0][1])} is in several: merged, it would be made twice"
        )
    if solve:
        from ..stores import solve_jointly

        merged = solve_jointly(open_model(model), patches)
    else:
        merged = merge_patches(patches)
    merged.save(output)
    say(quiet, f"{shown(output)}: {counted(len(merged.names), 'fact')}, {output.stat().st_size / 1024:.0f} KB")


def _without(patches: list[Any], names: list[str]) -> list[Any]:
    """The patches without the facts of these names; those that have no other facts are left out."""
    for name in names:
        there = [name in patch.names for patch in patches]
        if not any(there):
            known = ", ".join(name for patch in patches for name in patch.names)
            raise RefactError(f"no edit {name!r} in this patch; it has {known}")
        patches = [patch.without(name) if has else patch for patch, has in zip(patches, there)]
        patches = [patch for patch in patches if patch.names]
    return patches


@app.command()
def conflicts(
    files: Annotated[list[Path], typer.Argument(help="Patches by ReFACT, in the order in which they are to be used.")],
    model: ModelName = "pocket",
    overlap: Annotated[float, typer.Option(help="Report facts whose keys coincide by this share or more.")] = 0.5,
    harm: Annotated[
        float, typer.Option(help="Report facts that another moves by this share of their own change, or more.")
    ] = 0.2,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say which facts of patches contradict, overlap or harm each other, before they are merged.

    Example: refact conflicts canada.safetensors france.safetensors

    Exit code 3: there are conflicts.
    """
    from ..patch import Patch
    from ..stores import conflicts as between

    found = between(open_model(model), [Patch.load(file) for file in files], overlap, harm)
    if as_json:
        tell_json([dataclasses.asdict(conflict) for conflict in found])
    else:
        say(quiet, *map(str, found), counted(len(found), "conflict"))
    if found:
        raise typer.Exit(3)
