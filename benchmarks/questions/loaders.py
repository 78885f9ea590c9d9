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
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import Settings, compare, spread, take_turns
from benchmarks.peers import PEERS
from benchmarks.peers.child import WrongBatchError
from benchmarks.peers.process import PeerProcess
from benchmarks.peers.protocol import Peer, Reading
from benchmarks.questions.loaders_shown import show
from benchmarks.report import write_shown
from benchmarks.told import ToldError, WrongDataError
from benchmarks.workloads import WORKLOADS, Source, make_source, size_of
from msdata.cluster.probe import drop_from_cache
from msdata.core.text import bytes_text
from msdata.errors import UsageError
from msdata.plan.quality import displacement, repeated_pairs

CHECKED_EPOCHS = 3
# What the stub of a training step takes, in samples per second of one node.
COMPUTE_RATES = (2000, 10_000)
MAX_CACHED_SHARE = 0.01
_READ_AT_ONCE = 1 << 20


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
    """What all contestants run on: the objects, how batches are asked for, folders."""

    source: Source
    reading: Reading
    work: Path
    logs: Path

    def open(self, contender: Contender) -> None:
        """Has a contestant set up what its epochs need, untimed."""
        told = {"data": str(contender.data), "truth": str(self.source.folder)}
        contender.process.command("open", **told, reading=asdict(self.reading))

    def run(self, contender: Contender, **how: Any) -> dict[str, Any]:
        """Opens, runs epochs and closes a contestant; what its process answers."""
        self.open(contender)
        if how.pop("is_cold", False):
            share = drop_folder(contender.data)
            contender.found["cached_share"] = max(share, contender.found.get("cached_share", 0.0))
        told = {"warm_ups": 1, "epochs": 1, "compute_rate": None, "is_checked": False}
        run = contender.process.command("run", **{**told, **how})
        contender.process.command("close")
        return run


def make_race(settings: Settings) -> Race:
    """Objects of the workload, or of the data set given.

    Raises:
        UsageError: there are fewer samples than a batch holds, or the disk is too small.
    """
    count, nbytes = size_of(settings)
    if count < 4:
        raise UsageError(f"{count} samples are too few to race on; at least 4 are needed")
    # Whole batches only: what an incomplete one is differs from contestant to contestant.
    size = min(WORKLOADS[settings.workload].batch_size, count // 4)
    num_samples = count // size * size
    _check_room(settings.work, num_samples * nbytes, len(chosen_peers(settings.peers)))
    if num_samples < count:
        print(f"  {num_samples} of {count} samples, which make whole batches of {size}")
    source = make_source(settings, num_samples)
    cores = len(os.sched_getaffinity(0))
    sizes = {"num_samples": num_samples, "batch_size": size, "num_workers": cores}
    reading = Reading(arrays=source.arrays, **sizes)
    work, logs = settings.work / "converted", settings.out / "logs"
    return Race(source=source, reading=reading, work=work, logs=logs)


def _check_room(work: Path, nbytes: int, num_contestants: int) -> None:
    """Refuses a race whose conversions, one per contestant, the disk cannot hold."""
    needed = nbytes * (num_contestants + 1)
    place = next(folder for folder in (work, *work.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UsageError(
            f"{place} has {bytes_text(free)} free, and the samples as each of {num_contestants} "
            f"contestants wants them take {bytes_text(needed)}; give --out on another disk, or "
            "fewer samples with --mock N"
        )


def enter(race: Race, name: str, stack: ExitStack) -> Contender:
    """Starts a contestant, lets it convert, and compares every byte it delivers.

    Raises:
        ToldError: it is not installed, or failed.
        WrongDataError: it delivered other samples than it should.
    """
    peer = PEERS[name]
    process = PeerProcess(name, race.logs / f"{name}.txt")
    stack.enter_context(process)
    out = race.work / name
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    objects = str(race.source.objects)
    answer, memory = process.command_with_memory(
        "convert", objects=objects, out=str(out), reading=asdict(race.reading)
    )
    data = race.source.objects if peer.convert is None else out
    contender = Contender(name, peer, process, data)
    race.open(contender)
    run, peak = process.command_with_memory(
        "run", warm_ups=0, epochs=CHECKED_EPOCHS, compute_rate=None, is_checked=True
    )
    process.command("close")
    seconds = answer["seconds"]
    contender.found = {
        "convert_per_s": None if seconds is None else race.reading.num_samples / seconds,
        "convert_memory": memory.own,
        "bytes_on_disk": sum(p.stat().st_blocks * 512 for p in data.rglob("*") if p.is_file()),
        "peak_memory": peak.own,
        "peak_memory_with_files": peak.with_files,
        "quality": quality_of(run["orders"], race.reading.batch_size),
        "versions": process.versions,
    }
    return contender


def quality_of(orders: list[list[int]], batch_size: int) -> dict[str, float]:
    """How far orders are from uniform shuffles, by the two epochs after the first.

    Args:
        orders: samples in the order of delivery, one list per epoch.
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


def drop_folder(folder: Path) -> float:
    """Drops all files below a folder from the page cache; the share of bytes that stayed.

    Raises:
        ToldError: more than a little stayed, or the system does not tell.
    """
    stayed = total = 0.0
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        share, size = drop_from_cache(path), path.stat().st_size
        if share is None:
            raise ToldError(f"the system does not tell what of {path} is in the page cache")
        stayed, total = stayed + share * size, total + size
    share = stayed / max(1.0, total)
    if share > MAX_CACHED_SHARE:
        raise ToldError(f"{share:.1%} of {folder} stayed in the page cache")
    return share


def read_through(contenders: list[Contender]) -> None:
    """Has the page cache hold all files as after one read from front to back.

    The kernel keeps what it read so, or what was written through it, in large pieces, and what came
    by random reads in single pages, from which every copy takes up to three times as long. Without
    this a format would be measured by how its converter happened to write.
    """
    piece = bytearray(_READ_AT_ONCE)
    folders = {contender.data for contender in contenders}
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        drop_from_cache(path)
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


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
    facts = {k: v for k, v in vars(contender.peer).items() if k not in ("open", "convert")}
    waits = {
        rate: {f"p{p}_ms": round(float(np.percentile(waits_s, p)) * 1e3, 3) for p in (50, 95, 99)}
        for rate, waits_s in contender.found.pop("waits_s", {}).items()
    }
    return {**facts, "waits": waits, **contender.found}


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


def chosen_peers(asked: tuple[str, ...]) -> tuple[str, ...]:
    """The contestants asked for, all for none, in the order of tables.

    Raises:
        UsageError: one of them is unknown.
    """
    unknown = [name for name in asked if name not in PEERS]
    if unknown:
        raise UsageError(f"--peers must be among {', '.join(PEERS)}, got {unknown[0]}")
    return tuple(name for name in PEERS if name in asked or not asked)


def answer(settings: Settings) -> int:
    """Races contestants and writes the result; 1 where one delivered wrong samples."""
    started_s = time.perf_counter()
    names = chosen_peers(settings.peers)
    # This project's modules, as pip compiles all others' when it installs them.
    compileall.compile_dir(Path(msdata.__file__).parent, quiet=2)
    race = make_race(settings)
    missing: dict[str, str] = {}
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
