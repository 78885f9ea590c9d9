"""Pixel statistics of each band: measured once by `msdata stats`, kept as JSON.

Pixels are counted by value, in bins 1/512 of the value wide, so that quantiles and the moments of
any curve come out of one pass, and the counts of threads add up to the same integers.
Legend: K bins, P pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from msdata.core.checked_json import Count, JsonValue, Positive, Within, read_json
from msdata.core.files import write_whole
from msdata.errors import DataError, StorageError, UsageError

FILE_NAME = "statistics.json"
MARK = b'"sky_sigma"'
FORMAT_VERSION = 1
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)

# Sign, 8 bits of exponent and 9 of mantissa of a float32 name a bin.
_DROPPED_BITS = 14
NUM_BINS = 1 << (32 - _DROPPED_BITS)
_EXPONENT = np.uint32(0x7F800000)
_MAD_TO_SIGMA = 1.482602218505602


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Statistics of one band over all pixels of the measured samples.

    Attributes:
        num_pixels: counted pixels: finite, in samples with coverage.
        num_nan: pixels that are not finite.
        num_missing: samples without coverage (all zero).
        mean: mean of the pixels; it and all below are exact to 1/1024 of a pixel's value.
        std: their standard deviation.
        minimum: smallest pixel.
        maximum: largest pixel.
        quantiles: value below which a share of the pixels lies, by share such as "0.5".
        sky_sigma: noise of the sky: 1.4826 times the median absolute deviation; where more than
            half of the pixels are equal, the spread of the fainter 95 %. Never 0.
        asinh_std: standard deviation of asinh(value / sky_sigma).
    """

    num_pixels: Count
    num_nan: Count
    num_missing: Count
    mean: float
    std: Annotated[float, Within(0)]
    minimum: float
    maximum: float
    quantiles: dict[str, float]
    sky_sigma: Positive
    asinh_std: Positive


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The content of `statistics.json`.

    Attributes:
        fingerprint: fingerprint of the data set.
        split: the measured split.
        num_samples: number of measured samples.
        arrays: statistics by array and band.
    """

    fingerprint: str
    split: str
    num_samples: Count
    arrays: Mapping[str, Mapping[str, BandStatistics]]

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `statistics.json`."""
        return {**asdict(self), "format_version": FORMAT_VERSION}

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            StorageError: the file system refused.
        """
        write_whole(path, json.dumps(self.to_json(), indent=1).encode() + b"\n")


def read_statistics(path: str | Path, *, fingerprint: str | None = None) -> Statistics:
    """Reads the file of `msdata stats`.

    Args:
        path: the data set's folder, or a .json file.
        fingerprint: fingerprint of the expected data set; None reads it from the `dataset.json`
            beside the file, if that exists.

    Raises:
        UsageError: the file does not exist.
        DataError: the file is corrupt, or was measured on another data set.
        StorageError: the file system refused.
    """
    file = Path(path)
    if file.suffix != ".json" or file.is_dir():
        file = file / FILE_NAME
    try:
        fields = read_json(file, cure="run 'msdata stats' again")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{file} does not exist; run 'msdata stats {file.parent}'") from None
    wanted = _fingerprint_beside(file) if fingerprint is None else fingerprint
    return parse_statistics(fields, fingerprint=wanted)


def parse_statistics(content: JsonValue, *, fingerprint: str | None = None) -> Statistics:
    """Statistics from the content of their file.

    Args:
        content: the parsed JSON.
        fingerprint: fingerprint of the expected data set; None accepts any.

    Raises:
        DataError: the content is damaged, or was measured on another data set.
    """
    fields = content.read_as(_Fields)
    found = Statistics(**{f.name: getattr(fields, f.name) for f in dataclass_fields(Statistics)})
    if fingerprint not in (None, found.fingerprint):
        raise DataError(
            f"{content.file} was measured on data set {found.fingerprint}, this is {fingerprint}: "
            "its noise and spread may differ; run 'msdata stats' again"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Fields(Statistics):
    """The fields of the file."""

    format_version: Literal[1]


def _fingerprint_beside(file: Path) -> str | None:
    try:
        return read_json(file.parent / "dataset.json", cure="")["fingerprint"].read_as(str)
    except (OSError, DataError, StorageError):
        # A copy beside a run: its data set is unknown here.
        return None


def count_values(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many values fall into each bin.

    Args:
        values: float32, any shape; NaN and infinities have their own bins.

    Returns:
        int64 (K,), bins by their bits.
    """
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    bins = (bits >> np.uint32(_DROPPED_BITS)).astype(np.int64)
    return np.bincount(bins, minlength=NUM_BINS)


