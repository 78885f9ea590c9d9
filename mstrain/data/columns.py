"""Columns of an index: the label, E(B-V), weights made of the label, and a magnitude to bin by."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Dataset, Split
from msdata.errors import DataError, UsageError
from mstrain.config import TrainConfig
from mstrain.models.labels import label_columns
from mstrain.models.loss import draw_weights
from mstrain.models.target import Target
from mstrain.network_config import ModelConfig

# What catalogs call the r magnitude, in lower case; the first that is there is taken.
R_MAGNITUDES = (
    *("mag_r_ab", "mag_r", "r_mag", "rmag", "magnitude_r", "r_magnitude", "modelmag_r"),
    *("cmodelmag_r", "dered_r", "petromag_r", "rkronmag", "rmeankronmag", "psfmag_r"),
)
# Catalogs mark unknown magnitudes by impossible numbers, such as 99 or -999.
_SANE = (-5.0, 45.0)


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


def find_magnitude(split: Split, asked: str | None) -> tuple[str | None, str]:
    """The column to bin by magnitude.

    Args:
        split: whose index.
        asked: a column; None looks for an r magnitude.

    Returns:
        Its name and nothing, or None and the reason why there is none.

    Raises:
        UsageError: the column that was asked for is not there, or holds no numbers.
    """
    import pyarrow as pa

    columns = split.dataset.columns
    by_lower = {name.lower(): name for name in columns}
    name = asked or next((by_lower[n] for n in R_MAGNITUDES if n in by_lower), None)
    if name is None:
        return None, (
            f"the index has no column of an r magnitude (such as {', '.join(R_MAGNITUDES[:3])}), "
            "and the zero-point of Pan-STARRS pixels differs from object to object; name a column "
            "with --magnitude-column"
        )
    if name not in columns:
        raise UsageError(
            f"{split.dataset.path} has no column {name!r}; it has {', '.join(columns)}"
        )
    kind = split.column_type(name)
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    if is_number and len(sane_magnitudes(split.numbers(name))):
        return name, ""
    if asked:
        raise UsageError(f"column {name!r} of {split.dataset.path} holds no magnitudes ({kind})")
    return None, f"the column {name!r} holds no magnitudes"


def sane_magnitudes(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values that are magnitudes and no marks of unknown ones, float64."""
    low, high = _SANE
    return values_N[(values_N > low) & (values_N < high)]


def check_reddening(split: Split, config: ModelConfig) -> None:
    """Refuses E(B-V) that catalogs mark as unknown, such as NaN, -999 or -1.

    Raises:
        DataError: it is unknown, or outside of [ebv_min, ebv_max], for some samples.
    """
    for column in config.reddening:
        ebv_N = split.numbers(column)
        is_finite_N = np.isfinite(ebv_N)
        is_odd_N = is_finite_N & ~((ebv_N >= config.ebv_min) & (ebv_N <= config.ebv_max))
        num_missing, faults = int((~is_finite_N).sum()), []
        if num_missing:
            faults.append(f"{num_missing:,} are missing")
        if is_odd_N.any():
            faults.append(
                f"{int(is_odd_N.sum()):,} are outside [{config.ebv_min:g}, {config.ebv_max:g}] "
                f"mag, such as {ebv_N[is_odd_N][0]:g}"
            )
        if faults:
            raise DataError(
                f"{column} of split {split.name!r} of {split.dataset.path} must be an E(B-V) for "
                f"every sample: {' and '.join(faults)}; correct the catalog and pack again (a new "
                "training may have other model.ebv_min and model.ebv_max, or "
                f"{config.other_reddening})"
            )
