"""How near packing comes to merely reading the objects and writing their bytes.

python -m benchmarks pack_rates --objects DIR --repeats 3

Every contestant is a process of its own, timed from its start to its end, on files in the page
cache; what earlier contestants wrote is on the disk before the next one starts. `msdata pack` does
what the others do not: it checks every object, sums it, flushes every shard to the disk.

The others are as a user would write them. `bytes` reads the files and writes their bytes to one
file, with two processes: no format can be faster. `flushed`: the same, and waits until the disk has
them, as `msdata pack` does; what is not flushed is lost when the node dies. `webdataset`: one
process, `webdataset.TarWriter`. `h5py`: one process, contiguous datasets.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

NUM_PROCESSES = 2
LIMIT = "bytes, 2 processes"
FLUSHED = "bytes, flushed, 2 processes"


def object_files(folder: Path) -> list[Path]:
    """All object files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*.npy") if path.is_file())


def _copy_some(objects: Path, out: Path, is_flushed: bool, first: int) -> None:
    files = object_files(objects)
    offsets = np.cumsum([0, *(path.stat().st_size for path in files)]).tolist()
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    for k in range(first, len(files), NUM_PROCESSES):
        os.pwrite(fd, files[k].read_bytes(), offsets[k])
    if is_flushed:
        os.fsync(fd)


def copy_bytes(objects: Path, out: Path, *, is_flushed: bool = False) -> None:
    """Reads every file and writes its bytes to one file, with two processes."""
    with multiprocessing.get_context("fork").Pool(NUM_PROCESSES) as pool:
        pool.map(partial(_copy_some, objects, out, is_flushed), range(NUM_PROCESSES), 1)


def _samples(objects: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    with (objects / "catalog.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        id_column = (rows.fieldnames or [""])[0]
        labels = {int(row[id_column]): row for row in rows}
    for path in object_files(objects):
        yield path.stem, np.load(path, allow_pickle=True).item(), labels[int(path.stem)]


def write_webdataset(objects: Path, out: Path) -> None:
    """One tar with `webdataset.TarWriter`."""
    import webdataset

    with webdataset.TarWriter(str(out)) as writer:
        for key, arrays, row in _samples(objects):
            sample: dict[str, Any] = {f"{name}.npy": array for name, array in arrays.items()}
            writer.write({"__key__": key, **sample, "json": json.dumps(row).encode()})


def write_h5py(objects: Path, out: Path) -> None:
    """One HDF5 file, a contiguous dataset per array."""
    import h5py

    count = len(object_files(objects))
    with h5py.File(out, "w") as file:
        redshift = np.zeros(count)
        for i, (_, arrays, row) in enumerate(_samples(objects)):
            for name, array in arrays.items():
                if i == 0:
                    file.create_dataset(name, (count, *array.shape), array.dtype)
                file[name][i] = array
            redshift[i] = float(row["redshift"])
        file["redshift"] = redshift


PEERS = {
    LIMIT: copy_bytes,
    FLUSHED: partial(copy_bytes, is_flushed=True),
    "webdataset.TarWriter": write_webdataset,
    "h5py, contiguous": write_h5py,
}


def commands(objects: Path, out: Path) -> dict[str, list[str]]:
    """The contestants' command lines."""
    pack = [sys.executable, "-m", "msdata", "pack", str(objects), str(out), "--quiet"]
    pack += ["--catalog", str(objects / "catalog.csv"), "--jobs", str(NUM_PROCESSES), "--format"]
    peer = [sys.executable, "-m", "benchmarks.parts.pack_rates", str(objects), str(out)]
    ours = {f"msdata pack --format {name}": [*pack, name] for name in ("tar", "hdf5")}
    coded = ["--quantize", "4", "--compress", "lz4"]
    ours[f"msdata pack {' '.join(coded)}"] = [*pack, "tar", *coded]
    return {**ours, **{name: [*peer, name] for name in PEERS}}


def main(words: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    # Here, since the others are timed from their start.
    from benchmarks.harness import (
        compare,
        part_parser,
        print_comparison,
        run_timed,
        take_turns,
        write_part,
    )

    parser = part_parser("pack_rates", "Packing beside copying the bytes.")
    parser.add_argument("--objects", type=Path, required=True, help="pickles with catalog.csv")
    parser.add_argument("--work", type=Path, help="folder to write to; default: a temporary one")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(words)
    files = object_files(args.objects)
    nbytes = sum(path.stat().st_size for path in files)

    def rate(command: list[str]) -> float:
        os.sync()
        seconds = run_timed(command)["seconds"]
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        return len(files) / seconds

    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        out = Path(folder) / "out"
        named = commands(args.objects, out)
        rates = take_turns({name: partial(rate, named[name]) for name in named}, args.repeats)
    comparison, flushed = compare(rates, [LIMIT]), compare(rates, [FLUSHED])
    print_comparison(f"pack {len(files):,} objects", comparison, nbytes // len(files))
    print_comparison("the same, of the flushed bytes", flushed, nbytes // len(files))
    facts = {"num_objects": len(files), "nbytes": nbytes, "repeats": args.repeats}
    found = {**facts, **comparison, "flushed": flushed}
    write_part("pack_rates", found, words, args.out)
    return 0


if __name__ == "__main__":
    PEERS[sys.argv[3]](Path(sys.argv[1]), Path(sys.argv[2]))
