"""What the subcommands share: the app, options that several have, flags made from methods' settings, output."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RefactError
from ..methods.registry import BUILT_IN
from ..methods.settings import Setting, settings_of


class Named(str):
    """A model's name as given to -m, with what --config, --family and --component said of it."""

    options: dict[str, str]


class App(typer.Typer):
    """A typer app in which every command that takes a model takes --config, --family and --component too."""

    def command(self, *names: Any, **how: Any) -> Callable:
        register = super().command(*names, **how)

        def registered(command: Callable) -> Callable:
            register(_with_model_options(command))
            return command

        return registered


app = App(
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
Autocast = Annotated[str | None, typer.Option(help="Draw in bfloat16: twice as fast where the processor has it.")]
JudgedBy = Annotated[str | None, typer.Option(help="Folder of the judging CLIP; the pocket's own for the pocket.")]
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
    flags = [_flag(s, cls, defaults) for name, (s, cls) in sorted(found.items()) if name not in taken]

    def wrapped(**given: Any) -> Any:
        own = {p.name: given.pop(p.name) for p in plain}
        chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None and v != []}
        return command(**own, settings=chosen)

    return signed(wrapped, command, [*plain, *flags])


def _flag(setting: Setting, cls: type, defaults: Any) -> inspect.Parameter:
    """A setting as a typer parameter; None where the user does not give it."""
    kind = list[str] if setting.type == tuple[str, ...] else setting.type
    flag = "--" + setting.name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    shown = getattr(defaults, setting.name, setting.default)
    note = setting.meaning if kind == list[str] else f"{setting.meaning} [{cls.__name__}: {shown!r}]"
    note = note.replace("[", "\\[")  # not rich markup
    option = typer.Option(*names, help=note, rich_help_panel="Settings of the method", show_default=False)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
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
    from ..patch import Patch

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
    from ..models.model import load

    more |= getattr(name, "options", {})
    return load(str(name), device=device, dtype=dtype, **{k: v for k, v in more.items() if v is not None})


def bar(quiet: bool) -> Callable:
    """A progress bar on stderr."""
    from tqdm import tqdm

    return lambda items, text="", total=None: tqdm(items, desc=text, total=total, disable=quiet, file=sys.stderr)


def check_output(path: Path) -> None:
    """RefactError where a patch would get a name that other programs do not take for a LoRA."""
    if path.suffix != ".safetensors":
        raise RefactError(f"a patch is a .safetensors file, not {path}")
