"""Counters of one epoch: how much came, and how long it was waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class EpochCounters:
    """What `Loader.stats` shows of one epoch.

    Attributes:
        epoch: which one.
        first_position: where in its order the run went on, 0 for the start.
        num_steps: steps from there to its end.
        steps: batches handed out.
        samples: samples in them.
        nbytes: bytes of their arrays.
        wait_s: how long the caller waited for batches.
        earlier_wait_s: the same of all epochs before.
        started_s: on `time.perf_counter`'s clock, as the next one.
        ended_s: when the last batch was handed out.
    """

    epoch: int = 0
    first_position: int = 0
    num_steps: int = 0
    steps: int = 0
    samples: int = 0
    nbytes: int = 0
    wait_s: float = 0.0
    earlier_wait_s: float = 0.0
    started_s: float = field(default_factory=time.perf_counter)
    ended_s: float = 0.0

    def count(self, samples: int, nbytes: int) -> None:
        """Adds a batch."""
        self.steps += 1
        self.samples += samples
        self.nbytes += nbytes
        self.ended_s = time.perf_counter()

    def to_dict(self) -> dict[str, Any]:
        """The counters and the rates they make."""
        seconds = max(self.ended_s - self.started_s, 1e-9) if self.steps else 0.0
        return {
            "epoch": self.epoch,
            "first_position": self.first_position,
            "num_steps": self.num_steps,
            "steps": self.steps,
            "samples": self.samples,
            "bytes": self.nbytes,
            "seconds": seconds,
            "wait_s": self.wait_s,
            "total_wait_s": self.earlier_wait_s + self.wait_s,
            "wait_fraction": self.wait_s / seconds if seconds else 0.0,
            "samples_per_s": self.samples / seconds if seconds else 0.0,
            "bytes_per_s": self.nbytes / seconds if seconds else 0.0,
        }
