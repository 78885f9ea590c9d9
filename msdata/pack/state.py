"""The state of an unfinished pack, in `OUT/.pack`: the plan, and a note of each finished shard.

`plan.json` is written last of the plan, a shard's note after the shard has its name: whatever
moment a pack dies at, what is noted is whole, and what is not noted is done again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from msdata.atomic_file import storage_error, whole_file, write_whole
from msdata.errors import DataError, MsdataError, UsageError
from msdata.index import write_table
from msdata.manifest import FILE_NAME as MANIFEST_NAME
from msdata.pack.candidates import Candidates, ShardSlice
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardResult
from msdata.schema import Schema

_LOCK_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """What `plan.json` says.

    Attributes:
        schema: the arrays of every sample.
        slices: the shards; shard k's objects are row group k of `plan.parquet`.
        label_columns: catalogue columns of the plan's table.
        num_rejected: objects that were out before any was read.
        notes: remarks on the catalogue.
    """

    schema: Schema
    slices: tuple[ShardSlice, ...]
    label_columns: tuple[str, ...]
    num_rejected: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShardNote:
    """A finished shard: its part of the index and its part of the rejects.

    Attributes:
        facts: `nbytes`, `frame_crc32c` (None without a file) and `rejected` as [position, reason].
        columns: the index columns found while packing, and `position` in the task.
    """

    facts: dict[str, Any]
    columns: pa.Table


class PackState:
    """Paths and files of `OUT/.pack`.

    Args:
        out: the data set's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / ".pack"
        self._plan_json = self.folder / "plan.json"
        self._plan_table = self.folder / "plan.parquet"
        self._rejected = self.folder / "rejected.parquet"

    def prepare_folder(self, *, resume: bool) -> None:
        """Makes OUT ready, or refuses one that holds something else.

        Raises:
            UsageError: OUT is not empty, and not something to resume.
            StorageError: the file system refused.
        """
        try:
            entries = sorted(p.name for p in self.out.iterdir()) if self.out.exists() else []
            if entries and not resume:
                cure = (
                    "run the same command with --resume to finish it"
                    if ".pack" in entries
                    else "choose an empty or new folder"
                )
                raise UsageError(f"{self.out} is not empty: it holds {entries[0]!r}; {cure}")
            if entries and ".pack" not in entries and MANIFEST_NAME not in entries:
                raise UsageError(
                    f"{self.out} holds {entries[0]!r} but no unfinished pack; nothing to resume"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("write", self.out, error) from error

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keeps a second pack out of the same OUT; yields the lock's file descriptor.

        Raises:
            MsdataError: another pack holds it.
            StorageError: the file system refused.
        """
        path = self.folder / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error("write", path, error) from error
        try:
            _wait_for_lock(fd, self.out)
            yield fd
        finally:
            os.close(fd)

    def has_plan(self) -> bool:
        """Whether planning was finished."""
        return self._plan_json.exists()

    def save_plan(self, settings: PackSettings, schema: Schema, candidates: Candidates) -> PackPlan:
        """Writes the plan, `plan.json` last."""
        parts = [(s.split, s.start, s.stop) for s in candidates.slices]
        write_rows(self._plan_table, candidates.table, parts)
        write_table(self._rejected, candidates.rejected, [("", 0, candidates.rejected.num_rows)])
        plan = PackPlan(
            schema=schema,
            slices=candidates.slices,
            label_columns=candidates.label_columns,
            num_rejected=candidates.rejected.num_rows,
            notes=candidates.notes,
        )
        content = {
            "settings": settings.to_json(),
            "schema": schema.to_json(),
            "slices": [[s.split, s.name, s.start, s.stop] for s in plan.slices],
            "label_columns": list(plan.label_columns),
            "num_rejected": plan.num_rejected,
            "notes": list(plan.notes),
        }
        write_whole(self._plan_json, json.dumps(content).encode())
        return plan

    def load_plan(self, settings: PackSettings) -> PackPlan:
        """Reads the plan of the pack to resume.

        Raises:
            UsageError: it was made with other settings.
        """
        content = json.loads(self._plan_json.read_bytes())
        before, now = content["settings"], settings.to_json()
        for name in now:
            if now[name] != before.get(name):
                raise UsageError(
                    f"{self.out} was begun with {name} {before.get(name)!r}, not {now[name]!r}; "
                    "resume with the same arguments, or pack into another folder"
                )
        return PackPlan(
            schema=Schema.from_json(content["schema"]),
            slices=tuple(
                ShardSlice(split=split, name=name, start=start, stop=stop)
                for split, name, start, stop in content["slices"]
            ),
            label_columns=tuple(content["label_columns"]),
            num_rejected=content["num_rejected"],
            notes=tuple(content["notes"]),
        )

    def open_candidates(self) -> pq.ParquetFile:
        """The plan's table; row group k holds the objects of shard k."""
        return pq.ParquetFile(self._plan_table)

    def read_rejected(self) -> pa.Table:
        """`sample_id`, `path`, `row`, `reason` of what was out before any object was read."""
        return pq.read_table(self._rejected)

    def note_path(self, number: int) -> Path:
        """Where the note of shard `number` lies."""
        return self.folder / f"shard-{number:06d}.parquet"

    def save_note(self, result: ShardResult) -> None:
        """Notes that a shard is finished."""
        summary = result.summary
        facts = {
            "nbytes": None if summary is None else summary.nbytes,
            "frame_crc32c": None if summary is None else summary.frame_crc32c,
            "rejected": [list(r) for r in result.rejected],
        }
        columns: dict[str, Any] = {"position": pa.array(result.accepted, pa.int64())}
        if summary is not None:
            for a in range(summary.offsets.shape[1]):
                columns[f"offset_{a}"] = pa.array(summary.offsets[:, a], pa.int64())
        columns |= {name: pa.array(values) for name, values in result.columns.items()}
        table = pa.table(columns).replace_schema_metadata({"facts": json.dumps(facts)})
        with whole_file(self.note_path(result.number)) as file:
            pq.write_table(table, file, store_schema=True)

    def read_note(self, number: int) -> ShardNote:
        """Reads the note of a finished shard."""
        try:
            table = pq.read_table(self.note_path(number))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.note_path(number)} is damaged; remove it and run again with --resume"
            ) from error
        return ShardNote(facts=json.loads(table.schema.metadata[b"facts"]), columns=table)

    def remove(self) -> None:
        """Removes the state: the data set is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_rows(path: Path, table: pa.Table, parts: list[tuple[str, int, int]]) -> None:
    """Writes a Parquet file with one row group a part."""
    with whole_file(path) as file, pq.ParquetWriter(file, table.schema) as writer:
        for _, start, stop in parts:
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)


def _wait_for_lock(fd: int, out: Path) -> None:
    """Takes the lock, giving the workers of a pack that was just killed time to end."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise MsdataError(
                    f"another 'msdata pack' is writing {out}; wait for it, or choose another folder"
                ) from None
            time.sleep(0.1)
        except OSError:
            # Some parallel file systems are mounted without locks; a shard still appears whole.
            return
