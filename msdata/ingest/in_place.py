"""Makes a data set of files where they lie: an index, links to the files, and no copied byte.

Compared with packing: no second copy and seconds in place of hours; but a file keeps its own order
of samples, its labels, and whatever lies between its arrays, which nothing checks.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata import __version__
from msdata.core.files import refusals, storage_error, sync_folder
from msdata.core.options import num_jobs
from msdata.core.trusted_names import is_plain_name
from msdata.dataset.dataset import open_dataset
from msdata.dataset.index import fixed_columns, write_index
from msdata.dataset.links import write_links
from msdata.dataset.manifest import INDEXED, Manifest, ShardInfo
from msdata.errors import UsageError
from msdata.ingest.found import FoundFile, cannot, check_same_arrays, convert
from msdata.ingest.found_labels import label_columns
from msdata.ingest.join import check_absent
from msdata.ingest.readers import read_hdf5, read_npy, read_tar
from msdata.pack.candidates import hashed_ids
from msdata.pack.columns import check_array_names
from msdata.pack.settings import SPLIT_NAMES, PackSettings
from msdata.schema import Schema, Survey

if TYPE_CHECKING:
    import pyarrow as pa

_KINDS = {".tar": "tar", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".npy": "npy"}
_LABEL_SUFFIXES = (".json", ".cls", ".txt")
# A shard takes 300 bytes of JSON, which is read when the data set is opened.
_MAX_FILES = 100_000
_IDS_AT_ONCE = 1 << 16


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

    try:
        with ThreadPoolExecutor(num_jobs(jobs), thread_name_prefix="index") as pool:
            files = list(pool.map(_read, groups))
    except OSError as error:
        if error.filename is None:
            raise
        raise storage_error("read", Path(error.filename), error) from error
    files = [file for file in files if len(file)]
    if not files:
        raise UsageError(f"cannot index {root}: none of its files holds a sample; check the path")
    _check_stack(groups, files[0])
    schema = _schema_of(files)
    _check_ids(files)
    named = None if split_fractions else _folders(root, files)
    splits = named or _drawn(files, fractions, seed)
    report = _write(folder, files, schema, (splits, seed))
    return replace(report, notes=(*report.notes, *_others(root, groups)))


def _others(root: Path, groups: Sequence[Sequence[Path]]) -> list[str]:
    """A note on the files that are not read."""
    read = {path for group in groups for path in group}
    others = sorted(p for p in root.rglob("*") if p.is_file() and p not in read)
    return [f"{len(others):,} files are not indexed, such as {others[0]}"] if others else []


def _check_stack(groups: Sequence[Sequence[Path]], first: FoundFile) -> None:
    """Refuses a `.npy` that holds a stack of images: it would be one sample."""
    shape = next(iter(first.arrays.values()))[1]
    if _kind(first.path) == "npy" and len(groups) == 1 and len(shape) > 3:
        raise cannot(first.path, f"its array {shape} is a stack, but a .npy file is one sample")


def _groups(root: Path) -> list[list[Path]]:
    """The files to read: a tar or HDF5 file, or a `.npy` with the label files beside it."""
    if not root.exists():
        raise UsageError(f"{root} does not exist; check the path")
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    found = [p for p in paths if p.suffix.lower() in _KINDS]
    kinds = {_kind(p) for p in found}
    if len(found) > _MAX_FILES:
        raise UsageError(
            f"cannot index {root}: it holds {len(found):,} files, more than {_MAX_FILES:,}, and "
            f"each becomes a shard; {convert(root)}"
        )
    if not found:
        but = f" but {paths[0].name}" if paths else ": it is empty"
        raise UsageError(
            f"cannot index {root}: it holds no .tar, .h5, .hdf5 or .npy file{but}; {convert(root)}"
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
    first_of: dict[Path, Path] = {}
    for path in found:
        first = first_of.setdefault(_stem(path), path)
        if first != path:
            raise UsageError(
                f"cannot read {first} in place: {path.name} is another array of the same sample, "
                f"and an array lies in the file of its sample; {convert(root)}"
            )
    return [[path, *labels[_stem(path)]] for path in found]


def _stem(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0])


def _kind(path: Path) -> str:
    return _KINDS[path.suffix.lower()]


def _read(group: Sequence[Path]) -> FoundFile:
    if _kind(group[0]) == "npy":
        return read_npy(*group)
    return (read_tar if _kind(group[0]) == "tar" else read_hdf5)(group[0])


def _schema_of(files: Sequence[FoundFile]) -> Schema:
    """The arrays that all samples have."""
    first = files[0]
    for file in files:
        known = (first.ids[0].as_py(), first.arrays, first.path)
        check_same_arrays(file.path, (file.ids[0].as_py(), file.arrays), known)
    arrays = (Survey(name=n, shape=s, dtype=dtype) for n, (dtype, s) in first.arrays.items())
    schema = Schema(name="inferred", arrays=tuple(arrays))
    check_array_names(schema)
    return schema


def _check_ids(files: Sequence[FoundFile]) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.chunked_array([file.ids for file in files])
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pc.value_counts(ids)
    twice = counts.field(0).filter(pc.greater(counts.field(1), 1))[0]
    places = [f.path for f in files for _ in range(pc.sum(pc.equal(f.ids, twice)).as_py() or 0)]
    raise UsageError(
        f"cannot index {places[1]}: sample {twice.as_py()!r} is also in {places[0]}; every sample "
        "needs its own id"
    )


# Names of splits in order, and the number of each sample's split, file after file.
_Splits = tuple[Sequence[str], NDArray[np.int64]]


def _folders(root: Path, files: Sequence[FoundFile]) -> _Splits | None:
    """The splits by the files' folders, where all lie in at least two folders."""
    names = []
    for file in files:
        parts = file.path.relative_to(root).parts
        names.append(parts[0] if len(parts) > 1 else "")
    are_splits = all(is_plain_name(n) for n in names) and "train" in names and len(set(names)) > 1
    if not are_splits:
        return None
    known = {name: number for number, name in enumerate(SPLIT_NAMES)}
    ordered = sorted(set(names), key=lambda n: (known.get(n, len(known)), n))
    numbers = np.array([ordered.index(name) for name in names])
    return ordered, np.repeat(numbers, [len(file) for file in files])


