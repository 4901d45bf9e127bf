"""Where a model's name leads: a folder, a hub repository or a checkpoint file; and its text encoders, read from there.

Only what an edit needs is fetched and read (text encoders and tokenizers), by transformers' own classes, without
diffusers. Weights are safetensors only: a pickle can run code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..encoders.encoder import TextEncoder
from ..errors import ModelError
from ..families import FAMILIES, EncoderRow, Family, detect
from . import standalone, tokenizers

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
T5_LENGTHS = {"sd3": 256, "flux": 512}  # max_sequence_length of the pipelines, their own default


PIECES, PIECE = 64, 2**16  # of a file that are read for its digest, and their bytes


def digest_of(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and evenly spread pieces of files, all of those that are small; 16 hex digits."""
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.parent.name}/{file.name}:{size}\n".encode())
        with file.open("rb") as stream:
            for at in range(PIECES):
                stream.seek(size * at // PIECES)
                total.update(stream.read(PIECE))
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """A folder that holds a model, in part where it came from the hub. name: as given, a path's last part.

    named, component: of a lone text encoder, the family that it shall serve and which of its encoders it is.
    """

    name: str
    folder: Path
    origin: str  # what diffusers loads the rest from: the folder, or the hub's name
    variant: str | None = None
    revision: str | None = None
    checkpoint: Path | None = None  # a file with all weights; then the folder only has the configs
    encoder_file: Path | None = None  # a text encoder's own file; then the folder has its tokenizer, or is not used
    config: Path | None = None  # as given
    named: str | None = None
    component: str | None = None

    def json(self, path: str) -> dict:
        """A JSON file of the folder; {} where there is none."""
        file = self.folder / path
        if not file.is_file():
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{file} is not JSON: {error}") from None

    def digest(self, without: Collection[str] = ()) -> str:
        """A hash of the weights' files, less some components; of a repository of the hub its commit; 16 hex digits."""
        if self.checkpoint:
            return digest_of([self.checkpoint])
        if not Path(self.origin).expanduser().is_dir():
            return self.folder.name[:16]
        files = [f for f in self.folder.rglob("*") if f.suffix in {".safetensors", ".bin"}]
        return digest_of(sorted(f for f in files if f.relative_to(self.folder).parts[0] not in without))

    @property
    def alone(self) -> bool:
        """Whether it is a text encoder without a pipeline."""
        return self.encoder_file is not None or not (self.folder / "model_index.json").is_file()

    @property
    def family(self) -> Family:
        """By the components of model_index.json; a lone text encoder is a bare CLIP, unless its family was named."""
        if self.alone:
            return self._family_of_lone()
        if self.named or self.component:
            raise ModelError(f"{self.name} is a whole pipeline: its family and its components are known; name none")
        return detect(self.json("model_index.json"), self.json("text_encoder/config.json"))

    def _family_of_lone(self) -> Family:
        """One family with one encoder: as named, else by the encoder's kind and width."""
        config = {} if self.encoder_file else self.json("config.json")
        if not self.encoder_file and not config:
            raise ModelError(f"{self.folder} holds no model: there is no model_index.json and no config.json in it")
        if self.named is not None and self.named not in FAMILIES:
            raise ModelError(f"no family {self.named!r}; known are {', '.join(FAMILIES)}")
        if not self.encoder_file and not self.named:
            detect({}, config)  # refuses what is no CLIP
        kind, width = self._kind_and_width(config)
        if kind == "t5" and not self.named:
            raise ModelError(f"{self.name} is a T5: say for which family, sd3 or flux: family=... (--family)")
        family = FAMILIES[self.named or "clip"]
        rows = [row for row in family.encoders if row.kind == kind]
        big = [row for row in rows if row.name == "text_encoder_2"] if width == standalone.BIG_WIDTH else []
        if self.component:
            rows, big = [row for row in rows if row.name == self.component], []
        if not rows:
            have = ", ".join(f"{row.name} ({row.kind})" for row in family.encoders)
            raise ModelError(
                f"{self.name} is a {kind.upper()}; {family.title} has no such {self.component or 'encoder'}: {have}"
            )
        return replace(family, encoders=tuple(big or rows[:1]))

    def _kind_and_width(self, config: dict) -> tuple[str, int]:
        if self.encoder_file:
            return standalone.kind_of(self.encoder_file), standalone.width_of(self.encoder_file)
        config = config.get("text_config", config)
        kind = "t5" if str(config.get("model_type", "")).startswith("t5") else "clip"
        return kind, config.get("hidden_size", config.get("d_model", 0))

    def takes(self, name: str, tokenizer: Any) -> bool:
        """Whether diffusers takes this tokenizer while it opens the pipeline: of transformers 4 only slow ones."""
        import transformers

        return isinstance(tokenizer, getattr(transformers, self.json("model_index.json")[name][1], object))

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
    family: str | None = None,
    component: str | None = None,
) -> Source:
    """The folder behind "pocket", a path, or the name of a hub repository, of which only the needed files are fetched.

    encoders: which text encoders are wanted; (): every CLIP encoder. config: for a checkpoint file, a folder in
    diffusers' layout of the same kind of model; for a text encoder's own file, a folder with its tokenizer. family,
    component: what a lone text encoder is; by default a CLIP that serves no family in particular.
    """
    source = _found(name, variant, revision, encoders, Path(config).expanduser() if config else None)
    if family or component:
        source = replace(source, named=family, component=component)
    return source


