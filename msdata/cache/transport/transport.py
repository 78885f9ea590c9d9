"""What carries records between nodes, as the cache sees it: two small protocols.

A server gives what its node has at the moment; a fetcher gets it or does not, within a time.
Neither raises for a node that is gone, slow or wrong: a record that does not come is read from
storage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Numbers of samples, int64 (n,) -> for each its record as a contiguous buffer, if this node has it
# now; else None.
Lookup = Callable[[NDArray[np.int64]], Sequence[Any | None]]
# Whether a row that was filled, by its place among those asked for and the CRC32C of what is in it,
# holds what it should.
IsSound = Callable[[int, int], bool]


class Server(Protocol):
    """Serves the records of one node until it is closed."""

    @property
    def address(self) -> str:
        """What a fetcher needs to find it."""

    @property
    def served(self) -> dict[str, int]:
        """`samples` and `bytes` given out so far."""

    def close(self) -> None:
        """Stops serving; fetchers that wait for it get nothing."""


class Fetcher(Protocol):
    """Asks servers for records; used by all threads of a rank."""

    def fetch(
        self,
        nodes: Sequence[int],
        samples: Sequence[int],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> list[bool]:
        """Puts records straight where they belong; asks all nodes at once.

        Args:
            nodes: which node keeps each sample.
            samples: numbers within the split.
            rows: for each sample the memory that its record fills, as pieces one after the other,
                each a writable uint8 array.
            is_sound: asked of every row as soon as it is full, while others are on their way.

        Returns:
            Whether each came and is sound; what stands in the rows of others means nothing. A node
            that did not answer in time is not asked again for some seconds.
        """

    def stats(self) -> dict[str, int]:
        """`failures`, how often a node did not answer, and `down`, how many are left alone now."""

    def close(self) -> None:
        """Leaves all nodes."""
