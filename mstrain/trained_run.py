"""What a run says of itself, and whether data fit it, before its network is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import msdata
from msdata.checked_json import Count, JsonValue
from msdata.errors import DataError, UsageError
from msdata.schema import Schema
from mstrain.checkpoint import checkpoint_path, read_checkpoint, read_config
from mstrain.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What is known of a run without loading its network.

    Attributes:
        path: its folder.
        config: of the training.
        which: the checkpoint, "best" or "last".
        step: optimiser steps before the checkpoint.
        epochs: epochs trained before it.
        data: the data set it was trained on, as it was called then.
        fingerprint: of that data set.
        schema: of that data set.
    """

    path: Path
    config: TrainConfig
    which: str
    step: int
    epochs: int
    data: str
    fingerprint: str
    schema: Schema


def open_run(path: Path, which: str) -> TrainedRun:
    """Reads what a run says of itself.

    Args:
        path: its folder.
        which: "best" by validation loss, or "last".

    Raises:
        UsageError: the folder is no run's, or it has no such checkpoint.
        DataError: it is damaged.
    """
    saved = read_config(path)
    file = checkpoint_path(path, which)
    content = read_checkpoint(file)
    fields = JsonValue(content, file, "evaluate with the version of mstrain that trained")
    return TrainedRun(
        path=path,
        config=TrainConfig.from_dict(fields["config"].value),
        which=which,
        step=fields["progress"]["step"].read_as(Count),
        epochs=fields["progress"]["trained"].read_as(Count),
        data=saved["data"],
        fingerprint=fields["fingerprint"].read_as(str),
        schema=Schema.from_json(saved["schema"]),
    )


def check_data(run: TrainedRun, data: msdata.Dataset, splits: Sequence[str]) -> None:
    """Refuses data that the network was not made for.

    Raises:
        UsageError: a split is absent or empty, the arrays are others, or a column is missing.
        DataError: E(B-V) is unknown for some samples.
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
    column = run.config.model.ebv_column
    if column is None:
        return
    if column not in data.columns:
        raise UsageError(
            f"{data.path} has no column {column!r}, which the network of {run.path} needs; pack "
            "it with a catalogue that has one"
        )
    for name in splits:
        num_unknown = int((~np.isfinite(data.split(name).numbers(column))).sum())
        if num_unknown:
            raise DataError(
                f"{num_unknown:,} samples of split {name!r} of {data.path} have no {column}, which "
                f"the network of {run.path} needs; mend the catalogue and pack again"
            )


def schema_difference(ours: Schema, theirs: Schema, surveys: Sequence[str] | None) -> str:
    """What makes a network trained on one schema useless for another; empty where nothing does.

    Args:
        ours: of the training.
        theirs: of other data.
        surveys: arrays that the network takes; None for all.
    """
    for name in ours.names if surveys is None else surveys:
        if name not in theirs.names:
            return f"the run was trained with the array {name!r}, the data have none"
        trained, found = ours[name], theirs[name]
        for field in ("shape", "bands", "pixel_scale_arcsec", "unit"):
            was, now = getattr(trained, field), getattr(found, field)
            if was != now:
                return f"{field} of {name!r} was {was} in training, in the data it is {now}"
    more = [name for name in theirs.names if name not in ours.names]
    if surveys is None and more:
        return f"the data have the array {more[0]!r}, which the run was trained without"
    return ""
