"""Where this process stands among the others: nodes, ranks a node, its own rank.

`from_env` is the only place of msdata that reads launchers' environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from msdata.errors import UsageError


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


# (size, rank, ranks a node) as torchrun, then Slurm, then Open MPI and MPICH's Hydra export them.
_LAUNCHERS = (
    ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
)


def from_env(environ: Mapping[str, str] | None = None) -> Topology:
    """The topology that the launcher (torchrun, srun, mpiexec) put into the environment.

    Args:
        environ: variables to read; None means those of this process.

    Returns:
        The topology; a single rank where no launcher left its variables.

    Raises:
        UsageError: the variables contradict each other or are no numbers.
    """
    env = os.environ if environ is None else environ
    for size_key, rank_key, local_key in _LAUNCHERS:
        # An interactive `salloc` shell has SLURM_NTASKS without being one of the tasks.
        if size_key not in env or rank_key not in env or _is_batch_shell(env, rank_key):
            continue
        size, rank = _number(env, size_key), _number(env, rank_key)
        per_node = _ranks_per_node(env, local_key, size)
        if size % per_node:
            raise UsageError(
                f"{size_key}={size} ranks do not divide into nodes of {per_node} ({local_key}); "
                "msdata needs equally many ranks on every node"
            )
        return Topology(num_nodes=size // per_node, ranks_per_node=per_node, rank=rank)
    return Topology()


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
    is_launched = any(size in env and rank in env for size, rank, _ in _LAUNCHERS)
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
        return _number(environ, key) if key in environ else None

    return SlurmJob(
        num_nodes=_number(environ, "SLURM_JOB_NUM_NODES"),
        node=environ.get("SLURMD_NODENAME", ""),
        cpus_on_node=number("SLURM_CPUS_ON_NODE"),
        gpus_on_node=number("SLURM_GPUS_ON_NODE"),
        tasks_per_node=number("SLURM_NTASKS_PER_NODE"),
        step_task=number("SLURM_PROCID") if "SLURM_STEP_ID" in environ else None,
    )


def _is_batch_shell(env: Mapping[str, str], rank_key: str) -> bool:
    return rank_key == "SLURM_PROCID" and "SLURM_STEP_ID" not in env


def _ranks_per_node(env: Mapping[str, str], local_key: str, size: int) -> int:
    if local_key in env:
        return _number(env, local_key)
    if local_key.startswith("SLURM") and "SLURM_STEP_NUM_NODES" in env:
        return max(1, size // _number(env, "SLURM_STEP_NUM_NODES"))
    return size


def _number(env: Mapping[str, str], key: str) -> int:
    try:
        return int(env[key])
    except ValueError:
        raise UsageError(f"{key}={env[key]!r} is not a number; start the job anew") from None
