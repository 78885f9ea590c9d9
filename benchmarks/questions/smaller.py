"""What do coded samples save, and what do they cost? Bytes, rates, hits, errors, trainings."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import (
    Settings,
    interval_text,
    ratio_spread,
    run_threads,
    run_timed,
    spread,
    take_turns,
)
from benchmarks.questions.policies import chart_of, coded_study, shown_tables
from benchmarks.report import (
    Chart,
    Series,
    Shown,
    Table,
    bars_of,
    spread_series,
    write_shown,
)
from benchmarks.workloads import WHOLE, make_objects, make_source, size_of
from msdata.cache.config import GIB
from msdata.cluster.probe import drop_from_cache
from msdata.dataset.coding import KIND, NBYTES, SOURCE, STEPS, TARGET, RecordDecoder, kind_number
from msdata.dataset.dataset import Split
from msdata.dataset.manifest import CODES
from msdata.errors import UsageError
from mstrain.study.section import sentences_of

QUANTIZE, COMPRESS = (2.0, 4.0, 8.0, 16.0), ("none", "lz4", "zstd")
NUM_THREADS = 2
# Of the float32 data, what the node's memory holds.
MEMORY_SHARE = 0.2
_BATCH, _RING, _RUN = 64, 4, 8
_MOST_COMPARED, _NUM_SHARDS = 200, 48
_NUM_OBJECTS, _NUM_QUICK = 640, 200
# What a thread of some runs, and what has to be kept for it.
Work = tuple[Callable[[int], None], list[Any]]
_RATIOS = ("pack_of_float32", "hot_of_limit", "cold_of_float32")


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
    """Packs so many objects in all forms, float32 first, in turns; measures what came of each.

    Returns:
        For each form its `title`, sizes, hits, errors, and spreads over turns of rates (samples/s)
        and of their ratios: `pack`, `pack_of_float32`, `pack_cpu_ms`, `hot`, `limit`,
        `hot_of_limit`, `cold`, `cold_of_float32`.
    """
    nbytes = sum(path.stat().st_size for path in objects.rglob("*") if path.is_file())
    # Nodes hold whole shards, so those are small enough for the shares of memory.
    size = ("--shard-size", f"{max(64, nbytes // _NUM_SHARDS >> 10)}KiB")
    packs = {f.name: partial(_pack, objects, folder / f.name, *size, *f.options) for f in forms}
    packed = take_turns(packs, repeats, warm_ups=0)
    pack = {name: [count / run["seconds"] for run in runs] for name, runs in packed.items()}
    splits = {form.name: msdata.open(folder / form.name).split("train") for form in forms}
    hot: dict[str, Callable[[], float]] = {}
    for name, split in splits.items():
        hot[name] = partial(_epoch_rate, split, 1, 2)
        hot[f"limit {name}"] = partial(_bare_rate, split)
    # Each warms up by itself.
    hot_rates = take_turns(hot, repeats, warm_ups=0)
    cold_rates = take_turns(
        {n: partial(_cold_rate, s) for n, s in splits.items()}, repeats, warm_ups=0
    )
    first = forms[0].name
    found = []
    for form in forms:
        name, split = form.name, splits[form.name]
        cpu_ms = [1e3 * run["processor_seconds"] / count for run in packed[name]]
        limits = hot_rates[f"limit {name}"]
        found.append(
            {
                "title": form.title,
                "quantize": form.quantize,
                "compress": form.compress,
                **_sizes(splits[first], split),
                "pack": spread(pack[name]),
                "pack_of_float32": ratio_spread(pack[name], pack[first]),
                "pack_cpu_ms": spread(cpu_ms),
                "hot": spread(hot_rates[name]),
                "limit": spread(limits),
                "hot_of_limit": ratio_spread(hot_rates[name], limits),
                "cold": spread(cold_rates[name]),
                "cold_of_float32": ratio_spread(cold_rates[name], cold_rates[first]),
                **({} if form.quantize is None else compare_pixels(splits[first], split)),
            }
        )
    return found


def _pack(objects: Path, out: Path, *options: str) -> dict[str, float]:
    """Seconds of `msdata pack` with two processes, its start included."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    words = [str(objects), str(out), "--catalog", str(objects / "catalog.csv"), "--quiet"]
    words += [*WHOLE, "--inpaint", "none", "--jobs", str(NUM_THREADS), *options]
    return run_timed([sys.executable, "-m", "msdata", "pack", *words], is_shown=True)


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
        for epoch in range(num_warm + num_timed):
            if epoch == num_warm:
                started_s = time.perf_counter()
            for _ in loader:
                pass
        return num_timed * len(split) / (time.perf_counter() - started_s)


