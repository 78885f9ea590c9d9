"""Which densities of a network are wanted: under which prior, recalibrated how; and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msdata.core.checksum import crc32c_of_parts
from msdata.dataset.dataset import Dataset, Split
from msdata.errors import DataError, MsdataError, UsageError
from mstrain.evaluation.calibration import (
    CALIBRATIONS,
    NONE,
    Calibration,
    FittedOn,
    calibrated,
    calibration_path,
    check_fitted_on,
    find_calibration,
    read_calibration,
)
from mstrain.evaluation.metrics.densities import Densities, Floats
from mstrain.evaluation.metrics.scores import POINT_ESTIMATES, SPREADS, point_estimates
from mstrain.evaluation.run_info import TrainedRun
from mstrain.models.model_file import opened_run
from mstrain.models.prior import TargetPrior
from mstrain.models.target import REDSHIFT_TARGET, Target
from mstrain.training.checkpoint import checkpoint_sha256

CUTOUT = "cutout."
# Radius of the disc whose mean stands for an object's brightness, in sides of the image.
_RADIUS = 1 / 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """Densities of a network.

    Attributes:
        prior: the prior that they are under.
        calibration: what recalibrates them; None for nothing.
    """

    prior: TargetPrior
    calibration: Calibration | None = None

    @property
    def calibration_name(self) -> str:
        """One of `CALIBRATIONS`."""
        return NONE if self.calibration is None else self.calibration.name

    def apply(
        self, densities: Densities, features: Mapping[str, Floats]
    ) -> NDArray[np.float32] | None:
        """Recalibrated densities, float32 (N, K); None where there is nothing to do.

        Args:
            densities: of N objects under the prior.
            features: float64 (N,) by name, from `Features.of`.
        """
        if self.calibration is None:
            return None
        columns = [features[name] for name in self.calibration.features]
        shape = (len(densities), 0)
        return calibrated(
            densities, self.calibration, np.stack(columns, 1) if columns else np.zeros(shape)
        )


class Features:
    """Features of a split's objects, for calibrations.

    Args:
        split: whose index.
        variants: those that need them.
        target: what the network tells; its name is in those of the estimates.
    """

    def __init__(
        self, split: Split, variants: Sequence[Variant], target: Target = REDSHIFT_TARGET
    ) -> None:
        found = [v.calibration for v in variants if v.calibration is not None]
        names = [name for calibration in found for name in calibration.features]
        self._names = list(dict.fromkeys(names))
        self._target = target
        self._columns = {n: split.numbers(n) for n in self._names if is_index_column(n, target)}
        self._rows: dict[str, int] = {}
        if self._columns:
            ids = split.table(["sample_id"])["sample_id"].to_pylist()
            self._rows = {sample_id: row for row, sample_id in enumerate(ids)}

    def of(self, batch: Any, densities: Densities) -> dict[str, Floats]:
        """Features of a batch, float64 (N,) by name.

        Args:
            batch: a `TensorBatch`.
            densities: of its objects under the prior, not recalibrated.
        """
        if not self._names:
            return {}
        rows = [self._rows[str(i)] for i in batch.sample_id] if self._columns else []
        found = {name: values[rows] for name, values in self._columns.items()}
        estimates = {self._target.public(n): v for n, v in point_estimates(densities).items()}
        return found | brightness(batch.images) | estimates


def is_index_column(feature: str, target: Target = REDSHIFT_TARGET) -> bool:
    """Whether a feature is a column of the index, and neither a brightness nor an estimate."""
    estimates = map(target.public, (*POINT_ESTIMATES, *SPREADS))
    return not feature.startswith(CUTOUT) and feature not in estimates


def brightness(images: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Mean of the central disc of each channel, as the network sees it.

    Args:
        images: (N, C, H, W) by name.

    Returns:
        float64 (N,), by "cutout.IMAGE.CHANNEL"; it falls with the magnitude, and differences of
        two channels do with the color.
    """
    found: dict[str, Floats] = {}
    for name, image_NCHW in images.items():
        height, width = image_NCHW.shape[-2:]
        y_H = torch.arange(height) - (height - 1) / 2
        x_W = torch.arange(width) - (width - 1) / 2
        radius = max(1.0, _RADIUS * min(height, width))
        is_center = (y_H[:, None] ** 2 + x_W**2 <= radius**2).to(image_NCHW.device)
        mean_NC = image_NCHW[:, :, is_center].double().mean(dim=2).cpu().numpy()
        found |= {f"{CUTOUT}{name}.{c}": mean_NC[:, c] for c in range(mean_NC.shape[1])}
    return found


