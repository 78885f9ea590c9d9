"""Finds samples in WebDataset tars, HDF5 files and folders of `.npy`, without copying a pixel.

Only headers are read here. Nothing is unpickled, extracted or written.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.files import refusals
from msdata.dataset.hdf5 import import_h5py
from msdata.errors import DataError, MsdataError
from msdata.ingest.found import (
    FoundFile,
    FoundSample,
    cannot,
    checked_dtype,
    file_of_samples,
    flat_labels,
    found_file,
    npy_array,
)
from msdata.ingest.found_labels import FoundLabel, label_of_array, label_of_values
from msdata.ingest.label_checks import RANGES
from msdata.sources.arrays.tars import tar_members

if TYPE_CHECKING:
    import pyarrow as pa

_LABEL_SUFFIXES = ("json", "cls", "txt")
_IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "gif", "tif", "tiff")
_PICKLES = ("pyd", "pkl", "pickle", "pth", "pt")
_PACKED = ("npz", "gz", "zst", "xz", "bz2", "blosc", "mp", "msgpack", "ten", "tb")
_REFUSED = {
    **dict.fromkeys(_IMAGES, "a compressed image"),
    **dict.fromkeys(_PICKLES, "a pickle"),
    **dict.fromkeys(_PACKED, "packed or compressed"),
}
_ID_NAMES = ("sample_id", "object_id", "objid", "id", "ids", "name")
# WebDataset's own rule: the key ends at the first dot of the file's name.
_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
_MAX_LABEL_NBYTES = 1 << 20


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Opens a file for reading, and words the refusals of the system."""
    with refusals("read", path):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


