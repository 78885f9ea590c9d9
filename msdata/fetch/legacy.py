"""GALEX and unWISE from the Legacy Survey viewer: `fits-cutout`, one answer with all bands.

The viewer resamples so that the position lies exactly in the middle. It answers unknown `bands=`
with all bands, so none are asked for and those that come are told by the header. Where coadds
overlap the viewer itself lays them over the one grid, so there is nothing to choose; where it has
no coadd it sends zeros, which unWISE's noise never gives.

It stands alone because each module of a service holds one protocol.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from msdata.fetch.adapter import Fetched, combined, degrees_text, max_fits_nbytes
from msdata.fetch.answer import Band, Wanted, band_stamp, fits_planes, planes_by_band
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError
from msdata.schema import Survey

_MAX_ZERO_FRACTION = 0.01
# Layer, the file's name after the id, and the viewer's words for the bands.
LAYERS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "galex": ("galex", "Galex.fits", {"n": "NUV", "f": "FUV", "nuv": "NUV", "fuv": "FUV"}),
    "unwise": ("unwise-neo7", "Unwise.fits", {"1": "W1", "2": "W2", "w1": "W1", "w2": "W2"}),
}


class LegacyAdapter:
    """Implements `Adapter` for the array "galex" or "unwise"."""

    service = "legacy"
    requests_per_object = 1

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self._layer, self._file_name, self._words = LAYERS[survey.name]

    def fetch(self, client: Client, position: tuple[float, float]) -> Fetched:
        """See `Adapter.fetch`."""
        size = self.survey.shape[1]
        query = {
            "ra": degrees_text(position[0]),
            "dec": degrees_text(position[1]),
            "size": str(size),
            "pixscale": f"{self.survey.pixel_scale_arcsec:g}",
            "layer": self._layer,
        }
        wanted = Wanted(survey=self.survey, position=position, size=size, center=(size - 1) / 2)
        most = max_fits_nbytes(self.survey, size, len(self.survey.bands))
        return client.get(
            "fits-cutout", query, most, lambda content: self._checked(content, wanted, most)
        )

    def _checked(self, content: bytes, wanted: Wanted, most_nbytes: int) -> Fetched:
        planes = planes_by_band(fits_planes(content, most_nbytes), self.survey, self._words)
        bands: dict[str, Band] = {
            band: band_stamp(planes[band], band, wanted) for band in self.survey.bands
        }
        if not self.survey.zero_is_no_coverage:
            for band, stamp in bands.items():
                check_filled(band, stamp)
        return combined(self.survey, bands, {self._file_name: content})


def check_filled(band: str, stamp: Band) -> None:
    """Refuses a stamp of zeros, which no noise gives.

    Raises:
        RefusedError: more than a hundredth of its pixels are exactly 0.
    """
    num_zero = int(np.count_nonzero(stamp.pixels == 0))
    if num_zero > _MAX_ZERO_FRACTION * stamp.pixels.size:
        raise RefusedError(
            f"band {band} has {num_zero} pixels of exactly 0: the service has no coadd there"
        )
