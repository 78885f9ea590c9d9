"""How the caches of a node are doing: what arenas hold, what ranks say, and what was forecast."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msdata.cache.arena import peek
from msdata.cache.config import CachedSplit, Owners
from msdata.cache.hit_forecast import RUN_FIELDS, forecast_hits
from msdata.cache.rows import read_rows
from msdata.cache.shared_file import is_used
from msdata.cache.slot_file import ROWS_AT, Header, SlotFile
from msdata.plan.forecast import TIERS

Status = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ArenaView:
    """An arena as an onlooker sees it.

    Attributes:
        path: its name.
        header: what it is of.
        num_slots: samples it has room for.
        num_ready: samples it holds.
        owners: owner and tier of every shard.
        rows: what its processes say of themselves.
        is_used: whether any process uses it.
    """

    path: Path
    header: Header
    num_slots: int
    num_ready: int
    owners: Owners
    rows: Sequence[dict[str, Any]]
    is_used: bool


def look_at(path: Path) -> ArenaView | None:
    """Looks at an arena without joining it.

    Args:
        path: the arena.

    Returns:
        What is there; None where it has just gone, or is none.
    """

    def look(header: Header, slots: SlotFile) -> ArenaView:
        return ArenaView(
            path=path,
            header=header,
            num_slots=slots.num_slots,
            num_ready=slots.num_ready,
            owners=slots.owners,
            rows=read_rows(slots.fd, ROWS_AT),
            is_used=is_used(path),
        )

    return peek(path, look)


def describe(view: ArenaView, split: CachedSplit | None) -> Status:
    """What `msdata cache status --json` prints of an arena.

    Args:
        view: of the arena.
        split: the data, where they are known: then there is a forecast to compare with.

    Returns:
        `name`, `split`, `node`, `slots`, `filled`, `bytes` of the filled ones, `is_used`; `ranks`:
        a dict each; with ranks also `epoch`, `hit_share` of their reads in it so far, and with the
        data `forecast_hit_share` of the whole epoch, which ranks that draw by weights say
        themselves.
    """
    status: Status = {
        "name": view.path.name,
        "split": view.header.split,
        "node": view.header.node,
        "slots": view.num_slots,
        "filled": view.num_ready,
        "bytes": view.num_ready * view.header.sample_nbytes,
        "is_used": view.is_used,
        "ranks": sorted((r for r in view.rows if r["kind"] == "rank"), key=lambda r: r["rank"]),
    }
    if status["ranks"]:
        status["epoch"] = max(r["epoch"] for r in status["ranks"])
        ranks = [r for r in status["ranks"] if r["epoch"] == status["epoch"]]
        status["hit_share"] = hit_share(ranks)
        if ranks[0]["is_weighted"]:
            said = (r.get("forecast_hit_share") for r in ranks)
            status["forecast_hit_share"] = next((s for s in said if s is not None), None)
        elif split is not None and view.header.is_of(split):
            status["forecast_hit_share"] = _forecast(view, split, ranks[0])
    return status


def hit_share(ranks: Sequence[dict[str, Any]]) -> float | None:
    """Share of the samples that did not come from storage; None before the first.

    Args:
        ranks: with `tiers` each, as `Loader.stats` has them.
    """
    counts = [{t: r["tiers"][t]["samples"] for t in TIERS} for r in ranks]
    total = sum(sum(c.values()) for c in counts)
    return 1 - sum(c["storage"] for c in counts) / total if total else None


def _forecast(view: ArenaView, split: CachedSplit, rank: dict[str, Any]) -> float | None:
    owner, tier = view.owners
    return _hits_of_epoch(
        tuple(rank[field] for field in RUN_FIELDS),
        view.header.node,
        split.sample_nbytes,
        split.shard_sizes.tobytes(),
        (owner.tobytes(), tier.tobytes()),
    )


@functools.lru_cache(maxsize=16)
def _hits_of_epoch(
    run: tuple[Any, ...],
    node: int,
    sample_nbytes: int,
    shard_sizes: bytes,
    owners: tuple[bytes, bytes],
) -> float | None:
    """Replayed once and not at every look."""
    return forecast_hits(
        dict(zip(RUN_FIELDS, run, strict=True)),
        node,
        shard_sizes=np.frombuffer(shard_sizes, np.int64),
        sample_nbytes=sample_nbytes,
        owners=(np.frombuffer(owners[0], np.int32), np.frombuffer(owners[1], np.int8)),
    )
