"""An epoch drawn with replacement from weights, such as one over the count of a redshift's bin.

Compare weights in the loss, with which every sample comes exactly once per epoch: here gradients
scatter less where weights differ much, but some samples repeat and others are left out. Draw i is a
function of (seed, epoch, i) and the weights alone, and only integers decide, as in
`msdata.plan.order`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan.random_words import random_words

_DRAWS = 2  # stream of random numbers; those of `msdata.plan.order` are 0 and 1
# Cumulative weights stay below 2**62, whatever rounding adds.
_TOTAL_BITS = 61
_CHUNK = 1 << 20


def check_weights(weights: NDArray[np.float64], num_samples: int) -> NDArray[np.float64]:
    """The weights as float64 (num_samples,).

    Args:
        weights: of all samples of a split, in the order of its index.
        num_samples: samples of the split.

    Raises:
        UsageError: the weights belong to another split, or no sample can be drawn from them.
    """
    if np.ma.is_masked(weights):
        raise UsageError("weights are masked; give 0 to samples that must not be drawn")
    try:
        checked = np.asarray(weights)
        if checked.dtype.kind == "c":
            raise TypeError("complex")
        checked = checked.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"weights must be numbers, one per sample: {error}") from None
    if checked.shape != (num_samples,):
        raise UsageError(
            f"weights must be {num_samples} numbers, one per sample in the order of the index, got "
            f"shape {checked.shape}"
        )
    is_wrong = ~(np.isfinite(checked) & (checked >= 0))
    if is_wrong.any():
        first = int(is_wrong.argmax())
        raise UsageError(
            f"weights must be finite and at least 0, got {np.count_nonzero(is_wrong)} others, the "
            f"first {checked[first]} for sample {first}; give 0 to samples that must not be drawn"
        )
    if num_samples and not checked.any():
        raise UsageError("cannot draw samples: all weights are 0; give one a weight above 0")
    return checked


def inverse_counts(
    values: NDArray[Any], *, num_bins: int, upper: float, lower: float = 0.0
) -> NDArray[np.float64]:
    """The weight of each bin with which all filled bins of a label weigh alike.

    Args:
        values: float (num_samples,), such as redshifts.
        num_bins: even bins of [lower, upper].
        upper: end of the last bin, which belongs to it.
        lower: start of the first.

    Returns:
        float64 (num_bins,): 1 / count of the values in the bin; 0 for an empty bin. Values outside
        [lower, upper] and NaN do not count.

    Raises:
        UsageError: num_bins is below 1, or `upper` is not a number above `lower`.
    """
    place = _bins(values, num_bins, upper, lower)
    count = np.bincount(place[place >= 0], minlength=num_bins)
    return np.divide(1.0, count, out=np.zeros(num_bins), where=count > 0)


def inverse_count_weights(
    values: NDArray[Any], *, num_bins: int, upper: float, lower: float = 0.0
) -> NDArray[np.float64]:
    """The weight of each sample with which every filled bin of a label is drawn equally often.

    Args:
        values: as in `inverse_counts`.
        num_bins: as in `inverse_counts`.
        upper: as in `inverse_counts`.
        lower: as in `inverse_counts`.

    Returns:
        float64 (num_samples,): `inverse_counts` of the sample's bin; 0 where the value is outside
        [lower, upper] or unknown.

    Raises:
        UsageError: as `inverse_counts`.
    """
    weights = inverse_counts(values, num_bins=num_bins, upper=upper, lower=lower)
    # A bin beyond the last, for samples that lie in none: number -1 finds it.
    return np.append(weights, 0.0)[_bins(values, num_bins, upper, lower)]


def is_usable(values: NDArray[Any], upper: float, lower: float = 0.0) -> NDArray[np.bool_]:
    """Whether each label is known and within [lower, upper]; others count as absent."""
    return np.asarray((values >= lower) & (values <= upper))


def _bins(values: NDArray[Any], num_bins: int, upper: float, lower: float) -> NDArray[np.int64]:
    """The bin of each value, -1 outside of all; in double precision, whatever the values are."""
    if num_bins < 1:
        raise UsageError(f"the number of bins must be at least 1, got {num_bins}")
    if not lower < upper < np.inf:
        raise UsageError(f"the end of the last bin must be > {lower:g} and finite, got {upper}")
    values = np.asarray(values, np.float64)
    is_known = is_usable(values, upper, lower)
    place = np.full(len(values), -1, np.int64)
    share = (values[is_known] - lower) / (upper - lower)
    place[is_known] = np.minimum(share * num_bins, num_bins - 1).astype(np.int64)
    return place


def weighted_order(weights: NDArray[np.float64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The samples per epoch, each drawn with replacement in proportion to its weight.

    Args:
        weights: float64 (num_samples,), see `check_weights`; 0 is never drawn, anything above 0 has
            a chance of at least 2**-62 per draw.
        seed: as in `random_words`.
        epoch: as in `random_words`.

    Returns:
        int64 (num_samples,): as many draws as there are samples.

    Source: inverse of the cumulative distribution, Devroye 1986, "Non-Uniform Random Variate
    Generation", section III.2.
    """
    order = np.empty(len(weights), np.int64)
    if not len(weights):
        return order
    ends = _ends(weights)
    words = random_words(len(weights), seed=seed, epoch=epoch, stream=_DRAWS)
    for low in range(0, len(words), _CHUNK):
        places = _scaled(words[low : low + _CHUNK], int(ends[-1]))
        # Searching in ascending order is four times faster, sorting included: caches.
        ascending = np.argsort(places)
        order[low + ascending] = np.searchsorted(ends, places[ascending], side="right")
    return order


def repeats_of(order: NDArray[np.int64]) -> NDArray[np.uint32]:
    """How often each sample of an order has come before in it.

    Args:
        order: int64 (num_draws,), samples.

    Returns:
        uint32 (num_draws,): 0 where a sample comes for the first time.
    """
    by_sample = np.argsort(order, kind="stable")
    ordered = order[by_sample]
    is_first = np.ones(len(order), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    counts = np.diff(np.append(starts, len(order)))
    repeats = np.empty(len(order), np.uint32)
    repeats[by_sample] = np.arange(len(order)) - np.repeat(starts, counts)
    return repeats


def _ends(weights: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Where each sample's part of the integers from 0 ends.

    Division by the largest, scaling by a power of two and rounding are exact or rounded alike on
    every machine; a sum of floats would depend on the width of its vector unit.
    """
    scale = 2.0 ** (_TOTAL_BITS - len(weights).bit_length())
    parts = np.rint(weights / weights.max() * scale)
    parts = np.where(weights > 0, np.maximum(parts, 1.0), 0.0)
    ends: NDArray[np.uint64] = np.cumsum(parts.astype(np.uint64), dtype=np.uint64)
    return ends


def _scaled(words: NDArray[np.uint64], total: int) -> NDArray[np.uint64]:
    """floor(word * total / 2**64) in halves: uniform integers below `total`.

    The remainder of a division would favor the first samples.
    """
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    total_high, total_low = np.uint64(total >> 32), np.uint64(total & 0xFFFFFFFF)
    high, low = words >> half, words & mask
    middle = high * total_low + ((low * total_low) >> half)
    other = low * total_high + (middle & mask)
    scaled: NDArray[np.uint64] = high * total_high + (middle >> half) + (other >> half)
    return scaled
