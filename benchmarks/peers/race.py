"""How contestants enter the race: each a process, its data converted, every byte compared."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Settings
from benchmarks.journal import Journal
from benchmarks.peers import PEERS
from benchmarks.peers.protocol import Peer, Reading
from benchmarks.told import ToldError, ToldProcess
from benchmarks.workloads import WORKLOADS, Source, make_source, size_of
from msdata.cluster.probe import drop_from_cache
from msdata.core.text import bytes_text
from msdata.errors import UsageError
from msdata.plan.quality import displacement, repeated_pairs

CHECKED_EPOCHS = 3
MAX_CACHED_SHARE = 0.01
_READ_AT_ONCE = 1 << 20
_SAMPLE_EVERY_S = 0.05


class PeerProcess(ToldProcess):
    """A contestant's process; see `ToldProcess`.

    Attributes:
        versions: of its packages, once entered.
    """

    def __init__(self, name: str, log: Path, timeout_s: float = 300.0) -> None:
        command = [sys.executable, "-m", "benchmarks.peers.child", name]
        super().__init__(name, command, log, timeout_s=timeout_s)
        self.versions: dict[str, str] = {}

    def __enter__(self) -> PeerProcess:
        self.versions = self.hear()[0]["versions"]
        return self

    def command_with_memory(self, do: str, **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """A command, and the most memory of the process and its children; see `_tree_memory`."""
        peaks: list[tuple[int, int]] = []
        over = threading.Event()

        def watch() -> None:
            # Once more after the answer: the shortest command is seen too.
            is_over = False
            while not is_over:
                is_over = over.wait(_SAMPLE_EVERY_S)
                peaks.append(_tree_memory(self.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            answer = self.command(do, **arguments)
        finally:
            over.set()
            watcher.join()
        return answer, [max(held) for held in zip(*peaks, strict=True)]


def _tree_memory(pid: int) -> tuple[int, int]:
    """Bytes of a process and all below it, by PSS, so that shared pages count once.

    First anonymous and shared memory, which the kernel cannot drop; then with mapped pages of
    files, programs among them, which it drops when it needs room and which others may map as well.
    """
    import psutil

    kib = Counter[str]()
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for member in (root, *root.children(recursive=True)):
            with suppress(OSError):
                text = Path(f"/proc/{member.pid}/smaps_rollup").read_text(encoding="utf-8")
                for name, amount, _ in map(str.split, text.splitlines()[1:]):
                    kib[name] += int(amount)
    return 1024 * (kib["Pss_Anon:"] + kib["Pss_Shmem:"]), 1024 * kib["Pss:"]


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
    work, logs = settings.work / "converted" / source.folder.name, settings.out / "logs"
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


def enter(race: Race, name: str, journal: Journal, stack: ExitStack) -> Contender:
    """Starts a contestant, lets it convert, and compares every byte it delivers.

    What the journal says of one that entered before, and its data, are taken as they are.

    Raises:
        ToldError: it is not installed, or failed.
        WrongDataError: it delivered other samples than it should.
    """
    peer = PEERS[name]
    process = PeerProcess(name, race.logs / f"{name}.txt")
    stack.enter_context(process)
    data = race.source.objects if peer.convert is None else race.work / name
    contender = Contender(name, peer, process, data)
    key = f"entered: {name}"
    contender.found = journal.get(key) or journal.find(key, partial(_enter, race, contender))
    return contender


def _enter(race: Race, contender: Contender) -> dict[str, Any]:
    """Converts and compares; what is found of the contestant before it is raced."""
    process, peer, data = contender.process, contender.peer, contender.data
    out = race.work / contender.name
    shutil.rmtree(out, ignore_errors=True)
    objects = str(race.source.objects)
    # By a process of its own, so that what it leaves in memory does not count for reading.
    with PeerProcess(contender.name, race.logs / f"{contender.name}.txt") as converter:
        answer, memory = converter.command_with_memory(
            "convert", objects=objects, out=str(out), reading=asdict(race.reading)
        )
    race.open(contender)
    run, peak = process.command_with_memory(
        "run", warm_ups=0, epochs=CHECKED_EPOCHS, compute_rate=None, is_checked=True
    )
    process.command("close")
    seconds = answer["seconds"]
    return {
        "convert_per_s": None if seconds is None else race.reading.num_samples / seconds,
        "convert_memory": memory[0],
        "bytes_on_disk": sum(p.stat().st_blocks * 512 for p in data.rglob("*") if p.is_file()),
        **({"error_of_bound": answer["error_of_bound"]} if peer.decoded else {}),
        "peak_memory": peak[0],
        "peak_memory_with_files": peak[1],
        "quality": quality_of(run["orders"], race.reading.batch_size),
        "versions": process.versions,
    }


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


def chosen_peers(asked: tuple[str, ...]) -> tuple[str, ...]:
    """The contestants asked for, all for none, in the order of tables.

    Raises:
        UsageError: one of them is unknown.
    """
    unknown = [name for name in asked if name not in PEERS]
    if unknown:
        raise UsageError(f"--peers must be among {', '.join(PEERS)}, got {unknown[0]}")
    return tuple(name for name in PEERS if name in asked or not asked)
