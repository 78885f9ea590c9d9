"""How fast are we, and everyone else, on the same bytes?

Every contestant is a process of its own. It converts the same pickled objects, delivers two epochs
of which every byte is compared (each sample once; nothing there is timed but memory is watched),
then all take turns: hot epochs after a warm-up epoch, cold epochs after the pages of its files were
dropped and counted, epochs with the stub of a training step that sleeps a fixed time a batch.
Timed batches are checked too: shapes, each sample once, first and last bytes of every array.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import compare, spread, take_turns, write_result
from benchmarks.loaders_shown import show
from benchmarks.peers import PEER_NAMES
from benchmarks.peers.child import WrongBatchError
from benchmarks.peers.process import PeerError, PeerProcess, WrongDataError
from benchmarks.peers.protocol import Peer, Reading
from benchmarks.question import Settings
from benchmarks.workloads import (
    WORKLOADS,
    Source,
    dataset_objects,
    mock_objects,
    write_source,
)
from msdata.errors import UsageError
from msdata.plan.quality import displacement, repeated_pairs
from msdata.probe import drop_from_cache

# What the stub of a training step takes, in samples per second of one node.
COMPUTE_RATES = (2000, 10_000)
MAX_CACHED_SHARE = 0.01
CHECKED_EPOCHS = 3


@dataclass
class Contender:
    """A contestant that converted and delivered what it should, and what was found of it."""

    name: str
    peer: Peer
    process: PeerProcess
    data: Path
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Race:
    """What all contestants run on.

    Attributes:
        source: the objects.
        reading: how batches are asked for.
        work: where conversions go.
        logs: where contestants' words go.
    """

    source: Source
    reading: Reading
    work: Path
    logs: Path

    def fields(self) -> dict[str, Any]:
        """The reading, for a command."""
        return asdict(self.reading)


def make_race(settings: Settings) -> Race:
    """Objects of the workload, or of the data set given.

    Raises:
        UsageError: there are fewer samples than a batch holds.
    """
    workload = WORKLOADS[settings.workload]
    count = settings.mock or (workload.num_quick if settings.quick else workload.num_samples)
    if settings.data is not None:
        count = min(count, len(msdata.open(settings.data).split("train")))
    if count < 4:
        raise UsageError(f"{count} samples are too few to race on; at least 4 are needed")
    # Whole batches only: what an incomplete one is differs from contestant to contestant.
    size = min(workload.batch_size, count // 4)
    num_samples = count // size * size
    if num_samples < count:
        print(f"  {num_samples} of {count} samples, which make whole batches of {size}")
    if settings.data is None:
        name, objects = f"{workload.name}-{num_samples}", mock_objects(workload, num_samples)
    else:
        fingerprint = msdata.open(settings.data).manifest.fingerprint
        name = f"data-{fingerprint[:12]}-{num_samples}"
        objects = dataset_objects(settings.data, num_samples)
    source = write_source(settings.work / name, objects)
    reading = Reading(
        arrays=source.arrays,
        num_samples=num_samples,
        batch_size=size,
        num_workers=len(os.sched_getaffinity(0)),
    )
    return Race(
        source=source,
        reading=reading,
        work=settings.work / "converted",
        logs=settings.out / "logs",
    )


def enter(race: Race, name: str, stack: ExitStack) -> Contender:
    """Starts a contestant, lets it convert, and compares every byte it delivers.

    Raises:
        PeerError: it is not installed, or failed.
        WrongDataError: it delivered other samples than it should.
    """
    import importlib

    peer: Peer = importlib.import_module(f"benchmarks.peers.{name}").PEER
    process = stack.enter_context(PeerProcess(name, race.logs / f"{name}.txt"))
    out = race.work / name
    shutil.rmtree(out, ignore_errors=True)
    objects = str(race.source.objects)
    answer, memory = process.command_with_memory(
        "convert", objects=objects, out=str(out), reading=race.fields()
    )
    data = race.source.objects if peer.convert is None else out
    contender = Contender(name, peer, process, data)
    _open(race, contender)
    run, peak = process.command_with_memory(
        "run", warm_ups=0, epochs=CHECKED_EPOCHS, compute_rate=None, is_checked=True
    )
    process.command("close")
    seconds = answer["seconds"]
    contender.found = {
        "convert_per_s": None if seconds is None else race.reading.num_samples / seconds,
        "convert_memory": memory,
        "bytes_on_disk": sum(p.stat().st_blocks * 512 for p in data.rglob("*") if p.is_file()),
        "peak_memory": peak,
        "quality": quality_of(run["orders"], race.reading.batch_size),
        "versions": process.versions,
    }
    return contender


def quality_of(orders: list[list[int]], batch_size: int) -> dict[str, float]:
    """How far orders are from uniform shuffles, by the two epochs after the first.

    Args:
        orders: samples in the order of delivery, an epoch each.
        batch_size: rows of a batch.

    Returns:
        `displacement` and `repeated_pairs`, each over what a uniform shuffle has: 1 is uniform. A
        displacement below 1 is a shuffle that moves samples too little; repeated pairs above 1 are
        samples that keep meeting.
    """
    one, other = (np.array(order, np.int64) for order in orders[-2:])
    return {
        "displacement": round(displacement(one, other).ratio, 4),
        "repeated_pairs": round(repeated_pairs(one, other, batch_size).ratio, 4),
    }


def _open(race: Race, contender: Contender) -> None:
    contender.process.command(
        "open", data=str(contender.data), truth=str(race.source.folder), reading=race.fields()
    )


def drop_folder(folder: Path) -> float:
    """Drops all files below a folder from the page cache.

    Returns:
        The share of their bytes that stayed.

    Raises:
        PeerError: more than a little stayed, or nobody can tell.
    """
    stayed = total = 0.0
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        share, size = drop_from_cache(path), path.stat().st_size
        if share is None:
            raise PeerError(f"the system does not tell what of {path} is in the page cache")
        stayed, total = stayed + share * size, total + size
    share = stayed / max(1.0, total)
    if share > MAX_CACHED_SHARE:
        raise PeerError(f"{share:.1%} of {folder} stayed in the page cache")
    return share


def run_hot(race: Race, contender: Contender, epochs: int) -> float:
    """Samples per second from the page cache, after a warm-up epoch."""
    _open(race, contender)
    run = contender.process.command(
        "run", warm_ups=1, epochs=epochs, compute_rate=None, is_checked=False
    )
    contender.process.command("close")
    return float(run["num_samples"] / run["seconds"])


def run_cold(race: Race, contender: Contender) -> float:
    """Samples per second of the first epoch after its files' pages were dropped."""
    _open(race, contender)
    share = drop_folder(contender.data)
    contender.found["cached_share"] = max(share, contender.found.get("cached_share", 0.0))
    run = contender.process.command(
        "run", warm_ups=0, epochs=1, compute_rate=None, is_checked=False
    )
    contender.process.command("close")
    return float(run["num_samples"] / run["seconds"])


