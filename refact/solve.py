"""From keys to the right factor of an update: one solver for every closed form of the field.

Notation: rows are samples. K (n, d) are the keys at which a module's output shall change, C (d, d) is the prior
(a second moment of keys, uncentred), K0 (p, d) are keys whose output must stay. All updates are dW = R^T A with
A the (m, d) right factor returned here. In whitened coordinates x = L^-1 V^T k (C = L L^T on the span of V) with the
protected directions projected out, every method is ordinary least squares on the rows X:

    exact    A = M^T (X X^T)^+ X L^-1 V^T            ROME, ReFACT: the change holds exactly, C is disturbed least
    ridge    A = M^T (lam I + X X^T)^-1 X L^-1 V^T   MEMIT, TIME, UCE, AlphaEdit (lam = 1 on their own priors)

M (n, m) says which keys share one output change (contexts and aliases of one edit); by default each has its own.
Everything is float64: with real covariances the condition number reaches 1e8 and more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from .errors import EditError

RANK_TOLERANCE = 1e-10  # of the largest eigenvalue: keys come from float32 passes, equal ones differ by 1e-7


@dataclass(frozen=True)
class Prior:
    """What an update costs: C = L L^T on the columns of `basis` (None: the whole space), `held` directions excluded."""

    factor: Float64[Tensor, "m m"]
    basis: Float64[Tensor, "d m"] | None = None
    held: Float64[Tensor, "m r"] | None = None

    def whiten(self, keys: Float64[Tensor, "n d"]) -> Float64[Tensor, "n m"]:
        """Rows whose inner products are k_i C^-1 k_j."""
        inside = keys if self.basis is None else keys @ self.basis
        return torch.linalg.solve_triangular(self.factor, inside.T, upper=False).T

    def project(self, rows: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
        """Whitened rows without their part along the held keys (twice, for the rounding of the first time)."""
        if self.held is None:
            return rows
        for _ in range(2):
            rows = rows - (rows @ self.held) @ self.held.T
        return rows

    def unwhiten(self, rows: Float64[Tensor, "n m"]) -> Float64[Tensor, "n d"]:
        """The right factor whose whitened form is `rows`."""
        inside = torch.linalg.solve_triangular(self.factor.T, rows.T, upper=True).T
        return inside if self.basis is None else inside @ self.basis.T

    def hold(self, keys: Float64[Tensor, "p d"]) -> Prior:
        """The prior under which no update changes the output at `keys`; singular sets are welcome."""
        if not len(keys):
            return self
        rows = self.whiten(keys)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
        _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
        kept = directions[sizes**2 > RANK_TOLERANCE * sizes[0] ** 2].T
        return replace(self, held=kept if self.held is None else torch.linalg.qr(torch.cat([self.held, kept], 1))[0])

    @property
    def free(self) -> int:
        """How many independent keys can still be written: the capacity."""
        return self.factor.shape[0] - (0 if self.held is None else self.held.shape[1])


def prior(
    matrix: Float64[Tensor, "d d"], basis: Float64[Tensor, "e d"] | None = None, of_prompts: bool = False
) -> Prior:
    """The prior of a positive definite matrix; EditError when it is singular (shrink it first).

    of_prompts: it was made of prompts to keep and a ridge, not of a corpus.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.item():
        raise EditError(
            "the weight of the old projection is too small for the prompts that are kept: raise `strength`"
            if of_prompts
            else f"the covariance is not positive definite (pivot {info.item()} of {len(matrix)}): "
            "it was made from too few tokens; give it more, or raise `shrink`"
        )
    return Prior(factor, basis)


def null_space(matrix: Float64[Tensor, "d d"], share: float, threshold: float = 0.0) -> Float64[Tensor, "d m"]:
    """Orthonormal directions that together hold at most `share` of the matrix's trace (AlphaEdit's P = V V^T).

    AlphaEdit (arXiv 2410.02355) takes those whose eigenvalue is below an absolute `threshold` instead; a share of the
    energy means the same on any model.
    """
    energies, directions = torch.linalg.eigh(matrix)
    within = energies.clamp_min(0).cumsum(0) <= share * energies.clamp_min(0).sum()
    count = int((energies < threshold).sum() if threshold else within.sum())
    if not count and threshold:
        raise EditError(f"no direction has an eigenvalue below {threshold:g}: raise the threshold")
    if not count:
        raise EditError(f"no direction holds less than {share:g} of the energy: raise the share")
    return directions[:, :count]


@dataclass(frozen=True)
class Solution:
    """The right factor and how well it is determined."""

    right: Float64[Tensor, "m d"]
    written: Float64[Tensor, "n m"]  # K A^T: what share of each change arrives at each key; the law says M
    leverage: Float64[Tensor, " n"]  # 1: free of the protected keys; 0: spanned by them
    condition: float  # of X X^T, over its kept eigenvalues
    rank: int


def leverage(keys: Float64[Tensor, "n d"], prior: Prior) -> Float64[Tensor, " n"]:
    """The part of each key (in C^-1 norm, squared) that the protected keys leave free."""
    rows = prior.whiten(keys)
    return prior.project(rows).square().sum(1) / rows.square().sum(1).clamp_min(1e-300)


