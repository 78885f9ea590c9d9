"""The protocols of the stand-in services: from a request's path and query to what is sent back.

PS1's `ps1filenames.py` and `fitscut.cgi`, the Legacy viewer's `fits-cutout`, unwise.me's
`cutout_fits`, each with the manners of the real one: unknown `bands=` give all bands, sizes are
clamped without a word, what is not there is said in text under HTTP 200.

Source: legacysurvey/imagine, map/views.py; spacetelescope/fitscut; the tables and archives that
    public clients of these services read.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fake_services import fitsfile, imagery
from fake_services.faults import FaultPlan
from fake_services.grid import SkyCell, home_cell, sky_cell, tiles_at
from fake_services.imagery import Picture

Query = Mapping[str, str]

_LIST_COLUMNS = "projcell subcell ra dec filter mjd type filename shortname badflag"
_FILTERS = "grizy"
_VIEWER_MAX_SIZE = 512
_UNWISE_MAX_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a service sends back."""

    body: bytes
    content_type: str = "text/plain"
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request's position, with what the plan of faults has for it."""

    seed: int
    plan: FaultPlan
    query: Query

    @property
    def position(self) -> tuple[float, float]:
        """Right ascension and declination, degrees."""
        return float(self.query["ra"]), float(self.query["dec"])

    @property
    def fault(self) -> str | None:
        """The lasting fault or oddity of the object there."""
        return self.plan.lasting_fault(*self.position)

    def choice(self, count: int) -> int:
        """Which of several the fault strikes."""
        return self.plan.choice(*self.position, count)


def _text(text: str) -> Answer:
    return Answer(body=text.encode())


def _fits(content: bytes) -> Answer:
    return Answer(body=content, content_type="image/fits")


def list_stacks(asked: Asked) -> Answer:
    """`ps1filenames.py`: a table with one row per band."""
    ra, dec = asked.position
    home, fault, odd_band = home_cell(ra, dec), asked.fault, asked.choice(len(_FILTERS))
    neighbor = neighbor_of(home)
    bands = [f for f in _FILTERS if f in asked.query.get("filters", _FILTERS)]
    rows = []
    for number, band in enumerate(bands):
        cells, is_struck = [home], number == odd_band % len(bands)
        if fault in ("several_cells", "ragged_cells", "nan_cell"):
            cells = [neighbor, home]
        if fault == "split_bands" and is_struck:
            cells = [neighbor]
        if fault == "split_projections" and is_struck:
            cells = [sky_cell(home.projection + 1, home.number)]
        if fault == "outside" or (fault == "missing_band" and is_struck):
            cells = []
        for cell in cells:
            badflag = int(fault == "flagged" and is_struck)
            rows.append(_row(cell, band, asked.position, badflag))
            if fault == "two_stacks" and is_struck:
                rows.append(rows[-1].replace("/rings.v3.", "/rings.v4."))
    return _text("\n".join([_LIST_COLUMNS, *rows]) + "\n")


def neighbor_of(cell: SkyCell) -> SkyCell:
    """The sky cell that oddities name beside the right one; its number is lower."""
    return sky_cell(cell.projection, (cell.number - 1) % 100)


def _row(cell: SkyCell, band: str, position: tuple[float, float], badflag: int) -> str:
    short = f"rings.v3.skycell.{cell.name}.stk.{band}.unconv.fits"
    path = f"/rings.v3.skycell/{cell.name.replace('.', '/')}/{short}"
    ra, dec = position
    return (
        f"{cell.projection:04d} {cell.number:03d} {ra:.8f} {dec:.8f} {band} 0.0 stack "
        f"{path} {short} {badflag}"
    )


def cut_stack(asked: Asked) -> Answer:
    """`fitscut.cgi`: a FITS file of one band."""
    parts = asked.query["red"].rsplit("/", 1)[-1].split(".")
    try:
        cell, band = sky_cell(int(parts[3]), int(parts[4])), parts[6]
    except (IndexError, ValueError):
        return _text(f"fitscut: error: cannot open {asked.query['red']}\n")
    fault, is_struck = asked.fault, _FILTERS[asked.choice(5)] == band
    if fault == "empty_fits" and is_struck:
        grid = cell.grid
        return _fits(
            fitsfile.image_file(None, fitsfile.panstarrs_cards(grid, band, cell.name, 43.0))
        )
    if fault == "wrong_filter" and is_struck:
        band = _FILTERS[(asked.choice(5) + 1) % 5]
    picture = stack_picture(asked, cell, band)
    content = imagery.stack_file(picture, cell, band, asked.seed)
    if fault == "no_exposure" and is_struck:
        content = content.replace(b"EXPTIME = ", b"COMMENT   ")
    return _fits(content)


def stack_picture(asked: Asked, cell: SkyCell, band: str) -> Picture:
    """The picture of a PS1 band, oddities and faults of the pixels included."""
    home = home_cell(*asked.position)
    size = int(asked.query.get("size", 240))
    picture = imagery.stack_cutout(asked.seed, cell, band, asked.position, size)
    fault, is_struck = asked.fault, _FILTERS[asked.choice(5)] == band
    is_whole = cell.name == home.name
    if cell.name != home.name:
        # The mock cells overlap less than the real ones, so this has the pixels of the home cell's
        # part of the projection: all of them, or those up to where the cell ends.
        picture = imagery.stack_cutout(asked.seed, home, band, asked.position, size)
        is_whole = fault == "split_bands"
    if fault == "ragged_cells":
        is_whole = is_struck == (cell.name != home.name)
    if not is_whole:
        picture = imagery.beyond_the_edge(picture)
    if fault == "nan_cell" and cell.name != home.name:
        picture = replace(picture, pixels=np.full_like(picture.pixels, np.nan))
    if fault == "nan_core" and is_struck:
        picture = imagery.with_nan_core(picture)
    if fault == "nan_band" and is_struck:
        picture = replace(picture, pixels=np.full_like(picture.pixels, np.nan))
    return picture


