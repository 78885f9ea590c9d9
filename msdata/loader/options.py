"""Checks of a loader's arguments, before it takes memory or threads."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msdata.cache.budget import free_memory
from msdata.core.options import renamed
from msdata.core.text import bytes_text
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from msdata.loader.coded_read import batch_schema
from msdata.loader.columns import BatchColumns
from msdata.loader.ring import BatchRing, array_starts, make_ring
from msdata.plan.order import check_weighted_policy, num_steps
from msdata.plan.weighted import check_weights
from msdata.schema import Schema
from msdata.topology import Topology, is_debugging

# Orders are drawn with words of 64 bits; `msdata pack` takes the same seeds.
_NUM_SEEDS = 1 << 63
FORMER_NAMES = {"last": "remainder", "hold": "num_valid_batches"}


def checked_sizes(given: dict[str, Any], former: Mapping[str, Any]) -> tuple[int, int, int, str]:
    """Checks types and ranges of a loader's arguments.

    Args:
        given: the arguments of `Loader`, by name; takes over the former ones, and a private copy
            of the weights.
        former: further arguments, by former names.

    Returns:
        Batch size, prefetch and number of valid batches as int, since NumPy's integers overflow
        and are not JSON; and the remainder.

    Raises:
        UsageError: an argument has another type, or is out of range.
        TypeError: an argument is unknown.
    """
    given |= renamed(former, FORMER_NAMES, "Loader")
    if not isinstance(given["split"], Split):
        raise UsageError(
            f"split must be a Split, got {type(given['split']).__name__}; give "
            "msdata.open(path).split('train')"
        )
    if not isinstance(given["topology"], Topology | None):
        raise UsageError(f"topology must be a Topology or None, got {given['topology']!r}")
    _check_whole("seed", given["seed"])
    if not 0 <= given["seed"] < _NUM_SEEDS:
        raise UsageError(f"seed must be from 0 to 2**63 - 1, got {given['seed']}")
    for name in ("batch_size", "prefetch", "num_valid_batches", "threads", "buffer_samples"):
        if given[name] is None and name in ("num_valid_batches", "threads"):
            continue
        _check_whole(name, given[name])
        if given[name] < 1:
            raise UsageError(f"{name} must be at least 1, got {given[name]}")
    prefetch, hold = int(given["prefetch"]), given["num_valid_batches"]
    if given["weights"] is not None:
        check_weighted_policy(given["policy"])
        given["weights"] = check_weights(given["weights"], len(given["split"])).copy()
    if hold is None:
        hold = 1 if given["copy"] else prefetch + 1
    return int(given["batch_size"]), prefetch, int(hold), str(given["remainder"])


def checked_epoch(epoch: int) -> int:
    """The epoch as a plain int.

    Raises:
        UsageError: the epoch is not an integer in range.
    """
    _check_whole("epoch", epoch)
    if not 0 <= epoch < _NUM_SEEDS:
        raise UsageError(f"epoch must be from 0 to 2**63 - 1, got {epoch}")
    return operator.index(epoch)


def _check_whole(name: str, number: Any) -> None:
    try:
        operator.index(number)
    except TypeError:
        raise UsageError(f"{name} must be an integer, got {number!r}") from None
    if isinstance(number, bool):
        raise UsageError(f"{name} must be an integer, got {number}")


def check_steps(split: Split, batch_size: int, last: str, num_ranks: int) -> None:
    """Refuses an epoch without steps; warns of an empty split.

    Args:
        split: the samples.
        batch_size: samples per step on each rank.
        last: what happens to an incomplete batch.
        num_ranks: ranks.

    Raises:
        UsageError: the whole split is one incomplete batch, which is dropped.
    """
    if num_steps(len(split), batch_size * num_ranks, last):
        return
    if not len(split):
        warnings.warn(
            f"split {split.name!r} has no samples: its epochs have no steps",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    raise UsageError(
        f"remainder={last!r} leaves no step: split {split.name!r} has {len(split):,} samples, a "
        f"global batch {batch_size * num_ranks:,} (batch_size {batch_size:,} on {num_ranks} ranks)"
        "; use a smaller batch_size, or remainder='short' or 'pad'"
    )


@dataclass(frozen=True, kw_only=True)
class RingSize:
    """The buffers of a loader.

    Attributes:
        schema: the arrays of a batch.
        num_rows: samples per buffer.
        num_buffers: number of buffers.
    """

    schema: Schema
    num_rows: int
    num_buffers: int

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return array_starts(self.schema, self.num_rows)[-1] * self.num_buffers


def ring_size(
    split: Split, batch_size: int, last: str, num_buffers: int, *, decode: bool
) -> RingSize:
    """The size of a loader's ring.

    Args:
        split: the samples.
        batch_size: samples per step; a split with fewer samples fills only padded batches.
        last: what happens to an incomplete batch.
        num_buffers: batches in the ring.
        decode: whether batches have pixels; else codes.

    Raises:
        UsageError: codes are asked for, and nothing is quantized.
    """
    schema = batch_schema(split, decode=decode)
    rows = batch_size if last == "pad" else min(batch_size, len(split))
    return RingSize(schema=schema, num_rows=rows, num_buffers=num_buffers)


def allocate_ring(
    size: RingSize, hold: int, gaps: Sequence[int] | None, *, poisons: bool | None
) -> BatchRing:
    """Allocates the ring of a loader.

    Args:
        size: its size.
        hold: batches that stay valid.
        gaps: see `make_ring`.
        poisons: see `BatchRing`; None asks the environment.

    Raises:
        UsageError: the ring does not fit into free memory.
    """
    free = free_memory()
    # 0 where the system does not say.
    if not 0 < free < size.nbytes:
        buffers = make_ring(size.schema, size.num_rows, size.num_buffers, gaps)
        return BatchRing(buffers, hold, poisons=is_debugging() if poisons is None else poisons)
    raise UsageError(
        f"{size.num_buffers} batches of {size.num_rows:,} samples take {bytes_text(size.nbytes)} "
        f"of memory, and {bytes_text(free)} are free; give a smaller batch_size or prefetch, or "
        "num_valid_batches=1"
    )


def tensor_maker(split: Split, columns: BatchColumns) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What makes tensors of a batch, for `Loader(as_torch=True)`.

    Args:
        split: the samples.
        columns: the columns of a batch.

    Raises:
        UsageError: a column has nulls, or a type that tensors do not hold.
        MissingPackageError: torch is not installed.
    """
    from msdata.loader.torch_dataset import as_tensors, check_columns

    check_columns(split, columns, "leave the column out, or take TorchDataset with fill_nulls=")
    return as_tensors


def default_threads() -> int:
    """Threads that fill batches: one per core of this process, at least 4, at most 8.

    Eight threads saturate the memory of every node we know; more only take cores from others.
    Fewer than four leave a disk idle when data are cold; more threads than cores cost nothing.
    """
    return min(8, max(4, len(os.sched_getaffinity(0))))
