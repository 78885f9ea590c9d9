"""Layers of the Legacy Survey viewer: `fits-cutout`, one answer with all bands.

The viewer resamples so that the position lies exactly in the middle. It answers unknown `bands=`
with all bands, so for GALEX and unWISE none are asked for, and the header tells those that come.
Where coadds overlap the viewer itself lays them over the one grid, so there is nothing to choose;
where it has no coadd it sends zeros, which noise never gives.

It stands alone because each module of a service holds one protocol.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from msdata.fetch.adapter import Fetched, combined, max_fits_nbytes, place_query
from msdata.fetch.answer import Band, Wanted, band_stamp, fits_planes, planes_by_band
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError
from msdata.schema import Survey
from msdata.sources.survey_file import SurveyFile

_MAX_ZERO_FRACTION = 0.01
# Layer, the file's name after the id, and the viewer's words for the bands.
LAYERS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "galex": ("galex", "Galex.fits", {"n": "NUV", "f": "FUV", "nuv": "NUV", "fuv": "FUV"}),
    "unwise": ("unwise-neo7", "Unwise.fits", {"1": "W1", "2": "W2", "w1": "W1", "w2": "W2"}),
}


class ViewerAdapter:
    """Implements `Adapter` for an array that is a layer of the viewer.

    Args:
        survey: the array.
        layer: what the viewer calls it.
        file_name: what follows the id in the file's name.
        words: the viewer's names of the bands, in lower case, and the survey's.
        rules: the survey file that the array is of; None for those of `MANTIS_SHRIMP`.
    """

    service = "legacy"
    requests_per_object = 1

    def __init__(
        self,
        survey: Survey,
        layer: str,
        file_name: str,
        words: Mapping[str, str],
        rules: SurveyFile | None = None,
    ) -> None:
        self.survey = survey
        self._layer, self._file_name, self._words, self._rules = layer, file_name, words, rules

    def fetch(self, client: Client, position: tuple[float, float]) -> Fetched:
        """See `Adapter.fetch`."""
        survey, size = self.survey, self.survey.shape[1]
        query = {
            **place_query(position),
            "size": str(size),
            "pixscale": f"{survey.pixel_scale_arcsec:g}",
            "layer": self._layer,
        }
        if self._rules is not None:
            query["bands"] = "".join(survey.bands)
        wanted = Wanted(
            survey=survey, position=position, size=size, center=(size - 1) / 2, rules=self._rules
        )
        most = max_fits_nbytes(survey, size, len(survey.bands))

        def check(content: bytes) -> Fetched:
            planes = planes_by_band(fits_planes(content, most), survey, self._words)
            bands = {band: band_stamp(planes[band], band, wanted) for band in survey.bands}
            if not survey.zero_is_no_coverage:
                for band, stamp in bands.items():
                    check_filled(band, stamp)
            return combined(survey, bands, {self._file_name: content})

        return client.get("fits-cutout", query, most, check)


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
