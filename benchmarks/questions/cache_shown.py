"""What the report shows of the cache: hits beside their forecast, policies, what binds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.questions.cache_plan import CONTESTANTS, SHARES
from benchmarks.questions.cache_timing import Point
from benchmarks.question import Chart, Series, Shown, Table

_STORAGE = 3
# Time and forecast agree if they differ by less than this.
NEAR = 0.15
# Rates that differ by less are equal.
EQUAL = 1.05
# Ours hold the same whatever the policy: one of them stands for all where hits are drawn.
_DRAWN_HITS = ("locality", "never-evict", "lru")


def title_of(point: Mapping[str, Any]) -> str:
    """The contestant's."""
    return CONTESTANTS[point["contestant"]].title


def hits_of(point: Mapping[str, Any], key: str = "tier_shares") -> float:
    """Per cent of samples that did not come from storage."""
    return 100 * (1 - point[key][_STORAGE])


def usual_rate(result: Mapping[str, Any]) -> float:
    """The rate of slowed storage that all setups were measured at."""
    by_rate: dict[float, set[tuple[int, float]]] = {}
    for p in result["points"]:
        if p["storage_bytes_per_s"] is not None:
            setup = (p["num_nodes"], p["share"])
            by_rate.setdefault(p["storage_bytes_per_s"], set()).add(setup)
    return max(by_rate, key=lambda rate: len(by_rate[rate]))


def pick(points: Sequence[Point], **wanted: Any) -> list[Point]:
    """The points whose fields have these values."""
    return [p for p in points if all(p[key] == value for key, value in wanted.items())]


def _rate_text(bytes_per_s: float | None) -> str:
    return "as it is" if bytes_per_s is None else f"{bytes_per_s / 1e6:,.0f} MB/s"


def _sentences(result: Mapping[str, Any]) -> list[str]:
    points = result["points"]
    epochs = sum(len(p["epochs"]) for p in points)
    wrong = [p for p in points if not p["is_as_forecast"]]
    found = [
        f"Every sample came exactly once in each of the {epochs} timed epochs; samples and bytes "
        + (
            "by node and tier were exactly as forecast in all of them."
            if not wrong
            else f"by node and tier were NOT as forecast at {len(wrong)} of {len(points)} points."
        )
    ]
    return [*found, *_standings(result), *_times(points)]


def _standings(result: Mapping[str, Any]) -> list[str]:
    rate, most = usual_rate(result), max(p["num_nodes"] for p in result["points"])
    found = []
    for share in sorted({p["share"] for p in result["points"]}):
        there = pick(result["points"], num_nodes=most, share=share, storage_bytes_per_s=rate)
        speed = {p["contestant"]: p["samples_per_s"]["median"] for p in there}
        hits = {p["contestant"]: hits_of(p) for p in there}
        ours, others = speed["locality"], {n: speed[n] for n in ("never-evict", "lru", "none")}
        best = max(others, key=lambda n: others[n])
        ratio = ours / others[best]
        word = "ahead of" if ratio > EQUAL else "NOT AHEAD of"
        found.append(
            f"{most} nodes that hold {min(share, 1):.0%}, storage slowed to {_rate_text(rate)}: "
            f"ours (locality) with {hits['locality']:.1f} % hits is {word} the best of the others "
            f"({CONTESTANTS[best].title}, {hits[best]:.1f} % hits): {ratio:.2f} of its rate; LRU "
            f"has {hits['lru']:.1f} % hits, private caches that never evict "
            f"{hits['never-evict']:.1f} %. Plain peer fetch: "
            f"{speed['shuffle'] / ours:.2f} of locality's rate. What binds, by forecast: "
            f"{_bounds(there)}."
        )
    return found


def _bounds(points: Sequence[Point]) -> str:
    by_part: dict[str, list[str]] = {}
    for name in CONTESTANTS:
        (point,) = pick(points, contestant=name)
        by_part.setdefault(point["bound_by"], []).append(title_of(point))
    return "; ".join(f"{part}: {', '.join(names)}" for part, names in by_part.items())


def _times(points: Sequence[Point]) -> list[str]:
    found = []
    for is_slowed, what in ((True, "slowed"), (False, "as it is")):
        over = [
            p["time_over_forecast"]["median"]
            for p in points
            if (p["storage_bytes_per_s"] is not None) == is_slowed and not p["is_calibration"]
        ]
        if over:
            near = sum(abs(ratio - 1) < NEAR for ratio in over)
            found.append(
                f"Storage {what}: epochs took {statistics.median(over):.2f} of the forecast time "
                f"({min(over):.2f} to {max(over):.2f} over {len(over)} points, {near} of them "
                f"within {NEAR:.0%})."
            )
    return found


