"""The end of a pack: rejected objects and their limit, the index, and `dataset.json`, written last.

`dataset.json` makes the data set complete.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msdata import __version__
from msdata.core.files import storage_error, write_whole
from msdata.dataset.coded_columns import columns_of_shard, stored_arrays
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.index import (
    file_sha256,
    fixed_columns,
    sources_sha256,
    split_rows,
    write_index,
    write_table,
)
from msdata.dataset.manifest import REJECTED_NAME, SOURCES_NAME, Manifest, ShardInfo, read_manifest
from msdata.dataset.rejected import Rejected, read_rejected
from msdata.errors import NOTHING_EXECUTED, DataError, StorageError
from msdata.pack.columns import join_numbers, scalar_names
from msdata.pack.encode import codings_of
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import Rejection, ShardResult
from msdata.pack.state import PackPlan, PackState
from msdata.sources.detect import is_packed

if TYPE_CHECKING:
    import pyarrow as pa

# Unusable objects of a shard: position in its task, and why.
_Rejects = Sequence[tuple[int, str]]


class RejectLimit:
    """Counts unusable objects of finished and unfinished shards; stops at `--max-rejected`.

    Args:
        num_noted: unusable objects that are known already.
        maximum: raise above this number; None never raises.
        out: the data set's folder, for the message.
    """

    def __init__(self, num_noted: int, maximum: int | None, out: Path) -> None:
        self._num_noted = num_noted
        self._maximum = maximum
        self._out = out
        self._unfinished: dict[int, list[Rejection]] = defaultdict(list)
        self._num_unfinished = 0
        self.num_new = 0

    @property
    def unfinished(self) -> list[Rejection]:
        """The unusable objects of shards that have no note."""
        return [r for rejections in self._unfinished.values() for r in rejections]

    def reject(self, rejection: Rejection) -> None:
        """Counts one; raises as `check`."""
        self._unfinished[rejection.number].append(rejection)
        self._num_unfinished += 1
        self.num_new += 1
        self.check()

    def note(self, result: ShardResult) -> None:
        """Counts a shard as finished: its note now lists its unusable objects."""
        self._num_noted += len(result.rejected)
        self._num_unfinished -= len(self._unfinished.pop(result.number, ()))

    def check(self) -> None:
        """Raises DataError if the limit is exceeded."""
        total = self._num_noted + self._num_unfinished
        if self._maximum is not None and total > self._maximum:
            raise DataError(
                f"{total} objects are unusable, more than --max-rejected {self._maximum}; see "
                f"{self._out / REJECTED_NAME}, then run again with --resume and a higher limit"
            )


_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")


def finish_pack(
    state: PackState, plan: PackPlan, settings: PackSettings
) -> tuple[Manifest, tuple[str, ...]]:
    """Writes everything but the shards.

    Args:
        state: the state, with a note of every shard.
        plan: its plan.
        settings: the settings of the pack.

    Returns:
        The manifest of the complete data set, and remarks on numbers that were left out.

    Raises:
        DataError: every object was rejected.
        StorageError: the file system refused.
    """
    table, sources, shards, rejected = _collect(state, plan, settings)
    num_unusable = write_rejected(state, plan, noted=rejected)
    if table is None:
        raise DataError(
            f"all {num_unusable} objects were rejected: {_kinds(state.out)}; see "
            f"{state.out / REJECTED_NAME}"
        )
    table, notes = _with_numbers(table)
    notes += notes_on_missing(table, state.out, num_unusable, settings.fill)
    codings = codings_of(plan.schema, settings)
    digest = write_index(state.out, table, plan.schema, codings)
    # A repair rebuilds a shard byte for byte: it needs the root, and the labels' order.
    root = {
        "source": str(settings.source.absolute()),
        "labels": json.dumps(list(plan.label_columns)),
    }
    write_table(state.out / SOURCES_NAME, sources.replace_schema_metadata(root), split_rows(table))
    manifest = Manifest(
        container=settings.container,
        schema=plan.schema,
        shards=tuple(shards),
        seed=settings.seed,
        index_sha256=digest,
        provenance={
            "msdata": __version__,
            "settings": settings.provenance(),
            "num_rejected": num_unusable,
            "rejected_sha256": file_sha256(state.out / REJECTED_NAME),
            "sources_sha256": sources_sha256(sources),
            **_origin(settings),
        },
        coding=stored_arrays(codings, table),
    )
    manifest.write(state.out)
    state.remove()
    return manifest, notes


# How reasons of rejected objects say that one lacks what others have.
_LACKS = re.compile(r"(.*: )?it has no (file|band|array) ")


def notes_on_missing(
    table: pa.Table, out: Path, num_unusable: int, fill: float | None
) -> tuple[str, ...]:
    """How many samples lack which band if these are filled, else how many objects that cost.

    Args:
        table: the index, with `missing_bands`.
        out: the data set's folder, with `rejected.csv`.
        num_unusable: objects that it lists.
        fill: pixels of missing bands; None where objects that lack one are rejected.
    """
    if fill is None:
        reasons = (r.reason for r in _rejected(out)) if num_unusable else ()
        count = sum(_LACKS.match(reason) is not None for reason in reasons)
        cure = "--missing fill keeps those that have another one"
        return (f"{count:,} objects were rejected for a missing band; {cure}",) if count else ()
    counts: Counter[str] = Counter()
    for entry in table["missing_bands"].value_counts().to_pylist():
        for band in filter(None, entry["values"].split(",")):
            counts[band] += entry["counts"]
    listed = ", ".join(f"{band} {counts[band]:,}" for band in sorted(counts))
    return (f"samples with a missing band, of {table.num_rows:,}: {listed or 'none'}",)


def _origin(settings: PackSettings) -> dict[str, Any]:
    """The provenance of a packed data set that was the source; empty for other sources."""
    if not is_packed(settings.source):
        return {}
    manifest = read_manifest(settings.source)
    coding = {name: stored.to_json() for name, stored in manifest.coding.items()}
    origin = {"fingerprint": manifest.fingerprint, "coding": coding, **manifest.provenance}
    return {"packed_from": origin}


def _collect(
    state: PackState, plan: PackPlan, settings: PackSettings
) -> tuple[pa.Table | None, pa.Table, list[ShardInfo], dict[int, _Rejects]]:
    """The index, the sources, the shards, and the unusable objects of each task."""
    import pyarrow as pa

    rows, sources, shards, rejected = [], [], [], dict[int, _Rejects]()
    codings = codings_of(plan.schema, settings)
    candidates = state.open_candidates()
    for number, part in enumerate(plan.slices):
        note = state.read_note(plan, number)
        rejected[number] = note.facts.rejected
        if note.facts.nbytes is None or note.facts.frame_crc32c is None:
            continue
        taken = candidates.read_row_group(number).take(note.columns["position"])
        # A shard whose objects were all rejected leaves a gap in the names, never in the rows.
        shard = int(Path(part.name).stem.rsplit("-", 1)[1])
        rows.append(_index_rows(taken, note.columns, (shard, plan, codings)))
        sources.append(taken.select(["sample_id", "path", "row"]))
        shards.append(
            ShardInfo(
                split=part.split,
                name=part.name,
                num_samples=taken.num_rows,
                nbytes=note.facts.nbytes,
                frame_crc32c=note.facts.frame_crc32c,
            )
        )
    if not rows:
        return None, pa.table({}), [], rejected
    return pa.concat_tables(rows), pa.concat_tables(sources), shards, rejected


def _index_rows(
    taken: pa.Table, found: pa.Table, place: tuple[int, PackPlan, tuple[ArrayCoding, ...]]
) -> pa.Table:
    import pyarrow as pa

    shard, plan, codings = place

    num_rows = taken.num_rows
    columns: dict[str, Any] = {
        "sample_id": taken["sample_id"],
        "split": taken["split"],
        "shard": pa.array([shard] * num_rows, pa.int32()),
        "nbytes": pa.array([plan.schema.sample_nbytes] * num_rows, pa.int64()),
        "crc32c": found["crc32c"].cast(pa.uint32()),
        "missing_bands": found["missing_bands"],
    }
    for a, name in enumerate(plan.schema.names):
        columns[f"offset_{name}"] = found[f"offset_{a}"]
        columns[f"filled_{name}"] = found[f"filled_{name}"].cast(pa.int32())
        columns[f"nan_{name}"] = found[f"nan_{name}"].cast(pa.int32())
    if codings:
        columns |= columns_of_shard(found, codings)
    ordered = {name: columns[name] for name in fixed_columns(plan.schema, codings)}
    for name, column in scalar_names(plan.schema, plan.label_columns).items():
        ordered[column] = found[f"scalar_{name}"]
    for name in plan.label_columns:
        ordered[name] = taken[name]
    return pa.table(ordered)


def _with_numbers(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """The index with the numbers of the objects' dicts as plain columns; notes on nulls."""
    import pyarrow as pa

    notes = []
    for i, field in enumerate(table.schema):
        if pa.types.is_struct(field.type):
            joined, num_left_out = join_numbers(table[field.name])
            table = table.set_column(i, field.name, joined)
            if num_left_out:
                notes.append(
                    f"column {field.name!r}: {num_left_out} numbers are null: no type holds "
                    "them and the others exactly"
                )
    return table, tuple(notes)


