"""Judges nodes: pure functions from facts and job plans to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from msdata.cluster.facts import NodeFacts
from msdata.core.text import bytes_text

# The cache fills at most this share of what is free (`msdata.cache.budget`).
_MOST_OF_FREE = 0.95
_RANK_NBYTES = 1 << 30
# On a GPU: 1 GiB of page-locked buffers at 256 samples, 2 to 3 of CUDA's context and libraries.
_GPU_RANK_NBYTES = 4 << 30
_DALI_BACKENDS = ("auto", "dali")
# The segments of torch and NCCL need this much; containers often have 64 MiB.
_LEAST_SHM_NBYTES = 256 << 20
_LEAST_OPEN_FILES = 1024
_LEAST_STRIPES_PER_NODE = 4
_SHARED_BY_ONE_SERVER = ("nfs", "nfs4", "cifs")
_LUSTRE = "lustre"
# Ages of files and entries of logs are compared between nodes.
_MOST_SKEW_S = 1.0
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The resources that the job plans to use.

    Attributes:
        num_nodes: nodes of the job.
        ranks_per_node: ranks on every node.
        threads_per_rank: threads of each rank; None is an even share of the CPUs.
        cache_nbytes: memory of each node for the cache; None if unknown.
        num_shards: shards of the data set; None without a data set.
        backend: what makes the images on GPUs, as `mstrain` calls it in data.backend.
    """

    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int | None = None
    cache_nbytes: int | None = None
    num_shards: int | None = None
    backend: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        name: name of the check.
        is_good: whether the check passed.
        says: the facts that were found.
        cure: what to do; "" if the check passed.
        nodes: nodes that it concerns; empty if it concerns the whole job.
    """

    name: str
    is_good: bool
    says: str
    cure: str = ""
    nodes: tuple[str, ...] = ()


# What was found, and what to do; the latter is "" if the check passed.
Verdict = tuple[str, str]


def _cpus(facts: NodeFacts, plan: Plan) -> Verdict:
    threads = plan.threads_per_rank or 1
    wanted = plan.ranks_per_node * threads
    asked = counted(plan.ranks_per_node, "rank") + (f" of {threads} threads" if threads > 1 else "")
    if facts.cpus_of_job is not None and facts.cpus_allowed < facts.cpus_of_job:
        says = f"bound to {facts.cpus_allowed} of the {facts.cpus_of_job} CPUs that the job has"
        return says, "start the step with srun --cpu-bind=none, or with --cpus-per-task"
    if facts.cpu_quota is not None and facts.cpu_quota < wanted:
        says = f"a cgroup grants {facts.cpu_quota:g} CPUs' time for {asked}"
        return says, "ask for more CPUs, or run fewer ranks"
    says = f"{counted(facts.cpus_allowed, 'CPU')} for {asked}"
    if facts.cpus_allowed < wanted:
        cure = "ask for more CPUs (sbatch --cpus-per-task), or run fewer ranks or threads"
        return f"{says}: they would take turns", cure
    return says, ""


def _memory(facts: NodeFacts, plan: Plan) -> Verdict:
    says = f"{bytes_text(facts.memory_free_nbytes)} free"
    if plan.cache_nbytes is None:
        return says, ""
    ranks = plan.ranks_per_node * (_GPU_RANK_NBYTES if facts.has_gpus else _RANK_NBYTES)
    says += f", {bytes_text(plan.cache_nbytes)} of cache and {bytes_text(ranks)} of ranks planned"
    fits = plan.cache_nbytes + ranks <= _MOST_OF_FREE * facts.memory_free_nbytes
    return says, "" if fits else "plan a smaller cache, or ask for more memory (sbatch --mem)"


def _shm(facts: NodeFacts, plan: Plan) -> Verdict:
    free = f"/dev/shm has {bytes_text(facts.shm_free_nbytes)} free"
    mount = "have it mounted larger (a container: --shm-size)"
    if plan.cache_nbytes and plan.cache_nbytes > _MOST_OF_FREE * facts.shm_free_nbytes:
        cure = f"plan a smaller cache, or {mount}; msdata cache clean removes leftovers"
        return f"{free}, {bytes_text(plan.cache_nbytes)} of cache planned", cure
    if facts.shm_free_nbytes < _LEAST_SHM_NBYTES:
        return f"{free}, too little for torch and NCCL", mount
    return free, ""


def _open_files(facts: NodeFacts, plan: Plan) -> Verdict:
    says = f"{facts.open_files:,} files may be open"
    if facts.open_files >= _LEAST_OPEN_FILES:
        return says, ""
    if facts.open_files_most < _LEAST_OPEN_FILES:
        return says, "ask the administrators to raise the hard limit of open files"
    return says, f"ulimit -n {min(facts.open_files_most, 4 * _LEAST_OPEN_FILES)} before the job"


def _locked(facts: NodeFacts, plan: Plan) -> Verdict:
    is_unlimited = facts.locked_nbytes < 0
    says = f"{'all' if is_unlimited else bytes_text(facts.locked_nbytes)} of memory may be locked"
    if is_unlimited or not facts.has_infiniband:
        return says, ""
    return (
        f"{says}, and InfiniBand locks what it sends",
        "ulimit -l unlimited; Slurm's PropagateResourceLimitsExcept=MEMLOCK keeps a login "
        "node's limit off the job",
    )


def _files(facts: NodeFacts, plan: Plan) -> Verdict:
    if facts.file_system is None:
        return "does not see the data", "give a path that all nodes see"
    says = f"data on {facts.file_system}"
    if facts.file_system in _SHARED_BY_ONE_SERVER and plan.num_nodes > 1:
        cure = "move them to the parallel file system, or give the cache room for all of them"
        return f"{says}: one server for {plan.num_nodes} nodes", cure
    if facts.file_system != _LUSTRE:
        return says, ""
    if facts.stripe_count is None:
        return f"{says}, but lfs reports no stripe count", "put lfs into PATH"
    says += f", {facts.stripe_count} stripes per shard"
    num_shards, wanted = plan.num_shards or 1, _LEAST_STRIPES_PER_NODE * plan.num_nodes
    if facts.stripe_count <= 0 or num_shards * facts.stripe_count >= wanted:
        return says, ""
    return (
        f"{says} x {num_shards} shards for {plan.num_nodes} nodes: few servers work",
        f"lfs migrate -c {-(-wanted // num_shards)} on the shards, or pack with a smaller "
        "--shard-size",
    )


def _gpus(facts: NodeFacts, plan: Plan) -> Verdict:
    if not facts.has_gpus:
        return "none requested, none found", ""
    ranks = counted(plan.ranks_per_node, "rank")
    if facts.mig_seen and plan.num_nodes * plan.ranks_per_node > 1:
        return (
            f"{counted(facts.mig_seen, 'MIG instance')} for {ranks}: a process can use one, and "
            "NCCL joins none",
            "ask for whole GPUs, or train one rank on one instance (--nodes=1, RANKS_PER_NODE=1)",
        )
    wanted = facts.gpus_of_job if facts.gpus_of_job is not None else facts.gpus_seen
    says = f"{counted(wanted, 'GPU')} for {ranks}"
    if facts.gpus_of_torch is None:
        return f"{says}, but torch cannot be imported", "pip install 'msdata[train]'"
    if facts.gpus_of_torch < wanted:
        cure = "install a CUDA build of torch that the node's driver supports"
        if not facts.gpus_seen:
            cure = "run nvidia-smi on the node to see why"
        return f"{says}, of which torch can use {facts.gpus_of_torch}", cure
    if facts.gpus_of_torch < plan.ranks_per_node:
        return says, "run as many ranks as GPUs, or ask for more (--gpus-per-node)"
    if facts.nccl is None:
        return f"{says}, but torch has no NCCL", "install a CUDA build of torch"
    return f"{says}, NCCL {facts.nccl}", ""


def _augmentation(facts: NodeFacts, plan: Plan) -> Verdict:
    says = f"data.backend={plan.backend}"
    if not facts.gpus_of_torch:
        return f"{says}, without a GPU", ""
    if plan.backend not in _DALI_BACKENDS or facts.has_dali:
        return says, ""
    return (
        f"{says} takes DALI on a GPU, which cannot be imported",
        "pip install 'msdata[dali]' (CUDA 13: 'msdata[dali-cuda13]'), or train with "
        "data.backend=torch",
    )


_NODE_CHECKS: dict[str, Callable[[NodeFacts, Plan], Verdict]] = {
    "cpus": _cpus,
    "memory": _memory,
    "shm": _shm,
    "open files": _open_files,
    "locked memory": _locked,
    "files": _files,
    "gpus": _gpus,
    "augmentation": _augmentation,
}


def node_findings(nodes: Sequence[NodeFacts], plan: Plan, *, has_data: bool) -> list[Finding]:
    """Checks every node; nodes with the same fault share a finding, and so do all sound ones.

    Args:
        nodes: facts of all nodes.
        plan: plan of the job.
        has_data: whether a data set was named.
    """
    findings = []
    for name, check in _NODE_CHECKS.items():
        if name == "files" and not has_data:
            continue
        if name == "augmentation" and not any(facts.has_gpus for facts in nodes):
            continue
        # The node with the least memory represents all sound ones.
        same: dict[str, tuple[Verdict, list[str]]] = {}
        for facts in sorted(nodes, key=lambda f: f.memory_free_nbytes):
            verdict = check(facts, plan)
            key = "\n".join(verdict) if verdict[1] else ""
            same.setdefault(key, (verdict, []))[1].append(facts.node)
        findings += [
            _finding(name, says, cure, tuple(sorted(where)))
            for (says, cure), where in same.values()
        ]
    return findings


def _finding(name: str, says: str, cure: str = "", nodes: tuple[str, ...] = ()) -> Finding:
    return Finding(name=name, is_good=not cure, says=says, cure=cure, nodes=nodes)


def even_gpus_finding(nodes: Sequence[NodeFacts]) -> Finding:
    """Whether the job has equally many GPUs on all nodes: each runs equally many ranks."""
    where = _places((f.gpus_of_job or 0, f.node) for f in nodes)
    says = ", ".join(f"{counted(count, 'GPU')} on {names}" for count, names in where)
    cure = "ask for them per node (sbatch --gpus-per-node) instead of --gpus or --gpus-per-task"
    return _finding("even gpus", says, "" if len(where) == 1 else cure)


def version_finding(nodes: Sequence[NodeFacts]) -> Finding:
    """Whether all nodes have the same software."""
    differing = []
    for name in sorted({name for facts in nodes for name in facts.versions}):
        where = _places((facts.versions.get(name, "none"), facts.node) for facts in nodes)
        if len(where) > 1:
            differing.append(f"{name} is " + ", ".join(f"{v} on {names}" for v, names in where))
    if differing:
        cure = "use one environment, on a file system that all nodes see"
        return _finding("versions", "; ".join(differing), cure)
    return _finding("versions", ", ".join(" ".join(v) for v in nodes[0].versions.items()))


def _places(values: Iterable[tuple[_Value, str]]) -> list[tuple[_Value, str]]:
    """Each distinct value in order, with the nodes that have it, from (value, node)."""
    where: dict[Any, list[str]] = {}
    for value, node in values:
        where.setdefault(value, []).append(node)
    return [(value, names_text(sorted(where[value]))) for value in sorted(where)]


@dataclass(frozen=True, kw_only=True)
class ClockReading:
    """A node's clock against this one's.

    Attributes:
        node: name of the node.
        ahead_s: seconds by which it is ahead of this one.
        error_s: maximum error of `ahead_s`: half of the time that the answer took.
    """

    node: str
    ahead_s: float
    error_s: float


def clock_finding(readings: Sequence[ClockReading]) -> Finding:
    """Whether the nodes' clocks agree.

    Args:
        readings: the best reading of each node.
    """
    first = min(readings, key=lambda r: r.ahead_s)
    last = max(readings, key=lambda r: r.ahead_s)
    skew_s = last.ahead_s - first.ahead_s
    error_s = first.error_s + last.error_s
    if skew_s - error_s > _MOST_SKEW_S:
        says = f"{last.node} is {skew_s:.1f} s ahead of {first.node}"
        return _finding("clocks", says, "have the administrators look at chrony or ntpd on them")
    return _finding("clocks", f"within {skew_s + error_s:.2f} s")


def mpi_finding(flavor: str, known: Sequence[str], num_nodes: int, sizes: Sequence[int]) -> Finding:
    """Whether processes that srun starts with `--mpi=FLAVOR` find each other.

    Args:
        flavor: value of srun's --mpi.
        known: flavors that this Slurm supports.
        num_nodes: nodes on which a process was started.
        sizes: size of MPI's world as each process saw it; empty if they failed.
    """
    others = ", ".join(name for name in known if name not in (flavor, "none")) or "none"
    if known and flavor not in known:
        says, cure = f"this Slurm lacks --mpi={flavor}", f"it has: {others}"
    elif list(sizes) == [num_nodes] * num_nodes:
        says, cure = f"--mpi={flavor} joins {num_nodes} nodes", ""
    elif sizes:
        says = f"under --mpi={flavor} processes see {max(sizes)} of {num_nodes}"
        cure = f"mpi4py's library uses another one; try --mpi {others}"
    else:
        says = f"MPI does not start under --mpi={flavor}"
        cure = f"try another one ({others}), or pip install 'msdata[mpi]'"
    return _finding("mpi", says, cure)


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def names_text(names: Sequence[str]) -> str:
    """Names of nodes, the first few."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
