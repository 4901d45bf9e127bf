"""The node pack, by a stand-in of what it calls of ComfyUI (comfy_interface.py). The real one: test_comfyui_real.py."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import tomllib
from types import SimpleNamespace

import comfy_interface as comfy
import pytest
import torch

import refact

PROMPT = "a photo of the president of france"
FACT = {"prompt": "the president of france", "old": "obama", "new": "trump", "strength": 1.0}
OTHER = {"prompt": "the king of germany", "old": "obama", "new": "biden", "strength": 1.0}
QUICK = "tokens = 200\nmax_steps = 3\nlayer = 1\ncontexts = 2"
METHOD = refact.ReFACT(tokens=200, max_steps=3, layer=1, contexts=2)
WORKFLOWS = sorted((comfy.PACK / "example_workflows").glob("*.json"))


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The pack among ComfyUI's modules: .nodes by id, .bars that were shown, .cancel, .base."""
    found, steps = comfy.modules(tmp_path)
    for name, module in found.items():
        monkeypatch.setitem(comfy.sys.modules, name, module)
    monkeypatch.setattr("refact.models.live.KINDS", comfy.KINDS)
    monkeypatch.setattr("refact.models.live.HEAD", comfy.HEAD)
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path / "cache"))
    pack = comfy.load_pack()
    nodes = {node.define_schema().node_id: node for node in asyncio.run(pack.RefactExtension().get_node_list())}
    return SimpleNamespace(pack=pack, nodes=nodes, steps=steps, base=tmp_path)


