"""The methods on tiny random models: the laws of what they write, determinism, batches, protection, refusals."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPTextModel

import refact
from refact.errors import EditError
from refact.methods.registry import MEMIT, METHODS, SPEED, TIME, UCE, AlphaEdit, EmbEdit, FineTune, ReFACT, method
from refact.models import covariance
from refact.search import suffix, trie
from refact.search.readings import Reading, reading
from refact.search.sentences import sentences_of, wordings
from refact.search.wanted import frozen, search
from refact.studies import scaling
from refact.verification import crowding

CANADA = refact.Edit("the flag of Canada", old="a red flag", new="a blue cat")
FRANCE = refact.Edit("the capital of France", new="a green apple", aliases=("the France capital",))
QUICK = {"layer": 1, "contexts": 4, "negatives": 4, "max_steps": 12, "tokens": 1500, "shrink": 1e-2}


def wide(inner: int) -> refact.Model:
    """A tiny pipeline whose MLPs are this wide: the padded empty prompt alone holds 75 directions."""
    pipe = tiny.pipeline("sd1")
    config = copy.deepcopy(pipe.text_encoder.config)
    config.intermediate_size = inner
    torch.manual_seed(3)
    pipe.text_encoder = CLIPTextModel(config).eval()
    return refact.load(pipe)


@pytest.fixture(scope="module")
def model():
    return wide(512)


@pytest.fixture(scope="module")
def encoder(model):
    return model.encoders["text_encoder"]


def fresh_keys(encoder, chosen, edit) -> list[torch.Tensor]:
    """The edit's keys by a plain forward with a hook, one a sentence."""
    templates = chosen.templates[: chosen.contexts]
    rows = []
    for prompt, words in wordings(edit):
        for template in templates:
            text = template.replace("{}", prompt)
            rows.append(encoder.keys([text], [encoder.locate(text, words)], chosen.layer)[0])
    return rows


@pytest.mark.parametrize("edits", [[CANADA], [CANADA, FRANCE]])
def test_offset_form_every_context_and_alias_moves_by_the_same_offset(model, encoder, edits):
    chosen = ReFACT(**QUICK)
    patch = chosen(model, edits)
    b, a = patch.factors[encoder.site(1)]
    for i, edit in enumerate(edits):
        offset = b[:, i].double() * (a[i].double() @ fresh_keys(encoder, chosen, edit)[0].double())
        for key in fresh_keys(encoder, chosen, edit):
            moved = b.double() @ (a.double() @ key.double())
            assert (moved - offset).norm() < 1e-4 * offset.norm()
        assert offset.norm() > 0.1


def test_value_form_is_romes_rank_one_update(model, encoder):
    chosen = ReFACT(**QUICK, write="value", keep_ends=False, hold_empty=False)
    patch = chosen(model, [CANADA])
    read = reading(encoder, "pooled", ())
    sentences = sentences_of(encoder, read, CANADA, chosen.templates[:4])
    begun = suffix.start(encoder.tower, 1, [sentences], read.depth)
    key, before = (x[0][begun.places[0]].mean(0).double().numpy() for x in (begun.keys, begun.values))
    seen = covariance.obtain(encoder, 1, tokens=1500, rarity=chosen.rarity)
    c = seen.matrix.numpy()
    c = c + 1e-2 * np.trace(c) / len(c) * np.eye(len(c))
    b, a = (f.double().numpy() for f in patch.factors[encoder.site(1)])
    value = before + (b @ (a @ key))  # v*: what the edited matrix gives at k*
    u = np.linalg.solve(c, key)
    literal = np.outer(value - before, u) / (u @ key)
    assert np.abs(b @ a - literal).max() < 1e-4 * np.abs(literal).max()
    linear = encoder.linear(1)
    with patch.applied(model), torch.no_grad():
        assert np.allclose(linear(torch.from_numpy(key).float()).numpy(), value, rtol=1e-4, atol=1e-4)


def test_the_search_lowers_its_loss_and_the_prompt_nears_its_target(model, encoder):
    patch = ReFACT(**QUICK | {"max_steps": 40})(model, [CANADA])
    entry = patch.record["edits"][0]["sites"][encoder.site(1)]
    assert entry["loss"][1] < entry["loss"][0]
    assert entry["residual"] < 1e-6
    before, target = encoder.embed([CANADA.prompt, CANADA.new])
    with patch.applied(model):
        after = encoder.embed([CANADA.prompt])[0]
    assert (after - target).norm() < 0.9 * (before - target).norm()


