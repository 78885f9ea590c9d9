"""What the modules of all formats and `stacks` share: one array of a file."""

from __future__ import annotations

from typing import Any, Protocol


class StackArray(Protocol):
    """One array of a file: what h5py, Zarr and NumPy have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, samples first."""

    @property
    def dtype(self) -> Any:
        """Its dtype."""

    def __getitem__(self, key: Any) -> Any:
        """One sample, or all with `...`."""