def write_rejected(
    state: PackState,
    plan: PackPlan,
    unfinished: Sequence[Rejection] = (),
    noted: Mapping[int, _Rejects] | None = None,
) -> int:
    """Writes `rejected.csv` with the objects rejected so far; returns the number of its rows.

    Args:
        state: the state.
        plan: its plan.
        unfinished: unusable objects of shards that are not finished.
        noted: those of finished shards, by number; None reads the shards' notes.
    """
    if noted is None:
        noted = {n: state.read_note(plan, n).facts.rejected for n in state.finished(plan)}
    rows = [tuple(r.values()) for r in state.read_rejected().to_pylist()]
    candidates = state.open_candidates()
    by_shard: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for rejection in unfinished:
        by_shard[rejection.number].append((rejection.position, rejection.reason))
    by_shard |= {number: list(rejected) for number, rejected in noted.items()}
    for number, rejected in by_shard.items():
        if not rejected:
            continue
        group = candidates.read_row_group(number, columns=["sample_id", "path", "row"])
        for position, reason in rejected:
            rows.append((*(column[position].as_py() for column in group.columns), reason))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("sample_id", "path", "row", "reason"))
    writer.writerows(sorted(rows))
    write_whole(state.out / REJECTED_NAME, text.getvalue().encode(errors="backslashreplace"))
    return len(rows)


