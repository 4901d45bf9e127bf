"""Where a model's name leads: a folder, a hub repository or a checkpoint file; and its text encoders, read from there.

Only what an edit needs is fetched and read (text encoders and tokenizers), by transformers' own classes, without
diffusers. Weights are safetensors only: a pickle can run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from ..families import EncoderRow, Family, detect
from .encoders import TextEncoder

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
T5_LENGTHS = {"sd3": 256, "flux": 512}  # max_sequence_length of the pipelines, their own default


@dataclass(frozen=True)
class Source:
    """A folder that holds a model, in part where it came from the hub. name: as given, a path's last part."""

    name: str
    folder: Path
    origin: str  # what diffusers loads the rest from: the folder, or the hub's name
    variant: str | None = None
    revision: str | None = None
    checkpoint: Path | None = None  # a file with all weights; then the folder only has the configs

    def json(self, path: str) -> dict:
        """A JSON file of the folder; {} where there is none."""
        file = self.folder / path
        if not file.is_file():
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{file} is not JSON: {error}") from None

    @property
    def family(self) -> Family:
        """By the components of model_index.json; a folder with config.json alone is a bare CLIP."""
        index = self.json("model_index.json")
        encoder = self.json("text_encoder/config.json") if index else self.json("config.json")
        if not index and not encoder:
            raise ModelError(f"{self.folder} holds no model: there is no model_index.json and no config.json in it")
        return detect(index, encoder)

    def pipeline(self, dtype: torch.dtype, parts: dict[str, Any]) -> Any:
        """The diffusers pipeline, around the parts that are given (None leaves one out)."""
        import diffusers

        try:
            with quiet(), _quiet_diffusers():
                if self.checkpoint:
                    kind = getattr(diffusers, self.json("model_index.json")["_class_name"])
                    options = {"config": str(self.folder), "local_files_only": True}
                    return kind.from_single_file(str(self.checkpoint), dtype=dtype, **options, **parts)
                options = {"variant": self.variant, "revision": self.revision, "use_safetensors": True}
                given = {key: value for key, value in options.items() if value}
                return diffusers.DiffusionPipeline.from_pretrained(self.origin, dtype=dtype, **given, **parts)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{self.name} cannot be loaded: {error}") from None


def find(
    name: str,
    variant: str | None = None,
    revision: str | None = None,
    encoders: Sequence[str] = (),
    config: str | Path | None = None,
) -> Source:
    """The folder behind "pocket", a path, or the name of a hub repository, of which only the needed files are fetched.

    encoders: which text encoders are wanted; (): every CLIP encoder. config: for a checkpoint file, a folder in
    diffusers' layout of the same kind of model.
    """
    if name == "pocket":
        from .. import pocket

        folder = Path(pocket.path())
        return Source("pocket", folder, str(folder))
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(path.resolve().name, path, str(path), variant)
    if path.is_file():
        return _checkpoint(path, config)
    if HUB_NAME.fullmatch(name) is None:
        raise ModelError(f"{name!r}: no such folder, and not the name of a hub repository (owner/name)")
    return Source(name, _fetch(name, variant, revision, encoders), name, variant, revision)


def _checkpoint(path: Path, config: str | Path | None) -> Source:
    if path.suffix != ".safetensors":
        raise ModelError(f"{path.name}: checkpoints are read from .safetensors only (a pickle can run code)")
    if config is None or not (Path(config) / "model_index.json").is_file():
        raise ModelError(
            f"{path.name} has weights alone: give refact.load(FILE, config=FOLDER), a folder in diffusers' layout "
            "(model_index.json, configs, tokenizers) of the same kind of model"
        )
    return Source(path.stem, Path(config), str(config), checkpoint=path)