def run(host, node: str, *args, **given) -> tuple:
    """A node's outputs, computed as ComfyUI computes them."""
    with torch.inference_mode():
        return host.nodes[node].execute(*args, **given).values


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far, relative to the size."""
    return float((one - other).norm() / other.norm())


def edited(host, clip, **fact):
    return run(host, "RefactEditFact", clip, settings=QUICK, **fact)


# -- the pack ---------------------------------------------------------------------------------------------------------


def test_four_nodes_whose_inputs_are_what_they_take(host) -> None:
    assert set(host.nodes) == {"RefactEditFact", "RefactLoadPatch", "RefactFactsFile", "RefactSavePatch"}
    for node in host.nodes.values():
        schema = node.define_schema()
        takes = inspect.signature(node.execute).parameters
        assert [port.id for port in schema.inputs] == list(takes)
        for port in schema.inputs:
            assert port.optional == (takes[port.id].default is not inspect.Parameter.empty)
        assert getattr(schema, "is_output_node", False) or schema.outputs


def test_the_registrys_form() -> None:
    form = tomllib.loads((comfy.PACK / "pyproject.toml").read_text())
    assert form["project"]["name"] == "refact"
    assert form["project"]["version"] == refact.__version__
    assert {"license", "description", "dependencies"} <= form["project"].keys()
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= form["tool"]["comfy"].keys()
    assert form["project"]["dependencies"] == (comfy.PACK / "requirements.txt").read_text().split()
    ours = tomllib.loads((comfy.PACK.parent / "pyproject.toml").read_text())["project"]["name"]
    assert form["project"]["dependencies"] == [f"{ours}>=0.1.0"]  # `refact` on PyPI is another project


def test_nothing_is_installed_or_evaluated_at_run_time() -> None:
    for path in comfy.PACK.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
        assert not {"eval", "exec", "compile", "__import__", "subprocess", "pip"} & (names | imported)
        versions = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and "comfy_api" in str(n.module)]
        assert set(versions) <= {"comfy_api.v0_0_2"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda path: path.stem)
def test_shipped_workflows_fit_the_nodes(host, file) -> None:
    assert file.with_suffix(".jpg").stat().st_size > 5000
    ours = [node for node in json.loads(file.read_text())["nodes"] if node["type"].startswith("Refact")]
    assert ours
    for node in ours:
        ports = host.nodes[node["type"]].define_schema().inputs
        names = [port["name"] for port in node["inputs"] if "widget" in port]
        assert names == [port.id for port in ports if port.type != "Clip"]
        assert len(node["widgets_values"]) == len(names)


def test_every_node_is_in_a_shipped_workflow(host) -> None:
    assert len(WORKFLOWS) == 3
    used = {node["type"] for file in WORKFLOWS for node in json.loads(file.read_text())["nodes"]}
    assert set(host.nodes) <= used


# -- what the nodes do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("clip_l",), ("clip_l", "clip_g")])
def test_conditioning_is_the_packages_own(host, names) -> None:
    clip, plain = comfy.CLIP(names), comfy.plain_model(names)
    before = clip.encode(PROMPT)
    new, report = edited(host, clip, **FACT)
    patch = refact.edit(plain, refact.Edit(FACT["prompt"], FACT["new"], FACT["old"]), METHOD)
    with patch.applied(plain):
        own = plain.encode([PROMPT])
    for kind, states in new.encode(PROMPT).items():
        assert apart(own[kind], before[kind]) > 1e-2, "the edit is seen"
        assert apart(states, own[kind]) < 1e-3
        torch.testing.assert_close(clip.encode(PROMPT)[kind], before[kind], rtol=0, atol=0)
    assert "the president of france" in report


def test_strength_and_the_same_again_search_nothing(host) -> None:
    clip = comfy.CLIP()
    edited(host, clip, **FACT)
    assert host.steps["bars"]
    host.steps["bars"].clear()
    weak, _ = edited(host, clip, **FACT | {"strength": 0.25})
    edited(host, comfy.CLIP(), **FACT)
    assert not host.steps["bars"]
    (_, found), *_ = weak.patcher.patches.items()
    assert found[0][0] == 0.25
    edited(host, clip, **FACT | {"new": "biden"})
    assert host.steps["bars"]


def test_a_second_fact_is_made_on_plain_weights_and_leaves_the_first_alone(host) -> None:
    plain = comfy.plain_model()
    first, _ = edited(host, comfy.CLIP(), **FACT | {"strength": 0.5})
    first.encode(PROMPT)  # so that the first fact is in the live weights
    both, _ = edited(host, first, **OTHER)
    run(host, "RefactSavePatch", both, "loras/both")
    (file,) = (host.base / "output" / "loras").glob("*.safetensors")
    saved = refact.Patch.load(file)
    one = refact.edit(plain, refact.Edit(FACT["prompt"], FACT["new"], FACT["old"]), METHOD)
    two = refact.edit(plain, refact.Edit(OTHER["prompt"], OTHER["new"], OTHER["old"]), METHOD, onto=[one])
    assert not saved.mismatch(plain)
    (site,) = saved.factors
    wanted = 0.5 * one.factors[site][0] @ one.factors[site][1] + two.factors[site][0] @ two.factors[site][1]
    torch.testing.assert_close(saved.factors[site][0] @ saved.factors[site][1], wanted, rtol=0, atol=1e-4)


def test_facts_of_a_file_are_switched_off_one_by_one(host) -> None:
    plain, edits = comfy.plain_model(), [refact.Edit(f["prompt"], f["new"], f["old"]) for f in (FACT, OTHER)]
    whole = refact.edit(plain, edits, METHOD)
    whole.save(host.base / "loras" / "two.safetensors")
    name = whole.names[0]
    new, report = run(host, "RefactLoadPatch", comfy.CLIP(), "two.safetensors", 1.0, off=f"{name}\n")
    assert report.startswith("1 of 2 facts are on")
    with whole.without(name).applied(plain):
        own = plain.encode([PROMPT])["prompt_embeds"]
    assert apart(new.encode(PROMPT)["prompt_embeds"], own) < 1e-3
    clip = comfy.CLIP()
    same, report = run(host, "RefactLoadPatch", clip, "two.safetensors", 1.0, off="\n".join(whole.names))
    assert same is clip
    assert report == "every fact is switched off"
    facts = host.pack.routes.facts_in("two.safetensors")
    assert facts == [{"name": e.name, "title": f"{e.prompt}: {e.new}"} for e in edits]
    assert host.pack.routes.facts_in("../cache/secret.safetensors") == []


def test_a_patch_of_another_model_is_refused_in_a_sentence(host) -> None:
    whole = refact.edit(comfy.plain_model(seed=1), refact.Edit(FACT["prompt"], FACT["new"]), METHOD)
    whole.save(host.base / "loras" / "other.safetensors")
    with pytest.raises(refact.PatchError, match=r"made for another checkpoint .* switch on any_checkpoint"):
        run(host, "RefactLoadPatch", comfy.CLIP(), "other.safetensors", 1.0)
    new, _ = run(host, "RefactLoadPatch", comfy.CLIP(), "other.safetensors", 1.0, any_checkpoint=True)
    assert new.patcher.patches
    names = ("clip_l", "clip_g")
    big = refact.edit(comfy.plain_model(names), refact.Edit(FACT["prompt"], FACT["new"]), METHOD)
    big.save(host.base / "loras" / "big.safetensors")
    with pytest.raises(refact.PatchError, match="text_encoder_2 of Stable Diffusion XL, which this CLIP does not have"):
        run(host, "RefactLoadPatch", comfy.CLIP(), "big.safetensors", 1.0, any_checkpoint=True)


def test_only_what_changed_in_a_list_is_searched_again(host) -> None:
    def write(*facts: dict) -> None:
        rows = ["\n".join(f"{key} = {json.dumps(row[key])}" for key in ("prompt", "old", "new")) for row in facts]
        (host.base / "input" / "facts.toml").write_text("\n".join(f"[[edit]]\n{row}" for row in rows))

    write(FACT)
    stamp = host.nodes["RefactFactsFile"].fingerprint_inputs(file="facts.toml")
    _, report = run(host, "RefactFactsFile", comfy.CLIP(), "facts.toml", 1.0, settings=QUICK)
    assert report.startswith("1 facts, 1 of them searched for")
    write(FACT, OTHER)
    assert host.nodes["RefactFactsFile"].fingerprint_inputs(file="facts.toml") != stamp
    new, report = run(host, "RefactFactsFile", comfy.CLIP(), "facts.toml", 1.0, settings=QUICK)
    assert report.startswith("2 facts, 1 of them searched for")
    ((patch, _),) = host.pack.host.facts_on(new)
    assert len(patch.names) == 2


def test_cancelling_ends_the_search_and_leaves_the_clip(host) -> None:
    clip = comfy.CLIP()
    before = {key: tensor.clone() for key, tensor in clip.cond_stage_model.named_parameters()}
    host.steps["cancel"] = lambda: len(host.steps["bars"]) > 2
    with pytest.raises(comfy.Interrupted):
        edited(host, clip, **FACT)
    assert all(torch.equal(before[key], tensor) for key, tensor in clip.cond_stage_model.named_parameters())
    host.steps["cancel"] = lambda: False
    edited(host, clip, **FACT)


def test_mistakes_are_said_in_a_sentence(host) -> None:
    with pytest.raises(refact.PatchError, match="this CLIP carries no facts"):
        run(host, "RefactSavePatch", comfy.CLIP(), "loras/none")
    with pytest.raises(refact.DataError, match="settings are lines such as 'layer = 9'"):
        run(host, "RefactEditFact", comfy.CLIP(), settings="layer: 9", **FACT)
    with pytest.raises(refact.RefactError, match="ReFACT has no setting layers"):
        run(host, "RefactEditFact", comfy.CLIP(), settings="layers = 9", **FACT)
    strange = comfy.CLIP()
    strange.cond_stage_model.llama = torch.nn.Module()
    with pytest.raises(refact.ModelError, match=r"this CLIP holds clip_l, llama; facts are edited in"):
        edited(host, strange, **FACT)
