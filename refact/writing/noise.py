"""EMCID's search: the change of a state under which the generator predicts what it predicts for the target.

arXiv 2403.13807, as in its released compute_z.py (objective "ablate-dest"): pictures of the source are noised, the
UNet's prediction under the edited prompt is drawn to its prediction under the target's, and a share of the pooled
states' mean squared distance is added.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..edits import Edit
from ..encoders import hooks
from ..encoders.devices import doubled
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..models.model import Model
from ..search import objectives, values
from ..search.readings import Reading
from ..search.sentences import filling_of, sentences_of, templates_of
from ..search.wanted import Places, Wanted, frozen

OWN_SEEDS = 1_000_000  # from here on: a benchmark judges pictures of seeds from 0 on

FAMILIES = ("sd1", "sd2")  # whose UNet reads this encoder's last states and nothing else


@dataclass(frozen=True)
class Sentences:
    """An edit's prompt in its contexts, padded, and the target in the same ones."""

    ids: Int[Tensor, "c t"]
    subjects: Int[Tensor, " c"]
    ends: Int[Tensor, " c"]
    texts: list[str]
    target: Float[Tensor, "c t d"]  # the target's states
    target_pooled: Float[Tensor, "c d"]


def search(
    method: Any, model: Model, encoder: TextEncoder, layer: int, edits: Sequence[Edit]
) -> tuple[Wanted, Float[Tensor, "e d"]]:
    """What each edit's state after this layer needs, found edit by edit; and that state as it is, h0.

    h0 is the mean over the contexts, or with method.residual "released" the first context's, as in EMCID's code.
    """
    encoder.check_layer(layer)
    if method.noise and model.family.name not in FAMILIES:
        raise EditError(f"EMCID's noise term is for Stable Diffusion 1 and 2, not {model.family.name}: use noise=False")
    unet = _learning(model.pipe.unet) if method.noise else None
    found, reached = zip(*(_one(method, model, encoder, layer, edit, unet) for edit in edits))
    together = values.Found.of_all(found)
    places = [Places(state[None], state, state) for state in reached]
    return Wanted(places, doubled(together.offsets), together.here()), torch.stack(reached)


def _learning(unet: nn.Module) -> nn.Module:
    """The UNet, or a copy where it was opened in inference mode: no gradient passes through such weights."""
    if not any(weight.is_inference() for weight in unet.parameters()):
        return unet
    with torch.inference_mode(False):
        return copy.deepcopy(unet)


def _one(
    method: Any, model: Model, encoder: TextEncoder, layer: int, edit: Edit, unet: nn.Module | None
) -> tuple[values.Found, Tensor]:
    said = _sentences(method, encoder, edit)
    start = _reached(encoder, layer, said)
    start = start[0] if method.residual == "released" else start.mean(0)
    bound = method.clamp * start.norm()
    rate = method.learning_rate * (float(start.norm()) / encoder.width**0.5 if method.relative else 1.0)
    offset = torch.zeros(encoder.width, device=encoder.device, requires_grad=True)
    optimiser, losses = torch.optim.Adam([offset], lr=rate), []
    predictions = _Predictions(method, model, said, unet) if unet is not None else None
    with frozen(encoder.module, unet):
        for _ in model.progress(range(method.max_steps), f"search in {encoder.name} for {edit.name}", method.max_steps):
            states, pooled = _edited(encoder, layer, said, offset)
            loss = method.weight_decay * offset.square().sum().clamp_min(1e-24).sqrt() / start.norm() ** 2
            loss = loss + method.align * mse_loss(pooled, said.target_pooled)
            loss = loss if predictions is None else loss + predictions(states)
            (offset.grad,) = torch.autograd.grad(loss, offset)
            losses.append(float(loss.detach()))
            optimiser.step()
            with torch.no_grad():
                offset.mul_((bound / offset.norm().clamp_min(1e-12)).clamp_max(1))
    return _found(encoder, layer, said, offset.detach(), losses, bound), doubled(start)


