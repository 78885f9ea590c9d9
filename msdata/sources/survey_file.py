"""Survey files: TOML that says what FITS files of a survey are named and hold.

Those beside this module in `surveys` are known by name; anyone can write another one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msdata.core.checked_json import JsonValue, Within
from msdata.core.files import storage_error
from msdata.errors import DataError, SampleError, UsageError
from msdata.schema import MANTIS_SHRIMP, Survey
from msdata.sources import SURVEYS

# Every pack imports this module, and few read FITS files: what reads them is imported there.
if TYPE_CHECKING:
    from msdata.sources.fits_image import Photometry

SHIPPED = SURVEYS
_MAX_NBYTES = 1 << 16
_CURE = "correct it, see the shipped ones in msdata/sources/surveys"
_NANOMAGGIES = ("nanomaggy", "nanomaggies", "nmgy", "nanomgy")
# AB magnitude of 1 Jy.
_JANSKY_ZERO_POINT = 8.90
_STERADIANS_PER_ARCSEC2 = math.radians(1 / 3600) ** 2
# 0.016 magnitudes.
_AREA_TOLERANCE = 0.015
_SERVICE_WORD = re.compile(r"[A-Za-z0-9/_.+ -]{0,200}")
# What BUNIT says of pixels whose flux the zero-point alone tells.
_COUNTS = re.compile(
    r"(counts?|cts?|adu|dn|electrons?|e-?|photons?|none|unknown)(/s(ec(ond)?)?|/\(?s\)?|s(\^|\*\*)?-1)?"
)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """An image of bits beside that of flux.

    Attributes:
        extension: its name or number, in the same file.
        bad_bits: numbers of the bits that mark a bad pixel, 0 for the lowest.
    """

    extension: str
    bad_bits: Annotated[tuple[Annotated[int, Within(0, 62)], ...], Within(1, 63)]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """An image of weights or inverse variances beside that of flux.

    Attributes:
        extension: its name or number, in the same file.
        zero_is_bad: a pixel without a weight above 0 is bad.
    """

    extension: str
    zero_is_bad: Literal[True] = True


@dataclass(frozen=True, kw_only=True)
class SurveyFile:
    """A survey's images: one array of the samples.

    Attributes:
        name: the array's.
        pattern: names of its files, see `FitsOptions.patterns`.
        bands: in order.
        pixel_scale_arcsec: of the stamps.
        size: pixels of a stamp's side.
        unit: of the pixels; a file whose BUNIT says another one is refused. Empty for counts.
        requires_unit: refuse a file without BUNIT.
        zero_points_ab: AB magnitude of 1 unit, one or one per band, where no key says it.
        zero_point_keys: cards with the magnitude of 1 unit; the first that is there counts.
        flux_keys: cards with the flux of magnitude 0.
        area_key: card with a pixel's area in steradians, of pixels in MJy/sr.
        ab_minus_vega: added to magnitudes of `zero_point_keys`, one per band.
        system_key: card that says AB where these are AB already.
        extension: name or number of the image extension; empty takes the only image.
        origins: words, one of which TELESCOP, INSTRUME or SURVEY must hold; empty for any.
        band_words: what headers call the bands, in lower case.
        mask: where bad pixels are marked; these become NaN.
        weight: likewise.
        layer: the Legacy Survey viewer's name of its images, where `msdata fetch` finds them.
        hips: HiPS of each band, where `msdata fetch` finds them else.
    """

    name: str
    pattern: str
    bands: tuple[str, ...]
    pixel_scale_arcsec: float
    size: int
    unit: str = ""
    requires_unit: bool = False
    zero_points_ab: tuple[float, ...] = ()
    zero_point_keys: tuple[str, ...] = ()
    flux_keys: tuple[str, ...] = ()
    area_key: str = ""
    ab_minus_vega: tuple[float, ...] = ()
    system_key: str = ""
    extension: str = ""
    origins: tuple[str, ...] = ()
    band_words: Mapping[str, str] = field(default_factory=dict)
    mask: Mask | None = None
    weight: Weight | None = None
    layer: str = ""
    hips: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"survey {self.name!r}"
        if self.name in MANTIS_SHRIMP.names:
            raise UsageError(f"{where}: the name is taken by --fits; choose another one")
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise UsageError(f"{where}: bands must be distinct names, got {list(self.bands)}")
        if not (0 < self.pixel_scale_arcsec < math.inf and 1 <= self.size <= 8192):
            raise UsageError(
                f"{where}: pixel_scale_arcsec must be > 0 and size 1 to 8192, got "
                f"{self.pixel_scale_arcsec:g} and {self.size}"
            )
        if len(self.zero_points_ab) not in (0, 1, len(self.bands)):
            raise UsageError(f"{where}: zero_points_ab must be one, or one per band")
        if len(self.ab_minus_vega) not in (0, len(self.bands)):
            raise UsageError(f"{where}: ab_minus_vega must be one per band")
        if not (self.zero_points_ab or self.keys):
            raise UsageError(
                f"{where} needs a zero-point: zero_points_ab, zero_point_keys, flux_keys or "
                "area_key"
            )
        check_not_auxiliary(where, self.files)
        if self.hips and set(self.hips) != set(self.bands):
            raise UsageError(f"{where}: hips must name one HiPS per band, got {list(self.hips)}")
        if not all(_SERVICE_WORD.fullmatch(word) for word in (*self.hips.values(), self.layer)):
            raise UsageError(
                f"{where}: layer and hips must be like ls-dr10 and CDS/P/PanSTARRS/DR1/g"
            )
        if self.pattern.startswith("/") or ".." in self.pattern.split("/"):
            raise UsageError(f"{where}: pattern must stay in its folder, got {self.pattern!r}")
        if self.requires_unit and not self.unit:
            raise UsageError(f"{where}: requires_unit needs unit")

    @property
    def keys(self) -> tuple[str, ...]:
        """The header's cards that its zero-point needs."""
        found = (*self.zero_point_keys, *self.flux_keys, self.area_key)
        return tuple(key for key in found if key)

    @property
    def files(self) -> str:
        """The pattern, with the extension."""
        return f"{self.pattern}[{self.extension}]" if self.extension else self.pattern

    @property
    def digest(self) -> str:
        """What tells two files of one name apart whose images are fetched differently."""
        said = asdict(self)
        names = ("pattern", "bands", "pixel_scale_arcsec", "size", "layer", "hips")
        text = json.dumps([said[name] for name in names], sort_keys=True)
        import hashlib

        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def survey(self) -> Survey:
        """The array; its zero-points where they are the same for all files."""
        fixed = self.zero_points_ab if not self.keys else ()
        if len(fixed) == 1:
            fixed *= len(self.bands)
        return Survey(
            name=self.name,
            shape=(len(self.bands), self.size, self.size),
            bands=self.bands,
            pixel_scale_arcsec=self.pixel_scale_arcsec,
            unit=self.unit,
            zero_points_ab=fixed or None,
            casts_to_dtype=True,
        )

    def zero_point_ab(
        self, band: str, photometry: Photometry, pixel_arcsec2: float | None = None
    ) -> float:
        """AB magnitude of a pixel value of 1.

        Args:
            band: one of the bands.
            photometry: of the file's header, with the cards `keys` and `system_key`.
            pixel_arcsec2: area of a pixel by the header's WCS, square arcsec; None if unknown.

        Raises:
            SampleError: the header says another unit or survey, or lacks the cards.
        """
        self._check(photometry)
        cards, place = photometry.cards, self.bands.index(band)
        for key in self.zero_point_keys:
            if (value := _positive(cards.get(key))) is not None:
                is_ab = str(cards.get(self.system_key, "")).strip().upper().startswith("AB")
                return (
                    value if is_ab or not self.ab_minus_vega else value + self.ab_minus_vega[place]
                )
        for key in self.flux_keys:
            if (value := _positive(cards.get(key))) is not None:
                return 2.5 * math.log10(value)
        if self.area_key and (value := _positive(cards.get(self.area_key))) is not None:
            found = value if pixel_arcsec2 is None else pixel_arcsec2 * _STERADIANS_PER_ARCSEC2
            if abs(value / found - 1) > _AREA_TOLERANCE:
                raise SampleError(
                    f"its {self.area_key} is {value:.4g} sr, but a pixel of its WCS has "
                    f"{found:.4g} sr; correct the card"
                )
            return _JANSKY_ZERO_POINT - 2.5 * math.log10(1e6 * value)
        if not self.zero_points_ab:
            raise SampleError(
                f"its header has none of {', '.join(self.keys)}, so its zero-point is unknown; "
                "give zero_points_ab, or the cards that it has, in a survey file of your own"
            )
        return self.zero_points_ab[place if len(self.zero_points_ab) > 1 else 0]

    def _check(self, photometry: Photometry) -> None:
        said, own = photometry.unit, self.unit.lower().replace(" ", "")
        if not said and self.requires_unit:
            raise SampleError(
                f"its header has no BUNIT, expected {own!r} of {self.name}; add the card, or set "
                "requires_unit = false in a survey file of your own"
            )
        is_same = said == own or {said, own} <= {*_NANOMAGGIES}
        if not own:
            is_same = _COUNTS.fullmatch(said) is not None
        if said and not is_same:
            expected = repr(own) if own else "counts"
            raise SampleError(
                f"its pixels' unit is {said!r}, expected {expected} of {self.name}; say what it is "
                "in a survey file of your own"
            )
        texts = [value.lower() for _, value in photometry.origin]
        words = [rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])" for word in self.origins]
        if words and texts and not any(re.search(w, t) for w in words for t in texts):
            raise SampleError(
                f"its header says {', '.join(texts)}, so it is not of {self.name} and has another "
                "zero-point"
            )


