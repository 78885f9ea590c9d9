"""Time and memory of `msdata catalog build` on made-up surveys, and whether it is right.

python -m benchmarks.questions.catalog_build --rows 5000000 --dir DIR

The tables have the surveys' true column layouts and planted duplicates (see `mock_surveys`); that
all and only the right rows are dropped, each for its reason, is checked before anything is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import write_result
from benchmarks.questions.mock_surveys import Truth, make_tables

# Rows that `make_tables` makes of each that it is asked for.
_SHARE_MADE = 0.882


def differences(truth: Truth, out: Path) -> list[str]:
    """What a built catalogue has otherwise than it should.

    Args:
        truth: of the tables that it was built from.
        out: its folder.
    """
    import pyarrow.parquet as pq

    report = json.loads((out / "catalog.json").read_text())
    keys = {survey["name"]: survey["key"] for survey in report["surveys"]}
    table = pq.read_table(out / "catalog.parquet", columns=["survey", "object_id"])
    surveys = map(keys.__getitem__, table["survey"].to_pylist())
    found = set(zip(surveys, table["object_id"].to_pylist(), strict=True))
    faults = []
    if found != truth.kept:
        wrong, lost = len(found - truth.kept), len(truth.kept - found)
        faults.append(f"{wrong} objects should have been dropped, {lost} should not")
    for survey in report["surveys"]:
        counted = {reason: n for reason, n in survey["num_dropped"].items() if n}
        if counted != dict(truth.num_dropped[survey["key"]]):
            faults.append(f"{survey['key']}: counted {counted}")
        if survey["num_available"] != truth.num_rows[survey["key"]]:
            faults.append(f"{survey['key']}: {survey['num_available']} rows read")
    return faults


def run_measured(command: list[str]) -> tuple[int, float, int]:
    """Runs a command; returns its exit code, processor seconds and peak memory in bytes.

    Memory is asked of the running process: what the system tells of a dead one begins with the
    memory of its parent, which here holds all the tables.
    """
    peak_kib = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            with contextlib.suppress(OSError, IndexError):
                text = Path(f"/proc/{process.pid}/status").read_text()
                peak_kib = max(peak_kib, int(text.partition("VmHWM:")[2].split()[0]))
            time.sleep(0.1)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime, peak_kib << 10


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--dir", type=Path, required=True, help="new folder; 2 GB for 5 million")
    args = parser.parse_args(arguments)
    truth = make_tables(args.dir / "tables", round(args.rows / _SHARE_MADE))
    num_rows = sum(truth.num_rows.values())
    command = [sys.executable, "-m", "msdata", "catalog", "build", "--json"]
    command += [str(args.dir / "tables" / "spec.toml"), str(args.dir / "out")]
    started_s = time.perf_counter()
    exit_code, processor_s, peak_nbytes = run_measured(command)
    seconds = time.perf_counter() - started_s
    faults = differences(truth, args.dir / "out") if exit_code == 0 else ["it failed"]
    for fault in faults:
        print(f"wrong: {fault}", file=sys.stderr)
    if faults:
        return 1
    result = {
        "num_rows": num_rows,
        "num_objects": len(truth.kept),
        "seconds": seconds,
        "processor_seconds": processor_s,
        "peak_memory_gib": peak_nbytes / (1 << 30),
    }
    said = f"python -m benchmarks.questions.catalog_build --rows {args.rows}"
    path = write_result("catalog_build", result, command=said)
    print(json.dumps(result))
    print(f"all and only the right rows dropped; {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
