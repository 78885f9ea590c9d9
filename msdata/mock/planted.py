"""Faults planted in mock objects, and data sets where one band knows nothing, or alone knows.

What is planted depends on the seed and the object's number alone, by random streams of its own: an
object without a fault has the bytes it has in a data set without any. So whatever looks for faults,
or asks which band a network listens to, is held against a truth that is known by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.mock.field import Source
from msdata.mock.photometry import BANDS, redden
from msdata.mock.population import Population
from msdata.schema import MANTIS_SHRIMP

KINDS = ("mislabel", "star", "quasar", "blank", "zeropoint", "swapped")
NOTHING = "none"
PLANTED_COLUMNS = ("planted", "planted_detail", "redshift_true")
ZEROPOINT_FACTOR = 100.0
# Effective wavelengths in Angstrom, in the order of BANDS: GALEX, Morrissey et al. 2007; PS1, Tonry
# et al. 2012; WISE, Jarrett et al. 2011.
_WAVELENGTH = np.array([1528, 2271, 4866, 6215, 7545, 8679, 9633, 33_526, 46_028], np.float64)
# f_nu as a power of nu: the continuum of quasars (Vanden Berk et al. 2001, AJ 122, 549).
_QUASAR_SLOPE = -0.44
# Streams of random numbers beside an object's own.
_KIND_STREAM, _STAND_IN_STREAM = 1, 2


@dataclass(frozen=True, kw_only=True)
class Planting:
    """What is planted in a data set.

    Attributes:
        shares: share of the objects with each fault, by name from `KINDS`: "mislabel" has the
            redshift of another object, "star" and "quasar" have a point with the colors of a black
            body or a power law in the galaxy's place, "blank" has nothing there, "zeropoint" has
            one survey's pixels times 100, "swapped" has the bands of one survey in reverse order.
        deaf_band: SURVEY.BAND whose images come from other objects, so that it says nothing.
        only_band: SURVEY.BAND that alone is the object's own; all others come from another object.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    deaf_band: str | None = None
    only_band: str | None = None

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if name not in KINDS:
                raise UsageError(f"--plant must name one of {', '.join(KINDS)}, got {name!r}")
            if not 0 <= share <= 1:
                raise UsageError(f"--plant {name} must be a share from 0 to 1, got {share:g}")
        if sum(self.shares.values()) > 1:
            raise UsageError(
                f"shares of --plant must sum to at most 1, got {sum(self.shares.values()):g}"
            )
        if self.deaf_band is not None and self.only_band is not None:
            raise UsageError("--deaf-band and --only-band exclude each other; give one of them")
        for option, band in (("--deaf-band", self.deaf_band), ("--only-band", self.only_band)):
            if band is not None and band not in all_bands():
                raise UsageError(f"{option} must be one of {', '.join(all_bands())}, got {band!r}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is planted, so that the catalog has no columns of it."""
        return not self.shares and self.deaf_band is None and self.only_band is None

    @property
    def foreign_bands(self) -> tuple[str, ...]:
        """SURVEY.BAND of all images that come from other objects."""
        if self.only_band is not None:
            return tuple(band for band in all_bands() if band != self.only_band)
        return () if self.deaf_band is None else (self.deaf_band,)


def all_bands() -> tuple[str, ...]:
    """SURVEY.BAND of every band of mock objects, in the order of the arrays."""
    return tuple(f"{survey.name}.{b}" for survey in MANTIS_SHRIMP.arrays for b in survey.bands)


def parse_shares(text: str) -> dict[str, float]:
    """Shares by kind from text such as "mislabel=0.01,star=0.01".

    Raises:
        UsageError: a part is not NAME=SHARE, or a name comes twice.
    """
    shares: dict[str, float] = {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        name, _, share = part.partition("=")
        try:
            number = float(share)
        except ValueError:
            raise UsageError(f"--plant must be NAME=SHARE,..., got {part!r}") from None
        if name in shares:
            raise UsageError(f"--plant must name each kind once, got {name!r} twice")
        shares[name] = number
    return shares


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with one object.

    Attributes:
        kind: one of `KINDS`, or "none".
        survey: the survey that "zeropoint" or "swapped" touches; empty for others.
        other: number of the object whose redshift a "mislabel" has; -1 for others.
        color: where among the stars' colors a "star" lies, 0 (cool) to 1.
    """

    kind: str = NOTHING
    survey: str = ""
    other: int = -1
    color: float = 0.0


def planted_fault(planting: Planting, seed: int, number: int) -> Fault:
    """The fault of an object; the same for the same arguments.

    Args:
        planting: what is planted.
        seed: seed of the data set.
        number: the object's number.

    Returns:
        The fault. A mislabel takes the redshift of an earlier object, so that fewer objects stay
        a prefix of more; object 0 takes that of object 1.
    """
    rng = np.random.default_rng([seed, number, _KIND_STREAM])
    chance = rng.random()
    survey = MANTIS_SHRIMP.names[int(rng.integers(len(MANTIS_SHRIMP.names)))]
    other = int(rng.integers(number)) if number else 1
    color = float(rng.random())
    limit = 0.0
    for kind in KINDS:
        limit += planting.shares.get(kind, 0.0)
        if chance < limit:
            return Fault(
                kind=kind,
                survey=survey if kind in ("zeropoint", "swapped") else "",
                other=other if kind == "mislabel" else -1,
                color=color,
            )
    return Fault()


def stand_in(seed: int, number: int, num_objects: int) -> int:
    """Number of the object that foreign bands of an object come from; never its own.

    Args:
        seed: seed of the data set.
        number: the object's number.
        num_objects: numbers to draw from; those of all possible objects, whatever is written.
    """
    rng = np.random.default_rng([seed, number, _STAND_IN_STREAM])
    return (number + int(rng.integers(1, num_objects))) % num_objects


def replace_target(fault: Fault, target: Source, population: Population, ebv: float) -> Source:
    """The target as a fault leaves it: of the same r flux where it is a star or a quasar.

    Args:
        fault: the object's.
        target: the galaxy.
        population: has the colors of stars.
        ebv: Galactic E(B-V), which reddens stars and quasars, too.
    """
    if fault.kind == "blank":
        return replace(target, maggies=np.zeros_like(target.maggies))
    if fault.kind == "star":
        colors = population.star_flux[int(len(population.star_flux) * fault.color)]
    elif fault.kind == "quasar":
        colors = _WAVELENGTH**-_QUASAR_SLOPE
    else:
        return target
    flux = redden(colors, ebv)
    at_r = BANDS.index("r")
    return replace(target, maggies=flux * (target.maggies[at_r] / flux[at_r]), components=())


def spoil_pixels(fault: Fault, sample: dict[str, NDArray[Any]]) -> None:
    """Changes the pixels of a "zeropoint" or "swapped" object in place; leaves others.

    Args:
        fault: the object's.
        sample: its arrays by survey, (bands, height, width) each.
    """
    if fault.kind == "zeropoint":
        sample[fault.survey] = sample[fault.survey] * np.float32(ZEROPOINT_FACTOR)
    elif fault.kind == "swapped":
        sample[fault.survey] = np.ascontiguousarray(sample[fault.survey][::-1])
