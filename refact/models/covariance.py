"""Covariance: E[k k^T] of an MLP's keys over a corpus: collected, kept by the weights' hash, found again."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from .. import pocket
from ..encoders.devices import exact, fitted
from ..encoders.encoder import TextEncoder, Tokens
from ..errors import DataError
from ..progress import Progress, plainly
from ..trust import disk, schema
from . import corpus as corpora

CHUNK = 500  # texts that are counted at a time until there are enough
GROUP = 4  # batches whose products are summed before they are added to the others; changes the last bits
TOGETHER = 2**30  # bytes of sums that are collected in one pass

Group = tuple[int, list[tuple[Tensor, Tensor, Tensor]]]  # its number; of each batch: ids, which of them count, weights
Sums = tuple[int, dict[int, Tensor]]  # the group's number; of each layer the sum of its keys' products
Over = Callable[[Callable[[TextEncoder], Callable[[Group], Sums]], list[Group]], Iterable[Sums]]


@dataclass(frozen=True)
class Covariance:
    """The uncentred second moment of a site's inputs, and what it was taken over.

    tokens: how many keys; encoder: its hash; corpus: its name; padding: whether padding rows were counted too;
    rarity: a key counts by its token's frequency to minus this power (0: all alike; 1: every word as much as "a");
    cut: the longest text in tokens, 0 where the encoder alone cuts.
    """

    matrix: Float[Tensor, "d d"]  # float64, of float32 precision, so that a file gives back just what was computed
    tokens: int
    site: str
    encoder: str
    corpus: str
    padding: bool
    rarity: float = 0.0
    cut: int = 0

    def shrunk(self, eps: float) -> Float[Tensor, "d d"]:
        """C + eps * tr(C)/d * I: a covariance of few tokens has directions that it never saw."""
        mean = self.matrix.diagonal().mean()
        return self.matrix + eps * mean * torch.eye(len(self.matrix), dtype=self.matrix.dtype)

    def hash(self) -> str:
        """sha256 of the matrix as it is kept, 16 hex digits."""
        return hashlib.sha256(_triangle(self.matrix).numpy().tobytes()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file (the upper triangle in float32, and its checksum), by rename."""
        about = {"tokens": self.tokens, "site": self.site, "encoder": self.encoder, "corpus": self.corpus}
        about |= {"padding": self.padding, "rarity": self.rarity, "cut": self.cut, "size": len(self.matrix)}
        triangle = _triangle(self.matrix)
        header = {"refact_covariance": json.dumps(about | {"checksum": _checksum(about, triangle)})}
        disk.write(path, to_bytes({"triangle": triangle}, metadata=header))

    @classmethod
    def load(cls, path: str | Path, **asked: Any) -> Covariance:
        """Read what `save` wrote; DataError for anything else, and where it is not of what is asked for.

        asked: what the file must have of `encoder`, `corpus`, `padding`, `rarity` and `place`, its site but for the
        component, which is called otherwise in other pipelines with the same encoder.
        """
        about, triangle = _read(path)
        there = {"cut": 0} | about | {"place": _place(about["site"])}
        if other := [f"{key} {there[key]!r}, not {value!r}" for key, value in asked.items() if there[key] != value]:
            raise DataError(f"{path} is of {'; '.join(other)}: delete it, and the right one will be computed")
        size = about.pop("size")
        upper = torch.triu_indices(size, size)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[upper[0], upper[1]] = triangle.double()
        return cls(matrix=matrix + matrix.triu(1).T, **about)

    @classmethod
    def of_moments(cls, path: str | Path, encoder: TextEncoder, layer: int) -> Covariance:
        """What the authors of ROME, ReFACT and EMCID publish: an .npz by `runningstats`, sum and count of one layer.

        Nothing pickled is read. Raises DataError for another file, another width, or a name that says another layer.
        """
        path, width = Path(path), encoder.linear(layer).in_features
        if (named := re.search(r"layers?\.(\d+)\.", path.name)) and int(named[1]) != layer:
            raise DataError(f"{path} is of layer {named[1]}; layer {layer} is edited: give that layer's file")
        try:
            with np.load(path, allow_pickle=False) as file:
                moment, count = torch.from_numpy(file["mom2.mom2"]), int(file["mom2.count"])
        except (OSError, BadZipFile, KeyError, TypeError, ValueError, EOFError) as error:
            raise DataError(f"{path} is no file of second moments (mom2.mom2, mom2.count): {error}") from None
        if moment.shape != (width, width) or count < 1 or not torch.isfinite(moment).all():
            raise DataError(
                f"{path} has {tuple(moment.shape)} moments of {count} keys; {encoder.site(layer)} needs {width}"
            )
        matrix = (moment.float() / count).double()
        return cls((matrix + matrix.T) / 2, count, encoder.site(layer), "", path.name, False)


