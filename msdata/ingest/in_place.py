"""Makes a data set of files where they lie: an index, links to the files, and no copied byte.

Compared with packing: no second copy and seconds in place of hours; but a file keeps its own order
of samples, its labels, and whatever lies between its arrays, which nothing checks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata import __version__
from msdata.core.files import storage_error, sync_folder
from msdata.core.options import num_jobs
from msdata.core.trusted_names import is_plain_name
from msdata.dataset.dataset import open_dataset
from msdata.dataset.index import fixed_columns, write_index
from msdata.dataset.links import write_links
from msdata.dataset.manifest import INDEXED, Manifest, ShardInfo
from msdata.errors import DataError, SampleError, UsageError
from msdata.ingest.found import CONVERT, FoundFile, FoundSample, believed, measure
from msdata.ingest.join import check_absent
from msdata.ingest.label_checks import check_exact, check_id, joined_kind
from msdata.ingest.readers import (
    HDF5_SUFFIXES,
    NPY_SUFFIX,
    TAR_SUFFIXES,
    read_hdf5,
    read_npy,
    read_tar,
)
from msdata.pack.candidates import hashed_ids
from msdata.pack.columns import check_array_names, label_names
from msdata.pack.settings import SPLIT_NAMES, PackSettings
from msdata.schema import Schema, Survey
from msdata.sources.parts import LabelKind

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIXES = (*TAR_SUFFIXES, *HDF5_SUFFIXES, NPY_SUFFIX)
_LABEL_SUFFIXES = (".json", ".cls", ".txt")
# A shard takes 300 bytes of JSON, which is read when the data set is opened.
_MAX_FILES = 100_000


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What `index_in_place` did.

    Attributes:
        manifest: the data set.
        notes: what was left out, with counts.
    """

    manifest: Manifest
    notes: tuple[str, ...]


def index_in_place(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split_fractions: tuple[float, ...] | None = None,
    seed: int = 0,
    jobs: int | None = None,
) -> IndexReport:
    """Makes a data set of files where they lie, as `msdata index` does.

        msdata.index("TARS", "DATA")
        data = msdata.open("DATA")

    Reads every array once, for its checksum. The files must stay where they are, unchanged.

    Args:
        source: a WebDataset tar with `.npy` members (labels: `.json`, `.cls`, `.txt`), an HDF5 file
            with datasets (samples, ...), or a folder with files of one of these kinds or with
            one `.npy` file per sample.
        out: folder of the data set; new or empty.
        split_fractions: fractions of train, val and test, drawn by id; None: the names of the
            folders in `source` where all its files lie in folders, else 0.7, 0.1, 0.2.
        seed: what splits are drawn with.
        jobs: files that are read in parallel; None means one per core.

    Raises:
        UsageError: the files cannot be read in place; the message says why, and what converts them.
        DataError: a file is damaged.
        StorageError: the file system refused.
    """
    root, folder = Path(source).absolute(), Path(out).absolute()
    check_absent(folder)
    groups = _groups(root)
    fractions = split_fractions or PackSettings.split_fractions
    # Checks both.
    PackSettings(source=root, out=folder, split_fractions=fractions, seed=seed)
    if folder.is_relative_to(root) and root.is_dir():
        raise UsageError(f"{folder} must not lie inside of {root}; choose another folder")

    def read(group: Sequence[Path]) -> FoundFile:
        found = _read(group)
        with group[0].open("rb") as file:
            for sample in found.samples:
                measure(file.fileno(), group[0], sample)
        return found

    try:
        with ThreadPoolExecutor(num_jobs(jobs), thread_name_prefix="index") as pool:
            files = list(pool.map(read, groups))
    except OSError as error:
        if isinstance(error, (UsageError, DataError)) or error.filename is None:
            raise
        raise storage_error("read", Path(error.filename), error) from error
    files = [file for file in files if file.samples]
    schema = _schema_of(files)
    _check_ids(files)
    named = None if split_fractions else _folders(root, files)
    splits = named or _drawn(files, fractions, seed)
    return _write(folder, files, schema, (splits, seed))


