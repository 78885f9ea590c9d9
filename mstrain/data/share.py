"""The samples that a training learns from: all of split "train", or a part, or with wrong labels.

Which ones is a function of the run's seed and the data alone: the same on any number of ranks, and
a smaller share is a part of a larger one. It stands alone: run and study ask for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from msdata.plan.random_words import uniform_permutation
from mstrain.config import TrainConfig
from mstrain.data.left_out import left_out
from mstrain.data.part import part_of

# Streams of random numbers of one seed; the plan's orders have 0 to 2.
_SHARE, _NOISE = 3, 4


def training_split(data: msdata.Dataset, config: TrainConfig) -> Split:
    """Split "train" as the settings ask for it, see `data.fraction` and `data.label_noise`.

    What `data.fold` and `data.without` leave out is taken from the share, which stays the same.

    Raises:
        UsageError: it has no samples, or fewer than two labels to exchange.
    """
    if "train" not in data.splits or not len(data.split("train")):
        raise UsageError(
            f"{data.path} has no samples in split 'train'; pack it with --split 0.7,0.1,0.2"
        )
    split = data.split("train")
    share, noise = config.data.fraction, config.data.label_noise
    is_left_out = left_out(split, config.data).mask
    if share == 1 and not noise and not is_left_out.any():
        return split
    order = uniform_permutation(len(split), seed=config.seed, epoch=0, stream=_SHARE)
    rows = np.sort(order[: max(1, round(share * len(split)))])
    rows = rows[~is_left_out[rows]]
    if not len(rows):
        raise UsageError(
            f"data.fraction={share:g} of {len(split):,} samples has none that is not left out; "
            "give a larger share, or a shorter --without"
        )
    if not noise:
        return part_of(split, rows)
    column = config.model.target
    split.check_columns([column])
    return part_of(split, rows, {column: _exchanged(split, rows, config)})


def _exchanged(split: Split, rows: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int64]:
    """For each row the row whose label it gets: the chosen ones hand theirs on in a circle."""
    import pyarrow.compute as pc

    labels: Any = split.table([config.model.target]).column(0)
    is_known = ~np.asarray(pc.is_null(labels, nan_is_null=True))
    drawn = uniform_permutation(len(split), seed=config.seed, epoch=0, stream=_NOISE)
    # In the order of the draw, so that labels of a smaller share of noise stay exchanged.
    known = drawn[is_known[drawn] & np.isin(drawn, rows)]
    chosen = known[: round(config.data.label_noise * len(known))]
    if len(chosen) < 2:
        raise UsageError(
            f"data.label_noise={config.data.label_noise:g} of {len(known)} labels are fewer than "
            "two, which cannot be exchanged; give a larger share, or 0"
        )
    found = rows.copy()
    found[np.searchsorted(rows, chosen)] = np.roll(chosen, 1)
    return found
