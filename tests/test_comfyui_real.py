"""The shipped workflows in ComfyUI itself, on a CPU, with random text encoders of the true sizes.

    REFACT_COMFYUI=CHECKOUT REFACT_COMFYUI_PYTHON=CHECKOUT/venv/bin/python pytest -m slow tests/test_comfyui_real.py

Nothing is fetched: REFACT_COMFYUI is a checkout (run with 0.8.0 and 0.18.1), REFACT_COMFYUI_PYTHON a Python that has
what it requires and what this package requires (by default the one that runs the tests). Loaders of checkpoints are
replaced by loaders of text encoders, and what draws pictures is left out. The language model of Z-Image and FLUX.2
klein is ComfyUI's own class in a small size: 28 layers of width 64, with the published tokenizer.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen3Config,
    Qwen3Model,
)

import refact
from refact.encoders.encoder import TextEncoder
from refact.families import FAMILIES, on_disk

ROOT = Path(__file__).parent.parent
CHECKOUT = os.environ.get("REFACT_COMFYUI", "")
PYTHON = os.environ.get("REFACT_COMFYUI_PYTHON", sys.executable)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="set REFACT_COMFYUI to a checkout of ComfyUI to run its own code"),
]
QUICK = "tokens = 600\nmax_steps = 4\ncontexts = 3"
L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
MADE = {  # file: how transformers makes it
    "l.safetensors": (CLIPTextModel, L | {"hidden_act": "quick_gelu"}),
    "g.safetensors": (CLIPTextModelWithProjection, G | {"hidden_act": "gelu", "projection_dim": 1280}),
}
QWEN = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 28}
QWEN |= {"num_attention_heads": 2, "num_key_value_heads": 1}
LOADERS = {
    "sd1": ("CLIPLoader", {"clip_name": "l.safetensors", "type": "stable_diffusion"}),
    "sdxl": ("DualCLIPLoader", {"clip_name1": "l.safetensors", "clip_name2": "g.safetensors", "type": "sdxl"}),
    "z-image": ("SmallQwen3", {"several": False}),
    "flux2-klein": ("SmallQwen3", {"several": True}),
}
CLIPS = ("sd1", "sdxl")
KEEPER = """
import comfy.sd
import comfy.text_encoders.flux as flux
import comfy.text_encoders.z_image as z_image
import comfy.utils
import folder_paths
import torch


class KeepConditioning:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "keep", True, "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "path": ("STRING", {})}}

    def keep(self, conditioning, path):
        (states, more), = conditioning
        kept = {"prompt_embeds": states, "pooled_prompt_embeds": more.get("pooled_output")}
        torch.save({name: tensor.clone() for name, tensor in kept.items() if tensor is not None}, path)
        return {}


class SmallQwen3:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"several": ("BOOLEAN", {})}}

    def load(self, several):
        class Target:
            params = {}
            clip = flux.klein_te(dtype_llama=torch.float16) if several else z_image.te(dtype_llama=torch.float16)
            tokenizer = flux.KleinTokenizer if several else z_image.ZImageTokenizer

        weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("text_encoders", "q.safetensors"))
        options = {"qwen3_4b_model_config": SHAPE}
        return (comfy.sd.CLIP(Target, state_dict=[weights], model_options=options),)


