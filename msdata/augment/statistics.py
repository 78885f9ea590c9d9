"""What the pixels of each band are like: measured once by `msdata stats`, kept as JSON.

Pixels are counted by value, in bins a 1/512 of the value wide, so that quantiles and the moments of
any curve come out of one pass, and counts of many threads add up to the same whole numbers.
Legend: K bins, P pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.atomic_file import storage_error, write_whole
from msdata.errors import DataError, UsageError

FILE_NAME = "statistics.json"
FORMAT_VERSION = 1
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)

# Sign, 8 bits of exponent and 9 of mantissa of a float32 name a bin.
_DROPPED_BITS = 14
NUM_BINS = 1 << (32 - _DROPPED_BITS)
_SIGN = np.uint32(1 << 31)
_MAD_TO_SIGMA = 1.482602218505602


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """One band over all pixels of the samples that were looked at.

    Attributes:
        num_pixels: pixels that count: finite, and of samples with coverage.
        num_nan: pixels that are not finite.
        num_missing: samples without coverage: zero throughout.
        mean: of the pixels.
        std: their standard deviation.
        minimum: the smallest.
        maximum: the largest.
        quantiles: value below which a share of the pixels lies, by share, to 1/512 of the value.
        sky_sigma: noise of the sky: 1.4826 times the median absolute deviation; where more than
            half of the pixels are equal, the spread of the fainter 95 %. Never 0.
        asinh_std: standard deviation of asinh(value / sky_sigma).
    """

    num_pixels: int
    num_nan: int
    num_missing: int
    mean: float
    std: float
    minimum: float
    maximum: float
    quantiles: dict[str, float]
    sky_sigma: float
    asinh_std: float


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The content of `statistics.json`.

    Attributes:
        fingerprint: of the data set.
        split: the split that was looked at.
        num_samples: samples that were looked at.
        arrays: by array and band.
    """

    fingerprint: str
    split: str
    num_samples: int
    arrays: Mapping[str, Mapping[str, BandStatistics]]

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `statistics.json`."""
        arrays = {a: {b: asdict(s) for b, s in bands.items()} for a, bands in self.arrays.items()}
        return {**asdict(self), "arrays": arrays, "format_version": FORMAT_VERSION}

    def write(self, folder: Path) -> None:
        """Writes `statistics.json` into the data set's folder, whole or not at all.

        Raises:
            StorageError: the file system refused.
        """
        write_whole(folder / FILE_NAME, json.dumps(self.to_json(), indent=1).encode() + b"\n")


def read_statistics(path: str | Path) -> Statistics:
    """Reads what `msdata stats` measured.

    Args:
        path: the data set's folder, or its `statistics.json`.

    Raises:
        UsageError: there are none yet.
        DataError: they are damaged, or of another data set than the one they lie in.
        StorageError: the file system refused.
    """
    file = Path(path)
    if file.name != FILE_NAME:
        file = file / FILE_NAME
    try:
        content = json.loads(file.read_bytes())
        arrays = {
            array: {band: BandStatistics(**values) for band, values in bands.items()}
            for array, bands in content["arrays"].items()
        }
        found = Statistics(
            fingerprint=content["fingerprint"],
            split=content["split"],
            num_samples=content["num_samples"],
            arrays=arrays,
        )
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{file.parent} has no {FILE_NAME}; run 'msdata stats {file.parent}'"
        ) from None
    except OSError as error:
        raise storage_error("read", file, error) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{file} is damaged ({type(error).__name__}: {error}); run 'msdata stats "
            f"{file.parent}' again"
        ) from None
    _check_fresh(file, found)
    return found


def _check_fresh(file: Path, statistics: Statistics) -> None:
    """Raises DataError where the data set beside the file is another than the one measured."""
    try:
        fingerprint = json.loads((file.parent / "dataset.json").read_bytes())["fingerprint"]
    except (OSError, ValueError, TypeError, KeyError):
        # A copy beside a run: there is nothing to hold it against.
        return
    if fingerprint != statistics.fingerprint:
        raise DataError(
            f"{file} was measured on data set {statistics.fingerprint}, this one is "
            f"{fingerprint}; run 'msdata stats {file.parent}' again"
        )


def count_values(values_P: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many values fall into each bin.

    Args:
        values_P: float32, finite.

    Returns:
        int64 (K,), bins by value.
    """
    bits = np.ascontiguousarray(values_P.reshape(-1)).view(np.uint32)
    # Floats compare like integers once the negative ones are turned round.
    keys = np.where(bits & _SIGN, ~bits, bits | _SIGN) >> np.uint32(_DROPPED_BITS)
    return np.bincount(keys.astype(np.int64), minlength=NUM_BINS)