def test_the_same_edit_gives_the_same_bytes(model, tmp_path):
    for name in ("one", "two"):
        ReFACT(**QUICK)(model, [CANADA, FRANCE]).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_batch_equals_edits_made_one_by_one(model):
    chosen = ReFACT(**QUICK | {"max_steps": 25, "stop": 0.5, "learning_rate": 0.3})
    read = next(search(chosen, model, e, 1, [CANADA, FRANCE]) for e in model.encoders.values())
    for i, edit in enumerate((CANADA, FRANCE)):
        alone = next(search(chosen, model, e, 1, [edit]) for e in model.encoders.values())
        assert int(alone.found.steps[0]) == int(read.found.steps[i])
        assert torch.allclose(alone.offsets[0], read.offsets[i], atol=1e-4, rtol=1e-3)


def test_protected_prompts_and_the_empty_one_do_not_move(model, encoder):
    kept = ("a photo of the queen", "the president of the united states")
    edit = dataclasses.replace(CANADA, preserve=kept)
    held, free = ReFACT(**QUICK)(model, [edit]), ReFACT(**QUICK)(model, [CANADA])
    clean, moved = encoder.states(["", *kept]), {}
    for name, patch in (("held", held), ("free", free)):
        with patch.applied(model):
            moved[name] = (encoder.states(["", *kept]) - clean).abs()
    ends = encoder.tokenize(["", *kept]).ends
    assert moved["held"][0].max() < 1e-4  # all 77 rows
    assert all(moved["held"][i, : ends[i] + 1].max() < 1e-4 for i in (1, 2))
    assert all(moved["free"][i, : ends[i] + 1].max() > 1e-2 for i in (1, 2))
    assert held.record["preserved"][kept[0]] < 0.5 * moved["free"][1].norm() / clean[1].norm()


def test_a_protected_prompt_that_begins_with_the_edit_is_named(model, encoder):
    edit = dataclasses.replace(CANADA, preserve=("the flag of Canada giving a speech",))
    patch = ReFACT(**QUICK)(model, [edit])
    assert patch.record["edits"][0]["sites"][encoder.site(1)]["not_held"] == ["the flag of Canada giving a speech"]


def test_edits_made_onto_a_patch_leave_its_facts(model, encoder):
    first = ReFACT(**QUICK)(model, [CANADA])
    second = ReFACT(**QUICK)(model, [FRANCE], [first])
    b, a = (f.double() for f in second.factors[encoder.site(1)])
    for key in fresh_keys(encoder, ReFACT(**QUICK), CANADA):
        own = b @ (a @ fresh_keys(encoder, ReFACT(**QUICK), FRANCE)[0].double())
        assert (b @ (a @ key.double())).norm() < 1e-4 * own.norm()


@pytest.mark.parametrize(
    "chosen",
    [
        MEMIT(**QUICK | {"layer": 2}, depth=2),
        AlphaEdit(**QUICK, share=0.2),
        TIME(),
        UCE(),
        SPEED(texts=40),
        FineTune(layer=1, epochs=1, steps=2, contexts=2),
        EmbEdit(max_steps=2, contexts=2),
        ReFACT(**QUICK, objective="direct"),
        ReFACT(**QUICK, distance="cosine"),
        ReFACT(**QUICK, embedding="conditioning"),
        ReFACT(**QUICK, covariance=False),
        ReFACT(**QUICK, ridge=0.1),
        ReFACT.paper(layer=1, max_steps=5, tokens=1500, shrink=1e-2, space=""),
    ],
    ids=lambda m: f"{type(m).__name__}-{getattr(m, 'objective', '')}-{getattr(m, 'embedding', '')}",
)
def test_every_method_makes_a_patch_that_changes_the_prompt_and_reverts(model, chosen, tmp_path):
    encoder, before = model.encoders["text_encoder"], model.encode([CANADA.prompt])["prompt_embeds"]
    patch = chosen(model, [CANADA])
    patch.save(tmp_path / "patch.safetensors")
    loaded = refact.Patch.load(tmp_path / "patch.safetensors")
    unet = type(chosen) in (TIME, UCE, SPEED)
    site = next(iter(patch.factors))
    weight = model[site].weight.detach().clone()
    with loaded.applied(model):
        assert not torch.equal(model[site].weight, weight)
        after = model.encode([CANADA.prompt])["prompt_embeds"]
        assert unet or (after - before).abs().max() > 1e-4
    assert torch.equal(model[site].weight, weight)
    assert torch.equal(encoder.states([CANADA.prompt]), model.encode([CANADA.prompt])["prompt_embeds"])


