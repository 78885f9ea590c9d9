"""Which galaxy is where: draws (redshift, spectrum) pairs from the real galaxies.

A third of the objects are catalog galaxies where they really are. The others are catalog
galaxies moved to another redshift, as the deeper surveys need: the spectrum's shape is kept, its
wavelengths are stretched, its flux falls with the luminosity distance, and its luminosity follows
the mean evolution of galaxies (`EVOLUTION_MAG`). So redshift, colors, brightness and size belong
together, but the mock's galaxies at z > 0.5 have the star-formation histories of today's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.mock.cosmology import luminosity_distance_mpc
from msdata.mock.photometry import BANDS, band_fluxes, load_passbands, star_colors
from msdata.mock.templates import GalaxyCatalog, load_galaxies, load_templates

Floats = NDArray[np.float64]

MAX_REDSHIFT = 1.6
# Brightening per unit of redshift, all bands alike: between passive evolution of old populations
# (about 0.8) and the mean of all galaxies (1.62 in r; Blanton et al. 2003, ApJ 592, 819, table 1).
EVOLUTION_MAG = 1.1
# Early types: rest-frame NUV - r redder than the green valley (Wyder et al. 2007, ApJS 173, 293).
EARLY_NUV_R = 5.0
# Candidates looked at for one above a survey's limit: enough for one in a thousand to be found
# now and then, as the luminous tail is what a flux-limited survey sees far away.
_NUM_CANDIDATES = 48
_REDSHIFT_STEP = 0.005
_STAR_KELVIN = np.linspace(3200.0, 7500.0, 12)


@dataclass(frozen=True)
class SpectroscopicSurvey:
    """One target class of a spectroscopic survey.

    Attributes:
        name: the survey, as the catalog's `survey` column has it.
        num_spectra: its spectra in the training set; the share of the mock.
        mean: mean of the normal law of redshifts before it is cut; None takes the catalog's
            galaxies where they really are.
        deviation: its standard deviation.
        lowest: smallest redshift.
        highest: largest redshift.
        band: band of the magnitude limit.
        faint_limit: faintest AB magnitude.
        type: "any", "early" (targets are luminous red galaxies) or "late" (emission lines).
    """

    name: str
    num_spectra: int
    mean: float | None
    deviation: float
    lowest: float
    highest: float
    band: str
    faint_limit: float
    type: str

    def draw_redshift(self, rng: np.random.Generator) -> float | None:
        """Draws a redshift, or None where the catalog's own is to be kept."""
        if self.mean is None:
            return None
        while True:
            redshift = float(rng.normal(self.mean, self.deviation))
            if self.lowest < redshift < self.highest:
                return redshift


# Shares: Mantis Shrimp's training set (arXiv:2501.09112). Redshifts follow normal laws cut to a
# range, a caricature of each survey's published histogram.
# Limits and ranges: SDSS main, Strauss et al. 2002; BOSS, Dawson et al. 2013; DESI BGS, LRG, ELG,
# DESI Collaboration 2024 (arXiv:2306.06308); GAMA, Driver et al. 2022; WiggleZ, Drinkwater et al.
# 2010; 6dF, Jones et al. 2009; VIPERS, Scodeggio et al. 2018; DEEP2, Newman et al. 2013; VVDS, Le
# Fevre et al. 2013. The split of SDSS and DESI over their target classes is ours.
SURVEYS = tuple(
    SpectroscopicSurvey(*row)
    for row in (
        # name, spectra, mean, deviation, lowest, highest, band, faint limit, type
        ("SDSS", 1_300_000, None, 0.0, 0.005, 1.6, "r", 22.5, "any"),
        ("SDSS", 1_317_955, 0.50, 0.13, 0.15, 0.95, "i", 19.9, "early"),
        ("DESI", 450_000, 0.22, 0.11, 0.005, 0.6, "r", 20.2, "any"),
        ("DESI", 400_000, 0.75, 0.17, 0.35, 1.15, "z", 21.0, "early"),
        ("DESI", 274_604, 1.1, 0.25, 0.6, 1.6, "g", 23.4, "late"),
        ("GAMA", 204_508, 0.22, 0.11, 0.005, 0.6, "r", 19.8, "any"),
        ("WiggleZ", 148_563, 0.6, 0.2, 0.1, 1.2, "r", 22.5, "late"),
        ("6dF", 56_959, 0.05, 0.025, 0.005, 0.15, "r", 15.6, "any"),
        ("VIPERS", 49_284, 0.7, 0.14, 0.45, 1.2, "i", 22.5, "any"),
        ("DEEP2", 34_111, 0.95, 0.2, 0.65, 1.45, "r", 24.1, "any"),
        ("VVDS", 10_296, 0.65, 0.3, 0.05, 1.6, "i", 22.5, "any"),
    )
)

_SURVEY_SHARE = np.cumsum([s.num_spectra for s in SURVEYS]) / sum(s.num_spectra for s in SURVEYS)


@dataclass(frozen=True, kw_only=True)
class Population:
    """All that a draw needs, without the optional packages it was made with.

    Attributes:
        galaxies: the real galaxies.
        template_flux: float64 (Z, 9, T), maggies of the templates on an even redshift grid.
        early: bool (N,), whether a galaxy is of early type.
        pools: galaxies (int64 indices) of each type: "any", "early", "late".
        star_flux: float64 (K, 9), colors of stars from cool to hot, 1 in r.
    """

    galaxies: GalaxyCatalog
    template_flux: Floats
    early: NDArray[np.bool_]
    pools: dict[str, NDArray[np.int64]]
    star_flux: Floats


