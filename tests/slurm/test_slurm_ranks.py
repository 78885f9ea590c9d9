"""Which rank of how many a process is, in jobs of a real Slurm of two nodes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import packing
import pytest
from slurm_cluster import SlurmCluster

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3 * TIMEOUT_S)]
Packed = Callable[..., Path]
TELL = """
import sys
from msdata.errors import UsageError
from msdata.topology import from_env
name, text = sys.argv[1], ""
try:
    found = from_env()
    text = f"{found.rank}@{found.node}/{found.num_nodes}x{found.ranks_per_node}"
except UsageError as error:
    text = f"refused {error}"
# One write: lines of ranks that print at a time would mix.
sys.stdout.write(f"<{name}:{text}>\\n")
"""
# Name of the step -> (its command, what its ranks say: rank@node/nodes x ranks per node).
STEPS = {
    "batch": ("", {"0@0/1x1"}),
    "mpiexec": ("mpiexec -n 2", {"0@0/1x2", "1@0/1x2"}),
    "mpiexec-on-both": ("mpiexec -n 4 -ppn 2", {f"{r}@{r // 2}/2x2" for r in range(4)}),
    "one": ("srun -N1 -n1", {"0@0/1x1"}),
    "shell-of-salloc": ("srun -N1 -n1 --interactive", {"0@0/1x1"}),
    "even": ("srun -N2 -n4", {f"{r}@{r // 2}/2x2" for r in range(4)}),
    "pmi2": ("srun -N2 -n2 --mpi=pmi2", {"0@0/2x1", "1@1/2x1"}),
    "uneven": ("srun -N2 -n3", {"refused"}),
    "in-turn": ("srun -N2 -n4 --distribution=cyclic", {"refused"}),
    "uneven-mpiexec": ("mpiexec -n 3 -ppn 2", {"refused", "2@2/3x1"}),
    "torchrun": (
        "srun -N1 -n1 --mpi=pmi2 {python} -m torch.distributed.run --nproc-per-node=2",
        {"0@0/1x2", "1@0/1x2"},
    ),
}


@pytest.fixture(scope="module")
def said(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the ranks of each step said, all in a job of two nodes and four tasks on each."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "tell.py").write_text(TELL)
    lines = ["#!/bin/bash", f"export PYTHONPATH={ROOT} OMP_NUM_THREADS=1"]
    for name, (start, _) in STEPS.items():
        python = "" if "torch" in name else sys.executable
        start = start.format(python=sys.executable)
        lines.append(f"{start} {python} {folder}/tell.py {name}")
    (folder / "job.sh").write_text("\n".join(lines))
    text = run(cluster, folder, "--ntasks-per-node=4")
    return {name: re.findall(f"<{name}:(.*)>", text) for name in STEPS}


def run(cluster: SlurmCluster, folder: Path, *options: str) -> str:
    """A job of two nodes that runs the folder's job.sh; its output."""
    words = (f"--output={folder}/out", "--nodes=2", *options, f"{folder}/job.sh")
    cluster.wait(cluster.submit(*words), TIMEOUT_S)
    return (folder / "out").read_text()


@pytest.mark.parametrize("name", STEPS)
def test_ranks_of_a_step_know_their_place(name: str, said: dict[str, list[str]]) -> None:
    places = [text.partition(" ")[0] for text in said[name]]
    assert set(places) == STEPS[name][1], said
    if "refused" not in places:
        assert len(places) == len(STEPS[name][1])


def test_a_step_of_uneven_nodes_names_the_option_that_makes_it_even(
    said: dict[str, list[str]],
) -> None:
    assert len(said["uneven"]) == 3
    for text in said["uneven"]:
        assert "SLURM_STEP_TASKS_PER_NODE=2,1" in text
        assert "srun --ntasks-per-node=N" in text


LOAD = """
import json, sys
import msdata
split = msdata.open(sys.argv[1]).split("train")
with msdata.Loader(split, 8) as loader:
    ids = [str(sample_id) for batch in loader for sample_id in batch["sample_id"]]
sys.stdout.write(json.dumps([len(split), ids]) + "\\n")
"""


def test_under_mpiexec_in_a_job_ranks_pack_together_and_share_an_epoch(
    cluster: SlurmCluster, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    packs = packing.pack_command(tiny_source, tmp_path / "data", *packing.TINY_SHARDS, ranks=2)
    (tmp_path / "load.py").write_text(LOAD)
    loads = [str(packing.mpiexec()), "-n", "2", sys.executable, str(tmp_path / "load.py")]
    lines = ["#!/bin/bash", f"export PYTHONPATH={ROOT}", shlex.join(packs), 'echo "packed $?"']
    (tmp_path / "job.sh").write_text("\n".join([*lines, shlex.join([*loads, f"{tmp_path}/data"])]))
    text = run(cluster, tmp_path, "--ntasks-per-node=4")
    assert "packed 0" in text, text
    packing.assert_same(tmp_path / "data", packed(tiny_source, *packing.TINY_SHARDS))
    ranks = [json.loads(line) for line in text.splitlines() if line.startswith("[")]
    assert len(ranks) == 2, text
    (num_samples, first), (_, second) = ranks
    assert len(first) + len(second) == num_samples == len({*first, *second})
    assert abs(len(first) - len(second)) <= 8
