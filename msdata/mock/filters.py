"""The passbands in numbers, and where features of galaxies' spectra cross them with redshift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msdata.mock.photometry import BANDS, load_passbands

# Rest wavelengths in Angstrom: what tells a redshift from broad bands.
FEATURES = {
    "Lyman limit": 912.0,
    "Lyman alpha": 1216.0,
    "4000 A break": 4000.0,
    "1.6 um bump": 16_000.0,
    "PAH 3.3 um": 33_000.0,
}
# A band ends where its response falls below this share of its peak.
EDGE_RESPONSE = 0.1


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A passband in numbers.

    Attributes:
        band: our name, such as "W1".
        name: the filter's name in speclite.
        low_angstrom: lower edge, where the response is a tenth of its peak.
        high_angstrom: upper edge.
        effective_angstrom: mean wavelength, weighted by photons of a flat f_lambda.
    """

    band: str
    name: str
    low_angstrom: float
    high_angstrom: float
    effective_angstrom: float


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A feature within a band.

    Attributes:
        feature: one of `FEATURES`.
        band: the band.
        z_low: redshift at which it enters, at least 0.
        z_high: redshift at which it leaves.
    """

    feature: str
    band: str
    z_low: float
    z_high: float


def load_filters() -> tuple[Filter, ...]:
    """Edges of the nine passbands.

    Raises:
        MissingPackageError: speclite is not installed.
    """
    found = []
    for band, passband in zip(BANDS, load_passbands(), strict=True):
        grid = passband.wavelength_angstrom
        # The weight of a photon integral on an even logarithmic grid holds lambda squared.
        response = passband.photon_weight / grid**2
        inside = grid[response >= EDGE_RESPONSE * response.max()]
        found.append(
            Filter(
                band=band,
                name=passband.name,
                low_angstrom=float(inside[0]),
                high_angstrom=float(inside[-1]),
                effective_angstrom=float(np.average(grid, weights=passband.photon_weight)),
            )
        )
    return tuple(found)


def find_crossings(filters: tuple[Filter, ...], z_max: float) -> tuple[Crossing, ...]:
    """Where features cross the bands, up to a redshift.

    Args:
        filters: from `load_filters`.
        z_max: crossings that begin above it are left out; those that end above are cut there.
    """
    found = []
    for feature, rest_angstrom in FEATURES.items():
        for one in filters:
            low = max(one.low_angstrom / rest_angstrom - 1, 0.0)
            high = min(one.high_angstrom / rest_angstrom - 1, z_max)
            if low < high:
                found.append(Crossing(feature=feature, band=one.band, z_low=low, z_high=high))
    return tuple(found)
