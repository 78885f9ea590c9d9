"""The last step of a pack: index, list of rejects, and `dataset.json`, which makes it complete."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from msdata import __version__
from msdata.atomic_file import write_whole
from msdata.errors import DataError
from msdata.index import fixed_columns, split_rows, write_index, write_table
from msdata.manifest import Manifest, ShardInfo
from msdata.pack.settings import PackSettings
from msdata.pack.state import PackPlan, PackState

REJECTED_NAME = "rejected.csv"
SOURCES_NAME = "sources.parquet"


def finish_pack(state: PackState, plan: PackPlan, settings: PackSettings) -> Manifest:
    """Writes everything but the shards.

    Args:
        state: the state, with a note of every shard.
        plan: its plan.
        settings: what the user asked for.

    Returns:
        The manifest of the complete data set.

    Raises:
        DataError: every object was rejected.
        StorageError: the file system refused.
    """
    table, sources, shards = _collect(state, plan)
    num_rejected = write_rejected(state, plan)
    if table is None:
        raise DataError(
            f"all {num_rejected} objects were rejected; the reasons are in "
            f"{state.out / REJECTED_NAME}"
        )
    digest = write_index(state.out, table, plan.schema)
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
            "num_rejected": num_rejected,
        },
    )
    manifest.write(state.out)
    state.remove()
    return manifest


def _collect(state: PackState, plan: PackPlan) -> tuple[pa.Table | None, pa.Table, list[ShardInfo]]:
    rows, sources, shards = [], [], []
    candidates = state.open_candidates()
    for number, part in enumerate(plan.slices):
        note = state.read_note(number)
        if note.facts["nbytes"] is None:
            continue
        taken = candidates.read_row_group(number).take(note.columns["position"])
        # A shard whose objects were all rejected leaves a gap in the names, never in the rows.
        shard = int(Path(part.name).stem.rsplit("-", 1)[1])
        rows.append(_index_rows(taken, note.columns, shard, plan))
        sources.append(taken.select(["sample_id", "path", "row"]))
        shards.append(
            ShardInfo(
                split=part.split,
                name=part.name,
                num_samples=taken.num_rows,
                nbytes=note.facts["nbytes"],
                frame_crc32c=note.facts["frame_crc32c"],
            )
        )
    if not rows:
        return None, pa.table({}), []
    return pa.concat_tables(rows), pa.concat_tables(sources), shards


def _index_rows(taken: pa.Table, found: pa.Table, shard: int, plan: PackPlan) -> pa.Table:
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
    ordered = {name: columns[name] for name in fixed_columns(plan.schema)}
    for name in plan.schema.scalars:
        # One shard's numbers may all be whole, another's not.
        ordered[name] = found[name].cast(pa.float64())
    for name in plan.label_columns:
        ordered.setdefault(name, taken[name])
    return pa.table(ordered)


def write_rejected(state: PackState, plan: PackPlan) -> int:
    """Writes `rejected.csv` from what is known so far; returns the number of its rows."""
    rows = [tuple(r.values()) for r in state.read_rejected().to_pylist()]
    candidates = state.open_candidates()
    for number in range(len(plan.slices)):
        if not state.note_path(number).exists():
            continue
        rejected = state.read_note(number).facts["rejected"]
        if not rejected:
            continue
        group = candidates.read_row_group(number, columns=["sample_id", "path", "row"])
        for position, reason in rejected:
            rows.append((*(column[position].as_py() for column in group.columns), reason))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("sample_id", "path", "row", "reason"))
    writer.writerows(sorted(rows))
    write_whole(state.out / REJECTED_NAME, text.getvalue().encode())
    return len(rows)
