"""Images of a survey file: a layer of the Legacy Survey viewer, or HiPS by CDS' hips2fits.

Both interpolate what they send and keep values, not flux: asked for are the survey's own pixels.
The viewer sends one file with all bands; hips2fits one per band, whose header has little beside the
WCS, so unit and zero-point are those of the survey file. A HiPS of JPEG tiles comes as bytes in
three colors, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from msdata.errors import UsageError
from msdata.fetch.adapter import Adapter, Fetched, combined, max_fits_nbytes, place_query
from msdata.fetch.answer import Band, Wanted, band_stamp, fits_planes
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError
from msdata.fetch.legacy import ViewerAdapter, check_filled
from msdata.sources.survey_file import SurveyFile

# Of the bricks' coadds, which all layers of the survey's own images show.
_LAYER_SCALE_ARCSEC = 0.262


def survey_adapter(rules: SurveyFile) -> Adapter:
    """The adapter of a survey file.

    Raises:
        UsageError: the file names no service, or one that does not have such files.
    """
    if rules.layer and rules.hips:
        raise UsageError(f"survey {rules.name!r}: give layer or hips, not both")
    if rules.layer:
        _check_name(rules, is_by_band=False)
        if rules.layer.startswith("ls-") and rules.pixel_scale_arcsec != _LAYER_SCALE_ARCSEC:
            raise UsageError(
                f"survey {rules.name!r}: layer {rules.layer} has {_LAYER_SCALE_ARCSEC} arcsec per "
                f"pixel, not {rules.pixel_scale_arcsec:g}, and the viewer would not keep the flux"
            )
        return ViewerAdapter(rules.survey(), rules.layer, rules.pattern, _words(rules), rules)
    if rules.hips:
        return HipsAdapter(rules)
    raise UsageError(
        f"survey {rules.name!r} names no service to fetch from; give layer (Legacy Survey viewer) "
        "or hips (hips2fits) in a survey file of your own, or get its files by other means"
    )


def _check_name(rules: SurveyFile, *, is_by_band: bool) -> None:
    if ("{band}" in rules.pattern) != is_by_band or rules.extension:
        said = "one file per band" if is_by_band else "one file with all bands"
        how = "with {band}" if is_by_band else "without {band}"
        raise UsageError(
            f"survey {rules.name!r}: its service sends {said}; its pattern must be {how} and name "
            f"no extension, got {rules.files!r}"
        )


class HipsAdapter:
    """Implements `Adapter` for a HiPS per band."""

    service = "hips2fits"

    def __init__(self, rules: SurveyFile) -> None:
        _check_name(rules, is_by_band=True)
        self.requests_per_object = len(rules.bands)
        self.survey = rules.survey()
        self._rules = rules

    def fetch(self, client: Client, position: tuple[float, float]) -> Fetched:
        """See `Adapter.fetch`."""
        size, rules = self._rules.size, self._rules
        # The reference pixel is size / 2, counted from 1: half a pixel before the middle.
        wanted = Wanted(
            survey=self.survey, position=position, size=size, center=(size - 1) / 2, rules=rules
        )
        most = max_fits_nbytes(self.survey, size, 3)
        bands: dict[str, Band] = {}
        files: dict[str, bytes] = {}
        for band in rules.bands:
            query = {
                "hips": rules.hips[band],
                **place_query(position),
                "width": str(size),
                "height": str(size),
                "fov": f"{size * rules.pixel_scale_arcsec / 3600:.12f}",
                "projection": "TAN",
                "coordsys": "icrs",
                "rotation_angle": "0.0",
                "format": "fits",
            }
            name = rules.pattern.replace("{band}", band)
            check = partial(self._checked, band, wanted, most)
            bands[band], files[name] = client.get("hips2fits", query, most, check)
        return combined(self.survey, bands, files)

    def _checked(
        self, band: str, wanted: Wanted, most_nbytes: int, content: bytes
    ) -> tuple[Band, bytes]:
        planes = fits_planes(content, most_nbytes)
        if len(planes) != 1 or planes[0].pixels.dtype.itemsize == 1:
            raise RefusedError(
                f"band {band}: HiPS {self._rules.hips[band]} has tiles of a picture, {len(planes)} "
                f"planes of {planes[0].pixels.dtype}, not flux; name one with FITS tiles"
            )
        if _words(self._rules).get(planes[0].band or "", band) != band:
            raise RefusedError(f"band {band}: its header says that it holds {planes[0].band}")
        stamp = band_stamp(planes[0], band, wanted)
        check_filled(band, stamp)
        return stamp, content


def _words(rules: SurveyFile) -> Mapping[str, str]:
    return {**rules.band_words, **{band.lower(): band for band in rules.bands}}
