"""The one file of msdata that imports mpi4py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import MissingPackageError, UsageError
from msdata.topology import Topology, set_one_sided_defaults

_END_TAG, _ASK_TAG, _ANSWER_TAG = 7001, 7002, 7003
# Samples that a message can ask for.
MOST_ASKED = 4096
_ANSWER_POLL_S = 50e-6
_POLL_S = 0.002
_LEAST_END_S = 2.0


def communicator(topology: Topology) -> Any:
    """MPI's world communicator, checked against what the launcher's variables promise.

    Args:
        topology: what `msdata.topology.from_env` found.

    Returns:
        `mpi4py.MPI.COMM_WORLD`.

    Raises:
        MissingPackageError: mpi4py or an MPI library is absent.
        UsageError: the processes do not find each other.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise MissingPackageError(
            f"{topology.num_ranks} ranks need MPI: run pip install 'msdata[mpi]' ({error})"
        ) from error
    world = MPI.COMM_WORLD
    if world.Get_size() != topology.num_ranks:
        raise UsageError(
            f"the launcher started {topology.num_ranks} ranks, MPI sees {world.Get_size()}: "
            "launcher and MPI library do not match; under Slurm try srun --mpi=pmi2"
        )
    return world


class Window:
    """Memory that the processes of a group open to each other's one-sided reads.

    Made by all at once (`MpiGroup.window`). A read needs nothing of the process whose memory it
    is, but that its MPI library comes to its turn now and then (`MpiGroup.poll`).

    Args:
        world: the communicator.
        memory: this process's share, a writable buffer; stays mapped until the group ends.

    Attributes:
        bare: mpi4py's window.
    """

    def __init__(self, world: Any, memory: Any) -> None:
        from mpi4py import MPI

        self.bare = MPI.Win.Create(memory, 1, comm=world)
        # A failed read is an exception here, not the end of the process.
        self.bare.Set_errhandler(MPI.ERRORS_RETURN)
        self._error = MPI.Exception
        self._wait = MPI.Request.Waitall
        self.bare.Lock_all(MPI.MODE_NOCHECK)

    def get(self, rank: int, target: NDArray[np.uint8], at: int) -> Any:
        """Begins to read `len(target)` bytes at a place of a process's memory.

        Returns:
            What `wait` takes; the target must not be touched before.

        Raises:
            OSError: MPI refused.
        """
        try:
            return self.bare.Rget(target, rank, at)
        except self._error as error:
            raise OSError(f"MPI cannot read from rank {rank}: {error}") from error

    def wait(self, begun: Sequence[Any]) -> None:
        """Waits until what was begun is here.

        Args:
            begun: what `get` gave; None for nothing.

        Raises:
            OSError: MPI refused.
        """
        try:
            self._wait([b for b in begun if b is not None])
        except self._error as error:
            raise OSError(f"MPI cannot read from another process: {error}") from error

    def close(self) -> None:
        """Takes the memory back; all processes of the group do so together."""
        self.bare.Unlock_all()
        self.bare.Free()


class Exchange:
    """Records that no window shows, such as those on disks: asked for and given by messages.

    A process answers at its turns (`MpiGroup.poll`), and while it waits for answers itself.

    Args:
        world: the communicator; all processes make an exchange together.
        answer: numbers of samples, int64 (n,) -> for each its record, or None.
    """

    def __init__(self, world: Any, answer: Callable[[NDArray[np.int64]], Sequence[Any]]) -> None:
        self._world = world.Dup()
        self._answer = answer
        # Who asks, how many samples, and which.
        self._asked = np.zeros(2 + MOST_ASKED, np.int64)
        self._awaited = self._world.Irecv(self._asked, tag=_ASK_TAG)
        self._sent: list[tuple[Any, Any]] = []
        self._given_up: list[Any] = []

    def serve(self) -> None:
        """Answers what has been asked so far."""
        while self._awaited.Test():
            rank, count = self._asked[:2].tolist()
            samples = self._asked[2 : 2 + count].copy()
            self._awaited = self._world.Irecv(self._asked, tag=_ASK_TAG)
            for record in self._answer(samples):
                content = np.frombuffer(b"" if record is None else record, np.uint8)
                sending = self._world.Isend(content, dest=rank, tag=_ANSWER_TAG)
                self._sent.append((sending, content))
        self._sent = [(sending, content) for sending, content in self._sent if not sending.Test()]

    def fetch(
        self,
        ranks: Sequence[int],
        samples: Sequence[int],
        targets: Sequence[NDArray[np.uint8]],
        timeout_s: float,
    ) -> list[bool]:
        """Asks other processes for records.

        Args:
            ranks: whom, for each.
            samples: numbers, at most `MOST_ASKED`.
            targets: where each goes, uint8 (record's bytes,).
            timeout_s: how long to wait for all.

        Returns:
            Whether each has come.

        Raises:
            TimeoutError: not all have answered; who has not must not be asked again.
        """
        from mpi4py import MPI

        receiving = []
        for rank in sorted(set(ranks)):
            rows = [i for i, r in enumerate(ranks) if r == rank]
            words = np.array([self._world.Get_rank(), len(rows), *(samples[i] for i in rows)])
            self._sent.append((self._world.Isend(words, dest=rank, tag=_ASK_TAG), words))
            receiving += [
                (i, self._world.Irecv(targets[i], source=rank, tag=_ANSWER_TAG)) for i in rows
            ]
        requests, statuses = [r for _, r in receiving], [MPI.Status() for _ in receiving]
        deadline_s = time.monotonic() + timeout_s
        while not MPI.Request.Testall(requests, statuses):
            self.serve()
            if time.monotonic() > deadline_s:
                # What comes late still goes into this memory, which must stay until then.
                self._given_up += zip(requests, targets, strict=True)
                raise TimeoutError("other services did not answer in time")
            time.sleep(_ANSWER_POLL_S)
        came = [False] * len(ranks)
        for (i, _), status in zip(receiving, statuses, strict=True):
            came[i] = status.Get_count() == len(targets[i])
        return came

    def close(self) -> None:
        """Expects no more requests; all processes of the group do so together."""
        self._awaited.Cancel()
        self._awaited.Wait()
        self._world.Free()


