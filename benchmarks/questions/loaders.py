"""How fast are we, and everyone else, on the same bytes?

Every contestant is a process of its own. It converts the same pickled objects, delivers three
epochs of which every byte is compared (each sample once; nothing there is timed but memory is
watched), then all take turns: hot epochs after a warm-up epoch, of files that were read from front
to back before; cold epochs after the pages of its files were dropped and counted; hot epochs with
the stub of a training step that sleeps a fixed time per batch. Timed batches are checked too:
shapes, each sample once, first and last bytes of every array. An interrupted race resumes: who has
entered, and every turn that was completed, is kept below `--out`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.comparison import read_result
from benchmarks.harness import RESULTS, WORKLOAD_NAMES, Settings, commit_of_code, compare, spread
from benchmarks.journal import Journal
from benchmarks.peers import NOT_RACED
from benchmarks.peers.child import WrongBatchError
from benchmarks.peers.race import (
    CHECKED_EPOCHS,
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
from msdata.cache.budget import free_memory

# What the stub of a training step takes, in samples per second of one node.
COMPUTE_RATES = (2000, 10_000)
# For the forecast: samples/s of a contestant that was not raced before, bytes/s that are compared,
# and seconds that a process, and a contestant's workers, take to start.
_UNKNOWN_RATE, _COMPARED_PER_S, _START_S, _OPEN_S = 2000.0, 1e9, 2.5, 0.4
_SMALL_FASTER = 2.0


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured, the same for all contestants.

    Attributes:
        turns: at most so many of each measurement.
        least_s: how long each is timed, in whole epochs and at least one.
        minutes: for all; after `LEAST_TURNS` none starts that would end later.
    """

    turns: Mapping[str, int]
    least_s: float
    minutes: float


