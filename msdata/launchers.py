"""Reads the environment variables that torchrun, mpiexec and srun set in the processes they start.

Launchers nest (mpiexec inside a Slurm step, torchrun inside srun), and inner processes inherit the
variables of all. The innermost launcher counts; contradictions raise UsageError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from msdata.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Names of a launcher's variables; "" and () for variables that it does not set.

    Attributes:
        name: the launcher's command.
        size: variable of the number of ranks.
        rank: variable of this process's rank; without size and rank, another launcher started it.
        local_sizes: variables of the number of ranks on this node.
        local_ranks: variables of this rank's number on its node.
        num_nodes: variable of the number of nodes.
        node: variable of this node's number.
        even: command line that starts equally many ranks on every node, numbered node by node.
    """

    name: str
    size: str
    rank: str
    local_sizes: tuple[str, ...] = ()
    local_ranks: tuple[str, ...] = ()
    num_nodes: str = ""
    node: str = ""
    even: str


TORCHRUN = Launcher(
    name="torchrun",
    size="WORLD_SIZE",
    rank="RANK",
    local_sizes=("LOCAL_WORLD_SIZE",),
    local_ranks=("LOCAL_RANK",),
    num_nodes="GROUP_WORLD_SIZE",
    node="GROUP_RANK",
    even="torchrun with the same --nproc-per-node on every node",
)
OPEN_MPI = Launcher(
    name="mpirun",
    size="OMPI_COMM_WORLD_SIZE",
    rank="OMPI_COMM_WORLD_RANK",
    local_sizes=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    local_ranks=("OMPI_COMM_WORLD_LOCAL_RANK",),
    even="mpirun --map-by ppr:N:node --rank-by slot",
)
# Hydra of MPICH and Intel MPI, MVAPICH, Cray's PALS. Slurm's PMI servers set size and rank alone.
PMI = Launcher(
    name="mpiexec",
    size="PMI_SIZE",
    rank="PMI_RANK",
    local_sizes=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    local_ranks=("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    even="mpiexec -ppn N",
)
# MVAPICH's mpirun_rsh, where it sets no PMI_*; and Flux, which sets PMI_* only for programs of MPI.
MVAPICH = Launcher(
    name="mpirun_rsh",
    size="MV2_COMM_WORLD_SIZE",
    rank="MV2_COMM_WORLD_RANK",
    local_sizes=("MV2_COMM_WORLD_LOCAL_SIZE",),
    local_ranks=("MV2_COMM_WORLD_LOCAL_RANK",),
    even="mpirun_rsh and a hostfile with every host N times",
)
FLUX = Launcher(
    name="flux run",
    size="FLUX_JOB_SIZE",
    rank="FLUX_TASK_RANK",
    local_ranks=("FLUX_TASK_LOCAL_ID",),
    num_nodes="FLUX_JOB_NNODES",
    even="flux run --tasks-per-node=N",
)
# The step's variables: those of the job (SLURM_NTASKS, SLURM_NTASKS_PER_NODE) say what it may
# start, not what it started.
SLURM = Launcher(
    name="srun",
    size="SLURM_STEP_NUM_TASKS",
    rank="SLURM_PROCID",
    local_ranks=("SLURM_LOCALID",),
    num_nodes="SLURM_STEP_NUM_NODES",
    node="SLURM_NODEID",
    even="srun --ntasks-per-node=N --distribution=block",
)
# Innermost first.
LAUNCHERS = (TORCHRUN, OPEN_MPI, PMI, MVAPICH, FLUX, SLURM)
MPI_LAUNCHERS = (OPEN_MPI, PMI, MVAPICH, FLUX)
# Step numbers of srun end here; batch scripts, shells of salloc (4294967290) and containers
# have higher ones. Source: slurm.h, SLURM_MAX_NORMAL_STEP_ID.
_LAST_STEP = 0xFFFFFFF0
_TASKS_PER_NODE = "SLURM_STEP_TASKS_PER_NODE"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Values of one launcher's variables; None for those that it does not set.

    Attributes:
        launcher: the launcher.
        size: number of ranks.
        rank: rank of this process, 0 <= rank < size.
        ranks_per_node: ranks on this node.
        local_rank: this rank's number on its node.
        num_nodes: number of nodes.
        node: number of this node.
    """

    launcher: Launcher
    size: int
    rank: int
    ranks_per_node: int | None
    local_rank: int | None
    num_nodes: int | None
    node: int | None

    def __str__(self) -> str:
        names = self.launcher
        return f"{names.rank}={self.rank} of {names.size}={self.size} ({names.name})"

    def is_of_same_rank(self, other: Claim) -> bool:
        """Whether both name the same rank and the same number of ranks."""
        return (self.size, self.rank) == (other.size, other.rank)


def claims_in(env: Mapping[str, str]) -> list[Claim]:
    """Reads the variables of all launchers around this process, the innermost one first.

    Args:
        env: environment variables.

    Raises:
        UsageError: variables are not numbers, or contradict each other.
    """
    claims = [c for c in (_claim(env, launcher) for launcher in LAUNCHERS) if c is not None]
    first = claims[0] if claims else None
    step = next((c for c in claims if c.launcher is SLURM), None)
    if first is not None and first.launcher in MPI_LAUNCHERS and step is not None:
        _check_within_step(first, step)
    if first is not None and first.launcher is TORCHRUN and first.ranks_per_node is None:
        # Torchrun itself always says LOCAL_WORLD_SIZE: these were set by hand, or are left over.
        other = next((c for c in claims[1:] if not c.is_of_same_rank(first)), None)
        if other is not None:
            raise UsageError(
                f"{first} contradicts {other}: unset {TORCHRUN.rank} and {TORCHRUN.size}, or start "
                "with torchrun"
            )
    # PMIx sets the rank and not the size; Slurm's step and Open MPI's mpirun set both.
    is_left_to_pmix = first is None or first is step
    is_slurms = env.get("PMIX_NAMESPACE", "").startswith("slurm.pmix.")
    if is_left_to_pmix and "PMIX_RANK" in env and not is_slurms:
        raise UsageError(
            f"PMIX_RANK={env['PMIX_RANK']} comes without a number of ranks: start with Open MPI's "
            "mpirun, srun --mpi=pmix or torchrun, or unset PMIX_RANK for a single rank"
        )
    return claims


def layout_of(claims: Sequence[Claim]) -> tuple[int, int]:
    """Derives the number of nodes and of ranks per node.

    Args:
        claims: one or more, from `claims_in`. If the innermost launcher does not say how many ranks
            a node runs, an outer one with the same rank may.

    Returns:
        (number of nodes, ranks per node).

    Raises:
        UsageError: the nodes do not run equally many ranks, numbered node by node, or no variable
            says how many.
    """
    first = claims[0]
    for claim in claims:
        per_node = claim.ranks_per_node
        if per_node is None and claim.num_nodes:
            per_node = max(1, claim.size // claim.num_nodes)
        if per_node is not None and claim.is_of_same_rank(first):
            _check_layout(claim, per_node)
            return claim.size // per_node, per_node
    if first.size == 1:
        return 1, 1
    keys = " or ".join(first.launcher.local_sizes) or _TASKS_PER_NODE
    raise UsageError(
        f"{first} comes without {keys}: how many ranks each node runs is unknown; set it, or start "
        f"with {first.launcher.even}"
    )


def is_in_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process or a parent; false in batch scripts and shells.

    Raises:
        UsageError: SLURM_STEP_ID is not a number.
    """
    return "SLURM_STEP_ID" in env and number_in(env, "SLURM_STEP_ID") <= _LAST_STEP


def number_in(env: Mapping[str, str], key: str) -> int:
    """Reads a number >= 0 from a variable.

    Raises:
        UsageError: it is not a number.
    """
    if not re.fullmatch(r"[0-9]{1,18}", env[key].strip()):
        raise UsageError(f"{key} must be a number, got {env[key]!r}; start the job again")
    return int(env[key])


def _claim(env: Mapping[str, str], names: Launcher) -> Claim | None:
    if names is SLURM and not is_in_step(env):
        return None
    missing = [key for key in (names.size, names.rank) if key not in env]
    if missing and names is SLURM:
        raise UsageError(
            f"SLURM_STEP_ID={env['SLURM_STEP_ID']} comes without {' and '.join(missing)}: pass all "
            "of srun's variables on, or unset SLURM_STEP_ID for a single rank"
        )
    if missing:
        return None

    def number(*keys: str) -> int | None:
        return next((number_in(env, key) for key in keys if key in env), None)

    claim = Claim(
        launcher=names,
        size=number_in(env, names.size),
        rank=number_in(env, names.rank),
        ranks_per_node=number(*names.local_sizes),
        local_rank=number(*names.local_ranks),
        num_nodes=number(names.num_nodes),
        node=number(names.node),
    )
    if claim.rank >= claim.size or 0 in (claim.ranks_per_node, claim.num_nodes):
        raise UsageError(
            f"{names.rank} must be below {names.size}, got {claim} on {claim.num_nodes} nodes, "
            f"{claim.ranks_per_node} ranks on this one; start the job again"
        )
    return _with_tasks_per_node(env, claim) if names is SLURM else claim


def _with_tasks_per_node(env: Mapping[str, str], claim: Claim) -> Claim:
    """Adds nodes and ranks per node from `SLURM_STEP_TASKS_PER_NODE`, such as 2(x3),1."""
    text = env.get(_TASKS_PER_NODE)
    if text is None:
        return claim
    parts = [re.fullmatch(r"([1-9]\d{0,5})(?:\(x([1-9]\d{0,5})\))?", p) for p in text.split(",")]
    runs = [(int(part[1]), int(part[2] or 1)) for part in parts if part is not None]
    num_nodes = sum(count for _, count in runs)
    total = sum(tasks * count for tasks, count in runs)
    if None in parts or total != claim.size or claim.num_nodes not in (None, num_nodes):
        raise UsageError(
            f"{_TASKS_PER_NODE}={text} contradicts {SLURM.size}={claim.size} and "
            f"{SLURM.num_nodes}={claim.num_nodes}; start the step again"
        )
    if len({tasks for tasks, _ in runs}) > 1:
        raise _uneven(claim, f"{_TASKS_PER_NODE}={text}")
    # Cyclic distribution: the first task of each node could not detect it otherwise.
    here = env.get("SLURM_GTIDS", "")
    if re.fullmatch(r"\d+(,\d+)*", here):
        numbers = [int(word) for word in here.split(",")]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise _uneven(claim, f"SLURM_GTIDS={here}")
    return replace(claim, ranks_per_node=runs[0][0], num_nodes=num_nodes)


def _check_within_step(mpi: Claim, step: Claim) -> None:
    """Refuses an MPI launcher's variables that the step or its parent inherited.

    Slurm's PMI server repeats the step's values. An mpiexec has one task of its step on each node,
    which starts one rank or more; an mpirun may leave tasks idle.
    """
    is_servers = mpi.launcher is PMI and mpi.ranks_per_node is None
    has_idle = mpi.launcher is OPEN_MPI and step.ranks_per_node == 1
    if (mpi.size < step.size and not has_idle) or (is_servers and not mpi.is_of_same_rank(step)):
        raise UsageError(
            f"{mpi} contradicts {step}: one of them was inherited; start with one launcher, or "
            f"unset {mpi.launcher.rank} and {mpi.launcher.size} before srun"
        )


def _check_layout(claim: Claim, per_node: int) -> None:
    """Refuses nodes with different numbers of ranks, and ranks not numbered node by node."""
    if claim.num_nodes not in (None, claim.size // per_node) or claim.size % per_node:
        nodes = "" if claim.num_nodes is None else f" on {claim.num_nodes} nodes"
        raise _uneven(claim, f"{claim.size} ranks{nodes}, {per_node} on this one")
    node, local_rank = divmod(claim.rank, per_node)
    if claim.node not in (None, node) or claim.local_rank not in (None, local_rank):
        found = f"rank {claim.local_rank} of node {claim.node}".replace(" of node None", "")
        raise _uneven(claim, f"{per_node} ranks per node and this one {found} there")


def _uneven(claim: Claim, why: str) -> UsageError:
    return UsageError(
        f"{claim}: every node must run equally many ranks, numbered node by node, got {why}; start "
        f"with {claim.launcher.even}"
    )
