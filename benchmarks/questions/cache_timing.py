"""How long the epochs of `benchmarks.questions.cache` should take by the plan, from rates of the same run.

Three kinds of epochs give the rates of a node: those that come from its own memory (ours, locality,
all held), those that come from peers as far as can be (plain peer fetch, all held), and those that
come from storage (no cache). All others are foretold from these by `msdata.plan.timing`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.questions.cache_plan import SHARES
from benchmarks.harness import spread
from msdata.plan.forecast import EpochForecast
from msdata.plan.timing import Machine, time_epoch
from msdata.topology import Topology

Point = dict[str, Any]
_PEER = 2


def forecast_of(epoch: Mapping[str, Any], sample_nbytes: int) -> EpochForecast:
    """What was foretold of an epoch, from its fields in the result."""
    samples = np.array(epoch["forecast_tier_samples"], np.int64)
    return EpochForecast(
        epoch=epoch["epoch"],
        tier_samples=samples,
        ssd_bytes=np.zeros(len(samples), np.int64),
        storage_bytes=samples[:, 3] * sample_nbytes,
        sample_bytes=sample_nbytes,
        is_exact=True,
    )


def _node_rate(points: Sequence[Point], tier: int | None) -> float | None:
    """Median bytes per second of a node, of one tier or of all; None without such epochs."""
    rates = []
    for point in points:
        for epoch in point["epochs"]:
            nbytes = np.array(epoch["tier_bytes"], np.float64)
            of_nodes = nbytes.sum(axis=1) if tier is None else nbytes[:, tier]
            rates.append(float(of_nodes.max()) / epoch["seconds"])
    return statistics.median(rates) if rates and min(rates) > 0 else None


def node_rates(points: Sequence[Point]) -> dict[str, float | None]:
    """Bytes per second of a node by tier, of points of one number of nodes."""
    plain = [p for p in points if p["storage_bytes_per_s"] is None]
    whole = [p for p in plain if p["share"] == max(SHARES)]
    return {
        "memory": _node_rate([p for p in whole if p["contestant"] == "locality"], None),
        "network": _node_rate([p for p in whole if p["contestant"] == "shuffle"], _PEER),
        "storage": _node_rate([p for p in plain if p["contestant"] == "none"], None),
    }


def is_calibration(point: Mapping[str, Any]) -> bool:
    """Whether the point gave one of the rates, so that its own forecast is worth nothing."""
    if point["storage_bytes_per_s"] is not None:
        return False
    is_whole = point["share"] == max(SHARES) and point["contestant"] in ("locality", "shuffle")
    return is_whole or point["contestant"] == "none"


def add_forecast_times(points: Sequence[Point], sample_nbytes: int) -> dict[int, Any]:
    """Adds to every point what the plan says of its time, and how that compares.

    Args:
        points: changed in place: `forecast_s`, `bound_by`, `time_over_forecast` (its spread over
            turns) and `is_calibration`.
        sample_nbytes: of a record.

    Returns:
        The rates by number of nodes.
    """
    numbers = sorted({point["num_nodes"] for point in points})
    by_nodes = {n: node_rates([p for p in points if p["num_nodes"] == n]) for n in numbers}
    for point in points:
        known = by_nodes[point["num_nodes"]]
        machine = Machine(storage_total=point["storage_bytes_per_s"], **known)
        topology = Topology(num_nodes=point["num_nodes"])
        times = [
            time_epoch(forecast_of(epoch, sample_nbytes), machine, topology)
            for epoch in point["epochs"]
        ]
        over = [e["seconds"] / t.epoch_s for e, t in zip(point["epochs"], times, strict=True)]
        point["forecast_s"] = statistics.median(t.epoch_s for t in times)
        point["bound_by"] = times[0].binds
        point["time_over_forecast"] = spread(over)
        point["is_calibration"] = is_calibration(point)
    return by_nodes


def ratios_of(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """For the guard of regressions: what each contestant is of no cache, turn by turn.

    Only where storage is slowed: there a ratio says what the cache is worth, not how two copies
    from memory compare.
    """
    baseline = {_place(p): p["rates"] for p in points if p["contestant"] == "none"}
    found = {}
    for point in points:
        if point["storage_bytes_per_s"] is None or point["contestant"] == "none":
            continue
        ratios = [a / b for a, b in zip(point["rates"], baseline[_place(point)], strict=True)]
        slowed = sorted({p["storage_bytes_per_s"] for p in points if p["storage_bytes_per_s"]})
        # Rates differ from run to run; their places in the list do not.
        place = len(slowed) - slowed.index(point["storage_bytes_per_s"])
        found[
            f"{point['contestant']} over no cache, {point['num_nodes']} nodes hold "
            f"{point['share']:.0%}, slowed storage {place}"
        ] = spread(ratios)
    return found


def _place(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return point["num_nodes"], point["share"], point["storage_bytes_per_s"]
