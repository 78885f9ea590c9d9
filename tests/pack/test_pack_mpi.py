"""A pack over MPI ranks: the same bytes for any number of them; none waits for a dead one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import packing
import pytest

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py"),
]
Packed = Callable[..., Path]
TINY = packing.TINY_SHARDS
FORMATS = {
    "tar": TINY,
    "hdf5": ("--format", "hdf5", *TINY),
    "chunked": ("--format", "hdf5", "--chunked", *TINY),
    "coded": ("--format", "hdf5", "--quantize", "4", "--compress", "lz4", *TINY),
}


def _sentences(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("msdata pack:")]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_the_same_bytes(
    ranks: int, flawed_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = FORMATS[("tar", "chunked", "hdf5", "coded")[ranks - 1]]
    process = packing.pack(flawed_source, out, *options, ranks=ranks)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("packed") == 1
    packing.assert_same(out, packed(flawed_source, *options))


def test_ranks_killed_at_some_moments_are_resumed_by_ranks_or_workers(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.05")
    expected = packed(tiny_source, *TINY)
    for delay_s in (0.6, 1.2):
        shutil.rmtree(out, ignore_errors=True)
        process = packing.start(packing.pack_command(tiny_source, out, *TINY, ranks=2), env)
        time.sleep(delay_s)
        ranks = packing.msdata_processes(out)
        packing.kill_group(process)
        # Hydra starts the ranks in sessions of their own; they end when their launcher is gone,
        # or here, as when a node is switched off.
        for pid in ranks:
            packing.kill(pid)
        process.communicate()
        options = ("--jobs", "2") if delay_s == 1.2 else ()
        resumed = packing.pack(
            tiny_source, out, *TINY, *options, "--resume", ranks=0 if options else 3
        )
        assert resumed.returncode == 0, resumed.stderr
        packing.assert_same(out, expected)


def test_when_one_rank_is_killed_the_others_end_and_resume_completes(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.05")
    process = packing.start(packing.pack_command(tiny_source, out, *TINY, ranks=3), env)
    assert packing.wait_for(lambda: list(out.glob(".pack/shard-*.parquet")), process)
    os.kill(packing.msdata_processes(out)[-1], signal.SIGKILL)
    process.communicate(timeout=packing.TIMEOUT_S)
    assert process.returncode != 0
    assert packing.wait_for(lambda: not packing.msdata_processes(out))
    resumed = packing.pack(tiny_source, out, *TINY, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    packing.assert_same(out, packed(tiny_source, *TINY))


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--id-column", "nmae"), 2, "no column 'nmae'"),
        (("--split", "1,1,1"), 2, "add up to 1"),
        (("--max-rejected", "3"), 1, "more than --max-rejected 3"),
        (("--max-rejected", "10"), 1, "more than --max-rejected 10"),
        (("--jobs", "4"), 2, "the ranks are the processes"),
    ],
)
def test_ranks_fail_together_and_one_of_them_says_why(
    options: tuple[str, ...], code: int, says: str, flawed_source: Path, tmp_path: Path
) -> None:
    process = packing.pack(flawed_source, tmp_path / "out", *TINY, *options, ranks=3)
    assert process.returncode == code, process.stderr
    sentences = set(_sentences(process.stderr))
    assert len(sentences) == 1, process.stderr
    assert says in sentences.pop()
    assert "Traceback" not in process.stderr


def test_too_many_rejected_are_listed_and_a_higher_limit_resumes(
    flawed_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert packing.pack(flawed_source, out, *TINY, "--max-rejected", "9", ranks=2).returncode == 1
    assert len((out / "rejected.csv").read_text().splitlines()) > 10
    options = (*TINY, "--max-rejected", "24", "--resume")
    resumed = packing.pack(flawed_source, out, *options, ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    packing.assert_same(out, packed(flawed_source, *TINY))


def test_a_full_disk_on_every_rank_is_one_sentence(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_AT="parent:pwritev:3:ENOSPC")
    process = packing.pack(tiny_source, out, *TINY, ranks=3, env=env)
    assert process.returncode == 1, process.stderr
    sentences = _sentences(process.stderr)
    assert len(sentences) == 1, process.stderr
    assert "the disk is full" in sentences[0]
    resumed = packing.pack(tiny_source, out, *TINY, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    packing.assert_same(out, packed(tiny_source, *TINY))


def test_a_second_run_keeps_off_and_says_so_once(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.5")
    first = packing.start(packing.pack_command(tiny_source, out, *TINY, ranks=2), env)
    assert packing.wait_for(lambda: (out / ".pack" / "plan.json").exists(), first)
    second = packing.pack(tiny_source, out, *TINY, ranks=2)
    packing.kill_group(first)
    for pid in packing.msdata_processes(out):
        packing.kill(pid)
    first.communicate()
    assert second.returncode == 1
    assert len(_sentences(second.stderr)) == 1
    assert "another 'msdata pack' is writing" in second.stderr


@pytest.mark.parametrize("told", [slice(None), slice(1), slice(1, None)], ids=["all", "0", "1"])
def test_sigterm_ends_all_ranks_with_one_sentence_and_resume_completes(
    told: slice, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.05")
    process = packing.start(packing.pack_command(tiny_source, out, *TINY, ranks=2), env)
    assert packing.wait_for(lambda: list(out.glob(".pack/shard-*.parquet")), process)
    for pid in packing.msdata_processes(out)[told]:
        os.kill(pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=packing.TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in stderr
    assert len(_sentences(stderr)) == 1, stderr
    assert "interrupted; what is finished is kept" in stderr
    resumed = packing.pack(tiny_source, out, *TINY, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    packing.assert_same(out, packed(tiny_source, *TINY))
