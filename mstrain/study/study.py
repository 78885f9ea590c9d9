"""A study from its specification to its page: cells are trained, then read together.

Work is divided by cells: `part` of an array job trains its share, and whoever calls without it
trains what is missing and reads all.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msdata.core.files import write_whole
from msdata.core.output_file import check_output, make_folder
from msdata.core.terminal import shown_line
from msdata.errors import UsageError
from msdata.fetch.targets import Slice
from msdata.topology import from_env
from mstrain.evaluation.metrics.summary import check_scipy
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.study.cells import Cell, Trainer, make_cells, read_cell, run_cell, train_cell
from mstrain.study.effects import WORSE, effects_of, fit_law, verdict_of
from mstrain.study.section import page_of
from mstrain.study.spec import Spec, configs_of, read_spec

FORMAT_VERSION = 1
_MARK = b'"study": {'
# A power law has two parameters: with fewer points nothing speaks against it.
_MIN_POINTS = 3


@dataclass(frozen=True, kw_only=True)
class Study:
    """What came of a study.

    Attributes:
        result: plain values, the content of `study.json`; None where cells are still missing.
        num_cells: cells of the study.
        num_missing: those without a result.
        json_path: the file; None likewise.
        report: the page; None likewise, or where none was asked for.
    """

    result: dict[str, Any] | None
    num_cells: int
    num_missing: int
    json_path: Path | None = None
    report: Path | None = None


def run_study(
    spec: Spec | Path | str,
    data: Path | str,
    out: Path | str,
    *,
    settings: Sequence[str] = (),
    seeds: int | None = None,
    part: str = "0/1",
    keeps_runs: bool = False,
    has_report: bool = True,
    is_quiet: bool = False,
    trainer: Trainer = train_cell,
) -> Study:
    """Trains every arm with every seed, and tells how the arms differ.

    `mstrain study SPEC DATA --out DIR` writes the same files.

        found = mstrain.study("early-late", "DATA", "STUDY", settings=["epochs=5"])
        found.result["arms"]["late"]["verdict"]

    Args:
        spec: a TOML file, the name of one that comes with mstrain, or a specification.
        data: folder of the data set, or of the data sets that the arms name.
        out: folder of the study; cells that are done are not trained again.
        settings: `key=value` for all arms, over the specification's.
        seeds: how many, in place of the specification's.
        part: "i/n" trains the i-th of n shares of the cells, from 0, and reads nothing.
        keeps_runs: keep the folders of the trainings.
        has_report: also write `study.html`.
        is_quiet: print no progress.
        trainer: what trains and measures a cell, see `mstrain.study.cells.train_cell`.

    Returns:
        Effects and verdicts as plain values, and the paths of the files.

    Raises:
        UsageError: the specification, the data or earlier cells do not go together.
        DataError: something is damaged.
        DivergedError: a loss is NaN or infinite.
        StorageError: the file system refused.
    """
    if not isinstance(spec, Spec):
        spec = read_spec(spec, settings, seeds)
    share, folder = Slice.parse(part), Path(out)
    _check_results(folder, has_report=has_report)
    cells = make_cells(spec, configs_of(spec, Path(data)), Path(data), folder)
    # Also says whether earlier cells fit, before hours of training.
    done = [read_cell(cell, spec) for cell in cells]
    mine = [
        cell
        for number, (cell, found) in enumerate(zip(cells, done, strict=True))
        if found is None and number % share.count == share.index
    ]
    make_folder(folder)
    for number, cell in enumerate(mine, 1):
        run_cell(cell, spec, trainer, keeps_run=keeps_runs)
        _say("" if is_quiet else f"{number} of {len(mine)}", cell, spec)
    return _read(folder, spec, cells, is_share=share.count > 1, has_report=has_report)


def _check_results(folder: Path, *, has_report: bool) -> None:
    topology = from_env()
    if topology.num_ranks > 1:
        raise UsageError(
            f"a study trains each cell by one process, got rank {topology.rank} of "
            f"{topology.num_ranks}; start processes of their own, each with --slice i/n"
        )
    check_scipy()
    if has_report:
        check_installed()
        check_output(folder / "study.html", PAGE_MARK)
    check_output(folder / "study.json", _MARK)


def _say(place: str, cell: Cell, spec: Spec) -> None:
    """Reads the cell, so that a metric that is not there is refused after the first training."""
    found = read_cell(cell, spec)
    assert found is not None
    told = ", ".join(f"{name} {found['metrics'][name]:.4f}" for name in spec.metrics)
    if place:
        print(shown_line(f"{place}: {cell.name}: {told}"), file=sys.stderr, flush=True)


def _read(
    folder: Path, spec: Spec, cells: Sequence[Cell], *, is_share: bool, has_report: bool
) -> Study:
    """Reads all cells and writes what they say, unless some are missing or it is another's task."""
    found = [f for f in (read_cell(cell, spec) for cell in cells) if f is not None]
    if is_share or len(found) < len(cells):
        return Study(result=None, num_cells=len(cells), num_missing=len(cells) - len(found))
    result = read_together(spec, found)
    path, page = folder / "study.json", folder / "study.html"
    content = {"format_version": FORMAT_VERSION, "study": result}
    write_whole(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    if has_report:
        write_whole(page, page_of(result).encode())
    return Study(
        result=result,
        num_cells=len(found),
        num_missing=0,
        json_path=path,
        report=page if has_report else None,
    )


def read_together(spec: Spec, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all cells say together.

    Args:
        spec: of the study.
        cells: `arm`, `seed`, `num_train`, `num_test` and `metrics` of each; every arm and seed.

    Returns:
        `arms` by name: `title`, `reference`, `is_control`, `num_train`, `mean` and `std` by metric,
        `effects` by metric and `verdict` (None for references); `control`, whether every arm that
        must be found was, None without one; `law`, see `fit_law`; `cells`; `spec`.

    Raises:
        UsageError: a cell is missing, or there twice.
    """
    counts = Counter((c["arm"], c["seed"]) for c in cells)
    wanted = {(arm.name, seed) for arm, seed in spec.cells}
    if set(counts) != wanted or max(counts.values()) > 1:
        raise UsageError("the cells must be every arm with every seed, once each")
    ordered = sorted(cells, key=lambda cell: int(cell["seed"]))
    by_arm = {a.name: [c for c in ordered if c["arm"] == a.name] for a in spec.arms}
    values = {
        name: {m: [float(c["metrics"][m]) for c in found] for m in spec.metrics}
        for name, found in by_arm.items()
    }
    references = {a.name: spec.reference_of(a) for a in spec.arms}
    effects = effects_of(
        values,
        {name: other for name, other in references.items() if other is not None},
        spec.metrics,
        spec.margin,
        [arm.name for arm in spec.arms if arm.control],
    )
    arms = {
        arm.name: {
            "title": arm.title or arm.name,
            "reference": references[arm.name],
            "is_control": arm.control,
            "num_train": float(np.mean([c["num_train"] for c in by_arm[arm.name]])),
            "num_test": float(np.mean([c["num_test"] for c in by_arm[arm.name]])),
            "mean": {m: float(np.mean(v)) for m, v in values[arm.name].items()},
            "std": {m: float(np.std(v, ddof=1)) for m, v in values[arm.name].items()},
            "effects": effects.get(arm.name),
            "verdict": verdict_of(effects[arm.name]) if arm.name in effects else None,
        }
        for arm in spec.arms
    }
    controls = [found["verdict"] == WORSE for found in arms.values() if found["is_control"]]
    return {
        "title": spec.title,
        "arms": arms,
        "control": all(controls) if controls else None,
        "law": _law(spec, by_arm, values),
        "cells": [dict(cell) for cell in ordered],
        "spec": spec.as_dict(),
    }


def _law(
    spec: Spec,
    by_arm: Mapping[str, Sequence[Mapping[str, Any]]],
    values: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, Any] | None:
    if not spec.law:
        return None
    names = [arm.name for arm in spec.arms if not arm.control]
    num_A = np.array([np.mean([c["num_train"] for c in by_arm[name]]) for name in names])
    if len(np.unique(num_A)) < _MIN_POINTS:
        raise UsageError(
            f"a law needs arms of at least {_MIN_POINTS} numbers of training samples, got "
            f"{len(np.unique(num_A))}; give them data.fraction, or leave law out"
        )
    return {
        metric: fit_law(num_A, np.array([values[name][metric] for name in names]).T)
        for metric in spec.metrics
        if all(min(values[name][metric]) > 0 for name in names)
    } | {"arms": names}
