"""The spectroscopic surveys that give the redshifts: shares, redshift ranges, selections.

Shares are those of Mantis Shrimp's training set (arXiv:2501.09112). Redshift
distributions are normal laws cut to a range, a caricature of each survey's published histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
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
    mean: float | None = None
    deviation: float = 0.0
    lowest: float = 0.005
    highest: float = 1.6
    band: str = "r"
    faint_limit: float = 22.5
    type: str = "any"

    def draw_redshift(self, rng: np.random.Generator) -> float | None:
        """Draws a redshift, or None where the catalog's own is to be kept."""
        if self.mean is None:
            return None
        while True:
            redshift = float(rng.normal(self.mean, self.deviation))
            if self.lowest < redshift < self.highest:
                return redshift


# Limits and ranges: SDSS main, Strauss et al. 2002; BOSS, Dawson et al. 2013; DESI BGS, LRG, ELG,
# DESI Collaboration 2024 (arXiv:2306.06308); GAMA, Driver et al. 2022; WiggleZ, Drinkwater et al.
# 2010; 6dF, Jones et al. 2009; VIPERS, Scodeggio et al. 2018; DEEP2, Newman et al. 2013; VVDS, Le
# Fevre et al. 2013. The split of SDSS and DESI over their target classes is ours.
SURVEYS = (
    SpectroscopicSurvey(name="SDSS", num_spectra=1_300_000),
    SpectroscopicSurvey(
        name="SDSS",
        num_spectra=1_317_955,
        mean=0.50,
        deviation=0.13,
        lowest=0.15,
        highest=0.95,
        band="i",
        faint_limit=19.9,
        type="early",
    ),
    SpectroscopicSurvey(
        name="DESI", num_spectra=450_000, mean=0.22, deviation=0.11, highest=0.6, faint_limit=20.2
    ),
    SpectroscopicSurvey(
        name="DESI",
        num_spectra=400_000,
        mean=0.75,
        deviation=0.17,
        lowest=0.35,
        highest=1.15,
        band="z",
        faint_limit=21.0,
        type="early",
    ),
    SpectroscopicSurvey(
        name="DESI",
        num_spectra=274_604,
        mean=1.1,
        deviation=0.25,
        lowest=0.6,
        band="g",
        faint_limit=23.4,
        type="late",
    ),
    SpectroscopicSurvey(
        name="GAMA", num_spectra=204_508, mean=0.22, deviation=0.11, highest=0.6, faint_limit=19.8
    ),
    SpectroscopicSurvey(
        name="WiggleZ",
        num_spectra=148_563,
        mean=0.6,
        deviation=0.2,
        lowest=0.1,
        highest=1.2,
        type="late",
    ),
    SpectroscopicSurvey(
        name="6dF", num_spectra=56_959, mean=0.05, deviation=0.025, highest=0.15, faint_limit=15.6
    ),
    SpectroscopicSurvey(
        name="VIPERS",
        num_spectra=49_284,
        mean=0.7,
        deviation=0.14,
        lowest=0.45,
        highest=1.2,
        band="i",
    ),
    SpectroscopicSurvey(
        name="DEEP2",
        num_spectra=34_111,
        mean=0.95,
        deviation=0.2,
        lowest=0.65,
        highest=1.45,
        faint_limit=24.1,
    ),
    SpectroscopicSurvey(
        name="VVDS",
        num_spectra=10_296,
        mean=0.65,
        deviation=0.3,
        lowest=0.05,
        band="i",
        type="any",
    ),
)