def write_rejected_so_far(
    state: PackState, plan: PackPlan, unfinished: Sequence[Rejection]
) -> None:
    """Writes `rejected.csv` for a run that fails; a full disk must not hide why it fails."""
    with suppress(StorageError):
        write_rejected(state, plan, unfinished)


@dataclass(frozen=True, kw_only=True)
class UnsafeObjects:
    """Objects whose pickles ask for more than data, which damaged storage never causes.

    Attributes:
        count: number of these objects.
        path: path of the first one, as the source lists it.
        reason: the object that it asks for.
    """

    count: int
    path: str
    reason: str


def unsafe_objects(out: Path) -> UnsafeObjects | None:
    """The unsafe objects that `rejected.csv` lists; None if it lists none.

    Raises:
        StorageError: the file system refused.
    """
    found = [r for r in _rejected(out) if r.reason.endswith(NOTHING_EXECUTED)]
    if not found:
        return None
    return UnsafeObjects(count=len(found), path=found[0].path, reason=found[0].reason)


def most_rejected(out: Path, num_rejected: int, num_samples: int) -> str | None:
    """Why most objects were rejected; None if more were packed.

    Args:
        out: the data set's folder.
        num_rejected: objects in `rejected.csv`.
        num_samples: objects in the data set.

    Raises:
        StorageError: the file system refused.
    """
    if num_rejected <= num_samples:
        return None
    total = num_rejected + num_samples
    return (
        f"{num_rejected:,} of {total:,} objects were rejected: {_kinds(out)}; see "
        f"{out / REJECTED_NAME}"
    )


def _kinds(out: Path) -> str:
    """The commonest kinds of reasons; where there is one kind, its first reason in full."""
    # Reasons of one kind differ in their numbers, in names after a semicolon, and in files' names.
    kinds: Counter[str] = Counter()
    first = ""
    for row in _rejected(out):
        own_name = rf"(?<!\w){re.escape(row.sample_id)}(?=[._-])"
        kinds[_NUMBER.sub("N", re.sub(own_name, "{id}", row.reason).split(";")[0])] += 1
        first = first or row.reason
    if len(kinds) == 1:
        alike = f" ({kinds.total():,} alike)" if kinds.total() > 1 else ""
        return f"{first}{alike}"
    listed = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(3))
    return listed + (f" and {len(kinds) - 3} more kinds" if len(kinds) > 3 else "")


def _rejected(out: Path) -> Iterator[Rejected]:
    path = out / REJECTED_NAME
    try:
        yield from read_rejected(path)
    except FileNotFoundError as error:
        raise storage_error("read", path, error) from error


def num_rejected(state: PackState, plan: PackPlan) -> int:
    """Number of unusable objects that the plan and the notes of finished shards list."""
    notes = (state.read_note(plan, number) for number in state.finished(plan))
    return plan.num_rejected + sum(len(note.facts.rejected) for note in notes)
