"""From judged pictures to numbers: the paper's shares with their uncertainty, CLIP score, FID, KID and CMMD.

Arrays in, numbers out. A `Tally` counts what was judged right: `hits[i, s]` of the `counts[i]` pictures of case i
and seed s. Every share is a share of pictures (ReFACT, Appendix D), so that cases with more prompts weigh more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

F1 = ("f1_geometric", "f1_harmonic")


@dataclass(frozen=True)
class Tally:
    """How many pictures of each case and seed were judged right, and of how many a seed."""

    hits: Float[ndarray, "n s"]
    counts: Float[ndarray, " n"]

    def seed(self, index: int) -> Tally:
        """One seed's part."""
        return Tally(self.hits[:, [index]], self.counts)

    def cases(self, rows: list[int]) -> Tally:
        """Some of the cases."""
        return Tally(self.hits[rows], self.counts[rows])


def tally(margins: list[Float[ndarray, "_ s"]], above: float = 0.5) -> Tally:
    """What is right at probability > `above`; margins are logit differences right - wrong, (prompts, seeds) a case.

    At 0.5 the share is the paper's own "score(right) > score(wrong)": a tie is not right.
    """
    if not 0.5 <= above < 1:
        raise ValueError(f"above is a probability from 0.5 to 1, not {above}")
    bound = np.log(above / (1 - above))
    hits = np.stack([(m > bound).sum(0) for m in margins]).astype(float)
    return Tally(hits, np.array([len(m) for m in margins], dtype=float))


def shares(tallies: Mapping[str, Tally], weights: Float[ndarray, "b n"] | None = None) -> dict[str, ndarray]:
    """Each tally's share of right pictures, (b,), and both F1s; `weights` are how often each case counts.

    f1_geometric is what the paper's tables call F1: sqrt(generality * specificity).
    """
    found = {}
    for name, part in tallies.items():
        w = np.ones((1, len(part.counts))) if weights is None else weights
        total = (w @ part.counts) * part.hits.shape[1]
        found[name] = np.divide(w @ part.hits.sum(1), total, out=np.full(len(w), np.nan), where=total > 0)
    if {"generality", "specificity"} <= found.keys():
        g, s = found["generality"], found["specificity"]
        found["f1_geometric"] = np.sqrt(g * s)
        found["f1_harmonic"] = np.divide(2 * g * s, g + s, out=np.where(np.isnan(g + s), np.nan, 0.0), where=g + s > 0)
    return found


@dataclass(frozen=True)
class Number:
    """A share over all pictures, its mean and deviation over seeds, and its 95 % interval over cases."""

    value: float
    seed_mean: float
    seed_std: float  # sample deviation, n - 1; nan with one seed
    low: float
    high: float


def bootstrap(count: int, draws: int = 2000, seed: int = 0) -> Float[ndarray, "b n"]:
    """How often each of `count` cases is drawn, in each of `draws` resamples."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def numbers(tallies: Mapping[str, Tally], draws: int = 2000) -> dict[str, Number]:
    """Every share with its uncertainty."""
    first = next(iter(tallies.values()))
    whole = shares(tallies)
    seeds = [shares({k: t.seed(i) for k, t in tallies.items()}) for i in range(first.hits.shape[1])]
    spread = shares(tallies, bootstrap(len(first.counts), draws))
    found = {}
    for name, value in whole.items():
        by_seed = np.array([s[name][0] for s in seeds])
        std = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")
        low, high = _interval(spread[name])
        found[name] = Number(float(value[0]), float(by_seed.mean()), std, low, high)
    return found


def mean(rows: Float[ndarray, "n s"], draws: int = 2000) -> Number:
    """The mean of a measure of each case and seed, with its uncertainty."""
    per_case, per_seed = rows.mean(1), rows.mean(0)
    weights = bootstrap(len(rows), draws)
    low, high = _interval(weights @ per_case / len(rows))
    std = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else float("nan")
    return Number(float(per_case.mean()), float(per_seed.mean()), std, low, high)


@dataclass(frozen=True)
class Difference:
    """One method less another on the same cases; `p` is the bootstrap's two-sided probability of no difference."""

    value: float
    low: float
    high: float
    p: float


def compare(one: Mapping[str, Tally], other: Mapping[str, Tally], draws: int = 2000) -> dict[str, Difference]:
    """The paired differences one - other: both are resampled with the same cases."""
    weights = bootstrap(len(next(iter(one.values())).counts), draws)
    a, b = shares(one), shares(other)
    a_spread, b_spread = shares(one, weights), shares(other, weights)
    found = {}
    for name in a.keys() & b.keys():
        spread = a_spread[name] - b_spread[name]
        low, high = _interval(spread)
        ahead, behind = (1 + (spread >= 0).sum()) / (1 + draws), (1 + (spread <= 0).sum()) / (1 + draws)
        found[name] = Difference(float((a[name] - b[name])[0]), low, high, float(min(1.0, 2 * min(ahead, behind))))
    return found


def _interval(spread: Float[ndarray, " b"]) -> tuple[float, float]:
    known = spread[~np.isnan(spread)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def validity(logits: Float[ndarray, "s m"]) -> float:
    """The share of pictures of `old` taken for it (column 0) and for none of the negatives (TIMED)."""
    return float((logits[:, :1] > logits[:, 1:]).all(1).mean())


SHOWN = {  # names and units: features here have length 1, so that distances between them are small
    "clip_score": ("CLIP score", 1), "fid": ("FID × 1000", 1000), "kid": ("KID × 1000", 1000), "cmmd": ("CMMD", 1),
}  # fmt: skip


def clip_score(images: Float[ndarray, "n d"], texts: Float[ndarray, "n d"]) -> float:
    """100 times the mean cosine of each picture and its caption, negative ones counting as 0 (Hessel et al. 2021)."""
    return float(100 * np.maximum((_unit(images) * _unit(texts)).sum(1), 0).mean())


def fid(a: Float[ndarray, "n d"], b: Float[ndarray, "m e"]) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017), float64.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), where tr (A B)^1/2 is the sum of the roots of the eigenvalues of
    the symmetric A^1/2 B A^1/2. Biased upwards while the pictures are few: compare equal numbers only.
    """
    _enough(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def kid(a: Float[ndarray, "n d"], b: Float[ndarray, "m e"]) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018), over all pictures at once.

    Unbiased: it may be below 0, and does not depend on how many pictures there are.
    """
    _enough(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)

    def kernel(x: ndarray, y: ndarray) -> ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    return _off_diagonal(kernel(a, a)) + _off_diagonal(kernel(b, b)) - 2 * float(kernel(a, b).mean())


def cmmd(a: Float[ndarray, "n d"], b: Float[ndarray, "m e"], sigma: float = 10.0) -> float:
    """1000 times the squared MMD of unit CLIP features, Gaussian kernel (Jayasumana et al. 2024).

    The biased estimator with its diagonal, as the authors' code has it: 0 for equal sets, never below.
    """
    _enough(a, b)
    a, b = _unit(a), _unit(b)

    def kernel(x: ndarray, y: ndarray) -> ndarray:
        return np.exp((x @ y.T - 1) / sigma**2)  # |x - y|^2 = 2 - 2 x.y on the unit sphere

    return float(1000 * (kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean()))


def _unit(rows: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _off_diagonal(square: Float[ndarray, "n n"]) -> float:
    n = len(square)
    return float((square.sum() - np.trace(square)) / (n * (n - 1)))


def _enough(a: ndarray, b: ndarray) -> None:
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"two sets of at least 2 features of one width are compared, not {a.shape} and {b.shape}")
