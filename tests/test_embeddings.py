"""Words of textual inversion: taught to the encoders that they fit, usable as targets, refused plainly otherwise."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import save_file

import refact
from refact.errors import ModelError
from refact.methods.refact import ReFACT
from refact.models.embeddings import read
from refact.verification import verify

QUICK = ReFACT(layer=1, contexts=2, negatives=4, max_steps=60, tokens=1500, shrink=1e-2, objective="direct")


def width(pipe) -> int:
    return pipe.text_encoder.config.hidden_size


def test_a_fact_can_be_edited_to_a_learned_word_and_the_patch_stands_alone(tmp_path) -> None:
    pipe = tiny.pipeline("sd1")
    torch.manual_seed(4)
    file = tmp_path / "cat.safetensors"
    save_file({"<my-cat>": 0.05 * torch.randn(3, width(pipe))}, file)
    plain, model = refact.load(tiny.pipeline("sd1")), refact.load(pipe, embeddings=[file])
    edit = refact.Edit("the flag of Canada", new="a <my-cat>")
    patch = QUICK(model, [edit])
    assert verify(model, patch)[0].holds
    assert model.fingerprints() == plain.fingerprints()
    with patch.applied(plain), patch.applied(model):
        ours, others = (m.encoders["text_encoder"].states([edit.prompt]) for m in (model, plain))
    assert torch.equal(ours, others)


def test_all_vectors_of_a_word_are_read_and_end_where_the_sentence_ends(tmp_path) -> None:
    pipe = tiny.pipeline("sd1")
    rows = torch.randn(2, width(pipe))
    save_file({"<it>": rows}, tmp_path / "it.safetensors")
    encoder = refact.load(pipe, embeddings=[tmp_path / "it.safetensors"]).encoders["text_encoder"]
    tokens = encoder.tokenize(["a <it> cat"])
    ids = tokens.ids[0].tolist()
    assert torch.equal(encoder.tower.embeddings.token_embedding.weight[ids[2:4]], rows)
    assert ids[int(tokens.ends[0])] == encoder.tokenizer.eos_token_id
    assert int(tokens.ends[0]) == 5


def test_diffusers_reads_the_same_word(tmp_path) -> None:
    rows = torch.randn(1, width(tiny.pipeline("sd1")))
    save_file({"<it>": rows[0]}, tmp_path / "it.safetensors")
    ours, theirs = refact.load(tiny.pipeline("sd1"), embeddings=[tmp_path / "it.safetensors"]), tiny.pipeline("sd1")
    theirs.load_textual_inversion(tmp_path, weight_name="it.safetensors", token="<it>")
    other = refact.load(theirs)
    prompt = ["a photo of <it> and a cat"]
    assert torch.equal(*(m.encoders["text_encoder"].states(prompt) for m in (ours, other)))


def test_sdxl_has_one_set_of_rows_for_each_encoder(tmp_path) -> None:
    pipe = tiny.pipeline("sdxl")
    one, two = (e.config.hidden_size for e in (pipe.text_encoder, pipe.text_encoder_2))
    if one == two:
        pytest.skip("the tiny encoders are equally wide")
    save_file({"clip_l": torch.ones(1, one), "clip_g": torch.ones(1, two)}, tmp_path / "hero.safetensors")
    model = refact.load(pipe, embeddings=[tmp_path / "hero.safetensors"])
    assert all("hero" in e.tokenizer.get_vocab() for e in model.encoders.values() if e.kind == "clip")


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"<a>": torch.ones(1, 7)}, "7 wide"),
        ({"<a>": torch.ones(1, 8), "<b>": torch.ones(1, 8)}, "is one word"),
        ({"<a>": torch.ones(1, 2, 3)}, "rows of numbers"),
        ({"cat</w>": torch.ones(1, 64)}, "already|wide"),
    ],
)
def test_what_is_no_such_word_is_refused(tmp_path, tensors, why) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=why):
        refact.load(tiny.pipeline("sd1"), embeddings=[tmp_path / "x.safetensors"])


def test_a_pickle_is_refused(tmp_path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(ModelError, match="safetensors"):
        read(tmp_path / "x.bin")


def test_a_word_that_is_learned_anew_makes_a_kept_patch_anew(tmp_path) -> None:
    digests = []
    for seed in (1, 1, 2):
        pipe = tiny.pipeline("sd1")
        torch.manual_seed(seed)
        save_file({"<cat>": 0.05 * torch.randn(1, width(pipe))}, tmp_path / "cat.safetensors")
        model = refact.load(pipe, embeddings=[tmp_path / "cat.safetensors"])
        edit = refact.Edit("the flag of Canada", new="a <cat>")
        digests.append(refact.edit(model, edit, QUICK, kept=tmp_path / "kept").digest)
    assert digests[0] == digests[1] != digests[2]
    assert len(list((tmp_path / "kept").iterdir())) == 2
