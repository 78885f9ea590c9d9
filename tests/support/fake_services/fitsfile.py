"""Writes FITS images card by card, with headers like those the services send.

By hand and not with astropy: the headers keep what astropy would correct, such as the old-style
`PC001001` of Pan-STARRS, and the client is tested against bytes that it did not write itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fake_services.grid import Grid

_BLOCK = 2880
Card = tuple[str, Any] | tuple[str, Any, str]


def image_file(pixels: NDArray[Any] | None, cards: Sequence[Card]) -> bytes:
    """A FITS file of one primary image.

    Args:
        pixels: float32 or uint8, (height, width) or (bands, height, width); None for a header
            alone.
        cards: further cards: keyword, value and, if any, comment.

    Returns:
        The file's bytes.
    """
    shape = () if pixels is None else pixels.shape
    is_short = pixels is None or pixels.dtype == np.uint8
    head: list[Card] = [
        ("SIMPLE", True, "file does conform to FITS standard"),
        (
            "BITPIX",
            8 if is_short else -32,
            "number of bits per data pixel",
        ),
        ("NAXIS", len(shape), "number of data axes"),
    ]
    head += [(f"NAXIS{i}", n) for i, n in enumerate(reversed(shape), 1)]
    text = "".join(_card(*card) for card in (*head, ("EXTEND", True), *cards))
    header = (text + "END".ljust(80)).encode("ascii")
    data = b""
    if pixels is not None:
        data = pixels.astype(np.uint8 if pixels.dtype == np.uint8 else ">f4").tobytes()
    return _padded(header, b" ") + _padded(data, b"\0")


def _padded(content: bytes, filler: bytes) -> bytes:
    return content + filler * (-len(content) % _BLOCK)


def _card(keyword: str, value: Any, comment: str = "") -> str:
    if keyword in ("COMMENT", "HISTORY"):
        return f"{keyword:<8}{value}"[:80].ljust(80)
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = f"'{value:<8}'".ljust(20)
    elif isinstance(value, int):
        text = f"{value:>20d}"
    else:
        text = f"{_float(value):>20}"
    name = f"HIERARCH {keyword} " if "." in keyword or len(keyword) > 8 else f"{keyword:<8}"
    text = text if not name.startswith("HIERARCH") else text.strip()
    return f"{name}= {text}{f' / {comment}' if comment else ''}"[:80].ljust(80)


def _float(value: float) -> str:
    text = repr(float(value)).upper()
    return text if "." in text else text.replace("E", ".E")


def panstarrs_cards(grid: Grid, band: str, cell: str, exposure_s: float) -> list[Card]:
    """The header of a PS1 stack as `fitscut.cgi` cuts it out."""
    step = grid.scale_arcsec / 3600
    inputs = max(1, int(exposure_s // 43))
    return [
        ("CTYPE1", "RA---TAN"),
        ("CTYPE2", "DEC--TAN"),
        ("CRVAL1", grid.ra),
        ("CRVAL2", grid.dec),
        ("CRPIX1", grid.x + 1, "Reference pixel shifted for cutout"),
        ("CRPIX2", grid.y + 1, "Reference pixel shifted for cutout"),
        ("CDELT1", step),
        ("CDELT2", step),
        ("PC001001", -1.0),
        ("PC001002", 0.0),
        ("PC002001", 0.0),
        ("PC002002", 1.0),
        ("HISTORY", "ppStack at 2014-12-08T23:43:39.491707"),
        ("NINPUTS", inputs, "Number of input images"),
        ("STK_TYPE", "DEEP_STACK", "type of stack"),
        ("SKYCELL", f"skycell.{cell}", "type of stack"),
        ("TESS_ID", "RINGS.V3", "type of stack"),
        *((f"EXP_{i:04d}", 43.0, "input image exptime") for i in range(inputs)),
        ("PSCAMERA", "GPC1", "Camera name"),
        ("FPA.TELESCOPE", "PS1", "Telescope of origin"),
        ("FPA.FOCUS", "NaN", "Telescope focus"),
        ("FPA.FILTERID", f"{band}.00000", "Filter used (parsed, abstract name)"),
        ("FPA.ZP", 25.0, "Magnitude zero point"),
        ("CELL.GAIN", 1.138861, "CCD gain (e/count)"),
        ("EXPTIME", exposure_s, "Exposure time (sec)"),
        ("MJD-OBS", 56102.1945901679, "Time of exposure"),
        ("HISTORY", "Created by fitscut 1.4.2 (William Jon McCann)"),
        ("RADESYS", "FK5", "added by fitscut"),
        ("TIMESYS", "TAI", "added by fitscut"),
    ]


def viewer_cards(grid: Grid, survey: str, bands: Sequence[str]) -> list[Card]:
    """The header of the Legacy viewer's `fits-cutout`."""
    return [
        ("SURVEY", survey),
        ("BANDS", "".join(bands)),
        *((f"BAND{i}", band) for i, band in enumerate(bands)),
        *_tan_cards(grid),
        ("IMAGEW", grid.width, "Image width,  in pixels."),
        ("IMAGEH", grid.height, "Image height, in pixels."),
        ("IMAGETYP", "IMAGE"),
    ]


def hips_cards(grid: Grid) -> list[Card]:
    """The header of `hips2fits`: hardly more than a WCS."""
    step = grid.scale_arcsec / 3600
    return [
        ("WCSAXES", 2),
        ("CRPIX1", grid.x + 1),
        ("CRPIX2", grid.y + 1),
        ("CDELT1", -step),
        ("CDELT2", step),
        ("CUNIT1", "deg"),
        ("CUNIT2", "deg"),
        ("CTYPE1", "RA---TAN"),
        ("CTYPE2", "DEC--TAN"),
        ("CRVAL1", grid.ra),
        ("CRVAL2", grid.dec),
        ("RADESYS", "ICRS"),
        ("HISTORY", "Generated by CDS hips2fits service"),
    ]


def coadd_cards(grid: Grid, band: str) -> list[Card]:
    """The header of an unWISE coadd's `img-m`."""
    return [
        *_tan_cards(grid),
        ("IMAGEW", grid.width, "Image width,  in pixels."),
        ("IMAGEH", grid.height, "Image height, in pixels."),
        ("MAGZP", 22.5, "Magnitude zeropoint (in Vega mag)"),
        ("UNW_SKY", -2.00069259755362, "Background value subtracted from coadd img"),
        ("UNW_VER", "v3.5-28-g4ec0488", "unWISE code git revision"),
        ("EPOCH", -1, "epoch number"),
        ("BAND", int(band), "WISE band"),
    ]


def _tan_cards(grid: Grid) -> list[Card]:
    step = grid.scale_arcsec / 3600
    return [
        ("WCSAXES", 2),
        ("CTYPE1", "RA---TAN", "TAN (gnomic) projection"),
        ("CTYPE2", "DEC--TAN", "TAN (gnomic) projection"),
        ("EQUINOX", 2000.0, "Equatorial coordinates definition (yr)"),
        ("LONPOLE", 180.0),
        ("LATPOLE", 0.0),
        ("CRVAL1", grid.ra, "RA  of reference point"),
        ("CRVAL2", grid.dec, "DEC of reference point"),
        ("CRPIX1", grid.x + 1, "X reference pixel"),
        ("CRPIX2", grid.y + 1, "Y reference pixel"),
        ("CUNIT1", "deg", "X pixel scale units"),
        ("CUNIT2", "deg", "Y pixel scale units"),
        ("CD1_1", -step, "Transformation matrix"),
        ("CD1_2", 0),
        ("CD2_1", 0),
        ("CD2_2", step),
    ]
