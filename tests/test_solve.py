"""Every closed form equals its paper's own formula in numpy; protected keys do not move; ridge meets exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refact import solve
from refact.errors import EditError

D, OUT = 24, 10


def spd(rng: np.random.Generator, d: int = D) -> np.ndarray:
    a = rng.normal(size=(4 * d, d)) * np.geomspace(1, 0.05, d)
    return a.T @ a / len(a)


def draw(seed: int, n: int, p: int = 0):
    rng = np.random.default_rng(seed)
    return rng, spd(rng), rng.normal(size=(n, D)), rng.normal(size=(p, D)), rng.normal(size=(n, OUT))


def t(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_exact_with_one_key_is_romes_formula():
    _rng, c, k, _, r = draw(0, 1)
    u = np.linalg.solve(c, k[0])  # ROME, arXiv 2202.05262, equation 2: W + Lambda (C^-1 k)^T
    rome = np.outer(r[0], u) / (u @ k[0])
    ours = r.T @ solve.exact(t(k), solve.prior(t(c))).right.numpy()
    assert relative(ours, rome) < 1e-12


def test_exact_with_many_keys_is_the_constrained_least_squares_solution():
    _rng, c, k, _, r = draw(1, 5)
    ci = np.linalg.inv(c)
    literal = r.T @ np.linalg.inv(k @ ci @ k.T) @ k @ ci
    assert relative(r.T @ solve.exact(t(k), solve.prior(t(c))).right.numpy(), literal) < 1e-11


def test_ridge_is_memits_formula():
    _rng, c, k, _, r = draw(2, 7)
    lam = 0.7
    memit = r.T @ k @ np.linalg.inv(lam * c + k.T @ k)  # arXiv 2210.07229, equation 14, with rows as samples
    assert relative(r.T @ solve.ridge(t(k), solve.prior(t(c)), lam).right.numpy(), memit) < 1e-11


def test_ridge_on_the_identity_is_times_formula():
    _rng, _, k, _, r = draw(3, 6)
    time = r.T @ k @ np.linalg.inv(0.1 * np.eye(D) + k.T @ k)  # arXiv 2303.08084, equation 3
    assert relative(r.T @ solve.ridge(t(k), solve.prior(t(0.1 * np.eye(D))), 1.0).right.numpy(), time) < 1e-11


def test_the_null_space_prior_is_alphaedits_formula():
    _rng, c, k, kp, r = draw(4, 4, p=3)
    v = solve.null_space(t(c), 0.05).numpy()
    p, l2 = v @ v.T, 0.3
    alpha = r.T @ k @ p @ np.linalg.inv(kp.T @ kp @ p + k.T @ k @ p + l2 * np.eye(D))  # arXiv 2410.02355, eq. 12
    z = kp @ v
    prior = solve.prior(t(l2 * np.eye(v.shape[1]) + z.T @ z), t(v))
    ours = r.T @ solve.ridge(t(k), prior, 1.0).right.numpy()
    assert relative(ours, alpha) < 1e-10
    high = np.linalg.eigh(c)[1][:, v.shape[1] :]
    assert np.abs(ours @ high).max() < 1e-12 * np.abs(ours).max() * 100


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 5), p=st.integers(1, 8), lam=st.sampled_from([0.0, 1e-6, 0.1, 10.0])
)
def test_protected_keys_do_not_move_whatever_the_ridge(seed, n, p, lam):
    _rng, c, k, k0, r = draw(seed, n, p)
    k0 = np.concatenate([k0, k0[:1], 3 * k0[-1:]])  # singular on purpose: [BOS] stands in every prompt
    prior = solve.prior(t(c)).hold(t(k0))
    right = (solve.ridge(t(k), prior, lam) if lam else solve.exact(t(k), prior)).right.numpy()
    moved, wanted = (r.T @ right @ k0.T), r.T
    assert np.abs(moved).max() < 1e-9 * np.abs(wanted).max() * max(1, np.abs(right).max())


def test_exact_under_protection_equals_stacked_constraints():
    _rng, c, k, k0, r = draw(5, 3, 4)
    stacked, values = np.concatenate([k, k0]), np.concatenate([r, np.zeros((4, OUT))])
    ci = np.linalg.inv(c)
    literal = values.T @ np.linalg.inv(stacked @ ci @ stacked.T) @ stacked @ ci
    assert relative(r.T @ solve.exact(t(k), solve.prior(t(c)).hold(t(k0))).right.numpy(), literal) < 1e-9


def test_a_vanishing_ridge_is_equality():
    _rng, c, k, k0, _ = draw(6, 4, 3)
    prior = solve.prior(t(c)).hold(t(k0))
    assert relative(solve.ridge(t(k), prior, 1e-11).right.numpy(), solve.exact(t(k), prior).right.numpy()) < 1e-8


def test_one_offset_holds_at_all_keys_of_its_group_and_at_none_of_the_others():
    _rng, c, k, _, _ = draw(7, 6)
    k = np.concatenate([k, k[:1]])  # a context that begins with the subject has the same key
    groups = np.zeros((7, 2))
    groups[[0, 1, 2, 6], 0] = 1
    groups[[3, 4, 5], 1] = 1
    solution = solve.exact(t(k), solve.prior(t(c)), t(groups))
    assert np.abs(k @ solution.right.numpy().T - groups).max() < 1e-9
    assert solution.rank == 6


def test_the_order_of_a_batch_does_not_matter():
    _rng, c, k, k0, r = draw(8, 6, 3)
    order = np.array([3, 1, 5, 0, 2, 4])
    prior = solve.prior(t(c)).hold(t(k0))
    one, other = (rr.T @ solve.ridge(t(kk), prior, 0.1).right.numpy() for kk, rr in ((k, r), (k[order], r[order])))
    assert relative(one, other) < 1e-12


def test_a_protected_key_that_is_the_edits_own_is_dropped_and_the_others_are_held():
    rng, c, k, k0, _ = draw(9, 2, 4)
    k0[2] = k[1] * 1.5
    k0[3] = k[0] + 1e-3 * rng.normal(size=D)
    prior, dropped = solve.hold_what_can_be(solve.prior(t(c)), t(k), t(k0), 0.05)
    assert dropped == [2, 3]
    assert solve.leverage(t(k), prior).min() >= 0.05
    right = solve.exact(t(k), prior).right.numpy()
    assert np.abs(right @ k0[:2].T).max() < 1e-10


def test_keys_that_together_span_an_edit_are_dropped_until_it_lives():
    rng, c, k, _, _ = draw(10, 1)
    part = rng.normal(size=D)
    k0 = np.stack([k[0] + part, k[0] - part])  # neither is near, both together are
    prior, dropped = solve.hold_what_can_be(solve.prior(t(c)), t(k), t(k0), 0.05)
    assert len(dropped) == 1
    assert solve.leverage(t(k), prior).min() >= 0.05


def test_more_keys_than_directions_are_refused():
    _rng, c, k, k0, _ = draw(11, D - 2, 4)
    prior = solve.prior(t(c)).hold(t(k0))
    assert prior.free == D - 4
    with pytest.raises(EditError, match="do not fit"):
        solve.exact(t(k), prior)


@pytest.mark.parametrize("rows", [3, 2 * D])
def test_fill_is_the_share_of_the_free_directions_that_the_keys_take(rows):
    rng, c, _, k0, _ = draw(11, 3, 4)
    keys = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, D))  # rank 3, however many
    assert solve.fill(t(keys), solve.prior(t(c)).hold(t(k0))) == 3 / (D - 4)


def test_a_singular_covariance_is_refused_with_advice():
    with pytest.raises(EditError, match="shrink"):
        solve.prior(torch.zeros(4, 4, dtype=torch.float64))
