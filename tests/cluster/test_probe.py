"""`msdata probe` measures what it says it measures, cleans up and saves a machine.json."""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from msdata.cluster import probe
from msdata.cluster.probe import measure_decoding, measure_network
from msdata.cluster.probe_command import add_arguments, render_fields, run
from msdata.errors import MissingPackageError, StorageError, UsageError
from msdata.plan.machine import load_machine, machine_from

SAMPLE_BYTES = 50_000
QUICK = f"--sample-bytes {SAMPLE_BYTES} --threads 1,2 --file-gib 0.01 --memory-gib 0.01"

MPI_SCRIPT = """
import argparse, sys
from mpi4py import MPI
from msdata.cluster.probe_command import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(run(parser.parse_args(), lambda: MPI.COMM_WORLD))
"""


def run_probe(options, get_comm=None):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(f"{QUICK} --seconds 0.1 {options}".split()), get_comm)


class ThreadComm:
    """Ranks that are threads: what the probe needs of a communicator."""

    def __init__(self, size):
        self.size, self.barrier = size, threading.Barrier(size)
        self.mail = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
        self.gathered = [None] * size

    def rank(self, number):
        return _Rank(self, number)


class _Rank:
    def __init__(self, world, number):
        self.world, self.number = world, number

    def Get_rank(self):  # noqa: N802
        return self.number

    def Get_size(self):  # noqa: N802
        return self.world.size

    def Barrier(self):  # noqa: N802
        self.world.barrier.wait(timeout=20)

    def Sendrecv(self, sendbuf, dest, *, recvbuf, source):  # noqa: N802
        self.world.mail[self.number, dest].put(sendbuf.copy())
        recvbuf[:] = self.world.mail[source, self.number].get(timeout=20)

    def allgather(self, sendobj):
        self.world.gathered[self.number] = sendobj
        self.Barrier()
        gathered = list(self.world.gathered)
        self.Barrier()
        return gathered


def on_all_ranks(size, work):
    """Run work(rank's communicator) on every rank; a rank's exception takes its result's place."""
    world, results = ThreadComm(size), [None] * size

    def one(number):
        try:
            results[number] = work(world.rank(number))
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=one, args=(n,)) for n in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def test_pages_of_a_file_are_dropped_and_counted(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        assert probe._cached_share(file.fileno()) == 1.0
    assert probe.drop_from_cache(path) <= 0.02
    path.write_bytes(b"")
    assert probe.drop_from_cache(path) == 0.0


def test_reads_of_a_directory_are_cold_and_its_file_is_gone_after(tmp_path):
    with probe.temporary_file(tmp_path, 4_000_000) as (path, write):
        assert path.stat().st_size == 4_000_000
        rates = probe.measure_file(path, SAMPLE_BYTES, (1, 3), budget_s=0.2)
    assert rates.is_cold
    assert set(rates.random) == {1, 3}
    assert min(write, rates.sequential, *rates.random.values()) > 0
    assert rates.best_random == max(rates.random.values())
    assert list(tmp_path.iterdir()) == []


def test_memory_is_not_taken_for_a_disk():
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs at /dev/shm on this system")
    with probe.temporary_file(Path("/dev/shm"), 2_000_000) as (path, _):
        rates = probe.measure_file(path, SAMPLE_BYTES, (1,), budget_s=0.1)
    assert rates.cached_share == 1.0
    assert not rates.is_cold


def test_the_temporary_file_is_gone_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), probe.temporary_file(tmp_path, 1000):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    nowhere = probe.temporary_file(tmp_path / "nowhere", 1000)
    with pytest.raises(StorageError, match="probe another place"), nowhere:
        pass


def test_an_existing_file_is_read_and_left_as_it_is(tmp_path):
    path = tmp_path / "shard.tar"
    content = np.random.default_rng(0).bytes(1_000_000)
    path.write_bytes(content)
    assert run_probe(f"--storage {path} --out {tmp_path / 'machine.json'}") == 0
    assert path.read_bytes() == content
    assert load_machine(tmp_path / "machine.json")["storage"]["write"] is None


def test_copies_of_samples_are_timed_over_all_threads():
    one = probe.measure_memory_copy(
        SAMPLE_BYTES, num_threads=1, buffer_bytes=20_000_000, budget_s=0.1
    )
    two = probe.measure_memory_copy(
        SAMPLE_BYTES, num_threads=2, buffer_bytes=20_000_000, budget_s=0.1
    )
    assert one > 1e8
    assert two > 1e8


@pytest.mark.parametrize("compress", ["none", "lz4", "zstd"])
def test_decoding_is_timed_over_all_threads(compress):
    for threads in (1, 2):
        rate = measure_decoding(SAMPLE_BYTES, num_threads=threads, budget_s=0.05, compress=compress)
        # One sample takes well below a second, and no core decodes a terabyte per second.
        assert SAMPLE_BYTES < rate < 1e12