class MpiGroup:
    """The processes that were started together, one a node, as the cache's services see them.

    MPI ends by all processes together or not at all, so whoever wants to end tells the others
    (`announce_end`), and all `leave`.

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
        try:
            import mpi4py
        except ImportError:
            pass  # `communicator` says what is missing
        else:
            # At the end of a process MPI would wait for the others, even for dead ones.
            mpi4py.rc.finalize = False
        self._world = communicator(topology)
        self.rank = int(self._world.Get_rank())
        self.size = int(self._world.Get_size())
        # Barriers are told apart by their order on a communicator, and these may be in any.
        self._communicators = [self._world.Dup(), self._world.Dup()]
        self._barriers: list[Any] = [None, None]
        self._windows: list[Window] = []
        self._exchange: Exchange | None = None
        self._sent: list[Any] = []
        # Asked for before it is sent: what MPI is asked to look for now and then (`Iprobe`) was
        # found by MPICH over UCX, and yet could not be received.
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._words = np.zeros((2, self.size), np.uint8)
        self._told = [self._world.Irecv(self._words[0, r : r + 1], r, _END_TAG) for r in others]
        self._is_told = False

    def allgather(self, value: Any) -> list[Any]:
        """What each process gives, by rank."""
        return list(self._world.allgather(value))

    def broadcast(self, value: Any, root: int) -> Any:
        """What the process `root` gives."""
        return self._world.bcast(value, root)

    def window(self, memory: Any) -> Window:
        """See `Window`; all processes call it together."""
        made = Window(self._world, memory)
        self._windows.append(made)
        return made

    def exchange(self, answer: Callable[[NDArray[np.int64]], Sequence[Any]]) -> Exchange:
        """See `Exchange`; all processes call it together, once."""
        self._exchange = Exchange(self._world, answer)
        return self._exchange

    def begin_barrier(self) -> Callable[[], bool]:
        """Says that this process has come so far; gives what tells whether all have."""
        self._is_passed(0)
        return partial(self._is_passed, 0)

    def _is_passed(self, number: int) -> bool:
        if self._barriers[number] is None:
            self._barriers[number] = self._communicators[number].Ibarrier()
        return bool(self._barriers[number].Test())

    def poll(self) -> bool:
        """Does what others need of this process; says whether one of them wants all to end."""
        if self._exchange is not None:
            self._exchange.serve()
        if self._told and not self._is_told:
            self._is_told = bool(type(self._told[0]).Testany(self._told)[1])
        return self._is_told

    def announce_end(self) -> None:
        """Has `poll` of all others tell them to end."""
        if not self._sent:
            others = (r for r in range(self.size) if r != self.rank)
            word = self._words[1, :1]
            self._sent = [self._world.Isend(word, dest=r, tag=_END_TAG) for r in others]

    def leave(self, timeout_s: float) -> bool:
        """Ends MPI, together with the others.

        Args:
            timeout_s: how long to wait for them.

        Returns:
            Whether they came; if not, MPI is left as it is, to end with the process.
        """
        # A message from each to each, so that none is left over, which MPI would not forgive.
        self.announce_end()
        deadline_s = time.monotonic() + timeout_s
        while not (self._is_passed(1) and self._is_passed(0)):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        # Freeing and finalising wait for the others once more: for ever, if one has given up
        # or was killed meanwhile.
        end = threading.Thread(target=self._end, name="msdata-mpi-end", daemon=True)
        end.start()
        end.join(max(_LEAST_END_S, deadline_s - time.monotonic()))
        return not end.is_alive()

    def _end(self) -> None:
        from mpi4py import MPI

        MPI.Request.Waitall(self._sent + self._told)
        for window in self._windows:
            window.close()
        if self._exchange is not None:
            self._exchange.close()
        for barrier_world in self._communicators:
            barrier_world.Free()
        MPI.Finalize()
