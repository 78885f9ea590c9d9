"""One tier as ranks and filler use it: a failed write ends its growth, never the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import Arena
from msdata.cache.config import CachedSplit
from msdata.cache.slot_file import CLAIMED, EMPTY, READY
from msdata.cache.ssd import SsdTier
from msdata.core.checksum import crc32c_of_parts
from msdata.core.files import storage_error
from msdata.plan.forecast import TIERS

LOG = logging.getLogger("msdata.cache")


class Tier:
    """A slot file whose faults raise no exception.

    Args:
        name: "local" or "ssd".
        source: the open arena or SSD tier; must stay open while the tier is in use.
        split: the data.

    Attributes:
        is_writable: False after a write failed; the content stays readable.
        num_corrupt: cached records found corrupt.
        num_refused: records from storage whose checksum differs from the index.
    """

    def __init__(self, name: str, source: Arena | SsdTier, split: CachedSplit) -> None:
        self.name = name
        self.path = source.path
        self.slots = source.slots
        self._source = source
        self._checksums = split.checksums
        self._record_nbytes = split.record_nbytes
        self.is_writable = True
        self.num_corrupt = 0
        self.num_refused = 0
        self._lock = threading.Lock()

    def claim(self, slots: NDArray[np.int64]) -> None:
        """Tells the filler that this rank is about to read the samples of some slots."""
        states = self.slots.entries["state"][slots]
        try:
            for slot in slots[states == EMPTY].tolist():
                self.slots.set_state(slot, CLAIMED)
        except OSError as error:
            self._stop_writing(error)

    def keep(self, slot: int, sample: int, parts: Sequence[Any]) -> bool:
        """Caches a record, unless its slot is full or its checksum differs from the index.

        Args:
            slot: the sample's slot.
            sample: the sample's number within the split.
            parts: the record in pieces, uint8 arrays.

        Returns:
            False if the checksum differs from the index. If the slot is full or the tier is
            read-only, returns True without computing the checksum.
        """
        if not self.is_writable or self.slots.state(slot) == READY:
            return True
        checksum = int(self._checksums[sample])
        nbytes = sum(map(len, parts))
        # A record of another length would overwrite its neighbor.
        if nbytes != self._record_nbytes[sample] or crc32c_of_parts(parts) != checksum:
            with self._lock:
                self.num_refused += 1
                is_first = self.num_refused == 1
            if is_first:
                LOG.warning(
                    "%s: sample %d from storage has another checksum than the index; it stays "
                    "uncached and is read again before use, as are all other such samples",
                    *(self.path, sample),
                )
            return False
        try:
            self.slots.publish(slot, sample, checksum, parts)
        except OSError as error:
            self._stop_writing(error)
        return True

    def is_sound(self, slot: int, sample: int, parts: Sequence[Any]) -> bool:
        """Whether a record read from here has the index's checksum; if not, empties its slot."""
        if crc32c_of_parts(parts) == int(self._checksums[sample]):
            return True
        with self._lock:
            self.num_corrupt += 1
            is_first = self.num_corrupt == 1
        if is_first:
            LOG.warning(
                "%s: sample %d in slot %d is corrupt; it is read from storage and cached again, as "
                "are all other such samples",
                *(self.path, sample, slot),
            )
        try:
            self.slots.set_state(slot, EMPTY)
        except OSError as error:
            self._stop_writing(error)
        return False

    def _stop_writing(self, error: OSError) -> None:
        with self._lock:
            is_first, self.is_writable = self.is_writable, False
        if is_first:
            LOG.warning(
                "%s; the cache keeps the %d of %d samples it has, the others come from storage",
                *(storage_error("write", self.path, error), self.slots.num_ready),
                self.slots.num_slots,
            )

    def to_dict(self) -> dict[str, Any]:
        """The tier's part of `stats`."""
        return {
            "slots": self.slots.num_slots,
            "filled": self.slots.num_ready,
            "is_writable": self.is_writable,
            "corrupt": self.num_corrupt,
            "refused": self.num_refused,
        }


class Counters:
    """Counts one rank's reads by tier, from all threads.

    `samples` is their number, `bytes` the sum of their records, `seconds` the time of the reading
    threads, waiting included.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tiers, self._earlier = _zeros(), _zeros()

    def start_epoch(self) -> None:
        """Resets the counts of the epoch."""
        with self._lock:
            self._earlier, self._tiers = self._sums(), _zeros()

    def add(self, tier: str, record_nbytes: NDArray[np.int64], seconds: float) -> None:
        """Counts reads from one of `TIERS`.

        Args:
            tier: the tier.
            record_nbytes: int64 (n,), bytes of each record read.
            seconds: time of the reading thread.
        """
        nbytes = int(record_nbytes.sum())
        with self._lock:
            count = self._tiers[tier]
            count["samples"] += len(record_nbytes)
            count["bytes"] += nbytes
            count["seconds"] += seconds

    def to_dict(self) -> dict[str, Any]:
        """`samples`, `bytes` and `seconds` by tier in this epoch."""
        with self._lock:
            return {name: dict(count) for name, count in self._tiers.items()}

    def totals(self) -> dict[str, Any]:
        """`samples`, `bytes` and `seconds` by tier in all epochs so far."""
        with self._lock:
            return self._sums()

    def _sums(self) -> dict[str, dict[str, Any]]:
        earlier = self._earlier
        return {t: {k: earlier[t][k] + n for k, n in c.items()} for t, c in self._tiers.items()}


def _zeros() -> dict[str, dict[str, Any]]:
    return {name: {"samples": 0, "bytes": 0, "seconds": 0.0} for name in TIERS}
