"""Jobs on a real Slurm of two nodes, which these tests start: packing, doctor, training."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
import training
from slurm_cluster import SlurmCluster, wait_until

from mstrain.training.checkpoint import find_last, read_checkpoint
from mstrain.training.metrics_log import read_journal

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "slurm"
# Jobs take a quarter of a minute each on a quiet machine; CI's may be slow.
TIMEOUT_S = 300
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]
NUM_EPOCHS = 3
STEPS_PER_EPOCH = 4
# Two nodes of two ranks each.
RANKS = ("--nodes=2", "--ntasks-per-node=2")
Packed = Callable[..., Path]


def submit(cluster: SlurmCluster, out: Path, *words: object, **environ: str) -> str:
    variables = {"PYTHONPATH": str(ROOT), **environ}
    return cluster.submit(f"--output={out}", *map(str, words), **variables)


def test_pack_over_mpi_ranks_of_two_nodes_gives_the_bytes_of_one_process(
    cluster: SlurmCluster, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    catalog = ("--catalog", tiny_source / "catalog.csv")
    words = (SLURM / "pack.sh", tiny_source, tmp_path / "data", *catalog, *packing.TINY_SHARDS)
    job = submit(cluster, tmp_path / "out", "--nodes=2", "--ntasks-per-node=2", *words)
    fields = cluster.wait(job, TIMEOUT_S)
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


def test_doctor_asks_both_nodes_and_tries_the_mpi_flavor(
    cluster: SlurmCluster, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    data = packed(tiny_source, *packing.TINY_SHARDS)
    (tmp_path / "job.sh").write_text(DOCTOR.format(root=ROOT, data=data))
    job = submit(cluster, tmp_path / "out", "--nodes=2", tmp_path / "job.sh")
    cluster.wait(job, TIMEOUT_S)
    good, pmix = (tmp_path / "out").read_text().split("exit 0")
    assert "WRONG" not in good, good
    assert "all nodes: " in good
    assert "--mpi=pmi2 joins 2 nodes" in good
    assert [line for line in good.splitlines() if line.startswith("good   clocks")]
    # Two nodes on one machine are more than pmix can do.
    (wrong,) = (line for line in pmix.splitlines() if line.startswith("WRONG"))
    assert "--mpi=pmix" in wrong
    assert "exit 1" in pmix


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, packed: Packed) -> Path:
    """Some 40 galaxies to train on, in several shards."""
    source = training.make_source(tmp_path_factory.mktemp("galaxies"))
    options = ("--split", "0.8,0.1,0.1", "--max-nan-fraction", "1", "--shard-size", "4MiB")
    return packed(source, *options)


def gib_of(data: Path, share: float) -> str:
    """Memory of each of two nodes that together hold a share of the split."""
    nbytes = sum(path.stat().st_size for path in (data / "train").glob("*.tar"))
    return str(share * nbytes / 2 / (1 << 30))


def train(
    cluster: SlurmCluster, data: Path, run: Path, *options: str, **environ: str
) -> tuple[str, Path]:
    """Submits a training; its job and its output."""
    settings = {**training.SETTINGS, "epochs": NUM_EPOCHS, "checkpoint.every_steps": 1}
    words = [f"{name}={value}" for name, value in settings.items()]
    out = run.with_suffix(".out")
    variables = {"CACHE_WARMUP": "blocking", "STOP_GRACE_S": "25", "EVALUATE": "none", **environ}
    batch = (*(options or RANKS), SLURM / "train_ddp.sh", "demo", data, run, *words)
    return submit(cluster, out, *batch, **variables), out


def ended(cluster: SlurmCluster, job: str, run: Path, out: Path) -> dict[str, str]:
    """Waits for the end; nothing may be left of the job."""
    fields = cluster.wait(job, TIMEOUT_S)
    assert cluster.processes(job) == {}
    assert [p.name for p in Path("/dev/shm").glob(f"msdata-*-{job}-*")] == [], said(run, out)
    assert list(Path("/tmp").glob(f"msdata-{job}-*")) == []
    assert list(run.glob(".job-*")) == []
    return fields


def said(run: Path, out: Path) -> str:
    """All that a job wrote, for messages of failed tests."""
    texts = [out, *sorted(run.glob("logs/*/*.log"))]
    return "\n".join(f"== {p}\n{p.read_text()[-3000:]}" for p in texts if p.exists())


def steps_of(run: Path) -> list[int]:
    """Numbers of the steps that were made, in order; none before the first."""
    path = run / "metrics.jsonl"
    lines = read_journal(run) if path.exists() else []
    return [line["step"] for line in lines if line["kind"] == "step"]


def epochs_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_journal(run) if line["kind"] == "epoch"]


def wait_for_step(run: Path, step: int, out: Path) -> None:
    try:
        wait_until(f"step {step}", lambda: max(steps_of(run), default=0) >= step, TIMEOUT_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{said(run, out)}") from None


def weights_of(run: Path) -> dict[str, np.ndarray]:
    path = find_last(run)
    assert path is not None
    model = read_checkpoint(path)["model"]
    return {name: t.numpy() for name, t in model.items() if torch.is_floating_point(t)}


def assert_same_weights(run: Path, undisturbed: Path) -> None:
    found, wanted = weights_of(run), weights_of(undisturbed)
    assert found.keys() == wanted.keys()
    # Another cache deals other samples to a rank: the same sums in another order.
    np.testing.assert_allclose(training.losses(run), training.losses(undisturbed), rtol=1e-4)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(
    cluster: SlurmCluster, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two nodes whose memory holds half of the data."""
    run = tmp_path_factory.mktemp("jobs") / "undisturbed"
    job, out = train(cluster, data, run, CACHE_GIB=gib_of(data, 0.6), EVALUATE="test")
    fields = ended(cluster, job, run, out)
    assert fields["JobState"] == "COMPLETED", said(run, out)
    return run


