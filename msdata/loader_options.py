"""What a loader may be asked for: checked before any memory or thread is taken."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msdata.cache.budget import free_memory
from msdata.dataset import Split
from msdata.errors import UsageError
from msdata.progress import bytes_text
from msdata.ring import BatchBuffer, make_ring, ring_nbytes

# Orders are drawn with words of 64 bits; `msdata pack` takes the same seeds.
_NUM_SEEDS = 1 << 63


def check_options(
    batch_size: int, seed: int, prefetch: int, hold: int, threads: int | None
) -> None:
    """Refuses numbers that make no sense.

    Args:
        batch_size: samples a step.
        seed: of the orders.
        prefetch: batches filled ahead.
        hold: batches that stay valid.
        threads: that fill batches; None for the default.

    Raises:
        UsageError: one of them is no whole number or out of range.
    """
    numbers = {"batch_size": batch_size, "seed": seed, "prefetch": prefetch, "hold": hold}
    _check_whole(numbers if threads is None else {**numbers, "threads": threads})
    if batch_size < 1:
        raise UsageError(f"batch_size {batch_size} is empty; give at least 1")
    if not 0 <= seed < _NUM_SEEDS:
        raise UsageError(f"seed {seed} is out of range; give 0 to 2**63 - 1")
    if prefetch < 1:
        raise UsageError(f"prefetch {prefetch}: at least one batch has to be filled ahead")
    if hold < 1:
        raise UsageError(f"hold {hold}: at least the batch that was handed out has to stay valid")
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: at least one has to fill batches")


def check_epoch(epoch: int) -> None:
    """Raises UsageError where there is no such epoch."""
    _check_whole({"epoch": epoch})
    if epoch < 0:
        raise UsageError(f"epoch {epoch} is negative; epochs count from 0")


def _check_whole(numbers: Mapping[str, Any]) -> None:
    for name, number in numbers.items():
        try:
            operator.index(number)
        except TypeError:
            raise UsageError(f"{name} {number!r} is no whole number") from None


@dataclass(frozen=True, kw_only=True)
class RingSize:
    """The buffers of a loader.

    Attributes:
        num_rows: samples of each.
        num_buffers: how many.
        nbytes: of all of them.
    """

    num_rows: int
    num_buffers: int
    nbytes: int


def ring_size(split: Split, batch_size: int, last: str, num_buffers: int) -> RingSize:
    """How large a ring is.

    Args:
        split: what to load.
        batch_size: samples a step; of a split that has fewer, only padded batches have as many.
        last: what becomes of an incomplete batch.
        num_buffers: batches in the ring.
    """
    rows = batch_size if last == "pad" else min(batch_size, len(split))
    nbytes = ring_nbytes(split.schema, rows, num_buffers)
    return RingSize(num_rows=rows, num_buffers=num_buffers, nbytes=nbytes)


def allocate_ring(split: Split, size: RingSize, gaps: Sequence[int] | None) -> list[BatchBuffer]:
    """The ring of `msdata.ring.make_ring`, if it fits into memory.

    Args:
        split: what to load.
        size: of the ring.
        gaps: as `make_ring` takes them.

    Raises:
        UsageError: it does not.
    """
    free = free_memory()
    # Zero is what a system gives that does not tell.
    if not 0 < free < size.nbytes:
        return make_ring(split.schema, size.num_rows, size.num_buffers, gaps)
    raise UsageError(
        f"{size.num_buffers} batches of {size.num_rows:,} samples take {bytes_text(size.nbytes)} "
        f"of memory, and {bytes_text(free)} are free; give a smaller batch_size or prefetch, or "
        "hold=1"
    )
