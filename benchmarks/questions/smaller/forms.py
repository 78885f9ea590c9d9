"""The same samples stored as float32 and coded: sizes, packing, epochs, hits and errors."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from benchmarks.harness import run_threads, spread, take_turns
from msdata.cluster.probe import drop_from_cache
from msdata.dataset.coding import (
    KIND,
    NBYTES,
    SOURCE,
    STEPS,
    TARGET,
    RecordDecoder,
    kind_number,
)
from msdata.dataset.dataset import Split
from msdata.dataset.manifest import CODES

QUANTIZE, COMPRESS = (2.0, 4.0, 8.0, 16.0), ("none", "lz4", "zstd")
NUM_THREADS = 2
# Of the float32 data, what the node's memory holds.
MEMORY_SHARE = 0.2
GIB = 1 << 30
_BATCH, _RING, _RUN = 64, 4, 8
_MOST_COMPARED, _NUM_SHARDS = 200, 48


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way to store samples.

    Attributes:
        quantize: steps per sigma; None for float32.
        compress: as in `msdata pack --compress`.
    """

    quantize: float | None = None
    compress: str = "none"

    @property
    def title(self) -> str:
        """For people."""
        if self.quantize is None:
            return "float32"
        names = {"none": "codes alone", "lz4": "LZ4", "zstd": "zstd"}
        return f"q = {self.quantize:g}, {names[self.compress]}"

    @property
    def name(self) -> str:
        """For files."""
        return "float32" if self.quantize is None else f"q{self.quantize:g}-{self.compress}"

    @property
    def options(self) -> list[str]:
        """Options of `msdata pack`."""
        if self.quantize is None:
            return []
        return ["--quantize", f"{self.quantize:g}", "--compress", self.compress]


FORMS = (Form(), *(Form(quantize=q, compress=c) for q in QUANTIZE for c in COMPRESS))
# With --quick.
FEWER_FORMS = tuple(f for f in FORMS if f.quantize in (None, 4.0) or f.compress == "lz4")


