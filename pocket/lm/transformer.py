"""The generator: a small transformer of Z-Image's class, trained by flow matching. python -m pocket.lm.transformer

It is sent what the pipeline sends: the second last states of the language model, of the prompt in its chat template.
Nothing is swapped or hidden: where its knowledge comes from is its own affair, as with large models. As the UNet, it
learns from whitened rows, and looks before scenes (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import linear

from .. import coordinates, pools, training, unet
from ..glyphs import shown_ids, world
from ..render import Scene
from . import language, sentences

BATCH, PEAK, CPU_SHARE = 1024, 3e-4, 1 / 16
POOL = 40_000  # random scenes whose latents and prompts are kept
MOST = 48  # tokens of a prompt in its template, at most
UNCONDITIONED, SHIFT = 0.1, 3.0  # SHIFT: how much more often there is much noise, as the scheduler's
SHAPE = {
    "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": coordinates.CHANNELS, "dim": 240, "n_layers": 6,
    "n_refiner_layers": 1, "n_heads": 5, "n_kv_heads": 5, "cap_feat_dim": language.SHAPE["hidden_size"],
    "axes_dims": [16, 16, 16], "axes_lens": [256, 32, 32],
}  # fmt: skip


# -- the network -------------------------------------------------------------------------------------------------------


class Whitened(nn.Linear):
    """A linear layer of rows (n, d) that are whitened first, by a mean (d,) and a matrix (d, d) that rest."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whiten", torch.eye(width))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (n, out)."""
        return linear((rows - self.mean) @ self.whiten, self.weight, self.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The stock layer that gives the same."""
        made = nn.Linear(self.in_features, self.out_features)
        weight = self.weight.double() @ self.whiten.double().T
        made.weight.copy_(weight)
        made.bias.copy_(self.bias.double() - weight @ self.mean.double())
        return made


def build() -> ZImageTransformer2DModel:
    """The model with fresh weights, its text rows whitened; `stock` makes it what the pipeline takes."""
    torch.manual_seed(61)
    made = ZImageTransformer2DModel(**SHAPE)
    made.cap_embedder[0].weight.requires_grad_(False)  # the whitening takes its place
    made.cap_embedder[1] = Whitened(SHAPE["cap_feat_dim"], SHAPE["dim"])
    return made


def stock(model: ZImageTransformer2DModel) -> ZImageTransformer2DModel:
    """The model with the whitening in its weights, in place."""
    model.cap_embedder[1] = model.cap_embedder[1].folded()
    return model


# -- what it is shown --------------------------------------------------------------------------------------------------


def scene_of(index: int) -> Scene:
    """A random scene of the smaller world, the same always."""
    return sentences.scene(training.rng_of("pool of pocket-lm", index))


def plain_of(index: int) -> Scene:
    """Every look of the smaller world in turn, by any of its names."""
    kept = [c for c in shown_ids() if world()["by_id"][c]["kind"] not in sentences.LEFT_OUT]
    return pools.named(kept[index % len(kept)], index)


RANDOM = pools.Pool("latents-lm", "texts-lm", scene_of)
LOOKS = pools.Pool("plain-lm", "plain-texts-lm", plain_of, pools.WORDINGS, aside=False)


@torch.no_grad()
def sent(model: Any, texts: list[str]) -> list[Tensor]:
    """What the pipeline sends of each prompt (rows, width)."""
    words = sentences.tokenizer()
    found = words(sentences.prompts(texts), add_special_tokens=False, padding=True, return_tensors="pt")
    device = next(model.parameters()).device
    states = model(**found.to(device), output_hidden_states=True, logits_to_keep=1).hidden_states[-2]
    return [rows[: int(count)] for rows, count in zip(states, found["attention_mask"].sum(1))]


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of many prompts as one tensor (n, MOST, width), float16, and how many are each prompt's (n,)."""
    made = torch.zeros(len(rows), MOST, rows[0].shape[1], dtype=torch.float16, device=rows[0].device)
    for one, own in zip(made, rows):
        one[: len(own)] = own
    return made, torch.tensor([len(own) for own in rows], device=made.device)


