"""A data set back as objects: a pickled dict per sample in folders, and a catalog of the rest.

OUT/photometry/0/0/0/0/0000005.npy   as upstream and `msdata fetch` write them
OUT/catalog.parquet, catalog.csv     ids, splits and the labels of the index
OUT/unpacked.json                    of which data set, and whether all of it is there

Packed again, the arrays have the same checksums. Every sample is checked against its checksum
before it is written; a file that is there is never written again, so a killed run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from msdata.core.checked_json import read_json
from msdata.core.files import locked, refusals, remove_leftovers, storage_error, write_whole
from msdata.core.options import num_jobs
from msdata.core.output_file import write_table
from msdata.core.progress import ProgressLine
from msdata.core.trusted_names import check_below, is_plain_name, short
from msdata.dataset.dataset import Dataset
from msdata.dataset.index import fixed_columns
from msdata.errors import DataError, UsageError
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.packed import PackedData
from msdata.sources.pickles import object_bytes, object_path, take_pickle

if TYPE_CHECKING:
    import pyarrow as pa

OBJECTS, STATE_NAME = "photometry", "unpacked.json"
_LOCK_NAME = ".unpack.lock"
_CATALOGS = ("catalog.parquet", "catalog.csv")
# Samples in flight at a time: a gigabyte of cutouts.
_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """What an unpacking did.

    Attributes:
        path: the folder.
        num_samples: objects that are there now.
        num_written: of these by this run.
        pack_words: the `msdata pack` command line that packs them again.
    """

    path: Path
    num_samples: int
    num_written: int
    pack_words: tuple[str, ...]


def unpack(
    data: Path | str,
    out: Path | str,
    *,
    split: str | None = None,
    ids: Sequence[str] | None = None,
    jobs: int | None = None,
    is_quiet: bool = True,
) -> Unpacked:
    """Writes the samples of a data set as one file per object, with a catalog.

        msdata.unpack("DATA", "OBJECTS", split="test")
        msdata.pack("OBJECTS/photometry", "DATA2", catalog="OBJECTS/catalog.parquet")

    Args:
        data: folder of the data set, coded or not, tar or HDF5.
        out: folder for the objects, new, empty, or to resume; nothing there is overwritten.
        split: name of one split; None takes all.
        ids: ids of the samples to take; None takes all.
        jobs: threads; None means one per core.
        is_quiet: show no progress line.

    Returns:
        What was written.

    Raises:
        UsageError: split or ids do not exist, or the folder holds something else.
        DataError: a sample is damaged, or its id cannot name a file.
        StorageError: the file system refused.
    """
    out, threads = Path(out), num_jobs(jobs)
    source = PackedData(Path(data))
    rows = _chosen(source, split, ids)
    names = rows["sample_id"].to_pylist()
    paths = [_path_of(source.data, name) for name in names]
    chosen = "" if ids is None else hashlib.sha256("\0".join(names).encode()).hexdigest()
    fingerprint = source.data.manifest.fingerprint
    state = {"fingerprint": fingerprint, "split": split, "ids_sha256": chosen}
    _claim(out, state)
    with locked(out / _LOCK_NAME) as is_mine:
        if not is_mine:
            raise UsageError(f"another 'msdata unpack' is writing to {out}; wait for it")
        scalars = _scalars(source.data)
        writer = _Writer(out / OBJECTS, source, rows, scalars)
        writer.run(paths, threads, ProgressLine("unpack", len(paths), is_quiet=is_quiet))
        for name in _CATALOGS:
            write_table(out / name, rows.drop_columns(["path", "row", *scalars]))
        write_whole(out / STATE_NAME, json.dumps({**state, "is_complete": True}).encode())
    return Unpacked(
        path=out,
        num_samples=len(paths),
        num_written=writer.num_written,
        pack_words=_pack_words(source.data, out),
    )


class _Writer:
    """Writes objects, from many threads; the columns `scalars` go into the objects' dicts."""

    def __init__(self, root: Path, source: PackedData, rows: pa.Table, scalars: list[str]) -> None:
        self._root, self._source = root, source
        self._paths = rows["path"].to_pylist()
        self._rows = rows["row"].to_pylist()
        self._scalars = {name: rows[name].to_pylist() for name in scalars}
        self._folders: set[Path] = set()
        self.num_written = 0

    def run(self, paths: Sequence[PurePosixPath], threads: int, line: ProgressLine) -> None:
        """Writes all objects, at these paths."""
        num_done, nbytes = 0, self._source.data.schema.sample_nbytes
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="unpack") as pool:
                for start in range(0, len(paths), _CHUNK):
                    part = paths[start : start + _CHUNK]
                    self._make_folders(part)
                    numbers = range(start, start + len(part))
                    self.num_written += sum(pool.map(self._write, part, numbers))
                    num_done += len(part)
                    line.update(num_done, num_done * nbytes)
        finally:
            line.close(num_done, num_done * nbytes)

    def _make_folders(self, paths: Sequence[PurePosixPath]) -> None:
        """Makes the folders of objects, and clears those that a killed run wrote to."""
        for path in paths:
            folder = self._root / path.parent
            if folder not in self._folders:
                self._folders.add(folder)
                check_below(self._root.parent, folder / path.name)
                with refusals("write", folder):
                    folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(folder)

    def _write(self, path: PurePosixPath, number: int) -> bool:
        """Writes an object unless it is there; returns whether it was not."""
        file = self._root / path
        if os.path.lexists(file):
            return False
        arrays = self._source.read(self._paths[number], self._rows[number])
        sample = {**arrays, **{name: values[number] for name, values in self._scalars.items()}}
        write_whole(file, object_bytes(sample), is_one_of_many=True)
        return True


