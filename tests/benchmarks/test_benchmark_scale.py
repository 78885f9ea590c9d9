"""Scaling: what is measured is what was predicted, by the plan's code; the report is frank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest

import benchmarks.questions.scale
import msdata
import msdata.cli
from benchmarks.__main__ import main
from benchmarks.questions.nodes import Nodes, find_nodes
from benchmarks.questions.scale import ranks_of
from benchmarks.questions.scale_model import (
    LAST,
    POLICY,
    make_job,
    make_part,
    rates_here,
    strong,
    weak,
)
from benchmarks.questions.scale_shown import ratios_of, sentences_of, show
from msdata.errors import UsageError
from msdata.plan.machine import save_machine
from msdata.plan.timing import Machine
from msdata.topology import Topology

NODE = Topology(ranks_per_node=2)
needs_mpi = pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py")
RATES = {
    "memory_bytes_per_s": 8e9,
    "network_bytes_per_s": 2e9,
    "storage_bytes_per_s": 1e9,
    "storage_total_bytes_per_s": 3e9,
}


@pytest.fixture(scope="module")
def machine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("machine") / "machine.json"
    save_machine(path, {**RATES, "hosts": ["a", "b"]})
    return path


@pytest.fixture
def data(packed: Callable[..., Path], tiny_source: Path) -> Path:
    return packed(tiny_source, *packing.TINY_SHARDS, "--format", "tar")


@pytest.mark.parametrize("container", ["tar", "hdf5"])
def test_a_part_is_a_sound_data_set_of_the_first_shards(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path, container: str
) -> None:
    data = packed(tiny_source, *packing.TINY_SHARDS, "--format", container)
    whole = msdata.open(data).split("train")
    part = make_part(data, 2, tmp_path / "part")
    assert msdata.cli.main(["verify", str(part)]) == 0
    split = msdata.open(part).split("train")
    assert len(split) == whole.shard_sizes[:2].sum() < len(whole)
    for row in (0, len(split) - 1):
        assert split[row].keys() == whole[row].keys()
        assert split.sample_id(row) == whole.sample_id(row)
    with pytest.raises(UsageError, match=f"has {len(whole.shards)} shards, not 99"):
        make_part(data, 99, tmp_path / "part")


def test_nodes_that_share_a_machine_share_its_rates() -> None:
    fields = {**RATES, "samples_per_s": 100.0, "hosts": ["a", "a"]}
    assert rates_here(RATES, 1, None) == Machine(
        memory=8e9, network=2e9, storage=1e9, storage_total=3e9
    )
    # The probe's two ranks had 2 GB/s each of one machine, so four have 1 GB/s each.
    assert rates_here(fields, 4, 5e6) == Machine(memory=2e9, network=1e9, storage=5e6)


def test_what_lies_beyond_is_what_msdata_plan_prints(
    machine_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(
        *(NODE, np.full(300, 1000)),
        sample_nbytes=594_384,
        batch_per_rank=64,
        memory_nbytes=20 << 30,
    )
    found = strong(job, Machine(memory=8e9, network=2e9, storage=1e9, storage_total=3e9))
    numbers = ",".join(str(point["nodes"]) for point in found)
    words = "plan --assume-samples 300000 --assume-bytes 594384 --ranks-per-node 2 --memory-gib 20"
    options = ["--machine", str(machine_file), "--by-nodes", numbers, "--json"]
    options += ["--policy", POLICY, "--remainder", LAST, "--batch-per-rank", "64"]
    assert msdata.cli.main([*words.split(), *options]) == 0
    planned = json.loads(capsys.readouterr().out)["by_nodes"]
    assert len(planned) == len(found) > 5
    for point, row in zip(found, planned, strict=True):
        assert point["epoch_s"] == pytest.approx(row["time"]["epoch_s"])
        assert point["binds"] == row["time"]["binds"]
        assert point["shares"] == pytest.approx(row["shares"])


def test_weak_scaling_goes_to_1024_nodes_and_ends_where_the_storage_gives_no_more() -> None:
    job = make_job(
        *(NODE, np.full(1000, 1000)),
        sample_nbytes=594_384,
        batch_per_rank=64,
        memory_nbytes=20 << 30,
    )
    started_s = time.process_time()
    fixed = weak(job, Machine(memory=8e9, storage=1e9, storage_total=3e9))
    growing = weak(job, Machine(memory=8e9, storage=1e9))
    assert time.process_time() - started_s < 10
    assert [point["nodes"] for point in fixed] == [1 << k for k in range(11)]
    assert fixed[-1]["samples_per_s"] == pytest.approx(fixed[3]["samples_per_s"], rel=0.05)
    assert growing[-1]["samples_per_s"] > 900 * growing[0]["samples_per_s"]
    assert all(0.7 < 1 - point["shares"]["storage"] < 0.8 for point in growing)


def point(nodes: int, measured: float, predicted: float, **more: Any) -> dict[str, Any]:
    tiers = {"local": 70, "ssd": 0, "peer": 5, "storage": 25}
    return {
        "nodes": nodes,
        "num_samples": 100,
        "samples": 100,
        "seconds": [100 / measured] * 2,
        "first_s": 1.0,
        "samples_per_s": {"median": measured, "least": measured, "greatest": measured},
        "predicted_s": [100 / predicted] * 2,
        "predicted_samples_per_s": predicted,
        "error": predicted / measured - 1,
        "binds": "storage",
        "tiers": tiers,
        "predicted_tiers": tiers,
        "stayed": 0.0,
        **more,
    }


def result(**more: Any) -> dict[str, Any]:
    points = [point(1, 100, 104), point(2, 180, 200)]
    end = {"nodes": 1024, "epoch_s": 2.0, "samples_per_s": 50.0, "binds": "storage"}
    kinds = [f"{k}, {s} storage" for k in ("strong", "weak") for s in ("fixed", "growing")]
    shares = {"local": 1.0}
    return {
        "is_slurm": False,
        "nodes_per_machine": 2,
        "storage_bytes_per_s": 5e6,
        "ranks_per_node": 1,
        "batch_per_rank": 8,
        "memory_nbytes": 1 << 20,
        "machine": RATES,
        "points": {"strong": points, "weak": points},
        "beyond": {
            "num_samples": 1000,
            "sample_nbytes": 10,
            "memory_nbytes": 1 << 30,
            "has_network": False,
            "curves": {name: [end] for name in kinds},
            "replay": {"nodes": 1024, "replayed": shares, "expected": {"local": 0.9}},
        },
        **more,
    }


def test_the_report_says_what_the_nodes_were_and_how_well_they_were_predicted() -> None:
    text = "\n".join(sentences_of(result()))
    assert "NOT a cluster: up to 2 processes of one machine that stand for nodes" in text
    assert "+4.0% to +11.1%" in text
    assert "The goal of 15% is reached" in text
    assert "within 10.00 percentage points" in text
    assert "too few shards" in text
    bad = [point(1, 100, 130, tiers={"local": 1}), point(2, 180, 200, stayed=None)]
    text = "\n".join(sentences_of(result(points={"strong": bad, "weak": bad}, is_slurm=True)))
    assert "NOT a cluster: up to 2 nodes of a Slurm job that share one machine" in text
    assert "The goal of 15% is NOT reached" in text
    assert "Samples by tier are NOT those of the plan on 1 nodes" in text
    assert "may NOT have been cold" in text
    text = "\n".join(sentences_of(result(is_slurm=True, nodes_per_machine=1)))
    assert "each a machine of its own" in text
    assert len(show(result()).charts) == 2


def test_ratios_to_guard_are_those_of_measured_to_predicted_and_to_one_node() -> None:
    ratios = ratios_of(result())
    assert ratios["weak scaling, efficiency of 2 nodes"]["median"] == pytest.approx(0.9)
    name = "strong scaling, 2 nodes: measured over predicted rate"
    assert ratios[name]["median"] == pytest.approx(0.9)


def test_numbers_of_nodes_are_powers_of_two_and_all() -> None:
    assert Nodes(hosts=(), machines=("m",) * 6).numbers == [1, 2, 4, 6]
    nodes = Nodes(hosts=("a", "b", "c"), machines=("m", "m", "o"))
    assert [nodes.per_machine(n) for n in (1, 2, 3)] == [1, 2, 2]


def test_wrong_usage_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out"), "--quick"]
    assert main(["scale", *out, "--machine", "nowhere.json"]) == 2
    assert "nowhere.json does not exist" in capsys.readouterr().err
    assert main(["scale", *out, "--mock", "3"]) == 2
    assert "3 samples are too few for 2 nodes" in capsys.readouterr().err
    assert main(["loaders", *out, "--peers", "ours_tra"]) == 2
    assert "--peers must be among ours_tar" in capsys.readouterr().err
    with pytest.raises(UsageError, match="RANKS_PER_NODE must be an integer of at least 1, got x"):
        ranks_of({"RANKS_PER_NODE": "x"})


def arenas() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"msdata-*-bench{os.getpid()}-*")}


@needs_mpi
@pytest.mark.mpi
@pytest.mark.slow
def test_pretended_nodes_read_what_the_plan_says_at_the_rate_that_binds(
    data: Path, machine_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKS_PER_NODE", "2")
    words = ["--data", str(data), "--machine", str(machine_file), "--quick"]
    assert main(["scale", "--out", str(tmp_path), *words]) == 0
    found = json.loads((tmp_path / "raw" / "scale.json").read_text())
    assert found["ranks_per_node"] == 2
    for points in found["points"].values():
        assert [p["nodes"] for p in points] == [1, 2]
        assert all(p["tiers"] == p["predicted_tiers"] for p in points)
        assert all(p["binds"] == "storage" for p in points)
    # One node misses most and waits for its slowed storage alone, however busy the machine is.
    alone = found["points"]["strong"][0]
    assert 0.9 < np.median(alone["seconds"]) / np.mean(alone["predicted_s"]) < 3
    assert arenas() == set()
    assert not (tmp_path / "machine.json").exists()


@needs_mpi
@pytest.mark.mpi
@pytest.mark.slow
def test_real_nodes_are_measured_with_their_own_storage_cold_and_rates_probed_here(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        benchmarks.questions.scale, "find_nodes", lambda environ, _: find_nodes(environ, 1)
    )
    assert main(["scale", "--out", str(tmp_path), "--data", str(data), "--quick"]) == 0
    found = json.loads((tmp_path / "raw" / "scale.json").read_text())
    assert found["storage_bytes_per_s"] is None
    assert json.loads((tmp_path / "machine.json").read_text())["storage_bytes_per_s"] > 0
    (only,) = found["points"]["weak"]
    assert only["tiers"] == only["predicted_tiers"]
    assert only["stayed"] < 0.02


@needs_mpi
@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_benchmark_that_is_ended_leaves_no_service_behind(
    data: Path, machine_file: Path, tmp_path: Path, number: int
) -> None:
    words = ["scale", "--out", str(tmp_path), "--data", str(data), "--quick"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words, "--machine", str(machine_file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=packing.environment(),
    )
    logs = tmp_path / "work" / "logs"
    assert packing.wait_for(lambda: len(list(logs.rglob("*.pid"))) == 2, process)
    assert packing.wait_for(lambda: list(logs.rglob("ranks.log")), process)
    services = [int(path.read_text()) for path in logs.rglob("*.pid")]
    process.send_signal(number)
    process.wait(60)
    assert packing.wait_for(lambda: not any(is_running(pid) for pid in services))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
