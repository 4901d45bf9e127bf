"""Tokenizers' files: what baking keeps, and what transformers 4 reads beside tokenizer.json."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import tiny
from transformers import CLIPTokenizer

from refact import pocket
from refact.errors import ModelError
from refact.exports import bake
from refact.models import tokenizers
from refact.models.model import load

WORDS = ["the national animal of Canada", "Naïve cats, 12 dogs'   end!", "日本 🙂", ""]


def test_the_bundled_model_ships_the_files_that_transformers_4_reads(tmp_path):
    """vocab.json and merges.txt are what tokenizer.json says, and alone they make the same tokenizer."""
    source = pocket.path()
    folder = tmp_path / "tokenizer"
    shutil.copytree(f"{source}/tokenizer", folder)
    shipped = {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    for name in shipped:
        (folder / name).unlink()
    tokenizers.write_vocabulary(folder)
    assert {name: (folder / name).read_bytes() for name in shipped} == shipped
    whole = CLIPTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    alone = CLIPTokenizer.from_pretrained(folder)
    assert alone(WORDS).input_ids == whole(WORDS).input_ids
    assert len({tuple(ids) for ids in whole(WORDS).input_ids}) == len(WORDS)


def test_a_baked_tokenizer_is_its_source_and_the_missing_files(tmp_path):
    folder = tiny.folder("sd3", tmp_path)
    (folder / "tokenizer_3" / "spiece.model").write_bytes(b"as published")
    (folder / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "<|endoftext|>"}')
    bake(load(folder), [], tmp_path / "baked")
    assert (tmp_path / "baked" / "tokenizer_3" / "spiece.model").read_bytes() == b"as published"
    for name in ("tokenizer", "tokenizer_2"):
        ours, theirs = tmp_path / "baked" / name, folder / name
        kept = {file.name: file.read_bytes() for file in theirs.iterdir() if file.name != "tokenizer_config.json"}
        assert all((ours / file).read_bytes() == content for file, content in kept.items())
        (ours / "tokenizer.json").unlink()
        assert (
            CLIPTokenizer.from_pretrained(ours)(WORDS).input_ids
            == CLIPTokenizer.from_pretrained(theirs)(WORDS).input_ids
        )
    index = json.loads((tmp_path / "baked" / "model_index.json").read_text())
    assert index["tokenizer_3"] == ["transformers", "T5TokenizerFast"]  # the one of two that reads tokenizer.json


def test_a_taught_word_is_baked(tmp_path):
    """Then the source's files would be wrong; the word stands in added_tokens.json for transformers 4."""
    model = load(tiny.folder("sd1", tmp_path))
    tokenizer = model.encoders["text_encoder"].tokenizer
    tokenizer.add_tokens(["<gizmo>"])
    bake(model, [], tmp_path / "baked")
    folder = tmp_path / "baked" / "tokenizer"
    added = json.loads((folder / "added_tokens.json").read_text())
    assert added == {"<gizmo>": tokenizer.convert_tokens_to_ids("<gizmo>")}
    assert "<gizmo>" not in json.loads((folder / "vocab.json").read_text())
    again = CLIPTokenizer.from_pretrained(folder)
    assert again("a <gizmo> cat").input_ids == tokenizer("a <gizmo> cat").input_ids


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_baked_folder_may_be_read_by_whoever_may_read_its_folder(tmp_path):
    """safetensors gives its files to their owner alone; a server that runs as somebody else could not open them."""
    before = os.umask(0o022)
    try:
        bake(load(tiny.folder("sd1", tmp_path / "source")), [], tmp_path / "baked")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "baked").rglob("*") if file.is_file()} == {0o644}


def test_extra_tokens_have_the_name_that_old_versions_know(tmp_path):
    """transformers 5 writes a list under a name that is a mapping's before: 4.57 broke on it."""
    tokenizer = tiny.t5_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert before["extra_special_tokens"] == []
    tokenizers.keep(tokenizer, tmp_path)
    assert "extra_special_tokens" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(before | {"extra_special_tokens": ["<x>"]}))
    tokenizers.keep(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["additional_special_tokens"] == ["<x>"]
    assert not (tmp_path / "vocab.json").exists()  # T5's is no byte-pair tokenizer


def test_a_source_that_broke_is_told(tmp_path):
    folder = tiny.folder("sd1", tmp_path)
    model = load(folder)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read any more"):
        bake(model, [], tmp_path / "baked")
    assert not (tmp_path / "baked").exists()
