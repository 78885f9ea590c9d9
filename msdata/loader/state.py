"""The state of a loader: what it takes to go on, sample for sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c_of_parts
from msdata.errors import UsageError

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """Where a run is; independent of ranks and batch size.

    Attributes:
        seed: of the orders.
        epoch: the epoch under way.
        position: samples of it that all ranks together have consumed.
        policy: of the order.
        buffer_samples: of policy "block", else 0.
        split: name of the split.
        fingerprint: of the data set.
        weights: checksum of those that samples are drawn with; "" where each comes once.
        version: of this record.
    """

    seed: int
    epoch: int
    position: int
    policy: str
    buffer_samples: int
    split: str
    fingerprint: str
    weights: str = ""
    version: int = STATE_VERSION

    def __post_init__(self) -> None:
        for name in ("seed", "epoch", "position", "buffer_samples", "version"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UsageError(
                    f"this is no loader state ({name} {value!r} is no number from 0); pass what "
                    "state_dict() gave"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, fit for JSON or `torch.save`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LoaderState:
        """The inverse of `to_dict`.

        Raises:
            UsageError: it is no such state, or of a later version.
        """
        try:
            state = cls(**fields)
        except TypeError as error:
            raise UsageError(
                f"this is no loader state ({error}); pass what state_dict() gave"
            ) from None
        if state.version > STATE_VERSION:
            raise UsageError(
                f"the loader state has version {state.version}, this msdata reads up to "
                f"{STATE_VERSION}; update msdata"
            )
        return state

    def check_fits(self, other: LoaderState) -> None:
        """Raises UsageError where `other`, the loader's own state, is of another run."""
        for name in ("fingerprint", "split", "seed", "policy", "buffer_samples"):
            saved, here = getattr(self, name), getattr(other, name)
            if saved != here:
                raise UsageError(
                    f"the state was saved with {name} {saved!r}, this loader has {here!r}: its "
                    f"samples would come in another order; make the loader with {name} {saved!r}"
                )
        if self.weights != other.weights:
            raise UsageError(
                "the state was saved with other weights of the samples, or without any: they would "
                "come in another order; make the loader with the weights it was saved with"
            )


def weights_digest(weights: NDArray[np.float64] | None) -> str:
    """What tells the weights of one run from those of another.

    Args:
        weights: float64 (samples,), or None.

    Returns:
        Their CRC32C as eight digits; "" for None.
    """
    return "" if weights is None else f"{crc32c_of_parts([weights.view(np.uint8)]):08x}"
