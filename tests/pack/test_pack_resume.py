"""Whatever moment a pack dies at, --resume ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msdata.cli import main

Packed = Callable[..., Path]
FORMATS = {
    "tar": packing.TINY_SHARDS,
    "hdf5": ("--format", "hdf5", *packing.TINY_SHARDS),
}
CODED = ("--quantize", "4", "--compress", "lz4", "--shard-size", "64KiB")
CODED_FORMATS = {"coded tar": CODED, "coded hdf5": ("--format", "hdf5", *CODED)}


def _resume(source: Path, out: Path, *options: str, expected: Path, jobs: int = 1) -> None:
    process = packing.pack(source, out, *options, "--jobs", str(jobs), "--resume")
    assert process.returncode == 0, process.stderr
    packing.assert_same(out, expected)


@pytest.mark.parametrize(
    ("container", "whole_group"),
    [
        *((container, is_group) for container in FORMATS for is_group in (True, False)),
        ("coded tar", True),
        ("coded hdf5", False),
    ],
)
def test_a_pack_killed_at_random_moments_is_resumed(
    container: str, whole_group: bool, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    options = {**FORMATS, **CODED_FORMATS}[container]
    expected = packed(tiny_source, *options)
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.03")
    command = packing.pack_command(tiny_source, tmp_path / "out", *options, "--jobs", "2")
    moments = random.Random(f"{container} {whole_group}")
    # How long an undisturbed run takes here and now.
    start_s = time.monotonic()
    packing.start(command, env).communicate(timeout=packing.TIMEOUT_S)
    whole_s = time.monotonic() - start_s
    interrupted, num_wanted = 0, 5 if container in FORMATS else 3
    for _ in range(15):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = packing.start(command, env)
        time.sleep(moments.uniform(0.15, 0.85) * whole_s)
        interrupted += process.poll() is None
        if whole_group:
            packing.kill_group(process)
        else:
            process.kill()
        process.communicate()
        # Those that the parent left behind may still be at work now.
        jobs = 2 if interrupted < 2 else 1
        _resume(tiny_source, tmp_path / "out", *options, expected=expected, jobs=jobs)
        packing.kill_group(process)
        if interrupted == num_wanted:
            break
    assert interrupted == num_wanted


ARRAYS = np.random.default_rng(4).integers(0, 256, (24, 3, 48, 48), np.uint8)


def _arrays(kind: str, place: Path) -> Path:
    """A file of arrays: in compressed chunks, or in row groups that are decoded on the way."""
    path, redshift = place / f"a.{kind}", np.arange(24) / 24
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=ARRAYS, chunks=(5, 3, 48, 48), compression="gzip")
            file["z"] = redshift
    else:
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(ARRAYS)
        pq.write_table(pa.table({"image": tensor, "z": redshift}), path, row_group_size=5)
    return path


@pytest.mark.parametrize("kind", ["hdf5", "parquet"])
def test_a_killed_pack_of_a_file_of_arrays_is_resumed(kind: str, tmp_path: Path) -> None:
    source, out = _arrays(kind, tmp_path), tmp_path / "out"
    options = ("--shard-size", "64KiB", "--jobs", "1")
    assert main(["pack", str(source), str(tmp_path / "whole"), *options, "--quiet"]) == 0
    # Parquet's first renames are those of decoded row groups.
    env = packing.faulty_environment(FAULT_AT="worker:replace:2:group")
    process = packing.start(packing.pack_command(source, out, *options), env)
    process.communicate(timeout=packing.TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL
    assert bool(list((out / ".pack").glob("rows/*.arrow"))) == (kind == "parquet")
    assert main(["pack", str(source), str(out), *options, "--quiet", "--resume"]) == 0
    packing.assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize(
    ("place", "what"),
    [
        *((f"parent:replace:{n}", "group") for n in (1, 3, 9, 22, 24)),
        *((f"parent:replace:{n}", "kill") for n in (2, 4, 23, 25)),
        *((f"parent:fsync:{n}", "group") for n in (1, 8)),
        *((f"worker:replace:{n}", "kill") for n in (1, 2)),
        *((f"worker:fsync:{n}", "group") for n in (1, 2, 3)),
        ("worker:pwritev:3", "kill"),
        ("parent:rmdir:1", "group"),
    ],
)
def test_a_process_killed_at_a_critical_call_is_resumed(
    place: str, what: str, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    env = packing.faulty_environment(FAULT_AT=f"{place}:{what}")
    command = packing.pack_command(tiny_source, tmp_path / "out", *packing.TINY_SHARDS)
    process = packing.start([*command, "--jobs", "2"], env)
    _, stderr = process.communicate(timeout=packing.TIMEOUT_S)
    assert process.returncode != 0, "the fault did not strike"
    assert "Traceback" not in stderr
    expected = packed(tiny_source, *packing.TINY_SHARDS)
    _resume(tiny_source, tmp_path / "out", *packing.TINY_SHARDS, expected=expected)


@pytest.mark.parametrize("options", [FORMATS["hdf5"], *CODED_FORMATS.values()])
def test_other_layouts_are_resumed_after_their_critical_calls(
    options: tuple[str, ...], tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    for place in ("worker:fsync:1", "worker:fsync:3", "worker:replace:2", "worker:ftruncate:2"):
        out = tmp_path / place.replace(":", "-")
        env = packing.faulty_environment(FAULT_AT=f"{place}:group")
        process = packing.start(
            packing.pack_command(tiny_source, out, *options, "--jobs", "2"), env
        )
        process.communicate(timeout=packing.TIMEOUT_S)
        assert process.returncode != 0
        _resume(tiny_source, out, *options, expected=packed(tiny_source, *options))


def test_a_resumed_pack_may_be_killed_again_and_again(
    flawed_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number in (2, 3, 4, 5, 6):
        env = packing.faulty_environment(FAULT_AT=f"parent:replace:{number}:group")
        command = packing.pack_command(flawed_source, out, *packing.TINY_SHARDS, "--jobs", "2")
        process = packing.start([*command, "--resume"], env)
        process.communicate(timeout=packing.TIMEOUT_S)
    expected = packed(flawed_source, *packing.TINY_SHARDS)
    _resume(flawed_source, out, *packing.TINY_SHARDS, expected=expected)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "parent alone"])
def test_a_signal_ends_a_pack_in_good_order(
    number: int, code: int, whole_group: bool, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.05")
    command = packing.pack_command(tiny_source, out, *packing.TINY_SHARDS, "--jobs", "2")
    process = packing.start(command, env)
    assert packing.wait_for(lambda: list(out.glob(".pack/shard-*.parquet")), process)
    if whole_group:
        packing.kill_group(process, number)
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=packing.TIMEOUT_S)
    assert process.returncode == code, stderr
    assert stderr == (
        "msdata pack: interrupted; what is finished is kept: run the same command with --resume\n"
    )
    assert not list(out.rglob("*.partial"))
    expected = packed(tiny_source, *packing.TINY_SHARDS)
    _resume(tiny_source, out, *packing.TINY_SHARDS, expected=expected)


def test_a_signal_at_any_early_moment_ends_with_one_sentence(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    for k in range(4):
        out = tmp_path / str(k)
        command = packing.pack_command(tiny_source, out, *packing.TINY_SHARDS, "--jobs", "2")
        process = packing.start(command)
        # Before Python has started, no program can answer.
        assert packing.wait_for(partial(packing.catches, process, signal.SIGTERM), process)
        time.sleep(0.1 * k)
        packing.kill_group(process, signal.SIGINT)
        _, stderr = process.communicate(timeout=packing.TIMEOUT_S)
        if process.returncode:
            assert process.returncode == 130, stderr
            assert stderr.count("\n") == 1, stderr
        expected = packed(tiny_source, *packing.TINY_SHARDS)
        _resume(tiny_source, out, *packing.TINY_SHARDS, expected=expected)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_worker_that_dies_while_it_ends_a_shard_leaves_nothing_unfinished(
    tiny_source: Path, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "out"
    # It flushes the shard, the folder, the DALI index, the folder.
    env = packing.faulty_environment(FAULT_AT=f"worker:fsync:{number}:kill")
    done = packing.pack(tiny_source, out, *packing.TINY_SHARDS, "--jobs", "1", env=env)
    packing.assert_sentence(done, code=1, says=["worker was killed by signal 9", "--resume"])
    assert not list(out.rglob("*.partial"))


def test_a_killed_worker_is_reported_in_one_sentence(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.05")
    command = packing.pack_command(tiny_source, out, *packing.TINY_SHARDS, "--jobs", "2")
    process = packing.start(command, env)
    assert packing.wait_for(lambda: list(out.glob(".pack/shard-*.parquet")), process)
    worker = packing.children_of(process.pid)[-1]
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=packing.TIMEOUT_S)
    assert process.returncode == 1
    assert stderr.count("\n") == 1, stderr
    assert "worker was killed by signal 9" in stderr
    # The parent removes what the dead could not.
    assert not list(out.rglob("*.partial"))
    assert "--resume" in stderr
    expected = packed(tiny_source, *packing.TINY_SHARDS)
    _resume(tiny_source, out, *packing.TINY_SHARDS, expected=expected)


def test_resuming_a_finished_pack_changes_nothing(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert packing.pack(tiny_source, out, "--jobs", "1").returncode == 0
    before = packing.content(out)
    process = packing.pack(tiny_source, out, "--jobs", "1", "--resume")
    assert process.returncode == 0, process.stderr
    assert packing.content(out) == before


def test_resume_starts_a_pack_that_was_never_started(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    _resume(
        tiny_source,
        tmp_path / "out",
        *packing.TINY_SHARDS,
        expected=packed(tiny_source, *packing.TINY_SHARDS),
    )


@pytest.fixture(scope="module")
def unfinished(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack that was killed in its middle."""
    out = tmp_path_factory.mktemp("unfinished") / "out"
    command = packing.pack_command(tiny_source, out, *packing.TINY_SHARDS, "--jobs", "1")
    env = packing.faulty_environment(FAULT_AT="parent:replace:6:group")
    packing.start(command, env).communicate()
    assert (out / ".pack").is_dir()
    return out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seed", "1"),
        ("--shard-size", "128KiB"),
        ("--split", "0.5,0.3,0.2"),
        ("--format", "hdf5"),
        ("--quantize", "4"),
        ("--compress", "zstd"),
        ("--split-column", "fold"),
        ("--catalog", None),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "unfinished"])