def check_not_auxiliary(where: str, pattern: str) -> None:
    """Refuses a pattern, or its extension, that names weights, errors or masks.

    Raises:
        UsageError: it does.
    """
    literal = pattern.replace("{id}", "-").replace("{band}", "-").upper()
    from msdata.sources.fits_image import AUXILIARY

    found = AUXILIARY.search(literal)
    if found:
        raise UsageError(
            f"{where}: {pattern!r} is named like weights, errors or a mask "
            f"({found[0].strip()}), which are not packed as an image; name the files of its images"
        )


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def read_survey(said: str) -> SurveyFile:
    """Reads a survey file.

    Args:
        said: name of a shipped one, such as `hsc`, or a path.

    Raises:
        UsageError: there is none, or it does not describe a survey.
        StorageError: the file system refused.
    """
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}
    path = shipped.get(said, Path(said))
    if not path.is_file():
        raise UsageError(
            f"--survey must be one of {', '.join(shipped)}, or a TOML file, got {said!r}"
        )
    import tomllib

    try:
        if path.stat().st_size > _MAX_NBYTES:
            raise UsageError(f"{path} has more than {_MAX_NBYTES:,} bytes; {_CURE}")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}; {_CURE}") from error
    unknown = found.keys() - {f.name for f in fields(SurveyFile)}
    if unknown:
        known = ", ".join(f.name for f in fields(SurveyFile))
        raise UsageError(f"{path} has the unknown key {min(unknown)!r}; known are {known}")
    try:
        return JsonValue(found, path, _CURE).read_as(SurveyFile)
    except DataError as error:
        raise UsageError(str(error).replace(" is damaged: ", " cannot be used: ", 1)) from error
