"""Which image of a FITS file is the one of a band: by its names, never by its place.

Weights, errors and masks are not images; of several that may be meant none is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from msdata.errors import SampleError
from msdata.schema import Array, Survey
from msdata.sources.fits_image import Plane, read_planes
from msdata.sources.survey_file import SurveyFile

# What headers call bands, in lower case, beside the bands' own names. GALEX numbers them 1 NUV, 2
# FUV; the Legacy Survey viewer says n and f; WISE 1 and 2.
_BAND_WORDS = {
    "galex": {"1": "NUV", "2": "FUV", "n": "NUV", "f": "FUV", "nuv": "NUV", "fuv": "FUV"},
    "unwise": {"1": "W1", "2": "W2", "w1": "W1", "w2": "W2"},
    "panstarrs": {},
}


class MissingError(SampleError):
    """An object has no such file or band; another fault of a file never counts as that."""


def named_planes(
    name: str, content: bytes, extension: str | None, rules: SurveyFile | None
) -> list[Plane]:
    """The planes of the extension asked for; else of all but those of weights, masks and such."""
    try:
        keys = () if rules is None else (*rules.keys, rules.system_key)
        planes = read_planes(content, keys=tuple(filter(None, keys)))
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from error
    beside = () if rules is None else (rules.mask, rules.weight)
    aside = [rule.extension for rule in beside if rule is not None]
    if extension is None:
        chosen = [p for p in planes if not (p.is_auxiliary or any(_is_in(p, e) for e in aside))]
        fault = "it has only images of weights, errors or masks"
    else:
        chosen = [plane for plane in planes if _is_in(plane, extension)]
        fault = f"it has no image extension {extension}"
        if any(plane.is_auxiliary for plane in chosen):
            chosen, fault = [], f"its extension {extension} holds weights, errors or a mask"
    if not chosen:
        cure = "name it in extension of the survey file, or at the end of a --fits pattern: [SCI]"
        cure = "give files of images" if extension is None else cure
        raise SampleError(f"{name}: {fault}: {_extensions(planes)}; {cure}")
    try:
        return [_without_bad(plane, planes, rules) for plane in chosen]
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from error


def _is_in(plane: Plane, extension: str) -> bool:
    return extension.upper() in (plane.extension, str(plane.number))


def _without_bad(plane: Plane, planes: Sequence[Plane], rules: SurveyFile | None) -> Plane:
    """The plane with NaN where the survey's mask or weights say that pixels are bad."""
    is_bad = np.zeros(plane.pixels.shape, np.bool_)
    if rules is not None and rules.mask is not None:
        bits = _beside(plane, planes, rules.mask.extension, "mask")
        with np.errstate(invalid="ignore"):
            whole = bits.astype(np.int64)
        if not np.array_equal(whole, bits):
            raise SampleError(f"its mask {rules.mask.extension} holds {bits.dtype}, not bits")
        is_bad |= (whole & sum(1 << bit for bit in rules.mask.bad_bits)) != 0
    if rules is not None and rules.weight is not None:
        is_bad |= ~(_beside(plane, planes, rules.weight.extension, "weight") > 0)
    if not is_bad.any():
        return plane
    kind = np.promote_types(plane.pixels.dtype, np.float32)
    return replace(plane, pixels=np.where(is_bad, kind.type(np.nan), plane.pixels.astype(kind)))


def _beside(plane: Plane, planes: Sequence[Plane], extension: str, what: str) -> Array:
    """The pixels of a mask or weights that belong to a plane: of the same place in their cube."""
    found = [p for p in planes if _is_in(p, extension)]
    if not found:
        raise SampleError(
            f"it has no {what} extension {extension}: {_extensions(planes)}; correct {what} in the "
            "survey file"
        )
    own = [p for p in planes if p.number == plane.number]
    place = next(k for k, p in enumerate(own) if p is plane)
    if len(found) not in (1, len(own)):
        raise SampleError(f"its {what} {extension} has {len(found)} planes, its image {len(own)}")
    pixels = found[place if len(found) > 1 else 0].pixels
    if pixels.shape != plane.pixels.shape:
        shapes = ["x".join(map(str, shape[::-1])) for shape in (pixels.shape, plane.pixels.shape)]
        raise SampleError(f"its {what} {extension} has {shapes[0]} pixels, its image {shapes[1]}")
    return pixels