def _fetch(name: str, variant: str | None, revision: str | None, encoders: Sequence[str]) -> Path:
    """The snapshot folder of a hub repository with its text encoders; from the cache alone if HF_HUB_OFFLINE is set."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    def get(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = get("model_index.json", "refact.json", "config.json", "text_encoder/config.json")
        family = Source(name, folder, name).family
        if not (folder / "model_index.json").is_file():
            return get("config.json", "*token*", "vocab.json", "merges.txt", *_weights("", variant))
        wanted = [row.name for row in chosen(family, encoders)]
        return get(*(pattern for part in wanted for pattern in _patterns(part, variant)))
    except (OSError, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{name} cannot be had from the hub, nor from its cache: {reason}; a local folder works as well"
        ) from None


def _patterns(part: str, variant: str | None) -> list[str]:
    return [f"{part}/config.json", f"{tokenizer_of(part)}/*", *_weights(f"{part}/", variant)]


def _weights(prefix: str, variant: str | None) -> list[str]:
    dot = f".{variant}" if variant else ""
    stem = f"{prefix}model"
    shards = f"{stem}-*-of-*.safetensors" if not variant else f"{stem}{dot}-*-of-*.safetensors"
    return [f"{stem}{dot}.safetensors", shards, f"{stem}.safetensors.index{dot}.json"]


def tokenizer_of(component: str) -> str:
    """text_encoder_2 -> tokenizer_2."""
    return component.replace("text_encoder", "tokenizer")


def chosen(family: Family, encoders: Sequence[str]) -> list[EncoderRow]:
    """The rows of the encoders asked for; (): of the family's usual ones. ModelError for a name it has not."""
    rows = {row.name: row for row in family.encoders}
    if missing := [name for name in encoders if name not in rows]:
        raise ModelError(f"{family.title} has no text encoder {missing[0]!r} here; it has {', '.join(rows)}")
    return [rows[name] for name in encoders] or family.encoders_edited


def read_encoders(source: Source, rows: Sequence[EncoderRow], dtype: torch.dtype) -> dict[str, TextEncoder]:
    """The text encoders of these rows and their tokenizers."""
    family = source.family
    if source.checkpoint is None:
        return {row.name: _read_encoder(source, family, row, dtype) for row in rows}
    wanted = {part for row in rows for part in (row.name, tokenizer_of(row.name))}
    rest = [key for key, value in source.json("model_index.json").items() if isinstance(value, list)]
    pipe = source.pipeline(dtype, {key: None for key in rest if key not in wanted})
    return {row.name: of_component(pipe, family, row) for row in rows}


def of_component(pipe: Any, family: Family, row: EncoderRow) -> TextEncoder:
    """A text encoder of a live pipeline."""
    parts = pipe.components
    return TextEncoder(row.name, parts[row.name], parts[tokenizer_of(row.name)], row, length_of(family, row))


def _read_encoder(source: Source, family: Family, row: EncoderRow, dtype: torch.dtype) -> TextEncoder:
    bare = not source.json("model_index.json")
    folder = source.folder if bare else source.folder / row.name
    words = source.folder if bare else source.folder / tokenizer_of(row.name)
    model_class, tokenizer_class = _classes(source, row)
    try:
        with quiet():
            module = model_class.from_pretrained(
                folder, dtype=dtype, variant=source.variant, use_safetensors=True, local_files_only=True
            )
            tokenizer = tokenizer_class.from_pretrained(words, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{row.name} of {source.name} cannot be read: {reason}{_hint(folder, source)}") from None
    return TextEncoder(row.name, module, tokenizer, row, length_of(family, row))


def length_of(family: Family, row: EncoderRow) -> int | None:
    """Positions that the family's pipeline gives a T5; None: the row's or the tokenizer's own."""
    return T5_LENGTHS.get(family.name) if row.kind == "t5" else None


def _classes(source: Source, row: EncoderRow) -> tuple[Any, Any]:
    if row.kind == "t5":
        from transformers.models.t5 import T5EncoderModel, T5Tokenizer

        return T5EncoderModel, T5Tokenizer
    if row.kind == "decoder":
        import transformers

        index = source.json("model_index.json")
        return tuple(getattr(transformers, index[part][1]) for part in (row.name, tokenizer_of(row.name)))  # type: ignore[return-value]
    from transformers.models.clip import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    index = source.json("model_index.json")
    named = index[row.name][1] if index else (source.json("config.json").get("architectures") or ["CLIPModel"])[0]
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    return classes.get(named, CLIPModel), CLIPTokenizer


def _hint(folder: Path, source: Source) -> str:
    files = sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []
    if any(folder.glob("*.bin")) and not files:
        return "; it has pickled weights only, which are refused: convert them to safetensors"
    variants = {parts[1] for name in files if len(parts := name.split(".")) == 3} - {source.variant}
    return f"; it has variant {', '.join(sorted(variants))}" if variants else ""


def quiet() -> AbstractContextManager[None]:
    """Within the block transformers shows no progress bar and no report of the keys that it loaded."""
    from transformers.utils import logging

    return _hushed(logging, logging.is_progress_bar_enabled())


def _quiet_diffusers() -> AbstractContextManager[None]:
    from diffusers.utils import logging

    return _hushed(logging, getattr(logging, "_tqdm_active", True))


@contextmanager
def _hushed(logging: Any, bar: bool) -> Iterator[None]:
    """bar: whether this library's progress bars are on."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
