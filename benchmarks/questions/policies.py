"""Does an order made for the cache cost accuracy? A study of `mstrain study` on mock stamps.

What is trained is `policies.toml`: every arm with the same seeds, and a seed also draws the split
and the shards. A study that was stopped resumes where it was.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Settings
from benchmarks.questions.policies_data import Stamps, make_stamps, pack_both
from benchmarks.report import Chart, Series, Shown, Table, write_shown
from msdata.errors import MsdataError, UsageError
from mstrain.study.section import sentences_of, tables_of
from mstrain.study.spec import Spec, read_spec
from mstrain.study.study import run_study

SPEC = Path(__file__).with_name("policies.toml")
LEAST_OBJECTS = 200
# Prepares the data sets of a seed: (folder of all seeds, seed).
Prepare = Callable[[Path, int], None]


def size_of_study(settings: Settings, quick: int, full: int) -> int:
    """Number of objects to train and measure on.

    Args:
        settings: what was typed.
        quick: objects of a quick run.
        full: objects of a full run.

    Raises:
        UsageError: there would be too few.
    """
    num = settings.mock or (quick if settings.quick else full)
    if num < LEAST_OBJECTS:
        raise UsageError(
            f"--mock must be at least {LEAST_OBJECTS}, got {num}: a network learns nothing from "
            "so few"
        )
    return num


def stamps_in(
    folder: Path, names: Sequence[str], make: Callable[[int], Sequence[Stamps]], given: Path | None
) -> int:
    """Writes stamps as `NAME.npz`, unless it was done; returns how many there are of each.

    Args:
        folder: of the study.
        names: of the files.
        make: makes them by a number of processes.
        given: the data set that they are made of; None for mock objects.

    Raises:
        UsageError: there are too few.
    """
    paths = [folder / f"{name}.npz" for name in names]
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        print("  making stamps", flush=True)
        for path, stamps in zip(paths, make(_num_jobs()), strict=True):
            stamps.write(path)
    count = len(Stamps.read(paths[0]))
    if count < LEAST_OBJECTS:
        raise UsageError(
            f"{given} has {count} objects with redshift and E(B-V); a network learns nothing "
            f"from so few: give a data set of at least {LEAST_OBJECTS}"
        )
    return count


def _num_jobs() -> int:
    return len(os.sched_getaffinity(0))


def study(spec: Spec, folder: Path, prepare: Prepare) -> dict[str, Any]:
    """Runs a study by as many processes as there are cores; packs each seed's data before.

    Args:
        spec: what is trained; its data sets lie in `seed-N`.
        folder: gets data sets and results.
        prepare: packs a seed's data sets, unless it was done.

    Returns:
        What `mstrain study` writes.

    Raises:
        MsdataError: a training failed, or a process died.
    """
    jobs, data = _num_jobs(), folder / "data"
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
            list(pool.map(partial(prepare, data), range(spec.seeds)))
            train = partial(run_study, spec, data, folder / "study", has_report=False)
            futures = [pool.submit(train, part=f"{n}/{jobs}") for n in range(jobs)]
            for future in futures:
                future.result()
    except BrokenProcessPool as error:
        raise MsdataError(
            "a process that trained was killed; the same command resumes with what is missing"
        ) from error
    result = run_study(spec, data, folder / "study", is_quiet=True).result
    assert result is not None
    return result


def answer(settings: Settings) -> int:
    """Trains all arms and writes `policies.json`; returns the exit code 0."""
    num, spec = (
        size_of_study(settings, 600, 4000),
        read_spec(SPEC, seeds=2 if settings.quick else None),
    )
    folder = settings.work / f"policies-{num}{'' if settings.data is None else '-of-data'}"
    make = partial(made_of, settings.data, num)
    count = stamps_in(folder, ["stamps"], make, settings.data)
    result = study(spec, folder, partial(prepare_seed, folder / "stamps.npz", count // 100))
    cells = result.pop("cells")
    found = {"quick": settings.quick, "num_stamps": count, "study": result}
    # Differences, not ratios that a regression could be read from.
    write_shown("policies", {**found, "ratios": {}}, show(found), settings, raw={"cells": cells})
    return 0


def made_of(data: Path | None, num: int, jobs: int) -> list[Stamps]:
    """Stamps as `stamps_in` asks for them."""
    return [make_stamps(data, num, jobs)]


def prepare_seed(stamps: Path, num_shards: int, folder: Path, seed: int) -> None:
    """Packs a seed's data sets in random order and by redshift, unless it was done."""
    pack_both(Stamps.read(stamps), folder / f"seed-{seed}", seed=seed, num_shards=num_shards)


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


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of the study."""
    found = result["study"]
    return Shown(
        title=found["title"],
        sentences=sentences_of(found),
        tables=shown_tables(found),
        charts=[chart_of(found)],
    )
