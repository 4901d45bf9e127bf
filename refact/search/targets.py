"""What a search compares an edit's states with: the target, the source, and texts to stay away from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..edits import Edit
from ..errors import EditError, quoted
from ..models.encoders import TextEncoder
from ..models.model import Model
from . import values
from .gap import mean_gap
from .readings import Reading


def companion_of(model: Model, method: Any, edits: Sequence[Edit], encoder: TextEncoder) -> Any:
    """The CLIP whose space images are compared in; None when all targets are texts."""
    if not any(edit.targets_images for edit in edits):
        return None
    if not all(edit.targets_images for edit in edits):
        raise EditError("targets by text and by picture are searched in different spaces: make two patches and merge")
    if model.companion is None:
        raise EditError("a target by image needs the CLIP of this encoder: give its folder (clip=..., --clip)")
    if (width := model.companion.config.text_config.hidden_size) != encoder.width:
        raise EditError(
            f"the companion CLIP's texts have width {width}, those of {encoder.name} {encoder.width}: "
            "name the encoder that is its own (encoders=..., --encoders)"
        )
    if method.embedding != "pooled":
        raise EditError("a target by image is compared in pooled space: use embedding='pooled'")
    return model.companion


def check_lengths(encoder: TextEncoder, edits: Sequence[Edit]) -> None:
    """EditError for a target or a source that the encoder does not read to its end."""
    texts = [text for edit in edits for text in (edit.new, edit.old) if isinstance(text, str)]
    cut = encoder.tokenize(texts).truncated.tolist() if texts else []
    if long := [text for text, is_cut in zip(texts, cut) if is_cut]:
        raise EditError(f"{encoder.name} reads {encoder.length} tokens, and {quoted(long[0])} has more: shorten it")


def candidates(
    model: Model, read: Reading, edits: Sequence[Edit], templates: Sequence[str], away: Tensor, pictures: str = ""
) -> values.Candidates:
    """Target, source and unrelated features for each sentence of each edit; pictures moved by the gap, if asked."""
    gap = mean_gap(model, read, pictures) if pictures and edits[0].targets_images else None
    near = [_near(model, read, edit, templates, gap) for edit in edits]  # (c, 2, f) each
    most = max(len(n) for n in near)
    weights = torch.stack([_padded(torch.full((len(n),), 1 / len(n)), most) for n in near])
    near_all = torch.stack([_padded(n, most) for n in near])
    away_all = away.expand(*near_all.shape[:2], *away.shape) if len(away) else near_all[:, :, :0]
    return values.Candidates(torch.cat([near_all, away_all], 2), weights.to(near_all))


def _near(model: Model, read: Reading, edit: Edit, templates: Sequence[str], gap: Tensor | None) -> Tensor:
    """The target's and the source's features in each context of each wording."""
    old = edit.prompt if edit.old is None else edit.old
    texts = [old, edit.new] if isinstance(edit.new, str) else [old]
    features = read.of_texts([t.replace("{}", text) for text in texts for t in templates])
    source, target = features[: len(templates)], features[len(templates) :]
    if not isinstance(edit.new, str):
        shown = model.image_features(edit.new)
        shown = shown if gap is None else normalize(shown, dim=1) + gap
        target = shown.mean(0).expand(len(templates), -1)
    return torch.stack([target, source], 1).repeat(1 + len(edit.aliases), 1, 1)


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
