"""The place of this process in the job: nodes, ranks per node, its own rank.

Only this module reads the environment variables of launchers and Slurm.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from msdata.errors import UsageError
from msdata.launchers import (
    LAUNCHERS,
    MPI_LAUNCHERS,
    Claim,
    claims_in,
    is_in_step,
    layout_of,
    number_in,
)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Rank arithmetic of a job whose nodes run equally many ranks, numbered node by node.

    Attributes:
        num_nodes: number of nodes.
        ranks_per_node: ranks on every node.
        rank: rank of this process, 0 <= rank < num_ranks.
    """

    num_nodes: int = 1
    ranks_per_node: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.ranks_per_node < 1:
            raise UsageError(
                "num_nodes and ranks_per_node must be at least 1, got "
                f"{self.num_nodes} and {self.ranks_per_node}"
            )
        if not 0 <= self.rank < self.num_ranks:
            raise UsageError(f"rank must be 0 to {self.num_ranks - 1}, got {self.rank}")

    @property
    def num_ranks(self) -> int:
        """Number of ranks of the whole job."""
        return self.num_nodes * self.ranks_per_node

    @property
    def node(self) -> int:
        """Number of this rank's node."""
        return self.rank // self.ranks_per_node

    @property
    def local_rank(self) -> int:
        """This rank's number on its node."""
        return self.rank % self.ranks_per_node


def from_env(environ: Mapping[str, str] | None = None) -> Topology:
    """Reads the topology from the launcher's environment variables (torchrun, mpiexec, srun).

    The innermost of nested launchers counts: torchrun, then mpiexec, then srun. A batch script and
    a shell of `salloc` are one rank.

    Args:
        environ: variables to read; None means those of this process, which must agree with
            torch.distributed and MPI if these run already.

    Returns:
        The topology; a single rank without a launcher's variables.

    Raises:
        UsageError: the variables contradict each other, torch.distributed or MPI, are not numbers,
            or the nodes do not run equally many ranks, numbered node by node.
    """
    claims = claims_in(os.environ if environ is None else environ)
    if claims:
        num_nodes, per_node = layout_of(claims)
        found = Topology(num_nodes=num_nodes, ranks_per_node=per_node, rank=claims[0].rank)
    else:
        found = Topology()
    if environ is None:
        _check_running(found, claims)
    return found


def check_agreement(told: Sequence[Topology]) -> None:
    """Checks that the topologies which all ranks read agree: each rank sees its own node only.

    Args:
        told: each rank's topology, in the order of ranks.

    Raises:
        UsageError: they differ.
    """
    for rank, one in enumerate(told):
        if one != replace(told[0], rank=rank):
            here, there = (
                f"{t.num_nodes} nodes x {t.ranks_per_node} ranks" for t in (told[0], one)
            )
            raise UsageError(
                "every node must run equally many ranks, numbered node by node: rank 0 sees "
                f"{here}, rank {rank} sees {there} and is told that it is rank {one.rank}; "
                "start equally many ranks on every node"
            )


def _check_running(found: Topology, claims: Sequence[Claim]) -> None:
    """Checks the variables against torch.distributed and MPI, without importing either."""
    for name, size, rank in _running():
        # MPI sees a single rank in a process that its launcher did not start.
        is_alone = name == "MPI" and size == 1
        if is_alone and not any(c.launcher in MPI_LAUNCHERS for c in claims[:1]):
            continue
        if (size, rank) != (found.num_ranks, found.rank):
            said = str(claims[0]) if claims else "no launcher's variables, so rank 0 of 1"
            raise UsageError(
                f"{name} has rank {rank} of {size}, the environment {said}: start all ranks with "
                "one launcher and its own MPI library, or give Loader(topology=...)"
            )


def _running() -> Iterator[tuple[str, int, int]]:
    """Yields (name, number of ranks, rank) of torch.distributed and MPI, if they run."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        yield "torch.distributed", dist.get_world_size(), dist.get_rank()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        yield "MPI", mpi.COMM_WORLD.Get_size(), mpi.COMM_WORLD.Get_rank()


def is_debugging() -> bool:
    """Whether `MSDATA_DEBUG` is set, to anything but 0: loaders then poison overwritten batches."""
    return os.environ.get("MSDATA_DEBUG", "0") not in ("", "0")


def job_name(environ: Mapping[str, str] | None = None) -> str:
    """Names the job: all its ranks on one node share the name, and no other job there does.

    Args:
        environ: variables to read; None means those of this process.

    Returns:
        `MSDATA_JOB` if set, for ranks and services without a common launcher; otherwise Slurm's job
        number; otherwise the process id of the ranks' parent, the launcher on this node; without a
        launcher, the id of this process.
    """
    env = os.environ if environ is None else environ
    if env.get("MSDATA_JOB"):
        return env["MSDATA_JOB"]
    if "SLURM_JOB_ID" in env:
        return env["SLURM_JOB_ID"]
    is_launched = any(known.size in env and known.rank in env for known in LAUNCHERS)
    return f"p{os.getppid() if is_launched else os.getpid()}"


def set_one_sided_defaults() -> None:
    """Lets MPI read other processes' memory without their help; call it before MPI starts.

    By default MPICH asks the owner on the same machine for 8 KB whenever it polls: 85 ms for 0.6 MB
    of a process that polls every millisecond, 0.1 ms with this setting (measured). It changes
    nothing between machines.
    """
    os.environ.setdefault("MPIR_CVAR_NOLOCAL", "1")


def node_name(environ: Mapping[str, str] | None = None) -> str:
    """This node's name: Slurm's, else the machine's.

    Args:
        environ: variables to read; None means those of this process.
    """
    env = os.environ if environ is None else environ
    return env.get("SLURMD_NODENAME") or platform.node()


def thread_limit() -> int | None:
    """Threads that OMP_NUM_THREADS allows this rank; None where it says nothing.

    The 1 of torchrun, which it sets however many cores there are, says nothing.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    if not said.isdecimal() or (said == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        return None
    return max(1, int(said))


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """Slurm's description of the job that this process belongs to.

    Attributes:
        num_nodes: nodes of the job.
        node: name of this process's node.
        cpus_on_node: CPUs that the job has on this node; None if Slurm does not say.
        gpus_on_node: GPUs that the job has on this node; None if Slurm does not say.
        tasks_per_node: tasks per node that were requested; None without a request.
        step_task: number of this process in its step; None in the batch script or a shell.
    """

    num_nodes: int
    node: str
    cpus_on_node: int | None = None
    gpus_on_node: int | None = None
    tasks_per_node: int | None = None
    step_task: int | None = None


def slurm_job(environ: Mapping[str, str]) -> SlurmJob | None:
    """Reads the Slurm job that this process belongs to; None outside of jobs.

    Args:
        environ: variables to read.

    Raises:
        UsageError: a variable is not a number.
    """
    if "SLURM_JOB_ID" not in environ or "SLURM_JOB_NUM_NODES" not in environ:
        return None

    def number(key: str) -> int | None:
        return number_in(environ, key) if key in environ else None

    return SlurmJob(
        num_nodes=number_in(environ, "SLURM_JOB_NUM_NODES"),
        node=environ.get("SLURMD_NODENAME", ""),
        cpus_on_node=number("SLURM_CPUS_ON_NODE"),
        gpus_on_node=number("SLURM_GPUS_ON_NODE"),
        tasks_per_node=number("SLURM_NTASKS_PER_NODE"),
        step_task=number("SLURM_PROCID") if is_in_step(environ) else None,
    )
