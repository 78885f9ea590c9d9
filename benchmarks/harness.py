"""What all benchmarks share: contestants run in turns, results with versions and host, tables.

A machine's speed drifts from minute to minute, so contestants take turns within one run, and what
is reported are ratios within a turn; seconds from different runs are never compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from msdata.core.files import write_whole
from msdata.core.output_file import check_output

RESULTS = Path(__file__).parent / "results"
_VERSIONS_OF = (
    *("msdata", "numpy", "pyarrow", "h5py", "opencv-python-headless", "torch", "webdataset"),
    "nvidia-dali-cuda120",
)

_REALTIME_PRIORITY = 10

# A contestant runs once and returns its rate, in samples per second.
Contestant = Callable[[], float]


def take_turns(
    contestants: Mapping[str, Contestant],
    repeats: int,
    *,
    warm_ups: int = 1,
    before_each: Callable[[], None] | None = None,
    budget_s: float | None = None,
) -> dict[str, list[float]]:
    """Runs every contestant once a turn, in another order each turn.

    Args:
        contestants: by name.
        repeats: turns that count.
        warm_ups: turns before them that do not.
        before_each: called before every run, not timed; drops the page cache for instance.
        budget_s: seconds; a turn that would end later is not begun, for nobody, once there are two.

    Returns:
        For each contestant its rates, one a turn.
    """
    shuffler = random.Random(0)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    started_s = time.perf_counter()
    for turn in range(-warm_ups, repeats):
        turn_s = time.perf_counter()
        names = list(contestants)
        shuffler.shuffle(names)
        for name in names:
            if before_each is not None:
                before_each()
            rate = contestants[name]()
            if turn >= 0:
                rates[name].append(rate)
        now_s = time.perf_counter()
        is_late = budget_s is not None and 2 * now_s - turn_s - started_s > budget_s
        if is_late and turn >= 1:
            break
    return rates


def add_realtime(parser: argparse.ArgumentParser) -> None:
    """Declares `--realtime`, for machines that other work shares."""
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run all contestants alike before other processes of the machine (SCHED_FIFO; root)",
    )


def run_first() -> None:
    """Has this process, and those it starts from now on, run before others of the machine.

    Raises:
        SystemExit: the system does not allow it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
    except PermissionError:
        raise SystemExit("--realtime needs root, or CAP_SYS_NICE: run it without") from None


def compare(rates: Mapping[str, Sequence[float]], limit_names: Sequence[str]) -> dict[str, Any]:
    """Holds every contestant against the best of some of them.

    Args:
        rates: for each contestant its rates, one a turn, from `take_turns`.
        limit_names: the contestants of which the one with the best median is the limit.

    Returns:
        `limit`, its name, and `contestants`: for each its `samples_per_s` (median, least,
        greatest) and its ratio `of_limit` (median, least, greatest over turns).
    """
    medians = {name: statistics.median(values) for name, values in rates.items()}
    limit = max(limit_names, key=lambda name: medians[name])
    contestants = {}
    for name, values in rates.items():
        ratios = [rate / best for rate, best in zip(values, rates[limit], strict=True)]
        contestants[name] = {"samples_per_s": spread(values), "of_limit": spread(ratios)}
    return {"limit": limit, "contestants": contestants}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the interval from the least to the greatest value over turns."""
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "greatest": round(max(values), 4),
    }


def print_comparison(title: str, comparison: Mapping[str, Any], sample_nbytes: int) -> None:
    """Prints a table of what `compare` returned.

    Args:
        title: what was measured.
        comparison: from `compare`.
        sample_nbytes: bytes of a sample, for GB/s.
    """
    print(f"\n{title} (limit: {comparison['limit']})")
    print(f"  {'contestant':<34}{'samples/s':>10}{'GB/s':>7}{'of the limit':>14}{'over turns':>15}")
    for name, found in comparison["contestants"].items():
        rate, ratio = found["samples_per_s"]["median"], found["of_limit"]
        spread = f"{ratio['least']:.2f} to {ratio['greatest']:.2f}"
        gigabytes = rate * sample_nbytes / 1e9
        print(f"  {name:<34}{rate:>10,.0f}{gigabytes:>7.2f}{ratio['median']:>14.2f}{spread:>15}")


def write_result(
    name: str, result: Mapping[str, Any], *, command: str, folder: Path = RESULTS
) -> Path:
    """Writes a benchmark's result with versions, host and file system; whole or not at all.

    Args:
        name: the benchmark; the file is `FOLDER/NAME.json`.
        result: what it found. `shown` is what `python -m benchmarks report` shows of it, `ratios`
            (name to median, least, greatest) what `python -m benchmarks compare` guards.
        command: what was typed.
        folder: made if need be.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    check_output(path, b'"benchmark": ')
    content = {
        "benchmark": name,
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "host": {**host_facts(), "file_system": file_system_of(folder)},
        "versions": {"python": platform.python_version(), **_versions()},
        **result,
    }
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return path


def host_facts() -> dict[str, Any]:
    """Processor, cores this process may use, memory, kernel; no names of hosts."""
    cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpu_info if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def file_system_of(path: Path) -> dict[str, str]:
    """Type and mount options of the file system that holds a path, of the kernel's list."""
    place, found = path.resolve(), {"type": "unknown", "options": ""}
    best = -1
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mounted, kind, options, *_ = line.split()
        point = Path(mounted.replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), {"type": kind, "options": options}
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit that was measured, with a plus where files were changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.decode().strip() + ("+" if changed.stdout else "")
