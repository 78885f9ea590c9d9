"""What the network between nodes gives, measured by messages of the size of a sample."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.errors import StorageError, UsageError


class Communicator(Protocol):
    """What the network probe needs of an MPI communicator (mpi4py's `Comm`)."""

    def Get_rank(self) -> int: ...  # noqa: N802, D102

    def Get_size(self) -> int: ...  # noqa: N802, D102

    def Barrier(self) -> None: ...  # noqa: N802, D102

    def Sendrecv(  # noqa: N802, D102
        self, sendbuf: Any, dest: int, *, recvbuf: Any, source: int
    ) -> None: ...

    def allgather(self, sendobj: Any) -> list[Any]: ...  # noqa: D102


def measure_network(comm: Communicator, sample_bytes: int, *, num_messages: int = 200) -> float:
    """Rate at which this rank receives samples while it sends as many, all ranks at once.

    Args:
        comm: one rank a node.
        sample_bytes: bytes of a message.
        num_messages: messages to each of a few other ranks.

    Returns:
        Bytes per second of the slowest rank; every rank gets the same number.

    Raises:
        UsageError: there is only one rank.
    """
    rank, size = comm.Get_rank(), comm.Get_size()
    if size < 2:
        raise UsageError("the network needs at least two ranks; start the probe by srun or mpiexec")
    outgoing = np.full(sample_bytes, rank % 251, dtype=np.uint8)
    incoming: NDArray[np.uint8] = np.empty(sample_bytes, dtype=np.uint8)
    seconds, messages = 0.0, 0
    # Next neighbours and far ones: a fat tree may be thinner at the top.
    for distance in sorted({1, size // 2}):
        to, source = (rank + distance) % size, (rank - distance) % size
        for number in range(num_messages + 10):
            if number == 10:  # connections are made by the first messages
                comm.Barrier()
                start = time.perf_counter()
            comm.Sendrecv(outgoing, to, recvbuf=incoming, source=source)
        seconds += time.perf_counter() - start
        messages += num_messages
        if not (incoming == source % 251).all():
            raise StorageError(f"rank {rank} received other bytes than rank {source} sent")
    return float(min(comm.allgather(messages * sample_bytes / seconds)))