def measure_forms(
    objects: Path, count: int, folder: Path, repeats: int, forms: Sequence[Form]
) -> list[dict[str, Any]]:
    """Packs all forms in turns, and measures what came of each.

    Args:
        objects: pickles with `catalog.csv`.
        count: how many.
        folder: gets a data set for each form, of split "train" alone.
        repeats: turns.
        forms: float32 first.

    Returns:
        For each form its `title`, sizes, hits, errors, and spreads over turns of rates (samples/s)
        and of their ratios: `pack`, `pack_of_float32`, `pack_cpu_ms`, `hot`, `limit`,
        `hot_of_limit`, `cold`, `cold_of_float32`.
    """
    cpu_ms: dict[str, list[float]] = {form.name: [] for form in forms}
    nbytes = sum(path.stat().st_size for path in objects.rglob("*") if path.is_file())
    # Nodes hold whole shards, so those are small enough for the shares of memory.
    options = {"shard_kib": max(64, nbytes // _NUM_SHARDS >> 10), "cpu_ms": cpu_ms}
    packs = {f.name: partial(_pack, objects, count, folder / f.name, f, **options) for f in forms}
    packed = take_turns(packs, repeats, warm_ups=0)
    splits = {form.name: msdata.open(folder / form.name).split("train") for form in forms}
    hot: dict[str, Callable[[], float]] = {}
    for name, split in splits.items():
        hot[name] = partial(_hot_rate, split)
        hot[f"limit {name}"] = _bare(split)
    # Each warms up by itself.
    hot_rates = take_turns(hot, repeats, warm_ups=0)
    cold = {name: partial(_cold_rate, split) for name, split in splits.items()}
    cold_rates = take_turns(cold, repeats, warm_ups=0)
    first = forms[0].name
    found = []
    for form in forms:
        name, split = form.name, splits[form.name]
        limits = hot_rates[f"limit {name}"]
        found.append(
            {
                "title": form.title,
                "quantize": form.quantize,
                "compress": form.compress,
                **_sizes(splits[first], split),
                "pack": spread(packed[name]),
                "pack_of_float32": _ratio(packed[name], packed[first]),
                "pack_cpu_ms": spread(cpu_ms[name]),
                "hot": spread(hot_rates[name]),
                "limit": spread(limits),
                "hot_of_limit": _ratio(hot_rates[name], limits),
                "cold": spread(cold_rates[name]),
                "cold_of_float32": _ratio(cold_rates[name], cold_rates[first]),
                **({} if form.quantize is None else compare_pixels(splits[first], split)),
            }
        )
    return found


def _ratio(rates: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(rates, others, strict=True)])


def _pack(
    objects: Path,
    count: int,
    out: Path,
    form: Form,
    *,
    shard_kib: int,
    cpu_ms: dict[str, list[float]],
) -> float:
    """Objects per second of `msdata pack` with two processes, its start included."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    words = ["pack", str(objects), str(out), "--catalog", str(objects / "catalog.csv"), "--quiet"]
    words += ["--split", "1,0,0", "--max-nan-fraction", "1", "--inpaint", "none"]
    words += ["--shard-size", f"{shard_kib}KiB", "--jobs", str(NUM_THREADS), *form.options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started_s = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "msdata", *words]).returncode
    seconds = time.perf_counter() - started_s
    if code:
        raise SystemExit(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cpu_ms[form.name].append(1e3 * used_s / count)
    return count / seconds


def _sizes(reference: Split, split: Split) -> dict[str, Any]:
    """Stored bytes, and hits that the plan gives a node with the same memory for each form."""
    nbytes = float(split.record_nbytes.mean())
    memory_gib = MEMORY_SHARE * len(reference) * reference.sample_nbytes / GIB
    plan = msdata.plan(
        split, memory_gib=memory_gib, policy="locality", batch_size=_BATCH, num_epochs=3
    )
    shares = plan["epochs"][1]["shares"]
    return {
        "record_nbytes": nbytes,
        "ratio": split.sample_nbytes / nbytes,
        "hits": 1.0 - shares["storage"],
    }


def _epoch_rate(split: Split, num_warm: int, num_timed: int) -> float:
    with msdata.Loader(split, _BATCH, threads=NUM_THREADS) as loader:
        for _ in range(num_warm):
            for _ in loader:
                pass
        started_s = time.perf_counter()
        for _ in range(num_timed):
            for _ in loader:
                pass
        return num_timed * len(split) / (time.perf_counter() - started_s)


def _hot_rate(split: Split) -> float:
    return _epoch_rate(split, 1, 2)


def _cold_rate(split: Split) -> float:
    for path in split.shard_paths:
        drop_from_cache(path)
    return _epoch_rate(split, 0, 1)


def _bare(split: Split) -> Callable[[], float]:
    """What no loader can exceed: records in memory, decoded or copied in random order."""
    if not split.is_coded:
        return partial(_copy_rate, split)
    return partial(_decode_rate, split)


def _ring_of(split: Split) -> list[NDArray[Any]]:
    arrays = split.schema.arrays
    return [np.zeros((_RING * _BATCH, *a.shape), a.dtype) for a in arrays]


def _copy_rate(split: Split) -> float:
    records = [split.read_stored(row)[0] for row in range(len(split))]
    rings = [ring.reshape(len(ring), -1).view(np.uint8) for ring in _ring_of(split)]
    order = np.random.default_rng(0).permutation(len(split)).tolist()

    def work(thread: int) -> None:
        for place in range(thread, len(order), NUM_THREADS):
            for ring, part in zip(rings, records[order[place]], strict=True):
                ring[place % len(ring)] = part

    run_threads(work, NUM_THREADS)
    return len(order) / run_threads(work, NUM_THREADS)


def _decode_rate(split: Split) -> float:
    codings = split.codings
    decoder = RecordDecoder(codings, [a.dtype for a in split.schema.arrays])
    records = [split.read_stored(row)[0] for row in range(len(split))]
    rings = _ring_of(split)
    order = np.random.default_rng(0).permutation(len(split))
    table = np.zeros((len(order), len(codings), 5), np.int64)
    kept = []
    for a, coding in enumerate(codings):
        stored = [records[row][a] for row in order.tolist()]
        table[:, a, SOURCE] = [s.ctypes.data for s in stored]
        table[:, a, NBYTES] = [len(s) for s in stored]
        ring = rings[a]
        table[:, a, TARGET] = ring.ctypes.data + np.arange(len(order)) % len(ring) * ring[0].nbytes
        numbers = np.array([kind_number(kind, coding) for kind in CODES])
        table[:, a, KIND] = numbers[split.codes(coding.name)[order]]
        steps = np.ascontiguousarray(split.steps(coding.name), np.float32)
        kept.append(steps)
        table[:, a, STEPS] = steps.ctypes.data + order * steps.strides[0]
    rows = table.reshape(-1, 5)
    run = _RUN * len(codings)

    def work(thread: int) -> None:
        for first in range(thread * run, len(rows), NUM_THREADS * run):
            stop = min(first + run, len(rows))
            if decoder.decode(rows, first, stop) != stop:
                raise SystemExit(f"{split.dataset.path}: a record is corrupt")

    run_threads(work, NUM_THREADS)
    return len(order) / run_threads(work, NUM_THREADS)


def compare_pixels(reference: Split, split: Split) -> dict[str, float]:
    """How far pixels are from the float32 ones, over those that are quantized.

    Returns:
        `variance`, the added one over step^2 / 12; `worst` and `bias`, the largest magnitude and
        the mean of differences in steps; `same`, whether all others are the same bit for bit.
    """
    count = min(len(split), _MOST_COMPARED)
    places = {reference.sample_id(row): row for row in range(len(reference))}
    squares, sums, number, worst, same = 0.0, 0.0, 0, 0.0, True
    steps = {c.name: split.steps(c.name) for c in split.codings}
    for row in range(count):
        coded, plain = split[row], reference[places[split.sample_id(row)]]
        for coding in split.codings:
            old, new = (s[coding.name].reshape(coding.num_planes, -1) for s in (plain, coded))
            step = steps[coding.name][row][:, None].astype(np.float64)
            moved = np.isfinite(old) & (old != 0) & (step > 0)
            off = ((new.astype(np.float64) - old) / np.where(step > 0, step, 1))[moved]
            same = same and bool((old.view("u4")[~moved] == new.view("u4")[~moved]).all())
            squares, sums = squares + float((off**2).sum()), sums + float(off.sum())
            number, worst = number + off.size, max(worst, float(np.abs(off).max(initial=0)))
    return {
        "variance": 12 * squares / max(number, 1),
        "worst": worst,
        "bias": sums / max(number, 1),
        "same": same,
    }
