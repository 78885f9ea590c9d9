"""Studies of `mstrain study` on mock stamps: orders made for the cache, numbers of objects, coding.

What is trained are `policies.toml`, `law.toml` and the spec `quantise`: every arm with the same
seeds, and a seed also draws the split and the shards. A study that was stopped resumes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.harness import Settings
from benchmarks.questions.policies_data import make_stamps, pack_both, pack_stamps
from benchmarks.report import Chart, Series, Shown, Table, write_shown
from msdata.core.files import whole_file
from msdata.errors import MsdataError, UsageError
from mstrain.study.section import sentences_of, tables_of
from mstrain.study.spec import Spec, read_spec
from mstrain.study.study import run_study

SPECS = Path(__file__).parent
LEAST_OBJECTS = 200
# Files of stamps -> steps per sigma of the cutouts that they are made of; None for float32.
Steps = Mapping[str, float | None]
AS_THEY_ARE: Steps = MappingProxyType({"stamps": None})
# Packs a seed's data sets, unless it was done: (folder of the stamps, of the data sets, seed).
Prepare = Callable[[Path, Path, int], None]


def prepare_policies(stamps: Path, data: Path, seed: int) -> None:
    """Packs stamps in random order and by redshift."""
    found = np.load(stamps / "stamps.npy")
    pack_both(found, data / f"seed-{seed}", seed=seed, num_shards=len(found) // 100)


def prepare_law(stamps: Path, data: Path, seed: int) -> None:
    """Packs one data set: all seeds train on the same one."""
    if seed == 0:
        found = np.load(stamps / "stamps.npy")
        shards = max(4, len(found) // 250)
        pack_stamps(found, data, np.arange(len(found)), (0, shards), (0.75, 0.05, 0.2))


def prepare_coded(steps: Steps, stamps: Path, data: Path, seed: int) -> None:
    """Packs each form of the stamps: the same objects in the same shards."""
    for name in steps:
        found, out = np.load(stamps / f"{name}.npy"), data / f"seed-{seed}" / name
        pack_stamps(found, out, np.arange(len(found)), (seed, len(found) // 100))


def coded_spec() -> Spec:
    """The spec `quantise` with the network of the study of policies, on data sets of each seed."""
    spec, policies = read_spec("quantise", seeds=8), read_spec(SPECS / "policies.toml")
    arms = tuple(replace(arm, data=f"seed-{{seed}}/{arm.data}") for arm in spec.arms)
    return replace(spec, arms=arms, recipe=policies.recipe, settings=policies.settings)


def steps_of(spec: Spec) -> Steps:
    """Steps per sigma of each arm's cutouts."""
    return {a.name: float(a.name[1:]) if a.name.startswith("q") else None for a in spec.arms}


def coded_study(settings: Settings) -> dict[str, Any]:
    """Trains the arms of `coded_spec`; see `run_stamps`."""
    spec = coded_spec()
    prepare = partial(prepare_coded, steps_of(spec))
    found = run_stamps(settings, "smaller", spec, (400, 1600), prepare, steps_of(spec))[1]
    return {name: value for name, value in found.items() if name != "cells"}


def run_stamps(
    settings: Settings,
    name: str,
    spec: Spec,
    sizes: tuple[int, int],
    prepare: Prepare,
    steps: Steps = AS_THEY_ARE,
) -> tuple[int, dict[str, Any]]:
    """Makes stamps, packs each seed's data and runs a study, by a process per core.

    `sizes` are the objects of a quick run and of a full one.

    Returns:
        How many stamps there are, and what `mstrain study` writes.

    Raises:
        UsageError: there are too few objects.
        MsdataError: a training failed, or a process died.
    """
    num = settings.mock or sizes[0 if settings.quick else 1]
    if num < LEAST_OBJECTS:
        raise UsageError(
            f"--mock must be at least {LEAST_OBJECTS}, got {num}: a network learns nothing from "
            "so few"
        )
    folder = settings.work / f"{name}-{num}{'' if settings.data is None else '-of-data'}"
    paths = [folder / f"{file}.npy" for file in steps]
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        print("  making stamps", flush=True)
        made = make_stamps(settings.data, num, _num_jobs(), tuple(steps.values()))
        for path, stamps in zip(paths, made, strict=True):
            with whole_file(path) as file:
                np.save(file, stamps)
    count = len(np.load(paths[0], mmap_mode="r"))
    if count < LEAST_OBJECTS:
        raise UsageError(
            f"{settings.data} has {count} objects with redshift and E(B-V); a network learns "
            f"nothing from so few: give a data set of at least {LEAST_OBJECTS}"
        )
    return count, _study(spec, folder, partial(prepare, folder, folder / "data"))


def _num_jobs() -> int:
    return len(os.sched_getaffinity(0))


def _study(spec: Spec, folder: Path, prepare: Callable[[int], None]) -> dict[str, Any]:
    jobs, spawn = _num_jobs(), multiprocessing.get_context("spawn")
    run = partial(run_study, spec, folder / "data", folder / "study", has_report=False)
    try:
        with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
            list(pool.map(prepare, range(spec.seeds)))
            for future in [pool.submit(run, part=f"{n}/{jobs}") for n in range(jobs)]:
                future.result()
    except BrokenProcessPool as error:
        raise MsdataError(
            "a process that trained was killed; the same command resumes with what is missing"
        ) from error
    result = run_study(spec, folder / "data", folder / "study", is_quiet=True).result
    assert result is not None
    return result


def answer(settings: Settings) -> int:
    """Trains the arms of `policies.toml` or `law.toml`, writes the result; returns 0."""
    name = settings.question
    spec = read_spec(SPECS / f"{name}.toml", seeds=2 if settings.quick else None)
    prepare = {"policies": prepare_policies, "law": prepare_law}[name]
    count, result = run_stamps(settings, name, spec, (600, 4000), prepare)
    cells = result.pop("cells")
    # Differences, not ratios that a regression could be read from.
    found = {"quick": settings.quick, "num_stamps": count, "study": result, "ratios": {}}
    shown = Shown(
        title=result["title"],
        sentences=sentences_of(result),
        tables=shown_tables(result),
        charts=[chart_of(result)],
    )
    write_shown(name, found, shown, settings, raw={"cells": cells})
    return 0


def shown_tables(result: Mapping[str, Any]) -> list[Table]:
    """The tables of a study, for the report."""
    return [
        Table(
            title=table.caption,
            columns=table.head,
            rows=table.rows,
            in_readme=number < 2,
            note="Paired by seed; above 0 is worse." if number else "",
        )
        for number, table in enumerate(tables_of(result))
    ]


def chart_of(result: Mapping[str, Any]) -> Chart:
    """The first metric of all arms, their references being 100 %."""
    metric = result["spec"]["metrics"][0]
    arms = [arm for arm in result["arms"].values() if arm["effects"] is not None]
    effects = [arm["effects"][metric] for arm in arms]
    middle, low, high = (
        [100 + 100 * e[name] / e["reference"] for e in effects]
        for name in ("difference", "low", "high")
    )
    return Chart(
        title=f"{metric.upper()}, the reference's being 100 %",
        kind="bars",
        labels=[arm["title"] for arm in arms],
        x_label="percent; above 100 is worse; whiskers: 95 % intervals of the paired difference",
        series=[Series(name=metric.upper(), values=middle, least=low, greatest=high)],
    )
