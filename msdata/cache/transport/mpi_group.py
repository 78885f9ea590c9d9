"""The services of a job as one of them sees the others over MPI; `group` says what that has to do.

MPI's processes end together or not at all, and launchers see to it: MPICH's kills all that are
left as soon as one has ended with another code than 0, even after MPI's own end. So all of them
tell each other the code with which they would end, and one ends with its code, after the others.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.transport.group import EndedElsewhere
from msdata.core.mpi import Exchange, Window, communicator, finalize, finalize_when_told
from msdata.topology import Topology, set_one_sided_defaults

_END_TAG = 7001
_POLL_S = 0.002
_LEAST_END_S = 2.0
# How long an answer may still come when one process wants all to end; less than it waits for them.
_LAST_ANSWER_S = 2.0
# How long the one that ends last waits for those of its machine to have ended, and for those of
# other machines, which it does not see.
_MOST_OUTLIVED_S = 5.0
_ELSEWHERE_S = 0.3


class MpiGroup:
    """The processes that were started together, one per node; see `group.Group`.

    Args:
        topology: what `msdata.topology.from_env` found.

    Attributes:
        rank: of this process.
        size: number of processes.

    Raises:
        MissingPackageError: mpi4py or an MPI library is absent.
        UsageError: the processes do not find each other.
    """

    def __init__(self, topology: Topology) -> None:
        set_one_sided_defaults()
        finalize_when_told()
        self._world = communicator(topology)
        self.rank = int(self._world.Get_rank())
        self.size = int(self._world.Get_size())
        # Barriers are told apart by their order on a communicator, and these may be in any.
        self._communicators = [self._world.Dup() for _ in range(3)]
        self._barriers: list[Any] = [None, None]
        self._windows: list[Window] = []
        self._exchange: Exchange | None = None
        self._sent: list[Any] = []
        # Asked for before it is sent: what MPI is asked to look for now and then (`Iprobe`) was
        # found by MPICH over UCX, and yet could not be received.
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._codes = np.zeros(self.size, np.uint8)
        self._told = [self._world.Irecv(self._codes[r : r + 1], r, _END_TAG) for r in others]
        self._is_told = False
        self._processes: list[tuple[str, int]] = self.allgather((socket.getfqdn(), os.getpid()))

    def allgather(self, value: Any) -> list[Any]:
        """See `Group`."""
        mine = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        world = self._communicators[2]
        self._finish(world.Iallgather(np.array([len(mine)]), sizes))
        gathered = np.zeros(sizes.sum(), np.uint8)
        self._finish(world.Iallgatherv(mine, (gathered, sizes)))
        return [pickle.loads(part.data) for part in np.split(gathered, np.cumsum(sizes)[:-1])]

    def _finish(self, begun: Any) -> None:
        """Waits in Python, where signals are heard; and not long after one wants all to end."""
        # One that ends after it had this answer may be ahead of it: then it still comes.
        deadline_s = math.inf
        while not begun.Test():
            if self.poll():
                deadline_s = min(deadline_s, time.monotonic() + _LAST_ANSWER_S)
            if time.monotonic() > deadline_s:
                raise EndedElsewhere
            time.sleep(_POLL_S)

    def broadcast(self, value: Any, root: int) -> Any:
        """See `Group`."""
        return self.allgather(value if self.rank == root else None)[root]

    def window(self, memory: Any) -> Window:
        """See `msdata.core.mpi.Window`; all processes call it together."""
        self.allgather(None)
        made = Window(self._world, memory)
        self._windows.append(made)
        return made

    def exchange(self, answer: Callable[[NDArray[np.int64]], Sequence[Any]]) -> Exchange:
        """See `msdata.core.mpi.Exchange`; all processes call it together, once."""
        self.allgather(None)
        self._exchange = Exchange(self._world, answer)
        return self._exchange

    def begin_barrier(self) -> Callable[[], bool]:
        """See `Group`."""
        self._is_passed(0)
        return partial(self._is_passed, 0)

    def _is_passed(self, number: int) -> bool:
        if self._barriers[number] is None:
            self._barriers[number] = self._communicators[number].Ibarrier()
        return bool(self._barriers[number].Test())

    def poll(self) -> bool:
        """See `Group`."""
        if self._exchange is not None:
            self._exchange.serve()
        if self._told and not self._is_told:
            self._is_told = bool(type(self._told[0]).Testany(self._told)[1])
        return self._is_told

    def leave(self, code: int, timeout_s: float) -> bool:
        """See `Group`; where the others do not come in time MPI is left to end with the process."""
        # A message from each to each, so that none is left over, which MPI would not forgive.
        self._codes[self.rank] = code
        mine = self._codes[self.rank : self.rank + 1]
        others = [r for r in range(self.size) if r != self.rank]
        self._sent = [self._world.Isend(mine, dest=r, tag=_END_TAG) for r in others]
        deadline_s = time.monotonic() + timeout_s
        while not (self._is_passed(1) and self._is_passed(0)):
            if time.monotonic() > deadline_s:
                return code != 0
            time.sleep(_POLL_S)
        # Freeing and finalising wait for the others once more: for ever, if one has given up
        # or was killed meanwhile.
        end = threading.Thread(target=self._end, name="msdata-mpi-end", daemon=True)
        end.start()
        end.join(max(_LEAST_END_S, deadline_s - time.monotonic()))
        if end.is_alive():
            return code != 0
        is_last = code != 0 and not self._codes[: self.rank].any()
        if is_last:
            self._outlive()
        return is_last

    def _end(self) -> None:
        for window in self._windows:
            window.close()
        if self._exchange is not None:
            self._exchange.close()
        for made in self._communicators:
            made.Free()
        finalize(self._sent + self._told)

    def _outlive(self) -> None:
        """Waits until the others have ended, as far as can be told."""
        started_s = time.monotonic()
        host = self._processes[self.rank][0]
        here = [pid for name, pid in self._processes if name == host and pid != os.getpid()]
        if len(here) < self.size - 1:
            time.sleep(_ELSEWHERE_S)
        while any(map(_is_alive, here)) and time.monotonic() < started_s + _MOST_OUTLIVED_S:
            time.sleep(_POLL_S)


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs, so far as the kernel tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
