"""Named curves from flux to network input, one per band: y = clip(outer * f(inner * x), low, high).

`f` is asinh or the identity. All curves map 0 to 0, so a band without coverage stays 0. `msdata
stats` measures the numbers that depend on the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.geometry import Geometry
from msdata.augment.statistics import BandStatistics, Statistics
from msdata.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The curve of one survey's bands.

    Attributes:
        is_asinh: f is asinh, not the identity.
        inner: a factor per band.
        outer: a factor per band.
        low: smallest value, -inf for none.
        high: largest value, inf for none.
    """

    is_asinh: bool
    inner: tuple[float, ...]
    outer: tuple[float, ...]
    low: float = -math.inf
    high: float = math.inf

    def apply(self, image_BHW: NDArray[np.float32]) -> None:
        """Scales an image in place.

        Args:
            image_BHW: float32 (bands, height, width).
        """
        image_BHW *= column(self.inner)
        if self.is_asinh:
            np.arcsinh(image_BHW, out=image_BHW)
        if any(factor != 1 for factor in self.outer):
            image_BHW *= column(self.outer)
        if self.low > -math.inf or self.high < math.inf:
            np.clip(image_BHW, self.low, self.high, out=image_BHW)


def column(values: Sequence[float]) -> NDArray[np.float32]:
    """One number per band, shaped to multiply an image: float32 (bands, 1, 1)."""
    return np.array(values, np.float32).reshape(-1, 1, 1)


# Fields of each survey's curve, alike for all of its bands, in the released code of Mantis Shrimp
# (github.com/pnnl/MantisShrimp).
_MANTIS: dict[str, dict[str, Any]] = {
    "galex": {"inner": 1 / 0.05, "low": 0.0, "high": 1.0},
    "panstarrs": {"is_asinh": True, "inner": 0.08, "outer": 1 / 8, "low": 0.0},
    "unwise": {"is_asinh": True, "inner": 0.6, "outer": 1 / 6, "low": 0.0},
}


def make_curve(name: str, geometry: Geometry, statistics: Statistics | None) -> Curve:
    """The curve of a name for one survey.

    Args:
        name: one of `config.SCALINGS`: "linear10" is a tenth of the flux, as in the notes of
            arXiv:2402.03535; "asinh" is linear within the sky noise, logarithmic above, of about
            unit spread in every band; "none" is the flux itself.
        geometry: the survey.
        statistics: statistics of the data set, if the curve needs them.

    Raises:
        UsageError: the curve does not support this survey, or statistics are missing.

    Source: Lupton, Gunn and Szalay 1999, AJ 118, 1406: the softening of asinh is near the noise.
    """
    if name == "asinh":
        bands = bands_of(geometry, statistics, "scaling 'asinh'")
        return Curve(
            is_asinh=True,
            inner=tuple(1 / b.sky_sigma for b in bands),
            outer=tuple(1 / b.asinh_std for b in bands),
        )
    if name == "mantis" and geometry.name not in _MANTIS:
        raise UsageError(
            f"scaling 'mantis' is for galex, panstarrs and unwise, not {geometry.name!r}; use "
            "'asinh' or 'linear10'"
        )
    fields = {"linear10": {"inner": 0.1}, "none": {}, "mantis": _MANTIS.get(geometry.name, {})}
    given = {"is_asinh": False, "inner": 1.0, "outer": 1.0, **fields[name]}
    return Curve(**given | {n: (given[n],) * len(geometry.bands) for n in ("inner", "outer")})


def bands_of(geometry: Geometry, statistics: Statistics | None, what: str) -> list[BandStatistics]:
    """The statistics of a survey's bands, in order.

    Raises:
        UsageError: the statistics are missing; `what` names the option that needs them.
    """
    if statistics is None:
        raise UsageError(
            f"{what} needs the statistics of the data set: run 'msdata stats DATA' and pass what "
            "read_statistics(DATA) gives"
        )
    found = statistics.arrays.get(geometry.name, {})
    missing = [band for band in geometry.bands if band not in found]
    if missing:
        raise UsageError(
            f"the statistics have no {geometry.name} {', '.join(missing)}: they are of another "
            "data set; run 'msdata stats DATA'"
        )
    return [found[band] for band in geometry.bands]