def _groups(root: Path) -> list[list[Path]]:
    """The files to read: a tar or HDF5 file, or a `.npy` with the label files beside it."""
    if not root.exists():
        raise UsageError(f"{root} does not exist; check the path")
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    found = [p for p in paths if p.suffix.lower() in _SUFFIXES]
    kinds = {_kind(p) for p in found}
    if len(found) > _MAX_FILES:
        raise UsageError(
            f"cannot index {root}: it holds {len(found):,} files, more than {_MAX_FILES:,}, and "
            f"each becomes a shard; {CONVERT}"
        )
    if not found:
        first = f"; the first file is {paths[0]}" if paths else ""
        raise UsageError(
            f"cannot index {root}: it holds no .tar, .h5, .hdf5 or .npy file{first}. For pickled "
            f"dicts, blocks or FITS run 'msdata pack {root} DATA'; for others, {CONVERT}"
        )
    if len(kinds) > 1:
        raise UsageError(
            f"cannot index {root}: it holds files of several kinds ({', '.join(sorted(kinds))}); "
            "index each kind by itself"
        )
    if kinds != {"npy"}:
        return [[p] for p in found]
    labels = defaultdict(list)
    for path in paths:
        if path.suffix.lower() in _LABEL_SUFFIXES:
            labels[_stem(path)].append(path)
    by_key: dict[Path, list[Path]] = defaultdict(list)
    for path in found:
        by_key[_stem(path)].append(path)
    for arrays in by_key.values():
        if len(arrays) > 1:
            raise UsageError(
                f"cannot read {arrays[0]} in place: {arrays[1].name} is another array of the same "
                f"sample, and an array lies in the file of its sample; {CONVERT}"
            )
    return [[path, *labels[_stem(path)]] for path in found]


def _stem(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0])


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return "tar" if suffix in TAR_SUFFIXES else "hdf5" if suffix in HDF5_SUFFIXES else "npy"


def _read(group: Sequence[Path]) -> FoundFile:
    kind = _kind(group[0])
    if kind == "npy":
        return read_npy(group)
    return read_tar(group[0]) if kind == "tar" else read_hdf5(group[0])


def _schema_of(files: Sequence[FoundFile]) -> Schema:
    """The arrays that all samples have."""
    if not files:
        raise UsageError(f"cannot index these files: none holds a sample; {CONVERT}")
    first = files[0].samples[0]
    wanted = {name: (a.dtype, a.shape) for name, a in first.arrays.items()}
    for file in files:
        for sample in file.samples:
            found = {name: (a.dtype, a.shape) for name, a in sample.arrays.items()}
            if found != wanted:
                raise UsageError(
                    f"cannot read {file.path} in place: sample {sample.sample_id!r} has "
                    f"{_told(found)}, {first.sample_id!r} of {files[0].path.name} has "
                    f"{_told(wanted)}; crop them to one shape: {CONVERT}"
                )
            # The order of the first sample's arrays is that of the checksum.
            if list(found) != list(wanted):
                raise UsageError(
                    f"cannot read {file.path} in place: the arrays of {sample.sample_id!r} are in "
                    f"another order than those of {first.sample_id!r}; {CONVERT}"
                )
    arrays = (Survey(name=n, shape=shape, dtype=dtype) for n, (dtype, shape) in wanted.items())
    schema = Schema(name="inferred", arrays=tuple(arrays))
    check_array_names(schema)
    return schema


def _told(arrays: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{n} {d} {'x'.join(map(str, s))}" for n, (d, s) in arrays.items())


def _check_ids(files: Sequence[FoundFile]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        for sample in file.samples:
            try:
                check_id(sample.sample_id)
            except SampleError as error:
                raise UsageError(f"cannot index {file.path}: {error}") from error
            if sample.sample_id in seen:
                raise UsageError(
                    f"cannot index {file.path}: sample {sample.sample_id!r} is also in "
                    f"{seen[sample.sample_id]}; every sample needs its own id"
                )
            seen[sample.sample_id] = file.path


def _folders(root: Path, files: Sequence[FoundFile]) -> list[list[str]] | None:
    """The split of each sample: the folder of its file, where all lie in at least two folders."""
    names = []
    for file in files:
        parts = file.path.relative_to(root).parts
        names.append(parts[0] if len(parts) > 1 else "")
    are_splits = all(is_plain_name(n) for n in names) and "train" in names and len(set(names)) > 1
    if not are_splits:
        return None
    return [[name] * len(file.samples) for name, file in zip(names, files, strict=True)]


def _drawn(files: Sequence[FoundFile], fractions: Sequence[float], seed: int) -> list[list[str]]:
    edges = np.cumsum(fractions)[:-1]
    drawn = []
    for file in files:
        words = hashed_ids([s.sample_id for s in file.samples], seed)[:, 0]
        numbers = np.searchsorted(edges, words.astype(np.float64) * 2.0**-64, side="right")
        drawn.append([SPLIT_NAMES[n] for n in numbers.tolist()])
    return drawn


def _write(
    out: Path, files: Sequence[FoundFile], schema: Schema, drawn: tuple[list[list[str]], int]
) -> IndexReport:
    """Makes the data set beside its final name, then renames it."""
    splits, seed = drawn
    rows, shards, targets = _placed(files, splits)
    table, notes = _table(rows, schema)
    left_out = sum((file.left_out for file in files), Counter[str]())
    notes += [f"{what} left out of {count:,} samples or files" for what, count in left_out.items()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".partial", dir=out.parent))
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o777 & ~mask)
    except OSError as error:
        raise storage_error("write", out, error) from error
    try:
        write_links(made, targets)
        manifest = Manifest(
            container=INDEXED,
            schema=schema,
            shards=tuple(shards),
            seed=seed,
            index_sha256=write_index(made, table, schema),
            provenance={"msdata": __version__, "num_rejected": 0},
        )
        manifest.write(made)
        # Whatever a reader would refuse is refused now.
        open_dataset(made)
        made.rename(out)
        sync_folder(out.parent)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if not isinstance(error, OSError) or error.errno is None:
            raise
        raise storage_error("write", out, error) from error
    return IndexReport(manifest=manifest, notes=tuple(notes))


