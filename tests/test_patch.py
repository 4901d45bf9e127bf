"""A patch: bit-for-bit application, its facts one by one, its factors, and whole pipelines."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from refact import lora, stash
from refact.errors import PatchError
from refact.exports import bake
from refact.patch import Patch, merge

FC2 = tiny.CLIP_FC2
ONE, TWO = FC2.format(1), FC2.format(2)


def bits(model) -> bytes:
    return b"".join(w.weight.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for w in model.layers.values())


# -- in a model -------------------------------------------------------------------------------------------------------


def test_applying_adds_the_product(model, patch):
    before = model[ONE].weight.detach().double()
    with patch.applied(model, strength=0.5):
        got = model[ONE].weight.detach().double()
    assert torch.allclose(got, before + 0.5 * tiny.change(patch)[ONE], atol=1e-6)
    assert (got - before).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_reverting_is_exact_in_any_order(dtype, order):
    model = tiny.Linears(dtype)
    before, parameter = bits(model), model[ONE].weight
    patches = [tiny.patch(model, {"x": {ONE: 2}}, seed=s) for s in range(2)] + [tiny.patch(model, {"y": {TWO: 1}})]
    handles = [p.apply(model, strength=0.1) for p in patches]
    changed = bits(model)
    for i in order:
        assert bits(model) != before
        handles[i].revert()
    assert bits(model) == before != changed
    assert model[ONE].weight is parameter
    assert not any(hasattr(linear, "_refact_stack") for linear in model.layers.values())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, 0.5, -2.0])), min_size=1, max_size=8), st.data())
def test_weights_depend_on_the_set_of_active_patches_alone(steps, data):
    """Any history of applying and reverting ends where applying only what is left would."""
    model, fresh = tiny.Linears(), tiny.Linears()
    patches = [tiny.patch(model, {"x": {ONE: 2, TWO: 1}}, seed=s) for s in range(4)]
    active = []
    for which, strength in steps:
        active.append((patches[which].apply(model, strength), which, strength))
        if data.draw(st.booleans()):
            active.pop(data.draw(st.integers(0, len(active) - 1)))[0].revert()
    for _, which, strength in data.draw(st.permutations(active)):
        patches[which].apply(fresh, strength)
    assert bits(model) == bits(fresh)


def test_half_precision_weights_are_rounded_once():
    """Not after each patch: rounding then depends on how many there are."""
    model, exact = tiny.Linears(torch.float16), tiny.Linears(torch.float64)
    exact[ONE].weight.data = model[ONE].weight.detach().double()
    for seed in range(5):
        tiny.patch(model, {"x": {ONE: 1}}, seed).apply(model)
        tiny.patch(exact, {"x": {ONE: 1}}, seed).apply(exact)
    assert (model[ONE].weight != exact[ONE].weight.half()).float().mean() < 0.01  # two ways to round float32's last bit


def test_the_same_patch_twice_counts_twice(model, patch):
    first = patch.apply(model)
    once = bits(model)
    second = patch.apply(model)
    assert bits(model) != once
    first.revert()
    assert bits(model) == once
    second.revert()
    second.revert()  # no effect


def test_an_exception_leaves_the_weights(model, patch):
    before = bits(model)

    def fails():
        with patch.applied(model):
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fails()
    assert bits(model) == before


def test_applying_is_all_or_nothing(model, patch, monkeypatch):
    before, written = bits(model), []

    def interrupted(linear, owner, update, push=stash.push):
        push(linear, owner, update)
        written.append(bits(model) != before)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(stash, "push", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch.apply(model)
    assert written == [True, True]
    assert bits(model) == before
    assert not hasattr(model[ONE], "_refact_stack")


def test_overflow_in_half_precision_is_refused_and_undone():
    model = tiny.Linears(torch.float16)
    before = bits(model)
    with pytest.raises(PatchError, match=r"not finite in torch\.float16"):
        tiny.patch(model, {"x": {ONE: 1}}).apply(model, strength=1e8)
    assert bits(model) == before
    with pytest.raises(PatchError, match="finite number"):
        tiny.patch(model, {"x": {ONE: 1}}).apply(model, strength=float("nan"))


def test_a_weight_that_others_changed_is_not_lost_silently(model, patch):
    before = bits(model)
    handle = patch.apply(model)
    model[TWO].weight.data += 1
    changed = bits(model)
    with pytest.raises(PatchError, match="something else changed this weight"):
        handle.revert()
    with pytest.raises(PatchError, match="something else changed"):
        patch.apply(model)
    assert bits(model) == changed
    handle.revert(force=True)
    assert bits(model) == before


def test_moving_to_another_dtype_while_active(patch):
    model, half = tiny.Linears(), tiny.Linears().layers[ONE].half()
    handle = patch.apply(model)
    model[ONE].half()
    handle.revert()
    assert torch.equal(model[ONE].weight, half.weight)


def test_the_base_is_visible_under_patches(model, patch):
    before = model[ONE].weight.detach().clone()
    assert stash.base_weight(model[ONE]).data_ptr() == model[ONE].weight.data_ptr()
    with patch.applied(model):
        assert torch.equal(stash.base_weight(model[ONE]), before)


def test_offloaded_weights_are_refused(model, patch):
    model[TWO].weight = nn.Parameter(torch.empty(12, 20, device="meta"))
    with pytest.raises(PatchError, match="offloaded"):
        patch.apply(model)


# -- for which model --------------------------------------------------------------------------------------------------


def test_another_model_is_refused_by_name_unless_forced(patch):
    other = tiny.Linears(name="other", print_="bbbb")
    before = bits(other)
    with pytest.raises(PatchError, match=r"made for small, not for other: .*aaaa.*bbbb.*force"):
        patch.apply(other)
    assert bits(other) == before
    handle = patch.apply(other, force=True)
    assert len(handle.mismatch) == 1
    assert "aaaa" in handle.mismatch[0]
    assert patch.apply(tiny.Linears(name="renamed")).mismatch == []  # the hash decides, not the name


def test_other_shapes_are_refused_even_by_force(patch):
    with pytest.raises(PatchError, match=r"small has shape \(12, 24\).*made for small: \(12, 20\)"):
        patch.apply(tiny.Linears(shape=(12, 24)), force=True)


def test_a_missing_site_is_named(patch):
    model = tiny.Linears()
    del model.layers[TWO]
    with pytest.raises(PatchError, match=rf"small has no {TWO}"):
        patch.apply(model)


# -- its facts --------------------------------------------------------------------------------------------------------


def test_one_fact_and_the_others_make_the_whole(patch):
    alone = {name: tiny.change(patch[name]) for name in patch.names}
    assert patch.names == ["canada", "france", "peru"]
    assert list(alone["peru"]) == [TWO]
    for name in patch.names:
        rest = tiny.change(patch.without(name))
        for site, whole in tiny.change(patch).items():
            assert torch.allclose(alone[name].get(site, 0) + rest[site], whole, atol=1e-6)
    assert patch.without("canada").names == ["france", "peru"]
    assert patch.without("canada").without("france")["peru"].factors.keys() == {TWO}


def test_single_facts_are_weakened(patch):
    weaker = patch.scaled({"france": 0.25})
    for name, strength in {"canada": 1, "france": 0.25, "peru": 1}.items():
        tiny.close(tiny.change(weaker[name]), {s: d * strength for s, d in tiny.change(patch[name]).items()})
    tiny.close(tiny.change(patch.scaled(-2.0)), {s: -2 * d for s, d in tiny.change(patch).items()})
    entries = weaker.scaled({"france": 2}).record["edits"][1]["sites"]
    assert {entry["strength"] for entry in entries.values()} == {0.5}
    assert not tiny.change(patch.scaled({"peru": 0})["peru"])[TWO].any()


def test_unknown_names_and_strengths(patch):
    for wrong in (lambda: patch["spain"], lambda: patch.without("spain"), lambda: patch.scaled({"spain": 1})):
        with pytest.raises(PatchError, match="no edit 'spain' in this patch; it has canada, france, peru"):
            wrong()
    with pytest.raises(PatchError, match="finite"):
        patch.scaled({"peru": float("inf")})


def test_merging_adds(model, patch):
    other = tiny.patch(model, {"canada": {TWO: 2}}, seed=5)
    both = merge([patch, other])
    assert both.names == ["canada", "france", "peru", "canada-2"]
    total = tiny.change(patch)
    total[TWO] = total[TWO] + tiny.change(other)[TWO]
    tiny.close(tiny.change(both), total)
    tiny.close(tiny.change(both["canada-2"]), tiny.change(other))
    tiny.close(tiny.change(both.without("canada-2")), tiny.change(patch))
    assert both.record["method"] == {"name": "random", "mixed": ["seed"]}
    assert patch.names == ["canada", "france", "peru"]  # what was merged is as it was


def test_merging_is_associative(model):
    one, two, three = (tiny.patch(model, {n: {ONE: 1, TWO: 1}}, seed=i) for i, n in enumerate("abc"))
    left, right = merge([merge([one, two]), three]), merge([one, merge([two, three])])
    assert left.digest == right.digest == merge([one, two, three]).digest
    assert left.record == right.record
    assert merge([one]).record["edits"] == one.record["edits"]


def test_merging_needs_one_model(model, patch):
    other = tiny.patch(tiny.Linears(name="other", print_="bbbb"), {"x": {ONE: 1}})
    with pytest.raises(PatchError, match=r"small \(sd1\) and other \(sd1\).*text_encoder differ"):
        merge([patch, other])
    with pytest.raises(PatchError, match="no patches"):
        merge([])


def test_facts_made_together_cannot_be_taken_apart(patch):
    record = patch.record | {"edits": [dict(edit) for edit in patch.record["edits"][:2]]}
    for edit in record["edits"]:
        edit["sites"] = {ONE: {"rows": [0, 3]}}
    joint = Patch({ONE: patch.factors[ONE]}, record)
    with pytest.raises(PatchError, match="cannot be taken apart"):
        joint["canada"]
    with pytest.raises(PatchError, match="shares its rows"):
        joint.scaled({"canada": 0.5})
    tiny.close(tiny.change(joint.scaled(0.5)), {ONE: tiny.change(joint)[ONE] / 2})


# -- its factors ------------------------------------------------------------------------------------------------------


def test_factors_have_equal_norms_and_the_same_product(model):
    left, right = torch.randn(12, 3) * torch.tensor([1e-6, 1.0, 0.0]), torch.randn(3, 20) * 2e3
    whole = tiny.patch(model, {"x": {ONE: 3}})
    got, other = Patch({ONE: (left, right)}, whole.record).factors[ONE]
    assert torch.allclose(got.norm(dim=0)[:2], other.norm(dim=1)[:2], rtol=1e-5)
    expected = left.double() @ right.double()
    assert torch.allclose(got.double() @ other.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    again = lora.balanced(got, other)
    assert torch.equal(again[0], got)
    assert torch.equal(again[1], other)


def test_too_many_rows_are_refactored_only_when_asked(tmp_path):
    model = tiny.Linears()
    patch = tiny.patch(model, {f"e{i}": {ONE: 1, TWO: 1} for i in range(8)} | {f"f{i}": {ONE: 1} for i in range(8)})
    patch.save(tmp_path / "as-it-is.safetensors")
    patch.save(tmp_path / "compact.safetensors", compact=True)
    kept, compact = (Patch.load(tmp_path / f"{name}.safetensors") for name in ("as-it-is", "compact"))
    assert kept.rank == 16
    assert "refactored" not in kept.record
    tiny.close(tiny.change(kept["e3"]), tiny.change(patch["e3"]))
    assert compact.rank == 12
    assert compact.record["refactored"] is True
    tiny.close(tiny.change(compact), tiny.change(patch), 1e-5)
    assert merge([patch, compact]).record["refactored"] is True
    assert compact.factors[TWO][1].shape == (8, 20)  # below the limit: as it was
    with pytest.raises(PatchError, match="cannot be taken apart"):
        compact["e3"]


# -- bake -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_baking_writes_the_patched_pipeline(tmp_path, name):
    from diffusers import DiffusionPipeline

    pipe = tiny.pipeline(name)
    model = tiny.FakeModel(pipe, family=name)
    before = {key: value.clone() for key, value in pipe.text_encoder.state_dict().items()}
    sites = [tiny.site(row, 1) for row in model.family.encoders]
    patches = [tiny.patch(model, {"x": dict.fromkeys(sites, 1)}, seed=s) for s in range(2)]
    bake(model, patches, tmp_path / "baked")
    assert all(torch.equal(value, before[key]) for key, value in pipe.text_encoder.state_dict().items())
    assert [folder.name for folder in tmp_path.iterdir()] == ["baked"]
    assert not [f for f in (tmp_path / "baked").rglob("*") if f.suffix in {".bin", ".pt", ".ckpt"}]
    for file in (tmp_path / "baked").glob("text_encoder*/model.safetensors"):
        names = [n for n in load_file(file) if ".layers." in n or "embeddings" in n]
        assert all(n.startswith("text_model.") for n in names)
    again = DiffusionPipeline.from_pretrained(tmp_path / "baked")
    again.set_progress_bar_config(disable=True)
    with merge(patches).applied(model):
        expected = tiny.generate(pipe)
    assert np.abs(tiny.generate(again) - expected).max() < 1e-5
    assert np.abs(tiny.generate(pipe) - expected).max() > 1e-3


def test_baking_does_not_overwrite(tmp_path, patch):
    model = tiny.FakeModel(tiny.pipeline("sd1"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(PatchError, match="new or empty"):
        bake(model, [], tmp_path / "full")
    with pytest.raises(PatchError, match="made for small"):
        bake(model, [patch], tmp_path / "new")
    assert [f.name for f in tmp_path.rglob("*")] == ["full", "a.txt"]