NODE_CLASS_MAPPINGS = {"KeepConditioning": KeepConditioning, "SmallQwen3": SmallQwen3}
"""


def encoder(file: str) -> torch.nn.Module:
    """A random text encoder, of numbers that float16 holds."""
    kind, shape = MADE[file]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = kind(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, eos_token_id=49407, **shape))
    return module.half().float().eval().requires_grad_(False)


def language_model() -> torch.nn.Module:
    """A random Qwen3 of a small size, of numbers that float16 holds."""
    shape = QWEN | {"head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "vocab_size": 151936}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Qwen3Model(Qwen3Config(**shape))
        for weight in module.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.1)  # livelier states than the default's
    return module.half().float().eval().requires_grad_(False)


class Server:
    """ComfyUI on a port of this machine, with its own folders in `base`."""

    def __init__(self, base: Path):
        self.base = base
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for folder in ("models/text_encoders", "models/loras", "input", "output", "custom_nodes/keep"):
            (base / folder).mkdir(parents=True)
        for file in MADE:
            weights = {on_disk(k): v.half().contiguous() for k, v in encoder(file).state_dict().items()}
            save_file(weights, base / "models/text_encoders" / file)
        weights = {f"model.{k}": v.half().contiguous() for k, v in language_model().state_dict().items()}
        save_file(weights, base / "models/text_encoders/q.safetensors")
        (base / "custom_nodes/keep/__init__.py").write_text(KEEPER.replace("SHAPE", repr(QWEN)))
        (base / "custom_nodes/refact").symlink_to(ROOT / "comfyui")
        rows = [("the King of Spain", "an old man", "a woman"), ("the flag of Peru", "red and white", "a lion")]
        facts = "\n".join(f'[[edit]]\nprompt = "{p}"\nold = "{o}"\nnew = "{n}"' for p, o, n in rows)
        (base / "input/facts.toml").write_text(facts)
        self.log = base / "log.txt"
        more = {"PYTHONPATH": str(ROOT), "REFACT_CACHE": str(base / "cache"), "HF_HUB_OFFLINE": "1"}
        where = ["--cpu", "--base-directory", str(base), "--port", str(self.port), "--listen", "127.0.0.1"]
        self.process = subprocess.Popen(
            [PYTHON, "main.py", *where, "--disable-auto-launch", "--disable-api-nodes"],
            cwd=CHECKOUT,
            env=os.environ | more,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        while "To see the GUI" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.5)

    def call(self, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)) as answer:
            return json.loads(answer.read() or b"null")

    def start(self, graph: dict) -> str:
        return self.call("/prompt", {"prompt": graph})["prompt_id"]

    def wait(self, number: str) -> dict:
        """The history of a run: its messages by kind, and what its nodes showed."""
        while not (found := self.call(f"/history/{number}")):
            time.sleep(0.3)
        status = found[number]["status"]
        return {"outputs": found[number]["outputs"], "text": status["status_str"]} | dict(status["messages"])

    def run(self, graph: dict) -> dict:
        done = self.wait(self.start(graph))
        assert done["text"] == "success", done.get("execution_error", {}).get("exception_message", done)
        return done

    def searches(self) -> int:
        """How many searches ComfyUI's log tells of."""
        return self.log.read_text().count("ReFACT: search")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("comfyui"))
    yield running
    running.process.terminate()
    running.process.wait()


def graph_of(workflow: str, family: str, kept: Path, **widgets) -> dict:
    """A shipped workflow as the server takes it: our nodes and the prompts; text encoders from files; what is encoded
    is kept in a file instead of drawn. widgets: changes of our nodes' first inputs of these names."""
    form = json.loads((ROOT / "comfyui/example_workflows" / f"{workflow}.json").read_text())
    links = {link[0]: [str(link[1]), link[2]] for link in form["links"]}
    graph: dict[str, dict] = {}
    for node in form["nodes"]:
        name, number = node["type"], str(node["id"])
        if name == "CheckpointLoaderSimple":
            loader, chosen = LOADERS[family]
            graph[number], clip = {"class_type": loader, "inputs": dict(chosen)}, number
        elif name.startswith("Refact") or (name == "CLIPTextEncode" and node.get("title") == "Prompt"):
            names = [port["name"] for port in node["inputs"] if "widget" in port]
            inputs = dict(zip(names, node["widgets_values"]))
            inputs |= {key: value for key, value in widgets.items() if key in inputs}
            inputs |= {port["name"]: links[port["link"]] for port in node["inputs"] if "widget" not in port}
            graph[number] = {"class_type": name, "inputs": inputs}
            if name == "CLIPTextEncode":
                graph["keep"] = {"class_type": "KeepConditioning", "inputs": {"conditioning": [number, 0]}}
    for node in graph.values():
        if isinstance(link := node["inputs"].get("clip"), list) and link[0] == clip:
            node["inputs"]["clip"] = [clip, 0]  # a checkpoint's CLIP is its second output
    graph["keep"]["inputs"]["path"] = str(kept)
    return graph


def own_conditioning(family: str, patch: refact.Patch, text: str) -> tuple[dict, dict]:
    """What the package itself gives without and with a patch."""
    model = own_model(family)
    assert not patch.mismatch(model), "the patch fits the plain checkpoint"
    with torch.no_grad():
        if family not in CLIPS:
            encoder = model.encoders["text_encoder"]
            clean = {"prompt_embeds": encoder.states([text])}
            with patch.applied(model):
                return clean, {"prompt_embeds": encoder.states([text])}
        clean = model.encode([text])
        with patch.applied(model):
            return clean, model.encode([text])


