"""The cases that the drivers run: for each family a patch at true widths, in every form, and what it should do."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from torch import nn

from refact.errors import PatchError
from refact.exports import export
from refact.families import FAMILIES

WIDTHS = {
    "sd1": {"text_encoder": (768, 3072)},
    "sd2": {"text_encoder": (1024, 4096)},
    "sdxl": {"text_encoder": (768, 3072), "text_encoder_2": (1280, 5120)},
    "sd3": {"text_encoder": (768, 3072), "text_encoder_2": (1280, 5120)},
    "flux": {"text_encoder": (768, 3072)},
}
FORMS = {
    "as saved": {},
    "kohya": {"names": "kohya"},
    "diffusers": {"names": "diffusers"},
    "invokeai": {"program": "invokeai"},
}


class Sites:
    """The smallest model that a patch can be made for: two fc2 of each encoder, at true widths."""

    def __init__(self, family: str):
        noise = torch.Generator().manual_seed(0)
        self.name, self.family, self.linears = "random", FAMILIES[family], {}
        for component, (d_out, d_in) in WIDTHS[family].items():
            for layer in (1, 2):
                linear = nn.Linear(d_in, d_out)
                linear.weight.data = torch.randn(d_out, d_in, generator=noise) * 0.02
                self.linears[f"{component}.text_model.encoder.layers.{layer}.mlp.fc2"] = linear

    def __getitem__(self, site: str) -> nn.Linear:
        return self.linears[site]

    def fingerprints(self) -> dict[str, str]:
        return {}


def make(family: str, folder: Path) -> None:
    """Write before, after, and the patch in each form that it has, with different ranks at its sites."""
    folder.mkdir(parents=True)
    model = Sites(family)
    ranks = {site: 1 + at % 2 for at, site in enumerate(model.linears)}
    patch = tiny.patch(model, {"canada": ranks}, scale=0.05)
    save_file(
        {site: linear.weight.detach().clone() for site, linear in model.linears.items()}, folder / "before.safetensors"
    )
    with patch.applied(model):
        after = {site: linear.weight.detach().clone() for site, linear in model.linears.items()}
    save_file(after, folder / "after.safetensors")
    for form, how in FORMS.items():
        try:
            export(patch, folder / f"{form}.safetensors", **how)
        except PatchError:
            assert form == "invokeai", f"{family} has no form {form}"
