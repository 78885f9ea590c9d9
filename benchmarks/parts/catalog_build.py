"""Time and memory of `msdata catalog build` on made-up surveys, and whether it is right.

python -m benchmarks catalog_build --rows 5000000 --dir DIR

The tables have the surveys' true column layouts and planted duplicates (tests/support has them);
that exactly the right rows are dropped, each for its reason, is checked before anything is printed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, part_parser, run_timed, write_part

SUPPORT = ROOT / "tests" / "support"
# Rows that `make_tables` makes of each that it is asked for.
_SHARE_MADE = 0.882


def differences(truth: Any, out: Path) -> list[str]:
    """Where a built catalog differs from the truth of the tables that it was built from."""
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


def main(words: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = part_parser("catalog_build", "`msdata catalog build` on made-up surveys.")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--dir", type=Path, required=True, help="new; 2 GiB for 5 million rows")
    args = parser.parse_args(words)
    sys.path.append(str(SUPPORT))
    mock_surveys = importlib.import_module("mock_surveys")
    truth = mock_surveys.make_tables(args.dir / "tables", round(args.rows / _SHARE_MADE))
    command = [sys.executable, "-m", "msdata", "catalog", "build", "--json"]
    command += [str(args.dir / "tables" / "spec.toml"), str(args.dir / "out")]
    peaks_kib = [0]

    def watch(pid: int) -> None:
        # What the system tells of a dead process includes the memory of its parent, which here
        # holds all the tables.
        with contextlib.suppress(OSError, IndexError):
            text = Path(f"/proc/{pid}/status").read_text()
            peaks_kib.append(int(text.partition("VmHWM:")[2].split()[0]))

    measured = run_timed(command, watch=watch)
    measured["peak_memory_gib"] = max(peaks_kib) / (1 << 20)
    faults = differences(truth, args.dir / "out")
    for fault in faults:
        print(f"wrong: {fault}", file=sys.stderr)
    if faults:
        return 1
    counts = {"num_rows": sum(truth.num_rows.values()), "num_objects": len(truth.kept)}
    print(json.dumps({**counts, **measured}))
    write_part("catalog_build", {**counts, **measured}, words, args.out)
    print("exactly the right rows were dropped")
    return 0
