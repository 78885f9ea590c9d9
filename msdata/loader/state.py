"""The state of a loader, which resumes it sample by sample, and the counters of its epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from msdata.errors import UsageError

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """The position of a run; independent of ranks and batch size.

    Attributes:
        seed: seed of the orders.
        epoch: the current epoch.
        position: samples of it that all ranks together have consumed.
        policy: policy of the order.
        buffer_samples: buffer of policy "block", else 0.
        split: name of the split.
        fingerprint: fingerprint of the data set.
        weights: checksum of the weights that samples are drawn with; "" if each comes once.
        partition: ranks and batch of policy "partition", else "".
        version: version of this record.
    """

    seed: int
    epoch: int
    position: int
    policy: str
    buffer_samples: int
    split: str
    fingerprint: str
    weights: str = ""
    partition: str = ""
    version: int = STATE_VERSION

    def __post_init__(self) -> None:
        for name in ("seed", "epoch", "position", "buffer_samples", "version"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UsageError(
                    f"{name} of a loader state must be an integer of at least 0, got {value!r}; "
                    "pass the result of state_dict()"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, fit for JSON or `torch.save`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LoaderState:
        """The inverse of `to_dict`.

        Raises:
            UsageError: the fields are not a loader state, or of a later version.
        """
        try:
            state = cls(**fields)
        except TypeError as error:
            raise UsageError(
                f"cannot read the loader state: {error}; pass the result of state_dict()"
            ) from None
        if state.version > STATE_VERSION:
            raise UsageError(
                f"the loader state has version {state.version}, this msdata reads up to "
                f"{STATE_VERSION}; update msdata"
            )
        return state

    def check_fits(self, other: LoaderState) -> None:
        """Raises UsageError if `other`, the loader's own state, belongs to another run."""
        for name in ("fingerprint", "split", "seed", "policy", "buffer_samples", "partition"):
            saved, here = getattr(self, name), getattr(other, name)
            if saved != here:
                raise UsageError(
                    f"the state was saved with {name} {saved!r}, this loader has {here!r}: its "
                    f"samples would come in another order; make the loader with {name} {saved!r}"
                )
        if self.weights != other.weights:
            raise UsageError(
                "the state was saved with other weights, or without weights: samples would come in "
                "another order; make the loader with the weights it was saved with"
            )


@dataclass
class EpochCounters:
    """The counters of `Loader.stats` for one epoch.

    Attributes:
        epoch: its number.
        first_position: position in its order where the run started or resumed.
        num_steps: steps from there to its end.
        steps: batches handed out.
        samples: samples in them.
        nbytes: bytes of their arrays.
        wait_s: seconds that the caller waited for batches.
        earlier_wait_s: sum of `wait_s` over all epochs before.
        started_s: start of the epoch, by `time.perf_counter`.
        ended_s: time of the last batch, by `time.perf_counter`.
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
        """The counters and their rates."""
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
