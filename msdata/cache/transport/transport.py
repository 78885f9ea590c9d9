"""The protocol by which the cache sees the transports of records between nodes.

A fetcher gets records within a time limit, or not. It raises nothing for a node that is gone, slow
or wrong: a record that does not come is read from storage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Numbers of samples, int64 (n,) -> for each its record as a contiguous buffer, or None if this node
# does not have it now.
Lookup = Callable[[NDArray[np.int64]], Sequence[Any | None]]
# Position of a filled row in the request, CRC32C of its content -> whether the content is right.
IsSound = Callable[[int, int], bool]


class Fetcher(Protocol):
    """Asks servers for records, from all threads of a rank."""

    def fetch(
        self,
        nodes: Sequence[int],
        samples: Sequence[int],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> list[bool]:
        """Fetches records straight into their rows, from all nodes at once.

        Args:
            nodes: the node that keeps each sample.
            samples: numbers within the split.
            rows: for each sample the memory that its record fills, as consecutive pieces, each a
                writable uint8 array.
            is_sound: called for every row as soon as it is full, while others are in flight.

        Returns:
            Whether each record came and is right; the content of other rows is undefined. Requests
            to a node that did not answer in time pause for some seconds.
        """

    def stats(self) -> dict[str, int]:
        """`failures`: number of unanswered requests; `down`: number of nodes paused now."""

    def close(self) -> None:
        """Closes the connections to all nodes."""