QUICK = Effort(turns={"hot": 3, "cold": 2, "training": 2}, least_s=0.5, minutes=10.0)
FULL = Effort(turns={"hot": 7, "cold": 5, "training": 5}, least_s=1.0, minutes=30.0)
LEAST_TURNS = 2


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One of those that all contestants take in turns.

    Attributes:
        kind: "hot", "cold" or "training".
        share: of the time that all measurements have.
        rate: of the stub of a training step, samples/s; None without one.
    """

    kind: str
    share: float
    rate: int | None = None

    @property
    def title(self) -> str:
        """For people."""
        return self.kind if self.rate is None else f"training at {self.rate:,} samples/s"

    def once(
        self,
        race: Race,
        contender: Contender,
        least_s: float,
        earlier: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        """One run of a contestant: its rate or utilization, or why it has none, now or earlier.

        Utilization is as MLPerf Storage has it: the time in which the accelerator computes over
        that of the run, the first epoch left out, the turn from one epoch to the next included.
        """
        if earlier and "lost" in earlier[-1]:
            return earlier[-1]
        how: dict[str, Any] = {"least_s": least_s, "compute_rate": self.rate}
        if self.kind == "cold":
            if contender.peer.holds_all:
                return {"lost": f"{contender.name}: it has read all before its first epoch"}
            how = {"warm_ups": 0, "is_cold": True}
        try:
            run = race.run(contender, **how)
        except ToldError as error:
            return {"lost": str(error)}
        if self.rate is None:
            share = contender.found.get("cached_share", 0.0)
            return {"value": run["num_samples"] / run["seconds"], "cached_share": share}
        return {"value": run["compute_s"] / run["seconds"], "waits_s": run["waits_s"]}


MEASUREMENTS = (
    Measurement(kind="hot", share=0.35),
    Measurement(kind="cold", share=0.2),
    *(Measurement(kind="training", share=0.225, rate=rate) for rate in COMPUTE_RATES),
)


def budget_s(measurement: Measurement, left_s: float) -> float:
    """Seconds of those left that a measurement may take."""
    after = MEASUREMENTS[MEASUREMENTS.index(measurement) :]
    return left_s * measurement.share / sum(m.share for m in after)


def take_part(
    race: Race,
    contenders: Sequence[Contender],
    measurement: Measurement,
    effort: Effort,
    journal: Journal,
) -> dict[str, list[dict[str, Any]]]:
    """Turns of all contenders, in another order each; one that fails is out from then on.

    Turns that the journal holds whole are taken from it.

    Returns:
        For each contender what `Measurement.once` found, one per turn.
    """
    shuffler, title, longest_s = random.Random(0), measurement.title, 0.0
    found: dict[str, list[dict[str, Any]]] = {c.name: [] for c in contenders}
    started_s = journal.spent_s
    ends_s = started_s + budget_s(measurement, 60 * effort.minutes - started_s)
    for turn in range(journal.get(title) or effort.turns[measurement.kind]):
        order = shuffler.sample(contenders, len(contenders))
        keys = {c.name: f"{title}, turn {turn}: {c.name}" for c in order}
        if any(journal.get(key) is None for key in keys.values()):
            turn_s = journal.spent_s
            if turn >= LEAST_TURNS and turn_s + longest_s > ends_s:
                break
            for contender in order:
                told = (race, contender, effort.least_s, found[contender.name])
                journal.find(keys[contender.name], partial(measurement.once, *told))
            longest_s = max(longest_s, journal.spent_s - turn_s)
        for name, key in keys.items():
            found[name].append(journal.get(key))
    num_turns = max(map(len, found.values()), default=0)
    journal.find(title, lambda: num_turns)
    seconds = journal.spent_s - started_s
    print(
        f"  {title}: {num_turns} turns of {len(contenders)} contestants in {seconds:.0f} s",
        flush=True,
    )
    return found


def race_all(
    race: Race, contenders: list[Contender], effort: Effort, journal: Journal
) -> dict[str, Any]:
    """Hot, cold and with the stub of a training step, in turns."""
    found: dict[str, Any] = {"utilization": {}, "lost": {"hot": {}, "cold": {}, "training": {}}}
    rates: dict[str, dict[str, list[float]]] = {}
    limits = [c.name for c in contenders if c.peer.is_limit]
    for number, measurement in enumerate(MEASUREMENTS):
        # Cold epochs leave files as random reads brought them in.
        if number in (0, 2):
            read_through(contenders)
        turns = take_part(race, contenders, measurement, effort, journal)
        lost = {n: f["lost"] for n, runs in turns.items() for f in runs if "lost" in f}
        found["lost"][measurement.kind] |= lost
        values = {n: [f["value"] for f in runs] for n, runs in turns.items() if n not in lost}
        if measurement.rate is not None:
            found["utilization"][str(measurement.rate)] = {n: spread(v) for n, v in values.items()}
        else:
            rates[measurement.kind] = values
            left = [n for n in limits if n in values]
            found[measurement.kind] = compare(values, left) if left else {}
        for contender in contenders:
            _keep(contender, measurement, turns[contender.name])
    return {**found, "rates": rates}


def _keep(contender: Contender, measurement: Measurement, runs: list[dict[str, Any]]) -> None:
    shares = [run["cached_share"] for run in runs if "cached_share" in run]
    contender.found["cached_share"] = max([contender.found.get("cached_share", 0.0), *shares])
    waits = [wait for run in runs for wait in run.get("waits_s", ())]
    if waits:
        contender.found.setdefault("waits_s", {})[str(measurement.rate)] = waits


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
    measured = {
        f"{kind}, of the limit": {n: f["of_limit"] for n, f in rates.items()}
        for kind in ("hot", "cold")
        if (rates := found[kind].get("contestants"))
    }
    for rate, utilization in found["utilization"].items():
        measured[f"utilization at {rate} samples/s"] = utilization
    return {
        f"{contestant['title']}: {title}": ratios[name]
        for name, contestant in contestants.items()
        for title, ratios in measured.items()
        if contestant["is_ours"] and name in ratios
    }


def result_name(settings: Settings) -> str:
    """The name of a race's result: one per workload."""
    name = settings.question or "loaders"
    is_first = settings.data is not None or settings.workload == WORKLOAD_NAMES[0]
    return name if is_first else f"{name}_{settings.workload}"


def forecast(
    race: Race, names: Sequence[str], effort: Effort, last: Mapping[str, Any]
) -> dict[str, float]:
    """About how long all takes, from the rates of a race before, of that workload or another.

    Returns:
        Seconds of `entering` (converting and comparing), and of one turn of each measurement.
    """
    count, nbytes = race.reading.num_samples, race.reading.dtype().itemsize
    # Small samples come faster, but not in proportion.
    faster = min(_SMALL_FASTER, last.get("sample_nbytes", nbytes) / nbytes)

    def epoch_s(name: str, kind: str) -> float:
        known = last.get(kind, {}).get("contestants", {}).get(name)
        rate = known["samples_per_s"]["median"] if known else _UNKNOWN_RATE
        return float(count / rate / faster)

    found = dict.fromkeys(("entering", *(m.title for m in MEASUREMENTS)), 0.0)
    for name in names:
        convert = last["contestants"].get(name, {}).get("convert_per_s") or _UNKNOWN_RATE / 2
        hot_s = epoch_s(name, "hot")
        compared_s = CHECKED_EPOCHS * max(hot_s, count * nbytes / _COMPARED_PER_S)
        found["entering"] += _START_S + compared_s + count / convert / faster
        for measurement in MEASUREMENTS:
            seconds = epoch_s(name, "cold")
            if measurement.kind != "cold":
                computed_s = count / (measurement.rate or 1e9)
                seconds = hot_s + max(hot_s, computed_s, effort.least_s)
            found[measurement.title] += _OPEN_S + seconds
    return found


