"""`refact edit` and `refact build`: facts in, a patch file out."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from ..edits import IMAGES, read_edits, read_prompts
from ..errors import RefactError, counted, quoted, shown
from ..methods.refact import ReFACT
from ..methods.registry import METHODS, method, presets
from .app import (
    AsJson,
    Companion,
    Device,
    Dtype,
    Embeddings,
    ModelName,
    Quiet,
    app,
    bar,
    check_name,
    check_output,
    open_model,
    patches_of,
    say,
    tell_json,
    with_settings,
)
from .cluster import with_cluster

ByUsual = Annotated[
    str | None,
    typer.Option("--method", help=f"{', '.join([*METHODS, *presets()])}; by default what is usual for the family."),
]


@app.command()
@with_settings
def edit(
    settings: dict,
    model: ModelName = "pocket",
    prompt: Annotated[str | None, typer.Option(help="The text whose meaning changes.")] = None,
    new: Annotated[list[str] | None, typer.Option(help="What it shall mean: a text, or paths of pictures.")] = None,
    old: Annotated[str | None, typer.Option(help="What it means today.")] = None,
    subject: Annotated[str | None, typer.Option(help="The words in the prompt that carry the fact.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another wording of the subject.")] = None,
    aliases: Annotated[bool, typer.Option("--propose-aliases", help="Add wordings by pattern; print them.")] = False,
    demonym: Annotated[str | None, typer.Option(help="Adjective for the patterns: Canadian.")] = None,
    preserve: Annotated[list[str] | None, typer.Option(help="A prompt that must stay as it is.")] = None,
    preserve_file: Annotated[Path | None, typer.Option(help="A file of such prompts, one a line.")] = None,
    edits: Annotated[Path | None, typer.Option(help="Several edits from a .toml, .json or .csv file.")] = None,
    onto: Annotated[list[Path] | None, typer.Option(help="A patch whose facts must stay.")] = None,
    by: ByUsual = None,
    clip: Companion = None,
    embedding: Embeddings = None,
    once: Annotated[bool, typer.Option("--once", help="Try no other settings where a fact does not hold.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("edit.safetensors"),
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Change what a prompt means; write the change as a small LoRA file; check that it holds.

    Example: refact edit -m pocket --prompt "the national animal of Canada" --old "a beaver" --new "a penguin"

    Where the fact does not hold on the text side, other settings are tried on this very model and the best is kept.

    Exit code 3: the file was written, but the fact does not hold on the text side.
    """
    from ..methods.usual import said_of, unprotected, usual_for
    from ..pocket import near, unfamiliar
    from ..verification import climbed, unseen, verify

    wanted = _edits(edits, prompt, new, old, subject, alias, preserve, preserve_file)
    check_output(output)
    if aliases:
        wanted = _reworded(wanted, demonym, quiet or as_json)
    chosen = method(by or "refact", **settings)
    ready = open_model(model, device, dtype, companion=clip, encoders=settings.get("encoders"), embeddings=embedding)
    if by is None:
        chosen = usual_for(ready, wanted, **settings)
        say(quiet or as_json, *said_of(ready, chosen))
    say(quiet or as_json, *unprotected(chosen, wanted))
    held = [patch for patch, _ in patches_of(map(str, onto or []))]
    patch = _written(output, once, ready, wanted, chosen, held, bar(quiet or as_json))
    say(quiet or as_json, *climbed(patch.record))
    if unseen(patch):
        named = "".join(f" --picture {shown(name)}" for e in wanted if e.targets_images for name in e.new)
        check = f"refact verify {shown(output)} -m {shown(model)} --images{named}"
        say(quiet or as_json, f"{shown(output)}: {counted(len(wanted), 'edit')}. Check with: {check}")
        if as_json:
            tell_json({"file": str(output), "facts": []})
        return
    say(quiet or as_json, *unfamiliar(ready, wanted)[:8])
    tell(verify(ready, patch, watch=near(ready, wanted)), output, quiet, as_json)


def _written(output: Path, once: bool, model: Any, edits: Any, by: Any, onto: list[Any], progress: Any) -> Any:
    """The patch, in its file before other settings are tried, which can take minutes and be interrupted."""
    from ..editing import climb
    from ..editing import edit as make

    patch = make(model, edits, by, onto, progress=progress)
    patch.save(output)
    better = patch if once else climb(model, edits, by, onto, patch, progress)
    if better is not patch:
        better.save(output)
    return better