def test_a_changed_option_is_refused_by_its_name(
    option: str,
    value: str | None,
    is_finished: bool,
    tiny_source: Path,
    packed: Packed,
    unfinished: Path,
    tmp_path: Path,
) -> None:
    finished = packed(tiny_source, *packing.TINY_SHARDS)
    out = shutil.copytree(finished if is_finished else unfinished, tmp_path / "out")
    if value is None:
        if is_finished:
            pytest.skip("dataset.json holds no paths: they differ between machines")
        (tmp_path / "c.csv").write_bytes((tiny_source / "catalog.csv").read_bytes())
        value = str(tmp_path / "c.csv")
    before = packing.content(out)
    process = packing.pack(
        tiny_source, out, *packing.TINY_SHARDS, option, value, "--resume", "--jobs", "1"
    )
    packing.assert_sentence(process, code=2, says=[option, "was started with"])
    assert packing.content(out) == before


def test_a_second_pack_keeps_off(tiny_source: Path, packed: Packed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.3")
    command = packing.pack_command(tiny_source, out, *packing.TINY_SHARDS, "--jobs", "2")
    first = packing.start(command, env)
    assert packing.wait_for(lambda: (out / ".pack" / "plan.json").exists(), first)
    second = packing.pack(tiny_source, out, *packing.TINY_SHARDS)
    packing.assert_sentence(second, code=1, says=["another 'msdata pack' is writing", str(out)])
    # One that resumes waits for a while, since the first might be dying; here it finishes.
    third = packing.pack(tiny_source, out, *packing.TINY_SHARDS, "--resume")
    _, stderr = first.communicate(timeout=packing.TIMEOUT_S)
    assert first.returncode == 0, stderr
    assert third.returncode == 0, third.stderr
    packing.assert_same(out, packed(tiny_source, *packing.TINY_SHARDS))
