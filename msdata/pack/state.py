"""The state of an unfinished pack, in `OUT/.pack`: the plan, and a note of each finished shard.

`plan.json` is the last file of the plan, and a shard's note follows its rename: whenever a pack
dies, what is noted is complete, and the rest is done again.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msdata.core.checked_json import Count, Unsigned32, read_json
from msdata.core.checked_table import check_table, file_metadata, open_table, reading
from msdata.core.checksum import crc32c
from msdata.core.files import remove_leftovers, storage_error, whole_file, write_whole
from msdata.core.trusted_names import check_below, check_shard_names
from msdata.dataset.index import file_sha256, write_table
from msdata.dataset.manifest import FILE_NAME as MANIFEST_NAME
from msdata.dataset.manifest import SettingsFields, fingerprint_of
from msdata.errors import DataError, UsageError
from msdata.pack.candidates import Candidates, ShardSlice
from msdata.pack.columns import split_numbers
from msdata.pack.folder_lock import is_busy, is_locked
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardResult
from msdata.schema import Schema

# Imported where it is used: workers start meanwhile.
if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


_SHARD_NAME = re.compile(r"shard-\d{6,9}\.(tar|h5)")


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """The content of `plan.json`.

    Attributes:
        schema: the arrays of every sample.
        slices: the shards; shard k's objects are row group k of `plan.parquet`.
        label_columns: catalog columns of the plan's table.
        num_rejected: objects that were rejected before any was read.
        notes: remarks on the catalog.
    """

    schema: Schema
    slices: tuple[ShardSlice, ...]
    label_columns: tuple[str, ...]
    num_rejected: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _PlanFields:
    """The fields that `save_plan` writes."""

    settings: SettingsFields
    schema: Schema
    slices: tuple[tuple[str, str, Count, Count], ...]
    label_columns: tuple[str, ...]
    num_rejected: Count
    notes: tuple[str, ...]
    table_sha256: str
    rejected_sha256: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class _Facts:
    nbytes: Count | None
    frame_crc32c: Unsigned32 | None
    rejected: tuple[tuple[Count, str], ...]
    crc32c: Unsigned32


@dataclass(frozen=True, kw_only=True)
class ShardNote:
    """A finished shard: its part of the index and its part of the rejects.

    Attributes:
        facts: `nbytes`, `frame_crc32c` (None without a file) and `rejected` as (position, reason).
        columns: the index columns found while packing, and `position` in the task.
    """

    facts: _Facts
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

    @property
    def lock_path(self) -> Path:
        """The file that `folder_lock` locks."""
        return self.folder / "lock"

    def interruption_path(self, run_id: str) -> Path:
        """The file that the first interrupted rank of a run creates.

        Args:
            run_id: identifies this run: a second one may be waiting for the folder.
        """
        return self.folder / f"interrupted-{run_id}"

    @property
    def is_complete(self) -> bool:
        """Whether the data set is finished."""
        return (self.out / MANIFEST_NAME).exists()

    def check_folder(self, *, resume: bool) -> None:
        """Refuses an OUT that holds something else. Changes nothing.

        Raises:
            UsageError: OUT is not empty, and holds no pack to resume.
            MsdataError: another pack is writing it.
            StorageError: the file system refused.
        """
        check_below(self.out, self.lock_path)
        try:
            entries = sorted(p.name for p in self.out.iterdir()) if self.out.exists() else []
        except NotADirectoryError:
            raise UsageError(f"{self.out} is a file; give a new or an empty folder") from None
        except OSError as error:
            raise storage_error("write", self.out, error) from error
        if not entries or entries == [self.folder.name]:
            # A pack that ended before it had a plan has nothing to resume or to lose.
            entries = [self.folder.name] if self.has_plan() else []
        if not entries or (resume and (self.is_complete or self.folder.name in entries)):
            return
        if is_locked(self.lock_path):
            raise is_busy(self.out)
        if resume:
            raise UsageError(
                f"{self.out} holds {entries[0]!r} but no unfinished pack; nothing to resume"
            )
        cure = "choose an empty or new folder"
        if self.folder.name in entries and not self.is_complete:
            cure = f"run the same command with --resume to finish it, or {cure}"
        raise UsageError(f"{self.out} is not empty: it holds {entries[0]!r}; {cure}")

    def forget_unplanned(self) -> None:
        """Removes the files of a pack that failed before it had a plan."""
        if self.has_plan() or self.is_complete:
            return
        self.remove()
        with suppress(OSError):
            for folder in self.out.iterdir():
                folder.rmdir()

    def has_plan(self) -> bool:
        """Whether the plan is complete."""
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
        content: dict[str, Any] = {
            "settings": settings.to_json(),
            "schema": schema.to_json(),
            "slices": [[s.split, s.name, s.start, s.stop] for s in plan.slices],
            "label_columns": list(plan.label_columns),
            "num_rejected": plan.num_rejected,
            "notes": list(plan.notes),
            "table_sha256": file_sha256(self._plan_table),
            "rejected_sha256": file_sha256(self._rejected),
        }
        content["fingerprint"] = fingerprint_of(content)
        write_whole(self._plan_json, json.dumps(content).encode())
        return plan

    def load_plan(self, settings: PackSettings) -> PackPlan:
        """Reads the plan of the pack to resume.

        Raises:
            UsageError: the plan was made with other settings.
            DataError: it is damaged.
            StorageError: the file system refused.
        """
        cure = f"it cannot be resumed: remove {self.out} and pack again"
        try:
            found = read_json(self._plan_json, cure=cure, has_paths=True)
            fields = found.read_as(_PlanFields)
            settings.check_same(found["settings"].value, self.out)
            content = {n: value for n, value in found.value.items() if n != "fingerprint"}
            sums = (file_sha256(self._plan_table), file_sha256(self._rejected))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{error.filename} is missing; {cure}") from error
        except OSError as error:
            raise storage_error("read", self.folder, error) from error
        if fields.fingerprint != fingerprint_of(content):
            raise DataError(f"{self._plan_json} is corrupt: its fingerprint differs; {cure}")
        if sums != (fields.table_sha256, fields.rejected_sha256):
            raise DataError(
                f"{self.folder}: the plan's tables are corrupt: their checksums differ; {cure}"
            )
        self._check_names(fields)
        self._check_table(fields, cure)
        return PackPlan(
            schema=fields.schema,
            slices=tuple(
                ShardSlice(split=split, name=name, start=start, stop=stop)
                for split, name, start, stop in fields.slices
            ),
            label_columns=fields.label_columns,
            num_rejected=fields.num_rejected,
            notes=fields.notes,
        )

    def _check_names(self, fields: _PlanFields) -> None:
        """Refuses a plan that would write outside OUT.

        Raises:
            DataError: names of splits or shards are not plain.
            UsageError: a split's folder is a link that leads out of OUT.
        """
        names = [(split, name) for split, name, _, _ in fields.slices]
        check_shard_names(self._plan_json, names)
        for _, name in names:
            if _SHARD_NAME.fullmatch(name) is None:
                raise DataError(
                    f"{self._plan_json}: shard {name!r} must be shard-NUMBER.tar or .h5"
                )
        for split in dict.fromkeys(split for split, _ in names):
            check_below(self.out, self.out / split / "shard")

    def remove_leftovers(self, plan: PackPlan) -> None:
        """Removes temporary files of a killed pack; call it with the lock held."""
        for place in (
            self.folder,
            self.folder / "rows",
            *(self.out / s for s in {s.split for s in plan.slices}),
        ):
            remove_leftovers(place)

    def _check_table(self, fields: _PlanFields, cure: str) -> None:
        kinds = {"sample_id": "text", "path": "text", "row": "integer", "split": "text"}
        with open_table(self._plan_table, kinds, cure=cure) as file:
            lacking = [n for n in fields.label_columns if n not in file.schema_arrow.names]
            groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
            ends = list(itertools.accumulate((g.num_rows for g in groups), initial=0))
        found = [(start, stop) for _, _, start, stop in fields.slices]
        if lacking or found != list(itertools.pairwise(ends)):
            raise DataError(f"{self._plan_table} is damaged: it does not fit plan.json; {cure}")

    def open_candidates(self) -> pq.ParquetFile:
        """The plan's table; row group k holds the objects of shard k."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(self._plan_table)

    def read_rejected(self) -> pa.Table:
        """`sample_id`, `path`, `row`, `reason` of objects rejected before any was read."""
        import pyarrow.parquet as pq

        return pq.read_table(self._rejected)

    def note_path(self, number: int) -> Path:
        """The path of the note of shard `number`."""
        return self.folder / f"shard-{number:06d}.parquet"

    def finished(self, plan: PackPlan) -> list[int]:
        """Numbers of the shards that have a note."""
        return sorted(self.finished_among(range(len(plan.slices))))

    def finished_among(self, numbers: Iterable[int]) -> set[int]:
        """The shards that have a note, found by one listing of the folder."""
        names = {path.name for path in self.folder.iterdir()}
        return {n for n in numbers if self.note_path(n).name in names}

    def save_note(self, result: ShardResult) -> None:
        """Writes the note of a finished shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

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
        columns |= {
            name: split_numbers(values) if name.startswith("scalar_") else pa.array(values)
            for name, values in result.columns.items()
        }
        table = pa.table(columns)
        facts["crc32c"] = _note_crc32c(result.number, facts, table)
        table = table.replace_schema_metadata({"facts": json.dumps(facts)})
        with whole_file(self.note_path(result.number), is_one_of_many=True) as file:
            pq.write_table(table, file)

    def read_note(self, plan: PackPlan, number: int) -> ShardNote:
        """Reads the note of a finished shard.

        Raises:
            DataError: it is damaged.
            StorageError: the file system refused.
        """
        path = self.note_path(number)
        cure = "remove it and run again with --resume"
        kinds = {"position": "integer"}
        with open_table(path, kinds, cure=cure) as file, reading(path, cure):
            table = file.read()
            table.validate(full=True)
        check_table(table, path, kinds, cure=cure, num_rows=file.metadata.num_rows)
        found = file_metadata(table.schema, b"facts", path, cure)
        facts = found.read_as(_Facts)
        positions = [*table["position"].to_pylist(), *(p for p, _ in facts.rejected)]
        part = plan.slices[number]
        is_whole = sorted(positions) == list(range(part.stop - part.start))
        if not is_whole or _note_crc32c(number, found.value, table) != facts.crc32c:
            raise DataError(f"{path} is corrupt: its checksum differs; {cure}")
        return ShardNote(facts=facts, columns=table)

    def remove(self) -> None:
        """Removes the state: the data set is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _note_crc32c(number: int, facts: Mapping[str, Any], table: pa.Table) -> int:
    """Checksum of the content of a note, independent of the file's layout."""
    said = [number, *(facts[name] for name in ("nbytes", "frame_crc32c", "rejected"))]
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return crc32c(json.dumps([said, columns], default=repr).encode())


def write_rows(path: Path, table: pa.Table, parts: list[tuple[str, int, int]]) -> None:
    """Writes a Parquet file with one row group per part."""
    import pyarrow.parquet as pq

    with whole_file(path) as file, pq.ParquetWriter(file, table.schema) as writer:
        for _, start, stop in parts:
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