def fill(keys: Float64[Tensor, "n d"], prior: Prior) -> float:
    """How much of what the prior leaves free the keys' directions take; above 1 they do not fit exactly."""
    rows = prior.project(prior.whiten(keys))
    sizes = torch.linalg.eigvalsh(rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows)
    return int((sizes > RANK_TOLERANCE * sizes[-1]).sum()) / max(prior.free, 1)


def exact(keys: Float64[Tensor, "n d"], prior: Prior, groups: Float64[Tensor, "n m"] | None = None) -> Solution:
    """The least change that holds exactly at every key. Equal keys are welcome if they want the same.

    EditError when the independent keys are more than the prior leaves free.
    """
    rows = prior.project(prior.whiten(keys))
    sizes, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = sizes > RANK_TOLERANCE * sizes[-1]
    rank = int(kept.sum())
    if rank > prior.free or (rank == prior.free and len(keys) > rank):
        raise EditError(
            f"{len(keys)} keys of rank {rank} do not fit: {prior.free} directions are free "
            f"({prior.factor.shape[0]} less the protected ones); use a ridge, several layers or fewer contexts"
        )
    groups = torch.eye(len(keys), dtype=keys.dtype, device=keys.device) if groups is None else groups
    weights = (vectors[:, kept] / sizes[kept]) @ (vectors[:, kept].T @ groups)
    return _solution(weights, rows, keys, prior, float(sizes[-1] / sizes[kept][0]), rank)


def ridge(
    keys: Float64[Tensor, "n d"], prior: Prior, scale: float, groups: Float64[Tensor, "n m"] | None = None
) -> Solution:
    """The compromise between holding at the keys and disturbing C; `scale` is lam itself."""
    rows = prior.project(prior.whiten(keys))
    gram = rows @ rows.T
    gram.diagonal().add_(scale)
    sizes = torch.linalg.eigvalsh(gram)
    groups = torch.eye(len(keys), dtype=keys.dtype, device=keys.device) if groups is None else groups
    weights = torch.cholesky_solve(groups, torch.linalg.cholesky(gram))
    return _solution(weights, rows, keys, prior, float(sizes[-1] / sizes[0]), len(keys))


def oblique(
    at: Float64[Tensor, "n d"], along: Float64[Tensor, "n d"], prior: Prior, inverse: str = "float64"
) -> Solution:
    """The change that holds exactly at the keys `at`, along the directions C^-1 of other keys (ReFACT's own code).

    inverse: "float32" inverts C in single precision, as that code does; the result then depends on the machine in its
    third or fourth digit where C is badly conditioned. EditError where held keys stand in its way.
    """
    if inverse not in ("float32", "float64"):
        raise EditError(f"inverse is 'float32' or 'float64', not {inverse!r}")
    if inverse == "float32":
        if prior.held is not None or prior.basis is not None:
            raise EditError("with inverse='float32' no prompt can be held: use 'float64', or preserve nothing")
        directions = (torch.inverse((prior.factor @ prior.factor.T).float()) @ along.float().T).T.double()
    else:
        directions = prior.unwhiten(prior.project(prior.whiten(along)))
    gram = at @ directions.T
    sizes = torch.linalg.svdvals(gram)
    if not sizes[-1] > RANK_TOLERANCE * sizes[0]:
        raise EditError(f"{len(at)} keys of lower rank do not fit: use a ridge or fewer facts")
    right = torch.linalg.solve(gram.T, directions)
    return Solution(right, at @ right.T, leverage(at, prior), float(sizes[0] / sizes[-1]), len(at))


def _solution(weights: Tensor, rows: Tensor, keys: Tensor, prior: Prior, condition: float, rank: int) -> Solution:
    right = prior.unwhiten(weights.T @ rows)
    if not torch.isfinite(right).all():
        raise EditError(f"the solution is not finite (condition {condition:.1e}): raise `shrink` or use a ridge")
    return Solution(right, keys @ right.T, leverage(keys, prior), condition, rank)


def typical(keys: Float64[Tensor, "n d"], prior: Prior) -> float:
    """The median of k C^-1 k^T over the keys: what a ridge is relative to (about d for usual keys)."""
    return float(prior.whiten(keys).square().sum(1).median())


def hold_what_can_be(
    prior: Prior, keys: Float64[Tensor, "n d"], protected: Float64[Tensor, "p d"], floor: float
) -> tuple[Prior, list[int]]:
    """The prior with `protected` held, less those that would kill an edit; and the indices of those dropped.

    A protected key is dropped, nearest to the starved edit first, until every edit's leverage is at least `floor`:
    below it the update explodes (a protected prompt that begins with the edit prompt has the very same key).
    """
    if not len(protected):
        return prior, []
    wanted, others = (torch.nn.functional.normalize(prior.whiten(k), dim=1) for k in (keys, protected))
    near = (wanted @ others.T).square()
    dropped: set[int] = set((near > 1 - floor).any(0).nonzero().flatten().tolist())
    while True:
        kept = [i for i in range(len(protected)) if i not in dropped]
        held = prior.hold(protected[kept])
        starved = (leverage(keys, held) < floor).nonzero().flatten().tolist()
        if not starved or not kept:
            return held, sorted(dropped)
        dropped |= {kept[int(near[i, kept].argmax())] for i in starved}