def _cold_rate(split: Split) -> float:
    for path in split.shard_paths:
        drop_from_cache(path)
    return _epoch_rate(split, 0, 1)


def _bare_rate(split: Split) -> float:
    """What no loader can exceed: records in memory, decoded or copied in random order."""
    records = [split.read_stored(row)[0] for row in range(len(split))]
    rings = [np.zeros((_RING * _BATCH, *a.shape), a.dtype) for a in split.schema.arrays]
    order = np.random.default_rng(0).permutation(len(split))
    # The table of what is decoded points into what is kept.
    work, _kept = (_decoding if split.is_coded else _copying)(split, records, rings, order)
    run_threads(work, NUM_THREADS)
    return len(order) / run_threads(work, NUM_THREADS)


def _copying(
    _: Split, records: list[Any], rings: list[Any], order: Any
) -> tuple[Callable[[int], None], list[Any]]:
    rings = [ring.reshape(len(ring), -1).view(np.uint8) for ring in rings]

    def work(thread: int) -> None:
        for place in range(thread, len(order), NUM_THREADS):
            for ring, part in zip(rings, records[order[place]], strict=True):
                ring[place % len(ring)] = part

    return work, records


def _decoding(split: Split, records: list[Any], rings: list[Any], order: Any) -> Work:
    codings = split.codings
    decoder = RecordDecoder(codings, [a.dtype for a in split.schema.arrays])
    table = np.zeros((len(order), len(codings), 5), np.int64)
    steps: list[Any] = []
    for a, (coding, ring) in enumerate(zip(codings, rings, strict=True)):
        stored = [records[row][a] for row in order.tolist()]
        table[:, a, SOURCE] = [s.ctypes.data for s in stored]
        table[:, a, NBYTES] = [len(s) for s in stored]
        table[:, a, TARGET] = ring.ctypes.data + np.arange(len(order)) % len(ring) * ring[0].nbytes
        numbers = np.array([kind_number(kind, coding) for kind in CODES])
        table[:, a, KIND] = numbers[split.codes(coding.name)[order]]
        steps.append(np.ascontiguousarray(split.steps(coding.name), np.float32))
        table[:, a, STEPS] = steps[-1].ctypes.data + order * steps[-1].strides[0]
    rows, run = table.reshape(-1, 5), _RUN * len(codings)

    def work(thread: int) -> None:
        for first in range(thread * run, len(rows), NUM_THREADS * run):
            stop = min(first + run, len(rows))
            if decoder.decode(rows, first, stop) != stop:
                raise SystemExit(f"{split.dataset.path}: a record is corrupt")

    return work, steps


def compare_pixels(reference: Split, split: Split) -> dict[str, float]:
    """How far pixels are from the float32 ones, over those that are quantized.

    Returns:
        `variance`, the added one over step^2 / 12; `worst` and `bias`, the largest magnitude and
        the mean of differences in steps; `same`, whether all others are the same bit for bit.
    """
    places = {reference.sample_id(row): row for row in range(len(reference))}
    steps = {c.name: split.steps(c.name) for c in split.codings}
    moves, same = [], True
    for row in range(min(len(split), _MOST_COMPARED)):
        coded, plain = split[row], reference[places[split.sample_id(row)]]
        for coding in split.codings:
            old, new = (s[coding.name].reshape(coding.num_planes, -1) for s in (plain, coded))
            step = steps[coding.name][row][:, None].astype(np.float64)
            is_moved = np.isfinite(old) & (old != 0) & (step > 0)
            moves.append(((new.astype(np.float64) - old) / np.where(step > 0, step, 1))[is_moved])
            same = same and bool((old.view("u4")[~is_moved] == new.view("u4")[~is_moved]).all())
    off = np.concatenate(moves)
    return {
        "variance": 12 * float((off**2).sum()) / max(len(off), 1),
        "worst": float(np.abs(off).max(initial=0)),
        "bias": float(off.sum()) / max(len(off), 1),
        "same": same,
    }


