"""How fast are we, and everyone else, on the same bytes?

Every contestant is a process of its own. It converts the same pickled objects, delivers three
epochs of which every byte is compared (each sample once; nothing there is timed but memory is
watched), then all take turns: hot epochs after a warm-up epoch, of files that were read from front
to back before; cold epochs after the pages of its files were dropped and counted; hot epochs with
the stub of a training step that sleeps a fixed time a batch. Timed batches are checked too: shapes,
each sample once, first and last bytes of every array.
"""

from __future__ import annotations

import compileall
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import write_result
from benchmarks.questions.loaders_shown import show
from benchmarks.questions.loaders_turns import FULL, QUICK, Contender, Race, open_contender, race_all
from benchmarks.peers import PEER_NAMES
from benchmarks.peers.child import WrongBatchError
from benchmarks.peers.process import PeerError, PeerProcess, WrongDataError
from benchmarks.peers.protocol import Peer, Reading
from benchmarks.question import Settings
from benchmarks.workloads import (
    WORKLOADS,
    dataset_objects,
    mock_objects,
    write_source,
)
from msdata.errors import UsageError
from msdata.plan.quality import displacement, repeated_pairs

CHECKED_EPOCHS = 3


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
    num_contestants = len(chosen_peers(settings.peers))
    _check_room(settings.work, num_samples * _sample_nbytes(settings), num_contestants)
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


def _compile_ours() -> None:
    """Compiles this project's modules, as pip does with all others' when it installs them."""
    compileall.compile_dir(Path(msdata.__file__).parent, quiet=2)


def _sample_nbytes(settings: Settings) -> int:
    if settings.data is None:
        return WORKLOADS[settings.workload].sample_nbytes
    return msdata.open(settings.data).schema.sample_nbytes


def _check_room(work: Path, nbytes: int, num_contestants: int) -> None:
    """Refuses a race whose conversions, one a contestant, the disk cannot hold.

    Raises:
        UsageError: it is too small.
    """
    needed = nbytes * (num_contestants + 1)
    place = next(folder for folder in (work, *work.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UsageError(
            f"{place} has {free / 1e9:.1f} GB free, and the samples as each of {num_contestants} "
            f"contestants wants them take {needed / 1e9:.1f} GB; give --out on another disk, or "
            "fewer samples with --mock N"
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
    out.parent.mkdir(parents=True, exist_ok=True)
    objects = str(race.source.objects)
    answer, memory = process.command_with_memory(
        "convert", objects=objects, out=str(out), reading=race.fields()
    )
    data = race.source.objects if peer.convert is None else out
    contender = Contender(name, peer, process, data)
    open_contender(race, contender)
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
        "reads_ahead": peer.reads_ahead,
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


def chosen_peers(asked: tuple[str, ...]) -> tuple[str, ...]:
    """The contestants asked for, all for none, in the order of tables.

    Raises:
        UsageError: one of them is unknown.
    """
    unknown = [name for name in asked if name not in PEER_NAMES]
    if unknown:
        raise UsageError(
            f"--peers {unknown[0]} is no contestant; there are {', '.join(PEER_NAMES)}"
        )
    return tuple(name for name in PEER_NAMES if name in asked) if asked else PEER_NAMES


def answer(settings: Settings) -> int:
    """Races all contestants and writes `loaders.json`.

    Returns:
        0; 1 where a contestant delivered wrong samples.
    """
    started_s = time.perf_counter()
    names = chosen_peers(settings.peers)
    _compile_ours()
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
            except WrongDataError as error:
                wrong[name] = str(error)
                print(f"  {error}", flush=True)
            except PeerError as error:
                missing[name] = str(error)
                print(f"  not here: {error}", flush=True)
        seconds = time.perf_counter() - started_s
        print(f"  converted and compared in {seconds:.0f} s", flush=True)
        found = race_all(race, contenders, QUICK if settings.quick else FULL)
    contestants = {c.name: describe(c) for c in contenders}
    result: dict[str, Any] = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "sample_nbytes": race.source.sample_nbytes,
        "num_samples": race.reading.num_samples,
        "batch_size": race.reading.batch_size,
        "num_workers": race.reading.num_workers,
        "seconds": round(time.perf_counter() - started_s),
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
