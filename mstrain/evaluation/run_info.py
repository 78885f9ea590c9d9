"""What a run says of itself, and whether data fit it, before its network is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import msdata
from msdata.core.checked_json import Count, JsonValue
from msdata.dataset.dataset import Split
from msdata.errors import DataError, MsdataError, UsageError
from msdata.schema import Schema
from mstrain.config import TrainConfig
from mstrain.data.columns import check_reddening
from mstrain.models.prior import (
    AS_TRAINED,
    NATURAL,
    TargetPrior,
    TrainedPrior,
    measure_prior,
    target_prior,
)
from mstrain.models.target import Target
from mstrain.training.checkpoint import read_config, read_trained


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What is known of a run without loading its network.

    Attributes:
        path: its folder, or the model file.
        config: settings of the training.
        which: the checkpoint, "best" or "last".
        step: optimizer steps before the checkpoint.
        epochs: epochs trained before it.
        data: the data set it was trained on, as it was called then.
        fingerprint: fingerprint of that data set.
        schema: schema of that data set.
        prior: prior of the training; None where an earlier mstrain kept none, see `find_prior`.
    """

    path: Path
    config: TrainConfig
    which: str
    step: int
    epochs: int
    data: str
    fingerprint: str
    schema: Schema
    prior: TrainedPrior | None

    @property
    def target(self) -> Target:
        """What the network tells."""
        return Target.of(self.config.model)


def open_run(path: Path | str, which: str) -> TrainedRun:
    """Reads what a run says of itself.

    Args:
        path: its folder, or a model file.
        which: "best" by validation loss, or "last".

    Raises:
        UsageError: the folder is not a run, or lacks the checkpoint.
        DataError: it is damaged.
    """
    path = Path(path)
    saved = read_config(path)
    file, content = read_trained(path, which)
    fields = JsonValue(content, file, "evaluate with the version of mstrain that trained")
    config, prior = TrainConfig.from_dict(fields["config"].value), content.get("prior")
    return TrainedRun(
        path=path,
        config=config,
        which=content["which"],
        step=fields["progress"]["step"].read_as(Count),
        epochs=fields["progress"]["trained"].read_as(Count),
        data=saved["data"],
        fingerprint=fields["fingerprint"].read_as(str),
        schema=Schema.from_json(saved["schema"]),
        prior=None if prior is None else TrainedPrior.from_state(prior, config.model),
    )


def find_prior(run: TrainedRun, asked: str) -> TargetPrior:
    """The prior that densities of a run are wanted under, see `mstrain.models.prior.target_prior`.

    For a run of an mstrain that kept no prior it is measured again on the data set of the training.

    Args:
        run: see `open_run`.
        asked: "natural", "as-trained", or a CSV file.

    Raises:
        UsageError: the file is not a prior, or the run kept none and its data set is missing.
        StorageError: the file system refused.
    """
    config, prior = run.config, run.prior
    if asked == AS_TRAINED or (asked == NATURAL and config.loss.weighting == "none"):
        return TargetPrior(name=asked, log_factor=None)
    if prior is None:
        try:
            data = msdata.open(run.data)
        except (MsdataError, OSError) as error:
            raise _prior_is_lost(run, str(error)) from error
        if data.manifest.fingerprint != run.fingerprint:
            raise _prior_is_lost(run, f"it is another one now, {data.manifest.fingerprint}")
        label = run.target.values(data.split("train"))
        prior = measure_prior(label, config.loss, config.model)
    return target_prior(asked, prior, config.model)


def _prior_is_lost(run: TrainedRun, reason: str) -> UsageError:
    return UsageError(
        f"cannot change the prior of {run.path}: it was trained by an mstrain that kept none, and "
        f"its data set {run.data} cannot be asked ({reason}); put the data set back, or take the "
        "densities as they are with --prior as-trained"
    )


def check_data(run: TrainedRun, data: msdata.Dataset, splits: Sequence[str]) -> None:
    """Refuses data that the network was not made for.

    Raises:
        UsageError: a split is absent or empty, the arrays are others, or a column is missing.
        DataError: E(B-V) is unknown or implausible for some samples.
    """
    for name in splits:
        if not len(data.split(name)):
            raise UsageError(
                f"split {name!r} of {data.path} has no samples; choose one of "
                f"{', '.join(s for s in data.splits if len(data.split(s)))}"
            )
    difference = schema_difference(run.schema, data.schema, run.config.augment.surveys)
    if difference:
        raise UsageError(
            f"{data.path} does not fit {run.path}: {difference}; pack the data as those of "
            f"{run.data}, or take a run that was trained on such data"
        )
    run.target.check_type(data.split(splits[0]))
    for column in run.config.model.reddening:
        if column not in data.columns:
            raise UsageError(
                f"{data.path} has no column {column!r}, which the network of {run.path} needs; "
                "pack it with a catalog that has one"
            )
    for name in splits:
        check_reddening(data.split(name), run.config.model)


def check_labels(run: TrainedRun, split: Split) -> None:
    """Raises DataError where a split has nothing that the network's answers can be held against."""
    target, path = run.target, split.dataset.path
    if target.column in split.dataset.columns:
        if np.isfinite(target.values(split)).any():
            return
        lacking = f"no sample of split {split.name!r} of {path} has a {target.known_at_all}"
    elif target.is_plain:
        lacking = f"no sample of split {split.name!r} of {path} has a redshift"
    else:
        lacking = f"{path} has no column {target.column!r}, which {run.path} learned to tell"
    raise DataError(f"{lacking}, so there is nothing to compare with; 'mstrain predict' needs none")


def schema_difference(ours: Schema, theirs: Schema, surveys: Sequence[str] | None) -> str:
    """What makes a network trained on one schema useless for another; empty where nothing does.

    Args:
        ours: schema of the training.
        theirs: schema of other data.
        surveys: arrays that the network takes; None for all.
    """
    for name in ours.names if surveys is None else surveys:
        if name not in theirs.names:
            return f"the run was trained with the array {name!r}, the data have none"
        trained, found = ours[name], theirs[name]
        for field in ("shape", "bands", "pixel_scale_arcsec"):
            was, now = getattr(trained, field), getattr(found, field)
            if was != now:
                return f"{field} of {name!r} was {was} in training, in the data it is {now}"
    more = [name for name in theirs.names if name not in ours.names]
    if surveys is None and more:
        return f"the data have the array {more[0]!r}, which the run was trained without"
    return ""
