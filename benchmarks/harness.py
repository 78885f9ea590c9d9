"""What all benchmarks share: settings, contestants run in turns, results with versions and host.

A machine's speed drifts from minute to minute, so contestants take turns within one run, and what
is reported are ratios within a turn; seconds from different runs are never compared.
"""

from __future__ import annotations

import argparse
import compileall
import functools
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.core.text import rate_text, table_lines
from msdata.errors import UsageError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORKLOAD_NAMES = ("mantis", "stamps", "large")
# Below a folder of results: every single run, which git does not keep.
RAW = "raw"
_VERSIONS_OF = (
    *("msdata", "numpy", "pyarrow", "h5py", "opencv-python-headless", "torch", "webdataset"),
    "nvidia-dali-cuda120",
)
_MARK = ".msdata-benchmarks"
_NO_RESULTS = ":(exclude)benchmarks/results"
# Rows of tables stay rows.
_LINE = 320

# What contestants measure: most of them a rate, in samples per second.
Measured = TypeVar("Measured")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a question is asked with.

    Attributes:
        data: a packed data set; None for mock samples.
        mock: number of mock samples; None means the question's own number.
        out: folder of the results; `out/work` holds data that is made.
        quick: fewer samples and repeats, to see that all works; not figures to publish.
        workload: name of the mock samples' kind, see `benchmarks.workloads.WORKLOADS`.
        peers: question `loaders`: contestants to race; empty for all.
        minutes: question `loaders`: for all of it; None for the question's own.
        has_pair: question `perceive`: also compare early with late fusion.
        machine: question `scale`: rates of `msdata probe`; None has them measured.
        command: what was typed.
        question: its name, and that of the result.
    """

    out: Path
    data: Path | None = None
    mock: int | None = None
    quick: bool = False
    workload: str = "mantis"
    peers: tuple[str, ...] = ()
    minutes: float | None = None
    has_pair: bool = True
    machine: Path | None = None
    command: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        if self.data is not None and not (self.data / "dataset.json").is_file():
            raise UsageError(
                f"{self.data} is not an msdata dataset (dataset.json not found): give the folder "
                "that `msdata pack` wrote, or --mock N"
            )
        if self.mock is not None and self.mock < 1:
            raise UsageError(f"--mock must be at least 1, got {self.mock}")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"--minutes must be > 0, got {self.minutes:g}")
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out} is a file; name a folder")

    @property
    def work(self) -> Path:
        """Where data is made; safe to delete."""
        return self.out / "work"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of every question."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="DATA", help="a data set of `msdata pack`")
    source.add_argument("--mock", type=int, metavar="N", help="so many mock samples (the default)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for results")
    parser.add_argument("--quick", action="store_true", help="minutes, not for publication")
    parser.add_argument(
        "--workload", choices=WORKLOAD_NAMES, default="mantis", help="kind of mock samples"
    )


@contextmanager
def claimed_folder(out: Path) -> Iterator[None]:
    """Takes a folder for results: below it `work` and `logs` are emptied as needed.

    A question that is refused leaves nothing behind.

    Raises:
        UsageError: it has one of them already, and no benchmark made it.
    """
    mark = out / _MARK
    if mark.exists():
        yield
        return
    # Folders of earlier versions have results, but no mark.
    has_results = any(b'"benchmark": ' in path.read_bytes() for path in out.glob("*.json"))
    for name in ("work", "logs"):
        if (out / name).exists() and not has_results:
            raise UsageError(
                f"--out: {out / name} exists, and no benchmark made it; it would be emptied: give "
                "another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield
    except UsageError:
        if list(out.iterdir()) == [mark]:
            mark.unlink()
            out.rmdir()
        raise


def take_turns(
    contestants: Mapping[str, Callable[[], Measured]], repeats: int, *, warm_ups: int = 1
) -> dict[str, list[Measured]]:
    """Runs every contestant once per turn, in another order each turn.

    Args:
        contestants: by name; each runs once and returns what it measured.
        repeats: turns that count.
        warm_ups: turns before them that do not.

    Returns:
        For each contestant what it measured, one per turn.
    """
    shuffler = random.Random(0)
    found: dict[str, list[Measured]] = {name: [] for name in contestants}
    for turn in range(-warm_ups, repeats):
        for name in shuffler.sample(list(contestants), len(contestants)):
            measured = contestants[name]()
            if turn >= 0:
                found[name].append(measured)
    return found


def run_threads(work: Callable[[int], object], num_threads: int) -> float:
    """Runs `work(0)` to `work(num_threads - 1)` at once; returns the seconds until all are done."""
    started_s = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(num_threads)))
    return time.perf_counter() - started_s


def child_environ(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables of a process that is timed: it starts from compiled modules, as a user's does.

    Where `PYTHONDONTWRITEBYTECODE` is set, every process would compile all of msdata at its start.
    """
    _compile_modules()
    return {key: value for key, value in environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


@functools.cache
def _compile_modules() -> None:
    for package in ("msdata", "mstrain", "benchmarks"):
        compileall.compile_dir(ROOT / package, quiet=2)


def run_timed(
    command: Sequence[str], *, watch: Callable[[int], None] | None = None, is_shown: bool = False
) -> dict[str, float]:
    """Runs a command to its end, see `child_environ`.

    Args:
        command: its words.
        watch: called every tenth of a second with the id of the process.
        is_shown: whether what it prints is.

    Returns:
        `seconds` from its start to its end, and `processor_seconds` of it and its children.

    Raises:
        SystemExit: it failed, with its exit code.
    """
    environ, started_s = child_environ(), time.perf_counter()
    out = None if is_shown else subprocess.DEVNULL
    with subprocess.Popen(command, env=environ, stdout=out) as process:
        if watch is not None:
            while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                watch(process.pid)
                time.sleep(0.1)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - started_s
    return {"seconds": seconds, "processor_seconds": usage.ru_utime + usage.ru_stime}


def compare(rates: Mapping[str, Sequence[float]], limit_names: Sequence[str]) -> dict[str, Any]:
    """Compares every contestant with the best of some of them.

    Args:
        rates: for each contestant its rates, one per turn, from `take_turns`.
        limit_names: the contestants of which the one with the best median is the limit.

    Returns:
        `limit`, its name, and `contestants`: for each its `samples_per_s` (median, least,
        greatest) and its ratio `of_limit` (median, least, greatest over turns).
    """
    limit = max(limit_names, key=lambda name: statistics.median(rates[name]))
    contestants = {}
    for name, values in rates.items():
        of_limit = ratio_spread(values, rates[limit])
        contestants[name] = {"samples_per_s": spread(values), "of_limit": of_limit}
    return {"limit": limit, "contestants": contestants}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the interval from the least to the greatest value over turns."""
    found = {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def ratio_spread(values: Iterable[float], others: Iterable[float]) -> dict[str, float]:
    """The spread of ratios, each of two values of the same turn."""
    return spread([value / other for value, other in zip(values, others, strict=True)])


def interval_text(found: Mapping[str, float], form: str = ".2f") -> str:
    """A spread as text: the median, and between which values it lies."""
    median, least, greatest = (found[key] for key in ("median", "least", "greatest"))
    return f"{median:{form}} ({least:{form}} to {greatest:{form}})"


def print_comparison(title: str, comparison: Mapping[str, Any], sample_nbytes: int) -> None:
    """Prints a table of what `compare` returned; `sample_nbytes` are bytes of a sample."""
    rows = []
    for name, found in comparison["contestants"].items():
        rate, ratio = found["samples_per_s"]["median"], found["of_limit"]
        nbytes = rate_text(rate * sample_nbytes)
        rows.append([name, f"{rate:,.0f}", nbytes, interval_text(ratio)])
    print(f"\n{title} (limit: {comparison['limit']})")
    heads = ("contestant", "samples/s", "bytes/s", "of the limit")
    print("\n".join(f"  {line}" for line in table_lines(heads, rows)))


def part_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """The command line of the benchmark of one part, with where its result goes."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=text)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="for the result")
    return parser


def add_data(parser: argparse.ArgumentParser, num_objects: int) -> None:
    """Declares where mock data are kept, and how many."""
    parser.add_argument("--data", type=Path, default=Path("bench-data"), help="created if missing")
    parser.add_argument("--objects", type=int, default=num_objects, help="580 KiB each")


def command_of(words: Sequence[str]) -> str:
    """What was typed."""
    return shlex.join(["python", "-m", "benchmarks", *words])


def write_part(
    name: str, result: Mapping[str, Any], words: Sequence[str], out: Path, suffix: str = ""
) -> None:
    """Writes the result of one part, with what was typed, and prints where."""
    command = command_of([name, *words])
    print(f"\n{write_result(name + suffix, result, command=command, folder=out)}")


def write_result(
    name: str,
    result: Mapping[str, Any],
    *,
    command: str,
    folder: Path = RESULTS,
    raw: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a benchmark's summary with versions, host and file system; whole or not at all.

    Args:
        name: the benchmark; the file is `FOLDER/NAME.json`.
        result: what it found. `shown` is what `python -m benchmarks report` shows of it, `ratios`
            (name to median, least, greatest) what `python -m benchmarks compare` compares.
        command: what was typed.
        folder: created if missing.
        raw: single runs, written beside the summary's fields into `FOLDER/raw/NAME.json`.

    Returns:
        The file of the summary.
    """
    content = {
        "benchmark": name,
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit_of_code(),
        "host": {**host_facts(), "file_system": file_system_of(folder)},
        "versions": {"python": platform.python_version(), **versions_of(_VERSIONS_OF)},
        **result,
    }
    files = {folder / f"{name}.json": content}
    if raw is not None:
        files[folder / RAW / f"{name}.json"] = {**content, **raw}
    for path in files:
        check_output(path, b'"benchmark": ')
    for path, fields in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json_text(fields) + "\n").encode())
    return folder / f"{name}.json"


def json_text(value: Any, indent: int = 0) -> str:
    """JSON of which whatever fits stands in one line."""
    line = json.dumps(value, allow_nan=False)
    if indent + len(line) <= _LINE or not isinstance(value, dict | list):
        return line
    pad = " " * (indent + 1)
    if isinstance(value, list):
        parts = [pad + json_text(item, indent + 1) for item in value]
        return "[\n" + ",\n".join(parts) + "\n" + " " * indent + "]"
    parts = [f"{pad}{json.dumps(str(k))}: {json_text(v, indent + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"


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
    """Type and mount options of the file system that holds a path, from the kernel's list."""
    place, found = path.resolve(), [(0, "unknown", "")]
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mounted, kind, options, *_ = line.split()
        point = Path(mounted.replace("\\040", " "))
        if place.is_relative_to(point):
            found.append((len(point.parts), kind, options))
    # Of two on one place the later one is seen.
    _, kind, options = max(reversed(found), key=lambda mount: mount[0])
    return {"type": kind, "options": options}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit_of_code() -> str | None:
    """The commit that was measured, with a plus where files were changed since, but for results."""
    try:
        head, changed = (
            subprocess.check_output(["git", "-C", ROOT, *words], stderr=subprocess.DEVNULL)
            for words in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "-uno", "--", ".", _NO_RESULTS),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.decode().strip() + ("+" if changed else "")
