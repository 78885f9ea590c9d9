"""How fast are we, and everyone else, on the same bytes?

Every contestant is a process of its own. It converts the same pickled objects, delivers three
epochs of which every byte is compared (each sample once; nothing there is timed but memory is
watched), then all take turns: hot epochs after a warm-up epoch, of files that were read from front
to back before; cold epochs after the pages of its files were dropped and counted; hot epochs with
the stub of a training step that sleeps a fixed time per batch. Timed batches are checked too:
shapes, each sample once, first and last bytes of every array.
"""

from __future__ import annotations

import compileall
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import Settings, compare, spread, take_turns
from benchmarks.peers import NOT_RACED
from benchmarks.peers.child import WrongBatchError
from benchmarks.peers.race import (
    Contender,
    Race,
    chosen_peers,
    enter,
    make_race,
    read_through,
)
from benchmarks.questions.loaders_shown import show
from benchmarks.report import write_shown
from benchmarks.told import ToldError, WrongDataError

# What the stub of a training step takes, in samples per second of one node.
COMPUTE_RATES = (2000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured, the same for all contestants.

    Attributes:
        hot: turns of hot epochs.
        cold: turns of cold epochs.
        training: turns at each rate of the stub.
        least_s: how long each is timed, in whole epochs and at least one.
        budget_s: seconds for all turns of one measurement; after the second turn, none starts that
            would end later.
    """

    hot: int
    cold: int
    training: int
    least_s: float
    budget_s: float


# Quick: within ten minutes on two cores that do other things besides.
QUICK = Effort(hot=3, cold=2, training=2, least_s=0.5, budget_s=90.0)
FULL = Effort(hot=7, cold=5, training=5, least_s=2.0, budget_s=420.0)


def rate_of(race: Race, how: dict[str, Any], contender: Contender) -> float:
    """Samples per second of a contestant's run; see `Race.run`."""
    run = race.run(contender, **how)
    return float(run["num_samples"] / run["seconds"])


def _utilization(race: Race, rate: int, least_s: float, contender: Contender) -> float:
    """The time that the stub computes over the time of the epochs.

    As MLPerf Storage has it: the time in which the accelerator computes over that of the run, the
    first epoch left out, the turn from one epoch to the next included.
    """
    run = race.run(contender, compute_rate=rate, least_s=least_s)
    contender.found.setdefault("waits_s", {}).setdefault(str(rate), []).extend(run["waits_s"])
    return float(run["compute_s"] / run["seconds"])


def _take_part(
    title: str,
    contenders: list[Contender],
    contestant: Callable[[Contender], float],
    repeats: int,
    budget_s: float,
    lost: dict[str, str],
) -> dict[str, list[float]]:
    """Turns of all contenders; one that fails is out of this measurement, and it is said why."""
    started_s = time.perf_counter()

    def run(contender: Contender) -> float:
        if contender.name not in lost:
            try:
                return contestant(contender)
            except ToldError as error:
                lost[contender.name] = str(error)
        return 0.0

    runs = {c.name: partial(run, c) for c in contenders}
    turns = take_turns(runs, repeats, warm_ups=0, budget_s=budget_s)
    num_turns = max(map(len, turns.values()), default=0)
    seconds = time.perf_counter() - started_s
    print(
        f"  {title}: {num_turns} turns of {len(contenders)} contestants in {seconds:.0f} s",
        flush=True,
    )
    return {name: rates for name, rates in turns.items() if name not in lost}


def race_all(race: Race, contenders: list[Contender], effort: Effort) -> dict[str, Any]:
    """Hot, cold and with the stub of a training step, in turns."""
    least_s, budget_s = effort.least_s, effort.budget_s
    lost: dict[str, dict[str, str]] = {"hot": {}, "cold": {}, "training": {}}
    read_through(contenders)
    kinds: dict[str, tuple[dict[str, Any], int]] = {
        "hot": ({"least_s": least_s}, effort.hot),
        "cold": ({"warm_ups": 0, "is_cold": True}, effort.cold),
    }
    rates = {
        kind: _take_part(
            kind, contenders, partial(rate_of, race, how), repeats, budget_s, lost[kind]
        )
        for kind, (how, repeats) in kinds.items()
    }
    found: dict[str, Any] = {"rates": rates, "lost": lost, "utilization": {}}
    for kind, by_name in rates.items():
        limits = [c.name for c in contenders if c.peer.is_limit and c.name in by_name]
        found[kind] = compare(by_name, limits) if limits else {}
    read_through(contenders)
    for rate in COMPUTE_RATES:
        turns = _take_part(
            f"training at {rate:,} samples/s",
            contenders,
            partial(_utilization, race, rate, least_s),
            effort.training,
            budget_s,
            lost["training"],
        )
        found["utilization"][str(rate)] = {n: spread(v) for n, v in turns.items()}
    return found


def describe(contender: Contender) -> dict[str, Any]:
    """What is written of a contestant."""
    peer = contender.peer
    facts = {k: v for k, v in vars(peer).items() if k not in ("open", "convert", "decoded")}
    waits = {
        rate: {f"p{p}_ms": round(float(np.percentile(waits_s, p)) * 1e3, 3) for p in (50, 95, 99)}
        for rate, waits_s in contender.found.pop("waits_s", {}).items()
    }
    return {**facts, "is_lossy": peer.decoded is not None, "waits": waits, **contender.found}


def ratios_of(found: dict[str, Any], contestants: dict[str, Any]) -> dict[str, Any]:
    """Ratios that `compare` compares: ours to the limit, hot and cold, and its utilization."""
    ratios = {}
    for name, contestant in contestants.items():
        if not contestant["is_ours"]:
            continue
        for kind in ("hot", "cold"):
            if name in found[kind].get("contestants", {}):
                ratio = found[kind]["contestants"][name]["of_limit"]
                ratios[f"{contestant['title']}: {kind}, of the limit"] = ratio
        for rate, utilization in found["utilization"].items():
            if name in utilization:
                title = f"{contestant['title']}: utilization at {rate} samples/s"
                ratios[title] = utilization[name]
    return ratios


def answer(settings: Settings) -> int:
    """Races contestants and writes the result; 1 where one delivered wrong samples."""
    started_s = time.perf_counter()
    names = chosen_peers(settings.peers)
    # This project's modules, as pip compiles all others' when it installs them.
    compileall.compile_dir(Path(msdata.__file__).parent, quiet=2)
    race = make_race(settings)
    missing = {} if settings.peers else dict(NOT_RACED)
    wrong: dict[str, str] = {}
    contenders: list[Contender] = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, race.work, ignore_errors=True)
        for name in names:
            try:
                contenders.append(enter(race, name, stack))
                print(f"  {name}: converted, every byte compared", flush=True)
            except ToldError as error:
                (wrong if isinstance(error, WrongDataError) else missing)[name] = str(error)
                print(f"  out of the race: {error}", flush=True)
        seconds = time.perf_counter() - started_s
        print(f"  converted and compared in {seconds:.0f} s", flush=True)
        found = race_all(race, contenders, QUICK if settings.quick else FULL)
    contestants = {c.name: describe(c) for c in contenders}
    rates = found.pop("rates")
    result: dict[str, Any] = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "sample_nbytes": race.source.sample_nbytes,
        "num_samples": race.reading.num_samples,
        "batch_size": race.reading.batch_size,
        "num_workers": race.reading.num_workers,
        "seconds": round(time.perf_counter() - started_s),
        "num_turns": {kind: max(map(len, r.values()), default=0) for kind, r in rates.items()},
        "contestants": contestants,
        "missing": missing,
        "wrong": wrong,
        **found,
        "ratios": ratios_of(found, contestants),
    }
    write_shown(
        settings.question or "loaders", result, show(result), settings, raw={"rates": rates}
    )
    late = [reason for reasons in found["lost"].values() for reason in reasons.values()]
    return 1 if wrong or any(WrongBatchError.__name__ in reason for reason in late) else 0
