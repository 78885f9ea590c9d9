"""The services of a job, as seen by one of them: over MPI, through a folder, or one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from msdata.core.mpi import Exchange, Window
from msdata.core.signals import exit_code_of, ignore_signals

T = TypeVar("T")
# Time limit for the other services to end.
_LEAVE_S = 5.0


class Group:
    """The services that were started together, one per node; this class is one service alone.

    Over MPI (`mpi_group.MpiGroup`) they end together, too: all call `leave`, and `poll` tells the
    others. Through a folder (`rendezvous.FolderGroup`) each fails and ends by itself.

    Attributes:
        ends_together: whether the services run over MPI, where all end if one does.
        rank: this service's rank.
        size: number of services.
    """

    ends_together = False
    rank = 0
    size = 1

    def allgather(self, value: Any) -> list[Any]:
        """Every service's value, by rank."""
        return [value]

    def window(self, memory: Any) -> Window:
        """Opens this service's memory; all services call it together, over MPI only."""
        raise NotImplementedError

    def exchange(self, answer: Callable[[NDArray[np.int64]], Sequence[Any]]) -> Exchange:
        """Serves this service's records by messages; all call it together, once, over MPI only."""
        raise NotImplementedError

    def begin_barrier(self) -> Callable[[], bool]:
        """Enters a barrier; returns a function that tells whether all services have entered."""
        return lambda: True

    def poll(self) -> bool:
        """Answers the other services; returns whether one of them wants all to end."""
        return False

    def leave(self, code: int, timeout_s: float) -> bool:
        """Ends together with the other services.

        Args:
            code: the exit code with which this service would end.
            timeout_s: time limit for the others.

        Returns:
            Whether this service must report the cause and end with its code.
        """
        return code != 0


class EndedElsewhere(Exception):  # noqa: N818
    """Another service of the group failed or was told to end, and reports the cause."""


def agree(group: Group, work: Callable[[], T]) -> T:
    """Runs the same step on all services; where they end together it fails on all or none.

    Args:
        group: the services.
        work: this service's part.

    Returns:
        The result of `work` on this service.

    Raises:
        EndedElsewhere: the step failed on another service, which reports the cause.
        MsdataError: raised by `work`, on the first service where it failed.
        OSError: raised by `work`, on the first service where it failed.
    """
    if not group.ends_together:
        return work()
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


@contextmanager
def ending_together(group: Group) -> Iterator[None]:
    """Ends all services of a group when one of them ends, and lets one of them report the cause.

    Raises this service's exception only if this service is the one that reports.

    Args:
        group: the services; all have ended afterwards.
    """
    cause: BaseException | None = None
    try:
        yield
    except EndedElsewhere:
        pass
    except BaseException as error:
        cause = error
    if group.ends_together:
        # Launchers signal all services one by one, and the first signal ends all.
        ignore_signals()
    if group.leave(exit_code_of(cause), _LEAVE_S) and cause is not None:
        raise cause
