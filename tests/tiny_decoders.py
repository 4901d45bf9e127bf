"""Tiny pipelines with random weights whose prompts a language model or T5 reads: the stock classes, real tokenizers."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import diffusers
import tiny
import torch
import transformers as tf
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tiny import t5_encoder, t5_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

from refact.encoders.frames import LUMINA2, QWEN_IMAGE, instruction

NAMES = ("z-image", "flux2-klein", "flux2", "qwen-image", "sana", "lumina2", "pixart", "hidream")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.content is string else m.content[0].text }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")


# -- tokenizers -------------------------------------------------------------------------------------------------------


@functools.cache
def _spelling() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary of `tiny.WORDS` and of the pipelines' instructions, with and without a space before."""
    merges: dict[tuple[str, str], None] = {}
    told = " ".join([*instruction(), SYSTEM_MESSAGE, *QWEN_IMAGE, LUMINA2])
    for word in dict.fromkeys([*tiny.WORDS, "Canada", "France", "system", "user", *re.findall(r"[A-Za-z]+", told)]):
        for written in (word, f"Ġ{word}"):
            pieces = list(written)
            while len(pieces) > 1:
                merges[(pieces[0], pieces[1])] = None
                pieces[:2] = [pieces[0] + pieces[1]]
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    return {entry: i for i, entry in enumerate(dict.fromkeys(entries))}, list(merges)


def tokenizer(bos: bool = False) -> tf.PreTrainedTokenizerFast:
    """A byte-level tokenizer with the marks of a chat; bos: it writes <bos> first, as Gemma's and Llama's do."""
    vocab, merges = _spelling()
    inner = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
        )
    marks = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "bos_token": "<bos>"}
    made = tf.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=2048, padding_side="right", **marks)
    made.chat_template = CHAT
    return made


# -- language models --------------------------------------------------------------------------------------------------

VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
PIXTRAL |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
KINDS = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3", "qwen2.5-vl", "mistral3")


def language_model(kind: str, layers: int = 6, seed: int = 0, window: int = 5) -> nn.Module:
    """A decoder of that architecture, width 32; window: how far Mistral and some layers of Gemma look back."""
    shape = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 1024 if layers < 20 else 256,
        "num_hidden_layers": layers,
    }
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    shape |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    gemma = shape | {"head_dim": 8, "sliding_window": window, "query_pre_attn_scalar": 8}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    build = {
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**shape)),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**shape, head_dim=8)),
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**shape)),
        "mistral": lambda: tf.MistralModel(tf.MistralConfig(**shape, sliding_window=window)),
        "gemma2": lambda: tf.Gemma2Model(tf.Gemma2Config(**gemma)),
        "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**gemma, sliding_window_pattern=3)),
        "qwen2.5-vl": lambda: tf.Qwen2_5_VLForConditionalGeneration(
            tf.Qwen2_5_VLConfig(text_config=shape | {"rope_parameters": rope}, vision_config=VISION)
        ),
        "mistral3": lambda: tf.Mistral3ForConditionalGeneration(
            tf.Mistral3Config(text_config={"model_type": "mistral", **shape}, vision_config=PIXTRAL)
        ),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
        for weight in module.parameters():
            nn.init.normal_(weight, std=0.2)  # livelier states than the default's
    return module.eval()


# -- pipelines --------------------------------------------------------------------------------------------------------


def _flux2_vae() -> nn.Module:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,), layers_per_block=1, latent_channels=1, norm_num_groups=1, sample_size=32,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def _z_image() -> DiffusionPipeline:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    transformer.x_pad_token.data.normal_()
    transformer.cap_pad_token.data.normal_()
    vae = tiny._vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4)
    return diffusers.ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(), vae, language_model("qwen3"), tokenizer(), transformer
    )


def _flux2_transformer() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * 32, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip


def _flux2_klein() -> DiffusionPipeline:
    return diffusers.Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(), _flux2_vae(), language_model("qwen3", 28), tokenizer(), _flux2_transformer()
    )


def _flux2() -> DiffusionPipeline:
    return diffusers.Flux2Pipeline(
        FlowMatchEulerDiscreteScheduler(), _flux2_vae(), language_model("mistral3", 31), tokenizer(),
        _flux2_transformer(),  # a processor in place of the tokenizer would need torchvision
    )  # fmt: skip


def _qwen_image() -> DiffusionPipeline:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        FlowMatchEulerDiscreteScheduler(), vae, language_model("qwen2.5-vl"), tokenizer(), transformer
    )


def _sana() -> DiffusionPipeline:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=32,
        sample_size=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8, 8),
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_out_channels=(8, 8),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.SanaPipeline(tokenizer(bos=True), language_model("gemma2"), vae, transformer, scheduler)


def _lumina2() -> DiffusionPipeline:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=1, num_refiner_layers=1,
        num_attention_heads=1, num_kv_heads=1, multiple_of=16, cap_feat_dim=32, axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 128, 128),
    )  # fmt: skip
    vae = tiny._vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4)
    return diffusers.Lumina2Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), vae, language_model("gemma2"), tokenizer(bos=True)
    )


def _pixart() -> DiffusionPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, norm_type="ada_norm_single",
    )  # fmt: skip
    words = t5_tokenizer()
    return diffusers.PixArtAlphaPipeline(words, t5_encoder(32), tiny._vae(), transformer, DPMSolverMultistepScheduler())


def _hidream() -> DiffusionPipeline:
    small, big = tiny.clip_config("L"), tiny.clip_config("G")
    for config in (small, big):
        config.max_position_embeddings = 128
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[32, 32], text_emb_dim=small.projection_dim + big.projection_dim,
        num_routed_experts=4, num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32),
        llama_layers=[4, 5],
    )  # fmt: skip
    vae = tiny._vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4)
    clips = [tiny.clip_tokenizer(), tiny.clip_tokenizer(pad="!")]
    return diffusers.HiDreamImagePipeline(
        FlowMatchEulerDiscreteScheduler(), vae, tf.CLIPTextModelWithProjection(small), clips[0],
        tf.CLIPTextModelWithProjection(big), clips[1], t5_encoder(32), t5_tokenizer(), language_model("llama"),
        tokenizer(bos=True), transformer,
    )  # fmt: skip


BUILD = {
    "z-image": _z_image, "flux2-klein": _flux2_klein, "flux2": _flux2, "qwen-image": _qwen_image, "sana": _sana,
    "lumina2": _lumina2, "pixart": _pixart, "hidream": _hidream,
}  # fmt: skip


def pipeline(name: str, seed: int = 0) -> DiffusionPipeline:
    """A pipeline of that family; fp32, CPU, its weights given by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = BUILD[name]()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    if name == "hidream":
        pipe.default_sample_size = 16  # it draws that many pixels whatever was asked for
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder(name: str, path: Path, seed: int = 0) -> Path:
    """A saved pipeline."""
    pipeline(name, seed).save_pretrained(path / name)
    return path / name


def picture(pipe: DiffusionPipeline, prompt: str = "a photo of the president of France", seed: int = 0):
    """One picture in two steps, as an array in [0, 1]; of what the pipeline itself encodes."""
    noise = torch.Generator().manual_seed(seed)
    more = {"use_resolution_binning": False} if type(pipe).__name__.startswith(("Sana", "PixArt")) else {}
    out = pipe(prompt=prompt, num_inference_steps=2, height=32, width=32, generator=noise, output_type="np", **more)
    return out.images[0]
