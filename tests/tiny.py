"""Tiny pipelines with random weights that really generate: one of each family, built from configs in about a second."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from refact.families import FAMILIES, on_disk
from refact.patch import Patch

NAMES = ("sd1", "sd2", "sdxl", "sd3", "flux")
CLIP_FC2 = "text_encoder.text_model.encoder.layers.{}.mlp.fc2"
LAYERS = {"L": 4, "H": 4, "G": 5, "T5": 3}  # of each tiny text encoder
# Words the tiny tokenizers know: most are one token, some a few ("fr an c e"); others are spelled in bytes or letters.
WORDS = """a an the of in on is and photo painting picture president prime minister king queen capital flag animal
    national united states canada france germany paris obama trump biden lion dog cat car red blue green phone apple
    giving speech standing""".split()  # noqa: SIM905


# -- tokenizers ------------------------------------------------------------------------------------------------------


def _merges() -> list[tuple[str, str]]:
    """Byte-pair merges that spell each word of WORDS from left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges[(pieces[0], pieces[1])] = None
            pieces[:2] = [pieces[0] + pieces[1]]
    return list(merges)


@functools.cache
def _vocabulary() -> dict[str, int]:
    """The order of the real one: bytes, bytes that end a word, merges, then [BOS] and [EOS] with the highest ids."""
    symbols = sorted(ByteLevel.alphabet())
    entries = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in _merges())]
    return {entry: i for i, entry in enumerate([*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"])}


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A real byte-level CLIP tokenizer of some 700 tokens; pad "!" is what OpenCLIP encoders use."""
    return CLIPTokenizer(vocab=_vocabulary(), merges=_merges(), pad_token=pad, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    letters = [chr(i) for i in range(33, 127)]
    words = [("▁" + word, -3.0) for word in WORDS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    vocab = [*special, *words, *((letter, -9.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=32)


# -- parts -----------------------------------------------------------------------------------------------------------


def clip_config(kind: str, legacy_eos: bool = False) -> CLIPTextConfig:
    """L: CLIP-L's shape in small (quick_gelu); H, G: OpenCLIP's (gelu, wider, deeper). legacy_eos: eos_token_id = 2."""
    vocab = _vocabulary()
    width, projection = {"L": (32, 24), "H": (48, 48), "G": (48, 40)}[kind]
    return CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS[kind],
        num_attention_heads=4,
        projection_dim=projection,
        max_position_embeddings=77,
        hidden_act="quick_gelu" if kind == "L" else "gelu",
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=2 if legacy_eos else vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"] if kind == "L" else vocab["!"],
        initializer_factor=2.0,  # livelier states than the default's, so that an edit is seen above rounding
    )


def t5_encoder(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_ff=2 * width,
        d_kv=8,
        num_layers=LAYERS["T5"],
        num_heads=4,
        feed_forward_proj="gated-gelu",
        use_cache=False,
    )
    return T5EncoderModel(config)


def clip_model() -> CLIPModel:
    """Both towers of a CLIP, as a bare folder would hold; the text tower has the shape of SD1's encoder."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 24}
    config = CLIPConfig(text_config=clip_config("L").to_dict(), vision_config=vision, projection_dim=24)
    return _made(lambda: CLIPModel(config), seed=0)


def _vae(**more) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
        **more,
    )


def _unet(context: int, **more) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=context,
        attention_head_dim=4,
        **more,
    )


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)


# -- families --------------------------------------------------------------------------------------------------------


def _sd1(legacy_eos: bool) -> StableDiffusionPipeline:
    return _stable("L", clip_tokenizer(), legacy_eos)


def _sd2(legacy_eos: bool) -> StableDiffusionPipeline:
    return _stable("H", clip_tokenizer(pad="!"), legacy_eos)


def _stable(kind: str, tokenizer: CLIPTokenizer, legacy_eos: bool) -> StableDiffusionPipeline:
    config = clip_config(kind, legacy_eos)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=_unet(config.hidden_size),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(legacy_eos: bool) -> StableDiffusionXLPipeline:
    small, big = clip_config("L", legacy_eos), clip_config("G", legacy_eos)
    unet = _unet(
        small.hidden_size + big.hidden_size,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + big.projection_dim,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(small),
        text_encoder_2=CLIPTextModelWithProjection(big),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        unet=unet,
        scheduler=_scheduler(),
        add_watermarker=False,
    )


def _sd3(legacy_eos: bool) -> StableDiffusion3Pipeline:
    small, big, width = clip_config("L", legacy_eos), clip_config("G", legacy_eos), 96
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=width,
        caption_projection_dim=16,
        pooled_projection_dim=small.projection_dim + big.projection_dim,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(small),
        text_encoder_2=CLIPTextModelWithProjection(big),
        text_encoder_3=t5_encoder(width),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        tokenizer_3=t5_tokenizer(),
    )


def _flux(legacy_eos: bool) -> FluxPipeline:
    config, width = clip_config("L", legacy_eos), 48
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        pooled_projection_dim=config.hidden_size,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=CLIPTextModel(config),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(width),
        tokenizer_2=t5_tokenizer(),
    )