def run_training(race: Race, contender: Contender, compute_rate: int, epochs: int) -> float:
    """Accelerator utilisation: the time that the stub computes over the time of the epochs."""
    _open(race, contender)
    run = contender.process.command(
        "run", warm_ups=1, epochs=epochs, compute_rate=compute_rate, is_checked=False
    )
    contender.process.command("close")
    waits = contender.found.setdefault("waits_s", {}).setdefault(str(compute_rate), [])
    waits += run["waits_s"]
    return float(run["compute_s"] / run["seconds"])


def take_part(
    title: str,
    contenders: list[Contender],
    contestant: Callable[[Contender], float],
    repeats: int,
    lost: dict[str, str],
) -> dict[str, list[float]]:
    """Turns of all contenders; one that fails is out of this measurement, and it is said why."""

    def run(contender: Contender) -> float:
        if contender.name in lost:
            return 0.0
        try:
            return contestant(contender)
        except PeerError as error:
            lost[contender.name] = str(error)
            return 0.0

    print(f"  {len(contenders)} contestants, {repeats} turns: {title}", flush=True)
    turns = take_turns({c.name: partial(run, c) for c in contenders}, repeats, warm_ups=0)
    return {name: rates for name, rates in turns.items() if name not in lost}


def race_all(race: Race, contenders: list[Contender], *, is_quick: bool) -> dict[str, Any]:
    """Hot, cold and with the stub of a training step, in turns."""
    # Quick: within ten minutes on two cores, of which the slowest peers take most.
    repeats, epochs = (3, 1) if is_quick else (7, 3)
    limits = [c.name for c in contenders if c.peer.is_limit]
    lost: dict[str, dict[str, str]] = {"hot": {}, "cold": {}, "training": {}}
    rates = {
        "hot": take_part(
            "hot", contenders, lambda c: run_hot(race, c, epochs), repeats, lost["hot"]
        ),
        "cold": take_part(
            "cold", contenders, lambda c: run_cold(race, c), max(2, repeats - 1), lost["cold"]
        ),
    }
    found: dict[str, Any] = {"rates": rates, "lost": lost, "utilisation": {}}
    for name in ("hot", "cold"):
        present = [limit for limit in limits if limit in rates[name]]
        found[name] = compare(rates[name], present) if present else {}
    for compute_rate in COMPUTE_RATES:
        turns = take_part(
            f"training at {compute_rate:,} samples/s",
            contenders,
            lambda c, r=compute_rate: run_training(race, c, r, epochs),  # type: ignore[misc]
            2 if is_quick else 3,
            lost["training"],
        )
        found["utilisation"][str(compute_rate)] = {n: spread(v) for n, v in turns.items()}
    return found


