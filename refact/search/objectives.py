"""What a value must achieve, as a loss on what the edited encoder says and what the frozen one says.

f (..., d) is the edited prompt's feature, x (..., m, d) are the features to compare it with; x[..., 0, :] is the target
and the rest are contrastive: the source first, then unrelated texts (ReFACT, arXiv 2306.00738, equation 3).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMOOTH = 1e-4  # of a feature's norm: below it two features are the same
LOGIT_SCALE = 100.0  # CLIP's own temperature after training, exp(4.6052)


def similarities(f: Float[Tensor, "*b d"], x: Float[Tensor, "*b m d"], distance: str) -> Float[Tensor, "*b m"]:
    """Larger is nearer: minus the Euclidean distance ("l2"), or the scaled cosine ("cosine")."""
    if distance == "cosine":
        f, x = (torch.nn.functional.normalize(t, dim=-1) for t in (f, x))
        return LOGIT_SCALE * (x @ f[..., None])[..., 0]
    if distance == "l2":
        softened = (SMOOTH * x).square().sum(-1)  # the root's slope at 0 is rounding noise, and sources begin there
        return -((f[..., None, :] - x).square().sum(-1) + softened).clamp_min(1e-12).sqrt()
    raise ValueError(f"distance is 'l2' or 'cosine', not {distance!r}")


def loss(
    objective: str, similarity: Float[Tensor, "*b m"], present: Bool[Tensor, "*b m"] | None = None
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """The loss to minimise and the probability of the target among all.

    "contrastive": minus the log probability of the target. "direct": minus its similarity alone (Appendix A).
    `present` masks the entries that are filling.
    """
    if present is not None:
        similarity = similarity.masked_fill(~present, -torch.inf)
    log_p = similarity.log_softmax(-1)[..., 0]
    if objective == "contrastive":
        return -log_p, log_p.exp()
    if objective == "direct":
        return -similarity[..., 0], log_p.exp()
    raise ValueError(f"objective is 'contrastive' or 'direct', not {objective!r}")
