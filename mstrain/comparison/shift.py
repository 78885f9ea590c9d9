"""Whether two sets of objects differ, as a network sees them: a classifier two-sample test.

A linear probe learns to tell embeddings of A from those of B, on some of the objects, and is asked
about the others: where the sets are draws of one population its AUROC is 0.5, and of two normal
ones that are delta standard deviations apart Phi(delta / sqrt 2).

Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545 (test); DeLong et al. 1988, Biometrics 44, 837
(interval of an AUROC); Dowson and Landau 1982, J. Multivariate Analysis 12, 450 (Frechet distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Estimate

NUM_ODDEST = 16
_FOLDS, _DIVISIONS, _MIN_OBJECTS = 5, 5, 20
# Of the unit variance of each value: what keeps values that always go together from cancelling.
_RIDGE = 1e-3
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """How two sets of objects differ.

    Attributes:
        auroc: of the probe on objects that it did not learn from, 0.5 for no difference; a chance
            interval at 95 %.
        frechet: squared Frechet distance of the embeddings, each value of unit variance over both.
        frechet_null: the same where both sets are mixed and divided at random, the median of five
            times: what so many objects differ by alone.
        score_A: float64 (A,), how much like B each object of A is.
        score_B: float64 (B,).
    """

    auroc: Estimate
    frechet: float
    frechet_null: float
    score_A: Floats  # noqa: N815
    score_B: Floats  # noqa: N815

    @property
    def differs(self) -> bool:
        """Whether the probe tells the sets apart beyond chance."""
        return self.auroc.low > 0.5

    def oddest(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of A least like B, and of B least like A, the farthest first; 16 in all."""
        half = NUM_ODDEST // 2
        return np.argsort(self.score_A)[:half], np.argsort(-self.score_B)[:half]

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, without the scores."""
        return {
            "num_a": len(self.score_A),
            "num_b": len(self.score_B),
            "auroc": asdict(self.auroc),
            "differs": self.differs,
            "frechet": self.frechet,
            "frechet_null": self.frechet_null,
        }


def measure_shift(
    a_AD: NDArray[np.floating], b_BD: NDArray[np.floating], *, seed: int = 0
) -> Shift:
    """Compares two sets of embeddings.

    Args:
        a_AD: (A, D).
        b_BD: (B, D).
        seed: of the folds, and of the random divisions.

    Returns:
        The test's AUROC with its interval, distances, and each object's score.

    Raises:
        UsageError: a set has fewer than 20 objects.
    """
    sizes = len(a_AD), len(b_BD)
    if min(sizes) < _MIN_OBJECTS:
        raise UsageError(
            f"each set must have at least {_MIN_OBJECTS} objects, got {sizes[0]:,} and {sizes[1]:,}"
        )
    random = np.random.default_rng(seed)
    value_ND = np.concatenate([a_AD, b_BD]).astype(np.float64)
    value_ND -= value_ND.mean(axis=0)
    deviation = value_ND.std(axis=0)
    value_ND /= np.where(deviation > 0, deviation, 1)
    is_b = np.repeat([False, True], sizes)
    fold_N = np.concatenate([random.permutation(np.arange(n) % _FOLDS) for n in sizes])
    score_N, place_N = np.zeros(len(is_b)), np.zeros(len(is_b))
    for fold in range(_FOLDS):
        held, known = fold_N == fold, fold_N != fold
        weight = _probe(value_ND[known & ~is_b], value_ND[known & is_b])
        score_N[held] = value_ND[held] @ weight
        # Of scores by one probe only: those of others have another scale.
        place_N[held & is_b] = _share_below(score_N[held & is_b], score_N[held & ~is_b])
        place_N[held & ~is_b] = 1 - _share_below(score_N[held & ~is_b], score_N[held & is_b])
    mixed = [random.permutation(is_b) for _ in range(_DIVISIONS)]
    return Shift(
        auroc=_estimate([place_N[~is_b], place_N[is_b]]),
        frechet=frechet_distance(value_ND[~is_b], value_ND[is_b]),
        frechet_null=float(np.median([frechet_distance(value_ND[~m], value_ND[m]) for m in mixed])),
        score_A=score_N[~is_b],
        score_B=score_N[is_b],
    )


def frechet_distance(a_AD: Floats, b_BD: Floats) -> float:
    """Squared distance of normal distributions of the sets' means and covariances S.

    That is |mean A - mean B|^2 + tr(S_A + S_B - 2 (S_A S_B)^(1/2)).
    """
    covariance = [np.atleast_2d(np.cov(v, rowvar=False)) for v in (a_AD, b_BD)]
    variance, axes = np.linalg.eigh(covariance[0])
    root = (axes * np.sqrt(np.clip(variance, 0, None))) @ axes.T
    crossed = np.linalg.eigvalsh(root @ covariance[1] @ root)
    moved = float(((a_AD.mean(axis=0) - b_BD.mean(axis=0)) ** 2).sum())
    spread = float(np.trace(covariance[0] + covariance[1]))
    return max(0.0, moved + spread - 2 * float(np.sqrt(np.clip(crossed, 0, None)).sum()))


def _probe(a_AD: Floats, b_BD: Floats) -> Floats:
    """Weights of Fisher's linear discriminant, of unit spread within the sets; float64 (D,)."""
    means = a_AD.mean(axis=0), b_BD.mean(axis=0)
    within = ((a_AD - means[0]).T @ (a_AD - means[0]) + (b_BD - means[1]).T @ (b_BD - means[1])) / (
        len(a_AD) + len(b_BD)
    )
    weight = np.linalg.solve(within + _RIDGE * np.eye(len(within)), means[1] - means[0])
    spread = np.sqrt(max(float(weight @ within @ weight), 1e-30))
    return np.asarray(weight / spread, np.float64)


def _share_below(score_N: Floats, other_M: Floats) -> Floats:
    """Share of others below each score, equal ones by half; float64 (N,)."""
    ordered = np.sort(other_M)
    below, upto = (np.searchsorted(ordered, score_N, side=s) for s in ("left", "right"))
    return np.asarray((below + upto) / 2 / len(ordered), np.float64)


def _estimate(places: Sequence[Floats]) -> Estimate:
    """The AUROC and its interval, from the share of the other set that each object is right of."""
    value = float(np.mean([place.mean() for place in places]))
    # Twice the variance of DeLong's: each pair of folds counts twice, once as it learns and once as
    # it is asked. That is right where the sets are alike, and more than enough where they differ.
    error = float(np.sqrt(2 * sum(place.var(ddof=1) / len(place) for place in places)))
    wide = NormalDist().inv_cdf((1 + _LEVEL) / 2) * error
    return Estimate(value=value, low=max(0.0, value - wide), high=min(1.0, value + wide))
