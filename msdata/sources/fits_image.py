"""Reads FITS images: planes with their band's name, their place on the sky, their photometry.

The one file that opens images with astropy. Readers are called from many threads, and both astropy
and the `warnings` module have state of their own, so a lock is held while a file is parsed; bytes
are read from storage outside of it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import math
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import SampleError
from msdata.sources.stamp import Placement

# Four times a whole Pan-STARRS sky cell.
MAX_NBYTES = 1 << 30
# Many threads unpack at once; survey images shrink by less, whole tiles of zeros are not larger.
_MAX_RATIO, _MIN_LIMIT_NBYTES = 50, 1 << 27
# All that a position needs; the hundreds of other cards take most of the time.
_WCS_CARD = re.compile(
    r"WCSAXES|C(TYPE|RPIX|RVAL|DELT|UNIT|ROTA)[12]|(CD|PC|PV)[12]_\d+|LONPOLE|LATPOLE|RADE(SYS|CSYS)"
    r"|EQUINOX|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)"
)
_OLD_PC_CARD = re.compile(r"PC00([12])00([12])")
# What extensions are called that hold no flux, and those that do; other names say nothing.
AUXILIARY = re.compile(
    r"(?<![A-Z0-9])(WHT|WEIGHT(S|MAP)?|WGT|WT|I(NV)?VAR|VAR(IANCE)?|ERR(OR)?S?|UNC(ERT)?|SIGMA|RMS|STD"
    r"|NOISE|MASK|MSK|DQ|FLAGS?|EXP(MAP)?|CTX|NEXP|NIMAGE|COV(ERAGE)?|DEPTH|BKG|BACKGROUND|PSF"
    r"|SEG(MENTATION)?|CON(TEXT)?)\d*(?![A-Z0-9])"
)
# Units of variances and their inverses, of bits: squares of what images are in.
_AUXILIARY_UNIT = re.compile(
    r"1/.*|\(.*\)(\^|\*\*)?\(?-?2\)?|bit(s|mask)?|flags?|sigma|"
    r"(adu|counts?|ct|dn|electrons?|e-?|nanomagg(y|ies)|nmgy|[mun]?jy)(\^|\*\*)?\(?-?2\)?"
)
_FLUX = re.compile(r"(?<![A-Z0-9])(SCI(ENCE)?|IMAGE|IMG|DATA|COADD|STACK|SIGNAL)\d*(?![A-Z0-9])")
_ORIGIN_CARDS = ("TELESCOP", "INSTRUME", "SURVEY", "FPA.TELESCOPE", "FPA.INSTRUMENT", "PSCAMERA")
_KIND_CARDS = ("EXTNAME", "EXTTYPE", "IMAGETYP", "PRODTYPE", "IMTYPE")
_BAND_CARDS = ("BAND", "FILTER", "FPA.FILTER", "FPA.FILTERID")
# astropy is not safe against two threads; `warnings.catch_warnings` even less.
_PARSING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Photometry:
    """What a header says of its image's flux; None where it says nothing.

    Attributes:
        unit: BUNIT, in lower case without spaces; empty where absent.
        exposure_s: EXPTIME, seconds.
        exposure_text: EXPTIME as it stands in the header, number or not.
        zero_point: FPA.ZP (Pan-STARRS), magnitude of 1 count/s, AB.
        vega_zero_point: MAGZP (WISE), magnitude of 1 count, Vega.
        origin: names and values of the cards that tell the telescope, instrument or survey.
        cards: further cards that were asked for, of the image or else of the primary header.
    """

    unit: str = ""
    exposure_s: float | None = None
    exposure_text: str | None = None
    zero_point: float | None = None
    vega_zero_point: float | None = None
    origin: tuple[tuple[str, str], ...] = ()
    cards: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exposure_fault(self) -> str:
        """How a header lacks a usable exposure time, for messages."""
        if self.exposure_text is None:
            return "has no EXPTIME"
        return f"has EXPTIME {self.exposure_text}, not seconds > 0"


class SkyGrid:
    """Where an image's pixels lie on the sky.

    Args:
        wcs: astropy's, celestial, two axes; None where the header has none.
        fault: how it has none. Weights and masks often lack what their image has.
    """

    def __init__(self, wcs: Any, fault: str = "") -> None:
        self._wcs = wcs
        self._fault = fault

    def locate(self, ra: float, dec: float) -> Placement:
        """Where a position lies in the image.

        Args:
            ra: degrees, ICRS.
            dec: degrees.

        Raises:
            SampleError: the header has no WCS, or the projection does not reach the position.
        """
        if self._wcs is None:
            raise SampleError(self._fault)
        with _parsing():
            try:
                x, y = self._wcs.all_world2pix([[ra, dec]], 0)[0]
                around = [(x - 0.5, y), (x + 0.5, y), (x, y - 0.5), (x, y + 0.5)]
                sky = np.radians(self._wcs.all_pix2world(around, 0))
            except Exception as error:  # wcslib's errors have no common class
                raise SampleError(f"its WCS does not reach the position: {error}") from error
        if not (np.isfinite([x, y]).all() and np.isfinite(sky).all()):
            raise SampleError("its WCS does not reach the position; check the catalog's ra and dec")
        # Along local axes, so that the poles and right ascension 0 are like any other place.
        directions = _unit_vectors(sky[:, 0], sky[:, 1])
        steps = (directions[[1, 3]] - directions[[0, 2]]).T
        sin_ra, cos_ra = math.sin(math.radians(ra)), math.cos(math.radians(ra))
        sin_dec, cos_dec = math.sin(math.radians(dec)), math.cos(math.radians(dec))
        axes = np.array([[-sin_ra, cos_ra, 0.0], [-sin_dec * cos_ra, -sin_dec * sin_ra, cos_dec]])
        sky_per_pixel = np.degrees(axes @ steps) * 3600
        if abs(np.linalg.det(sky_per_pixel)) < 1e-12:
            raise SampleError("its WCS gives pixels no area")
        return Placement(x=float(x), y=float(y), sky_per_pixel=sky_per_pixel)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One band's image.

    Attributes:
        pixels: (height, width), native byte order, linear in flux.
        band: what the header calls the band, lower case; None where it says nothing.
        grid: its place on the sky.
        photometry: its header's zero-point, exposure and unit.
        extension: name of its extension in capitals, from EXTNAME, EXTTYPE or IMAGETYP; may be
            empty.
        number: number of its extension; 0 is the first.
        product: what further cards call it, such as the Legacy Surveys' PRODTYPE or IMTYPE, in
            capitals; may be empty.
    """

    pixels: NDArray[Any]
    band: str | None
    grid: SkyGrid
    photometry: Photometry
    extension: str = ""
    number: int = 0
    product: str = ""

    @property
    def is_auxiliary(self) -> bool:
        """Whether its name or unit is that of weights, errors, a mask and the like."""
        is_named = AUXILIARY.search(f"{self.extension} {self.product}") is not None
        return is_named or _AUXILIARY_UNIT.fullmatch(self.photometry.unit) is not None

    @property
    def is_named_flux(self) -> bool:
        """Whether its name is that of the image itself."""
        return not self.is_auxiliary and _FLUX.search(self.extension) is not None


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    """Holds the lock; keeps astropy from writing: its remarks on headers go to stdout."""
    import astropy  # noqa: F401, makes its logger

    logger = logging.getLogger("astropy")
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def read_planes(
    content: bytes, most_nbytes: int = MAX_NBYTES, keys: Sequence[str] = ()
) -> list[Plane]:
    """The planes of all images in a FITS file, compressed or not, in their order.

    Args:
        content: the whole file; also compressed by gzip, or with compressed images inside.
        most_nbytes: unpacked, neither the file nor an image may be larger.
        keys: cards to keep in `Photometry.cards`.

    Raises:
        SampleError: it is not FITS, truncated, or lacks an image or a position on the sky.
    """
    limit = min(most_nbytes, _unpacked_limit(content))
    if content[:2] == b"\x1f\x8b":
        content = _unzip(content, limit)
    if content[:9] != b"SIMPLE  =":
        text = content[:60].decode("ascii", "replace").strip()
        raise SampleError(f"it is not a FITS file; it begins with {text!r}")
    with _parsing():
        planes = _parse(content, limit, keys)
    if not planes:
        raise SampleError("it holds no image, only headers")
    return planes