def texts(pool: pools.Pool, size: int, model: Any, asked: training.Given) -> tuple[Tensor, Tensor]:
    """`padded` rows of prompts of a pool's first scenes: all in a first wording, then all in a second, and so on."""
    chunks = [(time, at) for time in range(pool.wordings) for at in range(0, size, pools.CHUNK)]

    def make() -> Iterator[tuple[Tensor, Tensor]]:
        for time, at in chunks:
            rng = training.rng_of(pool.texts, time, at)
            yield padded(
                sent(model, [sentences.caption(rng, pool.scene(i)) for i in range(at, min(at + pools.CHUNK, size))])
            )

    return pools.kept(pool.texts, asked.device, size, pool, model, make)


# -- the part ----------------------------------------------------------------------------------------------------------


class Transformer:
    """The generator as a part, with its pools of latents and of prompts' rows."""

    name, peak, decay, average, muon = "transformer", PEAK, 1e-3, 0.999, 4.0

    def __init__(self, asked: training.Given, pool: int | None = None) -> None:
        self.size = max(2, round(asked.batch * BATCH))
        lm, frame = training.trained("lm", language.build()).to(asked.device), coordinates.load(asked.device)
        self.mixture = pools.Mixture(RANDOM, pool or POOL)
        sizes = {RANDOM: self.mixture.many, LOOKS: self.mixture.few}
        fine = [some for kind, size in sizes.items() for some in pools.latents(kind, size, asked).split(pools.CHUNK)]
        self.pool = torch.cat([frame.narrow(some).half() for some in fine])
        self.said, self.counts = (
            torch.cat(parts) for parts in zip(*(texts(kind, size, lm, asked) for kind, size in sizes.items()))
        )
        (self.empty,) = sent(lm, [""])
        model = build()
        layer = model.cap_embedder[1]
        layer.mean, layer.whiten = (x.float() for x in coordinates.whitening(self.seen(model.cap_embedder[0])))
        self.players = {"transformer": model}
        self.kept = {"lm": training.size_of(lm), "coordinates": training.size_of(frame)}
        if found := training.load(self.name):
            training.check_parts(self.name, found["kept"], self.kept)

    def seen(self, norm: nn.Module) -> Tensor:
        """Rows of the first prompts, as the layer that whitens them gets them."""
        some, counts = self.said[: coordinates.MEASURED], self.counts[: coordinates.MEASURED]
        inside = torch.arange(MOST, device=counts.device) < counts[:, None]
        with torch.no_grad():
            return norm.to(some.device)(some[inside].float())

    def begin(self, clock: training.Clock) -> None:
        """Nothing here depends on the time."""

    def batch(self, step: int) -> dict[str, Any]:
        """Numbers of latents and of their prompts' rows, and which prompts are left empty."""
        rng = training.rng_of(self.name, step)
        dropped = np.array([rng.random() < UNCONDITIONED for _ in range(self.size)])
        return self.mixture.draw(rng, step, self.size) | {"dropped": dropped}

    def conditions(self, batch: dict[str, Any]) -> list[Tensor]:
        """The prompts' rows, some of the empty prompt."""
        said = zip(batch["said"].tolist(), batch["dropped"].tolist())
        return [self.empty if empty else self.said[at, : self.counts[at]].float() for at, empty in said]

    def losses(self, player: str, batch: dict, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """The squared error of the flow from noise to latents; to be looked at, by level of noise."""
        draw = {"generator": noise, "device": noise.device}
        x = self.pool[batch["at"]].float()
        even, noises = torch.rand(len(x), **draw), torch.randn(x.shape, **draw)
        sigma = SHIFT * even / (1 + (SHIFT - 1) * even)
        share = sigma[:, None, None, None]
        noisy, text = (1 - share) * x + share * noises, self.conditions(batch)
        out = self.players[player](list(noisy[:, :, None].unbind()), 1 - sigma, text, return_dict=False)[0]
        error = (torch.stack(out)[:, :, 0].float() - (x - noises)).square().mean((1, 2, 3))
        return {"flow": error.mean()} | unet.by_level(error.detach(), (sigma * 999).long())


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    training.train(Transformer(given), given)