def own_model(family: str) -> refact.Model:
    """The same encoders as transformers makes them."""
    if family not in CLIPS:
        tokenizer = AutoTokenizer.from_pretrained(Path(CHECKOUT) / "comfy/text_encoders/qwen25_tokenizer")
        tokenizer.chat_template = (
            "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
            "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
        )
        (row,) = FAMILIES[family].encoders
        return refact.Model(
            family, FAMILIES[family], {row.name: TextEncoder(row.name, language_model(), tokenizer, row)}
        )
    folder = Path(CHECKOUT) / "comfy/sd1_tokenizer"
    words = {"text_encoder": CLIPTokenizer.from_pretrained(folder)}
    words["text_encoder_2"] = CLIPTokenizer.from_pretrained(folder)
    words["text_encoder_2"].pad_token = "!"
    files = dict(zip(("text_encoder", "text_encoder_2"), list(MADE)[: 1 + (family == "sdxl")]))
    return refact.from_modules({part: encoder(file) for part, file in files.items()}, words, family=family)


@pytest.mark.parametrize("family", LOADERS)
def test_the_edit_is_the_packages_own(server, family) -> None:
    kept = server.base / f"{family}.pt"
    graph = graph_of("edit_a_fact", family, kept, settings=QUICK, filename_prefix=f"loras/{family}")
    server.run(graph)
    (file,) = (server.base / "output/loras").glob(f"{family}_*")
    text = next(node["inputs"]["text"] for node in graph.values() if "text" in node["inputs"])
    clean, own = own_conditioning(family, refact.Patch.load(file), text)
    for kind, states in own.items():
        effect, gap = float((states - clean[kind]).abs().max()), apart(kept, kind, states)
        size = float(states.abs().max())  # of a language model's states, which are not normalised, some are large
        print(f"{family} {kind}: the edit moves it by {effect:.2g} of {size:.2g}; the programs differ by {gap:.1g}")
        assert effect > 0.05
        assert gap < 1e-3 * max(1.0, size)
    searched = server.searches()
    again = server.run(graph)
    assert set(again["execution_cached"]["nodes"]) == set(graph), "ComfyUI runs no node again"
    server.run(graph_of("edit_a_fact", family, kept, settings=QUICK, strength=0.5))
    assert server.searches() == searched, "another strength searches nothing"
    shutil.copy(file, server.base / "models/loras/facts_00001_.safetensors")
    server.run(graph_of("load_a_patch", family, kept))
    assert all(apart(kept, k, states) < 1e-3 * max(1.0, float(states.abs().max())) for k, states in own.items())


def apart(kept: Path, kind: str, states: torch.Tensor) -> float:
    """By how much ComfyUI's kept conditioning differs at most, where a prompt has rows."""
    return float((torch.load(kept)[kind][:, : states.shape[1]] - states).abs().max())


def test_a_list_of_facts(server) -> None:
    graph = graph_of("facts_file", "sd1", server.base / "list.pt", settings=QUICK, filename_prefix="loras/list")
    server.run(graph)
    (file,) = (server.base / "output/loras").glob("list_*")
    assert refact.Patch.load(file).names == ["king-of-spain", "flag-of-peru"]


def test_the_cancel_button_ends_a_search(server) -> None:
    long = 'tokens = 600\nmax_steps = 5000\nreach = 10.0\nobjective = "direct"'
    before = server.searches()
    number = server.start(graph_of("edit_a_fact", "sd1", server.base / "none.pt", settings=long))
    while server.searches() == before:
        time.sleep(0.3)
    server.call("/interrupt", {})
    assert "execution_interrupted" in server.wait(number)


def test_the_page_is_told_which_facts_a_file_holds(server) -> None:
    facts = server.call("/refact/facts?file=facts_00001_.safetensors")
    assert [fact["title"] for fact in facts] == ["the President of the United States: Nelson Mandela"]
    assert server.call("/refact/facts?file=../../log.txt") == []
    assert server.call("/extensions")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/extensions/refact/refact.js") as page:
        assert b"refact.nodes" in page.read()
