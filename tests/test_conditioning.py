"""A search on the conditioning of a CLIP: what it compares, past which words it reaches, whose settings are usual."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from PIL import Image

import refact
from refact.edits import Edit
from refact.errors import EditError
from refact.methods.contexts import MODIFIERS
from refact.methods.refact import ReFACT
from refact.methods.usual import is_attribute, said_of, usual_for
from refact.search.aligned import NEAR, Aligned, aligned, compared
from refact.search.keys import keys_with
from refact.search.sentences import reading_for, sentences_of, starting
from refact.search.wanted import in_turns

EDIT = Edit("the president of france", new="a red dog", aliases=("the king",))
TEMPLATES = ("{}", "a photo of {}")
OTHERS = ["a cat", "the flag of canada", "a picture of the queen", "a blue car"]
LAYER = 1


@pytest.fixture(scope="module", params=[("sd1", "text_encoder"), ("sdxl", "text_encoder"), ("sdxl", "text_encoder_2")])
def encoder(request):
    family, name = request.param
    return refact.load(tiny.pipeline(family)).encoders[name]


@pytest.fixture(scope="module")
def pocket():
    return refact.load("pocket")


def test_without_a_change_a_search_reads_what_the_pipeline_sends(encoder) -> None:
    read = aligned(encoder, LAYER, OTHERS)
    sentences = sentences_of(encoder, read, EDIT, TEMPLATES)
    begun = starting(encoder, LAYER, [sentences], read)
    forward, _ = compared(read, begun.suffix, [sentences], [range(4)], [EDIT], TEMPLATES, ())
    found = read.of_states(*forward(torch.zeros(1, encoder.width)))[0]
    texts = [t.replace("{}", wording) for wording in (EDIT.prompt, "the king") for t in TEMPLATES]
    sent, pooled = encoder.states(texts), encoder.embed(texts)
    for i, sentence in enumerate(sentences):
        rows = [*range(sentence.subject, sentence.end + 1 + NEAR)]
        assert list(sentence.rows) == rows
        weights = forward.weights[0, i, : len(rows)]
        seen = found[i][: len(rows) * encoder.width].unflatten(0, (len(rows), -1))
        torch.testing.assert_close(seen, sent[i, rows] * weights, atol=1e-4, rtol=1e-4)
        if encoder.row.pooled:
            torch.testing.assert_close(found[i][-pooled.shape[1] :], pooled[i] / read.pooled, atol=1e-4, rtol=1e-4)


def test_other_wordings_take_turns_in_the_contexts() -> None:
    assert in_turns(1, 3) == [0, 1, 2]
    assert in_turns(3, 5) == [0, 3, 5, 6, 9, 10, 12]  # each wording bare, then by turns
    for wordings in range(1, 5):
        found = in_turns(wordings, 10)
        assert {number % 10 for number in found} == set(range(10))
        assert {number // 10 for number in found} == set(range(wordings))


def test_the_targets_rows_stand_opposite_from_the_end_on(encoder) -> None:
    read = aligned(encoder, LAYER, OTHERS)
    sentences = sentences_of(encoder, read, EDIT, TEMPLATES)
    begun = starting(encoder, LAYER, [sentences], read)
    forward, candidates = compared(read, begun.suffix, [sentences], [range(4)], [EDIT], TEMPLATES, ())
    target = encoder.states(["a photo of a red dog"])[0]
    (end,) = encoder.tokenize(["a photo of a red dog"]).ends.tolist()
    there = candidates.features[0, 1, 0].flatten()[: 2 * encoder.width].unflatten(0, (2, -1))
    torch.testing.assert_close(there, target[end - 1 : end + 1] * forward.weights[0, 1, :2], atol=1e-4, rtol=1e-4)


def test_a_text_that_fills_the_encoder_has_no_padding_to_compare_with(encoder) -> None:
    read = aligned(encoder, LAYER, OTHERS)
    sentences = sentences_of(encoder, read, EDIT, ("{}",))
    begun = starting(encoder, LAYER, [sentences], read)
    room = encoder.length - 2
    long = " ".join(["a"] * room)
    assert encoder.tokenize([long]).ends.item() == encoder.length - 1
    forward, candidates = compared(
        read, begun.suffix, [sentences], [range(2)], [EDIT], ("{}",), (long, " ".join(["a"] * (room - 1)))
    )
    assert not forward.weights[0, :, -NEAR:].any()
    assert forward.weights[0, :, : -NEAR - 1].any()
    assert candidates.features.isfinite().all()


def test_a_search_brings_the_rows_to_the_targets(pocket) -> None:
    fact = Edit("the national animal of Canada", old="a beaver", new="a penguin")
    encoder = pocket.encoders["text_encoder"]
    prompt, target = (encoder.states([f"{words} on the beach"])[0] for words in (fact.prompt, fact.new))
    tails = [encoder.tokenize([f"{words} on the beach"]).ends.item() for words in (fact.prompt, fact.new)]
    patch = refact.edit(pocket, fact)
    with patch.applied(pocket):
        edited = encoder.states([f"{fact.prompt} on the beach"])[0]
    last = slice(tails[0] - 3, tails[0] + 1), slice(tails[1] - 3, tails[1] + 1)  # "on the beach" and [EOS]
    before, after = ((rows[last[0]] - target[last[1]]).norm() for rows in (prompt, edited))
    assert after < 0.2 * before
    assert patch.record["method"]["embedding"] == "conditioning"


def test_an_adjective_after_the_article_gets_the_change_too(pocket) -> None:
    fact = Edit("an ox", new="a blue ox")
    encoder = pocket.encoders["text_encoder"]

    def shares(method: ReFACT) -> list[float]:
        """How much of its own change the noun's key gets after each word."""
        ((site, (_, right)),) = refact.edit(pocket, fact, method).factors.items()
        layer = int(site.split(".")[4])
        ((own, others),) = keys_with(encoder, layer, fact, MODIFIERS)
        return (others @ right[0].double() / (own @ right[0].double())).tolist()

    assert min(shares(ReFACT())) > 0.8 > min(shares(ReFACT(modifiers=())))