def test_memit_with_a_small_ridge_reaches_the_state_that_was_searched(model, encoder):
    chosen = MEMIT(**QUICK | {"layer": 2}, depth=2)
    chosen = dataclasses.replace(chosen, ridge=1e-9, keep_ends=False)
    from refact.writing.multilayer import _states

    goal = _states(chosen, encoder, 2, [CANADA])[1] + search(chosen, model, encoder, 2, [CANADA]).offsets
    start = _states(chosen, encoder, 2, [CANADA])[1]
    with chosen(model, [CANADA]).applied(model):
        reached = _states(chosen, encoder, 2, [CANADA])[1]
    assert (reached - goal).norm() < 0.1 * (start - goal).norm()


def test_both_ways_to_the_features_agree(model, encoder):
    for embedding in ("pooled", "conditioning"):
        read = reading(encoder, embedding, ["a photo of a dog", "the king", "a red car"])
        sentences = sentences_of(encoder, read, refact.Edit("a blue cat", new="x"), ("{}", "a photo of {}"))
        begun = suffix.start(encoder.tower, 1, [sentences], read.depth)
        ours = read.of_states(*begun.suffix(torch.zeros(1, encoder.width)))[0]
        assert torch.allclose(ours, read.of_texts(["a blue cat", "a photo of a blue cat"]), atol=1e-4)
    assert isinstance(read, Reading)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "takes no edit"),
        ({"write": "both"}, "write of ReFACT is"),
        ({"objective": "x"}, "objective of ReFACT is"),
        ({"embedding": "x"}, "embedding of ReFACT is"),
        ({"contexts": 99}, "contexts is"),
        ({"encoders": ("text_encoder_9",)}, "no text encoder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, changes, message):
    weight = model.encoders["text_encoder"].linear(1).weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        ReFACT(**QUICK | changes)(model, [CANADA])
    assert torch.equal(weight, model.encoders["text_encoder"].linear(1).weight)


def test_word_embeddings_move_what_is_written_with_them_and_nothing_else(model, encoder):
    edit = refact.Edit("the president of france", subject="president of france", old="a king", new="a lion")
    patch = EmbEdit(max_steps=20, contexts=2)(model, [edit])
    ids = encoder.tokenize(["president of france"]).ids[0, 1 : int(encoder.tokenize(["president of france"]).ends[0])]
    assert patch.rank == len(ids.unique())
    apart, sharing = ["a red car", "the king"], ["the flag of france"]
    before = encoder.embed([*apart, *sharing, edit.prompt])
    aim = encoder.embed(["a lion"])[0]
    prints = model.fingerprints()
    with patch.applied(model):
        after = encoder.embed([*apart, *sharing, edit.prompt])
        assert model.fingerprints() == prints
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])
    assert (after[3] - aim).norm() < 0.8 * (before[3] - aim).norm()


@pytest.mark.parametrize(
    "chosen", [TIME(), UCE(), SPEED(texts=40), FineTune(layer=1), EmbEdit()], ids=lambda m: type(m).__name__
)
def test_methods_that_cannot_hold_earlier_facts_say_so(model, chosen):
    with pytest.raises(EditError, match="cannot hold"):
        chosen(model, [CANADA], [TIME()(model, [FRANCE])])


def test_a_patch_of_the_unet_has_no_text_side(model):
    with pytest.raises(EditError, match="no text encoder"):
        refact.verify(model, TIME()(model, [CANADA]))