def cut_layer(asked: Asked) -> Answer:
    """The viewer's `fits-cutout`: a FITS file of all bands of a layer."""
    layer, fault = asked.query.get("layer", ""), asked.fault
    if layer not in imagery.LAYERS or (fault == "no_such_layer" and asked.choice(2) == 0):
        return _text("no such layer")
    if fault == "no_such_layer" and layer == "unwise-neo7":
        return _text("no such layer")
    survey, names = imagery.LAYERS[layer]
    known = [b for b in asked.query.get("bands", "") if b in names]
    is_typo = len(known) != len(asked.query.get("bands", "")) or not known
    bands = list(names) if is_typo else known
    is_struck = layer == "ls-dr10" or (layer == "galex") == (asked.choice(2) == 0)
    if fault == "swapped_bands":
        bands.reverse()
    if fault == "one_band" and is_struck:
        bands = bands[:1]
    pictures = [layer_picture(asked, layer, band, is_struck=is_struck) for band in bands]
    pixels = np.stack([p.pixels for p in pictures])
    cards = fitsfile.viewer_cards(pictures[0].grid, survey, bands)
    return _fits(fitsfile.image_file(pixels if len(bands) > 1 else pixels[0], cards))


def layer_picture(asked: Asked, layer: str, band: str, *, is_struck: bool = False) -> Picture:
    """The picture of a band of a layer, oddities and faults of the pixels included."""
    size = min(int(asked.query.get("size", 256)), _VIEWER_MAX_SIZE)
    scale = float(asked.query.get("pixscale", 1.5))
    ra, dec = asked.position
    if asked.fault == "clamped" and is_struck:
        size = min(size, 24)
    if asked.fault == "off_center" and is_struck:
        dec += 0.8 * scale / 3600
    name = imagery.LAYERS[layer][1][band]
    picture = imagery.viewer_cutout(asked.seed, name, (ra, dec), size, scale)
    if asked.fault == "no_unwise" and layer != "galex":
        pixels = picture.pixels.copy()
        pixels[: pixels.shape[0] // 4] = 0
        picture = replace(picture, pixels=pixels)
    if asked.fault == "no_galex" and layer == "galex" and (band == "f" or asked.choice(2)):
        picture = replace(picture, pixels=np.zeros_like(picture.pixels))
    return picture


def cut_coadds(asked: Asked) -> Answer:
    """unwise.me's `cutout_fits`: a tar.gz with one FITS file per band and coadd."""
    size = min(int(asked.query.get("size", 100)), _UNWISE_MAX_SIZE)
    bands = [b for b in asked.query.get("bands", "1234") if b in "1234"]
    if asked.query.get("version", "neo7").startswith("neo"):
        bands = [b for b in bands if b in "12"]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for tile in tiles_at(*asked.position, size / 2):
            for band in bands:
                picture = imagery.coadd_cutout(asked.seed, tile, band, asked.position, size)
                cards = fitsfile.coadd_cards(picture.grid, band)
                content = fitsfile.image_file(picture.pixels, cards)
                member = tarfile.TarInfo(f"unwise-{tile.name}-w{band}-img-m.fits")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    content = gzip.compress(packed.getvalue(), 1, mtime=0)
    return Answer(body=content, content_type="application/x-gzip")


def cut_hips(asked: Asked) -> Answer:
    """CDS' hips2fits; names below `test/` stand for what may be wrong with a HiPS."""
    name, size = asked.query["hips"], int(asked.query["width"])
    scale = float(asked.query["fov"]) * 3600 / size
    ra, dec = asked.position
    wrong = name.partition("test/")[2]
    if wrong == "page":
        return Answer(body=b"<!DOCTYPE html><html>busy</html>", content_type="text/html")
    if name not in imagery.HIPS and not wrong:
        return Answer(body=f"Unknown HiPS {name}".encode(), status=404)
    size = min(size, 24) if wrong == "small" else size
    dec += 2 * scale / 3600 if wrong == "off" else 0
    scale *= 1.1 if wrong == "scale" else 1
    band = imagery.HIPS.get(name, "g")
    picture = imagery.hips_cutout(asked.seed, band, (ra, dec), size, scale)
    pixels = picture.pixels
    if wrong == "blank":
        pixels = np.full_like(pixels, np.nan)
    if wrong == "zeros":
        pixels = np.zeros_like(pixels)
    if wrong == "jpeg":
        pixels = np.full((3, size, size), 7, np.uint8)
    cards = fitsfile.hips_cards(picture.grid)
    if wrong == "unit":
        cards.append(("BUNIT", "MJy/sr"))
    return _fits(fitsfile.image_file(pixels, cards))


# Path -> the service's name in the log, and its protocol.
PROTOCOLS: dict[str, tuple[str, Callable[[Asked], Answer]]] = {
    "/cgi-bin/ps1filenames.py": ("ps1", list_stacks),
    "/cgi-bin/fitscut.cgi": ("ps1", cut_stack),
    "/viewer/fits-cutout": ("legacy", cut_layer),
    "/cutout_fits": ("unwise_me", cut_coadds),
    "/hips-image-services/hips2fits": ("hips2fits", cut_hips),
}
