"""Data sets that benchmarks run on: made once by the product's own commands, kept for the next."""

from __future__ import annotations

import pickle
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from benchmarks.harness import Settings
from msdata.core.checksum import crc32c
from msdata.schema import MANTIS_SHRIMP

OBJECTS, TRUTH = "objects", "truth.npz"
# Options of `msdata pack`: one split, train, and no object is rejected, since their number counts.
WHOLE = ("--split", "1,0,0", "--max-nan-fraction", "1")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Frozen mock samples: the same bytes for the same name and number, on any machine.

    Attributes:
        name: what is written with results.
        arrays: for each array of a sample its shape and dtype.
        num_samples: samples of a full run.
        num_quick: samples of a quick run.
        batch_size: samples of a batch.
    """

    name: str
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    num_samples: int
    num_quick: int
    batch_size: int

    @property
    def sample_nbytes(self) -> int:
        """Bytes of a sample's arrays."""
        return sum(int(np.prod(s)) * np.dtype(d).itemsize for s, d in self.arrays.values())


WORKLOADS = {
    w.name: w
    for w in (
        # Cutouts in nine bands, 580 KiB: this project's own.
        Workload(
            name="mantis",
            arrays={a.name: (a.shape, a.dtype) for a in MANTIS_SHRIMP.arrays},
            num_samples=4096,
            num_quick=640,
            batch_size=64,
        ),
        # Stamps in three bands, 48 KiB: where a sample costs more than its bytes.
        Workload(
            name="stamps",
            arrays={"image": ((64, 64, 3), "<f4")},
            num_samples=40_960,
            num_quick=6144,
            batch_size=256,
        ),
        # Frames of 4 MiB: where a batch no longer fits a processor's cache.
        Workload(
            name="large",
            arrays={"image": ((4, 512, 512), "<f4")},
            num_samples=800,
            num_quick=160,
            batch_size=16,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Objects that every contestant converts, and what each sample must be.

    Attributes:
        folder: holds `objects/`, pickled dicts with `catalog.csv`, one object a file.
        arrays: for each array of a sample its shape and dtype, in order.
        checksums: uint32 (samples, arrays), CRC32C of each array's bytes.
        edges: uint8 (samples, arrays, 8), the first and the last four bytes of each array.
    """

    folder: Path
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    checksums: NDArray[np.uint32]
    edges: NDArray[np.uint8]

    @property
    def objects(self) -> Path:
        """The folder of the pickles."""
        return self.folder / OBJECTS


def object_path(objects: Path, number: int) -> Path:
    """Where the object of a number lies: a thousand a folder, as upstream's tree has them."""
    return objects / f"{number // 1000:04d}" / f"{number:07d}.pkl"


def redshift_of(number: int) -> float:
    """The label of an object, between 0 and 1.6 and unlike its neighbors'."""
    return round((number * 0.618034) % 1 * 1.6, 4)


def mock_objects(workload: Workload, num_samples: int) -> Iterator[dict[str, NDArray[Any]]]:
    """The workload's samples: Gaussian noise on a flat sky, which hardly compresses."""
    for number in range(num_samples):
        random = np.random.default_rng((1729, number))
        yield {
            name: 10 + random.standard_normal(shape, np.float32).astype(dtype)
            for name, (shape, dtype) in workload.arrays.items()
        }


def dataset_objects(data: Path, num_samples: int) -> Iterator[dict[str, NDArray[Any]]]:
    """The first samples of a packed data set's split "train"."""
    split = msdata.open(data).split("train")
    for number in range(min(num_samples, len(split))):
        sample = split[number]
        yield {name: np.ascontiguousarray(sample[name]) for name in split.schema.names}


def write_source(folder: Path, objects: Iterator[dict[str, NDArray[Any]]]) -> Source:
    """Writes objects, their catalog and their checksums; whole or not at all.

    Args:
        folder: what stands there already is taken as it is.
        objects: dicts of arrays, all of the same shapes.

    Returns:
        The source.
    """
    if not (folder / TRUTH).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        write_truth(unfinished, _written(unfinished / OBJECTS, objects))
        # Refused where the folder holds something else.
        unfinished.rename(folder)
    first = pickle.loads(object_path(folder / OBJECTS, 0).read_bytes())
    arrays = {name: (array.shape, array.dtype.str) for name, array in first.items()}
    with np.load(folder / TRUTH) as truth:
        return Source(folder=folder, arrays=arrays, **truth)


def _written(
    folder: Path, objects: Iterator[dict[str, NDArray[Any]]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The objects, each once it is written, their catalog after them."""
    lines = ["mantis_id,redshift,ra,dec"]
    for number, arrays in enumerate(objects):
        path = object_path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(arrays, protocol=4))
        lines.append(f"{number:07d},{redshift_of(number)},{number % 360}.5,{number % 90 - 45}.5")
        yield arrays
    (folder / "catalog.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_truth(folder: Path, samples: Iterable[Mapping[str, NDArray[Any]]]) -> int:
    """Writes what the arrays of samples are compared with; returns how many samples there were."""
    checksums, edges = [], []
    for arrays in samples:
        checksums.append([crc32c(array) for array in arrays.values()])
        edges.append(edge_bytes({name: array[None] for name, array in arrays.items()})[0])
    np.savez(folder / TRUTH, checksums=np.array(checksums, np.uint32), edges=np.array(edges))
    return len(checksums)


def edge_bytes(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """The first and the last four bytes of each array of each row: uint8 (rows, arrays, 8)."""
    found = []
    for array in arrays.values():
        flat = array.reshape(len(array), -1).view(np.uint8)
        found.append(np.concatenate([flat[:, :4], flat[:, -4:]], axis=1))
    return np.stack(found, axis=1)


def size_of(settings: Settings) -> tuple[int, int]:
    """How many samples a question runs on, and bytes of each."""
    workload = WORKLOADS[settings.workload]
    count = settings.mock or (workload.num_quick if settings.quick else workload.num_samples)
    if settings.data is None:
        return count, workload.sample_nbytes
    split = msdata.open(settings.data).split("train")
    return min(count, len(split)), split.schema.sample_nbytes


def make_source(settings: Settings, count: int) -> Source:
    """The workload's objects, or the first samples of the data set given, unless they are there."""
    if settings.data is None:
        name = f"{settings.workload}-{count}"
        objects = mock_objects(WORKLOADS[settings.workload], count)
    else:
        name = f"data-{msdata.open(settings.data).manifest.fingerprint[:12]}-{count}"
        objects = dataset_objects(settings.data, count)
    return write_source(settings.work / name, objects)


def pack_source(source: Source, out: Path, shard_nbytes: int) -> Path:
    """All objects packed into one split, train, in shards of about a size; unless it is there."""
    size = ("--quiet", "--shard-size", f"{max(64, shard_nbytes >> 10)}KiB")
    return pack_objects(source.objects, out, *WHOLE, "--inpaint", "none", *size)


def run_command(module: str, *arguments: str | Path) -> None:
    """Runs and shows `python -m MODULE ...`; ends this process with its exit code if it fails."""
    words = [str(a) for a in arguments]
    print(f"\n$ {module} {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", module, *words]).returncode
    if code:
        raise SystemExit(code)


run_msdata, run_mstrain = partial(run_command, "msdata"), partial(run_command, "mstrain")


def make_objects(objects: Path, num_objects: int, *options: str) -> Path:
    """Mock objects with `catalog.csv` in a folder, unless they are there; returns the folder."""
    if not (objects / "catalog.csv").exists():
        objects.parent.mkdir(parents=True, exist_ok=True)
        run_msdata("mock", objects, "--n", str(num_objects), *(options or ("--seed", "0")))
    return objects


def pack_objects(objects: Path, out: Path, *options: str) -> Path:
    """The objects of a folder packed into another, unless it was done; returns that."""
    if not (out / "dataset.json").is_file():
        catalog = ("--catalog", objects / "catalog.csv", "--resume")
        run_msdata("pack", objects, out, *catalog, *options)
    return out


def pack_mock(out: Path, objects: Path, num_objects: int, *options: str) -> Path:
    """A packed data set of mock objects, which are made for it, unless it is there."""
    if not (out / "dataset.json").is_file():
        pack_objects(make_objects(objects, num_objects), out, *options)
    return out
