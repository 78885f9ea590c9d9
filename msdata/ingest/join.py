"""Joins the parts of one or several `msdata.Writer`s into a data set: `msdata.join_parts`.

The data set is packed in a folder beside its final name and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from msdata.core.checked_json import Count, read_json
from msdata.core.files import locked, refusals, storage_error, sync_folder, write_whole
from msdata.core.options import num_jobs
from msdata.dataset.dataset import Dataset, open_dataset
from msdata.errors import DataError, UsageError, naming
from msdata.ingest.label_checks import joined_kind
from msdata.pack.folder_lock import folder_lock
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.pack.state import PackState
from msdata.schema import Schema
from msdata.sources.parts import (
    PART_NAME,
    PARTS_NAME,
    ROWS_NAME,
    SAMPLES_NAME,
    LabelKind,
    PartFiles,
    Parts,
    part_folder,
)

_CURE = "write this part again"
LOCK_NAME = "lock"
_JOINED_NAME = "joined"


@dataclass(frozen=True, kw_only=True)
class WriterSettings:
    """The settings of a Writer, equal in all parts; the pack's, under their names there."""

    container: Literal["tar", "hdf5"] = "tar"
    chunked: bool = False
    shard_nbytes: Count | None = None
    split_fractions: tuple[float, ...] = (0.7, 0.1, 0.2)
    seed: Count = 0
    quantize: Mapping[str, float | None] = field(default_factory=dict)
    compress: str = "none"
    keeps_nan: bool = False

    def of_pack(self, source: Path, out: Path) -> PackSettings:
        """The settings of the pack of the parts in `source`."""
        fields = {n: v for n, v in vars(self).items() if n != "keeps_nan"}
        kept: dict[str, Any] = {"inpaint": (), "max_nan_fraction": 1.0} if self.keeps_nan else {}
        return PackSettings(source=source, out=out, **fields, **kept)


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """The content of `part.json`."""

    format: Literal["msdata part"] = "msdata part"
    num_parts: Count
    num_samples: Count
    schema: Schema | None
    kinds: Mapping[str, LabelKind]
    has_splits: bool | None
    settings: WriterSettings

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `part.json`."""
        schema = None if self.schema is None else self.schema.to_json()
        return {**vars(self), "schema": schema, "settings": asdict(self.settings)}


def join_parts(out: str | os.PathLike[str], *, jobs: int | None = None) -> Dataset:
    """Makes the data set from the parts that all Writers have completed; call it once.

    Killed and run again, it starts over: the parts stay until the data set is whole.

    Args:
        out: folder of the data set, as the Writers were given.
        jobs: processes that write the shards; None means one per core.

    Returns:
        The data set.

    Raises:
        UsageError: a part is missing, parts differ in schema or settings, or an id is in two.
        DataError: a part is damaged.
        StorageError: the file system refused.
    """
    path = Path(out).absolute()
    root = parts_root(path)
    check_absent(path)
    if not root.is_dir():
        raise UsageError(
            f"cannot join {path}: {root} does not exist; write parts with msdata.Writer"
        )
    with locked(root / LOCK_NAME) as is_mine:
        if not is_mine:
            raise is_joining(root)
        settings = _join(root)
        joined = root / _JOINED_NAME
        _remove_joined(joined)
        _check_ids(root)
        report = pack(settings.of_pack(root, joined), jobs=num_jobs(jobs))
        if report.num_rejected:
            raise DataError(
                f"cannot join {path}: {report.num_rejected} samples were rejected; the reasons are "
                f"in {joined / 'rejected.csv'}"
            )
        with refusals("write", path):
            joined.rename(path)
            sync_folder(path.parent)
        count = len(PartFiles(root).parts.num_samples)
        (root / PARTS_NAME).unlink()
        for number in range(count):
            remove_part(part_folder(root, number))
        with suppress(OSError):
            (root / LOCK_NAME).unlink()
    with suppress(OSError):
        root.rmdir()
    return open_dataset(path)


def _join(root: Path) -> WriterSettings:
    """Writes `parts.json` if all parts are complete and agree; returns their settings."""
    parts = [_read_part(root, 0)]
    parts += [_read_part(root, number) for number in range(1, parts[0].num_parts)]
    first = next((p for p in parts if p.num_samples), None)
    if first is None or first.schema is None:
        raise UsageError(f"cannot make a data set of {root}: no sample was written")
    kinds: dict[str, LabelKind] = {}
    for number, part in enumerate(parts):
        has_splits = first.has_splits if part.has_splits is None else part.has_splits
        for what, mine, its in (
            ("number of parts", part.num_parts, first.num_parts),
            ("settings", part.settings, first.settings),
            ("arrays", part.schema or first.schema, first.schema),
            ("use of split=", has_splits, first.has_splits),
        ):
            if mine != its:
                raise UsageError(
                    f"cannot join {root}: part {number} has other {what} than part "
                    f"{parts.index(first)}; write it again with the same ones"
                )
        with naming(f"cannot join {root}: part {number}", UsageError):
            for name, kind in part.kinds.items():
                kinds[name] = joined_kind(name, kinds.get(name, "nothing"), kind)
    whole = Parts(
        schema=first.schema,
        num_samples=tuple(p.num_samples for p in parts),
        kinds=kinds,
        has_splits=bool(first.has_splits),
    )
    write_whole(root / PARTS_NAME, json.dumps(whole.to_json()).encode())
    return first.settings


def _read_part(root: Path, number: int) -> WrittenPart:
    folder = part_folder(root, number)
    try:
        part: WrittenPart = read_json(folder / PART_NAME, cure=_CURE).read_as(WrittenPart)
        size = (folder / SAMPLES_NAME).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"cannot join {root}: part {number} is not complete; run its Writer to the end first"
        ) from None
    nbytes = part.num_samples * (0 if part.schema is None else part.schema.sample_nbytes)
    if size != nbytes:
        raise DataError(
            f"{folder / SAMPLES_NAME} is damaged: it must have {nbytes} bytes, got {size}; {_CURE}"
        )
    return part


def _check_ids(root: Path) -> None:
    """Refuses ids that two parts have."""
    table = PartFiles(root).scan().select(["sample_id", "path"])
    ids = table["sample_id"].combine_chunks()
    same = np.asarray(ids.slice(1)) == np.asarray(ids.slice(0, max(0, len(ids) - 1)))
    found = np.flatnonzero(same)
    if len(found):
        row = int(found[0])
        places = [str(table["path"][row + i].as_py()).partition("/")[0] for i in (0, 1)]
        raise UsageError(
            f"cannot join {root}: {len(found)} ids are in two parts; the first is "
            f"{ids[row].as_py()!r} in {places[0]} and {places[1]}"
        )


def parts_root(out: Path) -> Path:
    """Returns the folder of a data set's parts, beside it: a rename completes the data set."""
    return out.with_name(f"{out.name}.parts")


def check_absent(out: Path) -> None:
    """Raises UsageError if the data set's folder holds something."""
    try:
        entry = next((p.name for p in out.iterdir()), None)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{out} is a file; give a new or an empty folder") from None
    except OSError as error:
        raise storage_error("write", out, error) from error
    if entry is not None:
        raise UsageError(f"{out} is not empty: it holds {entry!r}; choose an empty or new folder")


def is_joining(root: Path) -> UsageError:
    """The error for parts that another process joins."""
    return UsageError(f"another process is joining {root}; wait for it")


def remove_part(folder: Path) -> None:
    """Removes the files that a Writer made, and no others."""
    with suppress(OSError):
        for name in (PART_NAME, SAMPLES_NAME, ROWS_NAME, LOCK_NAME):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _remove_joined(joined: Path) -> None:
    """Removes what a killed join left, once its workers have ended."""
    state = PackState(joined)
    if joined.is_symlink() or not (state.folder.is_dir() or state.is_complete):
        return
    if state.folder.is_dir():
        with folder_lock(state.lock_path):
            pass
    shutil.rmtree(joined, ignore_errors=True)