def print_forecast(seconds: Mapping[str, float], effort: Effort, spent_s: float) -> None:
    """Says about how long the race takes, and how many turns the time allows."""
    left_s = 60 * effort.minutes - max(spent_s, seconds["entering"])
    turns, total_s = {}, max(spent_s, seconds["entering"])
    for measurement in MEASUREMENTS:
        turn_s, most = seconds[measurement.title], effort.turns[measurement.kind]
        fit = int(budget_s(measurement, left_s) / max(turn_s, 1e-9))
        turns[measurement.title] = count = min(most, max(LEAST_TURNS, fit))
        left_s, total_s = left_s - count * turn_s, total_s + count * turn_s
    each = ", ".join(f"{n} of {seconds[t] / 60:.1f} ({t})" for t, n in turns.items())
    print(
        f"  forecast: about {total_s / 60:.0f} min: {seconds['entering'] / 60:.1f} to convert and "
        f"compare, then turns: {each}",
        flush=True,
    )
    if total_s > 66 * effort.minutes:
        print(
            f"  that is more than --minutes {effort.minutes:g}: give more, fewer --peers or --mock"
        )


def enter_all(
    race: Race, names: Sequence[str], journal: Journal, stack: ExitStack
) -> tuple[list[Contender], dict[str, str], dict[str, str]]:
    """Lets contestants enter; those who did, and why others are missing or wrong, by name."""
    contenders, missing, wrong = [], dict[str, str](), dict[str, str]()
    for name in names:
        try:
            contenders.append(enter(race, name, journal, stack))
            print(f"  {name}: converted, every byte compared", flush=True)
        except ToldError as error:
            (wrong if isinstance(error, WrongDataError) else missing)[name] = str(error)
            print(f"  out of the race: {error}", flush=True)
    print(f"  converted and compared in {journal.spent_s:.0f} s", flush=True)
    return contenders, missing, wrong


def answer(settings: Settings) -> int:
    """Races contestants and writes the result; 1 where one delivered wrong samples."""
    names, effort = chosen_peers(settings.peers), QUICK if settings.quick else FULL
    if settings.minutes is not None:
        effort = replace(effort, minutes=settings.minutes)
    race = make_race(settings)
    about = {"reading": asdict(race.reading), "peers": names, "commit": commit_of_code()}
    about |= {"turns": effort.turns, "least_s": effort.least_s}
    journal = Journal(race.work / "race.jsonl", about)
    found_before = [RESULTS / f"{n}.json" for n in (result_name(settings), "loaders")]
    last = next((read_result(p) for p in found_before if p.is_file()), {"contestants": {}})
    print_forecast(forecast(race, names, effort, last), effort, journal.spent_s)
    if journal.was_found:
        print(f"  resumed: {journal.spent_s / 60:.1f} min of it were done before", flush=True)
    elif journal.was_other:
        print("  what an interrupted race of another commit or other settings found is dropped")
    with ExitStack() as stack:
        contenders, missing, wrong = enter_all(race, names, journal, stack)
        memory_nbytes = free_memory()
        found = race_all(race, contenders, effort, journal)
    shutil.rmtree(race.work, ignore_errors=True)
    contestants = {c.name: describe(c) for c in contenders}
    rates = found.pop("rates")
    result: dict[str, Any] = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "sample_nbytes": race.reading.dtype().itemsize,
        "num_samples": race.reading.num_samples,
        "batch_size": race.reading.batch_size,
        "num_workers": race.reading.num_workers,
        "seconds": round(journal.spent_s),
        "is_resumed": journal.was_found,
        "files_nbytes": sum({c.data: int(c.found["bytes_on_disk"]) for c in contenders}.values()),
        "memory_nbytes": memory_nbytes,
        "num_turns": {kind: max(map(len, r.values()), default=0) for kind, r in rates.items()},
        "contestants": contestants,
        "missing": {**missing, **({} if settings.peers else NOT_RACED)},
        "wrong": wrong,
        **found,
        "ratios": ratios_of(found, contestants),
    }
    write_shown(result_name(settings), result, show(result), settings, raw={"rates": rates})
    late = [reason for reasons in found["lost"].values() for reason in reasons.values()]
    return 1 if wrong or any(WrongBatchError.__name__ in reason for reason in late) else 0
