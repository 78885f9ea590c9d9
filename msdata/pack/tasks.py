"""From the plan to the tasks that worker processes and ranks are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msdata.pack.column_names import scalar_names
from msdata.pack.planning import inpainted
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardTask
from msdata.pack.state import PackPlan, PackState
from msdata.preprocess import Preparation


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
        yield ShardTask(
            number=number,
            path=state.out / part.split / part.name,
            container=settings.container,
            chunked=settings.chunked,
            schema=plan.schema,
            preparation=preparation,
            sample_ids=rows["sample_id"].to_pylist(),
            locations=list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True)),
            labels=[json_values(r) for r in rows.select(list(plan.label_columns)).to_pylist()]
            if plan.label_columns
            else [{}] * rows.num_rows,
            scalar_names=scalar_names(plan.schema, plan.label_columns),
        )


def json_values(row: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON holds: no NaN, no infinity."""
    return {k: None if _is_not_finite(v) else v for k, v in row.items()}


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and (value != value or value in (float("inf"), -float("inf")))