def _drawn(files: Sequence[FoundFile], fractions: Sequence[float], seed: int) -> _Splits:
    edges = np.cumsum(fractions)[:-1]
    numbers = []
    for file in files:
        for start in range(0, len(file), _IDS_AT_ONCE):
            ids = file.ids.slice(start, _IDS_AT_ONCE).to_pylist()
            words = hashed_ids(ids, seed)[:, 0].astype(np.float64)
            numbers.append(np.searchsorted(edges, words * 2.0**-64, side="right"))
    return SPLIT_NAMES, np.concatenate(numbers)


def _write(
    out: Path, files: Sequence[FoundFile], schema: Schema, drawn: tuple[_Splits, int]
) -> IndexReport:
    """Makes the data set beside its final name, then renames it."""
    splits, seed = drawn
    shards, targets = _shards(files, splits)
    table, notes = _table(files, schema, splits)
    left_out = sum((file.left_out for file in files), Counter[str]())
    notes += [f"{what} left out of {count:,} samples or files" for what, count in left_out.items()]
    made = out.with_name(f".{out.name}-{secrets.token_hex(6)}.partial")
    with refusals("write", out):
        made.mkdir(parents=True)
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
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return IndexReport(manifest=manifest, notes=tuple(notes))


def _shards(files: Sequence[FoundFile], splits: _Splits) -> tuple[list[ShardInfo], dict[str, Path]]:
    """The shards, a file's samples of one split each, in the order of the index; their files."""
    names, numbers = splits
    ends = np.cumsum([len(file) for file in files])
    counts = [np.bincount(part, minlength=len(names)) for part in np.split(numbers, ends[:-1])]
    shards, targets = [], {}
    for split, name in enumerate(names):
        number = 0
        for file, count in zip(files, counts, strict=True):
            if not count[split]:
                continue
            shard = ShardInfo(
                split=name,
                name=f"shard-{number:06d}{file.path.suffix.lower()}",
                num_samples=int(count[split]),
                nbytes=file.nbytes,
                frame_crc32c=0,
            )
            number += 1
            shards.append(shard)
            targets[shard.relative_path] = file.path
    return shards, targets


def _table(
    files: Sequence[FoundFile], schema: Schema, splits: _Splits
) -> tuple[pa.Table, list[str]]:
    """The index, split after split, file after file; and notes on the labels."""
    import pyarrow as pa

    names, numbers = splits
    sizes = [len(file) for file in files]
    count = sum(sizes)
    columns: dict[str, Any] = {
        "sample_id": pa.chunked_array([file.ids for file in files]),
        "split": pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), list(names)),
        "shard": _shard_numbers(sizes, splits),
        "nbytes": np.full(count, schema.sample_nbytes, np.int64),
        "crc32c": np.concatenate([file.crc32c for file in files]),
        "missing_bands": pa.repeat("", count),
    }
    for name in schema.names:
        columns[f"offset_{name}"] = np.concatenate([file.offsets[name] for file in files])
        columns[f"filled_{name}"] = np.zeros(count, np.int32)
        columns[f"nan_{name}"] = np.concatenate([file.num_nan[name] for file in files])
    ordered = {name: columns[name] for name in fixed_columns(schema)}
    labels, notes = label_columns([file.labels for file in files], sizes, schema)
    table = pa.table({**ordered, **labels}).take(pa.array(np.argsort(numbers, kind="stable")))
    place = table.schema.get_field_index("split")
    return table.set_column(place, "split", table["split"].cast(pa.string())), notes


def _shard_numbers(sizes: Sequence[int], splits: _Splits) -> NDArray[np.int32]:
    """The number of each sample's shard: how many files before its own have some of its split."""
    names, numbers = splits
    file_of_each = np.repeat(np.arange(len(sizes)), sizes)
    found = np.zeros(len(numbers), np.int32)
    for split in range(len(names)):
        rows = np.flatnonzero(numbers == split)
        found[rows] = np.unique(file_of_each[rows], return_inverse=True)[1]
    return found
