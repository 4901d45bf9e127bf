"""Facts that do not hold are tried in other ways on the very model; the best way is kept, and the record tells it."""

from __future__ import annotations

import pytest
import torch
from test_laws import CANADA, model  # noqa: F401  the fixture
from typer.testing import CliRunner

import refact
from refact import editing
from refact.cli import main as _commands  # noqa: F401  registers the commands
from refact.cli.app import app
from refact.editing import Standing
from refact.errors import EditError
from refact.methods.crossattention import UCE
from refact.methods.memit import MEMIT
from refact.methods.refact import ReFACT
from refact.verification import climbed, unseen

QUICK = {"layer": 1, "contexts": 4, "negatives": 4, "max_steps": 12, "tokens": 1500, "shrink": 1e-2}
WEAK = ReFACT(**QUICK | {"max_steps": 1, "learning_rate": 1e-4})


@pytest.fixture(scope="module")
def patch(model):  # noqa: F811
    """What the ladder makes of a search too weak to hold, with few steps a rung; the model is as it was."""
    before = {key: value.clone() for key, value in model.pipe.text_encoder.state_dict().items()}
    with pytest.MonkeyPatch.context() as few:
        few.setattr(editing, "STEPS", 4)
        made = refact.edit(model, CANADA, WEAK, until_holds=True)
    assert all(torch.equal(before[key], value) for key, value in model.pipe.text_encoder.state_dict().items())
    return made


def test_the_best_way_is_kept_and_recorded(model, patch):  # noqa: F811
    found = patch.record["ladder"]
    assert Standing.of(model, refact.edit(model, CANADA, WEAK)).holds == 0
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
    quick = refact.FineTune(layer=1, steps=1, epochs=1, contexts=2)
    tried = refact.edit(model, CANADA, quick, until_holds=True).record["ladder"]["tried"]
    assert [one["rung"] for one in tried] == ["as asked", "19 contexts", "layer 0", "other wordings by pattern"]


def test_another_comparison_leaves_a_methods_own_way_of_writing(model):  # noqa: F811
    (memit,) = (changes for name, changes in editing.ladder(model, MEMIT(**QUICK)) if "is sent" in name)
    assert memit == {"embedding": "conditioning"}
    (published,) = (changes for name, changes in editing.ladder(model, ReFACT.published(layer=1)) if "is sent" in name)
    assert ReFACT(**published) == ReFACT(layer=1)
    assert not any("is sent" in name for name, _ in editing.ladder(model, ReFACT()))


def test_a_rung_that_is_refused_is_told_and_the_rest_goes_on(model, monkeypatch):  # noqa: F811
    def refuse(self, *given):
        if self.layer == 0:
            raise EditError("not this one")
        return real(self, *given)

    real = refact.FineTune.__call__
    monkeypatch.setattr(refact.FineTune, "__call__", refuse)
    quick = refact.FineTune(layer=1, steps=1, epochs=1, contexts=2)
    tried = refact.edit(model, CANADA, quick, until_holds=True).record["ladder"]["tried"]
    assert {"rung": "layer 0", "refused": "not this one"} in tried
    assert tried[-1]["rung"] == "other wordings by pattern"


def test_what_the_text_side_cannot_see_is_made_once(model):  # noqa: F811
    assert "ladder" not in refact.edit(model, CANADA, UCE(), until_holds=True).record


def test_a_ladder_survives_a_file_and_not_a_change(patch, tmp_path):
    patch.save(tmp_path / "p.safetensors")
    again = refact.Patch.load(tmp_path / "p.safetensors")
    assert again.record["ladder"] == patch.record["ladder"]
    assert "ladder" not in again.scaled(0.5).record


def test_lower_layers_are_below_the_one_that_was_tried() -> None:
    pocket = refact.load("pocket")

    def layers(how: ReFACT) -> list[int]:
        return [rung["layer"] for name, rung in editing.ladder(pocket, how) if name.startswith("layer ")]

    assert layers(ReFACT()) == [0]
    assert layers(ReFACT(layer=6)) == [3, 0]


def test_what_is_written_first_outlives_an_interrupted_ladder(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(editing, "_climbed", interrupted)
    out = tmp_path / "edit.safetensors"
    asked = ["edit", "--prompt", "a guitar", "--new", "a taxi", "-o", str(out), "--max-steps", "1", "--contexts", "2"]
    assert CliRunner().invoke(app, asked).exit_code == 130
    assert refact.Patch.load(out).names == ["guitar"]


def test_facts_that_the_text_side_cannot_show_are_left_to_pictures(model):  # noqa: F811
    told = refact.ReFACT(**QUICK)(model, [CANADA])
    drawn = UCE()(model, [refact.Edit("a dog", new="a cat")])
    both = refact.merge([told, drawn])
    assert unseen(drawn)
    assert not unseen(both)
    assert [fact.name for fact in refact.verify(model, both)] == told.names