def _unzip(content: bytes, limit: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SampleError(f"its gzip stream is broken: {error}") from error
    if len(unpacked) > limit:
        raise SampleError(f"unpacked it has more than {limit >> 20} MiB")
    return unpacked


def _unpacked_limit(content: bytes) -> int:
    """Bytes that may be made of a file: many times its own, so that small ones stay small."""
    return min(MAX_NBYTES, max(_MIN_LIMIT_NBYTES, _MAX_RATIO * len(content)))


def _parse(content: bytes, limit: int, keys: Sequence[str]) -> list[Plane]:
    from astropy.io import fits

    planes: list[Plane] = []
    try:
        with fits.open(
            io.BytesIO(content),
            memmap=False,
            lazy_load_hdus=False,
            # astropy loses BLANK where it makes unsigned integers or signed bytes.
            do_not_scale_image_data=True,
        ) as hdus:
            for number, hdu in enumerate(hdus):
                if not isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU):
                    continue
                if hdu.header.get("NAXIS", 0) not in (2, 3):
                    continue
                if math.prod(hdu.shape) * abs(hdu.header["BITPIX"]) > 8 * limit:
                    raise SampleError(f"an image of {hdu.shape} has more than {limit >> 20} MiB")
                if hdu.data is not None:
                    headers = (hdu.header, hdus[0].header)
                    cards = {k: h[k] for h in reversed(headers) for k in keys if k in h}
                    planes += _planes_of(headers, _scaled(hdu.data, hdu.header), number, cards)
    except SampleError:
        raise
    except Exception as error:  # astropy raises many kinds on broken files
        raise SampleError(f"it is broken or truncated: {error}") from error
    return planes


