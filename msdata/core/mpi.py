"""Wraps mpi4py; no other module imports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import MissingPackageError, UsageError
from msdata.topology import Topology, check_agreement

_ASK_TAG, _ANSWER_TAG = 7002, 7003
# Most samples per request.
MOST_ASKED = 4096
_ANSWER_POLL_S = 50e-6
# Each test moves a few KB of a read within one machine.
_TESTS_A_TURN = 64


def communicator(topology: Topology) -> Any:
    """Returns MPI's world communicator, checked against the launcher's variables.

    Args:
        topology: the result of `msdata.topology.from_env`.

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

    All processes make it together (`MpiGroup.window`). The owner of the memory does nothing for a
    read, except that its MPI library must run now and then (`MpiGroup.poll`).

    Args:
        world: the communicator.
        memory: this process's share, a writable buffer; stays mapped until the group ends.

    Attributes:
        bare: mpi4py's window.
    """

    def __init__(self, world: Any, memory: Any) -> None:
        from mpi4py import MPI

        self.bare = MPI.Win.Create(memory, 1, comm=world)
        # A failed read raises an exception instead of ending the process.
        self.bare.Set_errhandler(MPI.ERRORS_RETURN)
        self._error = MPI.Exception
        self._test = MPI.Request.Testall
        self.bare.Lock_all(MPI.MODE_NOCHECK)

    def get(self, rank: int, target: NDArray[np.uint8], at: int) -> Any:
        """Starts to read `len(target)` bytes at offset `at` of a process's memory.

        Returns:
            The read, for `wait`; do not touch the target before it is complete.

        Raises:
            OSError: MPI refused.
        """
        try:
            return self.bare.Rget(target, rank, at)
        except self._error as error:
            raise OSError(f"MPI cannot read from rank {rank}: {error}") from error

    def wait(self, reads: Sequence[Any], timeout_s: float) -> None:
        """Waits until all reads are complete; polls in Python, so that signals are handled.

        Args:
            reads: results of `get`; None is skipped.
            timeout_s: longest wait.

        Raises:
            TimeoutError: a read is incomplete; `is_here` may say later that it is complete.
            OSError: MPI refused.
        """
        requests = [r for r in reads if r is not None]
        deadline_s = time.monotonic() + timeout_s
        try:
            while not any(self._test(requests) for _ in range(_TESTS_A_TURN)):
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"another process could not be read within {timeout_s:g} s")
                # Yields to the thread that fills the arena.
                time.sleep(0)
        except self._error as error:
            raise OSError(f"MPI cannot read from another process: {error}") from error

    def is_here(self, reads: Sequence[Any]) -> bool:
        """Whether all reads are complete.

        Args:
            reads: results of `get`; None is skipped.

        Raises:
            OSError: MPI refused.
        """
        try:
            return bool(self._test([r for r in reads if r is not None]))
        except self._error as error:
            raise OSError(f"MPI cannot read from another process: {error}") from error

    def close(self) -> None:
        """Closes the window; all processes of the group do so together."""
        self.bare.Unlock_all()
        self.bare.Free()


class Exchange:
    """Exchanges records outside of any window, such as those on disks, by messages.

    A process answers when it polls (`MpiGroup.poll`) and while it waits for answers itself.

    Args:
        world: the communicator; all processes make an exchange together.
        answer: takes sample numbers, int64 (n,); returns the record of each, or None.
    """

    def __init__(self, world: Any, answer: Callable[[NDArray[np.int64]], Sequence[Any]]) -> None:
        self._world = world.Dup()
        self._answer = answer
        # The asking rank, the number of samples, and the samples.
        self._asked = np.zeros(2 + MOST_ASKED, np.int64)
        self._awaited = self._world.Irecv(self._asked, tag=_ASK_TAG)
        self._sent: list[tuple[Any, Any]] = []
        self._given_up: list[Any] = []

    def serve(self) -> None:
        """Answers all requests that have arrived."""
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
            ranks: the rank to ask for each sample.
            samples: sample numbers, at most `MOST_ASKED`.
            targets: the buffer for each record, uint8 (record's bytes,).
            timeout_s: longest wait for all records.

        Returns:
            Whether each record has arrived.

        Raises:
            TimeoutError: a rank has not answered; do not ask it again.
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
                # Late answers are still written into this memory, so it must stay.
                self._given_up += zip(requests, targets, strict=True)
                raise TimeoutError(f"other services did not answer within {timeout_s:g} s")
            time.sleep(_ANSWER_POLL_S)
        came = [False] * len(ranks)
        for (i, _), status in zip(receiving, statuses, strict=True):
            came[i] = status.Get_count() == len(targets[i])
        return came

    def close(self) -> None:
        """Ends the exchange; all processes of the group do so together."""
        self._awaited.Cancel()
        self._awaited.Wait()
        self._world.Free()


def finalize_when_told() -> None:
    """Disables MPI's finalization at exit, which waits for all processes, even for dead ones."""
    try:
        import mpi4py
    except ImportError:
        return  # `communicator` reports the missing package
    mpi4py.rc.finalize = False


def finalize(requests: Sequence[Any]) -> None:
    """Finalizes MPI; waits for the other processes.

    Args:
        requests: requests to wait for first.
    """
    from mpi4py import MPI

    MPI.Request.Waitall(requests)
    MPI.Finalize()
