"""Rank arithmetic, and what each launcher's variables say."""

from __future__ import annotations

import os
import subprocess
import sys

import packing
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.errors import UsageError
from msdata.topology import Topology, check_agreement, from_env

# What Slurm 22.05 sets in a job of --nodes=2 --ntasks-per-node=4 and leaves set in all its steps.
JOB = {
    **{"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8"},
    **{"SLURM_NTASKS_PER_NODE": "4", "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_NNODES": "2"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0"},
}


def step(rank: int, tasks_per_node: str, **more: str) -> dict[str, str]:
    """The variables of a task of a step whose tasks are numbered node by node."""
    counts = [
        int(count)
        for part in tasks_per_node.split(",")
        for count in [part.partition("(")[0]] * int(part.partition("(x")[2].strip(")") or 1)
    ]
    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    node = next(n for n, end in enumerate(ends) if rank < end)
    first = ends[node] - counts[node]
    return {
        **JOB,
        **{"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": str(ends[-1])},
        **{"SLURM_STEP_NUM_NODES": str(len(counts)), "SLURM_STEP_TASKS_PER_NODE": tasks_per_node},
        **{"SLURM_PROCID": str(rank), "SLURM_NODEID": str(node)},
        "SLURM_LOCALID": str(rank - first),
        "SLURM_GTIDS": ",".join(map(str, range(first, ends[node]))),
        **more,
    }


TORCHRUN = {
    **{"WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"},
    **{"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"},
}
OPEN_MPI = {
    **{"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"},
    **{"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
}
HYDRA = {"PMI_SIZE": "8", "PMI_RANK": "5", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "1"}
PALS = {"PMI_SIZE": "8", "PMI_RANK": "5", "PMI_LOCAL_SIZE": "4", "PMI_LOCAL_RANK": "1"}
MVAPICH = {
    **{"MV2_COMM_WORLD_SIZE": "8", "MV2_COMM_WORLD_RANK": "5"},
    **{"MV2_COMM_WORLD_LOCAL_SIZE": "4", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
}
FLUX = {
    **{"FLUX_JOB_SIZE": "8", "FLUX_TASK_RANK": "5", "FLUX_TASK_LOCAL_ID": "1"},
    "FLUX_JOB_NNODES": "2",
}
PMI2 = {"PMI_SIZE": "8", "PMI_RANK": "5", "PMI_JOBID": "7.3"}
PMIX = {"PMIX_RANK": "5", "PMIX_NAMESPACE": "slurm.pmix.7.3"}
# As rank 5 of two nodes of four ranks.
STARTED = {
    "torchrun": TORCHRUN,
    "torchrun's four alone": {k: v for k, v in TORCHRUN.items() if "GROUP" not in k},
    "mpirun": OPEN_MPI,
    "mpirun of Open MPI 5": {**OPEN_MPI, "PMIX_RANK": "5", "PMIX_NAMESPACE": "prterun-n0-42@1"},
    "mpiexec": HYDRA,
    "mpirun_rsh": MVAPICH,
    "mpirun_rsh with PMI": {**MVAPICH, "PMI_SIZE": "8", "PMI_RANK": "5"},
    "flux run": FLUX,
    "mpiexec of PALS": PALS,
    "srun": step(5, "4(x2)"),
    "srun, nodes listed": step(5, "4,4"),
    "srun --mpi=pmi2": step(5, "4(x2)", **PMI2),
    "srun --mpi=pmix": step(5, "4(x2)", **PMIX),
    "srun without tasks per node": {
        k: v for k, v in step(5, "4(x2)").items() if k != "SLURM_STEP_TASKS_PER_NODE"
    },
    # One launcher inside the other: the proxies of mpiexec and the torchruns are the step's tasks.
    "mpiexec in a job": {**step(1, "1(x2)"), **HYDRA},
    "mpirun in a job": {**step(1, "1(x2)"), **OPEN_MPI},
    "mpirun on the batch script's node": {**JOB, **OPEN_MPI},
    "mpirun in a job of more nodes": {**step(1, "1(x16)"), **OPEN_MPI},
    "srun torchrun": {**step(1, "1(x2)"), **TORCHRUN},
    "srun --mpi=pmi2 torchrun": {**step(1, "1(x2)"), "PMI_SIZE": "2", "PMI_RANK": "1", **TORCHRUN},
    "variables of torchrun made of Slurm's": {**step(5, "4(x2)"), "RANK": "5", "WORLD_SIZE": "8"},
}
NO_TASK = {
    "no launcher": {},
    "half of torchrun's": {"WORLD_SIZE": "8"},
    "batch script": JOB,
    **{
        # Interactive, batch, external, pending; slurm.h.
        f"step {number}": step(0, "4(x2)", SLURM_STEP_ID=str(number))
        for number in (4294967290, 4294967291, 4294967292, 4294967293, 4294967294)
    },
    "srun -n 1 in a job of more": step(0, "1"),
    "mpiexec -n 1": {"PMI_SIZE": "1", "PMI_RANK": "0"},
}


@given(num_nodes=st.integers(1, 50), ranks_per_node=st.integers(1, 16), data=st.data())
def test_node_and_local_rank_give_the_rank_back(
    num_nodes: int, ranks_per_node: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, num_nodes * ranks_per_node - 1))
    topology = Topology(num_nodes=num_nodes, ranks_per_node=ranks_per_node, rank=rank)
    assert topology.node * ranks_per_node + topology.local_rank == rank
    assert 0 <= topology.node < num_nodes
    assert topology.num_ranks == num_nodes * ranks_per_node


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_nodes": 0}, "must be at least 1, got 0 and 1"),
        ({"ranks_per_node": 0}, "must be at least 1, got 1 and 0"),
        ({"rank": 1}, "rank must be 0 to 0, got 1"),
        ({"rank": -1}, "got -1"),
    ],
)
def test_an_impossible_topology_is_refused(fields: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Topology(**fields)


@pytest.mark.parametrize("how", STARTED)
def test_every_launcher_is_understood_alone_and_inside_another(how: str) -> None:
    found = from_env(STARTED[how])
    assert found == Topology(num_nodes=2, ranks_per_node=4, rank=5)
    assert (found.node, found.local_rank) == (1, 1)


@pytest.mark.parametrize("how", NO_TASK)
def test_what_no_launcher_started_as_one_of_several_is_a_single_rank(how: str) -> None:
    assert from_env(NO_TASK[how]) == Topology()


@given(num_nodes=st.integers(1, 40), per_node=st.integers(1, 16), data=st.data())
def test_ranks_of_an_even_step_are_where_slurm_says(
    num_nodes: int, per_node: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, num_nodes * per_node - 1))
    env = step(rank, f"{per_node}(x{num_nodes})" if num_nodes > 1 else str(per_node))
    found = from_env(env)
    assert (found.rank, found.num_ranks) == (rank, num_nodes * per_node)
    assert (str(found.node), str(found.local_rank)) == (env["SLURM_NODEID"], env["SLURM_LOCALID"])


