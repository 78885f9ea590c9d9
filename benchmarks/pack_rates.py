"""How near packing comes to merely reading the objects and writing their bytes.

python -m benchmarks.pack_rates --objects DIR --repeats 3

Every contestant is a process of its own, timed from its start to its end, on files in the page
cache; what earlier contestants wrote is on the disk before the next one starts. `msdata pack` does
what the others do not: it checks every object, sums it, flushes every shard to the disk.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.harness import compare, print_comparison, take_turns, write_result
from benchmarks.pack_peers import NUM_PROCESSES, PEERS, object_files

LIMIT = "bytes, 2 processes"
FLUSHED = "bytes, flushed, 2 processes"


def time_command(command: list[str], out: Path, num_objects: int) -> float:
    """Runs a command that writes `out`, and removes that; returns objects per second."""
    started_s = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rate = num_objects / (time.perf_counter() - started_s)
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink()
    return rate


def commands(objects: Path, out: Path) -> dict[str, list[str]]:
    """The contestants' command lines."""
    pack = [sys.executable, "-m", "msdata", "pack", str(objects), str(out), "--quiet"]
    pack += ["--catalog", str(objects / "catalog.csv"), "--jobs", str(NUM_PROCESSES)]
    peer = [sys.executable, "-m", "benchmarks.pack_peers"]
    titles = {
        "bytes": LIMIT,
        "flushed": FLUSHED,
        "webdataset": "webdataset.TarWriter",
        "h5py": "h5py, contiguous",
    }
    return {
        "msdata pack --format tar": [*pack, "--format", "tar"],
        "msdata pack --format hdf5": [*pack, "--format", "hdf5"],
        "msdata pack --quantize 4 --compress lz4": [*pack, "--quantize", "4", "--compress", "lz4"],
        **{titles[name]: [*peer, name, str(objects), str(out)] for name in PEERS},
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=Path, required=True, help="pickles with catalog.csv")
    parser.add_argument("--out", type=Path, help="folder to write to; default: a temporary one")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    files = object_files(args.objects)
    nbytes = sum(path.stat().st_size for path in files)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        out = Path(folder) / "out"
        contestants = {
            name: partial(time_command, command, out, len(files))
            for name, command in commands(args.objects, out).items()
        }
        rates = take_turns(contestants, args.repeats, before_each=os.sync)
    comparison = compare(rates, [LIMIT])
    print_comparison(f"pack {len(files):,} objects", comparison, nbytes // len(files))
    flushed = compare(rates, [FLUSHED])
    print_comparison("the same, of the flushed bytes", flushed, nbytes // len(files))
    command = "python -m benchmarks.pack_rates " + shlex.join(arguments or sys.argv[1:])
    facts = {"num_objects": len(files), "nbytes": nbytes, "repeats": args.repeats, "rates": rates}
    found = {**facts, **comparison, "of_flushed": flushed["contestants"]}
    print(write_result("pack_rates", found, command=command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
