"""Columns of an index that a training reads: the label, E(B-V), and weights made of the label.

It stands alone: loader, run and cache statistics ask for them, and know nothing of each other.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Dataset, Split
from msdata.errors import UsageError
from mstrain.config import TrainConfig
from mstrain.data.magnitudes import check_reddening
from mstrain.models.labels import label_columns
from mstrain.models.loss import draw_weights
from mstrain.models.target import Target


def index_columns(split: Split, config: TrainConfig, *, needs_label: bool) -> list[str]:
    """The columns of the index that the network needs, and the label where there is one.

    Raises:
        UsageError: the data set lacks one.
        DataError: E(B-V) is unknown or implausible for some samples.
    """
    columns = list(config.model.reddening)
    label = Target.of(config.model).column
    if needs_label or label in split.dataset.columns:
        columns.append(label)
    for name in columns:
        if name not in split.dataset.columns:
            cure = f"; or give {config.model.other_reddening}"
            if name == label:
                others = ", ".join(label_columns(split.dataset))
                cure = f"; or give model.target, one of {others}" if others else ""
            raise UsageError(
                f"{split.dataset.path} has no column {name!r}; pack it with a catalog that has "
                f"one{cure}"
            )
    check_reddening(split, config.model)
    return columns


def added_digests(data: Dataset, config: TrainConfig) -> dict[str, str]:
    """Identifies the values of the added columns that a training reads.

    The data set's fingerprint is of its index alone, and columns added beside it may be replaced.

    Returns:
        Sixteen hexadecimal digits by name of a column; empty where all are of the index.
    """
    added = {name for table in data.added for name in table.columns}
    splits = [data.split(name) for name in ("train", "val") if name in data.splits]
    target = Target.of(config.model)
    found: dict[str, str] = {}
    for column in sorted(added & {target.column, *config.model.reddening}):
        digest = sha256()
        for split in splits:
            values = target.values(split) if column == target.column else split.numbers(column)
            digest.update(np.asarray(values, "<f8").tobytes())
        found[column] = digest.hexdigest()[:16]
    return found


def split_weights(split: Split, config: TrainConfig) -> NDArray[np.float64] | None:
    """Weights that the training loader draws with, float64 (samples,); None where it draws none."""
    if config.loss.weights_in != "sampler":
        return None
    target = Target.of(config.model)
    return draw_weights(target.values(split), config.loss, target.high, target.low)
