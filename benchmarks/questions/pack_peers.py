"""What `msdata pack` is held against, each a program of its own, as a user would write it.

`bytes`: reads the files and writes their bytes to one file, with two processes: no format can be
faster. `flushed`: the same, and waits until the disk has them, as `msdata pack` does; what is not
flushed is lost when the node dies. `webdataset`: one process, `webdataset.TarWriter`. `h5py`: one
process, contiguous datasets.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

NUM_PROCESSES = 2


def object_files(folder: Path) -> list[Path]:
    """All object files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*.npy") if path.is_file())


def copy_bytes(objects: Path, out: Path, *, is_flushed: bool = False) -> None:
    """Reads every file and writes its bytes to one file, with two processes."""
    files = object_files(objects)
    offsets = np.cumsum([0, *(path.stat().st_size for path in files)]).tolist()
    out.touch()
    children = []
    for first in range(NUM_PROCESSES):
        child = os.fork()
        if child == 0:
            fd = os.open(out, os.O_WRONLY)
            for k in range(first, len(files), NUM_PROCESSES):
                os.pwrite(fd, files[k].read_bytes(), offsets[k])
            if is_flushed:
                os.fsync(fd)
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise SystemExit("a child failed")


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
    """One HDF5 file, a contiguous dataset an array."""
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


PEERS: dict[str, Callable[[Path, Path], None]] = {
    "bytes": copy_bytes,
    "flushed": partial(copy_bytes, is_flushed=True),
    "webdataset": write_webdataset,
    "h5py": write_h5py,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
