"""What the tests of `msdata pack` share: sources to pack, the command as a process, its output."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msdata.cli import main
from msdata.schema import MANTIS_SHRIMP

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
MSDATA = [sys.executable, "-m", "msdata"]
# Small enough for a dozen shards of a few hundred tiny objects.
TINY_SHARDS = ("--shard-size", "64KiB")


def tiny_object(number: int) -> dict[str, Any]:
    """An object of an inferred schema: two arrays and a number, 1 KB in all."""
    random = np.random.default_rng(number)
    return {
        "image": random.normal(size=(3, 8, 8)).astype(np.float32),
        "spectrum": random.integers(0, 1 << 15, 40, dtype=np.int16),
        "exposure_s": float(number % 7),
    }


def mantis_object(number: int) -> dict[str, Any]:
    """An object of the default schema; every fourth has NaN, every fifth no GALEX coverage."""
    random = np.random.default_rng(1000 + number)
    sample = {
        a.name: random.normal(10, 3, size=a.shape).astype(np.float32) for a in MANTIS_SHRIMP.arrays
    }
    if number % 4 == 0:
        sample["panstarrs"][number % 5, 40:48, 60:70] = np.nan
    if number % 5 == 0:
        sample["galex"][1] = 0
    return sample


def write_object(path: Path, sample: Any) -> None:
    """Writes one object as upstream does, or as a bare pickle, by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, sample, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(sample, protocol=4))


def write_catalog(path: Path, numbers: Sequence[int]) -> None:
    """A CSV catalogue of ids, redshifts and positions, and a column to split by."""
    lines = ["mantis_id,redshift,ra,dec,fold"]
    lines += [
        f"{n},{0.01 + n % 97 / 100:.3f},{n % 360}.25,{n % 90 - 45}.5,{'abc'[n % 3]}"
        for n in numbers
    ]
    path.write_text("\n".join(lines) + "\n")


def make_source(folder: Path, count: int, make: Any) -> Path:
    """A folder of objects with `catalog.csv`; returns it."""
    for number in range(count):
        stem = f"{number:07d}"
        suffix = ".npy" if number % 2 else ".pkl"
        write_object(folder / "photometry" / stem[-1] / f"{stem}{suffix}", make(number))
    write_catalog(folder / "catalog.csv", range(count))
    return folder


def environment(**extra: str) -> dict[str, str]:
    """The environment of the commands: this tree's `msdata`, no launcher's variables."""
    launchers = ("PMI_", "PMIX_", "SLURM_", "OMPI_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**env, **extra}


def faulty_environment(**faults: str) -> dict[str, str]:
    """The environment of commands with faults; see `faults/sitecustomize.py`."""
    env = environment()
    path = os.pathsep.join((str(Path(__file__).parent / "faults"), env["PYTHONPATH"]))
    return {**env, **faults, "PYTHONPATH": path}


def pack_command(
    source: Path, out: Path, *options: str, ranks: int = 0, is_quiet: bool = True
) -> list[str]:
    """The command line of a pack with the source's catalogue; under mpiexec for `ranks`.

    Quiet: on a slow machine lines of progress would stand among the sentences that are asserted.
    """
    launcher = [] if not ranks else [str(mpiexec()), "-n", str(ranks)]
    command = [*launcher, *MSDATA, "pack", str(source), str(out)]
    catalog = source / "catalog.csv"
    if catalog.exists() and "--catalog" not in options:
        command += ["--catalog", str(catalog)]
    quiet = ["--quiet"] if is_quiet and "--quiet" not in options else []
    return [*command, *options, *quiet]


def mpiexec() -> Path:
    """The launcher of the MPI library that mpi4py was installed with."""
    return Path(sys.executable).with_name("mpiexec")


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Any:
    """Runs a command to its end; never raises for its exit code.

    Without an environment of its own, `msdata` runs in this process: to start one takes a second of
    processor time, twenty times what a small pack takes.
    """
    if env is None and list(command[:3]) == MSDATA:
        said, printed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            try:
                code = main(command[3:])
            except SystemExit as ended:
                code = ended.code
        return subprocess.CompletedProcess(command, code, printed.getvalue(), said.getvalue())
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment() if env is None else env,
    )


def pack(source: Path, out: Path, *options: str, ranks: int = 0, env: Any = None) -> Any:
    """Packs to the end; see `pack_command`."""
    return run(pack_command(source, out, *options, ranks=ranks), env)


def start(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts a command in a process group of its own."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() if env is None else env,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Sends a signal to a process and all that it started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def wait_for(condition: Any, process: subprocess.Popen[str] | None = None) -> bool:
    """Waits until `condition()` holds; False where the process ended before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return True


def children_of(pid: int) -> list[int]:
    """Process ids of a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has a handler of its own for a signal by now."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        text = Path(f"/proc/{process.pid}/status").read_text()
        mask = next((x for x in text.splitlines() if x.startswith("SigCgt:")), "SigCgt: 0")
        return bool(int(mask.split()[1], 16) >> (number - 1) & 1)
    return False


def kill(pid: int) -> None:
    """`kill -9` of a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def msdata_processes(out: Path) -> list[int]:
    """Process ids of the Python processes whose command line names the folder, by age."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and b"python" in words[0]:
                found.append(int(entry.name))
    return sorted(found)


def content(out: Path) -> dict[str, bytes]:
    """Every file under a folder by its relative path, hidden ones too."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def assert_same(found: Path, expected: Path) -> None:
    """Two data sets are equal, file by file and byte by byte, with nothing left over."""
    left, right = content(found), content(expected)
    assert sorted(left) == sorted(right)
    different = [name for name in left if left[name] != right[name]]
    assert not different


def assert_sentence(process: Any, *, code: int, says: Sequence[str]) -> None:
    """The command failed with one line on stderr that says all of this, and no traceback."""
    assert process.returncode == code, process.stderr
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    for words in says:
        assert words in lines[0], lines[0]
