"""Which image of a FITS file is the one of a band: by its names, never by its place.

Weights, errors and masks are not images; of several that may be meant none is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msdata.errors import SampleError
from msdata.schema import Survey
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
    if extension is None:
        chosen = [plane for plane in planes if not plane.is_auxiliary]
        fault = "it has only images of weights, errors or masks"
    else:
        chosen = [p for p in planes if extension.upper() in (p.extension, str(p.number))]
        fault = f"it has no image extension {extension}"
    if not chosen:
        raise SampleError(f"{name}: {fault}: {_extensions(planes)}")
    return chosen


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
        raise SampleError(f"{name}: its header says that it holds band {said[0]}")
    if band in said:
        meant = [plane for plane, word in zip(planes, said, strict=True) if word == band]
    named = [plane for plane in meant if plane.is_named_flux]
    meant = named or meant
    if len({plane.number for plane in meant}) > 1:
        raise SampleError(
            f"{name}: it holds several images ({_extensions(meant)}); choose one at the end of "
            "the pattern of --fits, such as {id}.{band}.fits[SCI]"
        )
    if len(meant) > 1:
        raise SampleError(f"{name}: its image is a cube of {len(meant)} planes, not one of {band}")
    return meant[0]


def _band_of(survey: Survey, plane: Plane, rules: SurveyFile | None) -> str | None:
    """The schema's name of a plane's band; what the header says where the schema has no such."""
    if plane.band is None:
        return None
    own = {band.lower(): band for band in survey.bands}
    told = _BAND_WORDS.get(survey.name, {}) if rules is None else rules.band_words
    words = {**told, **own}
    return words.get(plane.band, plane.band)


def by_band(
    survey: Survey,
    name: str,
    planes: Sequence[Plane],
    order: tuple[str, ...] | None,
    rules: SurveyFile | None,
) -> dict[str, Plane]:
    """The plane of each band of a file with several; of planes of the same band the first counts.

    A second image of the same bands without a name is an inverse variance or a mask.
    """
    said = [_band_of(survey, plane, rules) for plane in planes]
    if order is not None and not any(said) and len(planes) == len(order):
        said = list(order)
    chosen: dict[str, Plane] = {}
    for band, plane in zip(said, planes, strict=True):
        if band is not None:
            chosen.setdefault(band, plane)
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
