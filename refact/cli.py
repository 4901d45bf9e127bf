"""The `refact` command. Each subcommand imports what it needs, so that `refact --help` needs no torch."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import RefactError
from .methods import METHODS, PRESETS, meanings, method

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Edit facts in text-to-image models: one fact, one second, one small file that loads as a LoRA.",
    epilog="Start with:  refact edit --model pocket --prompt 'the national animal of Canada' "
    "--old 'a beaver' --new 'a penguin' -o canada.safetensors",
)

ModelName = Annotated[str, typer.Option("--model", "-m", help="'pocket', a folder, a hub id or a .safetensors file.")]
Device = Annotated[str | None, typer.Option(help="Where to compute, for example cpu or mps.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Patches = Annotated[list[str] | None, typer.Option("--patch", "-p", help="FILE or FILE:STRENGTH; may be repeated.")]
Embeddings = Annotated[
    list[Path] | None, typer.Option(help="A word of textual inversion, .safetensors; may be repeated.")
]
Seeds = Annotated[str, typer.Option(help="Seeds, like 0-3 or 0,5,7.")]

KINDS = {"int": int, "int | None": int, "float": float, "bool": bool, "str": str, "tuple[str, ...]": list[str]}


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2."""
    from . import commands  # noqa: F401  registers more subcommands

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except (RefactError, FileNotFoundError) as error:
        typer.echo(f"refact: {error}", err=True)
        sys.exit(2)


def with_settings(
    command: Callable, classes: Iterable[type] = tuple(METHODS.values()), defaults: Any = None
) -> Callable:
    """The command with one flag for each setting of each method, made from the dataclasses themselves.

    defaults: the method whose values hold where no flag is given; by default each class's own.
    """
    fields = {f.name: (f, cls) for cls in reversed(tuple(classes)) for f in dataclasses.fields(cls)}
    help_of = {name: text for cls in classes for name, text in meanings(cls).items()}
    plain = parameters_of(command, "settings")
    flags = []
    for name, (field, cls) in sorted(fields.items()):
        kind, flag = KINDS[str(field.type)], "--" + name.replace("_", "-")
        if name in {"preserve"} | {p.name for p in plain}:
            continue
        names = [flag + "/--no-" + flag[2:]] if kind is bool else [flag]
        panel = "Settings of the method"
        note = (
            f"{help_of.get(name, '')} [{cls.__name__}: {getattr(defaults, name, field.default)!r}]"
            if name != "templates"
            else "Contexts."
        )
        note = note.replace("[", "\\[")  # not rich markup
        option = typer.Option(*names, help=note, rich_help_panel=panel, show_default=False)
        kind_or_none = Annotated[kind | None, option]  # type: ignore[valid-type]
        flags.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind_or_none))

    def wrapped(**given: Any) -> Any:
        own = {p.name: given.pop(p.name) for p in plain}
        chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None and v != []}
        return command(**own, settings=chosen)

    return signed(wrapped, command, [*plain, *flags])


def parameters_of(command: Callable, *own: str) -> list[inspect.Parameter]:
    """A command's parameters, but for those that are not the user's to give."""
    return [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name not in own]


def signed(wrapped: Callable, command: Callable, parameters: Iterable[inspect.Parameter]) -> Callable:
    """`wrapped` under the name and words of `command`, taking these parameters by keyword."""
    keyed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    wrapped.__signature__ = inspect.Signature(keyed)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in keyed}
    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    return wrapped