def bin_values() -> NDArray[np.float64]:
    """float64 (K,), the middle of each bin; NaN for bins of no finite number."""
    keys = np.arange(NUM_BINS, dtype=np.uint32) << np.uint32(_DROPPED_BITS)
    keys |= np.uint32(1 << (_DROPPED_BITS - 1))
    bits = np.where(keys & _SIGN, keys & ~_SIGN, ~keys).astype(np.uint32)
    values = bits.view(np.float32).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    # The numbers nearest zero: mostly exact zeros.
    values[np.abs(values) < np.finfo(np.float32).tiny] = 0.0
    return values


def summarise(
    counts_K: NDArray[np.int64],
    *,
    moments: tuple[float, float],
    limits: tuple[float, float],
    num_nan: int,
    num_missing: int,
) -> BandStatistics:
    """The statistics of one band.

    Args:
        counts_K: int64 (K,), its pixels by value.
        moments: sum of the pixels and of their squares.
        limits: the smallest and the largest.
        num_nan: pixels left out because they are not finite.
        num_missing: samples left out because they have no coverage.

    Returns:
        The numbers; those of a band without pixels are 0, its noise 1.
    """
    total = int(counts_K.sum())
    occupied = np.flatnonzero(counts_K)
    values, counts = bin_values()[occupied], counts_K[occupied]
    mean = moments[0] / max(total, 1)
    variance = moments[1] / max(total, 1) - mean**2
    sky_sigma = _sky_sigma(values, counts) if total else 1.0
    stretched = np.arcsinh(values / sky_sigma)
    low, high = limits if total else (0.0, 0.0)
    return BandStatistics(
        num_pixels=total,
        num_nan=num_nan,
        num_missing=num_missing,
        mean=mean,
        std=math.sqrt(max(variance, 0.0)),
        minimum=low,
        maximum=high,
        quantiles={
            f"{q:g}": min(max(_quantile(values, counts, q), low), high) if total else 0.0
            for q in QUANTILES
        },
        sky_sigma=sky_sigma,
        asinh_std=_spread(stretched, counts) or 1.0,
    )


def _quantile(values: NDArray[np.float64], counts: NDArray[np.int64], share: float) -> float:
    """Value of the pixel at a share of all, values in rising order."""
    below = np.cumsum(counts)
    place = np.searchsorted(below, share * below[-1])
    return float(values[min(int(place), len(values) - 1)])


def _spread(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    total = int(counts.sum())
    if not total:
        return 0.0
    mean = math.fsum(values * counts) / total
    return math.sqrt(math.fsum((values - mean) ** 2 * counts) / total)


def _sky_sigma(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Noise of the sky, not raised by bright pixels; never 0."""
    median = _quantile(values, counts, 0.5)
    away = np.abs(values - median)
    order = np.argsort(away, kind="stable")
    sigma = _MAD_TO_SIGMA * _quantile(away[order], counts[order], 0.5)
    if sigma == 0:
        # Counts so few that most pixels are equal: the spread of what is not bright.
        faint = values <= _quantile(values, counts, 0.95)
        sigma = _spread(values[faint], counts[faint]) or _spread(values, counts)
    return sigma or 1.0