def describe(contender: Contender) -> dict[str, Any]:
    """What is written of a contestant."""
    peer = contender.peer
    waits = {
        rate: dict(zip(("p50_ms", "p95_ms", "p99_ms"), _percentiles_ms(values), strict=True))
        for rate, values in contender.found.pop("waits_s", {}).items()
    }
    return {
        "title": peer.title,
        "is_ours": peer.is_ours,
        "is_limit": peer.is_limit,
        "shuffle": peer.shuffle,
        "resume": peer.resume,
        "advice": peer.advice,
        "waits": waits,
        **contender.found,
    }


def _percentiles_ms(waits_s: list[float]) -> list[float]:
    return [round(float(p) * 1e3, 3) for p in np.percentile(waits_s, (50, 95, 99))]


def ratios_of(found: dict[str, Any], contestants: dict[str, Any]) -> dict[str, Any]:
    """Ratios that `compare` guards: ours to the limit, hot and cold, and its utilisation."""
    ratios = {}
    for name, contestant in contestants.items():
        if not contestant["is_ours"]:
            continue
        for kind in ("hot", "cold"):
            if name in found[kind].get("contestants", {}):
                ratio = found[kind]["contestants"][name]["of_limit"]
                ratios[f"{contestant['title']}: {kind}, of the limit"] = ratio
        for rate, utilisation in found["utilisation"].items():
            if name in utilisation:
                title = f"{contestant['title']}: utilisation at {rate} samples/s"
                ratios[title] = utilisation[name]
    return ratios


def answer(settings: Settings) -> int:
    """Races all contestants and writes `loaders.json`.

    Returns:
        0; 1 where a contestant delivered wrong samples.
    """
    race = make_race(settings)
    missing: dict[str, str] = {}
    wrong: dict[str, str] = {}
    contenders: list[Contender] = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, race.work, ignore_errors=True)
        for name in PEER_NAMES:
            try:
                contenders.append(enter(race, name, stack))
                print(f"  {name}: converted, every byte compared", flush=True)
            except WrongDataError as error:
                wrong[name] = str(error)
                print(f"  {error}", flush=True)
            except PeerError as error:
                missing[name] = str(error)
                print(f"  not here: {error}", flush=True)
        found = race_all(race, contenders, is_quick=settings.quick)
    contestants = {c.name: describe(c) for c in contenders}
    result: dict[str, Any] = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "sample_nbytes": race.source.sample_nbytes,
        "num_samples": race.reading.num_samples,
        "batch_size": race.reading.batch_size,
        "num_workers": race.reading.num_workers,
        "contestants": contestants,
        "missing": missing,
        "wrong": wrong,
        **found,
        "ratios": ratios_of(found, contestants),
    }
    shown = show(result)
    for sentence in shown.sentences:
        print(f"  {sentence}")
    result["shown"] = shown.to_json()
    print(write_result("loaders", result, command=settings.command, folder=settings.out))
    late = [reason for reasons in found["lost"].values() for reason in reasons.values()]
    return 1 if wrong or any(WrongBatchError.__name__ in reason for reason in late) else 0