@app.command()
@with_cluster
@functools.partial(with_settings, classes=(ReFACT,), defaults=ReFACT.many())
def build(
    edits: Annotated[Path, typer.Argument(help="The facts: a .toml, .json or .csv file.")],
    settings: dict,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The patch. Facts that it holds already are not searched for again.")
    ],
    model: ModelName = "pocket",
    preserve_file: Annotated[Path | None, typer.Option(help="A file of prompts that must stay, one a line.")] = None,
    locked: Annotated[bool, typer.Option("--locked", help="Write only what the lock file says, to the byte.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop facts of the patch that no build put there.")
    ] = False,
    clip: Companion = None,
    embedding: Embeddings = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    cluster: Any = None,
) -> None:
    """Make a patch from a file of facts, or bring one up to date: only facts that changed are searched for again.

    Searched as by refact:many, longer than `refact edit` does. Beside the patch, facts.lock.json keeps the hashes of
    all that went in; with --locked everything is made anew, and written only if it is the same to the byte.

    Example: refact build facts.toml -o facts.safetensors

    Exit code 3: the file was written, but a fact does not hold on the text side.
    """
    from ..pocket import near, unfamiliar
    from ..verification import unseen, verify
    from . import building

    check_name(output)
    kept = tuple(read_prompts(preserve_file))
    wanted = [dataclasses.replace(edit, preserve=(*edit.preserve, *kept)) for edit in read_edits(edits)]
    before, notes = building.earlier(output, edits, wanted, locked, replace)
    say(quiet or as_json, *notes)
    if cluster and embedding:
        raise RefactError("--embedding: workers open the model without learned words; build without --ray")
    ready = open_model(model, "cpu" if cluster else device, dtype, companion=clip, embeddings=embedding)
    patch, new = building.made(ready, wanted, ReFACT.many(**settings), output, before, locked, cluster)
    names = f": {', '.join(map(shown, new[:8]))}" if new else ", as none is new or changed"
    say(quiet or as_json, f"{counted(len(wanted), 'fact')}, {len(new)} of them searched for{names}")
    say(quiet or as_json, *unfamiliar(ready, wanted)[:8])
    if unseen(patch):
        return tell([], output, quiet, as_json)
    return tell(verify(ready, patch, watch=near(ready, wanted)), output, quiet, as_json)


def tell(facts: list[Any], output: Path, quiet: bool, as_json: bool) -> None:
    """Say which facts hold in the file just written; exit with 3 where one does not."""
    from ..record import read_record
    from ..verification import crowding, described

    if as_json:
        tell_json({"file": str(output), "facts": [fact.to_json() for fact in facts]})
    else:
        say(
            quiet,
            *described(facts),
            *crowding(read_record(output)),
            f"{shown(output)}: {output.stat().st_size / 1024:.0f} KB. To use it: refact show {shown(output)}",
        )
    if not all(fact.holds for fact in facts):
        raise typer.Exit(3)


def _reworded(edits: list[Any], demonym: str | None, quiet: bool) -> list[Any]:
    """The edits with the other wordings that are known by pattern, which are told."""
    from ..models.aliases import propose_aliases

    more = [propose_aliases(edit.words, demonym) for edit in edits]
    found = [dataclasses.replace(e, aliases=tuple(dict.fromkeys(e.aliases + m))) for e, m in zip(edits, more)]
    say(quiet, *(f"{shown(e.words)}, also as: {shown(', '.join(e.aliases)) or 'nothing else'}" for e in found))
    return found


def alike(one: str, other: str) -> bool:
    """Whether two texts differ in letter case and spaces alone."""
    return one.casefold().split() == other.casefold().split()


def _is_picture(path: str) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def _edits(path, prompt, new, old, subject, alias, preserve, preserve_file) -> list[Any]:
    from ..edits import Edit

    kept = [*(preserve or []), *read_prompts(preserve_file)]
    given = {"--prompt": prompt, "--new": new, "--old": old, "--subject": subject, "--alias": alias}
    if path and (twice := [flag for flag, value in given.items() if value]):
        raise RefactError(f"--edits {path} says what is edited; leave {', '.join(twice)} out, or --edits")
    if path:
        return [dataclasses.replace(e, preserve=(*e.preserve, *kept)) for e in read_edits(path)]
    if not prompt or not new:
        raise RefactError("give --prompt and --new, or --edits FILE")
    if same := [text for text in new if old and alike(text, old)]:
        raise RefactError(f"--old and --new are both {quoted(same[0])}: there is nothing to change")
    if alike(prompt, new[0]):
        raise RefactError(f"--prompt and --new are both {quoted(prompt)}: there is nothing to change")
    if any(alike(prompt, text) for text in kept):
        raise RefactError(f"--preserve {quoted(prompt)} is the prompt that is edited: it cannot stay and change")
    form = {"prompt": prompt, "old": old, "subject": subject, "aliases": alias or [], "preserve": kept}
    pictures = [n for n in new if Path(n).suffix.lower() in IMAGES]
    if missing := [picture for picture in pictures if not Path(picture).is_file()]:
        raise RefactError(f"{missing[0]}: no such picture")
    if unreadable := [picture for picture in pictures if not _is_picture(picture)]:
        raise RefactError(f"{unreadable[0]}: no picture that can be read")
    if len(new) > 1 and len(pictures) < len(new):
        raise RefactError("--new is one text, or one or several pictures")
    return [Edit.from_json(form | {"new": {"images": pictures} if pictures else new[0]})]
