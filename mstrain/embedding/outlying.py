"""How far objects lie from a training's: distance to the k-th neighbor, and what it is worth.

A network's answer is worth little for inputs unlike those that it learned from. The distance is
that of Sun+ 2022, in embeddings that are scaled to unit variance and projected on the training's
principal components. Objects of a validation split, which are like the training's but were not
learned, say how rare a distance is. No density is modeled: a flow would need a package of its own.

Source: Sun, Ming, Zhu, Li 2022, arXiv:2204.06507.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from msdata.errors import DataError
from mstrain.embedding.distance import nearest
from mstrain.evaluation.metrics.densities import Floats

# Of its own size, a value's standard deviation that is only rounding.
_FLAT = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Coordinates that distances are measured in.

    Attributes:
        mean: float64 (D,), of the training's embeddings.
        axes: float64 (D, C), principal axes of the scaled embeddings, each divided by the
            standard deviation of the values.
        share: of the variance that the axes hold.
    """

    mean: Floats
    axes: Floats
    share: float

    def of(self, value_ND: NDArray[np.floating]) -> NDArray[np.float32]:
        """Coordinates of embeddings (N, D), float32 (N, C)."""
        found: NDArray[np.float32] = ((value_ND.astype(np.float64) - self.mean) @ self.axes).astype(
            np.float32
        )
        return found


def fit_space(
    parts: Iterable[NDArray[np.floating]], num_axes: int, *, is_white: bool = False
) -> Space:
    """The principal axes of embeddings, each value scaled to unit variance.

    Args:
        parts: (n, D) each, all of the training's, one part after the other; read once.
        num_axes: C, or D where that is less.
        is_white: divide each coordinate by its standard deviation, so that all axes count alike.

    Raises:
        DataError: there are fewer than two embeddings, or all are the same.
    """
    count, shift, total, product = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))
    for part in parts:
        if not len(part):
            continue
        value_ND = part.astype(np.float64)
        if not count:
            # Products of differences from near the mean keep their digits.
            shift, total = value_ND.mean(axis=0), np.zeros(part.shape[1])
            product = np.zeros((part.shape[1],) * 2)
        value_ND -= shift
        count += len(part)
        total += value_ND.sum(axis=0)
        product += value_ND.T @ value_ND
    if count < 2:
        raise DataError(f"at least 2 training embeddings are needed, got {count}")
    offset = total / count
    mean = shift + offset
    covariance = product / count - np.outer(offset, offset)
    deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
    is_flat = deviation <= _FLAT * np.abs(mean)
    if is_flat.all():
        raise DataError(f"all {count:,} training embeddings are the same; was the network trained?")
    deviation[is_flat] = 1
    variance, axes = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    order = np.argsort(variance)[::-1][:num_axes]
    share = float(variance[order].sum() / variance.sum())
    axes = axes[:, order] / deviation[:, None]
    if is_white:
        # An axis without variance is left as it is.
        has_variance = variance[order] > _FLAT * variance.max()
        axes = axes / np.sqrt(np.where(has_variance, variance[order], 1))
    return Space(mean=mean, axes=axes, share=share)


def neighbor_distance(
    query_NC: NDArray[np.float32],
    reference_RC: NDArray[np.float32],
    k: int,
    own_N: NDArray[np.int64],
    device: torch.device | str = "cpu",
) -> Floats:
    """Distance of each query to its k-th nearest reference, float64 (N,).

    Args:
        query_NC: float32 (N, C).
        reference_RC: float32 (R, C), R > k.
        k: number of the neighbor, from 1.
        own_N: int64 (N,), the reference that is the query itself, which does not count; -1 for
            none.
        device: where products are computed.
    """
    distance, row = nearest(query_NC, [reference_RC], k + 1, device)
    is_own = row == own_N[:, None]
    # Where more twins than k lie at the same place, the query itself may be missing among them.
    place = np.where(is_own[:, :k].any(axis=1), k, k - 1)
    found: Floats = distance[np.arange(len(distance)), place]
    return found


def sigma_of(distance_N: Floats, validation_V: Floats) -> Floats:
    """How unusual distances are: Phi^-1(1 - p), p the share of validation objects as far away.

    Args:
        distance_N: float64 (N,).
        validation_V: float64 (V,), distances of validation objects.

    Returns:
        float64 (N,), one-sided. p = (1 + number as far or farther) / (V + 1), so that no p is 0:
        the most that V objects can tell is `largest_sigma(V)`. For an object like them
        P(p <= a) <= a.
    """
    ordered, count = np.sort(validation_V), len(validation_V)
    num_farther = count - np.searchsorted(ordered, distance_N, side="left")
    table = np.array([_sigma((1 + n) / (count + 1), count) for n in range(count + 1)])
    found: Floats = table[num_farther]
    return found


def largest_sigma(count: int) -> float:
    """The largest sigma that so many validation objects can tell."""
    return _sigma(1 / (count + 1), count)


def _sigma(p: float, count: int) -> float:
    # p = 1 would be minus infinity.
    return NormalDist().inv_cdf(1 - min(p, count / (count + 1)))
