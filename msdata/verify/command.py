"""`msdata verify`: its options and its report."""

from __future__ import annotations

import argparse
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msdata.core.options import add_jobs, num_jobs
from msdata.core.progress import ProgressLine
from msdata.core.terminal import shown_line
from msdata.core.text import bytes_text, rate_text
from msdata.dataset.manifest import read_manifest
from msdata.errors import DataError, UsageError
from msdata.verify.repair import RepairResult, remove_leftovers, repair
from msdata.verify.shard_check import Fault
from msdata.verify.verify import VerifyReport, verify_dataset

# A zeroed shard has one fault per sample; --json lists all.
_MAX_LINES_PER_FILE = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata verify`."""
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument(
        "--repair", action="store_true", help="rebuild damaged shards from their source files"
    )
    parser.add_argument(
        "--source", type=Path, help="with --repair: the folder of the source files, if they moved"
    )
    add_jobs(parser, "shards checked in parallel")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress line")


def run(args: argparse.Namespace) -> int:
    """Checks a data set, repairs it if asked to; returns the exit code."""
    jobs = num_jobs(args.jobs)
    if args.source is not None and not args.repair:
        raise UsageError("--source must be used with --repair")
    report = _verify(args, jobs)
    repairs: list[RepairResult] = []
    if args.repair and report.faults:
        repairs = repair(report, source=args.source)
    elif args.repair:
        remove_leftovers(args.data)
    if args.json:
        print(json.dumps(report_json(report, repairs)))
    else:
        for line in report_lines(report, repairs):
            print(shown_line(line))
    return int(bool(faults_left(report, repairs)))


def _verify(args: argparse.Namespace, jobs: int) -> VerifyReport:
    try:
        total = read_manifest(args.data).num_samples
    except DataError:
        # The check reports what is wrong with it.
        total = 0
    line = ProgressLine("verify", total, is_quiet=args.quiet)
    done, lock = [0, 0], threading.Lock()

    def add(num_samples: int, nbytes: int) -> None:
        with lock:
            done[:] = done[0] + num_samples, done[1] + nbytes
            line.update(done[0], done[1])

    report = verify_dataset(args.data, jobs=jobs, progress=add)
    line.close(done[0], done[1])
    return report


def faults_left(report: VerifyReport, repairs: Sequence[RepairResult]) -> list[Fault]:
    """Lists the faults whose files were not repaired."""
    repaired = {r.path for r in repairs if r.is_repaired}
    return [f for f in report.faults if f.path not in repaired]


def report_json(report: VerifyReport, repairs: Sequence[RepairResult]) -> dict[str, Any]:
    """Returns the result for `--json`."""
    manifest = report.manifest
    return {
        "path": str(report.path),
        "is_whole": not faults_left(report, repairs),
        "fingerprint": None if manifest is None else manifest.fingerprint,
        "num_samples": report.num_samples,
        "num_shards": 0 if manifest is None else len(manifest.shards),
        "nbytes": report.nbytes,
        "seconds": report.elapsed_s,
        "bytes_per_s": report.nbytes / max(report.elapsed_s, 1e-9),
        "faults": [asdict(f) for f in report.faults],
        "notes": list(report.notes),
        "repairs": [asdict(r) for r in repairs],
    }


def report_lines(report: VerifyReport, repairs: Sequence[RepairResult]) -> Iterator[str]:
    """Yields the report, line by line."""
    yield from _fault_lines(report.faults)
    for note in report.notes:
        yield f"note: {note}"
    yield from map(str, repairs)
    rate = rate_text(report.nbytes / max(report.elapsed_s, 1e-9))
    read = (
        f"checked {report.num_samples:,} samples, {bytes_text(report.nbytes)} in "
        f"{report.elapsed_s:.1f} s ({rate})"
    )
    left = faults_left(report, repairs)
    if not report.faults:
        yield f"{read}: every byte is as it was written"
    elif not left:
        yield f"{read}: {_counted(report.faults)}, all repaired"
    elif repairs:
        yield f"{read}: {_counted(report.faults)}; {_counted(left)} left"
    else:
        is_lost = any(f.kind in ("index", "manifest", "columns") for f in left)
        cure = "" if is_lost else f"; run 'msdata verify --repair {report.path}'"
        yield f"{read}: {_counted(report.faults)}{cure}"


def _counted(faults: Sequence[Fault]) -> str:
    files = len({f.path for f in faults})
    return f"{len(faults):,} fault{'s' * (len(faults) > 1)} in {files:,} file{'s' * (files > 1)}"


def _fault_lines(faults: Sequence[Fault]) -> Iterator[str]:
    shown: Counter[str] = Counter()
    for fault in faults:
        shown[fault.path] += 1
        if shown[fault.path] <= _MAX_LINES_PER_FILE:
            yield str(fault)
    for path, count in shown.items():
        if count > _MAX_LINES_PER_FILE:
            yield f"{path}: {count - _MAX_LINES_PER_FILE:,} more faults; --json lists all"
