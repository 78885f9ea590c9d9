"""The one file of msdata that imports mpi4py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import MissingPackageError, UsageError
from msdata.topology import Topology, check_agreement

_ASK_TAG, _ANSWER_TAG = 7002, 7003
# Samples that a message can ask for.
MOST_ASKED = 4096
_ANSWER_POLL_S = 50e-6
# A look at MPI moves some KB of what is read within one machine.
_TESTS_A_TURN = 64


def communicator(topology: Topology) -> Any:
    """MPI's world communicator, checked against what the launcher's variables promise.

    Args:
        topology: what `msdata.topology.from_env` found.

    Returns:
        `mpi4py.MPI.COMM_WORLD`.

    Raises:
        MissingPackageError: mpi4py or an MPI library is absent.
        UsageError: the processes do not find each other, or see different nodes.
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
    check_agreement(world.allgather(topology))
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
        self._test = MPI.Request.Testall
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

    def wait(self, begun: Sequence[Any], timeout_s: float) -> None:
        """Waits until what was begun is here; in Python, where signals are heard.

        Args:
            begun: what `get` gave; None for nothing.
            timeout_s: for how long.

        Raises:
            TimeoutError: it is not; `is_here` may tell later that it is.
            OSError: MPI refused.
        """
        requests = [b for b in begun if b is not None]
        deadline_s = time.monotonic() + timeout_s
        try:
            while not any(self._test(requests) for _ in range(_TESTS_A_TURN)):
                if time.monotonic() > deadline_s:
                    raise TimeoutError("another process does not let itself be read in time")
                # Lets the thread that fills the arena have its turn.
                time.sleep(0)
        except self._error as error:
            raise OSError(f"MPI cannot read from another process: {error}") from error

    def is_here(self, begun: Sequence[Any]) -> bool:
        """Whether all of what was begun is here.

        Args:
            begun: what `get` gave; None for nothing.

        Raises:
            OSError: MPI refused.
        """
        try:
            return bool(self._test([b for b in begun if b is not None]))
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


def finalize_when_told() -> None:
    """Has a process end without MPI's own end, which waits for the others, even for dead ones."""
    try:
        import mpi4py
    except ImportError:
        return  # `communicator` says what is missing
    mpi4py.rc.finalize = False


def finalize(requests: Sequence[Any]) -> None:
    """Ends MPI; waits for the other processes.

    Args:
        requests: what is waited for before.
    """
    from mpi4py import MPI

    MPI.Request.Waitall(requests)
    MPI.Finalize()
