"""What the subcommands share: the app, options that several have, flags made from methods' settings, output."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PatchError, RefactError, quoted, shown
from ..methods.registry import BUILT_IN
from ..methods.settings import Setting, settings_of
from ..trust import disk, limits


class Named(str):
    """A model's name as given to -m, with what --config, --family and --component said of it."""

    options: dict[str, str]
    silent: bool = False  # whether --quiet or --json was given
    placed: bool = False  # whether the command takes --device


class App(typer.Typer):
    """A typer app in which every command that takes a model takes --config, --family and --component too."""

    def command(self, *names: Any, **how: Any) -> Callable:
        register = super().command(*names, **how)

        def registered(command: Callable) -> Callable:
            register(_with_model_options(command))
            return command

        return registered


app = App(
    name="refact",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Edit facts in text-to-image models: one fact, one second, one small file that loads as a LoRA.",
    epilog="Start with:  refact edit --model pocket --prompt 'the national animal of Canada' "
    "--old 'a beaver' --new 'a penguin' -o canada.safetensors",
)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"refact {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Edit facts in text-to-image models: one fact, one second, one small file that loads as a LoRA."""


ModelName = Annotated[str, typer.Option("--model", "-m", help="'pocket', a folder, a hub id or a .safetensors file.")]
Device = Annotated[
    str | None, typer.Option(help="Where to compute, like cpu; by default on the accelerator that there is.")
]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile the denoiser (torch.compile): pays for many pictures of one size.")
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep only the part that works in the accelerator's memory: for small cards.")
]
AtOnce = Annotated[
    int | None, typer.Option("--batch-size", min=1, max=4096, help="Pictures drawn at once; they hardly depend on it.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Patches = Annotated[list[str] | None, typer.Option("--patch", "-p", help="FILE or FILE:STRENGTH; may be repeated.")]
Embeddings = Annotated[
    list[Path] | None, typer.Option(help="A word of textual inversion, .safetensors; may be repeated.")
]
Companion = Annotated[
    str | None, typer.Option(help="Folder of the companion CLIP, for targets by picture and texts compared projected.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many cases.")]
Autocast = Annotated[
    str | None, typer.Option(help="Draw in bfloat16, which is twice as fast on a processor that has it.")
]
JudgedBy = Annotated[str | None, typer.Option(help="Folder of the judging CLIP. The bundled model has its own.")]
NamesFile = Annotated[
    Path | None,
    typer.Option("--names", help="Names that a picture may be given, one a line; the pocket's world for the pocket."),
]
Seeds = Annotated[str, typer.Option(help="Seeds, like 0-3 or 0,5,7.")]


Config = Annotated[
    str | None,
    typer.Option(help="For a .safetensors file: a folder in diffusers' layout, or with a lone T5's tokenizer."),
]
ForFamily = Annotated[str | None, typer.Option("--family", help="Of a lone text encoder: sd1, sd2, sdxl, sd3, flux.")]
Component = Annotated[str | None, typer.Option(help="Which encoder of it a lone one is, like text_encoder_2.")]


def _model_options(config: Config = None, family: ForFamily = None, component: Component = None) -> None:
    """What can be said of a model beside its name."""


def _with_model_options(command: Callable) -> Callable:
    """The command with those options, bundled into the name that it is given; unchanged if it takes no model."""
    plain, more = parameters_of(command), parameters_of(_model_options)
    where = [p.name for p in plain if p.annotation == ModelName]
    if not where:
        return command

    def wrapped(**given: Any) -> Any:
        options = {p.name: given.pop(p.name) for p in more}
        named = Named(given[where[0]])
        named.options = {key: value for key, value in options.items() if value}
        named.silent, named.placed = bool(given.get("quiet") or given.get("as_json")), "device" in given
        return command(**given | {where[0]: named})

    return signed(wrapped, command, [*plain, *more])


def with_settings(
    command: Callable, classes: Iterable[type] = tuple(BUILT_IN.values()), defaults: Any = None
) -> Callable:
    """The command with one flag for each setting of each method, made from the dataclasses themselves.

    defaults: the method whose values hold where no flag is given; by default each class's own.
    """
    plain = parameters_of(command, "settings")
    taken = {"preserve"} | {p.name for p in plain}
    found = {s.name: (s, cls) for cls in reversed(tuple(classes)) for s in settings_of(cls)}
    flags = [_flag(s, cls, defaults, "set_" * (name in taken)) for name, (s, cls) in sorted(found.items())]
    flags = [flag for flag in flags if flag.name != "set_preserve"]

    def wrapped(**given: Any) -> Any:
        own = {p.name: given.pop(p.name) for p in plain}
        given = {name.removeprefix("set_"): value for name, value in given.items()}
        chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None and v != []}
        return command(**own, settings=chosen)

    return signed(wrapped, command, [*plain, *flags])


def _flag(setting: Setting, cls: type, defaults: Any, prefix: str = "") -> inspect.Parameter:
    """A setting as a typer parameter; None where the user does not give it. prefix: where its name is taken already."""
    kind = list[str] if setting.type == tuple[str, ...] else setting.type
    name = prefix + setting.name
    flag = "--" + name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    shown = getattr(defaults, setting.name, setting.default)
    note = setting.meaning if kind == list[str] else f"{setting.meaning} [{cls.__name__}: {shown!r}]"
    note = note.replace("[", "\\[")  # not rich markup
    option = typer.Option(*names, help=note, rich_help_panel="Settings of the method", show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


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
    """ "0-3,7" -> [0, 1, 2, 3, 7]. Raises RefactError for what are no seeds, repeat, or are too large or too many."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise RefactError(f"seeds are given like 0-3 or 0,5,7, not {quoted(text)}")
        if last > limits.SEED or len(seeds) + last - first >= limits.SEEDS:
            raise RefactError(f"seeds go to {limits.SEED}, and at most {limits.SEEDS} are drawn, not {quoted(text)}")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise RefactError(f"a seed is given twice: {quoted(text)}")
    return seeds


def numbers_of(text: str, kind: type = float) -> list[Any]:
    """ "1,10" -> [1, 10]. Raises RefactError for what are no finite numbers."""
    try:
        found = [kind(part) for part in text.split(",")]
    except (ValueError, OverflowError):
        found = []
    if not found or not all(abs(number) <= 1e9 for number in found):
        raise RefactError(f"numbers are given with commas, like 1,10, not {quoted(text)}")
    return found


def patches_of(names: Iterable[str]) -> list[tuple[Any, float]]:
    """FILE[:STRENGTH] -> (Patch, strength)."""
    from ..patch import Patch, check_strength

    loaded = []
    for name in names:
        path, colon, strength = name.rpartition(":")
        try:
            strength_value = float(strength) if colon else 1.0
        except ValueError:
            if Path(path).is_file():
                raise RefactError(f"{path}: a strength is a number, not {strength!r}") from None
            path, strength_value = name, 1.0
        check_strength(strength_value)
        loaded.append((Patch.load(path if colon and path else name), strength_value))
    return loaded


def say(quiet: bool, *lines: str) -> None:
    """Print unless asked not to; whatever the lines quote, only line breaks get through to the terminal."""
    if lines and not quiet:
        text = "\n".join(lines)
        typer.echo(text if text.replace("\n", "").isprintable() else "\n".join(map(_plain, text.split("\n"))))


def _plain(line: str) -> str:
    return shown(line, len(line) * 10 + 10)


def tell_json(form: Any) -> None:
    """Print JSON in ASCII, so that no text in it moves the cursor."""
    typer.echo(json.dumps(form, indent=1, default=str).replace("\x7f", "\\u007f"))


def open_model(name: str, device: str | None = None, dtype: str | None = None, **more: Any) -> Any:
    """The model, with the libraries' own chatter turned off; a device that was not asked for by name is told."""
    from ..models.model import load

    more |= getattr(name, "options", {})
    ready = load(str(name), device=device, dtype=dtype, **{k: v for k, v in more.items() if v is not None})
    if device is None and ready.device.type != "cpu" and not getattr(name, "silent", False):
        hint = "; --device cpu takes the processor" if getattr(name, "placed", False) else ""
        typer.echo(f"computing on {ready.device}{hint}", err=True)
    return ready


def bar(quiet: bool) -> Callable:
    """A progress bar on stderr."""
    from tqdm import tqdm

    return lambda items, text="", total=None: tqdm(items, desc=text, total=total, disable=quiet, file=sys.stderr)


def check_output(path: Path) -> None:
    """RefactError where a patch cannot be written under this name, or would replace a file that is no patch."""
    from ..record import KEY, read_header

    check_name(path)
    if path.exists() and path.stat().st_size and KEY not in _metadata(read_header, path):
        raise RefactError(f"{path} is there already and is no patch: give another name, or remove it")


def check_name(path: Path) -> None:
    """RefactError where a patch would get a name that other programs do not take for a LoRA."""
    if path.suffix != ".safetensors":
        raise RefactError(f"a patch is a .safetensors file, not {path}")
    disk.check(path)


def _metadata(read: Callable, path: Path) -> dict:
    try:
        return read(path).metadata
    except PatchError:
        return {}
