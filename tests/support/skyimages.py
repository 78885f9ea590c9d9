"""FITS images of a made-up sky, and aperture photometry, for the tests of FITS ingestion."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

RA, DEC = 150.1, 2.2
STYLES = ("cd", "pc", "old_pc", "crota")


def header_of(
    size: int,
    scale: float,
    *,
    turn_deg: float = 0.0,
    mirrored: bool = False,
    style: str = "cd",
    at: tuple[float, float] = (RA, DEC),
) -> fits.Header:
    """A tangential WCS centred on the image; `turn_deg` turns north from up towards east."""
    angle = np.radians(turn_deg)
    matrix = np.array([[-1.0, 0.0], [0.0, 1.0]]) @ np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    if mirrored:
        matrix = matrix @ np.diag([-1.0, 1.0])
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = at
    header["CRPIX1"] = header["CRPIX2"] = size / 2 + 0.5
    step = scale / 3600
    if style == "cd":
        for i in (0, 1):
            for j in (0, 1):
                header[f"CD{i + 1}_{j + 1}"] = matrix[i, j] * step
        return header
    header["CDELT1"], header["CDELT2"] = step, step
    if style == "crota":
        assert not mirrored
        header["CDELT1"], header["CROTA2"] = -step, -turn_deg
        return header
    name = "PC{}_{}" if style == "pc" else "PC00{}00{}"
    for i in (0, 1):
        for j in (0, 1):
            header[name.format(i + 1, j + 1)] = matrix[i, j]
    return header


# Offsets from the centre, arcsec east and north, and fluxes, of an asymmetric group of sources.
SOURCES = ((0.0, 0.0, 50.0), (9.0, 0.0, 30.0), (0.0, 15.0, 20.0))


def paint(header: fits.Header, size: int, scale: float, fwhm_arcsec: float = 5.0) -> np.ndarray:
    """The group of sources as the header's grid sees it; float32 (size, size), flux a pixel."""
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # PC001001 is of old
        ra, dec = WCS(header).all_pix2world(x.ravel(), y.ravel(), 0)
    centre = header["CRVAL1"], header["CRVAL2"]
    east = (((ra - centre[0]) + 180) % 360 - 180) * np.cos(np.radians(dec)) * 3600
    north = (dec - centre[1]) * 3600
    sigma = fwhm_arcsec / 2.355
    image = sum(
        flux * np.exp(-((east - e) ** 2 + (north - n) ** 2) / (2 * sigma**2))
        for e, n, flux in SOURCES
    )
    density = np.asarray(image) / (2 * np.pi * sigma**2) * scale**2
    return density.reshape(size, size).astype(np.float32)


def content_of(image: np.ndarray, header: fits.Header, *, compressed: bool = False) -> bytes:
    """A FITS file's bytes; `compressed` puts the image into a compressed extension."""
    file = io.BytesIO()
    if compressed:
        hdu = fits.CompImageHDU(image, header, compression_type="GZIP_1", quantize_level=0.0)
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(file)
    else:
        fits.PrimaryHDU(image, header).writeto(file)
    return file.getvalue()


def write_object(folder: Path, name: str, *, at: tuple[float, float] = (RA, DEC)) -> None:
    """The seven files of an object: PS1 in single files, GALEX and unWISE as the viewer does it."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, band in enumerate("grizy"):
        header = header_of(200, 0.25, style="old_pc", at=at)
        header["HIERARCH FPA.FILTER"] = f"{band}.00000"
        header["HIERARCH FPA.ZP"], header["EXPTIME"] = 25.0, 700.0 + 100 * k
        image = (k + 1) * paint(header, 200, 0.25, 3.0)
        (folder / f"{name}.{band}.fits").write_bytes(content_of(image, header))
    for survey, size, scale, bands in (("Galex", 40, 1.5, "nf"), ("Unwise", 36, 2.75, "12")):
        header = header_of(size, scale, at=at)
        image = paint(header, size, scale, 6.0)
        header["BANDS"], header["BAND0"], header["BAND1"] = bands, bands[0], bands[1]
        cube = np.stack([image, 2 * image])
        (folder / f"{name}.{survey}.fits").write_bytes(content_of(cube, header))


def aperture_sum(image: np.ndarray, x: float, y: float, radius: float, fine: int = 11) -> float:
    """Flux within a circle; pixels on its edge count by the share of a fine grid inside."""
    rows, columns = np.indices(image.shape)
    part = (np.arange(fine) + 0.5) / fine - 0.5
    share = np.zeros(image.shape)
    for dy in part:
        for dx in part:
            share += np.hypot(columns + dx - x, rows + dy - y) <= radius
    return float((share / fine**2 * image.astype(np.float64)).sum())


def magnitude(flux: float, zero_point: float) -> float:
    """AB magnitude."""
    return float(zero_point - 2.5 * np.log10(flux))


def catalog_text(rows: list[tuple[str, float, float]]) -> str:
    """A CSV catalogue of id, ra, dec with a redshift."""
    lines = ["id,redshift,ra,dec", *(f"{n},0.1,{ra!r},{dec!r}" for n, ra, dec in rows)]
    return "\n".join(lines) + "\n"


def packed_samples(out: Path) -> dict[str, Any]:
    """All samples of a data set by id."""
    import msdata

    data = msdata.open(out)
    return {data[i]["sample_id"]: data[i] for i in range(len(data))}