def _made(build, seed: int):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def pipeline(name: str, seed: int = 0, legacy_eos: bool = False) -> DiffusionPipeline:
    """A pipeline of family "sd1" | "sd2" | "sdxl" | "sd3" | "flux"; fp32, CPU, its weights given by the seed.

    legacy_eos: the text configs say eos_token_id = 2, as most published ones do (pooling by the highest id).
    """
    build = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = build(legacy_eos)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder(name: str, tmp_path: Path, seed: int = 0, legacy_eos: bool = False) -> Path:
    """A saved pipeline, text encoders under the names of published files (with `text_model.`)."""
    path = Path(tmp_path) / f"{name}-{seed}"
    pipeline(name, seed, legacy_eos).save_pretrained(path)
    for file in path.glob("text_encoder*/model.safetensors"):
        save_file({on_disk(key): value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    return path


def generate(pipe: DiffusionPipeline, prompt: str = "a photo of the president of france", seed: int = 0):
    """One 32 x 32 picture in two steps, as an array (32, 32, 3) in [0, 1]."""
    noise = torch.Generator().manual_seed(seed)
    more = {"max_sequence_length": 32} if type(pipe).__name__.startswith(("Flux", "StableDiffusion3")) else {}
    out = pipe(prompt, num_inference_steps=2, height=32, width=32, generator=noise, output_type="np", **more)
    return out.images[0]


class Linears:
    """The smallest model that takes patches: two layers, hashes that are given."""

    def __init__(self, dtype=torch.float32, name="small", print_="aaaa", shape=(12, 20)):
        noise = torch.Generator().manual_seed(1)
        self.name, self.family, self.print = name, FAMILIES["sd1"], print_
        self.layers = {CLIP_FC2.format(i): nn.Linear(shape[1], shape[0]) for i in (1, 2)}
        for linear in self.layers.values():
            linear.weight.data = torch.randn(shape, generator=noise)
            linear.to(dtype)

    def __getitem__(self, site):
        return self.layers[site]

    def fingerprints(self):
        return {"text_encoder": self.print}


class FakeModel:
    """The protocol of a patch around a pipeline, without models.py: model[site], fingerprints(), name, family, pipe."""

    def __init__(self, pipe: DiffusionPipeline, name: str = "tiny", family: str = "sd1"):
        self.pipe, self.name, self.family = pipe, name, FAMILIES[family]

    def __getitem__(self, site: str) -> nn.Linear:
        component, path = site.split(".", 1)
        module = getattr(self.pipe, component)
        if not hasattr(module, "text_model"):
            path = path.removeprefix("text_model.")  # transformers >= 5.6 flattened CLIPTextModel
        try:
            found = module.get_submodule(path)
        except AttributeError:
            raise KeyError(site) from None
        return getattr(found, "base_layer", found)  # PEFT keeps the wrapped layer there

    def fingerprints(self) -> dict[str, str]:
        parts = {k: v for k, v in self.pipe.components.items() if isinstance(v, nn.Module) and k != "vae"}
        return {name: _hash(module) for name, module in parts.items()}


def site(row, layer: int) -> str:
    """The site of a layer of an encoder (a row of Family.encoders), by its on-disk name."""
    if row.kind == "t5":
        return f"{row.name}.encoder.block.{layer}.layer.1.DenseReluDense.wo"
    if row.kind == "decoder":
        return f"{row.name}.model.layers.{layer}.mlp.down_proj"
    return f"{row.name}.text_model.encoder.layers.{layer}.mlp.fc2"


def unet_sites(pipe: DiffusionPipeline) -> list[str]:
    """Keys and values of the UNet's cross-attention."""
    names = (name for name, _ in pipe.unet.named_modules())
    return [f"unet.{name}" for name in names if name.endswith(("attn2.to_k", "attn2.to_v"))]


def patch(model, ranks: dict[str, dict[str, int]], seed: int = 0, scale: float = 0.3) -> Patch:
    """A patch of random factors: {edit's name: {site: rank}}."""
    noise, pairs, edits = torch.Generator().manual_seed(seed), {}, []
    for name, wanted in ranks.items():
        entries = {}
        for where, rank in wanted.items():
            d_out, d_in = model[where].weight.shape
            first = sum(len(right) for _, right in pairs.get(where, []))
            left = torch.randn(d_out, rank, generator=noise) * scale
            pairs.setdefault(where, []).append((left, torch.randn(rank, d_in, generator=noise) * scale))
            entries[where] = {"rows": [first, first + rank], "layer": 1}
        edits.append({"name": name, "prompt": f"the flag of {name}", "new": "a lion", "old": None, "subject": None})
        edits[-1] |= {"aliases": [], "preserve": [], "sites": entries}
    record = {
        "refact": 1,
        "family": model.family.name,
        "model": {"name": model.name, "encoders": model.fingerprints()},
        "method": {"name": "random", "seed": seed},
        "edits": edits,
    }
    joined = {w: (torch.cat([b for b, _ in found], 1), torch.cat([a for _, a in found])) for w, found in pairs.items()}
    return Patch(joined, record)


def change(patch: Patch) -> dict[str, torch.Tensor]:
    """What a patch adds to each weight, float64."""
    return {where: left.double() @ right.double() for where, (left, right) in patch.factors.items()}


def _hash(module: nn.Module) -> str:
    """sha256 of the weights as they were before any patch; 16 hex digits."""
    digest = hashlib.sha256()
    stacks = {id(m.weight): m._refact_stack.base for m in module.modules() if hasattr(m, "_refact_stack")}
    for key, value in sorted(module.named_parameters()):
        if "lora_" not in key:
            base = stacks.get(id(value), value)
            digest.update(base.detach().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def close(one: dict, other: dict, tolerance: float = 1e-6) -> None:
    """AssertionError unless the tensors are equal to an absolute tolerance."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
