"""unWISE from unwise.me: `cutout_fits`, a tar.gz with one file per band and coadd.

Unlike the viewer it keeps the coadds' own pixels. Near a coadd's edge several come, cut off there.
Taken is the coadd that holds the whole stamp and whose center is nearest to the position; the names
of coadds tell their centers.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections import defaultdict

import numpy as np

from msdata.errors import UsageError
from msdata.fetch.adapter import Fetched, combined, max_fits_nbytes, place_query
from msdata.fetch.answer import Band, Wanted, band_stamp, fits_planes, start_of
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError, SpoiledError
from msdata.schema import Survey

_SCALE_ARCSEC = 2.75
_VERSION = "neo7"
# The coadd's grid is kept, so the position lies anywhere in a pixel; see panstarrs.py.
_MARGIN_PIXELS = 2
# At the corner of four coadds.
_MOST_COADDS = 9
_MEMBER = re.compile(r"(?:.*/)?unwise-((\d{4})([pm])(\d{3}))-w([12])-img-m\.fits(?:\.gz)?")


class UnwiseMeAdapter:
    """Implements `Adapter` for the array "unwise"."""

    service = "unwise_me"
    requests_per_object = 1

    def __init__(self, survey: Survey) -> None:
        if survey.pixel_scale_arcsec != _SCALE_ARCSEC:
            raise UsageError(
                f"unwise.me has {_SCALE_ARCSEC} arcsec per pixel, "
                f"not {survey.pixel_scale_arcsec:g}; leave --pixel-scale away, "
                "or take unWISE from the viewer"
            )
        self.survey = survey

    def fetch(self, client: Client, position: tuple[float, float]) -> Fetched:
        """See `Adapter.fetch`."""
        size = self.survey.shape[1] + _MARGIN_PIXELS
        query = {
            "version": _VERSION,
            **place_query(position),
            "size": str(size),
            "bands": "".join(band[-1] for band in self.survey.bands),
            "file_img_m": "on",
        }
        wanted = Wanted(survey=self.survey, position=position, size=size, center=None)
        most = max_fits_nbytes(self.survey, size, 1) * len(self.survey.bands) * _MOST_COADDS

        def choose(content: bytes) -> Fetched:
            coadds = _coadds(content, most)
            if not coadds:
                raise RefusedError("its archive holds no coadd")
            reasons = []
            for name in sorted(coadds, key=lambda n: (_distance_deg(n, position), n)):
                try:
                    return self._of_coadd(name, coadds[name], wanted)
                except RefusedError as error:
                    reasons.append(f"coadd {name}: {error}")
            raise RefusedError("; ".join(reasons))

        return client.get("cutout_fits", query, most, choose)

    def _of_coadd(self, name: str, files: dict[str, bytes], wanted: Wanted) -> Fetched:
        bands: dict[str, Band] = {}
        most = max_fits_nbytes(self.survey, wanted.size, 1)
        for band in self.survey.bands:
            if band not in files:
                raise RefusedError(f"it has no band {band}")
            planes = fits_planes(files[band], most)
            if len(planes) != 1 or planes[0].band not in (None, band[-1]):
                raise RefusedError(f"its file of band {band} holds something else")
            bands[band] = band_stamp(planes[0], band, wanted)
        kept = {f"{band}.fits": files[band] for band in self.survey.bands}
        return combined(self.survey, bands, kept, coadd=name)


def _distance_deg(name: str, position: tuple[float, float]) -> float:
    match = _MEMBER.fullmatch(f"unwise-{name}-w1-img-m.fits")
    assert match is not None
    ra, dec = int(match[2]) / 10, int(match[4]) / 10 * (1 if match[3] == "p" else -1)
    a, d = np.radians([ra, dec]), np.radians(position)
    cosine = np.sin(a[1]) * np.sin(d[1]) + np.cos(a[1]) * np.cos(d[1]) * np.cos(a[0] - d[0])
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _coadds(content: bytes, most_nbytes: int) -> dict[str, dict[str, bytes]]:
    """Files by coadd and band. Nothing is unpacked to the disk, and nothing beyond the limit."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(most_nbytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SpoiledError(f"it sent no tar.gz but {start_of(content)!r}") from error
    if len(unpacked) > most_nbytes:
        raise RefusedError(f"its archive has more than {most_nbytes:,} bytes unpacked")
    found: dict[str, dict[str, bytes]] = defaultdict(dict)
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for member in archive:
                match = _MEMBER.fullmatch(member.name)
                packed = archive.extractfile(member) if match and member.isreg() else None
                if match is None or packed is None:
                    continue
                body = packed.read()
                if len(body) != member.size:
                    raise SpoiledError(f"its archive is truncated in {member.name}")
                found[match[1]][f"W{match[5]}"] = body
    except tarfile.TarError as error:
        raise SpoiledError(f"its archive is broken: {error}") from error
    return dict(found)