def test_training_on_two_nodes_beside_the_cache_leaves_checkpoints_metrics_and_report(
    undisturbed: Path,
) -> None:
    assert steps_of(undisturbed) == list(range(1, NUM_EPOCHS * STEPS_PER_EPOCH + 1))
    assert (undisturbed / "checkpoints" / "best.pt").exists()
    assert weights_of(undisturbed)
    (logs,) = (undisturbed / "logs").iterdir()
    assert {p.name for p in logs.iterdir()} == {
        f"{node}.{kind}.log" for node in ("n0", "n1") for kind in ("serve", "train", "evaluate")
    } | {"doctor.txt"}
    assert "<html" in (undisturbed / "report.html").read_text()


def test_hits_of_the_cache_are_those_of_the_forecast(undisturbed: Path) -> None:
    epochs = epochs_of(undisturbed)
    assert len(epochs) == NUM_EPOCHS
    for line in epochs[1:]:
        assert line["hits"] == line["forecast_hits"]
        assert 0.3 < line["hit_rate"] < 0.9


def test_a_killed_rank_is_started_again_at_its_step_and_reads_nothing_twice(
    cluster: SlurmCluster, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    job, out = train(cluster, data, run, CACHE_GIB=gib_of(data, 1.6))
    wait_for_step(run, 3, out)
    before = steps_of(run)
    ranks = [pid for pid, words in cluster.processes(job).items() if is_rank(words)]
    assert len(ranks) == 4
    os.kill(ranks[-1], 9)
    fields = ended(cluster, job, run, out)
    assert fields["JobState"] == "COMPLETED", said(run, out)
    assert fields["Restarts"] == "0"
    assert steps_of(run) == list(range(1, NUM_EPOCHS * STEPS_PER_EPOCH + 1))
    assert len(before) < NUM_EPOCHS * STEPS_PER_EPOCH, "it was killed too late to be of use"
    assert sum("resuming after step" in p.read_text() for p in run.glob("logs/*/*.train.log")) == 1
    # The nodes' services kept what had been read.
    assert [line["hits"]["storage"] for line in epochs_of(run)[-2:]] == [0, 0]
    assert_same_weights(run, undisturbed)


def is_rank(words: str) -> bool:
    return "-m mstrain.train" in words and "rank.sh" not in words and "node.sh" not in words


def test_a_job_that_is_told_its_end_is_near_saves_and_is_requeued(
    cluster: SlurmCluster, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "requeued"
    # Pretended GPUs, which both steps have to share; asked for per task, of which steps have one.
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", "--cpus-per-task=1")
    environ = {"CACHE_GIB": gib_of(data, 0.6), "CACHE_TRANSPORT": "zmq"}
    job, out = train(cluster, data, run, *options, **environ)
    wait_for_step(run, 3, out)
    # What Slurm itself does for --signal=B:USR1@180.
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    fields = ended(cluster, job, run, out)
    assert fields["JobState"] == "COMPLETED", said(run, out)
    assert fields["Restarts"] == "1", said(run, out)
    assert "saved; requeued" in out.read_text()
    assert steps_of(run) == list(range(1, NUM_EPOCHS * STEPS_PER_EPOCH + 1))
    assert_same_weights(run, undisturbed)


def shared_memory_of(cluster: SlurmCluster, job: str) -> set[str]:
    """Files in shared memory that a job has mapped; others may work on this machine too."""
    names = set()
    for pid in cluster.processes(job):
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            names |= set(re.findall(r"/dev/shm/\S+", maps))
    return names


def test_scancel_leaves_no_process_no_shared_memory_and_nothing_half_written(
    cluster: SlurmCluster, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "cancelled"
    job, out = train(cluster, data, run, CACHE_GIB=gib_of(data, 0.6))
    wait_for_step(run, 2, out)
    shared = shared_memory_of(cluster, job)
    assert any(f"-{job}-" in name for name in shared)
    assert any(ours in name for name in shared for ours in ("mpich_sh", "ucx_shm"))
    cluster.run("scancel", job)
    fields = ended(cluster, job, run, out)
    assert fields["JobState"] == "CANCELLED", said(run, out)
    assert [name for name in shared if Path(name).exists()] == []
    files = {p.name for p in (run / "checkpoints").iterdir()}
    assert all(n in ("last", "best.pt") or n.startswith("step-") for n in files), files
    last = find_last(run)
    assert last is not None
    # Whole, and of the step at which the ranks were told to end.
    assert read_checkpoint(last)["model"]
    assert last.name == f"step-{max(steps_of(run)):08d}.pt"


def test_without_services_each_node_goes_by_its_own_memory_and_the_run_is_made(
    cluster: SlurmCluster, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "alone"
    # Two nodes on one machine are more than pmix can do.
    environ = {"CACHE_TRANSPORT": "pmix", "CACHE_WAIT_S": "5", "STOP_GRACE_S": "5"}
    job, out = train(cluster, data, run, CACHE_GIB=gib_of(data, 1.6), DOCTOR="off", **environ)
    fields = ended(cluster, job, run, out)
    assert fields["JobState"] == "COMPLETED", said(run, out)
    assert "no cache between nodes" in out.read_text()
    last = epochs_of(run)[-1]
    assert last["hits"] == last["forecast_hits"]
    assert last["hits"]["local"] > last["hits"]["storage"] > 0


def test_scripts_data_run_and_scratch_may_have_any_name(
    cluster: SlurmCluster, tiny_source: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a b&c {scratch} \\1 'q' \"d\" 100%j $HOME"
    shutil.copytree(SLURM, folder / "slurm")
    shutil.copytree(data, folder / "data")
    (folder / "scratch").mkdir()
    words = (folder / "slurm" / "pack.sh", tiny_source, folder / "packed", *packing.TINY_SHARDS)
    catalog = ("--catalog", tiny_source / "catalog.csv")
    job = submit(cluster, tmp_path / "out", "--nodes=2", *words, *catalog)
    assert cluster.wait(job, TIMEOUT_S)["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    run, out = folder / "run", tmp_path / "train"
    settings = [f"{name}={value}" for name, value in {**training.SETTINGS, "epochs": 1}.items()]
    batch = (*RANKS, folder / "slurm" / "train_ddp.sh", "demo", folder / "data", run, *settings)
    environ = {"CACHE_GIB": gib_of(data, 0.3), "CACHE_SSD_GIB": "1", "CACHE_TRANSPORT": "zmq"}
    environ |= {"SCRATCH_DIR": str(folder / "scratch"), "EVALUATE": "none", "DOCTOR": "strict"}
    job = submit(cluster, out, *batch, **environ)
    fields = ended(cluster, job, run, out)
    assert fields["JobState"] == "COMPLETED", said(run, out)
    assert steps_of(run) == list(range(1, STEPS_PER_EPOCH + 1))
    assert list((folder / "scratch").iterdir()) == []
    made = {"slurm", "data", "packed", "run", "scratch"}
    assert {path.name for path in folder.iterdir()} == made


def test_wrong_settings_are_refused_before_anything_is_started(
    cluster: SlurmCluster, data: Path, tmp_path: Path
) -> None:
    batch = (*RANKS, SLURM / "train_ddp.sh", "demo", data, tmp_path / "run", "epoch=3")
    job = submit(cluster, tmp_path / "out", *batch)
    fields = cluster.wait(job, TIMEOUT_S)
    assert fields["ExitCode"] == "2:0"
    text = (tmp_path / "out").read_text()
    assert "unknown setting 'epoch'; did you mean epochs?" in text
    assert not list((tmp_path / "run").glob(".job-*"))


def test_a_node_with_fewer_gpus_than_ranks_is_refused_before_anything_is_started(
    cluster: SlurmCluster, data: Path, tmp_path: Path
) -> None:
    # Slurm deals three GPUs as two and one.
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus=3")
    batch = (*options, SLURM / "train_ddp.sh", "demo", data, tmp_path / "run")
    job = submit(cluster, tmp_path / "out", *batch, RANKS_PER_NODE="2")
    fields = cluster.wait(job, TIMEOUT_S)
    text = (tmp_path / "out").read_text()
    assert fields["ExitCode"] == "2:0", text
    assert "a node has 1 GPU(s) for 2 ranks; ask for them per node" in text
    assert not (tmp_path / "run" / "logs").exists()
