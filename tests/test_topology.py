"""Rank arithmetic, and what each launcher's variables say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.errors import UsageError
from msdata.topology import Topology, from_env

LAUNCHERS = {
    "torchrun": {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4"},
    "srun": {
        **{"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_NTASKS_PER_NODE": "4"},
        "SLURM_STEP_ID": "0",
    },
    "srun without tasks per node": {
        **{"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_NUM_NODES": "2"},
        "SLURM_STEP_ID": "0",
    },
    "Open MPI": {
        **{"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"},
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
    "MPICH": {"PMI_SIZE": "8", "PMI_RANK": "5", "MPI_LOCALNRANKS": "4"},
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
        ({"num_nodes": 0}, "at least one node"),
        ({"ranks_per_node": 0}, "at least one node"),
        ({"rank": 1}, "rank 1 is not one of the 1 ranks"),
        ({"rank": -1}, "rank -1"),
    ],
)
def test_an_impossible_topology_is_refused(fields: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Topology(**fields)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_is_understood(launcher: str) -> None:
    found = from_env(LAUNCHERS[launcher])
    assert found == Topology(num_nodes=2, ranks_per_node=4, rank=5)
    assert (found.node, found.local_rank) == (1, 1)


def test_without_a_launcher_there_is_one_rank() -> None:
    assert from_env({}) == Topology()
    assert from_env({"WORLD_SIZE": "8"}) == Topology()


def test_an_interactive_allocation_is_no_task() -> None:
    assert from_env({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == Topology()


def test_contradicting_variables_are_named() -> None:
    with pytest.raises(UsageError, match=r"WORLD_SIZE=6 ranks do not divide into nodes of 4"):
        from_env({"WORLD_SIZE": "6", "RANK": "0", "LOCAL_WORLD_SIZE": "4"})
    with pytest.raises(UsageError, match="RANK='x' is not a number"):
        from_env({"WORLD_SIZE": "6", "RANK": "x"})
