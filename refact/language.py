"""The families whose prompts are read by a language model or by T5 alone: what each pipeline of diffusers sends.

Read in the code of diffusers 0.42 (what is sent, in which frame) and of ComfyUI (the names of a LoRA there): a text
encoder of these families has the prefix `text_encoders.<name of the encoder>.transformer` in ComfyUI. Checked on tiny
pipelines of the stock classes (tests/test_language.py). docs/encoders.md says what an edit reaches in each.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .family import EncoderRow, Family, headers

ONLY = "text_encoder"
SANA = 300  # rows of content that Sana reads after its instruction


def _decoder(prefix: str, taps: tuple[int, ...], frame: str, length: int, padding: bool = False, name: str = ONLY):
    return EncoderRow(
        name,
        "taps",
        False,
        f"text_encoders.{prefix}",
        "decoder",
        taps=taps,
        frame=frame,
        length=length,
        padding=padding,
    )


LANGUAGE: dict[str, Family] = {
    "z-image": Family(
        "z-image",
        "Z-Image",
        (_decoder("qwen3_4b.transformer", (-2,), "chat-thinking", 512),),
        "diffusers",
        headers("z-image"),
        transformer="ZImageTransformer2DModel",
        entrance="cap_embedder.1",
        entrance_norm="cap_embedder.0",
    ),
    "flux2-klein": Family(
        "flux2-klein",
        "FLUX.2 klein",
        # the size of the encoder, and with it ComfyUI's name for it, differs among the models: the name without it
        (_decoder("transformer", (9, 18, 27), "chat", 512, padding=True),),
        "diffusers",
        headers("flux-2-klein"),
        transformer="Flux2Transformer2DModel",
        entrance="context_embedder",
    ),
    "flux2": Family(
        "flux2",
        "FLUX.2 dev",
        (_decoder("mistral3_24b.transformer", (10, 20, 30), "flux2", 512, padding=True),),
        "diffusers",
        headers("flux-2-dev"),
        entrance="context_embedder",
    ),
    "qwen-image": Family(
        "qwen-image",
        "Qwen-Image",
        (_decoder("qwen25_7b.transformer", (-1,), "qwen-image", 1024 + 34),),
        "diffusers",
        headers("qwen-image"),
        transformer="QwenImageTransformer2DModel",
        entrance="txt_in",
        entrance_norm="txt_norm",
    ),
    "sana": Family(
        "sana",
        "Sana",
        (_decoder("gemma2_2b.transformer", (-1,), "sana", SANA - 2),),
        "diffusers",
        headers("sana"),
        transformer="SanaTransformer2DModel",
        entrance="caption_projection.linear_1",
    ),
    "lumina2": Family(
        "lumina2",
        "Lumina Image 2.0",
        (_decoder("gemma2_2b.transformer", (-2,), "lumina2", 256),),
        "diffusers",
        headers("lumina-2"),
        transformer="Lumina2Transformer2DModel",
        entrance="time_caption_embed.caption_embedder.1",
        entrance_norm="time_caption_embed.caption_embedder.0",
    ),
    "pixart": Family(
        "pixart",
        "PixArt",
        (EncoderRow(ONLY, "last", False, "lora_te1", "t5", frame="lower", length=120, masked=True),),
        "diffusers",
        headers("pixart"),
        transformer="PixArtTransformer2DModel",
        entrance="caption_projection.linear_1",
    ),
    "hidream": Family(
        "hidream",
        "HiDream-I1",
        (
            EncoderRow("text_encoder", "none", True, "text_encoder", length=128),
            EncoderRow("text_encoder_2", "none", True, "text_encoder_2", length=128),
            EncoderRow("text_encoder_3", "last", False, "lora_te3", "t5", length=128, masked=True, padding=True),
            _decoder("llama.transformer", (), "", 128, padding=True, name="text_encoder_4"),
        ),
        "diffusers",
        headers("hidream-i1"),
        note="Llama, T5 and two CLIPs read the prompt; an edit of one leaves what the others know as it is.",
        transformer="HiDreamImageTransformer2DModel",
        edited=("text_encoder_4",),
    ),
}


def usage(path: Path, family: Family, sites: Iterable[str], strength: str) -> str:
    """The lines to use a patch of these families in diffusers and ComfyUI; strength: what ComfyUI calls it."""
    components = sorted({site.partition(".")[0] for site in sites})
    if components == ["transformer"]:
        load = f"  pipe.load_lora_weights({str(path.parent)!r}, weight_name={path.name!r})"
        return f"diffusers:\n{load}\n  pipe.unload_lora_weights()  # undo"
    encoder = components[0]
    return "\n".join(
        [
            f"diffusers (load_lora_weights of {family.title} reaches no text encoder; the encoder takes an adapter):",
            f"  refact.save_adapter(refact.Patch.load({str(path)!r}), refact.load(MODEL), 'adapters')  # once",
            f"  pipe.{encoder}.load_adapter('adapters/{encoder}')",
            f"  pipe.{encoder}.delete_adapter('default')  # undo",
            f"  or, for a folder with the change in its weights: refact bake -m MODEL --patch {path} -o FOLDER",
            "ComfyUI (for FLUX.2 klein a version of 2026):",
            f"  copy {path.name} to models/loras; node Load LoRA, MODEL and CLIP wired through it;",
            f"  {strength}",
        ]
    )
