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

    def start_epoch(self) -> None:
        """Begins anew."""
        with self._lock:
            self._tiers = {name: TierCount() for name in TIERS}

    def add(self, tier: str, samples: int, seconds: float) -> None:
        """Counts reads from one of `TIERS`."""
        with self._lock:
            count = self._tiers[tier]
            count.samples += samples
            count.nbytes += samples * self._sample_nbytes
            count.seconds += seconds

    def to_dict(self) -> dict[str, Any]:
        """`samples`, `bytes` and `seconds` by tier."""
        with self._lock:
            return {
                name: {"samples": c.samples, "bytes": c.nbytes, "seconds": c.seconds}
                for name, c in self._tiers.items()
            }
