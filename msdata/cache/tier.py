"""One tier as ranks and filler use it: failures of writing end its growth, never the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CachedSplit
from msdata.cache.slot_file import CLAIMED, EMPTY, READY, SlotFile
from msdata.core.checksum import crc32c_of_parts
from msdata.core.files import storage_error

LOG = logging.getLogger("msdata.cache")


class SlotSource(Protocol):
    """An arena, or an SSD tier.

    Attributes:
        path: for messages.
        slots: the file.
    """

    path: Path
    slots: SlotFile


class Tier:
    """A slot file with what it takes to use it without ever failing.

    Args:
        name: "local" or "ssd".
        source: what holds the file open; not left while this is in use.
        split: the data.

    Attributes:
        is_writable: False after the file system refused; what is there can still be read.
        num_corrupt: records found altered.
        num_refused: records whose bytes from storage did not fit their checksum.
    """

    def __init__(self, name: str, source: SlotSource, split: CachedSplit) -> None:
        self.name = name
        self.path = source.path
        self.slots = source.slots
        self._source = source
        self._checksums = split.checksums
        self.is_writable = True
        self.num_corrupt = 0
        self.num_refused = 0
        self._lock = threading.Lock()

    def claim(self, slots: NDArray[np.int64]) -> None:
        """Tells the filler that this rank is reading the samples of some slots anyway."""
        states = self.slots.entries["state"][slots]
        try:
            for slot in slots[states == EMPTY].tolist():
                self.slots.set_state(slot, CLAIMED)
        except OSError as error:
            self._stop_writing(error)

    def keep(self, slot: int, sample: int, parts: Sequence[Any]) -> bool:
        """Puts a record into its slot, unless it is there or is not what the index says.

        Args:
            slot: its slot.
            sample: its number within the split.
            parts: the record in pieces, uint8 arrays.

        Returns:
            False where the record is known to be corrupt: its checksum differs from the index's.
            Nothing is computed, and True returned, where the record is not to be written.
        """
        if not self.is_writable or self.slots.state(slot) == READY:
            return True
        checksum = int(self._checksums[sample])
        if crc32c_of_parts(parts) != checksum:
            with self._lock:
                self.num_refused += 1
                is_first = self.num_refused == 1
            if is_first:
                LOG.warning(
                    "%s: sample %d was read from storage with another checksum than the index's; "
                    "it is not cached, and read again before it is used, as all others like this",
                    *(self.path, sample),
                )
            return False
        try:
            self.slots.publish(slot, sample, checksum, parts)
        except OSError as error:
            self._stop_writing(error)
        return True

    def is_sound(self, slot: int, sample: int, parts: Sequence[Any]) -> bool:
        """Whether a record read from here is what the index says; if not, its slot is emptied."""
        if crc32c_of_parts(parts) == int(self._checksums[sample]):
            return True
        with self._lock:
            self.num_corrupt += 1
            is_first = self.num_corrupt == 1
        if is_first:
            LOG.warning(
                "%s: sample %d in slot %d was altered; it is read from storage, as all others "
                "found like this, and cached anew",
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
        """What `stats` shows of it."""
        return {
            "slots": self.slots.num_slots,
            "filled": self.slots.num_ready,
            "is_writable": self.is_writable,
            "corrupt": self.num_corrupt,
            "refused": self.num_refused,
        }
