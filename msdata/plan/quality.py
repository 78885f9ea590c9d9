"""Measures of how far an order is from a uniform shuffle, each beside its value for a uniform draw.

A hit rate bought with a worse shuffle gains nothing, so `msdata plan` prints both. The
global batches of `locality` are those of `shuffle`, and so is their quality; what differs is what
one rank alone sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

_KOLMOGOROV_MEAN = math.sqrt(math.pi / 2) * math.log(2)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measure and its expectation under a uniform draw.

    Attributes:
        value: the measured value.
        uniform: the mean for a uniform draw without replacement; for samples drawn by weights, the
            mean for independent draws by those weights.
    """

    value: float
    uniform: float

    @property
    def ratio(self) -> float:
        """Measured over expected: 1 for a uniform shuffle; NaN where nothing is expected."""
        return self.value / self.uniform if self.uniform else math.nan


def batches_of(order: NDArray[np.int64], global_batch: int) -> NDArray[np.int64]:
    """The complete global batches of an order: int64 (num_steps, global_batch).

    Args:
        order: int64 (num_samples,).
        global_batch: samples per step.

    Raises:
        UsageError: the order does not fill one batch.
    """
    steps = len(order) // global_batch
    if steps < 1:
        raise UsageError(f"{len(order)} samples do not fill a global batch of {global_batch}")
    return order[: steps * global_batch].reshape(steps, global_batch)


def same_shard_pairs(
    batch_SG: NDArray[np.int64],
    shard_of_sample: NDArray[np.int32],
    weights: NDArray[np.float64] | None = None,
) -> Measured:
    """Pairs of a batch that come from the same shard, mean over batches.

    Args:
        batch_SG: int64 (num_steps, global_batch), samples.
        shard_of_sample: int32 (num_samples,).
        weights: float64 (num_samples,), with which samples are drawn; None takes each once.

    Returns:
        The mean number of pairs; under a uniform draw each pair of samples is as likely as any.
    """
    num_steps, global_batch = batch_SG.shape
    num_samples = len(shard_of_sample)
    in_batch = _equal_pairs(np.sort(shard_of_sample[batch_SG], axis=1)) / num_steps
    if weights is not None:
        by_shard = np.bincount(shard_of_sample, weights / weights.max())
        chance = float(((by_shard / by_shard.sum()) ** 2).sum())
        return Measured(value=in_batch, uniform=_pairs(global_batch) * chance)
    sizes = np.bincount(shard_of_sample).astype(np.float64)
    in_all = float((sizes * (sizes - 1) / 2).sum())
    chance = _pairs(global_batch) / max(1.0, _pairs(num_samples))
    return Measured(value=in_batch, uniform=in_all * chance)


def repeated_pairs(one: NDArray[np.int64], other: NDArray[np.int64], global_batch: int) -> Measured:
    """Pairs of samples that share a batch in two epochs, per batch.

    Displacement alone cannot tell a shuffle of whole blocks from one of samples; this can.

    Args:
        one: int64 (num_samples,), an epoch's order.
        other: another epoch's order.
        global_batch: samples per step.

    Returns:
        The mean number of such pairs per batch.
    """
    num_samples = len(one)
    steps = len(batches_of(one, global_batch))
    step_of_sample = np.empty((2, num_samples), dtype=np.int64)
    for row, order in zip(step_of_sample, (one, other), strict=True):
        row[order] = np.arange(num_samples) // global_batch
    complete = (step_of_sample < steps).all(axis=0)
    both = step_of_sample[0, complete] * steps + step_of_sample[1, complete]
    pairs = _equal_pairs(np.sort(both)[None])
    chance = steps * _pairs(global_batch) / max(1.0, _pairs(num_samples))
    return Measured(value=pairs / steps, uniform=_pairs(global_batch) * chance)


def displacement(one: NDArray[np.int64], other: NDArray[np.int64]) -> Measured:
    """How far samples move between two epochs: mean |difference of position| / num_samples.

    Args:
        one: int64 (num_samples,), an epoch's order.
        other: another epoch's order.

    Returns:
        The mean displacement; a uniform draw has (1 - 1/N**2) / 3.
    """
    num_samples = max(1, len(one))
    place = np.empty_like(one)
    place[one] = np.arange(len(one))
    distance = np.abs(place[other] - np.arange(len(other)))
    mean = float(distance.sum()) / num_samples**2
    return Measured(value=mean, uniform=(1 - 1 / num_samples**2) / 3)


@dataclass(frozen=True, kw_only=True)
class LabelDrift:
    """How the labels of batches scatter around those of the whole.

    Attributes:
        mean: standard deviation over batches of the batch's mean label, in units of the label.
        distribution: mean over batches of the Kolmogorov-Smirnov distance to all labels.
        num_batches: batches measured.
    """

    mean: Measured
    distribution: Measured
    num_batches: int