_Row = tuple[FoundSample, str, int]


def _placed(
    files: Sequence[FoundFile], splits: Sequence[Sequence[str]]
) -> tuple[list[_Row], list[ShardInfo], dict[str, Path]]:
    """Samples in the order of the index, with split and shard; the shards; their files."""
    by_split: dict[str, list[tuple[FoundFile, list[FoundSample]]]] = defaultdict(list)
    for file, names in zip(files, splits, strict=True):
        parts: dict[str, list[FoundSample]] = defaultdict(list)
        for sample, name in zip(file.samples, names, strict=True):
            parts[name].append(sample)
        for name, samples in parts.items():
            by_split[name].append((file, samples))
    known = {name: number for number, name in enumerate(SPLIT_NAMES)}
    rows: list[_Row] = []
    shards, targets = [], {}
    for split in sorted(by_split, key=lambda n: (known.get(n, len(known)), n)):
        for number, (file, samples) in enumerate(by_split[split]):
            name = f"shard-{number:06d}{file.path.suffix.lower()}"
            rows += [(sample, split, number) for sample in samples]
            shard = ShardInfo(
                split=split,
                name=name,
                num_samples=len(samples),
                nbytes=file.nbytes,
                frame_crc32c=0,
            )
            shards.append(shard)
            targets[shard.relative_path] = file.path
    return rows, shards, targets


def _table(rows: Sequence[_Row], schema: Schema) -> tuple[pa.Table, list[str]]:
    import pyarrow as pa

    count, names = len(rows), schema.names
    columns: dict[str, Any] = {
        "sample_id": pa.array([s.sample_id for s, _, _ in rows], pa.string()),
        "split": pa.array([split for _, split, _ in rows], pa.string()),
        "shard": pa.array([shard for _, _, shard in rows], pa.int32()),
        "nbytes": pa.array(np.full(count, schema.sample_nbytes, np.int64)),
        "crc32c": pa.array([s.crc32c for s, _, _ in rows], pa.uint32()),
        "missing_bands": pa.array([""] * count, pa.string()),
    }
    for name in names:
        columns[f"offset_{name}"] = pa.array(
            [s.arrays[name].offset for s, _, _ in rows], pa.int64()
        )
        columns[f"filled_{name}"] = pa.array(np.zeros(count, np.int32))
        columns[f"nan_{name}"] = pa.array([s.num_nan[name] for s, _, _ in rows], pa.int32())
    ordered = {name: columns[name] for name in fixed_columns(schema)}
    labels, notes = _label_columns([s for s, _, _ in rows], schema)
    return pa.table({**ordered, **labels}), notes


def _label_columns(
    samples: Sequence[FoundSample], schema: Schema
) -> tuple[dict[str, Any], list[str]]:
    import pyarrow as pa

    kinds: dict[str, LabelKind] = {}
    dropped: Counter[str] = Counter()
    kept = []
    for sample in samples:
        values, others = believed(sample.labels)
        dropped.update(others)
        kept.append(values)
        for name, value in values.items():
            kind = _kind_of(value)
            try:
                kinds[name] = joined_kind(name, kinds.get(name, "nothing"), kind)
                check_exact(name, value, kinds[name])
            except SampleError as error:
                raise UsageError(f"cannot index sample {sample.sample_id!r}: {error}") from error
    types = {
        "truth value": pa.bool_(),
        "integer": pa.int64(),
        "text": pa.string(),
        "number": pa.float64(),
        "nothing": pa.float64(),
    }
    free = label_names(kinds, schema)
    columns = {
        free[name]: pa.array([values.get(name) for values in kept], types[kind])
        for name, kind in kinds.items()
    }
    notes = [f"label {a!r} is kept as {b!r}" for a, b in free.items() if a != b]
    notes += [
        f"label {name!r} of {count:,} samples is null: it must be a number, text or truth value "
        "that msdata believes"
        for name, count in dropped.items()
    ]
    return columns, notes


def _kind_of(value: Any) -> LabelKind:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "truth value"
    return {int: "integer", float: "number", str: "text"}[type(value)]  # type: ignore[return-value]
