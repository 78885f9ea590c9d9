"""The one file of msdata that imports mpi4py."""

from __future__ import annotations

from typing import Any

from msdata.errors import MissingPackageError, UsageError
from msdata.topology import Topology


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
