"""Layouts of published files: which arrays are images, with what bands and pixel scale.

It stands alone because each layout is a fact about somebody else's files, not code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from msdata.errors import DataError
from msdata.schema import Survey


@dataclass(frozen=True, kw_only=True)
class KnownLayout:
    """What is known of a file by the names in it.

    Attributes:
        arrays: names in the file, by the samples' names; empty for an unknown layout.
        bands: bands by array.
        pixel_scales_arcsec: pixel scales by array.
        notes: what was recognized.
    """

    arrays: Mapping[str, str] = field(default_factory=dict)
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pixel_scales_arcsec: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def describe(self, survey: Survey) -> Survey:
        """The array with what is known of it."""
        return replace(
            survey,
            bands=self.bands.get(survey.name, ()),
            pixel_scale_arcsec=self.pixel_scales_arcsec.get(survey.name),
        )


def with_bands(survey: Survey, found: Any, notes: list[str]) -> Survey | None:
    """An array whose file names its bands, as columns of Parquet may; None where it does not.

    Args:
        survey: the array.
        found: in the file.
        notes: gets one on the bands.
    """
    bands: tuple[str, ...] = getattr(found, "bands", ())
    if not bands:
        return None
    notes.append(f"array {survey.name!r} is stacked of its bands {', '.join(bands)}")
    return replace(survey, bands=bands, pixel_scale_arcsec=found.pixel_scale_arcsec)


def known_layout(file: Mapping[str, Any]) -> KnownLayout:
    """The layout of a file, by its names and shapes; an empty one where it is unknown.

    Args:
        file: arrays by name, samples first.

    Raises:
        DataError: images of one file have different bands.

    Source: Leung & Bovy, Galaxy10 DECaLS (astroNN); The Multimodal Universe Collaboration 2024,
    arXiv:2412.02527, its HDF5 files of images.
    """
    if {"images", "ans"} <= file.keys() and tuple(file["images"].shape[1:]) == (256, 256, 3):
        return KnownLayout(
            arrays={"images": "images"},
            # Colors of a JPEG made of g, r, z: no fluxes.
            bands={"images": ("red", "green", "blue")},
            pixel_scales_arcsec={"images": 0.262},
            notes=("recognized Galaxy10 DECaLS: colors of g, r, z images, class in 'ans'",),
        )
    if {"image_array", "image_band"} <= file.keys():
        return _multimodal_universe(file)
    return KnownLayout()


def _multimodal_universe(file: Mapping[str, Any]) -> KnownLayout:
    found = np.asarray(file["image_band"][...])
    bands = [
        tuple(b.decode() if isinstance(b, bytes) else str(b) for b in row)
        for row in {tuple(row) for row in found.reshape(len(found), -1).tolist()}
    ]
    if len(bands) != 1:
        raise DataError(f"its images have different bands ({bands[0]}, {bands[1]}); split the file")
    scales: dict[str, float] = {}
    if "image_scale" in file:
        said = np.unique(np.asarray(file["image_scale"][...], np.float64))
        # Other values than one differ from band to band, or from image to image.
        if len(said) == 1 and said[0] > 0:
            scales["image"] = float(said[0])
    # Survey's own words, such as "des-g": each band's name must be distinct.
    return KnownLayout(
        arrays={"image": "image_array"},
        bands={"image": bands[0]},
        pixel_scales_arcsec=scales,
        notes=(f"recognized images of the Multimodal Universe in bands {', '.join(bands[0])}",),
    )
