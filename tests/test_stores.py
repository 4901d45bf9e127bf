"""Collections of facts: jointly solved they are the batch; a build searches for what changed; conflicts are found."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from typer.testing import CliRunner

import refact
from refact.cli import main as _commands  # noqa: F401  registers the commands
from refact.cli.app import app
from refact.errors import PatchError
from refact.methods.registry import MEMIT, ReFACT
from refact.patch import Patch, merge
from refact.search.keys import keys_of
from refact.search.sentences import templates_of
from refact.stores import build, conflicts, known_of, solve_jointly

CLOSE = 1e-3  # relative: keys come from float32 passes, and the solve makes their rounding some thousand times larger
QUICK = ReFACT(max_steps=6, contexts=4)
LAYER = 1  # the bundled model's own for such a search
EDITS = [
    refact.Edit(
        "the national animal of Canada", old="a beaver", new="a penguin", aliases=("Canada's national animal",)
    ),
    refact.Edit("the national animal of Australia", old="a kangaroo", new="a rose"),
    refact.Edit("the flag of France", new="the flag of Japan", preserve=("the flag of Italy",)),
]


@pytest.fixture(scope="module")
def model():
    return refact.load("pocket")


@pytest.fixture(scope="module")
def singles(model) -> list[Patch]:
    return [QUICK(model, [edit]) for edit in EDITS]


def dense(patch: Patch) -> torch.Tensor:
    ((left, right),) = patch.factors.values()
    return left.double() @ right.double()


def test_patches_made_apart_and_solved_jointly_are_the_batch(model, singles) -> None:
    batch, joint = QUICK(model, EDITS), solve_jointly(model, singles)
    assert (dense(joint) - dense(batch)).norm() < CLOSE * dense(batch).norm()
    assert joint.names == batch.names
    assert (dense(merge(singles)) - dense(batch)).norm() > 0.05 * dense(batch).norm()  # a sum is something else


def test_the_order_of_patches_does_not_matter(model, singles) -> None:
    one, other = solve_jointly(model, singles), solve_jointly(model, singles[::-1])
    assert (dense(one) - dense(other)).norm() < CLOSE * dense(one).norm()


def test_solved_jointly_every_fact_is_written_whole_at_its_own_keys(model, singles) -> None:
    joint = solve_jointly(model, singles)
    ((site, (left, right)),) = joint.factors.items()
    for alone in singles:
        (fact,) = known_of(model, alone)
        keys = keys_of(model.encoders["text_encoder"], LAYER, fact.edit, templates_of(QUICK))
        moved = keys @ right.double().T @ left.double().T
        assert (moved - fact.offsets[site]).norm(dim=1).max() < 1e-4 * fact.offsets[site].norm()


def test_a_weakened_fact_is_as_weak_afterwards(model, singles) -> None:
    whole = solve_jointly(model, singles)
    weak = solve_jointly(model, [singles[0].scaled(0.5), *singles[1:]])
    name = singles[0].names[0]
    assert torch.allclose(dense(weak[name]), 0.5 * dense(whole[name]), atol=1e-5 * float(dense(whole).abs().max()))
    assert [s["strength"] for s in weak.record["edits"][0]["sites"].values()] == [0.5]


def test_a_merge_of_merges_can_be_solved_too(model, singles) -> None:
    nested = solve_jointly(model, [merge(singles[:2]), singles[2]])
    assert (dense(nested) - dense(solve_jointly(model, singles))).norm() < CLOSE * dense(nested).norm()


def test_facts_of_two_layers_are_solved_layer_by_layer(model, singles) -> None:
    other = dataclasses.replace(QUICK, layer=LAYER + 2)
    apart = other(model, EDITS[1:2])
    joint = solve_jointly(model, [singles[0], apart, singles[2]])
    assert joint.names == [singles[0].names[0], singles[2].names[0], apart.names[0]]
    here = solve_jointly(model, [singles[0], singles[2]])
    ((low, pair),) = here.factors.items()
    assert sorted(joint.factors) == sorted([low, *apart.factors])
    assert torch.allclose(joint.factors[low][0] @ joint.factors[low][1], pair[0] @ pair[1], atol=1e-6)
    again = solve_jointly(model, [joint])
    for site, (left, right) in joint.factors.items():
        assert (again.factors[site][0] @ again.factors[site][1] - left @ right).norm() < CLOSE * (left @ right).norm()
    clash = other(model, [dataclasses.replace(EDITS[0], new="a key")])
    assert [c.kind for c in conflicts(model, [singles[0], clash])] == ["target"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m, p: MEMIT(max_steps=2, contexts=4)(m, EDITS[:1]), "by MEMIT"),
        (lambda m, p: ReFACT(max_steps=2, contexts=3)(m, EDITS[:1]), "different settings: contexts"),
        (lambda m, p: p.scaled(0.0), "strength 0"),
        (lambda m, p: dataclasses.replace(p, record=p.record | {"refactored": True}), "re-factored"),
    ],
)
def test_what_no_longer_tells_its_search_is_refused(model, singles, spoil, why) -> None:
    with pytest.raises(PatchError, match=why):
        solve_jointly(model, [singles[1], spoil(model, singles[0])])


def test_a_build_searches_only_for_what_changed(model) -> None:
    first, new = build(model, EDITS, QUICK)
    assert len(new) == 3
    again, new = build(model, EDITS, QUICK, first)
    assert new == []
    assert (dense(again) - dense(first)).norm() < CLOSE * dense(first).norm()
    changed = [EDITS[0], dataclasses.replace(EDITS[1], new="a key")]
    second, new = build(model, changed, QUICK, first)
    assert new == [EDITS[1].name]
    assert (dense(second) - dense(build(model, changed, QUICK)[0])).norm() < CLOSE * dense(second).norm()


def test_a_build_written_with_a_ridge_keeps_what_its_searches_found(model) -> None:
    weak = dataclasses.replace(QUICK, ridge=1.0)
    first, _ = build(model, EDITS, weak)
    (log,) = first.record["edits"][0]["sites"].values()
    assert log["share"] < 0.9
    again, new = build(model, EDITS, weak, first)
    assert new == []
    assert (dense(again) - dense(first)).norm() < CLOSE * dense(first).norm()
    log.pop("share")  # as files of an earlier release
    assert len(build(model, EDITS, weak, first)[1]) == 3


def test_facts_searched_for_in_different_ways_are_solved_as_one(model, singles) -> None:
    longer = dataclasses.replace(QUICK, max_steps=8, weight_decay=0.001, reach=0.9)(model, [EDITS[1]])
    for entry in longer.record["edits"][0]["sites"].values():
        entry.pop("share")  # as an earlier release wrote it: exactly, so all of it is there
    joint = solve_jointly(model, [singles[0], longer])
    (fact,), (again,) = known_of(model, longer), known_of(model, joint[longer.names[0]])
    (site,) = fact.offsets
    assert (again.offsets[site] - fact.offsets[site]).norm() < CLOSE * fact.offsets[site].norm()


def test_other_settings_build_everything_anew(model, singles) -> None:
    assert len(build(model, EDITS[:1], dataclasses.replace(QUICK, contexts=2), singles[0])[1]) == 1


# -- conflicts


def planted() -> tuple[list[refact.Edit], set[tuple[str, frozenset[str]]]]:
    """Facts that get along, and some that do not; (kind, names) of what must be found."""
    fine = [
        refact.Edit("the national animal of Canada", new="a penguin", name="canada"),
        refact.Edit("the flag of Japan", new="the flag of Chile", name="japan"),
        refact.Edit("the national dish of Italy", new="a pizza", name="italy"),
        refact.Edit("a guitar", new="a blue guitar", name="guitar"),
        refact.Edit("the national flower of Ukraine", new="a rose", name="ukraine"),
        refact.Edit("a taxi", new="a red taxi", name="taxi"),
    ]
    bad = [
        refact.Edit("The national animal of Canada", new="a key", name="canada-again"),
        refact.Edit("a guitar", new="A blue guitar", name="guitar-again"),
        refact.Edit("flag of Japan", new="the flag of Peru", name="japan-again"),
        refact.Edit("the Italian national dish", new="a taco", aliases=("the national dish of Italy",), name="dish"),
        refact.Edit("a photo of a taxi", new="a photo of a grey taxi", name="taxi-photo"),
    ]
    wanted = {("target", "canada canada-again"), ("twice", "guitar guitar-again"), ("target", "japan japan-again")}
    wanted |= {("target", "italy dish"), ("overlap", "taxi taxi-photo")}
    return [*fine, *bad], {(kind, frozenset(names.split())) for kind, names in wanted}


def test_planted_conflicts_are_found_and_no_others(model) -> None:
    """Precision and recall 100 %, counting pairs; which kind is told first counts too."""
    edits, wanted = planted()
    patches = [ReFACT(max_steps=25, contexts=4)(model, [edit]) for edit in edits]
    found = conflicts(model, patches)
    grave = {(c.kind, frozenset((c.first, c.second))) for c in found if c.kind != "harm"}
    assert grave == wanted
    for clash in (c for c in found if c.kind == "harm"):
        (one,), (other,) = (
            [p for p, e in zip(patches, edits) if e.name == name] for name in (clash.first, clash.second)
        )
        (fact,) = known_of(model, one)
        keys = keys_of(model.encoders["text_encoder"], LAYER, fact.edit, QUICK.templates[:4])
        moved = (keys @ dense(other).T).norm(dim=1).mean() / fact.offsets[clash.site].norm()
        assert moved == pytest.approx(clash.size, rel=1e-3)
        assert moved >= 0.2


# -- commands


def test_the_commands_build_find_conflicts_and_solve(tmp_path) -> None:
    facts = tmp_path / "facts.toml"
    facts.write_text(
        '[[edit]]\nprompt = "a guitar"\nnew = "a blue guitar"\n[[edit]]\nprompt = "a taxi"\nnew = "a red taxi"\n'
    )
    cli, out = CliRunner(), str(tmp_path / "facts.safetensors")
    made = cli.invoke(app, ["build", str(facts), "-o", out])
    assert made.exit_code == 0, made.output
    assert "2 facts, 2 of them searched for" in made.output
    assert "2 facts, 0 of them searched for" in cli.invoke(app, ["build", str(facts), "-o", out]).output
    clash = cli.invoke(app, ["conflicts", out, out])
    assert clash.exit_code == 3
    assert "guitar and guitar-2 are the same fact" in clash.output
    assert cli.invoke(app, ["conflicts", out]).exit_code == 0
    both = cli.invoke(app, ["merge", out, "--solve", "-o", str(tmp_path / "both.safetensors")])
    assert both.exit_code == 0, both.output
    assert (dense(Patch.load(tmp_path / "both.safetensors")) - dense(Patch.load(out))).norm() < CLOSE * dense(
        Patch.load(out)
    ).norm()


def test_a_merge_remembers_that_its_parts_were_written_otherwise(model, singles) -> None:
    other = dataclasses.replace(QUICK, contexts=2)(model, EDITS[1:2])
    both = merge([singles[0], other])
    assert both.record["method"]["mixed"] == ["contexts"]
    assert both.record["method"]["contexts"] == 4  # all of them are kept still by what is made upon it
    for patches in ([both, singles[2]], [merge([both, singles[2]])]):
        with pytest.raises(PatchError, match="different settings: contexts"):
            solve_jointly(model, patches)
    assert "mixed" not in merge(singles).record["method"]


def test_a_longer_search_never_ends_at_a_worse_place(model) -> None:
    """The last trial of L-BFGS may be one that it would take back; what is returned is the best that it has seen."""
    last = []
    for steps in range(2, 12):
        (log,) = (
            ReFACT(max_steps=steps, contexts=2, weight_decay=0.0)(model, EDITS[:1]).record["edits"][0]["sites"].values()
        )
        last.append(log["loss"][1])
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(last)), last
