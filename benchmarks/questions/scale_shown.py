"""What the report shows of scaling: measured beside foretold, and foretold beyond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import spread
from benchmarks.question import Chart, Series, Shown, Table

# Where the foretold rate differs by more, the report says that it is not to be relied on.
TRUSTED_WITHIN = 0.15
MAX_CACHED_SHARE = 0.01
# Shares of tiers that differ by more do so because whole shards are dealt out.
COARSE_SHARDS = 0.05
KINDS = ("strong", "weak")


def efficiencies(points: list[dict[str, Any]], kind: str) -> list[dict[str, float]]:
    """Rate of n nodes over n times that of one, with an interval over epochs."""
    one = points[0]["samples_per_s"]["median"]
    found = []
    for point in points:
        ideal = one * point["nodes"] / points[0]["nodes"]
        rates = [point["samples"] / seconds for seconds in point["seconds"]]
        found.append(spread([rate / ideal for rate in rates]))
    return found


def ratios_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios that `compare` guards: efficiency of weak scaling, measured over foretold."""
    ratios = {}
    for kind in KINDS:
        points = result["points"][kind]
        for point, efficiency in zip(points, efficiencies(points, kind), strict=True):
            nodes = point["nodes"]
            if kind == "weak" and nodes > 1:
                ratios[f"weak scaling, efficiency of {nodes} nodes"] = efficiency
            seconds = zip(point["foretold_s"], point["seconds"], strict=True)
            ratios[f"{kind} scaling, {nodes} nodes: measured over foretold rate"] = spread(
                [foretold / measured for foretold, measured in seconds]
            )
    return ratios


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """What was measured on what, how well it was foretold, and what lies beyond."""
    return [*_setting(result), *_validity(result), *_beyond(result)]


def _setting(result: Mapping[str, Any]) -> list[str]:
    most = result["points"]["weak"][-1]["nodes"]
    shared = result["nodes_per_machine"]
    if shared == 1 and not result["is_slurm"]:
        return ["Measured on this machine alone."]
    if shared == 1:
        return [f"Measured on up to {most} nodes of a Slurm job, each a machine of its own."]
    what = (
        "nodes of a Slurm job that share one machine"
        if result["is_slurm"]
        else ("processes of one machine that stand for nodes")
    )
    rate = result["storage_bytes_per_s"] / 1e6
    return [
        f"NOT a cluster: up to {most} {what}, its cores, memory and disk. So each node's storage "
        f"was slowed to {rate:,.3g} MB/s, far below the machine's, and what the points show is "
        "whether the plan foretells them, not what nodes can do."
    ]


def _validity(result: Mapping[str, Any]) -> list[str]:
    every = [point for kind in KINDS for point in result["points"][kind]]
    worst = max(every, key=lambda point: abs(point["error"]))
    is_good = abs(worst["error"]) <= TRUSTED_WITHIN
    found = [
        f"Foretold rates are {min(p['error'] for p in every):+.1%} to "
        f"{max(p['error'] for p in every):+.1%} of the measured ones; the worst is that of "
        f"{worst['nodes']} nodes on {worst['num_samples']:,} samples. The goal of "
        f"{TRUSTED_WITHIN:.0%} is {'reached' if is_good else 'NOT reached'}."
    ]
    wrong = [point for point in every if point["tiers"] != point["foretold_tiers"]]
    found.append(
        "Samples by tier are those of the plan at every point, one by one."
        if not wrong
        else f"Samples by tier are NOT those of the plan on {wrong[0]['nodes']} nodes: "
        f"{wrong[0]['tiers']}, foretold {wrong[0]['foretold_tiers']}."
    )
    if any(p["stayed"] is None or p["stayed"] > MAX_CACHED_SHARE for p in every):
        found.append(
            "Reads of storage may NOT have been cold: pages stayed in the page cache, or the "
            "system does not tell."
        )
    return found


def _beyond(result: Mapping[str, Any]) -> list[str]:
    beyond = result["beyond"]
    fixed, growing = (
        beyond["curves"][f"strong, {name} storage"][-1] for name in ("fixed", "growing")
    )
    seconds = [f"{c['epoch_s']:,.3g} s" for c in (growing, fixed) if c["epoch_s"]]
    found = [
        f"{beyond['num_samples']:,} samples of {beyond['sample_nbytes']:,} bytes on "
        f"{fixed['nodes']:,} nodes like these, {beyond['memory_nbytes'] / (1 << 30):,.1f} GiB of "
        f"cache each: an epoch after the first takes {' to '.join(dict.fromkeys(seconds))}, bound "
        f"by {' or '.join(dict.fromkeys([str(growing['binds']), str(fixed['binds'])]))}."
    ]
    replay = beyond["replay"]
    furthest = max(abs(replay["replayed"][t] - replay["expected"][t]) for t in replay["expected"])
    found.append(
        f"One epoch on {replay['nodes']:,} nodes replayed sample by sample: shares of tiers are "
        f"within {100 * furthest:.2f} percentage points of the closed form that is shown."
    )
    if furthest > COARSE_SHARDS:
        found.append(
            "That is much: the data have too few shards for so many nodes, and the closed form, "
            "which knows of no shards, flatters. Pack them with a smaller --shard-size."
        )
    if not beyond["has_network"]:
        found.append(
            "No network was measured between machines, so beyond the measured points none is "
            "reckoned with: give --machine with the machine.json of a real probe."
        )
    return found


