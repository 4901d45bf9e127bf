"""Edits of a T5: the forward with an offset is the hooked one, the fact holds in its states, the rest of it stays."""

from __future__ import annotations

import pytest
import tiny
import torch

import refact
from refact.encoders import hooks
from refact.errors import EditError
from refact.methods.registry import MEMIT, FineTune, ReFACT
from refact.patch import Patch
from refact.search import bidirectional
from refact.search.keys import keys_of
from refact.search.readings import Reading
from refact.search.sentences import sentences_of

PARTS = [("flux", "text_encoder_2"), ("sd3", "text_encoder_3")]
EDIT = refact.Edit("the flag of Canada", old="a red flag", new="a blue cat", aliases=("the Canada flag",))


def quick(part: str, **more) -> ReFACT:
    settings = {"layer": 1, "contexts": 2, "negatives": 4, "max_steps": 80, "tokens": 1500, "shrink": 1e-2}
    return ReFACT(encoders=(part,), **settings, objective="direct", **more)


@pytest.fixture(scope="module", params=PARTS, ids=lambda p: p[0])
def opened(request):
    name, part = request.param
    model = refact.load(tiny.pipeline(name), encoders=[part])
    return model, model.encoders[part]


def test_its_forward_is_the_plain_one_with_the_offset_added_at_the_subject(opened) -> None:
    _, encoder = opened
    sentences = sentences_of(encoder, Reading(encoder, None), EDIT, ("{}", "a photo of {}"))
    begun = bidirectional.start(encoder, 1, [sentences, sentences[:1]])
    offsets = torch.randn(2, encoder.width)
    _, pooled = begun.suffix(offsets)
    for row, sentence in enumerate(sentences):

        def added(output, _, at=sentence.subject):
            output[:, at] += offsets[0]
            return output

        with hooks.replace(encoder.linear(1), added), torch.no_grad():
            states = encoder.tower(torch.tensor([sentence.ids]))[0]
        torch.testing.assert_close(pooled[0, row], states[0, : sentence.end + 1].mean(0), rtol=1e-5, atol=1e-5)
    assert [len(keys) for keys in begun.keys] == [4, 1]
    torch.testing.assert_close(begun.suffix.select(torch.tensor([1]))(offsets[1:])[1][0], pooled[1])


def test_the_fact_holds_in_its_states_and_the_patch_is_a_file(opened, tmp_path) -> None:
    model, encoder = opened
    patch = quick(encoder.name)(model, [EDIT])
    patch.save(tmp_path / "t5.safetensors")
    asked, clean = [EDIT.prompt, *EDIT.aliases], encoder.embed([EDIT.new, EDIT.old])
    with Patch.load(tmp_path / "t5.safetensors").applied(model):
        edited = encoder.embed(asked)
    assert ((edited - clean[0]).norm(dim=1) < (edited - clean[1]).norm(dim=1)).all()
    assert patch.record["preserved"][""] < 0.05


def test_every_context_moves_by_the_same_offset(opened) -> None:
    model, encoder = opened
    patch = quick(encoder.name)(model, [EDIT])
    ((left, right),) = patch.factors.values()
    keys = keys_of(encoder, 1, EDIT, quick(encoder.name).templates[:2])
    moved = (keys @ right.double().T) @ left.double().T
    assert (moved - moved[0]).norm(dim=1).max() < 1e-3 * moved[0].norm()


def test_its_rows_are_moved_to_the_targets_rows_where_the_conditioning_is_compared(opened) -> None:
    model, encoder = opened
    patch = quick(encoder.name, embedding="conditioning")(model, [EDIT])

    def last_rows(text: str) -> torch.Tensor:
        return encoder.states([text])[0, int(encoder.tokenize([text]).ends) - 1 :]  # the subject's last row, and on

    clean, source = last_rows(EDIT.new), last_rows(EDIT.old)
    with patch.applied(model):
        edited = last_rows(EDIT.prompt)
    near, far = ((edited[:2] - other[:2]).norm() for other in (clean, source))
    assert near < far
    logs = patch.record["edits"][0]["sites"][encoder.site(1)]
    assert logs["loss"][1] < logs["loss"][0]


def test_what_a_t5_cannot_have_is_refused(opened) -> None:
    model, encoder = opened
    for method in (MEMIT(encoders=(encoder.name,)), FineTune(encoders=(encoder.name,))):
        with pytest.raises(EditError, match="is a T5"):
            method(model, [EDIT])