def _found(
    name: str, variant: str | None, revision: str | None, encoders: Sequence[str], config: Path | None
) -> Source:
    if name == "pocket":
        from .. import pocket

        folder = Path(pocket.path())
        return Source("pocket", folder, str(folder))
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(path.resolve().name, path, str(path), variant, config=config)
    if path.is_file():
        return _file(path, config)
    if HUB_NAME.fullmatch(name) is None:
        raise ModelError(f"{name!r}: no such folder, and not the name of a hub repository (owner/name)")
    return Source(name, _fetch(name, variant, revision, encoders), name, variant, revision, config=config)


def _file(path: Path, config: Path | None) -> Source:
    if path.suffix != ".safetensors":
        raise ModelError(f"{path.name}: checkpoints are read from .safetensors only (a pickle can run code)")
    if config is not None and not config.is_dir():
        raise ModelError(f"config={config} (--config): no such folder")
    whole = config is not None and (config / "model_index.json").is_file()
    form = standalone.form_of(path)
    if form and not (whole and form[1]):  # with a prefix, and the config of a pipeline: a whole model's file in part
        return Source(path.stem, path.parent, str(path), encoder_file=path, config=config)
    if config is None or not whole:
        raise ModelError(
            f"{path.name} has weights alone: give config=FOLDER (--config FOLDER), a folder in diffusers' layout "
            "(model_index.json, configs, tokenizers) of the same kind of model"
        )
    return Source(path.stem, config, str(config), checkpoint=path, config=config)


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
    """The rows of the encoders asked for; (): of the family's usual ones, or of a lone T5. ModelError for a name it has
    not."""
    rows = {row.name: row for row in family.encoders}
    if missing := [name for name in encoders if name not in rows]:
        raise ModelError(f"{family.title} has no text encoder {missing[0]!r} here; it has {', '.join(rows)}")
    return [rows[name] for name in encoders] or family.encoders_edited or list(family.encoders)


def read_encoders(source: Source, rows: Sequence[EncoderRow], dtype: torch.dtype) -> dict[str, TextEncoder]:
    """The text encoders of these rows and their tokenizers."""
    family = source.family
    if source.encoder_file:
        (row,) = rows
        with quiet():
            module, tokenizer = standalone.read(source.encoder_file, row, source.config, dtype)
        return {row.name: TextEncoder(row.name, module, tokenizer, row, length_of(family, row))}
    if source.checkpoint is None:
        return {row.name: _read_encoder(source, family, row, dtype) for row in rows}
    wanted = {part for row in rows for part in (row.name, tokenizer_of(row.name))}
    rest = [key for key, value in source.json("model_index.json").items() if isinstance(value, list)]
    pipe = source.pipeline(dtype, {key: None for key in rest if key not in wanted})
    return {row.name: of_component(pipe, family, row) for row in rows}


def of_component(pipe: Any, family: Family, row: EncoderRow) -> TextEncoder:
    """A text encoder of a live pipeline."""
    parts = pipe.components
    tokenizer = tokenizers.fast(parts[tokenizer_of(row.name)], row.kind)
    return TextEncoder(row.name, parts[row.name], tokenizer, row, length_of(family, row))


def _read_encoder(source: Source, family: Family, row: EncoderRow, dtype: torch.dtype) -> TextEncoder:
    folder = source.folder if source.alone else source.folder / row.name
    model_class = _class(source, row)
    try:
        with quiet():
            module = model_class.from_pretrained(
                folder, dtype=dtype, variant=source.variant, use_safetensors=True, local_files_only=True
            )
            tokenizer = _read_tokenizer(source, row, module)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{row.name} of {source.name} cannot be read: {reason}{_hint(folder, source)}") from None
    return TextEncoder(row.name, module, tokenizer, row, length_of(family, row))


def length_of(family: Family, row: EncoderRow) -> int | None:
    """Positions that the family's pipeline gives a T5; None: the row's or the tokenizer's own."""
    return T5_LENGTHS.get(family.name) if row.kind == "t5" else None


def _read_tokenizer(source: Source, row: EncoderRow, module: Any) -> Any:
    if source.alone and not tokenizers.there(source.folder):  # a lone encoder that was saved without its tokenizer
        return standalone.tokenizer(source.name, row, source.config, module)
    words = source.folder if source.alone else source.folder / tokenizer_of(row.name)
    if row.kind == "decoder":
        return _named(source, tokenizer_of(row.name)).from_pretrained(words, local_files_only=True)
    return tokenizers.class_of(row.kind).from_pretrained(words, local_files_only=True)


def _named(source: Source, part: str) -> Any:
    """The class of transformers that a pipeline's model_index.json names for a part."""
    import transformers

    return getattr(transformers, source.json("model_index.json")[part][1])


def _class(source: Source, row: EncoderRow) -> Any:
    if row.kind == "t5":
        from transformers.models.t5 import T5EncoderModel

        return T5EncoderModel
    if row.kind == "decoder":
        return _named(source, row.name)
    from transformers.models.clip import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

    index = {} if source.alone else source.json("model_index.json")
    named = index[row.name][1] if index else (source.json("config.json").get("architectures") or ["CLIPModel"])[0]
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    return classes.get(named, CLIPModel)


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
