"""One mock object: a function of the seed and the object's number, and of nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.mock.field import Source, draw_bright_star, draw_neighbors
from msdata.mock.observe import (
    Telescopes,
    build_telescopes,
    observe_galex,
    observe_panstarrs,
    observe_unwise,
)
from msdata.mock.photometry import BANDS, redden
from msdata.mock.planted import (
    NOTHING,
    PLANTED_COLUMNS,
    Fault,
    Planting,
    planted_fault,
    replace_target,
    spoil_pixels,
    stand_in,
)
from msdata.mock.population import Galaxy, Population, build_population, draw_galaxy
from msdata.mock.profiles import draw_components, sersic_mixtures
from msdata.mock.surveys import PANSTARRS_EXPTIME_RANGE_S
from msdata.schema import MANTIS_SHRIMP

NUM_IDS = 10_000_000
# The golden section of the id space: odd and no multiple of 5, so that multiples of it visit every
# id once, and the first N spread evenly.
_ID_STRIDE = 6_180_339

# Mock comparison photo-z's: (column, share of objects without one).
_PHOTOZ = (("photoz_ps1_strm", 0.25), ("photoz_legacy", 0.40))

CATALOG_COLUMNS = (
    "mantis_id",
    "ra",
    "dec",
    "redshift",
    "ebv_csfd",
    "ebv_planck",
    "survey",
    *(name for name, _ in _PHOTOZ),
    "exptime_s",
    "half_light_arcsec",
    *(f"mag_{band.lower()}_ab" for band in BANDS),
)


def catalog_columns(planting: Planting) -> tuple[str, ...]:
    """Columns of the catalog; those of planted faults only where something is planted."""
    return CATALOG_COLUMNS if planting.is_empty else (*CATALOG_COLUMNS, *PLANTED_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class MockModel:
    """All that is computed once: real galaxies, Sersic mixtures, pixel grids. It can be pickled.

    Attributes:
        population: the real galaxies.
        mixtures: float64 (23, 16), of `sersic_mixtures`.
        telescopes: pixel grids and PSFs by survey.
    """

    population: Population
    mixtures: NDArray[np.float64]
    telescopes: Telescopes


@dataclass(frozen=True, kw_only=True)
class MockObject:
    """One object.

    Attributes:
        sample: `galex` float32 (2, 32, 32), count/s; `panstarrs` float32 (5, 170, 170), counts;
            `unwise` float32 (2, 32, 32), counts.
        row: text of each catalog column; empty where it has no value.
    """

    sample: dict[str, NDArray[np.float32]]
    row: dict[str, str]


def build_model() -> MockModel:
    """Reads and computes what all objects share; takes a second or two.

    Raises:
        MissingPackageError: kcorrect, speclite or SciPy is not installed.
    """
    return MockModel(
        population=build_population(), mixtures=sersic_mixtures(), telescopes=build_telescopes()
    )


def mantis_id(seed: int, number: int) -> int:
    """The 7-digit id of an object; no two of the first 10,000,000 numbers share one."""
    offset = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return (offset + number * _ID_STRIDE) % NUM_IDS


def make_object(
    model: MockModel, seed: int, number: int, planting: Planting | None = None
) -> MockObject:
    """Makes one object.

    Args:
        model: of `build_model`.
        seed: seed of the data set, not negative.
        number: 0 <= number < 10,000,000, the object's number in the data set.
        planting: faults to plant; None plants none.

    Returns:
        The object; the same for the same arguments, whatever else was made before.
    """
    if planting is None or planting.is_empty:
        return _make_own(model, seed, number, Fault())
    fault = planted_fault(planting, seed, number)
    made = _make_own(model, seed, number, fault)
    if planting.foreign_bands:
        # Of an object as it would be without faults.
        other = _make_own(model, seed, stand_in(seed, number, NUM_IDS), Fault())
        _take_bands(made, other, planting.foreign_bands)
    spoil_pixels(fault, made.sample)
    made.row.update(_planted_columns(model, seed, fault, made.row["redshift"]))
    return made


def _make_own(model: MockModel, seed: int, number: int, fault: Fault) -> MockObject:
    """An object with a fault's target in the galaxy's place, and nothing else changed."""
    rng = np.random.default_rng([seed, number])
    galaxy = draw_galaxy(model.population, rng)
    # Real E(B-V) of the galaxy's place on the sky, kept when it is moved to another redshift.
    ebv = float(model.population.galaxies.ebv[galaxy.row] * np.exp(rng.normal(0, 0.1)))
    components = draw_components(galaxy, model.mixtures, rng)
    maggies_B = redden(galaxy.maggies, ebv)
    target = Source(maggies=maggies_B, x_arcsec=0.0, y_arcsec=0.0, components=components)
    target = replace_target(fault, target, model.population, ebv)
    neighbors = draw_neighbors(model.population, model.mixtures, ebv, rng)
    star, core = draw_bright_star(model.population, ebv, rng)
    sources = [target, *neighbors, *star]
    exptime_s = round(float(rng.uniform(*PANSTARRS_EXPTIME_RANGE_S)))
    telescopes = model.telescopes
    sample = {
        "galex": observe_galex(telescopes["galex"], sources, rng),
        "panstarrs": observe_panstarrs(telescopes["panstarrs"], sources, core, exptime_s, rng),
        "unwise": observe_unwise(telescopes["unwise"], sources, rng),
    }
    size_arcsec = target.components[0].half_light_arcsec if target.components else 0.0
    row = {
        "mantis_id": f"{mantis_id(seed, number):07d}",
        **_draw_sky(model.population, galaxy.row, ebv, rng),
        **_draw_photoz(galaxy, rng),
        "redshift": f"{galaxy.redshift:.6f}",
        "survey": galaxy.survey,
        "exptime_s": f"{exptime_s}",
        "half_light_arcsec": "" if fault.kind == "blank" else f"{size_arcsec:.4f}",
        **_magnitudes(target.maggies),
    }
    return MockObject(sample=sample, row=row)


def _take_bands(made: MockObject, other: MockObject, bands: tuple[str, ...]) -> None:
    """Puts another object's images, and their magnitudes, into some bands."""
    for name in bands:
        survey, band = name.split(".")
        at = MANTIS_SHRIMP[survey].bands.index(band)
        made.sample[survey][at] = other.sample[survey][at]
        column = f"mag_{band.lower()}_ab"
        made.row[column] = other.row[column]


