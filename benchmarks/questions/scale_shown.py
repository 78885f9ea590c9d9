"""What the report shows of scaling: measured beside predicted, and predicted beyond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import ratio_spread, spread
from benchmarks.report import Chart, Series, Shown, Table, spread_series
from msdata.core.text import bytes_text, rate_text

# Where the predicted rate differs by more, the report says that it is not to be relied on.
TRUSTED_WITHIN = 0.15
MAX_CACHED_SHARE = 0.01
# Shares of tiers that differ by more do so because whole shards are dealt out.
COARSE_SHARDS = 0.05
KINDS = ("strong", "weak")


def efficiencies(points: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Rate of n nodes over n times that of one, with an interval over epochs."""
    one = points[0]["samples_per_s"]["median"]
    return [
        spread([p["samples"] / s / (one * p["nodes"] / points[0]["nodes"]) for s in p["seconds"]])
        for p in points
    ]


def ratios_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios for `compare`: efficiency of weak scaling, measured over predicted rates."""
    ratios = {}
    for kind in KINDS:
        points = result["points"][kind]
        for point, efficiency in zip(points, efficiencies(points), strict=True):
            nodes = point["nodes"]
            if kind == "weak" and nodes > 1:
                ratios[f"weak scaling, efficiency of {nodes} nodes"] = efficiency
            ratio = ratio_spread(point["predicted_s"], point["seconds"])
            ratios[f"{kind} scaling, {nodes} nodes: measured over predicted rate"] = ratio
    return ratios


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """What was measured on what, how well it was predicted, and what lies beyond."""
    return [_setting(result), *_validity(result), *_beyond(result)]


def _setting(result: Mapping[str, Any]) -> str:
    most = result["points"]["weak"][-1]["nodes"]
    if result["nodes_per_machine"] == 1:
        if result["is_slurm"]:
            return f"Measured on up to {most} nodes of a Slurm job, each a machine of its own."
        return "Measured on this machine alone."
    what = "processes of one machine that stand for nodes"
    if result["is_slurm"]:
        what = "nodes of a Slurm job that share one machine"
    return (
        f"NOT a cluster: up to {most} {what}, its cores, memory and disk. So each node's storage "
        f"was slowed to {rate_text(result['storage_bytes_per_s'])}, far below the machine's, and "
        "what the points show is whether the plan predicts them, not what nodes can do."
    )


def _validity(result: Mapping[str, Any]) -> list[str]:
    every = [point for kind in KINDS for point in result["points"][kind]]
    worst = max(every, key=lambda point: abs(point["error"]))
    is_good = abs(worst["error"]) <= TRUSTED_WITHIN
    found = [
        f"Predicted rates are {min(p['error'] for p in every):+.1%} to "
        f"{max(p['error'] for p in every):+.1%} of the measured ones; the worst is that of "
        f"{worst['nodes']} nodes on {worst['num_samples']:,} samples. The goal of "
        f"{TRUSTED_WITHIN:.0%} is {'reached' if is_good else 'NOT reached'}."
    ]
    wrong = [point for point in every if point["tiers"] != point["predicted_tiers"]]
    found.append(
        "Samples by tier are those of the plan at every point, one by one."
        if not wrong
        else f"Samples by tier are NOT those of the plan on {wrong[0]['nodes']} nodes: "
        f"{wrong[0]['tiers']}, predicted {wrong[0]['predicted_tiers']}."
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
        f"{fixed['nodes']:,} nodes like these, {bytes_text(beyond['memory_nbytes'])} of "
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
            "which knows no shards, flatters. Pack them with a smaller --shard-size."
        )
    if not beyond["has_network"]:
        found.append(
            "No network was measured between machines, so none limits what lies beyond the "
            "measured points: give --machine with the machine.json of a real probe."
        )
    return found


def _table(result: Mapping[str, Any]) -> Table:
    rows = []
    for kind in KINDS:
        points = result["points"][kind]
        for point, efficiency in zip(points, efficiencies(points), strict=True):
            rate, total = point["samples_per_s"], max(1, sum(point["tiers"].values()))
            shares = [100 * point["tiers"][t] / total for t in ("local", "peer", "storage")]
            row = [kind, point["nodes"], point["num_samples"], rate["median"]]
            row += [f"{rate['least']:,.0f} to {rate['greatest']:,.0f}"]
            row += [point["predicted_samples_per_s"], f"{point['error']:+.1%}", point["binds"]]
            is_same = point["tiers"] == point["predicted_tiers"]
            rows.append([*row, efficiency["median"], *shares, is_same, point["first_s"]])
    heads = ["scaling", "nodes", "samples", "samples/s", "over epochs", "predicted", "error"]
    heads += ["bound by", "efficiency", "local %", "peer %", "storage %", "as predicted", "first s"]
    return Table(
        title="Measured and predicted",
        columns=heads,
        rows=rows,
        in_readme=True,
        note=(
            f"{result['ranks_per_node']} ranks per node, {result['batch_per_rank']} samples per "
            f"rank and step, {bytes_text(result['memory_nbytes'])} of cache per node, policy "
            "locality. Epochs after the first; an epoch lasts as long as its slowest rank. Error: "
            "of the predicted rate. Efficiency: the rate over that of one node times the nodes. As "
            "predicted: samples by tier, exactly. First: seconds of the first epoch, which waits "
            "until the caches are full."
        ),
    )


def _beyond_table(result: Mapping[str, Any]) -> Table:
    curves = result["beyond"]["curves"]
    nodes = sorted({point["nodes"] for points in curves.values() for point in points})
    by_nodes = {name: {p["nodes"]: p for p in points} for name, points in curves.items()}
    rows = [
        [
            n,
            *(
                by_nodes[name].get(n, {}).get(k)
                for name in curves
                for k in ("samples_per_s", "binds")
            ),
        ]
        for n in nodes
    ]
    heads = [head for name in curves for head in (f"{name}: samples/s", "bound by")]
    return Table(
        title="Predicted beyond",
        columns=["nodes", *heads],
        rows=rows,
        note=(
            "Not measured. By the closed form of `msdata plan` with the rates of machine.json: "
            f"{result['machine']}. Fixed storage: all nodes together get no more than those that "
            "were probed; growing: each gets what one got. Strong: the whole data set. Weak: each "
            "node brings a third more than its cache holds."
        ),
    )


def _charts(result: Mapping[str, Any]) -> list[Chart]:
    measured, beyond = [], []
    for kind in KINDS:
        points = result["points"][kind]
        nodes = [float(p["nodes"]) for p in points]
        rates = [p["samples_per_s"] for p in points]
        measured.append(spread_series(f"{kind}, measured", rates, nodes))
        predicted = [p["predicted_samples_per_s"] for p in points]
        measured.append(Series(name=f"{kind}, predicted", x=nodes, values=predicted))
    for name, points in result["beyond"]["curves"].items():
        known = [p for p in points if p["samples_per_s"] is not None]
        if known:
            nodes = [float(p["nodes"]) for p in known]
            beyond.append(Series(name=name, x=nodes, values=[p["samples_per_s"] for p in known]))
    titles = {
        "Samples per second, measured and predicted": measured,
        "Samples per second, predicted up to 1,024 nodes": beyond,
    }
    return [
        Chart(title=t, kind="lines", series=s, x_label="nodes", y_label="samples/s", is_log=True)
        for t, s in titles.items()
        if s
    ]


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of scaling, of a result with its `points` and what lies `beyond`."""
    return Shown(
        title="What will N nodes do?",
        sentences=sentences_of(result),
        tables=[_table(result), _beyond_table(result)],
        charts=_charts(result),
    )
