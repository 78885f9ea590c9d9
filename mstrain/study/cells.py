"""The cells of a study: one training with one seed each, whose result is one small file.

A cell is taken up only by the same settings over the same data. A training that was killed resumes
from its last checkpoint, or is repeated where ranks are played; its cell is written once it is
measured, whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msdata
from msdata.core.checked_json import read_json
from msdata.core.files import write_whole
from msdata.core.output_file import check_output, make_folder
from msdata.errors import UsageError
from mstrain.config import TrainConfig
from mstrain.data.share import training_split
from mstrain.distributed import StopRequest, one_rank
from mstrain.evaluation.evaluation import evaluate_on_ranks
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.classes import ClassSummary
from mstrain.evaluation.metrics.summary import Summary
from mstrain.evaluation.results import EvaluationConfig
from mstrain.overrides import changed_settings
from mstrain.study.played import train_played
from mstrain.study.spec import METRICS, Arm, Spec, data_of
from mstrain.training.checkpoint import locked_run, versions
from mstrain.training.run import train_on_ranks

# Trains and measures: (settings, data, run's folder, study) -> objects measured, metrics by name.
Trainer = Callable[[TrainConfig, msdata.Dataset, Path, Spec], tuple[int, Mapping[str, float]]]
_FEWEST = BootstrapConfig(num_replicates=20)
_CURE = "remove the file to train this cell again"
_MARK = b'"study cell": '


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training and what came of it.

    Attributes:
        arm: its arm.
        seed: its seed.
        config: settings, with the seed.
        data: folder of its data set.
        file: its result.
        run: folder of the training.
    """

    arm: Arm
    seed: int
    config: TrainConfig
    data: Path
    file: Path
    run: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"seed {self.seed}, {self.arm.title or self.arm.name}"


def make_cells(spec: Spec, configs: Mapping[str, TrainConfig], data: Path, out: Path) -> list[Cell]:
    """All cells, seed by seed; what runs leave for TensorBoard is left out."""
    quiet = {n: replace(c, log=replace(c.log, tensorboard=False)) for n, c in configs.items()}
    return [
        Cell(
            arm=arm,
            seed=seed,
            config=replace(quiet[arm.name], seed=seed),
            data=data_of(arm, seed, data),
            file=out / "cells" / f"{arm.name}-seed-{seed}.json",
            run=out / "runs" / f"{arm.name}-seed-{seed}",
        )
        for arm, seed in spec.cells
    ]


def read_cell(cell: Cell, spec: Spec) -> dict[str, Any] | None:
    """What came of a cell; None where nothing did yet.

    Raises:
        UsageError: the file is of other settings or other data.
        DataError: the file is damaged.
    """
    try:
        found = read_json(cell.file, cure=_CURE)
    except FileNotFoundError:
        return None
    cure = f"give the former spec and data, or another --out than {cell.file.parents[1]}"
    before = TrainConfig.from_dict(found["config"].read_as(dict[str, Any]))
    for name, former, value in changed_settings(before, cell.config):
        raise UsageError(
            f"{cell.file} was trained with {name}={former}, the spec now says {value}; {cure}"
        )
    fingerprint = msdata.open(cell.data).manifest.fingerprint
    wanted = {"fingerprint": fingerprint, "split": spec.split, "ranks": spec.ranks}
    for name, value in wanted.items():
        if found[name].value != value:
            raise UsageError(
                f"{cell.file} is of {name} {found[name].value}, this study of {value}; {cure}"
            )
    metrics = {name: value.read_as(float) for name, value in found["metrics"].fields().items()}
    for metric in spec.metrics:
        if metric not in metrics:
            raise UsageError(
                f"metrics of {cell.name} must be of {', '.join(sorted(metrics))}, got {metric}"
            )
    return {
        "arm": cell.arm.name,
        "seed": cell.seed,
        "num_train": found["num_train"].read_as(int),
        "num_test": found["num_test"].read_as(int),
        "metrics": metrics,
    }


def run_cell(cell: Cell, spec: Spec, train: Trainer, *, keeps_run: bool) -> None:
    """Trains a cell, or what is left of it, measures it and writes its file.

    Raises:
        UsageError: settings and data do not go together, or another process trains the cell.
        DivergedError: the loss is NaN or infinite.
    """
    check_output(cell.file, _MARK)
    make_folder(cell.file.parent)
    data = msdata.open(cell.data)
    with locked_run(cell.run):
        if cell.file.exists():
            return
        num_test, metrics = train(cell.config, data, cell.run, spec)
        content = {
            "study cell": cell.name,
            "config": cell.config.as_dict(),
            "fingerprint": data.manifest.fingerprint,
            "split": spec.split,
            "ranks": spec.ranks,
            "num_train": len(training_split(data, cell.config)),
            "num_test": num_test,
            "metrics": dict(metrics),
            "versions": versions(),
        }
        write_whole(cell.file, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    if not keeps_run:
        shutil.rmtree(cell.run, ignore_errors=True)


def train_cell(
    config: TrainConfig, data: msdata.Dataset, run: Path, spec: Spec
) -> tuple[int, Mapping[str, float]]:
    """Trains by one process, an ordinary run or the ranks of a job, and evaluates what it left.

    Returns:
        How many objects were measured, and the metrics of `METRICS` that there are.
    """
    options = EvaluationConfig(split=spec.split, bootstrap=_FEWEST, has_report=False, is_quiet=True)
    with one_rank("study", config.compute.device, config.compute.threads) as ranks:
        if spec.ranks > 1:
            train_played(config, data, run, spec.ranks)
        else:
            train_on_ranks(run, config, data, ranks, StopRequest(), is_quiet=True)
        found = evaluate_on_ranks(run, data.path, run, options, ranks)
    assert found is not None
    return found.summary.num_samples, metrics_of_summary(found.summary)


def metrics_of_summary(summary: Summary | ClassSummary) -> dict[str, float]:
    """The metrics of an evaluation of which less is better, by name, see `METRICS`."""
    if isinstance(summary, ClassSummary):
        found = {name: e.value for name, e in summary.overall.items()}
        found["error_rate"] = 1 - found["accuracy"]
    else:
        point = next(iter(summary.points.values()))
        found = {name: e.value for name, e in {**summary.density, **point}.items()}
        found |= {"loss": -found["log_likelihood"], "bias": abs(found["bias"])}
        found["pit_ks"] = summary.pit_ks
    return {name: float(found[name]) for name in METRICS if name in found}