@given(runs=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=2), data=st.data())
def test_every_task_of_an_uneven_step_is_refused(
    runs: list[tuple[int, int]], data: st.DataObject
) -> None:
    total = sum(tasks * count for tasks, count in runs)
    env = step(
        data.draw(st.integers(0, total - 1)),
        ",".join(f"{tasks}(x{count})" if count > 1 else str(tasks) for tasks, count in runs),
    )
    if len({tasks for tasks, _ in runs}) == 1:
        assert from_env(env).num_ranks == total
    else:
        with pytest.raises(UsageError, match=r"equally many ranks.*srun --ntasks-per-node=N"):
            from_env(env)


# Slurm's -m cyclic, two tasks on each of two nodes.
CYCLIC = [
    step(r, "2(x2)", SLURM_NODEID=str(r % 2), SLURM_LOCALID=str(r // 2), SLURM_GTIDS=g)
    for r, g in enumerate(("0,2", "1,3", "0,2", "1,3"))
]
REFUSED = {
    "uneven torchrun": (
        {"WORLD_SIZE": "6", "RANK": "0", "LOCAL_WORLD_SIZE": "4"},
        r"RANK=0 of WORLD_SIZE=6 \(torchrun\): .* 4 on this one; start with torchrun with the same",
    ),
    "a torchrun that divides on this node": (
        {**TORCHRUN, "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3", "GROUP_RANK": "2"},
        "8 ranks on 3 nodes, 2 on this one",
    ),
    "mpiexec that deals out in turn": (
        {"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"},
        "2 ranks per node and this one rank 0 there; start with mpiexec -ppn N",
    ),
    "mpirun --map-by node": ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, "rank 2 there"),
    **{f"cyclic {r}": (env, "SLURM_GTIDS=.*distribution=block") for r, env in enumerate(CYCLIC)},
    "unknown nodes": (
        {"WORLD_SIZE": "8", "RANK": "5"},
        "comes without LOCAL_WORLD_SIZE: how many ranks each node runs is unknown",
    ),
    "no number": ({"WORLD_SIZE": "6", "RANK": "x"}, "RANK must be a number, got 'x'"),
    "a rank beyond": ({"WORLD_SIZE": "6", "RANK": "6"}, "RANK must be below WORLD_SIZE"),
    "no ranks": ({**HYDRA, "MPI_LOCALNRANKS": "0"}, "0 ranks on this one"),
    "half a step": (
        {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
        "SLURM_STEP_ID=0 comes without SLURM_STEP_NUM_TASKS",
    ),
    "step that contradicts itself": (step(0, "4(x2)", SLURM_STEP_NUM_TASKS="7"), "contradicts"),
    "step of strange words": (step(0, "4", SLURM_STEP_TASKS_PER_NODE="4(x)"), "contradicts"),
    # `srun --mpi=pmi2 --pty bash` leaves its variables to the steps started in it, and so on.
    "srun inside a step of pmi2": (
        step(2, "4", PMI_SIZE="1", PMI_RANK="0"),
        r"PMI_RANK=0 of PMI_SIZE=1 \(mpiexec\) contradicts SLURM_PROCID=2 of .*=4 \(srun\)",
    ),
    "left-over RANK=0 of WORLD_SIZE=1 in a step": (
        step(5, "4(x2)", RANK="0", WORLD_SIZE="1"),
        "unset RANK and WORLD_SIZE",
    ),
    "srun -n 1 inside a step of pmi2": (step(0, "1", **PMI2), "contradicts"),
    "srun inside mpiexec": (
        step(2, "4", PMI_SIZE="1", PMI_RANK="0", MPI_LOCALNRANKS="1", MPI_LOCALRANKID="0"),
        "unset PMI_RANK and PMI_SIZE before srun",
    ),
    "srun inside mpirun": (
        {
            **step(2, "4"),
            **{"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
        "unset OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE before srun",
    ),
    "prterun": (
        {**step(0, "1(x2)"), "PMIX_RANK": "3", "PMIX_NAMESPACE": "prterun-n0-42@1"},
        "PMIX_RANK=3 comes without a number of ranks",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_contradicting_variables_and_uneven_nodes_are_refused(how: str) -> None:
    env, says = REFUSED[how]
    with pytest.raises(UsageError, match=says):
        from_env(env)


def test_ranks_that_see_different_nodes_are_told() -> None:
    even = [Topology(num_nodes=2, ranks_per_node=2, rank=r) for r in range(4)]
    check_agreement(even)
    # mpiexec on hosts of 2, 1 and 1 ranks: each rank's own variables make sense.
    uneven = [*even[:2], *(Topology(num_nodes=4, ranks_per_node=1, rank=r) for r in (2, 3))]
    with pytest.raises(
        UsageError, match=r"rank 0 sees 2 nodes x 2 ranks, rank 2 sees 4 nodes x 1 ranks"
    ):
        check_agreement(uneven)
    with pytest.raises(
        UsageError, match=r"rank 1 sees 2 nodes x 2 ranks and is told that it is rank 2"
    ):
        check_agreement([even[0], even[2], even[1], even[3]])


JOIN = """
import os, sys
from msdata.core.mpi import communicator
from msdata.topology import from_env
communicator(from_env())
for name in sys.argv[1:]:
    del os.environ[name]
from_env()
"""


@pytest.mark.mpi
@pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py")
@pytest.mark.parametrize(
    ("hosts", "words", "says"),
    [
        ("127.0.0.1:2,127.0.0.2:2", (), None),
        ("127.0.0.1:2,127.0.0.2:1,127.0.0.3:1", (), "rank 2 sees 4 nodes x 1 ranks"),
        # Variables that a container did not pass on.
        (
            "127.0.0.1:1,127.0.0.2:1",
            ("PMI_RANK", "PMI_SIZE"),
            "MPI has rank 1 of 2, the environment no",
        ),
    ],
)
def test_real_ranks_of_mpi_that_do_not_see_the_same_nodes_end_together(
    hosts: str, words: tuple[str, ...], says: str | None
) -> None:
    launcher = [str(packing.mpiexec()), "-launcher", "fork", "-hosts", hosts]
    count = str(sum(int(host[-1]) for host in hosts.split(",")))
    found = subprocess.run(
        [*launcher, "-n", count, sys.executable, "-c", JOIN, *words],
        env=packing.environment(),
        capture_output=True,
        text=True,
        timeout=packing.TIMEOUT_S,
    )
    assert (found.returncode == 0) == (says is None), found.stderr
    assert says is None or says in found.stderr


FAKE_GROUP = """
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
from msdata.topology import from_env
from_env()
"""


@pytest.mark.parametrize(("place", "code"), [({"RANK": "1", "WORLD_SIZE": "2"}, 0), ({}, 1)])
def test_a_group_of_torch_must_have_the_launchers_ranks(place: dict[str, str], code: int) -> None:
    pytest.importorskip("torch")
    local = {"LOCAL_WORLD_SIZE": "2"} if place else {}
    found = subprocess.run(
        [sys.executable, "-c", FAKE_GROUP],
        env=packing.environment(**place, **local),
        capture_output=True,
        text=True,
        timeout=packing.TIMEOUT_S,
    )
    assert found.returncode == code, found.stderr
    assert code == 0 or "torch.distributed has rank 1 of 2, the environment no" in found.stderr


class Running:
    """Stands for mpi4py.MPI, or torch.distributed, of a process that has started it."""

    COMM_WORLD: Running

    def __init__(self, rank: int, size: int) -> None:
        self.COMM_WORLD = self
        self.Get_rank = self.get_rank = lambda: rank
        self.Get_size = self.get_world_size = lambda: size
        self.Is_initialized = self.is_initialized = self.is_available = lambda: True
        self.Is_finalized = lambda: False


@pytest.mark.parametrize(
    ("module", "place", "env", "says"),
    [
        ("mpi4py.MPI", (5, 8), HYDRA, None),
        ("mpi4py.MPI", (0, 1), HYDRA, r"MPI has rank 0 of 1, .* PMI_RANK=5 of PMI_SIZE=8"),
        ("mpi4py.MPI", (4, 8), step(5, "4(x2)", **PMI2), "MPI has rank 4 of 8"),
        ("mpi4py.MPI", (2, 4), {}, "no launcher's variables, so rank 0 of 1: start all ranks"),
        # MPI's processes are alone where MPI's launcher did not start them.
        ("mpi4py.MPI", (0, 1), TORCHRUN, None),
        ("mpi4py.MPI", (0, 1), step(5, "4(x2)"), None),
        ("torch.distributed", (5, 8), TORCHRUN, None),
        ("torch.distributed", (0, 2), TORCHRUN, "torch.distributed has rank 0 of 2"),
        ("torch.distributed", (1, 2), JOB, r"give Loader\(topology=...\)"),
    ],
)
def test_what_runs_already_must_agree_with_the_environment(
    module: str,
    place: tuple[int, int],
    env: dict[str, str],
    says: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in os.environ if n.startswith(("SLURM", "PMI", "OMPI", "RANK", "WORLD"))]:
        monkeypatch.delenv(name)
    for name in ("torch.distributed", "mpi4py.MPI"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, module, Running(*place))  # type: ignore[arg-type]
    if says is None:
        assert from_env() == from_env(env)
    else:
        with pytest.raises(UsageError, match=says):
            from_env()