def fitted_on(
    run: TrainedRun, prior: TargetPrior, split: Split | None = None, num_samples: int = 0
) -> FittedOn:
    """What densities are of: a checkpoint under a prior, and the split they were made for."""
    factor = np.zeros(0) if prior.log_factor is None else prior.log_factor.cpu().numpy()
    return FittedOn(
        checkpoint_sha256=checkpoint_sha256(run.path, run.which),
        checkpoint=run.which,
        step=run.step,
        prior=prior.name,
        prior_digest=f"{crc32c_of_parts([np.ascontiguousarray(factor).view(np.uint8)]):08x}",
        data="" if split is None else str(split.dataset.path),
        fingerprint="" if split is None else split.dataset.manifest.fingerprint,
        split="" if split is None else split.name,
        num_samples=num_samples,
    )


def find_calibrations(
    run: TrainedRun, data: Dataset, prior: TargetPrior, asked: str, *, has_others: bool = True
) -> tuple[list[Variant], list[str]]:
    """The densities that were asked for, and the run's other calibrations.

    Args:
        run: see `open_run`.
        data: whose index has the features.
        prior: the prior that was asked for.
        asked: one of `CALIBRATIONS`.
        has_others: also the other calibrations that fit, and plain densities beside them.

    Returns:
        Variants, the one that was asked for first; and notes on calibrations that do not fit, or
        were fitted on a split of these data.

    Raises:
        UsageError: the run has no such calibration, it is of another checkpoint or prior, or the
            data lack a feature.
        DataError: its file is damaged.
    """
    if asked not in CALIBRATIONS:
        raise UsageError(f"--calibration must be one of {', '.join(CALIBRATIONS)}, got {asked!r}")
    if asked != NONE and run.target.classes:
        raise UsageError(
            f"--calibration must be none for classes of {run.target.column}, got {asked}; "
            "calibrations are of densities"
        )
    names = [name for name in CALIBRATIONS if name != NONE and not run.target.classes]
    wanted = [n for n in names if n == asked or has_others]
    variants, notes = {NONE: Variant(prior=prior)}, []
    opened = opened_run(run.path) if wanted else run.path
    now = None
    for name in wanted:
        try:
            read = read_calibration if name == asked else find_calibration
            if (found := read(run.path, name, opened)) is None:
                continue
            (calibration, fitted), now = found, now or fitted_on(run, prior)
            check_fitted_on(calibration_path(run.path, name), fitted, now)
            _check_features(calibration, data, run.target, calibration_path(run.path, name))
        except MsdataError as error:
            if name == asked:
                raise
            notes.append(f"The {name} calibration is left out: {error}")
            continue
        variants[name] = Variant(prior=prior, calibration=calibration)
        if fitted.fingerprint == data.manifest.fingerprint:
            notes.append(
                f"The {name} calibration was fitted on {fitted.num_samples:,} objects of split "
                f"{fitted.split!r} of these data; on that split its numbers flatter it."
            )
    others = [v for name, v in variants.items() if name != asked]
    return [variants[asked], *(others if has_others else [])], notes


def _check_features(calibration: Calibration, data: Dataset, target: Target, path: Any) -> None:
    wanted = [n for n in calibration.features if is_index_column(n, target)]
    lacking = [n for n in wanted if n not in data.columns]
    if lacking:
        raise UsageError(
            f"{path} needs the columns {', '.join(lacking)}, which {data.path} does not have; add "
            "them with 'msdata index add'"
        )


def check_cutouts(variants: Sequence[Variant], images: Mapping[str, Tensor]) -> None:
    """Raises DataError where a calibration needs channels that the images do not have."""
    have = {f"{CUTOUT}{name}.{c}" for name, image in images.items() for c in range(image.shape[1])}
    for variant in variants:
        needs = () if variant.calibration is None else variant.calibration.features
        if lacking := [n for n in needs if n.startswith(CUTOUT) and n not in have]:
            raise DataError(f"the calibration needs {lacking[0]!r}; run 'mstrain calibrate' again")
