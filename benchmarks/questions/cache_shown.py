"""What the report shows of the cache: hits beside their forecast, policies, what binds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.questions.cache_plan import CONTESTANTS, SHARES, Point
from benchmarks.report import Chart, Series, Shown, Table, spread_series
from msdata.cache.config import GIB
from msdata.core.text import rate_text

_STORAGE = 3
# Time and forecast agree if they differ by less than this.
NEAR = 0.15
# Rates that differ by less are equal.
EQUAL = 1.05
# Ours hold the same whatever the policy: one of them stands for all where hits are drawn.
_DRAWN_HITS = ("locality", "never-evict", "lru")
_MIB = 1 << 20


def title_of(point: Mapping[str, Any]) -> str:
    """The contestant's."""
    return CONTESTANTS[point["contestant"]].title


def hits_of(point: Mapping[str, Any], key: str = "tier_shares") -> float:
    """Per cent of samples that did not come from storage."""
    return 100 * (1 - point[key][_STORAGE])


def usual_rate(result: Mapping[str, Any]) -> float:
    """The rate of slowed storage that all setups were measured at."""
    fields = ("storage_bytes_per_s", "num_nodes", "share")
    places = dict.fromkeys(tuple(p[field] for field in fields) for p in result["points"])
    counts = Counter(rate for rate, *_ in places if rate is not None)
    return max(counts, key=lambda rate: counts[rate])


def pick(points: Sequence[Point], **wanted: Any) -> list[Point]:
    """The points whose fields have these values."""
    return [p for p in points if all(p[key] == value for key, value in wanted.items())]


def _rate(bytes_per_s: float | None) -> str:
    return "as it is" if bytes_per_s is None else rate_text(bytes_per_s)


def _sentences(result: Mapping[str, Any]) -> list[str]:
    points = result["points"]
    epochs = sum(len(p["epochs"]) for p in points)
    num_wrong = sum(not p["is_as_forecast"] for p in points)
    word = "exactly as forecast in all of them"
    if num_wrong:
        word = f"NOT as forecast at {num_wrong} of {len(points)} points"
    first = (
        f"Every sample came exactly once in each of the {epochs} timed epochs; samples and bytes "
        f"by node and tier were {word}."
    )
    return [first, *_standings(result), *_times(points)]


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
        bounds: dict[str, list[str]] = {}
        for point in there:
            bounds.setdefault(point["bound_by"], []).append(title_of(point))
        binding = "; ".join(f"{part}: {', '.join(names)}" for part, names in bounds.items())
        found.append(
            f"{most} nodes that hold {min(share, 1):.0%}, storage slowed to {_rate(rate)}: "
            f"ours (locality) with {hits['locality']:.1f} % hits is {word} the best of the others "
            f"({CONTESTANTS[best].title}, {hits[best]:.1f} % hits): {ratio:.2f} of its rate; LRU "
            f"has {hits['lru']:.1f} % hits, private caches that never evict "
            f"{hits['never-evict']:.1f} %. Plain peer fetch: "
            f"{speed['shuffle'] / ours:.2f} of locality's rate. What binds, by forecast: "
            f"{binding}."
        )
    return found


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


def _place(point: Point) -> list[Any]:
    return [point["num_nodes"], 100 * point["share"], title_of(point)]


def _every_point(result: Mapping[str, Any]) -> Table:
    rows = []
    for point in result["points"]:
        local, _, peer, storage = (100 * share for share in point["tier_shares"])
        rate, over = point["samples_per_s"], point["time_over_forecast"]["median"]
        row = [*_place(point), _rate(point["storage_bytes_per_s"]), local, peer, storage]
        row += [hits_of(point), hits_of(point, "forecast_tier_shares"), point["is_as_forecast"]]
        row += [rate["median"], f"{rate['least']:,.0f} to {rate['greatest']:,.0f}"]
        rows.append([*row, None if point["is_calibration"] else over, point["bound_by"]])
    pretended = (
        "Nodes here share a machine and its cores: rates of different numbers of "
        "nodes do not show how real ones scale, and times without slowed storage exceed the "
        "forecast, in which a node's tiers work at the same time. "
        if result["share_a_machine"]
        else ""
    )
    note = (
        f"{result['num_samples']:,} samples of {result['sample_nbytes']:,} bytes, one rank per "
        f"node, batches of {result['batch_size']} per rank. Private caches have the bytes of the "
        "service of their node. Storage as it is: warm page cache, if the data fit there. Slowed: "
        "the loaders' reads are held back to this rate for all nodes together. Time over forecast: "
        "by the rates of this run (table below); none for the epochs that gave them. " + pretended
    )
    heads = ["nodes", "all hold %", "contestant", "storage", "local %", "peer %", "storage %"]
    heads += ["hits %", "forecast hits %", "exactly as forecast", "samples/s", "over turns"]
    heads += ["time over forecast", "forecast: bound by"]
    return Table(title="Every point", columns=heads, rows=rows, note=note)


