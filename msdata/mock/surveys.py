"""How each imaging survey sees: PSF, depth, background. Numbers with their sources.

PSFs are radial laws with analytic Fourier transforms: Moffat for Pan-STARRS, sums of Gaussians for
GALEX and unWISE. They include the pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FWHM_PER_SIGMA = 2.354_82

# Typical PSF of the 3pi stacks, arcsec (Magnier et al. 2020, ApJS 251, 5, on how it is measured).
PANSTARRS_FWHM_ARCSEC = {"g": 1.47, "r": 1.31, "i": 1.19, "z": 1.14, "y": 1.09}
# 5 sigma for point sources in the stacks (Chambers et al. 2016, arXiv:1612.05560, abstract).
PANSTARRS_DEPTH_AB = {"g": 23.3, "r": 23.2, "i": 23.1, "z": 22.3, "y": 21.4}
# The exposure for which we take those depths, and the range seen in Mantis Shrimp's cutouts.
PANSTARRS_EXPTIME_S = 900.0
PANSTARRS_EXPTIME_RANGE_S = (720.0, 2685.0)

# Background, count/s per pixel of 1.5 arcsec: medians of deep fields (FUV 2e-4, NUV 2.8e-3), which
# agree with Morrissey et al. 2007, ApJS 173, 682.
GALEX_BACKGROUND_COUNT_S = {"NUV": 2.8e-3, "FUV": 2.0e-4}
# Exposure of the all-sky, medium and deep surveys in seconds and their shares of the objects
# (Bianchi et al. 2017, ApJS 230, 24: most of the sky has AIS only).
GALEX_EXPOSURE_S = ((180.0, 0.78), (1600.0, 0.20), (20_000.0, 0.02))
GALEX_SHARE_WITHOUT_COVERAGE = 0.08
# The FUV detector failed in May 2009: later fields have NUV alone.
GALEX_SHARE_WITHOUT_FUV = 0.10

# Noise of a 2.75 arcsec pixel in counts (Vega nanomaggies) with 150 exposures, from the inverse
# variances of public coadds; it falls with the square root of the exposures (Lang 2014, AJ 147,
# 108; Meisner et al. 2019, PASP 131, 124504).
UNWISE_NOISE_COUNT = {"W1": 1.6, "W2": 5.5}
UNWISE_NUM_EXPOSURES = 150.0


@dataclass(frozen=True, kw_only=True)
class Psf:
    """A round PSF of unit flux.

    Attributes:
        fwhm_arcsec: full width at half maximum of each part.
        share: light in each part; the sum is 1.
        is_moffat: Moffat with beta = 2.5, else Gaussians.
    """

    fwhm_arcsec: tuple[float, ...]
    share: tuple[float, ...] = (1.0,)
    is_moffat: bool = False

    def transform(
        self, frequency: NDArray[np.float32], *, stretch: float = 1.0
    ) -> NDArray[np.float32]:
        """Fourier transform.

        Args:
            frequency: float32, any shape, |k| in radian/arcsec.
            stretch: widens the PSF by this factor: the seeing of the field.

        Returns:
            float32, the same shape; 1 at k = 0.

        Source:
            Moffat 1969, A&A 3, 455. Its Hankel transform (Gradshteyn & Ryzhik 6.565.4) goes as
            (k a)^(beta-1) K_(beta-1)(k a), which at beta = 2.5 is (1 + k a) exp(-k a).
        """
        result = np.zeros_like(frequency)
        for fwhm, share in zip(self.fwhm_arcsec, self.share, strict=True):
            if self.is_moffat:
                scale = fwhm * stretch / (2 * math.sqrt(2**0.4 - 1))
                reach = frequency * np.float32(scale)
                result += np.float32(share) * (1 + reach) * np.exp(-reach)
            else:
                sigma = fwhm * stretch / FWHM_PER_SIGMA
                result += np.float32(share) * np.exp(-0.5 * (frequency * np.float32(sigma)) ** 2)
        return result


# beta = 2.5 lies between the atmosphere's 4.765 and the r^-3.3 wings of the PS1 model PSF.
PANSTARRS_PSF = {
    band: Psf(fwhm_arcsec=(fwhm,), is_moffat=True) for band, fwhm in PANSTARRS_FWHM_ARCSEC.items()
}
# Cores: Morrissey et al. 2007 (4.2 and 5.3 arcsec). Wings: chosen so that the light within 5 and 10
# arcsec agrees within 4 % with the empirical PSFs of Abdurro'uf et al. 2021, ApJS 254, 15.
GALEX_PSF = {
    "NUV": Psf(fwhm_arcsec=(5.0, 13.0), share=(0.71, 0.29)),
    "FUV": Psf(fwhm_arcsec=(4.2, 11.8), share=(0.83, 0.17)),
}
# Three parts fitted by eye to the light within 1.5 to 20 pixels of the unWISE PSF models (Meisner &
# Lang, unwise_psf); cf. 6.1 and 6.4 arcsec in Wright et al. 2010, AJ 140, 1868.
UNWISE_PSF = {
    "W1": Psf(fwhm_arcsec=(5.4, 15.0, 45.0), share=(0.79, 0.11, 0.10)),
    "W2": Psf(fwhm_arcsec=(5.9, 15.0, 45.0), share=(0.79, 0.12, 0.09)),
}


def panstarrs_noise_count(band: str, exptime_s: float) -> float:
    """Noise of a 0.25 arcsec pixel that gives the survey's depth in median seeing.

    Args:
        band: one of grizy.
        exptime_s: exposure; counts of sky grow with it, their noise with its root.

    Returns:
        Standard deviation in counts, without the object's own photons.

    Source:
        The noise of a matched Gaussian filter: the limit is 5 noise sqrt(4 pi) sigma / pixel.
    """
    sigma_pixels = PANSTARRS_FWHM_ARCSEC[band] / FWHM_PER_SIGMA / 0.25
    zero_point = 25 + 2.5 * math.log10(PANSTARRS_EXPTIME_S)
    limit_count = 10 ** (0.4 * (zero_point - PANSTARRS_DEPTH_AB[band]))
    reference = limit_count / 5 / math.sqrt(4 * math.pi * sigma_pixels**2)
    return reference * math.sqrt(exptime_s / PANSTARRS_EXPTIME_S)
