"""From the plan to the tasks that worker processes and ranks are given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msdata.core.trusted_names import check_source_paths
from msdata.pack.column_names import scalar_names
from msdata.pack.planning import inpainted
from msdata.pack.prepare import Preparation
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardTask
from msdata.pack.state import PackPlan, PackState

if TYPE_CHECKING:
    import pyarrow as pa


def tasks_left(state: PackState, plan: PackPlan) -> list[int]:
    """Numbers of the shards still to be written, the largest first so that none drags behind."""
    left = set(range(len(plan.slices))) - set(state.finished(plan))
    return sorted(left, key=lambda n: (plan.slices[n].start - plan.slices[n].stop, n))


def make_tasks(
    state: PackState, plan: PackPlan, settings: PackSettings, numbers: Sequence[int]
) -> Iterator[ShardTask]:
    """The tasks of the given shards, each made when it is asked for."""
    if not numbers:
        return
    candidates = state.open_candidates()
    preparation = Preparation(
        inpaint=inpainted(plan.schema, settings), max_nan_fraction=settings.max_nan_fraction
    )
    for number in numbers:
        part = plan.slices[number]
        rows = candidates.read_row_group(number)
        check_source_paths(state.folder, rows["path"])
        yield ShardTask(
            number=number,
            path=state.out / part.split / part.name,
            container=settings.container,
            chunked=settings.chunked,
            schema=plan.schema,
            preparation=preparation,
            sample_ids=rows["sample_id"].to_pylist(),
            locations=list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True)),
            labels=label_rows(rows.select(list(plan.label_columns))),
            scalar_names=scalar_names(plan.schema, plan.label_columns),
        )


def label_rows(labels: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dicts of what JSON holds: no NaN, no infinity."""
    if not labels.num_columns:
        return [{}] * labels.num_rows
    names, columns = labels.column_names, map(_json_column, labels.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _json_column(column: pa.ChunkedArray) -> list[Any]:
    values = column.to_pylist()
    if str(column.type) in ("float", "double"):
        return [v if v is None or math.isfinite(v) else None for v in values]
    return [None if _is_not_finite(v) else v for v in values]


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and (value != value or value in (float("inf"), -float("inf")))
