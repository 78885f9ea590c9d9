"""Fits a network's calibrations on a validation split, on all ranks, into its run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from msdata.core.output_file import check_output
from msdata.errors import DataError, UsageError
from mstrain.calibration.fit import check_installed, fit_global, fit_local
from mstrain.checks import check_batch_size
from mstrain.data.pixels import check_pixels
from mstrain.distributed import Ranks
from mstrain.evaluation.bin_by import MAGNITUDE, find_columns
from mstrain.evaluation.calibration import (
    GLOBAL,
    LOCAL,
    MARK,
    GlobalMap,
    LocalMap,
    calibration_path,
    write_calibration,
)
from mstrain.evaluation.inference import (
    DEFAULT_BATCH,
    check_columns,
    predict_to,
)
from mstrain.evaluation.list_table import as_floats
from mstrain.evaluation.metrics.scores import as_of_redshift
from mstrain.evaluation.metrics.summary import check_scipy, uniformity
from mstrain.evaluation.predictions import read_predictions
from mstrain.evaluation.run_info import TrainedRun, check_data, find_prior, open_run
from mstrain.evaluation.variants import CUTOUT, Variant, fitted_on, is_index_column
from mstrain.models.model_file import is_model_file
from mstrain.models.prior import NATURAL, TargetPrior

CUTOUTS = "cutouts"


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What is fitted, and how.

    Attributes:
        split: name of the split.
        checkpoint: "best" or "last".
        prior: "natural", "as-trained", or a CSV file.
        by: features of the local calibration: "cutouts" (brightness of each channel), columns of
            numbers of the index, point estimates or spreads.
        has_local: also fit the local calibration.
        has_any_pixels: take pixels of another kind than the training's.
        batch_size: samples per rank at a time.
        seed: seed of the objects that say when the local fit stops.
        is_quiet: show no progress.
    """

    split: str = "val"
    checkpoint: str = "best"
    prior: str = NATURAL
    by: tuple[str, ...] = (CUTOUTS,)
    has_local: bool = True
    has_any_pixels: bool = False
    batch_size: int = DEFAULT_BATCH
    seed: int = 0
    is_quiet: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        if self.split == "train":
            raise UsageError(
                "--split must not be train: densities of samples that a network learned from are "
                "narrower than others; give val"
            )
        if self.has_local and not self.by:
            raise UsageError("--by must name a feature, such as cutouts, or give --only-global")


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What came of a fit.

    Attributes:
        num_samples: objects with a known redshift.
        pit_ks: Kolmogorov-Smirnov statistic of the PITs of these objects by calibration, "none"
            among them; after a fit it flatters.
        features: features of the local calibration.
        files: files by calibration.
    """

    num_samples: int
    pit_ks: dict[str, float]
    features: tuple[str, ...]
    files: dict[str, Path]

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {**vars(self), "files": {name: str(path) for name, path in self.files.items()}}


def calibrate_on_ranks(
    run: Path, data: Path, config: CalibrationConfig, ranks: Ranks
) -> Calibrated | None:
    """Fits the calibrations of a run; all ranks call it.

    Args:
        run: the run's folder.
        data: the data set's folder.
        config: what and how.
        ranks: this rank among the others.

    Returns:
        The result on the first rank, None on the others.

    Raises:
        UsageError: the run, the data or the options do not go together.
        DataError: something is damaged, or too few samples have a redshift.
        StorageError: the file system refused.
    """
    differences = ranks.on_first(lambda: _check(run, data, config))
    trained, split = open_run(run, config.checkpoint), msdata.open(data).split(config.split)
    prior = find_prior(trained, config.prior)
    # Apart from an evaluation's own table, and only for as long as it takes.
    table = run / f".calibration-{split.name}.parquet"
    try:
        predict_to(
            table,
            trained,
            [split],
            ranks,
            variants=[Variant(prior=prior)],
            columns=[n for n in _named(config) if is_index_column(n, trained.target)],
            pixel_differences=differences or (),
            batch_size=config.batch_size,
            has_brightness=True,
            is_quiet=config.is_quiet,
        )
        return ranks.on_first(lambda: _fit(table, trained, prior, split, config))
    finally:
        if ranks.is_first:
            with suppress(OSError):
                table.unlink(missing_ok=True)


def _named(config: CalibrationConfig) -> list[str]:
    """Features that are named, without the cutouts."""
    return [name for name in config.by if name != CUTOUTS] if config.has_local else []


def _check(run: Path, data: Path, config: CalibrationConfig) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    if is_model_file(run):
        raise UsageError(f"RUN must be the folder of a training, got the file {run}")
    check_scipy()
    if config.has_local:
        check_installed()
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    target = trained.target
    if target.classes:
        raise UsageError(
            f"cannot calibrate {run}: its network tells classes of {target.column}, and "
            "calibrations are of densities; give the run of a network of numbers"
        )
    check_data(trained, opened, [config.split])
    find_prior(trained, config.prior)
    split = opened.split(config.split)
    if MAGNITUDE in _named(config) and MAGNITUDE not in opened.columns:
        raise UsageError("--by must name the magnitude's own column, got 'magnitude'")
    find_columns(split, _named(config), None, "", option="--by", target=target)
    names = [name for name in _named(config) if is_index_column(name, target)]
    for name in names:
        split.numbers(name)
    check_columns(names, target)
    has_labels = target.column in opened.columns
    if not has_labels or not np.isfinite(target.values(split)).any():
        raise DataError(f"no sample of split {split.name!r} of {data} has a {target.noun}")
    for name in (GLOBAL, *((LOCAL,) if config.has_local else ())):
        check_output(calibration_path(run, name), MARK)
    return check_pixels(trained, opened, [config.split], is_told=config.has_any_pixels)


def _fit(
    table: Path,
    trained: TrainedRun,
    prior: TargetPrior,
    split: msdata.Split,
    config: CalibrationConfig,
) -> Calibrated:
    """Fits from a finished table, and writes the maps."""
    columns = as_of_redshift(read_predictions(table).columns, trained.target)
    is_known_N = np.isfinite(np.asarray(columns["redshift"], np.float64))
    pit_N = np.asarray(columns["pit"], np.float64)[is_known_N]
    maps: list[GlobalMap | LocalMap] = [fit_global(pit_N)]
    names: list[str] = []
    if config.has_local:
        for name in config.by:
            cutouts = [n for n in columns if n.startswith(CUTOUT)]
            names += cutouts if name == CUTOUTS else [name]
        feature_NV = np.stack([as_floats(columns[n])[is_known_N] for n in names], axis=1)
        assert isinstance(maps[0], GlobalMap)
        maps.append(fit_local(pit_N, feature_NV, names, maps[0], config.seed))
    else:
        feature_NV = np.zeros((len(pit_N), 0))
    origin = fitted_on(trained, prior, split, len(pit_N))
    files = {made.name: write_calibration(trained.path, made, origin) for made in maps}
    pits = {"none": pit_N} | {
        made.name: made.levels(pit_N[:, None], feature_NV)[:, 0] for made in maps
    }
    return Calibrated(
        num_samples=len(pit_N),
        pit_ks={name: uniformity(values)[0] for name, values in pits.items()},
        features=tuple(names),
        files=files,
    )
