"""Tokenizers: fast ones on every transformers, CLIP's own without the hub, the files that transformers 4 reads."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ModelError

FILES = (
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = Path(__file__).parent.parent / "data" / "clip" / "merges.txt.gz"
CLIP_SIZE = 49408  # of the vocabulary of every CLIP that OpenAI and OpenCLIP published with their English tokenizer


def class_of(kind: str) -> Any:
    """transformers' tokenizer class that tells the offsets of tokens, for "clip" or "t5"."""
    import transformers

    return getattr(transformers, "T5TokenizerFast" if kind == "t5" else "CLIPTokenizerFast")


def there(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))


def fast(tokenizer: Any, kind: str) -> Any:
    """The tokenizer itself, or for a slow one of transformers 4, which tells no offsets, its fast twin."""
    if getattr(tokenizer, "is_fast", True):
        return tokenizer
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    backend = convert_slow_tokenizer(tokenizer)
    twin = class_of(kind)(tokenizer_object=backend, model_max_length=tokenizer.model_max_length, **special)
    twin.add_tokens([word for word in tokenizer.get_added_vocab() if word not in twin.get_vocab()])
    return twin


def clip(pad: str = EOS) -> Any:
    """CLIP's own tokenizer, from the merges in this package. pad: "!" is what OpenCLIP's encoders are padded with."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = gzip.decompress(CLIP_MERGES.read_bytes()).decode("utf-8").splitlines()
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), {entry: at for at, entry in enumerate([*entries, BOS, EOS])}, merges)
        config = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad, "model_max_length": 77}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        return class_of("clip").from_pretrained(folder, local_files_only=True)


# -- files ------------------------------------------------------------------------------------------------------------


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt beside a byte-pair tokenizer.json that lacks them: transformers 4 reads those.

    Words that were added since are put into added_tokens.json. A tokenizer of another kind is left as it is.
    """
    file = folder / "tokenizer.json"
    if not file.is_file() or (folder / "vocab.json").is_file():
        return
    form = json.loads(file.read_text(encoding="utf-8"))
    model = form["model"]
    if model["type"] != "BPE":
        return
    _write(folder, model["vocab"], [m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    added = {t["content"]: t["id"] for t in form["added_tokens"] if t["content"] not in model["vocab"]}
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")


def _write(folder: Path, vocab: dict[str, int], merges: list[str]) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8", newline="\n")


def keep(tokenizer: Any, folder: Path) -> None:
    """Make a tokenizer's saved folder readable for every transformers: the files that it was read from, where no word
    was added since, else those that were just saved; and in either case vocab.json and merges.txt.
    """
    source = Path(str(getattr(tokenizer, "name_or_path", "") or ""))
    if source.is_dir() and there(source) and _same(tokenizer, source):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    write_vocabulary(folder)
    _rename_extra(folder / "tokenizer_config.json")


def _rename_extra(file: Path) -> None:
    """Give a list of extra special tokens its name of before transformers 5, for which the new one is a mapping."""
    form = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if isinstance(extra := form.get("extra_special_tokens"), list):
        del form["extra_special_tokens"]
        form |= {"additional_special_tokens": extra} if extra else {}
        file.write_text(json.dumps(form, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _same(tokenizer: Any, source: Path) -> bool:
    try:
        read = type(tokenizer).from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer's folder {source} cannot be read any more: {error}") from None
    return read.get_vocab() == tokenizer.get_vocab()