def _scaled(stored: NDArray[Any], header: Mapping[str, Any]) -> NDArray[Any]:
    """Pixels of stored numbers: BLANK is NaN, then BSCALE and BZERO; exact up to 32 bits."""
    blank = header.get("BLANK") if stored.dtype.kind in "iu" else None
    scale, zero = _number(header, "BSCALE", 1.0), _number(header, "BZERO", 0.0)
    is_blank = stored == blank if type(blank) is int else np.False_
    if (scale, zero) == (1.0, 0.0) and not is_blank.any():
        return stored
    is_short = stored.dtype.itemsize <= 2 or stored.dtype.kind == "f"
    pixels = stored.astype(np.promote_types(np.float32 if is_short else np.float64, stored.dtype))
    pixels *= scale
    pixels += zero
    pixels[is_blank] = np.nan
    return pixels


def _planes_of(
    headers: Sequence[Any], data: Any, number: int, cards: Mapping[str, Any]
) -> list[Plane]:
    """The planes of an image; `headers` are its own, and the primary one, which speaks for all."""
    header, primary = headers
    if data.dtype.kind not in "iuf":
        raise SampleError(f"its pixels are {data.dtype}, not real numbers")
    cube = data if data.ndim == 3 else data[None]
    native = np.ascontiguousarray(cube, dtype=data.dtype.newbyteorder("="))
    linear = _linear(native, header)
    grid = _grid_of(header)
    photometry = _photometry_of(header, primary, cards)
    said = (str(header.get(card) or "").strip().upper() for card in _KIND_CARDS)
    extension, *others = [*filter(None, said), ""]
    product = " ".join(filter(None, others))
    return [
        Plane(
            pixels=image,
            band=_band_of(header, k, len(cube)) or _band_of(primary, k, len(cube)),
            grid=grid,
            photometry=photometry,
            extension=extension,
            number=number,
            product=product,
        )
        for k, image in enumerate(linear)
    ]