def _read(path: str | Path) -> tuple[dict, Tensor]:
    """The checked header and triangle of a covariance's file."""
    try:
        with safe_open(path, "pt") as file:
            about = schema.covariance((file.metadata() or {})["refact_covariance"])
            numbers = math.prod(file.get_slice("triangle").get_shape())
            if numbers != about["size"] * (about["size"] + 1) // 2:
                raise ValueError(f"{numbers} numbers are no triangle of {about['size']} rows")
            triangle = file.get_tensor("triangle")
        if about.pop("checksum") != _checksum(about, triangle):
            raise ValueError("its checksum differs, so it is damaged")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no covariance: {error}; delete it, and it will be computed again") from None
    return about, triangle


def _place(site: str) -> str:
    return site.partition(".")[2]


def _checksum(about: dict, triangle: Tensor) -> str:
    """sha256 over what is told of the numbers and the numbers."""
    told = {key: value for key, value in about.items() if key != "cut" or value}  # files from before it have none
    total = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    total.update(repr((triangle.dtype, *triangle.shape)).encode())
    total.update(triangle.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _triangle(matrix: Tensor) -> Tensor:
    return matrix[tuple(torch.triu_indices(*matrix.shape))].float()


def collect(
    encoder: TextEncoder,
    layers: Sequence[int],
    texts: Sequence[str],
    padding: bool = False,
    rarity: float = 0.0,
    corpus_name: str = "",
    progress: Progress = plainly,
    cut: int = 0,
    over: Over | None = None,
) -> dict[int, Covariance]:
    """The covariances of several layers in one pass over the texts.

    Every token from [BOS] to [EOS] counts; with padding, the rows after it too, as the pipeline pads. Of a language
    model a text's own tokens count and those written after it, not what its pipeline writes before every text. cut: the
    longest text in tokens, [BOS] and [EOS] counted; 0: as the encoder reads it. Nothing above the deepest layer is
    computed; products are float32 in blocks of one batch, sums float64. over: who sums the groups of batches; here by
    default. Their sums are added in one order, so the numbers do not depend on it.
    """
    if not texts:
        raise DataError("a covariance needs texts; the corpus is empty")
    tokens = _shortened(encoder, encoder.tokenize(texts), cut)
    lengths = torch.full_like(tokens.ends, encoder.length) if padding else tokens.ends + 1
    starts = _starts(encoder, texts, padding)
    places = torch.arange(tokens.ids.shape[1])
    frequency = tokens.ids[(places < lengths[:, None]) & (places >= starts[:, None])]
    frequency = frequency.bincount(minlength=int(tokens.ids.max()) + 1).float()
    weight, batches = 0.0, []
    for rows, ids in encoder.batches(tokens.ids, lengths):
        at = torch.arange(ids.shape[1])
        counted = (at < lengths[rows, None]) & (at >= starts[rows, None])
        weights = frequency[ids] ** -rarity
        weight += float(weights[counted].double().sum())
        batches.append((ids, counted, weights))
    groups = [(at, batches[at : at + GROUP]) for at in range(0, len(batches), GROUP)]
    make = functools.partial(_summing, layers)
    done = over(make, groups) if over else map(make(encoder), groups)
    sums = _added(progress(done, f"covariance of {encoder.site(max(layers))}", len(groups)))
    count, name = int((lengths - starts).sum()), encoder.hash()
    return {
        at: Covariance(
            (total / weight).float().double().cpu(), count, encoder.site(at), name, corpus_name, padding, rarity, cut
        )
        for at, total in sums.items()
    }


def _summing(layers: Sequence[int], encoder: TextEncoder) -> Callable[[Group], Sums]:
    """What gives the sums of a group of batches, in each layer."""

    def sums_of(group: Group) -> Sums:
        how: dict = {"dtype": torch.float64, "device": exact(encoder.device)}
        sums = {at: torch.zeros(2 * (encoder.linear(at).in_features,), **how) for at in layers}
        passes = fitted(lambda ids, *_: encoder.inputs(ids, layers), group[1], f"texts in {encoder.name}")
        for (_, counted, weights), inputs in passes:
            for layer, keys in inputs.items():
                block = keys[counted.to(keys.device)] * weights[counted].sqrt()[:, None].to(keys)
                sums[layer] += (block.T @ block).to(sums[layer].device)
        return group[0], {layer: total.cpu() for layer, total in sums.items()}

    return sums_of


def _added(parts: Any) -> dict[int, Tensor]:
    """The sums of all groups, added in the order of the groups, whichever is done first."""
    total: dict[int, Tensor] = {}
    early: dict[int, dict[int, Tensor]] = {}
    due = 0
    for number, sums in parts:
        early[number] = sums
        while due in early:
            for at, matrix in early.pop(due).items():
                total[at] = total[at] + matrix if at in total else matrix
            due += GROUP
    return total


def together(encoder: TextEncoder, layers: Sequence[int]) -> list[list[int]]:
    """The layers in parts whose covariances fit into memory at once."""
    size = max(1, TOGETHER // (8 * encoder.linear(layers[0]).in_features ** 2))
    return [list(layers[at : at + size]) for at in range(0, len(layers), size)]


def _starts(encoder: TextEncoder, texts: Sequence[str], padding: bool) -> Tensor:
    """The first token of each text that counts. Raises DataError where rows of padding cannot be counted."""
    if encoder.kind != "decoder":
        return torch.zeros(len(texts), dtype=torch.int64)
    if padding:
        raise DataError(f"rows of padding of {encoder.name}, a language model, cannot be counted: leave out padding")
    return torch.tensor(encoder.starts(texts))


def _shortened(encoder: TextEncoder, tokens: Tokens, cut: int) -> Tokens:
    """Texts of at most `cut` tokens, [EOS] the last of them."""
    long = tokens.ends >= cut
    if not cut or not long.any():
        return tokens
    if cut < 3:
        raise DataError(f"cut is the longest text in tokens, 3 or more with [BOS] and [EOS], not {cut}")
    ids, ends = tokens.ids.clone(), torch.where(long, cut - 1, tokens.ends)
    eos = tokens.ids[torch.arange(len(ids)), tokens.ends]
    ids[long, cut:] = encoder.tokenizer.pad_token_id
    ids[long, cut - 1] = eos[long]
    return Tokens(ids, ends, tokens.truncated | long)


def obtain(
    encoder: TextEncoder,
    layer: int,
    corpus: str = "captions",
    tokens: int = 100_000,
    padding: bool = False,
    rarity: float = 0.0,
    cache: str | Path | None = None,
    progress: Progress = plainly,
    count: int = 0,
    cut: int = 0,
) -> Covariance:
    """The covariance of one layer: the bundled one, else the cached one, else computed (minutes) and cached."""
    return obtain_all(encoder, [layer], corpus, tokens, padding, rarity, cache, progress, count, cut)[layer]


def obtain_all(
    encoder: TextEncoder,
    layers: Sequence[int],
    corpus: str = "captions",
    tokens: int = 100_000,
    padding: bool = False,
    rarity: float = 0.0,
    cache: str | Path | None = None,
    progress: Progress = plainly,
    count: int = 0,
    cut: int = 0,
    over: Over | None = None,
) -> dict[int, Covariance]:
    """The same for several layers; those that are missing are computed in one pass.

    corpus: "captions", what `corpus.read_corpus` takes, or an .npz of the moments themselves (`of_moments`).
    tokens: how many keys at least, where the corpus has them; count: how many texts instead. cut, over: as
    in `collect`. cache: a folder; default $REFACT_CACHE, else the user's cache folder.
    """
    if corpus.endswith(".npz"):
        return {at: Covariance.of_moments(corpus, encoder, at) for at in layers}
    folder = Path(cache) if cache is not None else cache_folder()
    label = corpus_label(corpus)
    names = {at: file_name(encoder.hash(), at, label, tokens, padding, rarity, count, cut) for at in layers}
    paths = {at: folder / "covariance" / name for at, name in names.items()}
    about = {"encoder": encoder.hash(), "corpus": label, "padding": padding, "rarity": float(rarity), "cut": cut}
    plain = not count and not cut  # only such are bundled
    ours = {at: bundled(encoder.hash(), at, label, tokens, padding, rarity) if plain else None for at in layers}
    found = {at: ours[at] or paths[at] for at in layers}
    ready = {a: Covariance.load(p, place=_place(encoder.site(a)), **about) for a, p in found.items() if p.is_file()}
    if missing := [at for at in layers if at not in ready]:
        stream = texts_of(corpus)
        texts = list(islice(stream, count)) if count else enough(encoder, stream, tokens, padding)
        for at, made in collect(encoder, missing, texts, padding, rarity, label, progress, cut, over).items():
            _keep(made, paths[at])
            ready[at] = made
    return ready


def _keep(made: Covariance, path: Path) -> None:
    """Put it into the cache; where that cannot be written, a warning: what was computed is used all the same."""
    try:
        made.save(path)
    except OSError as error:
        lost = f"{path.parent} cannot be written ({error.strerror}): the covariance is computed again next time"
        warnings.warn(f"{lost}; REFACT_CACHE names another folder", stacklevel=1)


def file_name(
    encoder: str,
    layer: int,
    label: str,
    tokens: int,
    padding: bool,
    rarity: float = 0.0,
    count: int = 0,
    cut: int = 0,
) -> str:
    """By everything that the numbers depend on."""
    how = ("-padded" if padding else "") + (f"-rarity{rarity:g}" if rarity else "") + (f"-cut{cut}" if cut else "")
    return f"{encoder}-{layer}-{label}{how}-{f'{count}texts' if count else tokens}.safetensors"


def bundled(encoder: str, layer: int, label: str, tokens: int, padding: bool, rarity: float = 0.0) -> Path | None:
    """The package's own file for this encoder and layer, over the same corpus and at least as many tokens."""
    folder = pocket.own("covariance")
    stem = file_name(encoder, layer, label, 0, padding, rarity).removesuffix("0.safetensors")
    sizes = {int(found[1]): path for path in folder.glob("*") if (found := _size(path.name, stem))}
    return min(((n, path) for n, path in sizes.items() if n >= tokens), default=(0, None))[1]


def _size(name: str, stem: str) -> re.Match | None:
    return re.fullmatch(re.escape(stem) + r"(\d+)\.safetensors", name)


def corpus_label(corpus: str) -> str:
    """A name for a corpus that changes with its content, fit for a file's name."""
    if corpus == "captions":
        return corpora.VERSION
    stem = re.sub(r"[^\w.]+", "_", Path(corpus).name if not corpus.startswith("hf:") else corpus)[:40]
    path = Path(corpus if Path(corpus).is_file() else corpus.rpartition(":")[0])
    if not path.is_file():
        return f"{stem}-{hashlib.sha256(corpus.encode()).hexdigest()[:8]}"
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    content.update(b"" if path == Path(corpus) else corpus.rpartition(":")[2].encode())  # the column
    return f"{stem}-{content.hexdigest()[:8]}"


def texts_of(corpus: str) -> Iterable[str]:
    return corpora.endless() if corpus == "captions" else corpora.read_corpus(corpus)


def enough(encoder: TextEncoder, texts: Iterable[str], tokens: int, padding: bool = False) -> list[str]:
    """The first texts that hold this many keys together, or all of them."""
    return [text for text, _ in _until(_counted(encoder, texts, padding), tokens)]


def _counted(encoder: TextEncoder, texts: Iterable[str], padding: bool) -> Iterator[tuple[str, int]]:
    stream = iter(texts)
    while chunk := list(islice(stream, CHUNK)):
        own = encoder.tokenize(chunk).ends + 1 - _starts(encoder, chunk, padding)
        yield from zip(chunk, [encoder.length] * len(chunk) if padding else own.tolist())


def _until(counted: Iterator[tuple[str, int]], tokens: int) -> Iterator[tuple[str, int]]:
    total = 0
    for text, count in counted:
        if total >= tokens:
            return
        total += count
        yield text, count


def cache_folder() -> Path:
    """$REFACT_CACHE, else `refact` in the place where this system keeps a user's caches."""
    if given := os.environ.get("REFACT_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "refact"
