"""Where this process stands among the others: nodes, ranks per node, its own rank.

`from_env` is the only place of msdata that reads launchers' environment variables.
"""

from __future__ import annotations

import os
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
        rank: this process, 0 <= rank < num_ranks.
    """

    num_nodes: int = 1
    ranks_per_node: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.ranks_per_node < 1:
            raise UsageError(
                f"a topology needs at least one node and one rank a node, not {self.num_nodes} "
                f"nodes and {self.ranks_per_node} ranks a node"
            )
        if not 0 <= self.rank < self.num_ranks:
            raise UsageError(f"rank {self.rank} is not one of the {self.num_ranks} ranks")

    @property
    def num_ranks(self) -> int:
        """Ranks of the whole job."""
        return self.num_nodes * self.ranks_per_node

    @property
    def node(self) -> int:
        """The node of this rank."""
        return self.rank // self.ranks_per_node

    @property
    def local_rank(self) -> int:
        """This rank's number on its node."""
        return self.rank % self.ranks_per_node


def from_env(environ: Mapping[str, str] | None = None) -> Topology:
    """The topology that the launcher (torchrun, mpiexec, srun) put into the environment.

    Of nested launchers the innermost counts: torchrun, then mpiexec, then srun. A batch script and
    a shell of `salloc` are one rank.

    Args:
        environ: variables to read; None means those of this process, with which torch.distributed
            and MPI must agree where they run already.

    Returns:
        The topology; a single rank where no launcher left its variables.

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
    """Checks what all ranks make of their launcher's variables, each of which sees its own node.

    Args:
        told: each rank's topology, by its number.

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
    """Checks the variables against torch.distributed and MPI; nothing is imported for it."""
    for name, size, rank in _running():
        # A process that MPI's launcher did not start is alone in MPI's view.
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
    """(what, its number of ranks, this one's rank) of all that this process has started."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        yield "torch.distributed", dist.get_world_size(), dist.get_rank()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        yield "MPI", mpi.COMM_WORLD.Get_size(), mpi.COMM_WORLD.Get_rank()


def job_name(environ: Mapping[str, str] | None = None) -> str:
    """A name that all ranks of a job on one node have, and no other job there at the same time.

    Args:
        environ: variables to read; None means those of this process.

    Returns:
        `MSDATA_JOB` where it is set, for ranks and services that no common launcher started. Else
        Slurm's job number. Else the ranks' common parent, which is the launcher's process on this
        node; without a launcher, this process.
    """
    env = os.environ if environ is None else environ
    if env.get("MSDATA_JOB"):
        return env["MSDATA_JOB"]
    if "SLURM_JOB_ID" in env:
        return env["SLURM_JOB_ID"]
    is_launched = any(known.size in env and known.rank in env for known in LAUNCHERS)
    return f"p{os.getppid() if is_launched else os.getpid()}"


def set_one_sided_defaults() -> None:
    """Has MPI read other processes' memory without their help; before MPI is started.

    Between processes of one machine MPICH else asks the owner for 8 KB at a time, at each of its
    turns: 85 ms for 0.6 MB of a process that looks every millisecond, 0.1 ms with this (measured).
    Between machines it changes nothing.
    """
    os.environ.setdefault("MPIR_CVAR_NOLOCAL", "1")


def num_slurm_nodes(environ: Mapping[str, str] | None = None) -> int | None:
    """Nodes of the Slurm job that this process belongs to; None outside of jobs.

    Args:
        environ: variables to read; None means those of this process.

    Raises:
        UsageError: a variable is no number.
    """
    job = slurm_job(os.environ if environ is None else environ)
    return None if job is None else job.num_nodes


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What Slurm says of the job that this process belongs to.

    Attributes:
        num_nodes: of the job.
        node: name of this process's node.
        cpus_on_node: that the job has on it; None where unsaid.
        gpus_on_node: likewise.
        tasks_per_node: that were asked for; None where they were not.
        step_task: number of this process in its step; None in the batch script or a shell.
    """

    num_nodes: int
    node: str
    cpus_on_node: int | None = None
    gpus_on_node: int | None = None
    tasks_per_node: int | None = None
    step_task: int | None = None


def slurm_job(environ: Mapping[str, str]) -> SlurmJob | None:
    """The Slurm job that this process belongs to; None outside of jobs.

    Args:
        environ: variables to read.

    Raises:
        UsageError: a variable is no number.
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
