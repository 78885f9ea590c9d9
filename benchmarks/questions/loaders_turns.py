"""The turns of the race of loaders: hot, cold, and with the stub of a training step.

What it is about, and who takes part, is in `benchmarks.questions.loaders`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import compare, spread, take_turns
from benchmarks.peers.process import PeerError, PeerProcess
from benchmarks.peers.protocol import Peer, Reading
from benchmarks.workloads import Source
from msdata.cluster.probe import drop_from_cache

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
        budget_s: seconds for all turns of one measurement; no turn after the second is begun that
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


def open_contender(race: Race, contender: Contender) -> None:
    """Has a contestant set up what its epochs need, untimed.

    Raises:
        PeerError: it failed.
    """
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


def read_through(folder: Path) -> None:
    """Has the page cache hold all files below a folder as after one read from front to back.

    The kernel keeps what it read so, or what was written through it, in large pieces, and what came
    by random reads in single pages, from which every copy takes up to three times as long. Without
    this a format would be measured by how its converter happened to write.
    """
    piece = bytearray(_READ_AT_ONCE)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        drop_from_cache(path)
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def run_hot(race: Race, contender: Contender, least_s: float) -> float:
    """Samples per second from the page cache, after a warm-up epoch."""
    open_contender(race, contender)
    run = contender.process.command(
        "run", warm_ups=1, epochs=1, compute_rate=None, is_checked=False, least_s=least_s
    )
    contender.process.command("close")
    return float(run["num_samples"] / run["seconds"])


def run_cold(race: Race, contender: Contender) -> float:
    """Samples per second of the first epoch after its files' pages were dropped."""
    open_contender(race, contender)
    share = drop_folder(contender.data)
    contender.found["cached_share"] = max(share, contender.found.get("cached_share", 0.0))
    run = contender.process.command(
        "run", warm_ups=0, epochs=1, compute_rate=None, is_checked=False
    )
    contender.process.command("close")
    return float(run["num_samples"] / run["seconds"])


def run_training(race: Race, contender: Contender, compute_rate: int, least_s: float) -> float:
    """Accelerator utilisation: the time that the stub computes over the time of the epochs.

    As MLPerf Storage has it: the time in which the accelerator computes over that of the run, the
    first epoch left out, the turn from one epoch to the next included.
    """
    open_contender(race, contender)
    run = contender.process.command(
        "run", warm_ups=1, epochs=1, compute_rate=compute_rate, is_checked=False, least_s=least_s
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
    budget_s: float,
    lost: dict[str, str],
) -> dict[str, list[float]]:
    """Turns of all contenders; one that fails is out of this measurement, and it is said why."""
    started_s = time.perf_counter()

    def run(contender: Contender) -> float:
        if contender.name in lost:
            return 0.0
        try:
            return contestant(contender)
        except PeerError as error:
            lost[contender.name] = str(error)
            return 0.0

    turns = take_turns(
        {c.name: partial(run, c) for c in contenders}, repeats, warm_ups=0, budget_s=budget_s
    )
    num_turns = max(map(len, turns.values()), default=0)
    seconds = time.perf_counter() - started_s
    print(
        f"  {title}: {num_turns} turns of {len(contenders)} contestants in {seconds:.0f} s",
        flush=True,
    )
    return {name: rates for name, rates in turns.items() if name not in lost}


def _read_all(contenders: list[Contender]) -> None:
    for folder in sorted({contender.data for contender in contenders}):
        read_through(folder)


def race_all(race: Race, contenders: list[Contender], effort: Effort) -> dict[str, Any]:
    """Hot, cold and with the stub of a training step, in turns."""
    least_s, budget_s = effort.least_s, effort.budget_s
    limits = [c.name for c in contenders if c.peer.is_limit]
    _read_all(contenders)
    lost: dict[str, dict[str, str]] = {"hot": {}, "cold": {}, "training": {}}
    rates = {
        "hot": take_part(
            "hot",
            contenders,
            lambda c: run_hot(race, c, least_s),
            effort.hot,
            budget_s,
            lost["hot"],
        ),
        "cold": take_part(
            "cold", contenders, lambda c: run_cold(race, c), effort.cold, budget_s, lost["cold"]
        ),
    }
    found: dict[str, Any] = {"rates": rates, "lost": lost, "utilisation": {}}
    for name in ("hot", "cold"):
        present = [limit for limit in limits if limit in rates[name]]
        found[name] = compare(rates[name], present) if present else {}
    _read_all(contenders)
    for compute_rate in COMPUTE_RATES:
        turns = take_part(
            f"training at {compute_rate:,} samples/s",
            contenders,
            lambda c, r=compute_rate: run_training(race, c, r, least_s),  # type: ignore[misc]
            effort.training,
            budget_s,
            lost["training"],
        )
        found["utilisation"][str(compute_rate)] = {n: spread(v) for n, v in turns.items()}
    return found