def _point_row(point: Point) -> list[Any]:
    local, _, peer, storage = (100 * share for share in point["tier_shares"])
    rate, over = point["samples_per_s"], point["time_over_forecast"]
    return [
        *(point["num_nodes"], 100 * point["share"], title_of(point)),
        *(_rate_text(point["storage_bytes_per_s"]), local, peer, storage),
        *(hits_of(point), hits_of(point, "forecast_tier_shares"), point["is_as_forecast"]),
        rate["median"],
        f"{rate['least']:,.0f} to {rate['greatest']:,.0f}",
        None if point["is_calibration"] else over["median"],
        point["bound_by"],
    ]


_HEADS = (
    "nodes",
    "all hold %",
    "contestant",
    "storage",
    "local %",
    "peer %",
    "storage %",
    "hits %",
)
_HEADS += ("forecast hits %", "exactly as forecast", "samples/s", "over turns")
_HEADS += ("time over forecast", "forecast: bound by")


def _bytes_table(result: Mapping[str, Any]) -> Table:
    rows = []
    nbytes = result["num_samples"] * result["sample_nbytes"]
    for point in pick(result["points"], storage_bytes_per_s=None):
        measured = [share * nbytes / 1e9 for share in point["tier_shares"]]
        foretold = [share * nbytes / 1e9 for share in point["forecast_tier_shares"]]
        pairs = [measured[t] for t in (0, 2, 3)], [foretold[t] for t in (0, 2, 3)]
        place = (point["num_nodes"], 100 * point["share"], title_of(point))
        rows.append([*place, *pairs[0], *pairs[1]])
    names = ("local", "peer", "storage")
    return Table(
        title="Bytes by tier in an epoch",
        columns=(
            *("nodes", "all hold %", "contestant"),
            *(f"{name} GB" for name in names),
            *(f"forecast {name} GB" for name in names),
        ),
        rows=rows,
        note="Means over the timed epochs, storage as it is; slowed epochs are in the table above.",
    )


def _contestants_table() -> Table:
    return Table(
        title="Contestants",
        columns=("contestant", "whose", "what it is"),
        rows=[[c.title, c.whose, c.text] for c in CONTESTANTS.values()],
        note="All run in msdata's loader over the same data, with the same batches, threads and "
        "prefetch; all but block have the same global order of samples.",
    )


def _rates_table(result: Mapping[str, Any]) -> Table:
    rows = [
        [int(nodes), *(None if r is None else r / 1e9 for r in rates.values())]
        for nodes, rates in result["measured_bytes_per_s"].items()
    ]
    return Table(
        title="Rates of a node, from which times are forecast",
        columns=("nodes", "memory GB/s", "peers GB/s", "storage as it is GB/s"),
        rows=rows,
        note="Each from epochs of this run that come wholly from there, as far as that can be.",
    )


def _note(result: Mapping[str, Any]) -> str:
    pretended = (
        "Nodes here share a machine and its cores: rates of different numbers of "
        "nodes do not show how real ones scale, and times without slowed storage exceed the "
        "forecast, in which a node's tiers work at the same time. "
        if result["share_a_machine"]
        else ""
    )
    return (
        f"{result['num_samples']:,} samples of {result['sample_nbytes']:,} bytes, one rank a node, "
        f"batches of {result['batch_size']} a rank. Private caches have the bytes of the service "
        "of their node. Storage as it is: warm page cache, if the data fit there. Slowed: the "
        "loaders' reads are held back to this rate for all nodes together. Time over forecast: by "
        "the rates of this run (table below); none for the epochs that gave them. " + pretended
    )


def _by_share(result: Mapping[str, Any], num_nodes: int) -> list[Chart]:
    rate = usual_rate(result)
    points = pick(result["points"], num_nodes=num_nodes, storage_bytes_per_s=rate)
    hits, speeds = [], []
    for name, contestant in CONTESTANTS.items():
        mine = sorted(pick(points, contestant=name), key=lambda p: float(p["share"]))
        x = [100 * p["share"] for p in mine]
        if name in _DRAWN_HITS:
            hits.append(Series(name=contestant.title, x=x, values=[hits_of(p) for p in mine]))
            foretold = [hits_of(p, "forecast_tier_shares") for p in mine]
            hits.append(Series(name=f"{contestant.title}: forecast", x=x, values=foretold))
        speeds.append(_speed(contestant.title, x, mine))
    where = f"{num_nodes} nodes"
    label = "per cent of the data that all nodes' memory holds"
    return [
        Chart(title=f"Hits, {where}", kind="lines", series=hits, x_label=label, y_label="hits %"),
        Chart(
            title=f"Samples per second, {where}, storage slowed to {_rate_text(rate)}",
            kind="lines",
            series=speeds,
            x_label=label,
            y_label="samples/s",
        ),
    ]


