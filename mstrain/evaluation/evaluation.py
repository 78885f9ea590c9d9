"""Evaluation of a trained network on all ranks: predictions, metrics, report."""

from __future__ import annotations

from pathlib import Path

import msdata
from msdata.core.output_file import check_output, make_folder
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.data.columns import find_magnitude
from mstrain.data.pixels import check_pixels
from mstrain.distributed import Ranks
from mstrain.evaluation.bin_by import MAGNITUDE, computed_columns, find_columns
from mstrain.evaluation.calibration import NONE
from mstrain.evaluation.conclude import conclude
from mstrain.evaluation.inference import check_columns, predict_to
from mstrain.evaluation.metrics.summary import check_scipy
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.predictions import read_predictions
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.results import Evaluation, EvaluationConfig
from mstrain.evaluation.run_info import (
    TrainedRun,
    check_data,
    check_labels,
    find_prior,
    open_run,
)
from mstrain.evaluation.variants import Variant, find_calibrations
from mstrain.models.prior import AS_TRAINED, NATURAL
from mstrain.models.target import Target


def evaluate_on_ranks(
    run: Path, data: Path, out: Path, config: EvaluationConfig, ranks: Ranks
) -> Evaluation | None:
    """Evaluates a run on a split; all ranks call it.

    Args:
        run: the run's folder.
        data: the data set's folder.
        out: the folder of the results; made if it is not there.
        config: what and how.
        ranks: this rank among the others.

    Returns:
        The result on the first rank, None on the others.

    Raises:
        UsageError: the run, the data or the options do not go together.
        DataError: something is damaged, or the network gives no densities.
        StorageError: the file system refused.
    """
    differences = ranks.on_first(lambda: _check(run, data, out, config))
    trained, split = open_run(run, config.checkpoint), msdata.open(data).split(config.split)
    target = trained.target
    table = out / f"predictions-{split.name}.parquet"
    variants, notes = _variants(trained, split.dataset, config)
    others = predict_to(
        table,
        trained,
        [split],
        ranks,
        variants=variants,
        columns=_index_columns(split, config, target),
        pixel_differences=differences or (),
        batch_size=config.batch_size,
        is_quiet=config.is_quiet,
    )
    return ranks.on_first(
        lambda: conclude(
            read_predictions(table),
            list(zip(variants[1:], others, strict=True)),
            trained,
            split,
            config,
            notes,
        )
    )


def _variants(
    trained: TrainedRun, data: msdata.Dataset, config: EvaluationConfig
) -> tuple[list[Variant], list[str]]:
    """The densities that were asked for, then what stands beside them; and notes.

    Beside them stand the network's own prior and the natural one where they differ, and the run's
    other calibrations; each is of one prior, so beside one stands no other prior.

    Raises:
        UsageError: see `find_prior` and `find_calibrations`.
    """
    names = []
    if config.calibration != NONE:
        pass
    elif trained.config.loss.weighting != "none":
        names = [AS_TRAINED, NATURAL]
    elif config.prior not in (NATURAL, AS_TRAINED):
        names = [NATURAL]
    prior = find_prior(trained, config.prior)
    found, notes = find_calibrations(trained, data, prior, config.calibration)
    others = [find_prior(trained, name) for name in names if name != config.prior]
    return [found[0], *(Variant(prior=p) for p in others), *found[1:]], notes


def _check(run: Path, data: Path, out: Path, config: EvaluationConfig) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    check_scipy()
    if config.has_report:
        check_installed()
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    check_data(trained, opened, [config.split])
    _check_options(trained, config)
    _variants(trained, opened, config)
    for name, mark in result_marks(config).items():
        check_output(out / name, mark)
    split = opened.split(config.split)
    check_columns(_index_columns(split, config, trained.target), trained.target)
    check_labels(trained, split)
    differences = check_pixels(trained, opened, [config.split], is_told=config.has_any_pixels)
    make_folder(out)
    return differences


def _check_options(trained: TrainedRun, config: EvaluationConfig) -> None:
    """Refuses options that say nothing of what the network tells."""
    target = trained.target
    given: dict[str, object] = {}
    if not target.is_redshift:
        given["--redshift-edges"] = config.redshift_edges
    if target.classes:
        given["--calibration"] = config.calibration if config.calibration != NONE else ""
        if MAGNITUDE not in config.bin_by:
            given["--magnitude-edges"] = config.magnitude_edges
            given["--magnitude-column"] = config.magnitude_column
    for option, value in given.items():
        if value:
            kind = "classes of " if target.classes else ""
            raise UsageError(
                f"{option} must be left out: the network of {trained.path} tells {kind}"
                f"{target.column}, {'no density' if target.classes else 'no redshift'}"
            )


def _index_columns(split: Split, config: EvaluationConfig, target: Target) -> list[str]:
    """Columns of the index that the table takes over.

    Raises:
        UsageError: the magnitude, or a column to bin by, is not there.
    """
    if target.classes and not config.bin_by:
        return []
    magnitude, why_not = find_magnitude(split, config.magnitude_column)
    found = find_columns(split, config.bin_by, magnitude, why_not, target=target).values()
    names = [] if magnitude is None or target.classes else [magnitude]
    return list(dict.fromkeys([*names, *(n for n in found if n not in computed_columns(target))]))


def result_marks(config: EvaluationConfig) -> dict[str, bytes]:
    """What tells the files of an evaluation from others, by name."""
    marks = {f"predictions-{config.split}.parquet": PREDICTIONS_MARK}
    marks[f"evaluation-{config.split}.json"] = b'"origin": {'
    return {**marks, "report.html": PAGE_MARK} if config.has_report else marks
