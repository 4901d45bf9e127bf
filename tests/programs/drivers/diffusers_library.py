"""diffusers: load_lora_into_text_encoder of each family's pipeline, then fused, so that weights can be compared."""

import diffusers
import torch
from common import Refused, linear, main, towers

PIPELINES = {
    "sd1": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
    "flux": diffusers.FluxPipeline,
}


def apply(family, file, before):
    made, kind = towers(family, before), PIPELINES[family]
    try:
        loaded = kind.lora_state_dict(
            str(file.parent), weight_name=file.name, **({"return_alphas": True} if family == "flux" else {})
        )
        state, alphas = loaded if isinstance(loaded, tuple) else (loaded, None)
        for name, encoder in made.items():
            if any(key.startswith(f"{name}.") for key in state):
                kind.load_lora_into_text_encoder(
                    state, network_alphas=alphas, text_encoder=encoder, prefix=name, adapter_name="x"
                )
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from None
    return {site: merged(linear(made[site.partition(".")[0]], site)) for site in before}


def merged(found) -> torch.Tensor:
    if not hasattr(found, "lora_A"):
        return found.weight.detach().clone()
    found.merge()
    return found.base_layer.weight.detach().clone()


def version(_):
    return diffusers.__version__


if __name__ == "__main__":
    main(apply, version, tuple(PIPELINES))
