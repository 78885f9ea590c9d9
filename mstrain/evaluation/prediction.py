"""Prediction: the table of a trained network's answers for samples that need no labels.

Compare `evaluation`, which holds the same table against the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msdata
from msdata.core.output_file import check_output, make_folder
from msdata.dataset.hdf5 import import_h5py
from msdata.errors import UsageError
from mstrain.checks import check_batch_size
from mstrain.data.pixels import check_pixels
from mstrain.distributed import Ranks
from mstrain.evaluation.calibration import NONE
from mstrain.evaluation.inference import (
    DEFAULT_BATCH,
    Further,
    check_columns,
    predict_to,
)
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.qp_file import SUFFIX as QP_SUFFIX
from mstrain.evaluation.run_info import TrainedRun, check_data, find_prior, open_run
from mstrain.evaluation.variants import Variant, find_calibrations
from mstrain.models.prior import NATURAL


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """What is predicted, and how.

    Attributes:
        split: name of the split; None takes all that have samples, in order.
        columns: columns of the index to copy.
        checkpoint: "best" or "last".
        prior: "natural", "as-trained", or a CSV file, see `mstrain.models.prior.target_prior`.
        calibration: "none", "global" or "local", see `mstrain calibrate`.
        has_flags: also tell how odd each object is, where the run has a fit of it.
        has_any_pixels: take pixels of another kind than the training's.
        batch_size: samples per rank at a time.
        data_name: what the table's metadata call the data; None means the data set's folder.
        is_quiet: show no progress.
    """

    split: str | None = None
    columns: tuple[str, ...] = ()
    checkpoint: str = "best"
    prior: str = NATURAL
    calibration: str = NONE
    has_flags: bool = True
    has_any_pixels: bool = False
    batch_size: int = DEFAULT_BATCH
    data_name: str | None = None
    is_quiet: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)


def predict_on_ranks(
    run: Path,
    data: Path,
    out: Path,
    config: PredictionConfig,
    ranks: Ranks,
    further: Further | None = None,
) -> int:
    """Writes a table of predictions; all ranks call it.

    Args:
        run: the run's folder.
        data: the data set's folder.
        out: the table's file.
        config: what and how.
        ranks: this rank among the others.
        further: gives more columns of the table.

    Returns:
        Samples predicted.

    Raises:
        UsageError: the run, the data or the options do not go together.
        DataError: something is damaged, or the network gives no densities.
        StorageError: the file system refused.
    """
    differences = ranks.on_first(lambda: _check_prediction(run, data, out, config))
    opened, trained = msdata.open(data), open_run(run, config.checkpoint)
    splits = [opened.split(name) for name in splits_of(opened, config.split)]
    predict_to(
        out,
        trained,
        splits,
        ranks,
        variants=_variants(trained, opened, config),
        columns=config.columns,
        pixel_differences=differences or (),
        data_name=config.data_name,
        batch_size=config.batch_size,
        further=further,
        is_quiet=config.is_quiet,
    )
    return sum(map(len, splits))


def check_suffix(path: Path) -> None:
    """Raises UsageError unless a table's name says in which form it is to be written."""
    if path.suffix not in (".parquet", QP_SUFFIX):
        raise UsageError(f"the table's name must end in .parquet or {QP_SUFFIX}, got {path}")
    if path.suffix == QP_SUFFIX:
        import_h5py()


def _variants(trained: TrainedRun, data: msdata.Dataset, config: PredictionConfig) -> list[Variant]:
    prior = find_prior(trained, config.prior)
    return find_calibrations(trained, data, prior, config.calibration, has_others=False)[0]


def _check_prediction(run: Path, data: Path, out: Path, config: PredictionConfig) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    check_suffix(out)
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    if trained.target.classes and out.suffix == QP_SUFFIX:
        raise UsageError(
            f"{out} would be a table of densities, which classes of {trained.target.column} do not "
            "have; give a name that ends in .parquet"
        )
    splits = splits_of(opened, config.split)
    check_data(trained, opened, splits)
    check_output(out, PREDICTIONS_MARK)
    _variants(trained, opened, config)
    unknown = [name for name in config.columns if name not in opened.columns]
    if unknown:
        raise UsageError(
            f"{data} has no column {', '.join(unknown)}; it has {', '.join(opened.columns)}"
        )
    check_columns(config.columns, trained.target)
    differences = check_pixels(trained, opened, splits, is_told=config.has_any_pixels)
    make_folder(out.absolute().parent)
    return differences


def splits_of(data: msdata.Dataset, asked: str | None) -> list[str]:
    """The split that was asked for, or all that have samples."""
    if asked is not None:
        return [asked]
    return [name for name in data.splits if len(data.split(name))]