class _Members:
    """Collects the members of samples: arrays, labels, what is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.samples: dict[str, FoundSample] = {}
        self.left_out: Counter[str] = Counter()

    def add(self, fd: int, name: str, place: tuple[int, int]) -> None:
        """Takes one member of the open file; `place` is offset and bytes of its content."""
        found = _KEY.fullmatch(name)
        if found is None:
            self.left_out["members without a suffix"] += 1
            return
        key, suffix = found[1], found[2].lower()
        stem, _, kind = suffix.rpartition(".")
        if kind in _REFUSED:
            raise cannot(self._path, f"{name} is {_REFUSED[kind]}")
        if kind != "npy" and kind not in _LABEL_SUFFIXES:
            self.left_out[f".{suffix}"] += 1
            return
        sample = self.samples.setdefault(key, FoundSample(key))
        if kind == "npy":
            array = (found[2][: -len(kind)].rstrip(".") or "image").replace(".", "_")
            if array in sample.arrays:
                raise DataError(f"{self._path} holds array {array!r} of sample {key!r} twice")
            sample.arrays[array] = npy_array(fd, self._path, *place, name)
            return
        if place[1] > _MAX_LABEL_NBYTES:
            raise DataError(f"{self._path}: label {name} must have at most 1 MiB, got {place[1]} B")
        content = os.pread(fd, place[1], place[0])
        self._add_labels(sample, (stem, kind), content, name)

    def _add_labels(
        self, sample: FoundSample, suffix: tuple[str, str], content: bytes, name: str
    ) -> None:
        stem, kind = suffix
        if kind == "json":
            labels, others = flat_labels(content, self._path, name)
            self.left_out.update(f"JSON field {other!r}" for other in others)
        else:
            try:
                text = content.decode().strip()
                value = int(text) if kind == "cls" else text
            except ValueError:
                must = "an integer" if kind == "cls" else "UTF-8"
                raise DataError(f"{self._path}: label {name} must be {must}") from None
            labels = {stem or kind: value}
        for label, value in labels.items():
            if label in sample.labels:
                raise DataError(f"{self._path} holds label {label!r} of {name} twice")
            sample.labels[label] = value

    def found(self, nbytes: int) -> FoundFile:
        """All samples that have arrays."""
        without = [s for s in self.samples.values() if not s.arrays]
        if without:
            raise cannot(
                self._path,
                f"{len(without)} samples have no .npy member; the first is "
                f"{without[0].sample_id!r}",
            )
        return file_of_samples(self._path, nbytes, list(self.samples.values()), self.left_out)


def read_tar(path: Path) -> FoundFile:
    """Finds the samples of a WebDataset tar; see `msdata.ingest.in_place.index_in_place`."""
    members = _Members(path)
    with _opened(path) as fd, os.fdopen(os.dup(fd), "rb") as file:
        nbytes = os.fstat(fd).st_size
        for member in tar_members(path, file):
            if member.isreg() and not member.issparse():
                members.add(fd, member.name, (member.offset_data, member.size))
            elif not member.isdir():
                raise cannot(path, f"{member.name} is not a plain file")
    return members.found(nbytes)


def read_npy(first: Path, *labels: Path) -> FoundFile:
    """Finds the one sample of a `.npy` file and the label files beside it."""
    members = _Members(first)
    sizes = []
    for path in (first, *labels):
        with _opened(path) as fd:
            sizes.append(os.fstat(fd).st_size)
            members.add(fd, path.name, (0, sizes[-1]))
    return members.found(sizes[0])


def read_hdf5(path: Path) -> FoundFile:
    """Finds the samples of an HDF5 file; see `msdata.ingest.in_place.index_in_place`."""
    h5py = import_h5py()
    with _opened(path) as fd:
        nbytes = os.fstat(fd).st_size
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read_datasets(h5py, file, path, nbytes)
    except OSError as error:
        if isinstance(error, MsdataError):
            raise
        raise DataError(f"{path} is damaged, or not an HDF5 file ({error})") from error


def _read_datasets(h5py: Any, file: Any, path: Path, nbytes: int) -> FoundFile:
    if file.userblock_size:
        raise cannot(path, "it starts with a user block")
    left_out: Counter[str] = Counter()
    arrays, columns = {}, {}
    for name in file:
        # A link may lead into another file.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise cannot(path, f"{name!r} is a link")
        found = file[name]
        if not isinstance(found, h5py.Dataset):
            left_out[f"group {name!r}"] += 1
        elif found.ndim > 1 and found.dtype.kind in "biufc":
            arrays[name] = found
        elif found.ndim == 1:
            columns[name] = found
        else:
            left_out[f"dataset {name!r}"] += 1
    if not arrays:
        raise cannot(path, "no dataset at its root has the shape (samples, ...)")
    sizes = {name: found.shape[0] for name, found in arrays.items()}
    count = next(iter(sizes.values()))
    if set(sizes.values()) != {count}:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise cannot(path, f"its datasets have different numbers of samples ({told})")
    specs = {
        name: (checked_dtype(path, repr(name), a.dtype), a.shape[1:]) for name, a in arrays.items()
    }
    offsets = {name: _offsets(path, name, found) for name, found in arrays.items()}
    values = {}
    for name, column in columns.items():
        if len(column) == count:
            values[name] = _column(path, column)
        else:
            left_out[f"dataset {name!r}"] += 1
    ids = _ids(path, count, values)
    labels = {name: _label(name, column, ids) for name, column in values.items()}
    kept = {name: label for name, label in labels.items() if label is not None}
    return found_file(path, nbytes, ids, specs, offsets, kept, left_out)


def _column(path: Path, dataset: Any) -> Any:
    """Numbers and truth values as an array, texts as an Arrow array, other values as a list."""
    import pyarrow as pa

    found = dataset[:]
    if found.dtype.kind in "biuf":
        return found
    try:
        texts = [v.decode() if isinstance(v, bytes) else v for v in found.tolist()]
    except UnicodeDecodeError:
        raise cannot(path, f"label {dataset.name!r} holds bytes that are not UTF-8") from None
    return pa.array(texts, pa.string()) if all(isinstance(v, str) for v in texts) else texts


def _label(name: str, values: Any, ids: pa.Array) -> FoundLabel | None:
    if isinstance(values, np.ndarray):
        return label_of_array(name, values)
    if isinstance(values, list):
        return label_of_values(name, values, ids.to_pylist())
    if name in RANGES:
        return label_of_values(name, values.to_pylist(), ids.to_pylist())
    return FoundLabel(kind="text", values=values)


def _ids(path: Path, count: int, labels: Mapping[str, Any]) -> pa.Array:
    import pyarrow as pa

    for name in _ID_NAMES:
        if name not in labels:
            continue
        values = labels[name]
        if isinstance(values, list) or (
            isinstance(values, np.ndarray) and values.dtype.kind == "f"
        ):
            values = pa.array([str(v) for v in values], pa.string())
        elif isinstance(values, np.ndarray):
            values = pa.array(values).cast(pa.string())
        if len(values.unique()) == count:
            return values
    import pyarrow.compute as pc

    numbers = pa.array(np.arange(count)).cast(pa.string())
    padded = pc.utf8_lpad(numbers, width=7, padding="0")
    return pc.binary_join_element_wise(f"{path.stem}-", padded, "")


def _offsets(path: Path, name: str, dataset: Any) -> NDArray[np.int64]:
    """int64 (samples,), the place of each sample's array in the file."""
    count = len(dataset)
    nbytes = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
    if dataset.id.get_create_plist().get_nfilters():
        raise cannot(path, f"dataset {name!r} is compressed ({dataset.compression or 'filtered'})")
    if dataset.is_virtual or dataset.external:
        raise cannot(path, f"dataset {name!r} lies in other files")
    if dataset.chunks is None:
        start = dataset.id.get_offset()
        if start is None:
            raise cannot(path, f"dataset {name!r} holds no data, or is compact")
        return np.asarray(int(start) + nbytes * np.arange(count, dtype=np.int64))
    per_chunk, *rest = dataset.chunks
    if tuple(rest) != dataset.shape[1:]:
        raise cannot(path, f"the chunks {dataset.chunks} of dataset {name!r} divide its samples")
    starts = np.full(-(-count // per_chunk), -1, np.int64)

    def note(chunk: Any) -> None:
        starts[chunk.chunk_offset[0] // per_chunk] = chunk.byte_offset

    dataset.id.chunk_iter(note)
    if bool((starts < 0).any()):
        raise cannot(path, f"dataset {name!r} has chunks that were never written")
    rows = np.arange(count, dtype=np.int64)
    return np.asarray(starts[rows // per_chunk] + nbytes * (rows % per_chunk))