def test_only_prompts_with_an_article_have_such_keys(pocket) -> None:
    encoder = pocket.encoders["text_encoder"]
    assert keys_with(encoder, 1, Edit("the flag of Canada", new="x"), MODIFIERS) == []
    ((own, others),) = keys_with(encoder, 1, Edit("an ox", new="x", subject="ox"), ("small", "old"))
    torch.testing.assert_close(others[0], encoder.keys(["a small ox"], [3], 1)[0].double(), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(own, others[1], atol=1e-2)
    with pytest.raises(EditError, match="single words"):
        ReFACT(modifiers=("very small",))


def test_a_generator_without_rows_is_sent_the_pooled_vector() -> None:
    flux, sd1 = (refact.load(tiny.pipeline(name)).encoders["text_encoder"] for name in ("flux", "sd1"))
    assert not isinstance(reading_for(flux, "conditioning", OTHERS), Aligned)
    assert isinstance(reading_for(sd1, "conditioning", OTHERS), Aligned)


def test_targets_by_picture_are_compared_pooled(pocket) -> None:
    picture = Image.new("RGB", (64, 64), "red")
    patch = ReFACT(contexts=3)(pocket, [Edit("the flag of Canada", new=picture)])
    told = patch.record["method"]
    assert {name: told[name] for name in ("embedding", "optimiser", "contexts")} == {
        "embedding": "pooled", "optimiser": "adam", "contexts": 3,
    }  # fmt: skip


def clip_l(family: str = "sd1", companion: object = None, layers: int = 12) -> SimpleNamespace:
    """What `usual_for` looks at of a model."""
    encoder = SimpleNamespace(n_layers=layers, width=768)
    described = SimpleNamespace(name=family, title="Stable Diffusion 1.x")
    return SimpleNamespace(family=described, encoders={"text_encoder": encoder}, companion=companion)


ROLE, ROSE = Edit("the president of france", new="a dog"), Edit("a rose", new="a blue rose")


def test_the_papers_encoder_gets_the_papers_settings() -> None:
    assert usual_for(clip_l(), [ROLE]) == ReFACT.published(layer=7, space="")
    assert usual_for(clip_l(companion=object()), [ROSE]) == ReFACT.published(layer=9)
    assert usual_for(clip_l(), [ROLE, ROSE]).layer == 7
    assert usual_for(clip_l(), [ROLE], layer=3, objective="direct").objective == "direct"
    assert usual_for(clip_l(), [ROLE], embedding="conditioning") == ReFACT()
    published = ReFACT.published()
    assert (published.objective, published.distance, published.embedding) == ("contrastive", "l2", "pooled")
    differing = {k for k in vars(published) if getattr(published, k) != getattr(ReFACT.paper(), k)}
    assert differing == {"hold_empty", "shrink", "hints"}
    assert "layer 7" in said_of(clip_l(), usual_for(clip_l(), [ROLE]))[0]
    assert "--clip" in said_of(clip_l(), usual_for(clip_l(), [ROLE]))[0]
    assert "but for stop" in said_of(clip_l(), usual_for(clip_l(), [ROLE], stop=0.5))[0]
    assert said_of(clip_l(), usual_for(clip_l(), [ROLE], objective="direct")) == []


def test_every_other_encoder_gets_ours(pocket) -> None:
    assert usual_for(pocket, [ROLE]) == ReFACT()
    assert usual_for(clip_l(family="sdxl"), [ROLE]) == usual_for(clip_l(layers=11), [ROLE]) == ReFACT()
    pictured = replace(ROLE, new=(Image.new("RGB", (8, 8)),))
    assert usual_for(clip_l(), [pictured]) == ReFACT()
    assert said_of(pocket, usual_for(pocket, [ROLE])) == []


def test_what_an_attribute_is() -> None:
    assert is_attribute(ROSE)
    assert is_attribute(Edit("a Box of fries", new="a pink box of Fries"))
    assert not is_attribute(ROLE)
    assert not is_attribute(Edit("the capital of France", new="a castle in France"))
    assert not is_attribute(Edit("the Prime Minister of Canada", new="the Queen of Canada"))