def _speed(title: str, x: Sequence[float], points: Sequence[Point]) -> Series:
    rates = [p["samples_per_s"] for p in points]
    return Series(
        name=title,
        x=x,
        values=[r["median"] for r in rates],
        least=[r["least"] for r in rates],
        greatest=[r["greatest"] for r in rates],
    )


def _by_nodes(result: Mapping[str, Any]) -> list[Chart]:
    """Against nodes, each of which gives as much: each node more doubles what all hold."""
    rate = usual_rate(result)
    points = pick(result["points"], storage_bytes_per_s=rate)
    most = max(p["num_nodes"] for p in points)
    each = max(SHARES) / most
    same = [p for p in points if abs(p["share"] / p["num_nodes"] - each) < 1e-9]
    if len({p["num_nodes"] for p in same}) < 2:
        return []
    hits, speeds = [], []
    for name, contestant in CONTESTANTS.items():
        mine = sorted(pick(same, contestant=name), key=lambda p: int(p["num_nodes"]))
        x = [float(p["num_nodes"]) for p in mine]
        if name in _DRAWN_HITS:
            hits.append(Series(name=contestant.title, x=x, values=[hits_of(p) for p in mine]))
        speeds.append(_speed(contestant.title, x, mine))
    what = f"each node holds {each:.0%}"
    return [
        Chart(title=f"Hits, {what}", kind="lines", series=hits, x_label="nodes", y_label="hits %"),
        Chart(
            title=f"Samples per second, {what}, storage slowed to {_rate_text(rate)} in all",
            kind="lines",
            series=speeds,
            x_label="nodes",
            y_label="samples/s",
        ),
    ]


def _by_storage(result: Mapping[str, Any]) -> Chart:
    """Where what binds changes: rates against that of storage."""
    rates = sorted(result["slowed_bytes_per_s"])
    swept = next(p for p in result["points"] if p["storage_bytes_per_s"] == rates[0])
    there = pick(result["points"], num_nodes=swept["num_nodes"], share=swept["share"])
    series = []
    for name, contestant in CONTESTANTS.items():
        mine = [pick(there, contestant=name, storage_bytes_per_s=rate)[0] for rate in rates]
        x = [rate / 1e6 for rate in rates]
        series.append(_speed(contestant.title, x, mine))
        if name == "locality":
            foretold = [result["num_samples"] / p["forecast_s"] for p in mine]
            series.append(Series(name=f"{contestant.title}: forecast", x=x, values=foretold))
    return Chart(
        title=f"What storage binds: {swept['num_nodes']} nodes that hold {swept['share']:.0%}",
        kind="lines",
        series=series,
        x_label="MB/s that storage gives to all nodes together",
        y_label="samples/s",
        is_log=True,
    )


def _summary(result: Mapping[str, Any]) -> Table:
    """A row a contestant, for the README: the most nodes, half of the data held, slowed storage."""
    most = max(p["num_nodes"] for p in result["points"])
    where = {"num_nodes": most, "share": SHARES[1], "storage_bytes_per_s": usual_rate(result)}
    points = pick(result["points"], **where)
    (none,) = (p["samples_per_s"]["median"] for p in points if p["contestant"] == "none")
    rows = [
        [
            *(title_of(p), hits_of(p), hits_of(p, "forecast_tier_shares")),
            *(100 * p["tier_shares"][2], p["samples_per_s"]["median"] / none),
            p["time_over_forecast"]["median"],
        ]
        for p in points
    ]
    return Table(
        title=f"{most} nodes that hold {SHARES[1]:.0%} of the data, storage slowed",
        columns=(
            *("contestant", "hits %", "forecast %", "from peers %", "rate over no cache"),
            "time over forecast",
        ),
        rows=rows,
        in_readme=True,
    )


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of the cache.

    Args:
        result: as `benchmarks.questions.cache.answer` collects it.
    """
    most = max(p["num_nodes"] for p in result["points"])
    every = Table(
        title="Every point",
        columns=_HEADS,
        rows=[_point_row(point) for point in result["points"]],
        note=_note(result),
    )
    tables = [_summary(result), every, _bytes_table(result), _rates_table(result)]
    return Shown(
        title="What does the cache give, and does the forecast hold?",
        sentences=_sentences(result),
        tables=[*tables, _contestants_table()],
        charts=[*_by_share(result, most), *_by_nodes(result), _by_storage(result)],
    )
