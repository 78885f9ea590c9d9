"""The thread that fills a node's tiers, shard by shard, with samples that no rank has read yet.

Every rank has such a thread. A lock on the arena decides which one works (a warmup in the
background), or which one works on which shard (a blocking one, where all of them work). The kernel
drops the lock when its process ends, so another rank takes over from a killed one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from msdata.cache.config import ReadRecord
from msdata.cache.shared_file import role
from msdata.cache.slot_file import CLAIMED, READY
from msdata.cache.tier import LOG, Tier
from msdata.errors import MsdataError

_FILLER_ROLE = 0
_POLL_S = 0.2
# A rank publishes what it claimed within seconds, unless it was killed or stopped reading.
CLAIM_PATIENCE_S = 5.0
# A thread that waits for others gives up if they make no progress for this long.
STALL_S = 30.0
# Bytes mapped between checks of the stop flag.
_PREFAULT_NBYTES = 64 << 20


class Filler:
    """Fills tiers between `start` and `stop`.

    Args:
        tiers: the tiers to fill, in this order.
        role_fd: descriptor of the node's arena, whose locks decide who works.
        read: reads the record of a sample as a uint8 array, valid until the next call.
        is_shared: all processes work at once, each on its own shards.

    Attributes:
        num_samples: samples that this process's filler read from storage.
        nbytes: bytes of their records.
        seconds: time that it spent on them.
        num_failed: shards that it gave up because storage failed.
    """

    def __init__(
        self, tiers: Sequence[Tier], role_fd: int, read: ReadRecord, *, is_shared: bool
    ) -> None:
        self._tiers = tiers
        self._fd = role_fd
        self._read = read
        self._is_shared = is_shared
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="msdata-cache-fill", daemon=True)
        self.num_samples = 0
        self.nbytes = 0
        self.seconds = 0.0
        self.num_failed = 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wait(self) -> None:
        """Waits until the tiers are as full as they can be."""
        self._done.wait()

    @property
    def is_done(self) -> bool:
        """Whether every slot is full or given up, by this process or others."""
        return self._done.is_set()

    def request_stop(self) -> None:
        """Asks the thread to stop after the current sample, without waiting."""
        self._stop.set()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Stops the thread after the current sample.

        Returns:
            Whether the thread has ended; False if it hangs in storage.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._fill()
            self._prefault()
        finally:
            self._done.set()

    def _prefault(self) -> None:
        """Maps a full arena before it is read.

        Unmapped pages gave 10,000 samples/s, mapped ones 35,000 (measured).
        """
        for slots in (t.slots for t in self._tiers if t.slots.address):
            if slots.num_ready < slots.num_slots:
                continue
            for start in range(0, slots.nbytes, _PREFAULT_NBYTES):
                if self._stop.is_set():
                    return
                slots.prefault(start, start + _PREFAULT_NBYTES)

    def _fill(self) -> None:
        while not self._stop.is_set():
            with nullcontext(True) if self._is_shared else role(self._fd, _FILLER_ROLE) as mine:
                if mine:
                    self._fill_all()
                    return
            if all(t.slots.num_ready == t.slots.num_slots for t in self._tiers):
                return
            self._stop.wait(_POLL_S)

    def _fill_all(self) -> None:
        left = [
            (tier, int(shard))
            for tier in self._tiers
            for shard in np.flatnonzero(tier.slots.layout.num_slots)
        ]
        patient_until_s, progress = 0.0, (time.monotonic(), -1)
        while left and not self._stop.is_set():
            is_patient = not patient_until_s or time.monotonic() < patient_until_s
            left = [(t, s) for t, s in left if not self._fill_shard(t, s, is_patient)]
            if not left:
                return
            patient_until_s = patient_until_s or time.monotonic() + CLAIM_PATIENCE_S
            num_ready = sum(t.slots.num_ready for t in self._tiers)
            if num_ready != progress[1]:
                progress = time.monotonic(), num_ready
            elif time.monotonic() > progress[0] + STALL_S:
                LOG.warning("another process has filled no cache slot for %.0f s", STALL_S)
                return
            self._stop.wait(_POLL_S)

    def _fill_shard(self, tier: Tier, shard: int, is_patient: bool) -> bool:
        """Fills the empty slots of a shard; returns False if the shard needs another visit."""
        slots, first_sample = tier.slots.slots_of_shard(shard)
        if not len(slots):
            return True
        states = tier.slots.entries["state"][slots.start : slots.stop]
        if not tier.is_writable or bool((states == READY).all()):
            return True
        with role(self._fd, 1 + shard) as mine:
            if not mine:
                return False
            for i in np.flatnonzero(states != READY).tolist():
                is_wanted = states[i] != READY and not (is_patient and states[i] == CLAIMED)
                if self._stop.is_set() or not tier.is_writable:
                    return True
                if is_wanted and not self._fill_slot(tier, slots.start + i, first_sample + i):
                    return True
        # Those that are left after a second visit have a record that is corrupt in storage.
        return not (is_patient and bool((states == CLAIMED).any()))

    def _fill_slot(self, tier: Tier, slot: int, sample: int) -> bool:
        """Reads one sample into its slot; returns False if its shard cannot be read."""
        started_s = time.perf_counter()
        try:
            record = self._read(sample)
        except (MsdataError, OSError) as error:
            self.num_failed += 1
            if self.num_failed == 1:
                LOG.warning("cannot fill the cache from a shard, which stays uncached: %s", error)
            return False
        tier.keep(slot, sample, [record])
        self.num_samples += 1
        self.nbytes += len(record)
        self.seconds += time.perf_counter() - started_s
        return True