def _table(result: Mapping[str, Any]) -> Table:
    rows = []
    for kind in KINDS:
        points = result["points"][kind]
        for point, efficiency in zip(points, efficiencies(points, kind), strict=True):
            rate, total = point["samples_per_s"], max(1, sum(point["tiers"].values()))
            shares = [100 * point["tiers"][t] / total for t in ("local", "peer", "storage")]
            rows.append(
                [
                    *(kind, point["nodes"], point["num_samples"], rate["median"]),
                    f"{rate['least']:,.0f} to {rate['greatest']:,.0f}",
                    *(point["foretold_samples_per_s"], f"{point['error']:+.1%}", point["binds"]),
                    *(efficiency["median"], *shares),
                    point["tiers"] == point["foretold_tiers"],
                    point["first_s"],
                ]
            )
    heads = ["scaling", "nodes", "samples", "samples/s", "over epochs", "foretold", "error"]
    heads += ["bound by", "efficiency", "local %", "peer %", "storage %", "as foretold", "first s"]
    return Table(
        title="Measured and foretold",
        columns=heads,
        rows=rows,
        in_readme=True,
        note=(
            f"{result['ranks_per_node']} ranks a node, {result['batch_per_rank']} samples a rank "
            f"and step, {result['memory_nbytes'] / (1 << 20):,.0f} MiB of cache a node, policy "
            "locality. Epochs after the first; an epoch lasts as long as its slowest rank. Error: "
            "of the foretold rate. Efficiency: the rate over that of one node times the nodes. As "
            "foretold: samples by tier, exactly. First: seconds of the first epoch, which waits "
            "until the caches are full."
        ),
    )


def _beyond_table(result: Mapping[str, Any]) -> Table:
    curves = result["beyond"]["curves"]
    names = list(curves)
    by_nodes: dict[int, list[Any]] = {}
    for place, name in enumerate(names):
        for point in curves[name]:
            row = by_nodes.setdefault(point["nodes"], [None] * (2 * len(names)))
            row[2 * place : 2 * place + 2] = [point["samples_per_s"], point["binds"]]
    heads = [head for name in names for head in (f"{name}: samples/s", "bound by")]
    return Table(
        title="Foretold beyond",
        columns=["nodes", *heads],
        rows=[[nodes, *row] for nodes, row in sorted(by_nodes.items())],
        note=(
            "Not measured. By the closed form of `msdata plan` with the rates of machine.json: "
            f"{result['machine']}. Fixed storage: all nodes together get no more than those that "
            "were probed; growing: each gets what one got. Strong: the whole data set. Weak: each "
            "node brings a third more than its cache holds."
        ),
    )


def _measured_chart(result: Mapping[str, Any]) -> Chart:
    series = []
    for kind in KINDS:
        points = result["points"][kind]
        nodes = [float(p["nodes"]) for p in points]
        rates = [p["samples_per_s"] for p in points]
        series.append(
            Series(
                name=f"{kind}, measured",
                x=nodes,
                values=[r["median"] for r in rates],
                least=[r["least"] for r in rates],
                greatest=[r["greatest"] for r in rates],
            )
        )
        foretold = [p["foretold_samples_per_s"] for p in points]
        series.append(Series(name=f"{kind}, foretold", x=nodes, values=foretold))
    return Chart(
        title="Samples per second, measured and foretold",
        kind="lines",
        series=series,
        x_label="nodes",
        y_label="samples/s",
        is_log=True,
    )


def _beyond_chart(result: Mapping[str, Any]) -> Chart | None:
    series = []
    for name, points in result["beyond"]["curves"].items():
        known = [p for p in points if p["samples_per_s"] is not None]
        if known:
            nodes = [float(p["nodes"]) for p in known]
            series.append(Series(name=name, x=nodes, values=[p["samples_per_s"] for p in known]))
    if not series:
        return None
    return Chart(
        title="Samples per second, foretold up to 1,024 nodes",
        kind="lines",
        series=series,
        x_label="nodes",
        y_label="samples/s",
        is_log=True,
    )


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of scaling.

    Args:
        result: as `benchmarks.questions.scale.answer` collects it.
    """
    charts = [_measured_chart(result), _beyond_chart(result)]
    return Shown(
        title="What will N nodes do?",
        sentences=sentences_of(result),
        tables=[_table(result), _beyond_table(result)],
        charts=[chart for chart in charts if chart is not None],
    )
