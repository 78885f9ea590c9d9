"""The spectroscopic surveys that give the redshifts: shares, redshift ranges, selections.

Shares are those of Mantis Shrimp's training set (arXiv:2501.09112). Redshift
distributions are normal laws cut to a range, a caricature of each survey's published histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
