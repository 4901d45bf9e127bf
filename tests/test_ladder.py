"""Facts that do not hold are tried in other ways on the very model; the best way is kept, and the record tells it."""

from __future__ import annotations

import pytest
import torch
from test_laws import CANADA, model  # noqa: F401  the fixture

import refact
from refact.editing import Standing, ladder
from refact.errors import EditError
from refact.methods.crossattention import UCE
from refact.methods.refact import ReFACT
from refact.verification import climbed

QUICK = {"layer": 1, "contexts": 4, "negatives": 4, "max_steps": 12, "tokens": 1500, "shrink": 1e-2}
WEAK = ReFACT(**QUICK | {"max_steps": 1, "learning_rate": 1e-4})


def test_the_best_way_is_kept_and_recorded(model):  # noqa: F811
    first = refact.edit(model, CANADA, WEAK)
    patch = refact.edit(model, CANADA, WEAK, until_holds=True)
    found = patch.record["ladder"]
    assert Standing.of(model, first).holds == 0
    assert len(found["tried"]) > 3
    keys = [(r["holds"], r["generality"], r["toward"]) for r in found["tried"] if "refused" not in r]
    assert Standing.of(model, patch).key == pytest.approx(max(keys))
    assert found["tried"][found["chosen"]]["rung"] in climbed(patch.record)[0]


def test_a_fact_that_holds_at_once_is_left_as_it_is():
    bundled = refact.load("pocket")
    beaver = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
    patch = refact.edit(bundled, beaver, until_holds=True)
    assert Standing.of(bundled, patch).holds == 1
    assert "ladder" not in patch.record


def test_rungs_that_a_method_has_no_setting_for_are_left_out(model):  # noqa: F811
    names = [name for name, _, _ in ladder(model, [CANADA], refact.FineTune(layer=1))]
    assert names == ["layer 0", "19 contexts", "other wordings by pattern"]


def test_a_rung_that_is_refused_is_told_and_the_rest_goes_on(model, monkeypatch):  # noqa: F811
    def refuse(self, *_):
        if self.objective == "contrastive":
            raise EditError("not this one")
        return real(self, *_)

    real = ReFACT.__call__
    monkeypatch.setattr(ReFACT, "__call__", refuse)
    tried = refact.edit(model, CANADA, WEAK, until_holds=True).record["ladder"]["tried"]
    assert {"rung": "the contrastive objective", "refused": "not this one"} in tried
    assert len(tried) > 3


def test_what_the_text_side_cannot_see_is_made_once(model):  # noqa: F811
    assert "ladder" not in refact.edit(model, CANADA, UCE(), until_holds=True).record


def test_a_ladder_survives_a_file_and_not_a_change(model, tmp_path):  # noqa: F811
    patch = refact.edit(model, CANADA, WEAK, until_holds=True)
    patch.save(tmp_path / "p.safetensors")
    again = refact.Patch.load(tmp_path / "p.safetensors")
    assert again.record["ladder"] == patch.record["ladder"]
    assert "ladder" not in again.scaled(0.5).record


def test_the_model_is_as_it_was(model):  # noqa: F811
    before = {k: v.clone() for k, v in model.pipe.text_encoder.state_dict().items()}
    refact.edit(model, CANADA, WEAK, until_holds=True)
    assert all(torch.equal(before[k], v) for k, v in model.pipe.text_encoder.state_dict().items())