def answer(settings: Settings) -> int:
    """Measures, trains and writes `smaller.json`; returns the exit code 0."""
    if settings.workload != "mantis":
        raise UsageError(
            f"--workload must be mantis, got {settings.workload!r}: noise without a sky, as other "
            "workloads have, tells nothing of coding"
        )
    # First, since only it resumes where it was stopped.
    trained = coded_study(settings)
    objects, count = _objects(settings)
    folder = settings.work / "smaller"
    print(f"  measuring {count:,} samples", flush=True)
    repeats, forms = (2, FEWER_FORMS) if settings.quick else (3, FORMS)
    found = measure_forms(objects, count, folder, repeats, forms)
    shutil.rmtree(folder)
    result = {
        "quick": settings.quick,
        "num_samples": count,
        "forms": found,
        "study": trained,
        "ratios": {
            f"{form['title']}: {name.replace('_', ' ')}": form[name]
            for form in found
            for name in _RATIOS
        },
    }
    write_shown("smaller", result, show(result), settings)
    return 0


def _objects(settings: Settings) -> tuple[Path, int]:
    """Mock galaxies, whose sky has the surveys' noise, or the first samples of a data set."""
    count = settings.mock or (_NUM_QUICK if settings.quick else _NUM_OBJECTS)
    if settings.data is None:
        return make_objects(settings.work / f"objects-{count}", count), count
    count = min(count, size_of(settings)[0])
    return make_source(settings, count).objects, count


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows."""
    forms, study_found = result["forms"], result["study"]
    titles = [form["title"] for form in forms]

    def column(name: str) -> list[Any]:
        return [form[name] for form in forms]

    charts = [
        bars_of(
            "Rates of epochs, beside bare decoding or copying",
            "samples/s; whiskers: least and greatest over turns",
            titles,
            {"bare": column("limit"), "hot": column("hot"), "cold": column("cold")},
        ),
        Chart(
            title="Bytes, hits and packing against float32",
            kind="bars",
            labels=titles,
            x_label="float32 has 1",
            series=[
                Series(name="bytes", values=[1 / form["ratio"] for form in forms]),
                Series(name="hits at equal memory", values=column("hits")),
                spread_series("packing rate", column("pack_of_float32")),
            ],
        ),
        chart_of(study_found),
    ]
    return Shown(
        title="What do coded samples save, and what do they cost?",
        sentences=[*_sentences(forms), *sentences_of(study_found)],
        tables=[_forms_table(forms), *shown_tables(study_found)],
        charts=charts,
    )


def _sentences(forms: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for form in forms:
        if form["quantize"] != 4:
            continue
        binds = "decoding" if form["limit"]["median"] < forms[0]["limit"]["median"] else "copying"
        found.append(
            f"{form['title']}: {form['ratio']:.2f} times smaller, packed at "
            f"{interval_text(form['pack_of_float32'])} of float32's rate, cold epochs "
            f"{interval_text(form['cold_of_float32'])} of float32's, hot ones "
            f"{interval_text(form['hot_of_limit'])} of bare {binds} by {NUM_THREADS} threads; "
            f"{form['hits']:.0%} hits where float32 has {forms[0]['hits']:.0%}."
        )
    changed = [f["title"] for f in forms[1:] if not f["same"]]
    if changed:
        found.append(f"FAULT: zeros or unquantized pixels were changed: {', '.join(changed)}.")
    return found


def _forms_table(forms: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            form["title"],
            form["record_nbytes"] / 1024,
            f"{form['ratio']:.2f}",
            f"{form['hits']:.0%}",
            f"{form['pack']['median']:,.0f}",
            interval_text(form["pack_of_float32"]),
            form["pack_cpu_ms"]["median"],
            f"{form['cold']['median']:,.0f}",
            f"{form['hot']['median']:,.0f}",
            f"{form['limit']['median']:,.0f}",
            interval_text(form["hot_of_limit"]),
            *(form.get(name) for name in ("variance", "worst")),
        ]
        for form in forms
    ]
    return Table(
        title="Forms of the same samples",
        columns=(
            *("stored as", "KiB per sample", "ratio", "hits", "packing, samples/s"),
            *("of float32", "CPU ms", "cold, samples/s", "hot", "bare", "hot of bare"),
            *("variance", "largest error, steps"),
        ),
        rows=rows,
        in_readme=True,
        note=(
            f"Hits: of the second epoch on one node whose memory holds {MEMORY_SHARE:.0%} of the "
            "float32 data, by the plan. Packing with two processes, start included; CPU ms: "
            "processor time per sample of the same. Cold: page cache dropped before the epoch. "
            f"Bare: {NUM_THREADS} threads decode the same records from memory (float32: copy "
            "them). Variance: the added one over step^2 / 12. Ratios are of the same turn: median "
            "(least to greatest)."
        ),
    )
