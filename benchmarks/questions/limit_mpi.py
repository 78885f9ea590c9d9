"""One-sided reads between two ranks, for `benchmarks.questions.limit`; run by `mpiexec -n 2`.

Rank 0 reads samples out of rank 1's window, as a cache service does; rank 1 waits.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

_NUM_READS = 300
_NUM_SLOTS = 64


def main(nbytes: int) -> int:
    """Reads for a while and prints the rate of rank 0 as JSON."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    held = np.full((_NUM_SLOTS, nbytes), world.rank, np.uint8)
    window = MPI.Win.Create(held, disp_unit=1, comm=world)
    got = np.zeros(nbytes, np.uint8)
    world.Barrier()
    if world.rank == 0:
        window.Lock(1, MPI.LOCK_SHARED)
        for read in range(-10, _NUM_READS):
            if read == 0:
                started_s = time.perf_counter()
            window.Get(got, 1, target=(read % _NUM_SLOTS * nbytes, nbytes, MPI.BYTE))
            window.Flush(1)
        rate = _NUM_READS * nbytes / (time.perf_counter() - started_s)
        window.Unlock(1)
        if not (got == 1).all():
            raise SystemExit("rank 0 read other bytes than rank 1 holds")
        print(json.dumps({"bytes_per_s": rate}))
    world.Barrier()
    window.Free()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