def bin_values() -> NDArray[np.float64]:
    """float64 (K,), the middle of each bin; NaN for those of NaN and infinities."""
    bits = np.arange(NUM_BINS, dtype=np.uint32) << np.uint32(_DROPPED_BITS)
    bits |= np.uint32(1 << (_DROPPED_BITS - 1))
    with np.errstate(invalid="ignore"):
        values = bits.view(np.float32).astype(np.float64)
    # The exponent of infinity or NaN.
    values[bits & _EXPONENT == _EXPONENT] = np.nan
    # Count the numbers nearest zero as zeros.
    values[np.abs(values) < np.finfo(np.float32).tiny] = 0.0
    return values


def summarise(counts_K: NDArray[np.int64], *, num_missing: int = 0) -> BandStatistics:
    """The statistics of one band.

    Args:
        counts_K: int64 (K,), its pixels by value.
        num_missing: samples left out for lack of coverage.

    Returns:
        The statistics; for a band without pixels 0, with noise and spread 1.
    """
    all_values = bin_values()
    is_finite = np.isfinite(all_values)
    num_nan = int(counts_K[~is_finite].sum())
    occupied = np.flatnonzero((counts_K > 0) & is_finite)
    order = np.argsort(all_values[occupied], kind="stable")
    values, counts = all_values[occupied][order], counts_K[occupied][order]
    if not len(values):
        # Use one pixel of 0, so that everything below has a value.
        values, counts = np.zeros(1), np.ones(1, np.int64)
    sky_sigma = _sky_sigma(values, counts)
    return BandStatistics(
        num_pixels=int(counts.sum()) if len(occupied) else 0,
        num_nan=num_nan,
        num_missing=num_missing,
        mean=_mean(values, counts),
        std=_spread(values, counts),
        minimum=float(values[0]),
        maximum=float(values[-1]),
        quantiles={f"{q:g}": _quantile(values, counts, q) for q in QUANTILES},
        sky_sigma=sky_sigma,
        asinh_std=_spread(np.arcsinh(values / sky_sigma), counts) or 1.0,
    )


def _quantile(values: NDArray[np.float64], counts: NDArray[np.int64], share: float) -> float:
    """Value of the pixel at a share of all, values in rising order."""
    below = np.cumsum(counts)
    place = np.searchsorted(below, share * below[-1])
    return float(values[min(int(place), len(values) - 1)])


def _mean(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    return math.fsum(values * counts) / int(counts.sum())


def _spread(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    away = (values - _mean(values, counts)) ** 2
    return math.sqrt(math.fsum(away * counts) / int(counts.sum()))


def _sky_sigma(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Noise of the sky without the effect of bright pixels; never 0."""
    median = _quantile(values, counts, 0.5)
    away = np.abs(values - median)
    order = np.argsort(away, kind="stable")
    sigma = _MAD_TO_SIGMA * _quantile(away[order], counts[order], 0.5)
    if sigma == 0:
        # So few counts that most pixels are equal: use the spread of the faint ones.
        faint = values <= _quantile(values, counts, 0.95)
        sigma = _spread(values[faint], counts[faint]) or _spread(values, counts)
    return sigma or 1.0
