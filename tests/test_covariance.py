"""Covariances against numpy on explicit keys; files, caches; and the captions they are taken over."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import refact
from refact.cli.main import app
from refact.encoders.encoder import TextEncoder
from refact.errors import DataError
from refact.models import corpus, covariance
from refact.models.corpus import captions, plural, read_corpus
from refact.models.covariance import Covariance, collect, corpus_label, obtain, obtain_all
from refact.models.model import load
from refact.writing.held import covariance_of

TEXTS = ["a photo of the president of France", "a cat", "", "the flag of Canada and a dog " * 12, "a red phone"] * 3


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load(tiny.pipeline("sd2")).encoders["text_encoder"]  # whose padding is not its [EOS]


def explicit(encoder: TextEncoder, texts: list[str], layer: int, padding: bool) -> tuple[np.ndarray, int]:
    """E[k k^T] in float64, from a full-length forward of each text by itself."""
    total, count = np.zeros((96, 96)), 0
    for text in texts:
        tokens = encoder.tokenizer(
            [text], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        seen = []
        handle = encoder.linear(layer).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            encoder.module(tokens)
        handle.remove()
        end = tokens[0].tolist().index(encoder.tokenizer.eos_token_id)
        keys = seen[0][0].double().numpy()[: 77 if padding else end + 1]
        total, count = total + keys.T @ keys, count + len(keys)
    return total / count, count


@pytest.mark.parametrize("padding", [False, True])
def test_it_is_the_mean_of_the_outer_products_of_all_keys(encoder, padding):
    found = collect(encoder, [0, 2], TEXTS, padding=padding, corpus_name="mine")
    for layer in (0, 2):
        matrix, count = explicit(encoder, TEXTS, layer, padding)
        made = found[layer]
        assert (made.tokens, made.site, made.encoder) == (count, encoder.site(layer), encoder.hash())
        assert (made.corpus, made.padding, made.matrix.dtype) == ("mine", padding, torch.float64)
        np.testing.assert_allclose(made.matrix.numpy(), matrix, rtol=1e-5, atol=1e-6)
        assert torch.equal(made.matrix, made.matrix.T)


def test_with_rarity_one_every_token_counts_as_much_as_any_other(encoder):
    made = collect(encoder, [1], TEXTS, rarity=1.0)[1]
    tokens, by_token = encoder.tokenize(TEXTS), {}
    for text, ids, end in zip(TEXTS, tokens.ids.tolist(), tokens.ends.tolist()):
        for token, key in zip(ids, encoder.keys([text] * (end + 1), range(end + 1), 1).double()):
            by_token.setdefault(token, []).append(torch.outer(key, key))
    means = [torch.stack(products).mean(0) for products in by_token.values()]
    torch.testing.assert_close(made.matrix, torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)


def test_layers_batches_and_order_make_no_difference(encoder, monkeypatch):
    both, one = collect(encoder, [2, 1], TEXTS)[1], collect(encoder, [1], TEXTS)[1]
    assert torch.equal(both.matrix, one.matrix)
    monkeypatch.setattr("refact.encoders.encoder.BATCH_TOKENS", 30)
    torch.testing.assert_close(collect(encoder, [1], TEXTS[::-1])[1].matrix, one.matrix, rtol=1e-5, atol=1e-6)


def test_a_t5_counts_its_keys_too():
    t5 = load(tiny.pipeline("flux"), encoders=["text_encoder_2"]).encoders["text_encoder_2"]
    texts = ["the president of france", "a cat"]
    made = collect(t5, [1], texts)[1]
    ends = t5.tokenize(texts).ends.tolist()
    keys = torch.cat([t5.keys([text] * (end + 1), range(end + 1), 1) for text, end in zip(texts, ends)]).double()
    assert made.tokens == len(keys)
    torch.testing.assert_close(made.matrix, keys.T @ keys / len(keys), rtol=1e-5, atol=1e-6)


def test_progress_and_an_empty_corpus(encoder):
    seen = []
    collect(encoder, [1], TEXTS, progress=lambda items, *more: seen.append((len(list(items)), *more)) or items)
    assert seen[0][0] == seen[0][2] > 0
    assert "layers.1.mlp.fc2" in seen[0][1]
    with pytest.raises(DataError, match="needs texts"):
        collect(encoder, [1], [])


def test_shrinking_adds_a_share_of_the_mean_variance(encoder):
    made = collect(encoder, [1], TEXTS[:2])[1]  # fewer keys than dimensions: singular
    assert np.linalg.matrix_rank(made.matrix.numpy(), tol=1e-5) < 20
    shrunk = made.shrunk(0.01).numpy()
    np.testing.assert_allclose(shrunk - made.matrix.numpy(), 0.01 * np.trace(made.matrix) / 96 * np.eye(96), atol=1e-12)
    assert np.linalg.eigvalsh(shrunk).min() > 0


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(encoder, tmp_path):
    made = collect(encoder, [1], TEXTS, corpus_name="mine", rarity=0.5)[1]
    made.save(tmp_path / "new" / "one.safetensors")
    back = Covariance.load(tmp_path / "new" / "one.safetensors")
    assert torch.equal(back.matrix, made.matrix)
    assert back.hash() == made.hash()
    fields = ("tokens", "site", "encoder", "corpus", "padding", "rarity")
    assert [getattr(back, f) for f in fields] == [getattr(made, f) for f in fields]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["one.safetensors"]
    made.save(tmp_path / "new" / "two.safetensors")
    assert (tmp_path / "new" / "two.safetensors").read_bytes() == (tmp_path / "new" / "one.safetensors").read_bytes()


def test_a_hash_follows_the_matrix(encoder):
    one, other = collect(encoder, [1], TEXTS)[1], collect(encoder, [1], TEXTS[:4])[1]
    assert one.hash() != other.hash()
    assert re.fullmatch("[0-9a-f]{16}", one.hash())


@pytest.mark.parametrize("content", [b"", b"nonsense", "no key", "short"])
def test_what_is_no_covariance_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    header = {
        "refact_covariance": '{"size": 4, "tokens": 1, "site": "", "encoder": "", "corpus": "", "padding": false}'
    }
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file({"triangle": torch.ones(3)}, path, metadata=header if content == "short" else None)
    with pytest.raises(DataError, match="is no covariance"):
        Covariance.load(path)


def never(*_, **__):
    pytest.fail("it was computed again")


def test_the_second_time_it_is_read_from_the_cache(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path))
    first = obtain(encoder, 1, tokens=500)
    assert first.tokens >= 500
    assert first.corpus == corpus.VERSION
    monkeypatch.setattr(covariance, "collect", never)
    second = obtain(encoder, 1, tokens=500)
    assert torch.equal(first.matrix, second.matrix)
    assert first.hash() == second.hash()
    for other in ({"tokens": 501}, {"padding": True, "tokens": 500}, {"layer": 2, "tokens": 500}):
        with pytest.raises(pytest.fail.Exception):
            obtain(encoder, **({"layer": 1} | other))


def test_missing_layers_are_computed_in_one_pass(encoder, tmp_path, monkeypatch):
    one = obtain(encoder, 2, tokens=300, cache=tmp_path)
    calls = []
    real = covariance.collect
    monkeypatch.setattr(covariance, "collect", lambda e, layers, *more: calls.append(layers) or real(e, layers, *more))
    found = obtain_all(encoder, [0, 1, 2], tokens=300, cache=tmp_path)
    assert calls == [[0, 1]]
    assert torch.equal(found[2].matrix, one.matrix)
    assert sorted(found) == [0, 1, 2]


def test_enough_texts_for_the_tokens(encoder, tmp_path):
    made = obtain(encoder, 0, tokens=1000, cache=tmp_path)
    longest = max(encoder.tokenize(captions(200)).ends.tolist()) + 1
    assert 1000 <= made.tokens < 1000 + longest
    padded = obtain(encoder, 0, tokens=1000, padding=True, cache=tmp_path)
    assert padded.tokens == 77 * 13


def test_the_bundled_one_is_used_where_it_has_enough_tokens(encoder, tmp_path, monkeypatch):
    folder = tmp_path / "covariance"
    made = collect(encoder, [1], TEXTS, corpus_name=corpus.VERSION)[1]
    for tokens in (400, 900):
        made.save(folder / covariance.file_name(encoder.hash(), 1, corpus.VERSION, tokens, False))
    monkeypatch.setenv("REFACT_POCKET", str(tmp_path))
    assert covariance.bundled(encoder.hash(), 1, corpus.VERSION, 300, False).name.endswith("-400.safetensors")
    assert covariance.bundled(encoder.hash(), 1, corpus.VERSION, 500, False).name.endswith("-900.safetensors")
    assert covariance.bundled(encoder.hash(), 1, corpus.VERSION, 901, False) is None
    assert covariance.bundled(encoder.hash(), 2, corpus.VERSION, 300, False) is None
    assert covariance.bundled(encoder.hash(), 1, corpus.VERSION, 300, True) is None
    monkeypatch.setattr(covariance, "collect", never)
    assert torch.equal(obtain(encoder, 1, tokens=800, cache=tmp_path / "none").matrix, made.matrix)


def test_a_users_corpus_is_told_apart_by_its_content(encoder, tmp_path):
    path = tmp_path / "my texts.txt"
    path.write_text("a cat\na dog on a red phone\n\n")
    one = obtain(encoder, 1, corpus=str(path), cache=tmp_path)
    assert (one.tokens, one.corpus[:13]) == (4 + 8, "my_texts.txt-")
    path.write_text("a cat\n")
    assert obtain(encoder, 1, corpus=str(path), cache=tmp_path).hash() != one.hash()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"REFACT_CACHE": "/a/b"}, "/a/b"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/refact"),
        ("linux", {"HOME": "/h"}, "/h/.cache/refact"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Caches/refact"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/refact"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, platform, variables, expected):
    for name in ("REFACT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert covariance.cache_folder() == Path(expected)


# -- captions ---------------------------------------------------------------------------------------------------------


def test_captions_are_the_same_every_time():
    assert captions(50, seed=3) == captions(80, seed=3)[:50]
    assert captions(50, seed=3) != captions(50, seed=4)
    assert captions(0) == []


def test_captions_are_many_and_varied():
    started = time.process_time()
    made = captions(100_000)
    assert time.process_time() - started < 10
    assert len(set(made)) > 95_000
    lengths = [len(text.split()) for text in made]
    assert sum(5 <= n <= 20 for n in lengths) / len(lengths) > 0.9
    lists = {name: words for name, (words, _) in corpus._words().items()}
    assert len(set(lists["noun"])) >= 1500
    assert len({*lists["persons"], *lists["land"]}) >= 300
    assert len({*lists["styles"], *lists["adjectives"]}) >= 200
    assert any(re.search(r"\bthe president of \w", text) for text in made)


def test_captions_are_correct_english():
    text = "\n".join(captions(60_000))
    assert not re.search(r"[{}_+]|  |\n,|,,", text)
    assert not re.search(r"\ba (?!eu|one|uni|use|ute|uku)[aeiou]", text)
    assert not re.search(r"\ban [bcdfgjklmnpqrstvwyz]", text)
    for wrong in (" a hour", " an unicycle", " an ukulele", " an utensil", " mans ", " childs ", " mouses "):
        assert wrong not in text
    for right in ("an hourglass", "a unicycle", "a ukulele", "an apple"):
        assert right in text


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"),
        ("fire truck", "fire trucks"),
        ("old woman", "old women"),
        ("ottoman", "ottomans"),
        ("berry", "berries"),
        ("monkey", "monkeys"),
        ("church", "churches"),
        ("fox", "foxes"),
        ("dress", "dresses"),
        ("child", "children"),
        ("sheep", "sheep"),
        ("goldfish", "goldfish"),
        ("ball of wire", "balls of wire"),
        ("pocket knife", "pocket knives"),
    ],
)
def test_plurals(one, many):
    assert plural(one) == many


def test_texts_of_a_file_and_of_a_column(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone  cat\n\ntwo\tdogs\n", encoding="utf-8")
    assert list(read_corpus(tmp_path / "a.txt")) == ["one cat", "two dogs"]
    (tmp_path / "b.csv").write_text('id,Caption,other\n1,"a, cat",x\n2,,y\n3,"two\nlines",z\n')
    assert list(read_corpus(tmp_path / "b.csv")) == ["a, cat", "two lines"]
    assert list(read_corpus(f"{tmp_path}/b.csv:other")) == ["x", "y", "z"]
    (tmp_path / "c.csv").write_text("whatever\na cat\n")
    assert list(read_corpus(tmp_path / "c.csv")) == ["a cat"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.txt", "no such file"),
        ("nowhere", "no such file"),
        ("{tmp}/b.csv", "which column"),
        ("{tmp}/b.csv:three", "it has one, two"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused(tmp_path, name, message):
    (tmp_path / "b.csv").write_text("one,two\n1,2\n")
    with pytest.raises(DataError, match=message):
        list(read_corpus(name.format(tmp=tmp_path)))


def test_stats_are_those_that_edits_of_the_model_ask_for(tmp_path, monkeypatch) -> None:
    """Down to the name of the file: by default of the usual method, with --method of the one that is named."""
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path))
    run = CliRunner()
    assert run.invoke(app, ["stats", "--layer", "2", "--tokens", "2000", "--quiet"]).exit_code == 0
    more = ["--method", "refact:published:tokens=2000"]
    assert run.invoke(app, ["stats", "--layer", "2", *more, "--quiet"]).exit_code == 0
    model = refact.load("pocket", device="cpu")
    encoder = model.encoders["text_encoder"]
    for how in (refact.ReFACT(tokens=2000), refact.ReFACT.published(tokens=2000)):
        before = set(tmp_path.rglob("*"))
        assert covariance_of(how, model, encoder, 2)[0] is not None
        assert set(tmp_path.rglob("*")) == before
    refused = run.invoke(app, ["stats", "--method", "uce"])
    assert "uses no covariance" in str(refused.exception)


def test_corpora_that_begin_alike_have_names_of_their_own(tmp_path):
    hub = "hf:ChristophSchuhmann/MS_COCO_2017_URL_TEXT:"
    (table := tmp_path / "t.csv").write_text("a,b\none,two\n")
    names = [corpus_label(c) for c in (hub + "TEXT", hub + "URL", "hf:a/b_c", "hf:a_b/c", f"{table}:a", f"{table}:b")]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]{1,60}", name) for name in names)
