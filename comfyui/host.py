"""What the nodes need of ComfyUI: a CLIP as a model, a CLIP with a patch, progress and cancelling."""

import hashlib
import logging
import tomllib
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.utils

import refact
from refact.families import FAMILIES as KNOWN
from refact.methods.usual import usual_for
from refact.models.covariance import cache_folder
from refact.progress import calling

KEY = "refact"  # under which a CLIP carries its facts
ENCODERS = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}
ENCODERS |= {"qwen3_4b": "text_encoder", "qwen3_8b": "text_encoder"}
FAMILIES = {
    frozenset({"clip_l"}): "sd1",
    frozenset({"clip_h"}): "sd2",
    frozenset({"clip_l", "clip_g"}): "sdxl",
    frozenset({"clip_l", "clip_g", "t5xxl"}): "sd3",
    frozenset({"clip_l", "t5xxl"}): "flux",
}


def model_of(clip):
    """The CLIP as a model: its weights as its checkpoint had them, used where they lie, and nothing copied.

    LoRAs and facts that the CLIP carries are left out, so that a patch fits the plain checkpoint.
    """
    family, names = family_of(clip.cond_stage_model)
    clip.load_model()
    first = getattr(clip.tokenizer, names[0])
    model = refact.from_state_dict(
        _base_weights(clip, names),
        first.tokenizer,
        name=f"{KNOWN[family].title} in ComfyUI",
        family=family,
        prefixes={ENCODERS[name]: _prefix(name) for name in names},
        device=clip.patcher.load_device,
    )
    model.progress = _progress()
    return model


def family_of(encoders):
    """The family of ComfyUI's text encoders, and the names of those that can be edited."""
    found = {name for name in [*dict(encoders.named_children()), "t5xxl"] if hasattr(encoders, name)}
    names = [name for name in ENCODERS if name in found and getattr(encoders, name) is not None]
    family = FAMILIES.get(frozenset(found))
    if len(found) == 1 and names and names[0].startswith("qwen3"):
        several = isinstance(getattr(encoders, names[0]).layer, list)  # states of several layers side by side
        family = "flux2-klein" if several else "z-image"
    if family is None or not names:
        raise refact.ModelError(
            f"this CLIP holds {', '.join(sorted(found))}; facts are edited in the text encoders of "
            "Stable Diffusion 1, 2, XL and 3, of FLUX.1, Z-Image and FLUX.2 klein"
        )
    return family, names


def _prefix(name):
    """What the names of an encoder's tensors begin with."""
    return f"{name}.transformer.model." if name.startswith("qwen3") else f"{name}.transformer."


def _base_weights(clip, names):
    """{key: tensor} without LoRAs; eight-bit weights that have scales come out as the numbers that they stand for."""
    prefixes = tuple(f"{name}.transformer." for name in names)
    weights = {}
    for key, (base, *_) in clip.get_key_patches().items():
        if key.startswith(prefixes) and key != "clip_l.transformer.text_projection.weight":  # which nothing reads
            weight, convert = base
            weights[key] = convert(weight, inplace=False)
    return weights


def facts_on(clip):
    """The (patch, strength) pairs that nodes of this pack have put on a CLIP."""
    return clip.patcher.get_attachment(KEY) or ()


def patched(clip, patch, strength):
    """The CLIP with the patch; the one that is given stays as it is."""
    new = clip.clone()
    known = comfy.lora.model_lora_keys_clip(new.cond_stage_model, {})
    loaded = comfy.lora.load_lora(patch.tensors(), known, log_missing=False)
    added = new.add_patches(loaded, strength)
    if len(added) < len(patch.factors):
        parts = sorted({site.partition(".")[0] for site in patch.factors})
        made = KNOWN[patch.record["family"]].title
        raise refact.PatchError(
            f"the patch changes {' and '.join(parts)} of {made}, which this CLIP does not have; "
            "a patch of the unet is loaded by ComfyUI's own Load LoRA"
        )
    new.patcher.set_attachments(KEY, (*facts_on(clip), (patch, strength)))
    return new


def check_made_for(clip, patch):
    """PatchError where a patch was made for another model than this CLIP's."""
    if wrong := patch.mismatch(model_of(clip)):
        made = patch.record["model"]["name"]
        raise refact.PatchError(
            f"this patch was made for another checkpoint ({made}): {'; '.join(wrong)}; "
            "switch on any_checkpoint to load it all the same"
        )


def lines_of(text):
    """The lines of a text field that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def settings_of(text):
    """Settings of the method, written as TOML: `layer = 9`."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise refact.DataError(f"settings are lines such as 'layer = 9', and texts stand in quotes: {error}") from None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def method_of(model, edit, settings):
    """What is usual for the model, with the settings that are given."""
    given = settings_of(settings)
    refact.method("refact", **given)
    return usual_for(model, [edit], **given)


def kept(*parts):
    """The folder of patches that were made before, or a file in it whose name depends on all the parts."""
    folder = cache_folder() / "patches"
    if not parts:
        return folder
    return folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.safetensors"


def told(model, patch, strength):
    """What became of the facts, in words."""
    from refact.verification import described, unseen, verify

    if reason := unseen(patch):
        return f"{len(patch.names)} facts; whether they hold is seen in pictures alone ({reason})"
    return "\n".join(described(verify(model, patch, strength=strength)))


def file_stamp(path):
    """A text that changes with the file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _progress():
    """ComfyUI's progress bar and its cancel button."""
    bar, last = comfy.utils.ProgressBar(1), [""]

    def step(label, done, total):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if label != last[0]:
            logging.info("ReFACT: %s", label)
            last[0] = label
        bar.update_absolute(done, total or 1)

    return calling(step)