def _chosen(source: PackedData, split: str | None, ids: Sequence[str] | None) -> pa.Table:
    """Ids, places and columns of the samples to write, in the order of their ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = source.scan()
    if split is not None:
        source.data.split(split)
        rows = rows.filter(pc.equal(rows["split"], split))
    if ids is not None:
        wanted = pa.array(sorted(set(ids)), pa.string())
        is_there = pc.is_in(wanted, value_set=rows["sample_id"])
        missing = wanted.filter(pc.invert(is_there))
        if len(missing):
            raise UsageError(
                f"{len(missing):,} of {len(wanted):,} ids are not in {source.root}"
                f"{'' if split is None else f', split {split!r}'}, the first: {short(missing[0])}"
            )
        rows = rows.filter(pc.is_in(rows["sample_id"], value_set=wanted))
    if not rows.num_rows:
        raise UsageError(f"no sample of {source.root} was chosen; check split and ids")
    return rows


def _path_of(data: Dataset, name: str) -> PurePosixPath:
    """Where an object's file lies; refuses an id that cannot name a file `pack` takes for it."""
    path = object_path(name, ".npy") if is_plain_name(name) else None
    if path is None or take_pickle("", path.name) != (name, path.name):
        raise DataError(
            f"{data.path}: id {short(name)} cannot name an object's file; nothing was written for "
            "it or after it: choose others with --ids"
        )
    return path


def _claim(out: Path, state: dict[str, Any]) -> None:
    """Takes the folder for these samples; a new one is made."""
    path = out / STATE_NAME
    try:
        found = read_json(path, cure="unpack into a new folder", has_paths=True)
    except (FileNotFoundError, NotADirectoryError):
        try:
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise UsageError(
                    f"{out} is not empty and was not made by 'msdata unpack'; give a new folder"
                ) from None
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"cannot make {out}: a part of the path is a file") from None
        except OSError as error:
            raise storage_error("write", out, error) from error
        write_whole(path, json.dumps({**state, "is_complete": False}).encode())
        return
    for name, value in state.items():
        if found[name].value != value:
            raise UsageError(
                f"{out} holds samples of another data set or choice ({name} is another one); give "
                "a new folder"
            )


def _scalars(data: Dataset) -> list[str]:
    """Numbers of the objects' dicts that the index has under their own names."""
    own = {"sample_id", "split", *fixed_columns(data.schema, data.manifest.codings)}
    return [name for name in data.schema.scalars if name in data.columns and name not in own]


def _pack_words(data: Dataset, out: Path) -> tuple[str, ...]:
    """The command that makes a data set of these arrays again; NaN stay as they are."""
    words = ["msdata", "pack", str(out / OBJECTS), "NEW", "--catalog", str(out / _CATALOGS[0])]
    words += ["--split-column", "split", "--inpaint", "none", "--max-nan-fraction", "1"]
    is_labeled = "redshift" in data.columns and not data.table["redshift"].null_count
    words += [] if is_labeled else ["--unlabeled"]
    for array in data.schema.arrays:
        known = array.name in MANTIS_SHRIMP.names and data.schema.name == MANTIS_SHRIMP.name
        usual = MANTIS_SHRIMP[array.name] if known else None
        scale = array.pixel_scale_arcsec
        if scale and (usual is None or usual.pixel_scale_arcsec != scale):
            words += ["--pixel-scale", f"{array.name}={scale!r}"]
        if usual is not None:
            continue
        points = array.zero_points_ab
        for option, value in (
            ("--bands", ",".join(array.bands)),
            ("--unit", array.unit or ""),
            ("--zero-point", "" if points is None else ",".join(map(repr, points))),
        ):
            words += [option, f"{array.name}={value}"] if value else []
    return tuple(words)