def _other_tables(result: Mapping[str, Any]) -> list[Table]:
    nbytes = result["num_samples"] * result["sample_nbytes"]
    names = ("local", "peer", "storage")
    by_tier = Table(
        title="Bytes by tier in an epoch",
        columns=(
            *("nodes", "all hold %", "contestant"),
            *(f"{name} GiB" for name in names),
            *(f"forecast {name} GiB" for name in names),
        ),
        rows=[
            [
                *_place(point),
                *(
                    point[key][tier] * nbytes / GIB
                    for key in ("tier_shares", "forecast_tier_shares")
                    for tier in (0, 2, 3)
                ),
            ]
            for point in pick(result["points"], storage_bytes_per_s=None)
        ],
        note="Means over the timed epochs, storage as it is; slowed epochs are in the table above.",
    )
    rates = Table(
        title="Rates of a node, from which times are forecast",
        columns=("nodes", "memory GiB/s", "peers GiB/s", "storage as it is GiB/s"),
        rows=[
            [int(nodes), *(None if r is None else r / GIB for r in rates.values())]
            for nodes, rates in result["measured_bytes_per_s"].items()
        ],
        note="Each from epochs of this run that come wholly from there, as far as that can be.",
    )
    contestants = Table(
        title="Contestants",
        columns=("contestant", "whose", "what it is"),
        rows=[[c.title, c.whose, c.text] for c in CONTESTANTS.values()],
        note="All run in msdata's loader over the same data, with the same batches, threads and "
        "prefetch; all but block have the same global order of samples.",
    )
    return [by_tier, rates, contestants]


def _pair(points: Sequence[Point], x_key: str, x_label: str, where: str, rate: str) -> list[Chart]:
    """Hits, and samples per second, of all contestants against a field of the points."""
    hits, speeds = [], []
    for name, contestant in CONTESTANTS.items():
        mine = sorted(pick(points, contestant=name), key=lambda p: float(p[x_key]))
        x = [p[x_key] * (100.0 if x_key == "share" else 1.0) for p in mine]
        if name in _DRAWN_HITS:
            for title, key in (("", "tier_shares"), (": forecast", "forecast_tier_shares")):
                values = [hits_of(p, key) for p in mine]
                hits.append(Series(name=f"{contestant.title}{title}", x=x, values=values))
        speeds.append(spread_series(contestant.title, [p["samples_per_s"] for p in mine], x))
    return [
        Chart(title=title, kind="lines", series=series, x_label=x_label, y_label=unit)
        for title, series, unit in (
            (f"Hits, {where}", hits, "hits %"),
            (f"Samples per second, {where}, storage slowed to {rate}", speeds, "samples/s"),
        )
    ]


def _charts(result: Mapping[str, Any]) -> list[Chart]:
    rate = usual_rate(result)
    points = pick(result["points"], storage_bytes_per_s=rate)
    most = max(p["num_nodes"] for p in points)
    label = "per cent of the data that all nodes' memory holds"
    found = _pair(pick(points, num_nodes=most), "share", label, f"{most} nodes", _rate(rate))
    # Nodes each of which gives as much: each node more doubles what all hold.
    each = max(SHARES) / most
    same = [p for p in points if abs(p["share"] / p["num_nodes"] - each) < 1e-9]
    if len({p["num_nodes"] for p in same}) > 1:
        found += _pair(same, "num_nodes", "nodes", f"each holds {each:.0%}", _rate(rate))
    return [*found, _by_storage(result)]


def _by_storage(result: Mapping[str, Any]) -> Chart:
    """Where what binds changes: rates against that of storage."""
    rates = sorted(result["slowed_bytes_per_s"])
    swept = next(p for p in result["points"] if p["storage_bytes_per_s"] == rates[0])
    there = pick(result["points"], num_nodes=swept["num_nodes"], share=swept["share"])
    x, series = [rate / _MIB for rate in rates], []
    for name, contestant in CONTESTANTS.items():
        mine = [pick(there, contestant=name, storage_bytes_per_s=rate)[0] for rate in rates]
        series.append(spread_series(contestant.title, [p["samples_per_s"] for p in mine], x))
        if name == "locality":
            forecast = [result["num_samples"] / p["forecast_s"] for p in mine]
            series.append(Series(name=f"{contestant.title}: forecast", x=x, values=forecast))
    return Chart(
        title=f"What storage binds: {swept['num_nodes']} nodes that hold {swept['share']:.0%}",
        kind="lines",
        series=series,
        x_label="MiB/s that storage gives to all nodes together",
        y_label="samples/s",
        is_log=True,
    )


def _summary(result: Mapping[str, Any]) -> Table:
    """A row per contestant, for the docs: the most nodes, half of the data held, slowed storage."""
    most = max(p["num_nodes"] for p in result["points"])
    where = {"num_nodes": most, "share": SHARES[1], "storage_bytes_per_s": usual_rate(result)}
    points = pick(result["points"], **where)
    (none,) = (p["samples_per_s"]["median"] for p in points if p["contestant"] == "none")
    return Table(
        title=f"{most} nodes that hold {SHARES[1]:.0%} of the data, storage slowed",
        columns=(
            *("contestant", "hits %", "forecast %", "from peers %", "rate over no cache"),
            "time over forecast",
        ),
        rows=[
            [
                *(title_of(p), hits_of(p), hits_of(p, "forecast_tier_shares")),
                *(100 * p["tier_shares"][2], p["samples_per_s"]["median"] / none),
                p["time_over_forecast"]["median"],
            ]
            for p in points
        ],
        in_readme=True,
    )


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of the cache, of a result with its `points`."""
    return Shown(
        title="What does the cache give, and does the forecast hold?",
        sentences=_sentences(result),
        tables=[_summary(result), _every_point(result), *_other_tables(result)],
        charts=_charts(result),
    )
