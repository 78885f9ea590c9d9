"""The services of a job over MPI, as seen by one of them; implements `group.Group`.

MPI launchers end all processes together: MPICH's kills the rest as soon as one has ended with a
code other than 0, even after `MPI_Finalize`. So the services exchange their intended exit codes,
and the one that reports the failure ends last, with its code.
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

from msdata.cache.stale_shm import remove_own_shared_memory
from msdata.cache.transport.group import EndedElsewhere, Group
from msdata.core.mpi import Exchange, Window, communicator, finalize, finalize_when_told
from msdata.core.signals import ending_at_once
from msdata.topology import Topology, set_one_sided_defaults

_END_TAG = 7001
_POLL_S = 0.002
_LEAST_END_S = 2.0
# Time limit for an answer after one process wants all to end; shorter than its wait for the others.
_LAST_ANSWER_S = 2.0
# Time limits of the last process: for the end of those on its machine, and for those on other
# machines, which it cannot see.
_MOST_OUTLIVED_S = 5.0
_ELSEWHERE_S = 0.3


class MpiGroup(Group):
    """The processes that were started together, one per node; see `group.Group`.

    Args:
        topology: the result of `msdata.topology.from_env`.

    Raises:
        MissingPackageError: mpi4py or an MPI library is missing.
        UsageError: the processes do not find each other.
    """

    ends_together = True

    def __init__(self, topology: Topology) -> None:
        set_one_sided_defaults()
        finalize_when_told()
        self._world = communicator(topology)
        self.rank = int(self._world.Get_rank())
        self.size = int(self._world.Get_size())
        # A communicator matches barriers by their order, and these may come in any order.
        self._communicators = [self._world.Dup() for _ in range(3)]
        self._barriers: list[Any] = [None, None]
        self._windows: list[Window] = []
        self._exchange: Exchange | None = None
        self._sent: list[Any] = []
        # Post the receives now: MPICH over UCX found messages by `Iprobe` that it could not
        # receive afterwards.
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
        """Waits in Python, so signals arrive; soon gives up once a process wants all to end."""
        # A process that ends after this exchange may be ahead of it: its part still comes.
        deadline_s = math.inf
        while not begun.Test():
            if self.poll():
                deadline_s = min(deadline_s, time.monotonic() + _LAST_ANSWER_S)
            if time.monotonic() > deadline_s:
                raise EndedElsewhere
            time.sleep(_POLL_S)

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
        """See `Group`; if the others are late, MPI ends with the process, without `Finalize`."""
        # Every process sends to every other, so no posted receive stays open, an error in MPI.
        self._codes[self.rank] = code
        mine = self._codes[self.rank : self.rank + 1]
        others = [r for r in range(self.size) if r != self.rank]
        self._sent = [self._world.Isend(mine, dest=r, tag=_END_TAG) for r in others]
        deadline_s = time.monotonic() + timeout_s
        while not (self._is_passed(1) and self._is_passed(0)):
            if time.monotonic() > deadline_s:
                return code != 0
            time.sleep(_POLL_S)
        # Freeing and finalizing wait for the others again: forever, if one has given up or was
        # killed meanwhile.
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
        """Waits until the others have ended, as far as this process can tell."""
        started_s = time.monotonic()
        host = self._processes[self.rank][0]
        here = [pid for name, pid in self._processes if name == host and pid != os.getpid()]
        if len(here) < self.size - 1:
            time.sleep(_ELSEWHERE_S)
        while any(map(_is_alive, here)) and time.monotonic() < started_s + _MOST_OUTLIVED_S:
            time.sleep(_POLL_S)


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs, by `/proc`."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def open_group(topology: Topology) -> Group:
    """All services of the job; a single service needs no MPI.

    Args:
        topology: the launcher's topology; every rank is a service.

    Raises:
        MissingPackageError: mpi4py or an MPI library is missing.
        UsageError: the processes do not find each other.
    """
    if topology.num_ranks == 1:
        return Group()
    with ending_at_once():
        group = MpiGroup(topology)
    # All processes have mapped the files, so the names are unused.
    remove_own_shared_memory()
    return group