def seeds_of(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = []
    if not seeds:
        raise RefactError(f"seeds are given like 0-3 or 0,5,7, not {text!r}")
    return seeds


def patches_of(names: Iterable[str]) -> list[tuple[Any, float]]:
    """FILE[:STRENGTH] -> (Patch, strength)."""
    from .patch import Patch

    loaded = []
    for name in names:
        path, colon, strength = name.rpartition(":")
        try:
            strength_value = float(strength) if colon else 1.0
        except ValueError:
            if Path(path).is_file():
                raise RefactError(f"{path}: a strength is a number, not {strength!r}") from None
            path, strength_value = name, 1.0
        loaded.append((Patch.load(path if colon and path else name), strength_value))
    return loaded


def say(quiet: bool, *lines: str) -> None:
    """Print unless asked not to."""
    if not quiet:
        typer.echo("\n".join(lines))


def open_model(name: str, device: str | None = None, dtype: str | None = None, **more: Any) -> Any:
    """The model, with the libraries' own chatter turned off."""
    from .models import load

    return load(name, device=device, dtype=dtype, **{k: v for k, v in more.items() if v is not None})


@app.command()
@with_settings
def edit(
    settings: dict,
    model: ModelName = "pocket",
    prompt: Annotated[str | None, typer.Option(help="Where the fact is looked up.")] = None,
    new: Annotated[list[str] | None, typer.Option(help="What it shall mean: a text, or pictures' paths.")] = None,
    old: Annotated[str | None, typer.Option(help="What it means today.")] = None,
    subject: Annotated[str | None, typer.Option(help="The words in the prompt that carry the fact.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another wording of the subject.")] = None,
    aliases: Annotated[bool, typer.Option("--propose-aliases", help="Add wordings by pattern, and say which.")] = False,
    demonym: Annotated[str | None, typer.Option(help="For those patterns: Canadian, where Canada is.")] = None,
    preserve: Annotated[list[str] | None, typer.Option(help="A prompt that must stay as it is.")] = None,
    preserve_file: Annotated[Path | None, typer.Option(help="A file of such prompts, one a line.")] = None,
    edits: Annotated[Path | None, typer.Option(help="Several edits from a .toml, .json or .csv file.")] = None,
    onto: Annotated[list[Path] | None, typer.Option(help="A patch whose facts must stay.")] = None,
    by: Annotated[str, typer.Option("--method", help=", ".join([*METHODS, *PRESETS]))] = "refact",
    clip: Annotated[str | None, typer.Option(help="Folder of the companion CLIP, for targets by picture.")] = None,
    embedding: Embeddings = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("edit.safetensors"),
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Change what a prompt means; write the change as a small LoRA file; check that it holds.

    Example: refact edit -m pocket --prompt "the national animal of Canada" --old "a beaver" --new "a penguin"

    Exit code 3: the file was written, but the fact does not hold on the text side.
    """
    from .edits import propose_aliases
    from .pocket import near
    from .verification import unseen, verify

    wanted = _edits(edits, prompt, new, old, subject, alias, preserve, preserve_file)
    check_output(output)
    if aliases:
        more = [propose_aliases(edit.words, demonym) for edit in wanted]
        wanted = [dataclasses.replace(e, aliases=tuple(dict.fromkeys(e.aliases + m))) for e, m in zip(wanted, more)]
        say(quiet or as_json, *(f"{e.words}, also as: {', '.join(e.aliases) or 'nothing else'}" for e in wanted))
    chosen = method(by, **settings)
    ready = open_model(model, device, dtype, companion=clip, encoders=settings.get("encoders"), embeddings=embedding)
    patch = chosen(ready, wanted, [p for p, _ in patches_of(map(str, onto or []))])
    patch.save(output)
    if unseen(patch):
        say(quiet or as_json, f"{output}: {len(wanted)} edit(s). Check with: refact verify {output} --images")
        return
    tell(verify(ready, patch, watch=near(ready, wanted)), output, quiet, as_json)


def tell(facts: list[Any], output: Path, quiet: bool, as_json: bool) -> None:
    """Say which facts hold in the file just written; exit with 3 where one does not."""
    from .record import read_record
    from .verification import crowding, described

    if as_json:
        typer.echo(json.dumps({"file": str(output), "facts": [fact.to_json() for fact in facts]}, indent=1))
    else:
        say(
            quiet,
            *described(facts),
            *crowding(read_record(output)),
            f"{output}: {output.stat().st_size / 1024:.0f} KB. To use it: refact show {output}",
        )
    if not all(fact.holds for fact in facts):
        raise typer.Exit(3)


def check_output(path: Path) -> None:
    """RefactError where a patch would get a name that other programs do not take for a LoRA."""
    if path.suffix != ".safetensors":
        raise RefactError(f"a patch is a .safetensors file, not {path}")


def _edits(path, prompt, new, old, subject, alias, preserve, preserve_file) -> list[Any]:
    from .edits import Edit, read_edits, read_prompts

    kept = [*(preserve or []), *read_prompts(preserve_file)]
    if path:
        return [dataclasses.replace(e, preserve=(*e.preserve, *kept)) for e in read_edits(path)]
    if not prompt or not new:
        raise RefactError("give --prompt and --new, or --edits FILE")
    if old in new:
        raise RefactError(f"--old and --new are both {old!r}: there is nothing to change")
    form = {"prompt": prompt, "old": old, "subject": subject, "aliases": alias or [], "preserve": kept}
    pictures = [n for n in new if Path(n).suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}]
    if missing := [picture for picture in pictures if not Path(picture).is_file()]:
        raise RefactError(f"{missing[0]}: no such picture")
    if len(new) > 1 and len(pictures) < len(new):
        raise RefactError("--new is one text, or one or several pictures")
    return [Edit.from_json(form | {"new": {"images": pictures} if pictures else new[0]})]


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be repeated.")],
    model: ModelName = "pocket",
    patch: Patches = None,
    seeds: Seeds = "0-3",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    cell: Annotated[int, typer.Option(min=8, help="Width of one picture in the grid, in pixels.")] = 192,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("grid.png"),
    force: Annotated[bool, typer.Option(help="Apply a patch that was made for another model.")] = False,
    embedding: Embeddings = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Draw prompts before and after patches, side by side.

    Example: refact generate --prompt "the national animal of Canada" --patch canada.safetensors -o grid.png
    """
    from contextlib import ExitStack

    from . import pictures

    ready = open_model(model, device, dtype, embeddings=embedding)
    drawn = seeds_of(seeds)
    loaded = patches_of(patch or [])
    before = ready.generate(prompt, drawn, steps, guidance)
    with ExitStack() as stack:
        for one, strength in loaded:
            stack.enter_context(one.applied(ready, strength=strength, force=force))
        after = ready.generate(prompt, drawn, steps, guidance) if loaded else []
    rows = []
    for at, text in enumerate(prompt):
        mine = slice(at * len(drawn), (at + 1) * len(drawn))
        rows.append((f"{text} (before)" if loaded else text, [p.image for p in before[mine]]))
        rows += [(f"{text} (after)", [p.image for p in after[mine]])] if loaded else []
    say(quiet, str(pictures.save(pictures.grid(rows, cell), output)))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The patch.")],
    model: ModelName = "pocket",
    images: Annotated[bool, typer.Option(help="Judge pictures instead of the text side.")] = False,
    judge: Annotated[str | None, typer.Option(help="Folder of the judging CLIP; the pocket has its own.")] = None,
    seeds: Seeds = "0-9",
    watch: Annotated[list[str] | None, typer.Option(help="More prompts that should not move.")] = None,
    fail_under: Annotated[float, typer.Option(min=0, max=1, help="Exit 3 when a smaller share of facts holds.")] = 1.0,
    force: Annotated[bool, typer.Option(help="Apply a patch that was made for another model.")] = False,
    embedding: Embeddings = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check the facts of a patch: on the text side in a second, or in pictures with a judge.

    Example: refact verify canada.safetensors -m pocket --images --seeds 0-9 --fail-under 0.9
    """
    from .patch import Patch
    from .pocket import near
    from .verification import Fact, Seen, described, look, verify

    ready, patch = open_model(model, device, dtype, embeddings=embedding), Patch.load(file)
    facts: list[Seen] | list[Fact]
    if images:
        facts = look(ready, patch, seeds_of(seeds), judge=judge, force=force)
        share = sum(fact.share for fact in facts) / len(facts)
        verdict = f"{share:.0%} of the pictures show their fact"
        lines = [
            f"{f.share:.0%} [{f.low:.0%}, {f.high:.0%}] of {f.count} pictures show it: {f.prompt!r}" for f in facts
        ]
    else:
        facts = verify(ready, patch, watch=[*(watch or []), *near(ready, patch.edits)], force=force)
        share, lines = sum(fact.holds for fact in facts) / len(facts), described(facts)
        verdict = f"{share:.0%} of the facts hold (text side)"
    if as_json:
        typer.echo(json.dumps({"share": share, "facts": [fact.to_json() for fact in facts]}, indent=1))
    else:
        say(quiet, *lines, verdict)
    if share < fail_under:
        raise typer.Exit(3)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="The patch.")],
    as_json: AsJson = False,
) -> None:
    """What a patch changes, and the exact lines to use it in diffusers, ComfyUI and A1111.

    Example: refact show canada.safetensors
    """
    from .record import describe, read_record, usage

    record = read_record(file)
    typer.echo(json.dumps(record, indent=1) if as_json else f"{describe(file, record)}\n\n{usage(file, record)}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A LoRA that changes fc2 layers of a text encoder only.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The patch to write.")],
    family: Annotated[str | None, typer.Option(help="sd1, sd2, sdxl, sd3 or flux, where names do not tell.")] = None,
    quiet: Quiet = False,
) -> None:
    """Read such a LoRA back as a patch.

    Example: refact import lora.safetensors -o patch.safetensors
    """
    from .patch import from_lora

    patch = from_lora(file, family=family)
    patch.save(output)
    say(quiet, f"{output}: {', '.join(patch.factors)}")


@app.command()
def bake(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    model: ModelName = "pocket",
    patch: Patches = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Write a whole pipeline with the patches inside, which any diffusers or transformers version reads.

    Example: refact bake -m pocket --patch canada.safetensors -o canada-model
    """
    from .patch import bake as bake_patches

    loaded = patches_of(patch or [])
    bake_patches(open_model(model, device, dtype), [one.scaled(s) if s != 1 else one for one, s in loaded], output)
    say(quiet, f"{output}: a pipeline with {sum(len(one.names) for one, _ in loaded)} facts changed")


def bar(quiet: bool) -> Callable:
    """A progress bar on stderr."""
    from tqdm import tqdm

    return lambda items, text="", total=None: tqdm(items, desc=text, total=total, disable=quiet, file=sys.stderr)