def _extensions(planes: Sequence[Plane]) -> str:
    """Names of the planes' extensions, or their numbers, each once."""
    return ", ".join(dict.fromkeys(plane.extension[:20] or str(plane.number) for plane in planes))


def one_of(
    survey: Survey, band: str, name: str, planes: Sequence[Plane], rules: SurveyFile | None
) -> Plane:
    """The plane of a band in a file of its own; never the first of several that may be meant."""
    said = [_band_of(survey, plane, rules) for plane in planes]
    meant = [plane for plane, word in zip(planes, said, strict=True) if word in (band, None)]
    if not meant:
        cure = (
            "" if rules is None else "; correct the file's name, or band_words in the survey file"
        )
        raise SampleError(f"{name}: its header says that it holds band {said[0]}{cure}")
    if band in said:
        meant = [plane for plane, word in zip(planes, said, strict=True) if word == band]
    return _only(name, band, meant)


def _only(name: str, band: str, planes: Sequence[Plane]) -> Plane:
    """The one plane that may be a band's: of several images the one that is named so."""
    meant = [plane for plane in planes if plane.is_named_flux] or planes
    if len({plane.number for plane in meant}) > 1:
        raise SampleError(
            f"{name}: it holds several images ({_extensions(meant)}); choose one at the end of "
            "the pattern of --fits, such as {id}.{band}.fits[SCI]"
        )
    if len(meant) > 1:
        raise SampleError(
            f"{name}: its image is a cube of {len(meant)} planes, not one of {band}; name "
            "their bands in BAND0, BAND1, ... or give one file per band"
        )
    return meant[0]


def _band_of(survey: Survey, plane: Plane, rules: SurveyFile | None) -> str | None:
    """The schema's name of a plane's band; what the header says where the schema has no such."""
    own = {band.lower(): band for band in survey.bands}
    told = _BAND_WORDS.get(survey.name, {}) if rules is None else rules.band_words
    words = {**told, **own}
    if plane.band is None:
        # An extension may be named after its band.
        return words.get(plane.extension.lower())
    return words.get(plane.band, plane.band)


def by_band(
    survey: Survey,
    name: str,
    planes: Sequence[Plane],
    order: tuple[str, ...] | None,
    rules: SurveyFile | None,
) -> dict[str, Plane]:
    """The plane of each band of a file with several.

    Bands come by name, else in an order that the user said; one image of a survey of one band needs
    neither. Of planes of one band none is guessed, but in files of the Legacy Survey's viewer,
    where a second image without a name is an inverse variance.
    """
    said = [_band_of(survey, plane, rules) for plane in planes]
    if order is None and len(survey.bands) == 1:
        order = survey.bands
    if order is not None and not any(said) and len(planes) == len(order):
        said = list(order)
    by_name: dict[str, list[Plane]] = {}
    for band, plane in zip(said, planes, strict=True):
        if band is not None:
            by_name.setdefault(band, []).append(plane)
    chosen = {band: found[0] for band, found in by_name.items()}
    if rules is not None:
        own = [band for band in survey.bands if band in by_name]
        chosen |= {band: _only(name, band, by_name[band]) for band in own}
    if chosen and not chosen.keys() & set(survey.bands):
        # Of another survey, not one whose bands are missing.
        fault = f"it has no band {survey.bands[0]}, only {', '.join(chosen)}"
        raise SampleError(f"{name}: {fault}")
    if not chosen:
        raise SampleError(
            f"{name}: its header does not name the bands of its {len(planes)} images; say their "
            f"order with --fits-bands {survey.name}=..."
        )
    return chosen


def plane_of(band: str, name: str, chosen: Mapping[str, Plane]) -> Plane:
    """The plane of a band, of those that `by_band` found.

    Raises:
        MissingError: it is not among them.
    """
    if band not in chosen:
        raise MissingError(f"{name}: it has no band {band}, only {', '.join(chosen)}")
    return chosen[band]
