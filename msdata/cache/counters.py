"""What came from where: samples, bytes and seconds by tier, and what went wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

# As `msdata.plan.forecast.TIERS`, which a forecast counts by.
TIERS = ("local", "ssd", "peer", "storage")


@dataclass
class TierCount:
    """Reads from one tier.

    Attributes:
        samples: read.
        nbytes: of them.
        seconds: spent by the threads that read them, waiting included.
    """

    samples: int = 0
    nbytes: int = 0
    seconds: float = 0.0


class Counters:
    """Counts of one rank and epoch; all threads add to them.

    Args:
        sample_nbytes: of a record.
    """

    def __init__(self, sample_nbytes: int) -> None:
        self._sample_nbytes = sample_nbytes
        self._lock = threading.Lock()
        self._tiers = {name: TierCount() for name in TIERS}
        # Of the epochs before.
        self._totals = {name: TierCount() for name in TIERS}

    def start_epoch(self) -> None:
        """Begins anew."""
        with self._lock:
            for name, count in self._tiers.items():
                self._totals[name] = _sum(self._totals[name], count)
            self._tiers = {name: TierCount() for name in TIERS}

    def add(self, tier: str, samples: int, seconds: float) -> None:
        """Counts reads from one of `TIERS`."""
        with self._lock:
            count = self._tiers[tier]
            count.samples += samples
            count.nbytes += samples * self._sample_nbytes
            count.seconds += seconds

    def to_dict(self) -> dict[str, Any]:
        """`samples`, `bytes` and `seconds` by tier, of this epoch."""
        with self._lock:
            return {name: _fields(count) for name, count in self._tiers.items()}

    def totals(self) -> dict[str, Any]:
        """The same of all epochs so far."""
        with self._lock:
            both = {name: _sum(self._totals[name], count) for name, count in self._tiers.items()}
        return {name: _fields(count) for name, count in both.items()}


def _sum(one: TierCount, other: TierCount) -> TierCount:
    return TierCount(
        samples=one.samples + other.samples,
        nbytes=one.nbytes + other.nbytes,
        seconds=one.seconds + other.seconds,
    )


def _fields(count: TierCount) -> dict[str, Any]:
    return {"samples": count.samples, "bytes": count.nbytes, "seconds": count.seconds}
