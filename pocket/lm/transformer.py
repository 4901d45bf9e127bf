"""The generator: a small transformer of Z-Image's class, trained by flow matching. python -m pocket.lm.transformer

It is sent what the pipeline sends: the second last states of the language model, of the prompt in its chat template.
Nothing is swapped or hidden: where its knowledge comes from is its own affair, as with large models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from .. import coordinates, pools, training, unet
from . import language, sentences

BATCH, PEAK, CPU_SHARE, POOL = 1024, 1e-3, 1 / 16, 40_000
UNCONDITIONED, SHIFT = 0.1, 3.0  # SHIFT: how much more often there is much noise, as the scheduler's
SHAPE = {
    "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": coordinates.CHANNELS, "dim": 240, "n_layers": 8,
    "n_refiner_layers": 1, "n_heads": 5, "n_kv_heads": 5, "cap_feat_dim": language.SHAPE["hidden_size"],
    "axes_dims": [16, 16, 16], "axes_lens": [256, 32, 32],
}  # fmt: skip


def build() -> ZImageTransformer2DModel:
    """The model with fresh weights."""
    torch.manual_seed(61)
    return ZImageTransformer2DModel(**SHAPE)


@torch.no_grad()
def sent(model: Any, texts: list[str]) -> list[Tensor]:
    """What the pipeline sends of each prompt (rows, width)."""
    words = sentences.tokenizer()
    found = words(sentences.prompts(texts), add_special_tokens=False, padding=True, return_tensors="pt")
    device = next(model.parameters()).device
    states = model(**found.to(device), output_hidden_states=True, logits_to_keep=1).hidden_states[-2]
    return [rows[: int(count)] for rows, count in zip(states, found["attention_mask"].sum(1))]


class Transformer:
    """The generator as a part, with its pool of latents and the frozen language model."""

    name, peak, decay, average, muon = "transformer", PEAK, 1e-3, 0.9996, 4.0

    def __init__(self, asked: training.Given, pool: int | None = None) -> None:
        self.size = max(2, round(asked.batch * BATCH))
        self.players = {"transformer": build()}
        self.lm = training.trained("lm", language.build()).to(asked.device)
        fine, frame = pools.latents("latents-lm", scene_of, pool or POOL, asked), coordinates.load(asked.device)
        self.pool = torch.cat([frame.narrow(some).half() for some in fine.split(pools.CHUNK)])
        self.kept = {"lm": training.size_of(self.lm), "coordinates": training.size_of(frame)}
        if found := training.load(self.name):
            training.check_parts(self.name, found["kept"], self.kept)

    def begin(self, clock: training.Clock) -> None:
        """Nothing here depends on the time."""

    def batch(self, step: int) -> dict[str, Any]:
        """Scenes of the pool and their prompts, some of them empty."""
        rng = training.rng_of(self.name, step)
        indices = [rng.randrange(len(self.pool)) for _ in range(self.size)]
        said = [sentences.caption(rng, scene_of(i)) for i in indices]
        return {"at": np.array(indices), "said": ["" if rng.random() < UNCONDITIONED else text for text in said]}

    def losses(self, player: str, batch: dict, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """The squared error of the flow from noise to latents; to be looked at, by level of noise."""
        draw = {"generator": noise, "device": noise.device}
        x = self.pool[batch["at"]].float()
        even, noises = torch.rand(len(x), **draw), torch.randn(x.shape, **draw)
        sigma = SHIFT * even / (1 + (SHIFT - 1) * even)
        share = sigma[:, None, None, None]
        noisy = (1 - share) * x + share * noises
        texts = sent(self.lm, batch["said"])
        out = self.players[player](list(noisy[:, :, None].unbind()), 1 - sigma, texts, return_dict=False)[0]
        error = (torch.stack(out)[:, :, 0].float() - (x - noises)).square().mean((1, 2, 3))
        return {"flow": error.mean()} | unet.by_level(error.detach(), (sigma * 999).long())


def scene_of(index: int) -> Any:
    """A scene of the pool, the same always."""
    return sentences.scene(training.rng_of("pool of pocket-lm", index))


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    training.train(Transformer(given), given)
