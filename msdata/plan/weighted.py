"""An epoch drawn with replacement from weights, such as one over the count of a redshift's bin.

Against weights in the loss, with which every sample comes exactly once an epoch: gradients scatter
less where weights differ much, but some samples come several times and others not at all, so an
epoch is no pass over the data. Draw i is a function of (seed, epoch, i) and the weights alone, and
only integers decide, as in `msdata.plan.order`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan.random_words import random_words

_DRAWS = 2  # stream of random numbers; those of `msdata.plan.order` are 0 and 1
# Cumulated weights stay below 2**62, whatever rounding adds.
_TOTAL_BITS = 61
_CHUNK = 1 << 20


def check_weights(weights: NDArray[np.float64], num_samples: int) -> NDArray[np.float64]:
    """The weights as float64 (num_samples,).

    Args:
        weights: of all samples of a split, in the order of its index.
        num_samples: samples of the split.

    Raises:
        UsageError: they are of another split, or none can be drawn from.
    """
    if np.ma.is_masked(weights):
        raise UsageError("weights are masked; give 0 to samples that must not be drawn")
    try:
        checked = np.asarray(weights)
        if checked.dtype.kind == "c":
            raise TypeError("complex")
        checked = checked.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"weights are no numbers ({error}); give one for each sample") from None
    if checked.shape != (num_samples,):
        raise UsageError(
            f"weights of shape {checked.shape} are not one for each of the {num_samples} samples; "
            "give them in the order of the split's index"
        )
    is_wrong = ~(np.isfinite(checked) & (checked >= 0))
    if is_wrong.any():
        first = int(is_wrong.argmax())
        raise UsageError(
            f"{np.count_nonzero(is_wrong)} weights are negative or no number, the first is "
            f"{checked[first]} of sample {first}; give 0 to samples that must not be drawn"
        )
    if num_samples and not checked.any():
        raise UsageError("all weights are 0: no sample can be drawn; give one of them some")
    return checked


def inverse_count_weights(
    values: NDArray[np.float64], *, num_bins: int, upper: float
) -> NDArray[np.float64]:
    """Weights with which every filled bin of a label is drawn equally often.

    Args:
        values: float64 (num_samples,), such as redshifts.
        num_bins: even bins of [0, upper].
        upper: end of the last bin, which belongs to it.

    Returns:
        float64 (num_samples,): 1 / count of the sample's bin; 0 where the value is outside
        [0, upper] or unknown.

    Raises:
        UsageError: there are no bins.
    """
    if num_bins < 1 or not 0 < upper < np.inf:
        raise UsageError(f"{num_bins} bins of [0, {upper}] hold nothing; give at least 1, above 0")
    is_known = (values >= 0) & (values <= upper)
    place = (values[is_known] / upper * num_bins).astype(np.int64)
    place = np.minimum(place, num_bins - 1)
    weights = np.zeros(len(values))
    weights[is_known] = 1 / np.bincount(place)[place]
    return weights


def weighted_order(weights: NDArray[np.float64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The samples of an epoch, each drawn with replacement in proportion to its weight.

    Args:
        weights: float64 (num_samples,), see `check_weights`; 0 is never drawn, anything above 0 has
            at least a chance of 2**-62 a draw.
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
    """Where each sample's part of the whole numbers from 0 ends.

    Division by the largest, scaling by a power of two and rounding are exact or rounded alike on
    every machine; a sum of floats would depend on the width of its vector unit.
    """
    scale = 2.0 ** (_TOTAL_BITS - len(weights).bit_length())
    parts = np.rint(weights / weights.max() * scale)
    parts = np.where(weights > 0, np.maximum(parts, 1.0), 0.0)
    ends: NDArray[np.uint64] = np.cumsum(parts.astype(np.uint64), dtype=np.uint64)
    return ends


def _scaled(words: NDArray[np.uint64], total: int) -> NDArray[np.uint64]:
    """floor(word * total / 2**64) in halves: uniform whole numbers below `total`.

    The remainder of a division would favour the first samples.
    """
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    total_high, total_low = np.uint64(total >> 32), np.uint64(total & 0xFFFFFFFF)
    high, low = words >> half, words & mask
    middle = high * total_low + ((low * total_low) >> half)
    other = low * total_high + (middle & mask)
    scaled: NDArray[np.uint64] = high * total_high + (middle >> half) + (other >> half)
    return scaled