def test_without_the_package_that_decompresses_the_probe_says_so(tmp_path, capsys, monkeypatch):
    def lacks(*arguments, **options):
        raise MissingPackageError("compressed arrays need numcodecs")

    monkeypatch.setattr("msdata.cluster.probe_command.measure_decoding", lacks)
    assert run_probe(f"--out {tmp_path / 'machine.json'}") == 0
    assert "decode: not measured: compressed arrays need numcodecs" in capsys.readouterr().out
    machine = machine_from(load_machine(tmp_path / "machine.json"))
    assert (machine.decode, machine.cores) == (None, None)


def test_the_saved_rates_are_those_that_plan_reckons_with(tmp_path, capsys):
    out = tmp_path / "machine.json"
    options = f"--storage {tmp_path} --ssd-dir {tmp_path} --out {out}"
    assert run_probe(f"{options} --json") == 0
    printed = json.loads(capsys.readouterr().out)
    saved = load_machine(out)
    assert saved == {"format": 1, **printed}
    machine = machine_from(saved)
    assert machine.storage == max(saved["storage"]["random"].values())
    assert machine.memory == max(saved["memory_by_threads"].values())
    assert machine.ssd is not None
    assert machine.decode == saved["decode_by_threads"]["2"] / 2
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.network is None
    assert [p.name for p in tmp_path.iterdir()] == ["machine.json"]


def test_the_table_says_whether_reads_were_cold(tmp_path, capsys):
    out = tmp_path / "machine.json"
    assert run_probe(f"--storage {tmp_path} --out {out}") == 0
    captured = capsys.readouterr()
    assert "cold: at most" in captured.out
    assert "storage: cold reads of" in captured.err
    fields = load_machine(out)
    fields["storage"] |= {"is_cold": False, "cached_share": 1.0}
    assert "NOT COLD: 100%" in render_fields(fields, out)
    fields["storage"] |= {"is_cold": None, "cached_share": None}
    assert "cold or not: unknown" in render_fields(fields, out)


def test_every_rank_learns_the_rate_of_the_slowest():
    rates = on_all_ranks(3, lambda comm: measure_network(comm, 1000, num_messages=5))
    assert len(set(rates)) == 1
    assert rates[0] > 0
    with pytest.raises(UsageError, match="at least two ranks"):
        measure_network(ThreadComm(1).rank(0), 1000)


def test_all_nodes_measure_storage_together_and_the_first_saves(tmp_path, capsys):
    out = tmp_path / "machine.json"
    options = f"--network --storage {tmp_path} --out {out}"
    assert on_all_ranks(2, lambda comm: run_probe(options, lambda: comm)) == [0, 0]
    saved = load_machine(out)
    assert saved["storage_total_bytes_per_s"] > 0
    assert saved["network_bytes_per_s"] > 0
    assert "ranks shared a host" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["machine.json"]


def test_a_fault_on_one_rank_ends_all_of_them(tmp_path):
    options = f"--network --storage {tmp_path / 'nowhere'} --out {tmp_path / 'machine.json'}"
    faults = on_all_ranks(2, lambda comm: run_probe(options, lambda: comm))
    assert all(isinstance(f, StorageError) and "rank 0" in str(f) for f in faults)
    assert not (tmp_path / "machine.json").exists()


@pytest.mark.mpi
def test_the_network_is_measured_under_mpiexec(tmp_path):
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [str(mpiexec) if mpiexec.exists() else shutil.which("mpiexec") or "mpiexec"]
    command += ["-n", "2", sys.executable, "-c", MPI_SCRIPT, *QUICK.split()]
    command += ["--seconds", "0.1", "--network", "--storage", str(tmp_path)]
    command += ["--out", str(tmp_path / "machine.json")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    assert load_machine(tmp_path / "machine.json")["network_bytes_per_s"] > 0
    assert "network, received" in finished.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--threads 1,x", "'1,x' must be numbers"),
        ("--threads 0", "'0' must be numbers"),
        ("--seconds 0", "above 0"),
        ("--network", "--network needs at least two nodes"),
        ("--storage /nowhere", "neither a directory nor a file"),
    ],
)
def test_invalid_options_are_refused(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run_probe(f"{options} --out {tmp_path / 'machine.json'}")


def test_a_file_smaller_than_a_sample_is_refused(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match="1 bytes, less than a sample"):
        probe.measure_file(path, 10, (1,))
    with pytest.raises(StorageError, match="cannot read"):
        probe.measure_file(tmp_path / "nowhere", 10, (1,))
    with pytest.raises(UsageError, match="numbers of threads must not be empty"):
        probe.measure_file(path, 1, (), budget_s=0.1)