def _planted_columns(model: MockModel, seed: int, fault: Fault, redshift: str) -> dict[str, str]:
    """The columns of a fault; a mislabel's "redshift" is that of the other object."""
    found = {"planted": fault.kind, "planted_detail": fault.survey, "redshift_true": redshift}
    if fault.kind == "mislabel":
        rng = np.random.default_rng([seed, fault.other])
        label = draw_galaxy(model.population, rng).redshift
        found |= {
            "redshift": f"{label:.6f}",
            "planted_detail": f"{mantis_id(seed, fault.other):07d}",
        }
    elif fault.kind == "star":
        found["redshift_true"] = "0.000000"
    elif fault.kind == "blank":
        found["redshift_true"] = ""
    return {**found, "planted_detail": found["planted_detail"] or NOTHING}


def _magnitudes(maggies_B: NDArray[np.float64]) -> dict[str, str]:
    """AB magnitude columns; empty where the band lies blueward of 600 A at rest."""
    return {
        f"mag_{band.lower()}_ab": f"{-2.5 * math.log10(flux):.4f}" if flux > 0 else ""
        for band, flux in zip(BANDS, maggies_B, strict=True)
    }


def _draw_sky(
    population: Population, row: int, ebv: float, rng: np.random.Generator
) -> dict[str, str]:
    """Position and dust columns: within half a degree of the real galaxy, where its dust holds."""
    galaxies = population.galaxies
    dec = float(np.clip(galaxies.dec[row] + rng.normal(0, 0.25), -89.9, 89.9))
    shift = rng.normal(0, 0.25) / math.cos(math.radians(dec))
    # Two maps of the same dust: Planck's reads a little higher and has noise of its own.
    planck = max(ebv * math.exp(rng.normal(0.05, 0.12)) + rng.normal(0, 0.003), 0.0)
    return {
        "ra": f"{(galaxies.ra[row] + shift) % 360:.6f}",
        "dec": f"{dec:.6f}",
        "ebv_csfd": f"{ebv:.5f}",
        "ebv_planck": f"{planck:.5f}",
    }


def _draw_photoz(galaxy: Galaxy, rng: np.random.Generator) -> dict[str, str]:
    """Mock photo-z's: a scatter that grows with faintness, a few outliers, gaps."""
    magnitude_r = -2.5 * math.log10(galaxy.maggies[BANDS.index("r")])
    scatter = 0.018 * 2 ** max((magnitude_r - 18.5) / 2.5, 0.0)
    columns = {}
    for name, share_absent in _PHOTOZ:
        absent, wild = rng.random(2) < (share_absent, 0.03)
        width = (0.2 if wild else scatter) * (1 + galaxy.redshift)
        photoz = max(galaxy.redshift + rng.normal(0, width), 0.001)
        columns[name] = "" if absent else f"{photoz:.5f}"
    return columns