@dataclass(frozen=True, kw_only=True)
class Galaxy:
    """One galaxy as it would be seen without Galactic dust.

    Attributes:
        survey: name of the spectroscopic survey it stands for.
        row: its row among the real galaxies.
        redshift: where it is now.
        maggies: float64 (9,), AB fluxes in the order of BANDS.
        log_mass: log10 of the stellar mass in solar masses.
        early: whether it is of early type.
    """

    survey: str
    row: int
    redshift: float
    maggies: Floats
    log_mass: float
    early: bool


def build_population() -> Population:
    """Reads the real galaxies and tabulates their spectra in the nine bands; takes a second or two.

    Raises:
        MissingPackageError: kcorrect, speclite or SciPy is not installed.
    """
    templates = load_templates()
    galaxies = load_galaxies(templates)
    passbands = load_passbands()
    grid = np.arange(0.0, MAX_REDSHIFT + 2 * _REDSHIFT_STEP, _REDSHIFT_STEP)
    flux_ZBT = band_fluxes(templates.wavelength, templates.flux, passbands, grid)
    rest_NB = galaxies.coefficient @ flux_ZBT[0].T
    nuv_r = -2.5 * np.log10(rest_NB[:, BANDS.index("NUV")] / rest_NB[:, BANDS.index("r")])
    early = nuv_r > EARLY_NUV_R
    return Population(
        galaxies=galaxies,
        template_flux=flux_ZBT,
        early=early,
        pools={
            "any": np.arange(len(early)),
            "early": np.flatnonzero(early),
            "late": np.flatnonzero(~early),
        },
        star_flux=star_colors(_STAR_KELVIN, passbands),
    )


def moved_maggies(population: Population, rows: NDArray[np.int64], redshift: float) -> Floats:
    """Fluxes of real galaxies put at a redshift.

    Args:
        population: the real galaxies.
        rows: int64 (K,), which of them.
        redshift: where to put them, up to MAX_REDSHIFT.

    Returns:
        float64 (K, 9), maggies, without Galactic dust.
    """
    galaxies = population.galaxies
    low = int(redshift / _REDSHIFT_STEP)
    share = redshift / _REDSHIFT_STEP - low
    flux_BT = (1 - share) * population.template_flux[low] + share * population.template_flux[
        low + 1
    ]
    flux_KB = np.einsum("kt,bt->kb", galaxies.coefficient[rows], flux_BT)
    home = galaxies.redshift[rows]
    dimming = luminosity_distance_mpc(home) / luminosity_distance_mpc(np.asarray(redshift))
    brightening = 10 ** (0.4 * EVOLUTION_MAG * (redshift - home))
    return np.asarray(flux_KB * (dimming**2 * brightening)[:, None], dtype=np.float64)


def draw_galaxy(population: Population, rng: np.random.Generator) -> Galaxy:
    """Draws a survey, a redshift and a real galaxy that the survey would have seen there.

    Args:
        population: the real galaxies.
        rng: random generator; it moves on.

    Returns:
        The galaxy.
    """
    survey = SURVEYS[int(np.searchsorted(_SURVEY_SHARE, rng.random(), side="right"))]
    redshift = survey.draw_redshift(rng)
    if redshift is None:
        rows = rng.integers(len(population.early), size=1)
        redshift = float(population.galaxies.redshift[rows[0]])
    else:
        pool = population.pools[survey.type]
        rows = pool[rng.integers(len(pool), size=_NUM_CANDIDATES)]
    maggies_KB = moved_maggies(population, rows, redshift)
    best = _first_above_limit(maggies_KB, survey)
    row = int(rows[best])
    return Galaxy(
        survey=survey.name,
        row=row,
        redshift=redshift,
        maggies=maggies_KB[best],
        log_mass=float(population.galaxies.log_mass[row]),
        early=bool(population.early[row]),
    )


def _first_above_limit(maggies_KB: Floats, survey: SpectroscopicSurvey) -> int:
    """The first candidate the survey would target; the brightest one where it would target none."""
    flux_K = maggies_KB[:, BANDS.index(survey.band)]
    bright = flux_K > 10 ** (-0.4 * survey.faint_limit)
    return int(np.argmax(bright)) if bright.any() else int(np.argmax(flux_K))


def draw_field_galaxy(population: Population, rng: np.random.Generator) -> Galaxy:
    """Draws a neighbor: a real galaxy anywhere between us and the edge of the mock.

    Counts follow the Euclidean law softened to 10^(0.35 m) (Yasuda et al. 2001, AJ 122, 1104); the
    luminosity gives way so that the drawn r magnitude holds.
    """
    magnitude_r = draw_magnitude(rng, brightest=17.0, faintest=22.5, slope=0.35)
    rows = rng.integers(len(population.early), size=1)
    # The typical redshift doubles in about three magnitudes.
    redshift = float(np.clip(0.15 * 2 ** ((magnitude_r - 18) / 3) * rng.gamma(3.0, 0.4), 0.02, 1.5))
    maggies_B = moved_maggies(population, rows, redshift)[0]
    change = 10 ** (-0.4 * magnitude_r) / maggies_B[BANDS.index("r")]
    row = int(rows[0])
    return Galaxy(
        survey="",
        row=row,
        redshift=redshift,
        maggies=maggies_B * change,
        log_mass=float(population.galaxies.log_mass[row] + np.log10(change)),
        early=bool(population.early[row]),
    )


def draw_magnitude(
    rng: np.random.Generator, *, brightest: float, faintest: float, slope: float
) -> float:
    """Draws a magnitude from counts that grow as 10^(slope m) between two limits."""
    low, high = 10 ** (slope * brightest), 10 ** (slope * faintest)
    return float(np.log10(low + rng.random() * (high - low)) / slope)
