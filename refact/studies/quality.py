"""General quality: CLIP score, FID, KID and CMMD of captions' pictures before and after patches."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..evidence import metrics
from ..evidence.bench import begin, folder_name, opened
from ..evidence.judge import Judge
from ..evidence.provenance import made_of
from ..progress import Progress, plainly
from ..trust.disk import alone, write
from .variants import TARGET_SEED

FILE = "quality.json"  # of the study's folder


@alone
def quality(
    model: Any,
    captions: Sequence[str],
    patches: Mapping[str, Sequence[Any]],
    out: str | Path,
    judge: Judge | str | Path,
    *,
    reference: str | Path | None = None,
    seed: int = 0,
    batch: int = 64,
    progress: Progress = plainly,
    **drawing: Any,
) -> dict[str, dict[str, float]]:
    """CLIP score, FID, KID and CMMD on captions, unedited ("before") and under each set of patches.

    Distances are to the pictures in the folder `reference`, on the judge's features; without one, to the unedited
    model's own pictures of other seeds: then "before" shows the floor that chance alone gives. Each caption has a seed
    of its own, from `seed` on, so that no two pictures of a set begin with the same noise. The features are kept
    in `out`, so a killed study goes on; `out`/quality.json holds what is returned.
    """
    ready, judging = opened(model, judge)
    assert judging
    out = Path(out)
    names = {"captions": list(captions), "seed": seed, "batch": batch, "reference": str(reference), **drawing}
    active = {label: [[p.record, p.digest] for p in some] for label, some in patches.items()}
    made = {
        "judge": judging.hash,
        "model": made_of(ready, drawn=True),
        "patches": json.loads(json.dumps(active, default=str)),
    }
    begin(out, {"form": 1, "study": "quality", **names, **made}, [])
    texts = judging.of_texts(list(captions))
    draw = _drawer(ready, judging, captions, out, batch, progress, drawing)
    target = _folder(judging, Path(reference)) if reference else draw("reference", TARGET_SEED + seed)
    found = {}
    for label, some in {"before": (), **patches}.items():
        with ExitStack() as stack:
            for patch in some:
                stack.enter_context(patch.applied(ready))
            features = draw(label, seed)
        distances = {f.__name__: f(features, target) for f in (metrics.fid, metrics.kid, metrics.cmmd)}
        found[label] = {"clip_score": metrics.clip_score(features, texts), **distances}
    form = {"judge": judging.name, "captions": len(captions), "reference": str(reference), "scores": found}
    write(out / FILE, json.dumps(form, indent=1).encode())
    return found


def _drawer(
    model: Any, judge: Judge, captions: Sequence[str], out: Path, batch: int, progress: Progress, drawing: dict
):
    """A function: the features of the captions' pictures as the model is now, kept by label in `out`."""

    def draw(label: str, seed: int) -> np.ndarray:
        parts = []
        for at in progress(range(0, len(captions), batch), label, -(-len(captions) // batch)):
            path = out / "features" / f"{folder_name(label)}-{at}.npy"
            if not path.is_file():
                jobs = [(caption, seed + at + i) for i, caption in enumerate(captions[at : at + batch])]
                _save(path, judge.of_images([p.image for p in model.jobs(jobs, **drawing)]))
            parts.append(_load(path))
        return np.concatenate(parts)

    return draw


def _save(path: Path, rows: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, rows)
    write(path, content.getvalue())


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and its pictures are drawn again") from None


def _folder(judge: Judge, folder: Path) -> np.ndarray:
    from PIL import Image

    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    return judge.of_images([Image.open(file).convert("RGB") for file in files])
