"""The metrics against hand-computed cases, and FID, KID and CMMD against their formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from refact.evidence import metrics
from refact.evidence.metrics import Tally


def margins(*rows: list[list[float]]) -> list[np.ndarray]:
    return [np.array(row, dtype=float) for row in rows]


def test_a_tally_counts_pictures_and_a_tie_is_not_right() -> None:
    found = metrics.tally(margins([[1.0, -1.0], [0.0, 2.0]], [[3.0, 3.0]]))
    assert found.hits.tolist() == [[1, 1], [1, 1]]
    assert found.counts.tolist() == [2, 1]
    assert metrics.shares({"x": found})["x"] == pytest.approx(4 / 6)


def test_the_stricter_shares_are_shares_of_probability() -> None:
    p = np.array([[0.4, 0.6, 0.76, 0.91]])
    logit = [np.log(p / (1 - p)).T]
    rates = [float(metrics.shares({"x": metrics.tally(logit, t)})["x"][0]) for t in (0.5, 0.75, 0.9)]
    assert rates == [0.75, 0.5, 0.25]
    with pytest.raises(ValueError, match="probability"):
        metrics.tally(logit, 0.2)


def test_the_papers_f1_is_the_geometric_mean() -> None:
    """ReFACT on TIMED in the paper: generality 88.02, specificity 79.18, "F1" 83.48."""
    g, s = Tally(np.array([[8802.0]]), np.array([10000.0])), Tally(np.array([[7918.0]]), np.array([10000.0]))
    found = metrics.shares({"generality": g, "specificity": s})
    assert 100 * found["f1_geometric"][0] == pytest.approx(83.48, abs=0.005)
    assert 100 * found["f1_harmonic"][0] == pytest.approx(2 * 88.02 * 79.18 / (88.02 + 79.18))


def test_nothing_right_gives_zero_and_nothing_judged_gives_nan() -> None:
    none = Tally(np.zeros((2, 1)), np.ones(2))
    assert metrics.shares({"generality": none, "specificity": none})["f1_harmonic"][0] == 0
    assert math.isnan(metrics.shares({"x": Tally(np.zeros((2, 1)), np.zeros(2))})["x"][0])


def test_seeds_are_summarised_apart_from_cases() -> None:
    hits = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    found = metrics.numbers({"x": Tally(hits, np.ones(4))})["x"]
    assert (found.value, found.seed_mean) == (0.75, 0.75)
    assert found.seed_std == pytest.approx(math.sqrt(2 * 0.25**2))
    assert found.low < 0.75 < found.high
    assert math.isnan(metrics.numbers({"x": Tally(hits[:, :1], np.ones(4))})["x"].seed_std)


def test_an_interval_is_as_wide_as_theory_says() -> None:
    """200 cases, one picture each, half right: the binomial's deviation is sqrt(0.25 / 200)."""
    hits = np.tile([[0.0], [1.0]], (100, 1))
    found = metrics.numbers({"x": Tally(hits, np.ones(200))}, draws=4000)["x"]
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200), rel=0.08)


def test_pairing_sees_a_difference_that_unpaired_intervals_hide() -> None:
    """Ahead on 6 of 60 cases and equal elsewhere: both intervals overlap, the paired one excludes 0."""
    base = np.zeros((60, 1))
    base[:30] = 1
    better = base.copy()
    better[30:36] = 1
    one, other = ({"x": Tally(hits, np.ones(60))} for hits in (better, base))
    assert metrics.numbers(one)["x"].low < metrics.numbers(other)["x"].high
    gap = metrics.compare(one, other)["x"]
    assert gap.value == pytest.approx(0.1)
    assert gap.low > 0
    assert gap.p < 0.05
    assert metrics.compare(other, one)["x"].value == pytest.approx(-0.1)
    assert metrics.compare(one, one)["x"].p == 1


@given(st.integers(1, 9), st.integers(0, 3))
def test_resamples_keep_the_number_of_cases_and_repeat(count: int, seed: int) -> None:
    drawn = metrics.bootstrap(count, 20, seed)
    assert (drawn.sum(1) == count).all()
    assert (drawn == metrics.bootstrap(count, 20, seed)).all()


def test_validity_asks_that_old_beats_every_negative() -> None:
    assert metrics.validity(np.array([[2.0, 1.0, 0.0], [2.0, 3.0, 0.0], [1.0, 1.0, 0.0], [5.0, 1.0, 4.0]])) == 0.5


def test_clip_score_by_hand() -> None:
    images = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    texts = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 7.0]])
    assert metrics.clip_score(images, texts) == pytest.approx(100 * (0.6 + 0 + 1) / 3)


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(50, 8)) + 0.3


def test_fid_is_the_formula_with_scipys_root(features) -> None:
    a, b = features
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert metrics.fid(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.fid(a, a) == pytest.approx(0, abs=1e-8)


def test_fid_by_hand_in_one_dimension() -> None:
    """Gaussians (0, 1) and (3, 4): 9 + 1 + 4 - 2 * 2."""
    a, b = np.array([[-1.0], [0.0], [1.0]]), np.array([[1.0], [3.0], [5.0]])
    assert metrics.fid(a, b) == pytest.approx(10)


def test_fid_with_fewer_pictures_than_dimensions(features) -> None:
    a, b = features
    assert metrics.fid(a[:4], b[:4]) > 0


def test_kid_is_the_double_sum(features) -> None:
    a, b = features

    def k(x, y):
        return (sum(p * q for p, q in zip(x, y)) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    aa = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    bb = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    ab = sum(k(x, y) for x in a for y in b) / (n * m)
    assert metrics.kid(a, b) == pytest.approx(aa + bb - 2 * ab, rel=1e-9)


def test_cmmd_is_the_double_sum(features) -> None:
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in features)

    def mean(x, y):
        return sum(math.exp(-((p - q) ** 2).sum() / (2 * 10.0**2)) for p in x for q in y) / (len(x) * len(y))

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert metrics.cmmd(*features) == pytest.approx(expected, rel=1e-6)
    assert metrics.cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_fid_and_kid_are_those_of_torch_fidelity(features) -> None:
    """Of the extra [metrics]: skipped where it, or the torchvision that it needs, cannot be imported."""
    reference = pytest.importorskip("torch_fidelity", exc_type=Exception)
    a, b = (torch.from_numpy(rows) for rows in (features[0][:50], features[1]))
    statistics = [reference.metric_fid.fid_features_to_statistics(rows) for rows in (a, b)]
    fid = reference.metric_fid.fid_statistics_to_metric(*statistics, False)
    assert metrics.fid(a.numpy(), b.numpy()) == pytest.approx(fid["frechet_inception_distance"], rel=1e-6)
    kid = reference.metric_kid.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=50, verbose=False)
    assert metrics.kid(a.numpy(), b.numpy()) == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)


@pytest.mark.parametrize("distance", [metrics.fid, metrics.kid, metrics.cmmd])
def test_distances_refuse_what_cannot_be_compared(distance) -> None:
    with pytest.raises(ValueError, match="one width"):
        distance(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="at least 2"):
        distance(np.ones((1, 2)), np.ones((3, 2)))
