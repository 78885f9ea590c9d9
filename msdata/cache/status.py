"""The state of a node's caches: contents of arenas, reports of ranks, forecast of hits, as text."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import peek
from msdata.cache.config import CachedSplit, Owners
from msdata.cache.shared_file import is_used, read_rows
from msdata.cache.slot_file import SlotFile
from msdata.cache.slot_places import ROWS_AT
from msdata.core.text import bytes_text, table_lines
from msdata.plan.forecast import TIERS, Job, forecast_epoch
from msdata.plan.ownership import Ownership, equal_nodes
from msdata.topology import Topology

Status = dict[str, Any]


def describe(path: Path, split: CachedSplit | None) -> Status | None:
    """An arena's entry in the output of `msdata cache status --json`, without joining it.

    Args:
        path: the arena.
        split: the data, if known: enables the forecast.

    Returns:
        `name`, `split`, `node`, `slots`, `filled` slots, their `bytes`, `is_used` and `ranks`, one
        dict per rank. With ranks also `epoch` and `hit_share`, the hits among their reads so far;
        with the data also `forecast_hit_share` for the whole epoch, which ranks that draw by
        weights report themselves. None if the arena is gone, invalid, or of other data.
    """

    def look(slots: SlotFile) -> Status | None:
        header = slots.header
        if split is not None and not header.is_of(split):
            return None
        ranks = [row for row in read_rows(slots.fd, ROWS_AT) if row["kind"] == "rank"]
        status: Status = {
            "name": path.name,
            "split": header.split,
            "node": header.node,
            "slots": slots.num_slots,
            "filled": slots.num_ready,
            "bytes": slots.ready_nbytes,
            "is_used": is_used(path),
            "ranks": sorted(ranks, key=lambda r: r["rank"]),
        }
        if ranks:
            status["epoch"] = max(r["epoch"] for r in ranks)
            now = [r for r in status["ranks"] if r["epoch"] == status["epoch"]]
            status["hit_share"] = hit_share(now)
            if now[0]["is_weighted"]:
                said = (r.get("forecast_hit_share") for r in now)
                status["forecast_hit_share"] = next((s for s in said if s is not None), None)
            elif split is not None:
                status["forecast_hit_share"] = _hits_of_epoch(
                    tuple(now[0][field] for field in RUN_FIELDS),
                    header.node,
                    split.shard_sizes.tobytes(),
                    tuple(table.tobytes() for table in slots.owners),
                )
        return status

    return peek(path, look)


def hit_share(ranks: Sequence[dict[str, Any]]) -> float | None:
    """Share of the samples that did not come from storage; None before the first sample.

    Args:
        ranks: reports with `tiers` as in `Loader.stats`.
    """
    counts = [{t: r["tiers"][t]["samples"] for t in TIERS} for r in ranks]
    total = sum(sum(c.values()) for c in counts)
    return 1 - sum(c["storage"] for c in counts) / total if total else None


@functools.lru_cache(maxsize=16)
def _hits_of_epoch(
    run: tuple[Any, ...], node: int, shard_sizes: bytes, owners: tuple[bytes, ...]
) -> float | None:
    """Cached: a replay takes half a second for millions of samples."""
    return forecast_hits(
        dict(zip(RUN_FIELDS, run, strict=True)),
        node,
        shard_sizes=np.frombuffer(shard_sizes, np.int64),
        owners=(np.frombuffer(owners[0], np.int32), np.frombuffer(owners[1], np.int8)),
    )


# Fields of a rank's report that decide which samples its node reads, except the weights.
RUN_FIELDS = (
    *("num_nodes", "ranks_per_node", "batch_size", "policy", "seed", "last", "buffer_samples"),
    *("epoch", "first_position", "has_peers"),
)


def forecast_hits(
    run: Mapping[str, Any],
    node: int,
    *,
    shard_sizes: NDArray[np.int64],
    owners: Owners,
    weights: NDArray[np.float64] | None = None,
) -> float | None:
    """Predicts the share of a node's reads that do not come from storage, by replaying the epoch.

    Args:
        run: `RUN_FIELDS` of a rank's report.
        node: the node whose reads count.
        shard_sizes: int64 (num_shards,), samples per shard.
        owners: owner and tier of every shard.
        weights: float64 (num_samples,), weights of the draws; None takes each sample once.

    Returns:
        Share of hits from `first_position` to the end of the epoch; None if nothing is left.
    """
    num_nodes = run["num_nodes"]
    job = Job(
        topology=Topology(num_nodes=num_nodes, ranks_per_node=run["ranks_per_node"]),
        # Owners are known, whatever memory they came from.
        nodes=equal_nodes(num_nodes, memory_bytes=0),
        shard_sizes=shard_sizes,
        # Hits are samples, whatever their bytes.
        sample_bytes=1,
        batch_per_rank=run["batch_size"],
        policy=run["policy"],
        seed=run["seed"],
        last=run["last"],
        buffer_samples=run["buffer_samples"],
        weights=weights,
    )
    ownership = Ownership.numbered(*owners, num_nodes)
    forecast = forecast_epoch(job, ownership, run["epoch"], first_position=run["first_position"])
    return forecast.hit_share(node, has_peers=run["has_peers"])


_BAR_WIDTH = 24
# A rank reports every second; one that has been silent for so long is stuck or waits.
_SILENT_S = 5.0


def render_status(statuses: Sequence[dict[str, Any]], place: str) -> str:
    """All arenas as text: bars and a table of ranks.

    Args:
        statuses: results of `describe`.
        place: the folder that was searched.
    """
    if not statuses:
        return f"no arenas of yours in {place}"
    return "\n".join(line for status in statuses for line in _render_arena(status))


def _render_arena(status: dict[str, Any]) -> list[str]:
    share = status["filled"] / max(1, status["slots"])
    use = "in use" if status["is_used"] else "left by a dead job"
    held = f"{status['filled']:,} of {status['slots']:,} samples, {bytes_text(status['bytes'])}"
    lines = [f"{status['name']}  {bar(share)} {share:4.0%}  {held}, {use}"]
    if not status["ranks"]:
        return lines
    hits, forecast = status["hit_share"], status.get("forecast_hit_share")
    says = f"  epoch {status['epoch']} hits  {bar(hits or 0.0, forecast)} {_percent(hits)}"
    if forecast is not None:
        says += f"  forecast {_percent(forecast)} of the whole epoch"
    return [*lines, says, *_render_ranks(status["ranks"])]


def bar(share: float, mark: float | None = None) -> str:
    """A bar that shows a share, with another share marked on it.

    Args:
        share: from 0 to 1.
        mark: from 0 to 1; None marks nothing.
    """
    full = round(share * _BAR_WIDTH)
    cells = ["#"] * full + ["."] * (_BAR_WIDTH - full)
    if mark is not None:
        cells[min(_BAR_WIDTH - 1, round(mark * _BAR_WIDTH))] = "|"
    return f"[{''.join(cells)}]"


def _render_ranks(ranks: Sequence[dict[str, Any]]) -> list[str]:
    head = ["rank", "epoch", "step", "samples/s", "waited", *(f"{t} %" for t in TIERS), ""]
    rows = []
    for rank in ranks:
        counts = [rank["tiers"][t]["samples"] for t in TIERS]
        total = max(1, sum(counts))
        silent_s = time.time() - rank["written_s"]
        rows.append(
            [
                *(str(rank["rank"]), str(rank["epoch"])),
                f"{rank['steps']:,} of {rank['num_steps']:,}",
                f"{rank['samples'] / rank['seconds']:,.0f}" if rank["seconds"] else "-",
                f"{rank['wait_s']:.1f} s",
                *(f"{100 * count / total:.1f}" for count in counts),
                f"silent for {silent_s:.0f} s" if silent_s > _SILENT_S else "",
            ]
        )
    return [f"  {line}".rstrip() for line in table_lines(head, rows)]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
