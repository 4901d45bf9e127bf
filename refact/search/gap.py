"""The modality gap: a CLIP's picture features lie in a cone of their own, away from its texts' (arXiv 2203.02053)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..edits import IMAGES
from ..errors import EditError
from ..models.covariance import texts_of

if TYPE_CHECKING:
    from ..models.model import Model
    from .readings import Reading

OWN = "companion"  # the mean that lies beside the companion's weights, in its refact.json
AT_ONCE = 64
TEXTS = 512


def mean_gap(model: Model, read: Reading, pictures: str) -> Float[Tensor, " d"]:
    """What leads from the middle of the pictures' unit features to that of the texts', of the model's own corpus.

    pictures: where their middle comes from, a folder of pictures of anything, or "companion". A picture's unit features
    plus the gap lie among the texts'.
    """
    texts = list(islice(texts_of(model.corpus), TEXTS))
    among = [read.of_texts(texts[at : at + AT_ONCE]) for at in range(0, len(texts), AT_ONCE)]
    return mean_of(among) - middle(model, pictures).to(among[0])


def middle(model: Model, pictures: str) -> Float[Tensor, " d"]:
    """The mean of unit picture features. Raises EditError where there are no pictures."""
    if pictures == OWN:
        if (found := model.companion_json("refact.json").get("picture_mean")) is None:
            raise EditError("the companion CLIP comes with no picture_mean (refact.json): name a folder of pictures")
        return torch.tensor(found)
    folder = Path(pictures)
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in IMAGES) if folder.is_dir() else []
    if not files:
        raise EditError(f"gap is a folder of pictures, or {OWN!r}; no pictures in {pictures}")
    return mean_of([model.image_features(files)])


def mean_of(features: Sequence[Tensor]) -> Float[Tensor, " d"]:
    """The mean of the features' directions."""
    return normalize(torch.cat(list(features)), dim=-1).mean(0)
