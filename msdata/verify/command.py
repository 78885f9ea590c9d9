"""`msdata verify`: options, and what is printed."""

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
from msdata.core.progress import ProgressLine, bytes_text, rate_text
from msdata.core.terminal import shown_line
from msdata.dataset.manifest import read_manifest
from msdata.errors import DataError, UsageError
from msdata.verify.repair import Mending, remove_leftovers, repair
from msdata.verify.shard_check import Fault
from msdata.verify.verify import VerifyReport, verify_dataset

# A zeroed shard has a fault a sample; the rest is in --json.
_MAX_LINES_PER_FILE = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata verify`."""
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument(
        "--repair", action="store_true", help="mend bad shards from the objects they came from"
    )
    parser.add_argument(
        "--source", type=Path, help="with --repair: where the objects are now, if they moved"
    )
    add_jobs(parser, "shards at a time")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Checks a data set, mends it where asked to; returns the exit code."""
    jobs = num_jobs(args.jobs)
    if args.source is not None and not args.repair:
        raise UsageError("--source is for --repair only")
    report = _verify(args, jobs)
    mendings: list[Mending] = []
    if args.repair and report.faults:
        mendings = repair(report, source=args.source)
    elif args.repair:
        remove_leftovers(args.data)
    if args.json:
        print(json.dumps(report_json(report, mendings)))
    else:
        for line in report_lines(report, mendings):
            print(shown_line(line))
    return int(bool(faults_left(report, mendings)))


def _verify(args: argparse.Namespace, jobs: int) -> VerifyReport:
    try:
        total = read_manifest(args.data).num_samples
    except DataError:
        # The check itself says what is wrong with it.
        total = 0
    line = ProgressLine("verify", total, is_quiet=args.quiet)
    progress = _CountingLine(line)
    report = verify_dataset(args.data, jobs=jobs, progress=progress)
    line.close(progress.num_samples, progress.nbytes)
    return report


class _CountingLine:
    """Adds up what the threads have done and shows it."""

    def __init__(self, line: ProgressLine) -> None:
        self.num_samples = 0
        self.nbytes = 0
        self._line = line
        self._lock = threading.Lock()

    def __call__(self, num_samples: int, nbytes: int) -> None:
        """Adds what was done."""
        with self._lock:
            self.num_samples += num_samples
            self.nbytes += nbytes
            self._line.update(self.num_samples, self.nbytes)


def faults_left(report: VerifyReport, mendings: Sequence[Mending]) -> list[Fault]:
    """The faults whose files were not mended."""
    mended = {m.path for m in mendings if m.is_mended}
    return [f for f in report.faults if f.path not in mended]


def report_json(report: VerifyReport, mendings: Sequence[Mending]) -> dict[str, Any]:
    """The result for machines."""
    manifest = report.manifest
    return {
        "path": str(report.path),
        "is_whole": not faults_left(report, mendings),
        "fingerprint": None if manifest is None else manifest.fingerprint,
        "num_samples": report.num_samples,
        "num_shards": 0 if manifest is None else len(manifest.shards),
        "nbytes": report.nbytes,
        "seconds": report.elapsed_s,
        "bytes_per_s": report.nbytes / max(report.elapsed_s, 1e-9),
        "faults": [asdict(f) for f in report.faults],
        "notes": list(report.notes),
        "mendings": [asdict(m) for m in mendings],
    }


def report_lines(report: VerifyReport, mendings: Sequence[Mending]) -> Iterator[str]:
    """The result for people."""
    yield from _fault_lines(report.faults)
    for note in report.notes:
        yield f"note: {note}"
    for mending in mendings:
        yield str(mending)
    rate = rate_text(report.nbytes / max(report.elapsed_s, 1e-9))
    read = (
        f"checked {report.num_samples:,} samples, {bytes_text(report.nbytes)} in "
        f"{report.elapsed_s:.1f} s ({rate})"
    )
    left = faults_left(report, mendings)
    if not report.faults:
        yield f"{read}: every byte is as it was written"
    elif not left:
        yield f"{read}: {_counted(report.faults)}, all mended"
    elif mendings:
        yield f"{read}: {_counted(report.faults)}; {_counted(left)} left"
    else:
        cure = "" if any(f.kind in ("index", "manifest") for f in left) else _cure(report)
        yield f"{read}: {_counted(report.faults)}{cure}"


def _cure(report: VerifyReport) -> str:
    return f"; run 'msdata verify --repair {report.path}'"


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
