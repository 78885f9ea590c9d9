"""Jobs on a real Slurm of two nodes, which these tests start: packing, doctor, training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import packing
import pytest
from slurm_cluster import SlurmCluster, why_not

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "slurm"
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    reason = why_not()
    if reason:
        assert not os.environ.get("CI"), f"CI must not skip Slurm tests: {reason}"
        pytest.skip(reason)
    with SlurmCluster() as cluster:
        yield cluster


def submit(cluster: SlurmCluster, out: Path, *words: object, **environ: str) -> str:
    variables = {"PYTHONPATH": str(ROOT), **environ}
    return cluster.submit(f"--output={out}", *map(str, words), **variables)


def test_pack_over_mpi_ranks_of_two_nodes_gives_the_bytes_of_one_process(
    cluster: SlurmCluster, tiny_source: Path, packed: object, tmp_path: Path
) -> None:
    words = (SLURM / "pack.sh", tiny_source, tmp_path / "data", *packing.TINY_SHARDS)
    job = submit(cluster, tmp_path / "out", "--nodes=2", "--ntasks-per-node=2", *words)
    fields = cluster.wait(job)
    text = (tmp_path / "out").read_text()
    assert fields["JobState"] == "COMPLETED", text
    assert "2 nodes x 2 ranks" in text
    packing.assert_same(tmp_path / "data", packed(tiny_source, *packing.TINY_SHARDS))
    assert cluster.processes(job) == {}


DOCTOR = """#!/bin/bash
export PYTHONPATH={root}
python -m msdata doctor {data} --memory-gib 0.001 --mpi pmi2
echo "exit $?"
python -m msdata doctor {data} --memory-gib 0.001 --mpi pmix
echo "exit $?"
"""


def test_doctor_asks_both_nodes_and_tries_the_mpi_flavour(
    cluster: SlurmCluster, tiny_source: Path, packed: object, tmp_path: Path
) -> None:
    data = packed(tiny_source, *packing.TINY_SHARDS)
    (tmp_path / "job.sh").write_text(DOCTOR.format(root=ROOT, data=data))
    job = submit(cluster, tmp_path / "out", "--nodes=2", tmp_path / "job.sh")
    cluster.wait(job)
    good, pmix = (tmp_path / "out").read_text().split("exit 0")
    assert "WRONG" not in good, good
    assert "all nodes: " in good
    assert "--mpi=pmi2 joins 2 nodes" in good
    assert [line for line in good.splitlines() if line.startswith("good   clocks")]
    # Two nodes on one machine are more than pmix can do.
    (wrong,) = (line for line in pmix.splitlines() if line.startswith("WRONG"))
    assert "--mpi=pmix" in wrong
    assert "exit 1" in pmix