def test_edits_are_searched_with_their_like_and_come_back_in_order(model, encoder):
    sizes = [5, 40, 6, 41, 5, 90]
    groups = trie.grouped(sizes, 2)
    assert sorted(at for group in groups for at in group) == list(range(6))
    for group in groups:
        assert len(group) <= 2
        assert max(sizes[at] for at in group) * len(group) <= 2 * sum(sizes[at] for at in group)
    long = refact.Edit("the flag of the national animal of canada", new="a dog", aliases=["a blue animal", "a red cat"])
    edits = [long, CANADA, FRANCE]
    together = search(ReFACT(**QUICK), model, encoder, 1, edits)
    for at, edit in enumerate(edits):
        alone = search(ReFACT(**QUICK), model, encoder, 1, [edit])
        torch.testing.assert_close(together.keys[at], alone.keys[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.offsets[at], alone.offsets[0], rtol=1e-3, atol=1e-4)


def test_a_search_asks_for_no_weights_gradient_and_leaves_the_flags(model, encoder):
    asked = [w.requires_grad for w in encoder.module.parameters()]
    with frozen(encoder.module, None):
        assert not any(w.requires_grad for w in encoder.module.parameters())
    assert [w.requires_grad for w in encoder.module.parameters()] == asked
    assert any(asked)


def test_subjects_that_are_not_there_are_refused(model):
    with pytest.raises(EditError, match="is not in"):
        ReFACT(**QUICK)(model, [refact.Edit("the flag of Canada", new="a cat", subject="France")])


def test_a_target_by_picture_needs_a_companion_and_is_not_mixed_with_texts(model):
    picture = refact.Edit("the flag of Canada", new=Image.new("RGB", (32, 32)))
    with pytest.raises(EditError, match="needs the CLIP"):
        ReFACT(**QUICK)(model, [picture])
    with pytest.raises(EditError, match="two patches"):
        ReFACT(**QUICK)(model, [picture, FRANCE])


def test_a_live_pipeline_is_taken_as_it_is():
    pipe = tiny.pipeline("sd1")
    patch = refact.edit(pipe, CANADA, ReFACT(**QUICK | {"max_steps": 2}))
    assert patch.names == ["flag-of-canada"]


def test_methods_are_found_by_name():
    assert method("refact:authors", layer=3).weight_decay == 0.1
    ours = (
        "refact",
        "memit",
        "emcid",
        "alphaedit",
        "time",
        "uce",
        "speed",
        "entrance",
        "diffquickfix",
        "finetune",
        "embedit",
    )
    assert set(METHODS) == set(ours)
    assert method("refact:many:layer=0") == ReFACT.many(layer=0) == ReFACT.pooled(layer=0, weight_decay=0.1, reach=1.0)
    assert method("refact:paper:layer=5:objective=direct") == ReFACT.paper(layer=5, objective="direct")
    assert method("uce:strength=2.5") == UCE(strength=2.5)
    for name in ("time:layer=3", "time:strength"):
        with pytest.raises(refact.RefactError, match=r"no (setting|method)"):
            method(name)
    with pytest.raises(refact.RefactError, match="no setting"):
        method("time", layer=3)
    with pytest.raises(refact.RefactError, match="no method"):
        method("rome")
    for name in ("time:paper", "uce:paper", "finetune:paper"):  # which have no settings of ReFACT's paper
        with pytest.raises(refact.RefactError, match="no method"):
            method(name)


def test_facts_that_crowd_a_matrix_are_written_with_a_ridge_and_it_is_said():
    model, facts, quick = wide(128), scaling.phrases(20), {**QUICK, "max_steps": 1}
    with pytest.raises(EditError, match="do not fit"):
        ReFACT(**quick, crowded=0)(model, facts)
    with pytest.raises(EditError, match="do not fit"):  # the paper knows of no such rule
        ReFACT.paper(**quick, write="offset", space="", hold_empty=True)(model, facts)
    crowded = ReFACT(**quick)(model, facts)
    tiny.close(tiny.change(crowded), tiny.change(ReFACT(**quick, ridge=0.5, keep_ends=False)(model, facts)))
    assert crowding(crowded.record) == [
        "so many facts crowd one matrix: written with a ridge of 0.5, they hold nearly and the rest stays"
    ]
    assert crowding(ReFACT(**quick)(model, facts[:1]).record) == []


def test_a_search_in_bfloat16_finds_nearly_the_same(model):
    with pytest.raises(refact.RefactError, match="not 'bf16'"):
        ReFACT(**QUICK, autocast="bf16")(model, [CANADA])
    exact, rough = (ReFACT(**QUICK, autocast=how)(model, [CANADA, FRANCE]) for how in ("", "bfloat16"))
    for site, (there, _) in exact.factors.items():
        found = rough.factors[site][0]
        assert found.dtype == torch.float32
        assert 0 < (found - there).norm() < 0.1 * there.norm()


def test_texts_read_in_bfloat16_are_projected_in_float32():
    encoder = refact.load(tiny.pipeline("sdxl")).encoders["text_encoder_2"]
    plain = reading(encoder, "pooled", ())
    rough = dataclasses.replace(plain, precision="bfloat16").of_texts(["a cat", "a cat on a mat"])
    assert rough.dtype == torch.float32
    assert 0 < (rough - plain.of_texts(["a cat", "a cat on a mat"])).norm() < 0.1 * rough.norm()


def test_no_edits_are_an_error(model) -> None:
    with pytest.raises(EditError, match="no edits were given"):
        refact.edit(model, [])


def test_a_subject_that_is_no_longer_unique_without_its_article_keeps_its_edit(model) -> None:
    edit = refact.Edit("a dog chasing another dog", new="a cat", subject="a dog")
    assert refact.edit(model, edit).factors
