"""Pan-STARRS stacks: `ps1filenames.py` tells the files, `fitscut.cgi` cuts a band out of each.

Where several sky cells reach a position, each that has all bands is asked for, and the one with the
fewest missing pixels is taken, of equals the lowest number. Bands of different sky cells are never
combined: cells of different projections are turned against each other.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass

from msdata.fetch.adapter import Fetched, combined, degrees_text, max_fits_nbytes
from msdata.fetch.answer import Band, Wanted, band_stamp, fits_planes
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError, SpoiledError
from msdata.schema import Survey

# fitscut places a position within half a pixel of pixel size // 2, half a pixel off the middle of
# an even size. With a pixel more on each side the stamp is cut with it in the middle.
_MARGIN_PIXELS = 2
_LIST_NBYTES = 1 << 20
_COLUMNS = ("projcell", "subcell", "ra", "dec", "filter", "type", "filename")
_POSITION_TOLERANCE_DEG = 1 / 3600


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """The stacks of one sky cell.

    Attributes:
        cell: its name, such as "1329.005".
        files: path on the server by band.
    """

    cell: str
    files: dict[str, str]


class PanstarrsAdapter:
    """Implements `Adapter`."""

    service = "ps1"

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.requests_per_object = 1 + len(survey.bands)

    def fetch(self, client: Client, position: tuple[float, float]) -> Fetched:
        """See `Adapter.fetch`."""
        ra, dec = position
        query = {
            "ra": degrees_text(ra),
            "dec": degrees_text(dec),
            "filters": "".join(self.survey.bands),
            "type": "stack",
        }
        cells = client.get(
            "ps1filenames.py",
            query,
            _LIST_NBYTES,
            lambda content: choose_stacks(content, self.survey, position),
        )
        best: tuple[int, Fetched] | None = None
        for stacks in cells:
            found = self._cut(client, position, stacks, len(cells))
            num_nan = sum(found.notes.get("nan_pixels", {}).values())
            if best is None or num_nan < best[0]:
                best = num_nan, found
            if num_nan == 0:
                break
        assert best is not None
        return best[1]

    def _cut(
        self, client: Client, position: tuple[float, float], stacks: Stacks, num_cells: int
    ) -> Fetched:
        size = self.survey.shape[1] + _MARGIN_PIXELS
        wanted = Wanted(survey=self.survey, position=position, size=size, centre=size // 2)
        bands: dict[str, Band] = {}
        files: dict[str, bytes] = {}
        for band in self.survey.bands:
            query = {
                "ra": degrees_text(position[0]),
                "dec": degrees_text(position[1]),
                "size": str(size),
                "format": "fits",
                "red": stacks.files[band],
            }
            bands[band], files[f"{band}.fits"] = client.get(
                "fitscut.cgi",
                query,
                max_fits_nbytes(self.survey, size, 1),
                functools.partial(_checked, band, wanted),
            )
        notes = {"sky_cell": stacks.cell}
        if num_cells > 1:
            notes["of_sky_cells"] = str(num_cells)
        return combined(self.survey, bands, files, **notes)


def _checked(band: str, wanted: Wanted, content: bytes) -> tuple[Band, bytes]:
    planes = fits_planes(content)
    if len(planes) != 1:
        raise RefusedError(f"band {band}: it sent {len(planes)} images instead of one")
    if planes[0].band != band:
        raise RefusedError(f"band {band}: its header says that it holds band {planes[0].band}")
    return band_stamp(planes[0], band, wanted), content


def choose_stacks(content: bytes, survey: Survey, position: tuple[float, float]) -> list[Stacks]:
    """The sky cells that have a stack of every band, by number.

    Args:
        content: answer of `ps1filenames.py`.
        survey: whose bands are wanted.
        position: right ascension and declination that were asked for, degrees.

    Returns:
        At least one.

    Raises:
        RefusedError: there are no stacks, not of all bands, or more than one of a band.
        SpoiledError: the answer is no such table.
    """
    rows = _rows(content)
    if not rows:
        raise RefusedError("there is no stack: the position is outside of the survey")
    cells: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    flagged = set()
    for row in rows:
        _check_position(row, position)
        band = row["filter"]
        if row["type"] != "stack" or band not in survey.bands:
            continue
        if row.get("badflag", "0") not in ("0", ""):
            flagged.add(band)
            continue
        cells[f"{int(row['projcell']):04d}.{int(row['subcell']):03d}"][band].add(row["filename"])
    whole = [cell for cell in sorted(cells) if all(band in cells[cell] for band in survey.bands)]
    if not whole:
        raise RefusedError(_missing(cells, survey, flagged))
    for cell in whole:
        for band, names in cells[cell].items():
            if len(names) > 1:
                raise RefusedError(f"sky cell {cell} has {len(names)} stacks of band {band}")
    return [
        Stacks(cell=cell, files={band: min(cells[cell][band]) for band in survey.bands})
        for cell in whole
    ]


def _rows(content: bytes) -> list[dict[str, str]]:
    lines = [line.split() for line in content.decode("ascii", "replace").splitlines() if line]
    names = lines[0] if lines else []
    if any(column not in names for column in _COLUMNS):
        text = " ".join(content[:300].decode("ascii", "replace").split())[:80]
        raise SpoiledError(f"it sent no list of files but {text!r}")
    rows = [dict(zip(names, words, strict=False)) for words in lines[1:]]
    for row in rows:
        is_whole = len(row) == len(names) and row["projcell"].isdigit() and row["subcell"].isdigit()
        if not is_whole:
            raise SpoiledError(f"its list of files is broken: {' '.join(row.values())[:80]!r}")
    return rows


def _check_position(row: dict[str, str], position: tuple[float, float]) -> None:
    """Holds a row to the position that was asked for: it may be the answer to another request."""
    try:
        ra, dec = float(row["ra"]), float(row["dec"])
    except ValueError as error:
        raise SpoiledError(f"its list of files is broken: {error}") from error
    around = abs((ra - position[0] + 180) % 360 - 180)
    near_pole = abs(dec) > 89.9
    if abs(dec - position[1]) > _POSITION_TOLERANCE_DEG or (
        around > _POSITION_TOLERANCE_DEG and not near_pole
    ):
        raise SpoiledError(f"its list is of the position {ra:.5f} {dec:+.5f}")


def _missing(cells: dict[str, dict[str, set[str]]], survey: Survey, flagged: set[str]) -> str:
    """Why no sky cell will do."""
    there = {band for bands in cells.values() for band in bands}
    missing = [band for band in survey.bands if band not in there]
    if missing:
        bad = [band for band in missing if band in flagged]
        remark = f" ({', '.join(bad)} is flagged as bad)" if bad else ""
        return f"there is no stack of band {', '.join(missing)}{remark}"
    lacks = (
        f"{cell} lacks {', '.join(b for b in survey.bands if b not in cells[cell])}"
        for cell in sorted(cells)
    )
    return f"no sky cell has stacks of all bands: {'; '.join(lacks)}"
