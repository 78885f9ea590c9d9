"""The order of an epoch, and who takes which stretch of it: pure functions of their arguments.

An order is a permutation of `range(num_samples)`; a *position* is a place in it. The order depends
on the seed and the epoch alone, never on nodes, ranks, threads or format, so a run may stop at any
position and resume with another number of ranks or another batch size. `shuffle` and `locality`
have the same order: `locality` (`msdata.plan.assign`) only deals the samples of each global batch
differently to the ranks. `block` gives up uniformity for reads in storage order, for data far
larger than all caches; `msdata.plan.quality` says how much is given up. `sequential` draws nothing:
each epoch is the order of the index, for predictions and comparisons. `partition` gives each rank a
stretch of the index for all epochs and shuffles within it, as jobs do that copy a part of the data
to each node: its order depends on the ranks and their batch, and resumes on no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan.random_words import random_words, uniform_permutation
from msdata.plan.weighted import check_weights, weighted_order

POLICIES = ("shuffle", "locality", "block", "sequential", "partition")
# What reads each sample exactly once: it cannot draw by weights.
_UNWEIGHTED = {
    "block": "reads whole shards",
    "sequential": "reads in the order of the index",
    "partition": "gives each rank samples of its own",
}
LAST = ("drop", "pad", "short")
# Defaults of the loader and of the plan.
DEFAULT_BATCH_SIZE = 128
DEFAULT_POLICY = "shuffle"
DEFAULT_LAST = "short"

# 16,384 cutouts of 0.6 MB are 10 GB: a size that any node can spare for a shuffle buffer.
DEFAULT_BUFFER_SAMPLES = 16384

_CHUNK = 1 << 16

_SAMPLES, _SHARDS = 0, 1  # streams of random numbers within one epoch


def epoch_order(
    policy: str,
    *,
    seed: int,
    epoch: int,
    num_samples: int,
    shard_sizes: NDArray[np.int64] | None = None,
    buffer_samples: int = DEFAULT_BUFFER_SAMPLES,
    weights: NDArray[np.float64] | None = None,
    layout: tuple[int, int] = (1, 1),
) -> NDArray[np.int64]:
    """The samples per epoch, in the order in which the job consumes them.

    Args:
        policy: one of `POLICIES`.
        seed: any integer from 0; taken modulo 2**64.
        epoch: any integer from 0; taken modulo 2**64.
        num_samples: samples of the split.
        shard_sizes: int64 (num_shards,), samples of each shard in index order; `block` needs it.
        buffer_samples: `block` displaces a sample by less than this many positions.
        weights: float64 (num_samples,), to draw samples with replacement; None takes every sample
            once.
        layout: ranks and samples per step on each; `partition` needs them.

    Returns:
        int64 (num_samples,): a permutation of `range(num_samples)`; with weights as many draws.

    Raises:
        UsageError: the policy is unknown, a number is negative, the shards do not add up, or
            no sample can be drawn by the weights.
    """
    if policy not in POLICIES:
        raise UsageError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if num_samples < 0:
        raise UsageError(f"num_samples must be at least 0, got {num_samples}")
    if weights is not None:
        check_weighted_policy(policy)
        return weighted_order(check_weights(weights, num_samples), seed=seed, epoch=epoch)
    if policy == "sequential":
        return np.arange(num_samples, dtype=np.int64)
    if policy != "block":
        order = uniform_permutation(num_samples, seed=seed, epoch=epoch, stream=_SAMPLES)
        return order if policy != "partition" else _dealt_to_owners(order, *layout)
    if shard_sizes is None:
        raise UsageError("policy 'block' needs shard_sizes: it draws the order of whole shards")
    if not 1 <= buffer_samples < 1 << 32:
        raise UsageError(f"buffer_samples must be from 1 to 2**32 - 1, got {buffer_samples}")
    shift, ends = _shard_stream(shard_sizes, num_samples, seed=seed, epoch=epoch)
    order = np.empty(num_samples, dtype=np.int64)
    low = 0
    for places in _buffer_shuffle(num_samples, buffer_samples, seed=seed, epoch=epoch):
        order[low : low + len(places)] = places + shift[np.searchsorted(ends, places, "right")]
        low += len(places)
    return order


def _dealt_to_owners(
    order: NDArray[np.int64], num_ranks: int, batch_per_rank: int
) -> NDArray[np.int64]:
    """The order in which each rank's slice of each batch is of its own stretch of the index.

    Stretches differ by one sample at most, and the incomplete last batch, which `global_positions`
    splits evenly, has what is left of each.
    """
    num_samples = len(order)
    ends = num_samples * np.arange(num_ranks + 1, dtype=np.int64) // num_ranks
    # Small integers, which argsort sorts by counting.
    owner = np.searchsorted(ends[1:], order, "right").astype(np.min_scalar_type(num_ranks))
    own = order[np.argsort(owner, kind="stable")]
    num_full = num_samples // (num_ranks * batch_per_rank) * batch_per_rank
    full = [own[low : low + num_full].reshape(-1, batch_per_rank) for low in ends[:-1]]
    rests = [own[low + num_full : high] for low, high in pairwise(ends.tolist())]
    return np.concatenate([np.stack(full, axis=1).ravel(), *rests])


def check_weighted_policy(policy: str) -> None:
    """Raises UsageError for a policy whose samples cannot be drawn with replacement."""
    if policy in _UNWEIGHTED:
        raise UsageError(
            f"policy {policy!r} {_UNWEIGHTED[policy]}, each sample once, so it cannot draw samples "
            "by weights; choose 'shuffle' or 'locality', or put the weights into the loss"
        )


def num_steps(num_samples: int, global_batch: int, last: str) -> int:
    """Global steps that `num_samples` samples make.

    Args:
        num_samples: samples still to be consumed.
        global_batch: samples per step over all ranks.
        last: what happens to an incomplete last batch: `drop` leaves it out, `pad` fills it from
            the start of the epoch's order, `short` deals out what there is.

    Returns:
        The number of steps, the same on every rank.

    Raises:
        UsageError: an empty batch, a negative number of samples, or an unknown `last`.
    """
    if last not in LAST:
        raise UsageError(f"remainder must be one of {', '.join(LAST)}, got {last!r}")
    if global_batch < 1:
        raise UsageError(f"a global batch must have at least 1 sample, got {global_batch}")
    if num_samples < 0:
        raise UsageError(f"cannot resume past the end of the epoch: {num_samples} samples are left")
    return num_samples // global_batch if last == "drop" else -(-num_samples // global_batch)


def batch_bounds(
    step: int, *, num_samples: int, global_batch: int, first_position: int = 0
) -> tuple[int, int]:
    """The positions [low, high) of the order that step `step` consumes, padding left out.

    Args:
        step: global step counted from `first_position`.
        num_samples: samples of the epoch.
        global_batch: samples per step over all ranks.
        first_position: where in the epoch the run resumes.

    Returns:
        (low, high); empty past the end, shorter than `global_batch` in an incomplete last batch.
    """
    low = min(num_samples, first_position + step * global_batch)
    return low, min(num_samples, low + global_batch)


def rank_slice(rank: int, batch_per_rank: int) -> slice:
    """The part of every complete global batch that `rank` takes: [rank*b, (rank+1)*b)."""
    return slice(rank * batch_per_rank, (rank + 1) * batch_per_rank)


@dataclass(frozen=True, kw_only=True)
class BatchPositions:
    """Positions of the epoch's order, step by step.

    Attributes:
        positions: int64 (num_steps, ..., batch_per_rank); -1 where a short batch has no sample.
        is_real: bool, the same shape; False for padding and for absent samples.
    """

    positions: NDArray[np.int64]
    is_real: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.positions.shape != self.is_real.shape:
            raise UsageError(
                f"positions {self.positions.shape} and their mask {self.is_real.shape} differ"
            )


def global_positions(
    *,
    num_samples: int,
    batch_per_rank: int,
    num_ranks: int,
    last: str,
    first_position: int = 0,
) -> BatchPositions:
    """What every rank takes in every step from `first_position` to the end of the epoch.

    Args:
        num_samples: samples of the epoch.
        batch_per_rank: samples per step on one rank.
        num_ranks: ranks of the job.
        last: one of `LAST`, see `num_steps`. A `short` last batch is split as evenly as can be,
            so that no rank sits idle while another has a full batch.
        first_position: where in the epoch the run resumes, 0 <= first_position <= num_samples.

    Returns:
        Arrays of shape (num_steps, num_ranks, batch_per_rank).

    Raises:
        UsageError: as `num_steps`, or a position outside the epoch.
    """
    if not 0 <= first_position <= num_samples:
        raise UsageError(
            f"position {first_position} is outside an epoch of {num_samples} samples; "
            "was the run's state saved for another data set?"
        )
    global_batch = num_ranks * batch_per_rank
    steps = num_steps(num_samples - first_position, global_batch, last)
    starts = first_position + np.arange(steps, dtype=np.int64) * global_batch
    within = np.arange(global_batch, dtype=np.int64).reshape(num_ranks, batch_per_rank)
    positions = starts[:, None, None] + within
    is_real = positions < num_samples
    if last == "pad" and steps:
        positions[-1] %= num_samples
    if last == "short" and steps and starts[-1] + global_batch > num_samples:
        edges = starts[-1] + (num_samples - starts[-1]) * np.arange(num_ranks + 1) // num_ranks
        positions[-1] = edges[:-1, None] + np.arange(batch_per_rank)
        is_real[-1] = positions[-1] < edges[1:, None]
        positions[-1][~is_real[-1]] = -1
    return BatchPositions(positions=positions, is_real=is_real)


def rank_positions(
    *,
    num_samples: int,
    batch_per_rank: int,
    num_ranks: int,
    rank: int,
    last: str,
    first_position: int = 0,
) -> BatchPositions:
    """What one rank takes in every step: `global_positions` of that rank alone.

    Args:
        num_samples: samples of the epoch.
        batch_per_rank: samples per step on one rank.
        num_ranks: ranks of the job.
        rank: 0 <= rank < num_ranks.
        last: one of `LAST`, see `num_steps`.
        first_position: where in the epoch the run resumes.

    Returns:
        Arrays of shape (num_steps, batch_per_rank).

    Raises:
        UsageError: as `num_steps`, a position outside the epoch, or a rank outside the job.
    """
    if not 0 <= rank < num_ranks:
        raise UsageError(f"rank must be from 0 to {num_ranks - 1}, got {rank}")
    grid = global_positions(
        num_samples=num_samples,
        batch_per_rank=batch_per_rank,
        num_ranks=num_ranks,
        last=last,
        first_position=first_position,
    )
    return BatchPositions(positions=grid.positions[:, rank], is_real=grid.is_real[:, rank])


def _shard_stream(
    shard_sizes: NDArray[np.int64], num_samples: int, *, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples in index order within shards, the shards in random order.

    Within a shard the order of storage stays: any shuffle of it would be undone or outdone by the
    buffer, which spans many shards, and the reads are sequential.

    Returns:
        int64 (num_shards,) each, in the order of the stream: what to add to a place in the stream
        for the sample that stands there, and the place where the shard ends.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    if sizes.ndim != 1 or (sizes < 0).any() or int(sizes.sum()) != num_samples:
        raise UsageError(
            f"shard_sizes hold {int(sizes.sum())} samples, the epoch {num_samples}; "
            "pass the samples of each shard of this split in index order"
        )
    order = uniform_permutation(len(sizes), seed=seed, epoch=epoch, stream=_SHARDS)
    starts = (np.cumsum(sizes) - sizes)[order]
    lengths = sizes[order]
    ends = np.cumsum(lengths)
    return starts - (ends - lengths), ends


def _buffer_shuffle(
    num_items: int, buffer: int, *, seed: int, epoch: int
) -> Iterator[NDArray[np.int64]]:
    """Places sorted by place + buffer * u, u uniform in [0, 1): each moves by less than `buffer`.

    Keys are fixed-point numbers of 24 binary places, so the order rests on integers alone. They
    are drawn and sorted in stretches, to save memory: what sorts before the start of the
    next stretch is final, the rest is carried over.

    Yields:
        int64 arrays that make a permutation of `range(num_items)` together.
    """
    stretch = max(_CHUNK, 4 * buffer)
    carried_keys = np.empty(0, dtype=np.uint64)
    carried = np.empty(0, dtype=np.int64)
    for low in range(0, num_items, stretch):
        high = min(low + stretch, num_items)
        words = random_words(high - low, seed=seed, epoch=epoch, stream=_SAMPLES, first=low)
        places = np.arange(low, high, dtype=np.int64)
        drawn = (words >> np.uint64(40)) * np.uint64(buffer)
        drawn += places.astype(np.uint64) << np.uint64(24)
        keys = np.concatenate([carried_keys, drawn])
        order = np.argsort(keys, kind="stable")
        places = np.concatenate([carried, places])[order]
        keys = keys[order]
        num_final = len(keys)
        if high < num_items:
            num_final = int(np.searchsorted(keys, np.uint64(high << 24)))
        yield places[:num_final]
        carried_keys, carried = keys[num_final:], places[num_final:]
