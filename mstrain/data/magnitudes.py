"""Columns of an index in magnitudes: the one to bin by, and E(B-V), which the network takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from mstrain.network_config import ModelConfig

# What catalogs call the r magnitude, in lower case; the first that is there is taken.
R_MAGNITUDES = (
    *("mag_r_ab", "mag_r", "r_mag", "rmag", "magnitude_r", "r_magnitude", "modelmag_r"),
    *("cmodelmag_r", "dered_r", "petromag_r", "rkronmag", "rmeankronmag", "psfmag_r"),
)
# Catalogs mark unknown magnitudes by impossible numbers, such as 99 or -999.
_SANE = (-5.0, 45.0)


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

    Args:
        split: whose index has the column.
        config: `reddening`, `ebv_min` and `ebv_max` count.

    Raises:
        DataError: it is unknown, or outside the range, for some samples.
    """
    for column in config.reddening:
        _check_column(split, config, column)


def _check_column(split: Split, config: ModelConfig, column: str) -> None:
    ebv_N = split.numbers(column)
    is_finite_N = np.isfinite(ebv_N)
    is_odd_N = is_finite_N & ~((ebv_N >= config.ebv_min) & (ebv_N <= config.ebv_max))
    num_odd, num_missing = int(is_odd_N.sum()), int((~is_finite_N).sum())
    if not num_odd and not num_missing:
        return
    faults = [f"{num_missing:,} are missing"] if num_missing else []
    if num_odd:
        faults.append(
            f"{num_odd:,} are outside [{config.ebv_min:g}, {config.ebv_max:g}] mag, such as "
            f"{ebv_N[is_odd_N][0]:g}"
        )
    raise DataError(
        f"{column} of split {split.name!r} of {split.dataset.path} must be an E(B-V) "
        f"for every sample: {' and '.join(faults)}; correct the catalog and pack again (a "
        f"new training may have other model.ebv_min and model.ebv_max, or {config.other_reddening})"
    )