def label_drift(
    batch_SG: NDArray[np.int64],
    label: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> LabelDrift:
    """Drift of the label's distribution from batch to batch, such as of the redshift.

    Args:
        batch_SG: int64 (num_steps, global_batch), samples.
        label: float64 (num_samples,), finite.
        weights: float64 (num_samples,), with which samples are drawn; None takes each once.

    Returns:
        Scatter of means and distances of distributions, beside those of a uniform draw.

    Raises:
        UsageError: labels that are not finite.

    Source: mean of the Kolmogorov distribution, sqrt(pi/2) ln 2; Stephens 1970 for finite n:
    sqrt(n) + 0.12 + 0.11/sqrt(n); sqrt(1 - n/N) for draws without replacement.
    """
    if not np.isfinite(label).all():
        raise UsageError(
            f"{int((~np.isfinite(label)).sum())} labels are not finite: drop them first"
        )
    num_steps, global_batch = batch_SG.shape
    without_replacement = math.sqrt(max(0.0, 1 - global_batch / len(label)))
    if weights is None:
        weights = np.ones(len(label))
    else:
        # Relative ones: sums of huge ones would overflow.
        weights, without_replacement = weights / weights.max(), 1.0
    center = float(np.average(label, weights=weights))
    spread = math.sqrt(float(np.average((label - center) ** 2, weights=weights)))
    scatter = float((label[batch_SG].mean(axis=1) - center).std())
    expected = spread / math.sqrt(global_batch) * without_replacement
    distance = _mean_distance(batch_SG, label, weights)
    root = math.sqrt(global_batch)
    uniform = _KOLMOGOROV_MEAN / (root + 0.12 + 0.11 / root) * without_replacement
    return LabelDrift(
        mean=Measured(value=scatter, uniform=expected),
        distribution=Measured(value=distance, uniform=uniform),
        num_batches=num_steps,
    )


def _mean_distance(
    batch_SG: NDArray[np.int64], label: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    global_batch = batch_SG.shape[1]
    # Labels as the fraction of all labels up to them, in the middle of ties. Sorted ones are looked
    # up in the order of memory: of three million, thirty times faster.
    ascending = np.argsort(label, kind="stable")
    in_order = label[ascending]
    up_to = np.concatenate([[0.0], np.cumsum(weights[ascending])])
    label_SG = np.sort(label[batch_SG], axis=1)
    low = up_to[np.searchsorted(in_order, label_SG, side="left")]
    high = up_to[np.searchsorted(in_order, label_SG, side="right")]
    fraction_SG = (low + high) / (2 * up_to[-1])
    steps = np.arange(global_batch + 1) / global_batch
    above = np.abs(fraction_SG - steps[1:]).max(axis=1)
    below = np.abs(fraction_SG - steps[:-1]).max(axis=1)
    return float(np.maximum(above, below).mean())


def seen_share(epochs: Iterable[NDArray[np.int64]], num_samples: int) -> NDArray[np.float64]:
    """How much of the data one rank has seen after each epoch.

    Args:
        epochs: what that rank reads in each epoch, int64 of any shape, -1 for none.
        num_samples: samples of the split.

    Returns:
        float64 (num_epochs,), growing.
    """
    seen = np.zeros(num_samples, dtype=np.bool_)
    shares = []
    for samples in epochs:
        seen[samples[samples >= 0]] = True
        shares.append(np.count_nonzero(seen) / max(1, num_samples))
    return np.array(shares)


def uniform_seen_share(num_ranks: int, num_epochs: int) -> float:
    """What one rank has seen of the data after some epochs of uniform shuffles.

    Args:
        num_ranks: ranks of the job.
        num_epochs: epochs.

    Returns:
        1 - (1 - 1/num_ranks)**num_epochs.
    """
    return 1 - (1 - 1 / num_ranks) ** num_epochs


def drawn_share(weights: NDArray[np.float64], num_draws: int) -> float:
    """Share of the samples that independent draws by weights bring at least once, on average.

    Args:
        weights: float64 (num_samples,).
        num_draws: draws.

    Returns:
        The mean of 1 - (1 - p)**num_draws over the samples' chances p.
    """
    relative = weights / weights.max()
    with np.errstate(divide="ignore"):  # a chance of 1
        missed = np.exp(num_draws * np.log1p(-relative / relative.sum())) if num_draws else 1.0
    return float(1 - np.mean(missed))


def _pairs(items: int) -> float:
    return items * (items - 1) / 2


def _equal_pairs(sorted_rows: NDArray[np.integer]) -> float:
    """Pairs of equal entries within each row, summed over rows."""
    is_first = np.ones(sorted_rows.shape, dtype=np.bool_)
    is_first[:, 1:] = sorted_rows[:, 1:] != sorted_rows[:, :-1]
    lengths = np.diff(np.append(np.flatnonzero(is_first), sorted_rows.size)).astype(np.float64)
    return float((lengths * (lengths - 1) / 2).sum())
