"""The services of a job as one of them sees the others; `mpi_group.MpiGroup`, or one alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from msdata.errors import StorageError

T = TypeVar("T")


class Window(Protocol):
    """Memory that the services of a group open to each other's one-sided reads."""

    def get(self, rank: int, target: NDArray[np.uint8], at: int) -> Any:
        """Begins to read `len(target)` bytes at a place of a service's memory; or OSError."""

    def wait(self, begun: Sequence[Any], timeout_s: float) -> None:
        """Waits until what was begun, as `get` gave it, is here (None: nothing).

        Raises:
            TimeoutError: it is not.
            OSError: something else went wrong.
        """

    def is_here(self, begun: Sequence[Any]) -> bool:
        """Whether what was begun is here; or OSError."""


class Exchange(Protocol):
    """Records of other services that no window shows."""

    def fetch(
        self,
        ranks: Sequence[int],
        samples: Sequence[int],
        targets: Sequence[NDArray[np.uint8]],
        timeout_s: float,
    ) -> list[bool]:
        """Asks services for records; says which have come. `TimeoutError` where one is silent."""


class Group(Protocol):
    """The services that were started together, one per node; see `mpi_group.MpiGroup`.

    Whatever ends one of them ends all: all `leave`, and `poll` tells those that do not know yet.
    """

    @property
    def rank(self) -> int:
        """Of this one."""

    @property
    def size(self) -> int:
        """How many."""

    def allgather(self, value: Any) -> list[Any]:
        """What each gives, by rank."""

    def broadcast(self, value: Any, root: int) -> Any:
        """What `root` gives."""

    def window(self, memory: Any) -> Window:
        """Opens this one's memory; all call it together."""

    def exchange(self, answer: Callable[[NDArray[np.int64]], Sequence[Any]]) -> Exchange:
        """Gives out this one's records by messages; all call it together, once."""

    def begin_barrier(self) -> Callable[[], bool]:
        """Says that this one has come so far; gives what tells whether all have."""

    def poll(self) -> bool:
        """Does what the others need of this one; says whether one of them wants all to end."""

    def leave(self, code: int, timeout_s: float) -> bool:
        """Ends, together with the others.

        Args:
            code: exit code with which this one would end.
            timeout_s: how long to wait for them.

        Returns:
            Whether it is for this one to say why all end, and to end with its code.
        """


class Alone:
    """A group of one, which needs no MPI."""

    rank = 0
    size = 1

    def allgather(self, value: Any) -> list[Any]:
        """See `Group`."""
        return [value]

    def broadcast(self, value: Any, root: int) -> Any:
        """See `Group`."""
        return value

    def window(self, memory: Any) -> Window:
        """See `Group`."""
        raise StorageError("a service alone reads from no other")

    def exchange(self, answer: Callable[[NDArray[np.int64]], Sequence[Any]]) -> Exchange:
        """See `Group`."""
        raise StorageError("a service alone asks no other")

    def begin_barrier(self) -> Callable[[], bool]:
        """See `Group`."""
        return lambda: True

    def poll(self) -> bool:
        """See `Group`."""
        return False

    def leave(self, code: int, timeout_s: float) -> bool:
        """See `Group`."""
        return code != 0


class EndedElsewhere(Exception):  # noqa: N818
    """Another service of the group failed, or was told to end, and says why."""


def agree(group: Group, work: Callable[[], T]) -> T:
    """Does the same on all services, and fails on all where it fails on one.

    Args:
        group: the services.
        work: what this one does.

    Returns:
        What it gives here.

    Raises:
        EndedElsewhere: it failed elsewhere, and one of those says why.
        MsdataError: what `work` raised, on one of those where it failed.
        OSError: likewise.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    failed = [rank for rank, is_bad in enumerate(group.allgather(error is not None)) if is_bad]
    if not failed:
        return result
    if error is not None and group.rank == failed[0]:
        raise error
    raise EndedElsewhere