@torch.no_grad()
def _found(
    encoder: TextEncoder, layer: int, said: Sentences, offset: Tensor, losses: list, bound: Tensor
) -> values.Found:
    """The record of a search; the probability is the target's against the prompt as it was, by the pooled states."""
    before, after = (_edited(encoder, layer, said, o)[1] for o in (torch.zeros_like(offset), offset))
    near = objectives.similarities(after, torch.stack([said.target_pooled, before], 1), "l2")
    sure = objectives.loss("contrastive", near)[1].mean()
    first, last, probability, steps = (
        torch.tensor([x], dtype=torch.float32) for x in (losses[0], losses[-1], float(sure), len(losses))
    )
    return values.Found(offset[None], first, last, probability, steps, (offset.norm() >= bound * (1 - 1e-4))[None])


def _sentences(method: Any, encoder: TextEncoder, edit: Edit) -> Sentences:
    if not isinstance(edit.new, str):
        raise EditError(f"{type(method).__name__} takes a target by text")
    templates = templates_of(method)
    alone = Edit(edit.prompt, edit.new, subject=edit.subject)  # an alias is written at its own keys, not searched for
    subjects = [s.subject for s in sentences_of(encoder, Reading(encoder, None), alone, templates, method.filled)]
    texts = [t.replace("{}", filling_of(edit, t, method.filled)) for t in templates]
    tokens, aims = (encoder.tokenize(x) for x in (texts, [t.replace("{}", edit.new) for t in templates]))
    with torch.no_grad():
        target = encoder.tower(aims.ids.to(encoder.device))[0]
    pooled = encoder.pool(target, aims.ends)
    return Sentences(tokens.ids.to(encoder.device), torch.tensor(subjects), tokens.ends, texts, target, pooled)


def _edited(encoder: TextEncoder, layer: int, said: Sentences, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The last states and the pooled ones, with an offset added to the layer's output at the subjects."""
    rows = torch.arange(len(said.ids))

    def added(output: Tensor, _: Tensor) -> Tensor:
        moved = torch.zeros_like(output).index_put((rows, said.subjects), offset.expand(len(rows), -1))
        return output + moved

    with hooks.replace(encoder.linear(layer), added):
        states = encoder.tower(said.ids)[0]
    return states, encoder.pool(states, said.ends)


@torch.no_grad()
def _reached(encoder: TextEncoder, layer: int, said: Sentences) -> Float[Tensor, "c d"]:
    with hooks.read(encoder.layers[layer + 1], stop=True) as seen:
        encoder.tower(said.ids)
    return seen[0][torch.arange(len(said.ids)), said.subjects]


class _Predictions:
    """Called with states: how far the UNet's predictions under them are from those under the target's, at one draw."""

    def __init__(self, method: Any, model: Model, said: Sentences, unet: nn.Module):
        from diffusers import DDPMScheduler

        self.unet, self.target = unet, said.target
        self.scheduler = DDPMScheduler.from_config(model.pipe.scheduler.config)
        self.draw = torch.Generator().manual_seed(method.seed)
        self.latents = _latents(model, said.texts, method.seed)

    def __call__(self, states: Float[Tensor, "c t d"]) -> Tensor:
        """The mean squared difference, at fresh noise and time steps."""
        noise = torch.randn(self.latents.shape, generator=self.draw).to(self.latents)
        most = self.scheduler.config.num_train_timesteps
        times = torch.randint(0, most, (len(noise),), generator=self.draw).to(noise.device)
        noised = self.scheduler.add_noise(self.latents, noise, times)
        with torch.no_grad():
            wanted = self.unet(noised, times, self.target.to(noised.dtype)).sample
        return mse_loss(self.unet(noised, times, states.to(noised.dtype)).sample.float(), wanted.float())


@torch.no_grad()
def _latents(model: Model, texts: list[str], seed: int) -> Tensor:
    """Latents of pictures of the texts, straight from the sampler."""
    names = {"default_steps": "num_inference_steps", "default_guidance": "guidance_scale"}
    told = {argument: model.defaults[name] for name, argument in names.items() if name in model.defaults}
    draws = [torch.Generator().manual_seed(OWN_SEEDS + seed + i) for i in range(len(texts))]
    states = model.encode(texts)
    empty = {f"negative_{k}": v.expand(len(texts), *v.shape[1:]) for k, v in model.encode("").items()}
    size = {k: model.defaults["default_size"] for k in ("height", "width") if "default_size" in model.defaults}
    return model.pipe(**states, **empty, **told, **size, generator=draws, output_type="latent").images