def _linear(pixels: NDArray[Any], header: Mapping[str, Any]) -> NDArray[Any]:
    """Undoes the asinh scaling that Pan-STARRS' stacks are stored with.

    Source: Waters et al. 2020, ApJS 251, 4, section 3.5; fitscut's cutouts lack both cards.
    """
    softening, offset = _number(header, "BSOFTEN"), _number(header, "BOFFSET")
    if softening is None or offset is None:
        return pixels
    scale = 2.5 * math.log10(math.e)
    return np.asarray(offset + 2 * softening * np.sinh(pixels.astype(np.float64) / scale))


def _grid_of(header: Any) -> SkyGrid:
    try:
        return SkyGrid(_wcs_of(header))
    except SampleError as error:
        return SkyGrid(None, str(error))


def _wcs_of(header: Any) -> Any:
    from astropy.io import fits
    from astropy.wcs import WCS

    cards = fits.Header()
    for keyword in header:
        old = _OLD_PC_CARD.fullmatch(keyword)
        name = f"PC{old[1]}_{old[2]}" if old else keyword
        if _WCS_CARD.fullmatch(name) and isinstance(header[keyword], str | int | float):
            cards[name] = header[keyword]
    cards["WCSAXES"] = 2
    kinds = [str(cards.get(f"CTYPE{axis}", "")) for axis in (1, 2)]
    if not (kinds[0].startswith("RA-") and kinds[1].startswith("DEC-")):
        raise SampleError(f"its WCS axes are {kinds}, not right ascension and declination")
    frame = str(cards.get("RADESYS", cards.get("RADECSYS", "ICRS"))).strip()
    if frame not in ("ICRS", "FK5", "") or cards.get("EQUINOX", 2000.0) != 2000.0:
        raise SampleError(
            f"its coordinates are {frame} of {cards.get('EQUINOX')}, not ICRS or FK5 of 2000"
        )
    return WCS(cards, fix=False)


def _band_of(header: Mapping[str, Any], plane: int, num_planes: int) -> str | None:
    """The header's word for the band of a plane: `BAND0`, a letter of `BANDS`, or one band's."""
    word: Any = header.get(f"BAND{plane}")
    bands = str(header.get("BANDS", "")).strip()
    if word is None and len(bands) == num_planes:
        word = bands[plane]
    if word is None and num_planes == 1:
        word = next((header[name] for name in _BAND_CARDS if name in header), None)
    # Pan-STARRS writes g.00000.
    text = "" if word is None else str(word).split(".")[0].strip().lower()
    return text or None


def _photometry_of(
    header: Mapping[str, Any], primary: Mapping[str, Any], cards: Mapping[str, Any]
) -> Photometry:
    both = [(n, header.get(n, primary.get(n))) for n in _ORIGIN_CARDS]
    said = ((name, str(value).strip()[:40]) for name, value in both if value is not None)
    exposure = header.get("EXPTIME")
    return Photometry(
        unit=str(header.get("BUNIT", "")).lower().replace(" ", ""),
        exposure_s=_number(header, "EXPTIME"),
        exposure_text=None if exposure is None else repr(exposure)[:40],
        zero_point=_number(header, "FPA.ZP"),
        vega_zero_point=_number(header, "MAGZP"),
        origin=tuple((name, text) for name, text in said if text),
        cards=cards,
    )


def _number(header: Mapping[str, Any], name: str, usual: float | None = None) -> float | None:
    """A finite number of the header; Pan-STARRS writes the text 'NaN' for unknown ones."""
    try:
        value = float(header[name])
    except (KeyError, TypeError, ValueError):
        return usual
    return value if math.isfinite(value) else usual


def _unit_vectors(ra_rad: NDArray[np.float64], dec_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack(
        [np.cos(dec_rad) * np.cos(ra_rad), np.cos(dec_rad) * np.sin(ra_rad), np.sin(dec_rad)],
        axis=1,
    )
