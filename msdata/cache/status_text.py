"""The state of a node's caches for people: bars and a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msdata.core.progress import bytes_text
from msdata.plan.forecast import TIERS

_BAR_WIDTH = 24
# A rank says something every second; one that has not for so long is stuck, or waits.
_SILENT_S = 5.0


def render_status(statuses: Sequence[dict[str, Any]], place: str) -> str:
    """All arenas.

    Args:
        statuses: of `msdata.cache.status.describe`.
        place: where they were looked for.
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
    """A bar of a share, with another share marked on it.

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
    header = ["rank", "epoch", "step", "samples/s", "waited", *(f"{t} %" for t in TIERS), ""]
    rows = [header]
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
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return [
        (
            "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
