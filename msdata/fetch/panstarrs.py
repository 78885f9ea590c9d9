"""Pan-STARRS stacks: `ps1filenames.py` tells the files, `fitscut.cgi` cuts a band out of each.

Where several sky cells reach a position, each that has all bands is asked for, and the one without
missing pixels is taken. Where none is, bands may come from different sky cells of one projection:
these are cut out of one grid of pixels, so that nothing is resampled, and that the grids agree is
checked on the answers. Cells of different projections are turned against each other and never
combined. No band is put together from two cells: they overlap by 480 pixels, so where one ends
within a stamp of 170 another holds all of it.

Source: Waters et al. 2020, ApJS 251, 4, section 3 (the tessellation RINGS.V3).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msdata.fetch.adapter import Fetched, combined, max_fits_nbytes, place_query
from msdata.fetch.answer import Band, Wanted, band_stamp, fits_planes, start_of
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError, SpoiledError
from msdata.schema import Survey

# fitscut places a position within half a pixel of pixel size // 2, half a pixel off the middle of
# an even size. With a pixel more on each side the stamp is cut with it in the middle.
_MARGIN_PIXELS = 2
_LIST_NBYTES = 1 << 20
_COLUMNS = ("projcell", "subcell", "ra", "dec", "filter", "type", "filename")
_POSITION_TOLERANCE_DEG = 1 / 3600
# Headers of one projection's cells differ by their rounding alone.
_GRID_TOLERANCE_PIXELS = 0.02
_GRID_TOLERANCE_DEG = 0.01


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """The stacks of one sky cell.

    Attributes:
        cell: its name, such as "1329.005"; cells with the same first number share a grid.
        files: path on the server by band; not always of all bands.
    """

    cell: str
    files: dict[str, str]

    @property
    def projection(self) -> str:
        """Name of the projection cell."""
        return self.cell.split(".")[0]


class PanstarrsAdapter:
    """Implements `Adapter`."""

    service = "ps1"

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.requests_per_object = 1 + len(survey.bands)

    def fetch(self, client: Client, position: tuple[float, float]) -> Fetched:
        """See `Adapter.fetch`."""
        query = {
            **place_query(position),
            "filters": "".join(self.survey.bands),
            "type": "stack",
        }
        choose = functools.partial(choose_stacks, survey=self.survey, position=position)
        cells = client.get("ps1filenames.py", query, _LIST_NBYTES, choose)
        found: list[tuple[str, dict[str, Cut]]] = []
        reasons: list[str] = []
        for stacks in cells:
            cuts = self._cut(client, position, stacks, reasons)
            found.append((stacks.projection, cuts))
            if len(cuts) == len(self.survey.bands) and not _num_nan(cuts):
                options = [cuts]
                break
        else:
            options = [cuts for _, cuts in found if len(cuts) == len(self.survey.bands)]
            options += self._combined_cells(found)
        if not options:
            raise RefusedError("; ".join(dict.fromkeys(reasons)))
        # Of equals the first: one cell before several, the lowest number.
        return self._fetched(min(options, key=_num_nan), len(cells))

    def _cut(
        self, client: Client, position: tuple[float, float], stacks: Stacks, reasons: list[str]
    ) -> dict[str, Cut]:
        """The bands of a sky cell that can be used; why others cannot goes to `reasons`."""
        size = self.survey.shape[1] + _MARGIN_PIXELS
        wanted = Wanted(survey=self.survey, position=position, size=size, center=size // 2)
        most = max_fits_nbytes(self.survey, size, 1)
        found = {}
        for band, path in stacks.files.items():
            query = {**place_query(position), "size": str(size), "format": "fits", "red": path}
            check = functools.partial(_checked, band, wanted)
            try:
                stamp, content = client.get("fitscut.cgi", query, most, check)
                found[band] = Cut(cell=stacks.cell, band=stamp, content=content)
            except RefusedError as error:
                reasons.append(str(error))
        return found

    def _combined_cells(
        self, found: Sequence[tuple[str, Mapping[str, Cut]]]
    ) -> Iterator[dict[str, Cut]]:
        """Each projection's best cell of every band."""
        for projection in dict.fromkeys(name for name, _ in found):
            group = [cuts for name, cuts in found if name == projection]
            best = {
                band: min(of_band, key=lambda cut: cut.band.num_nan)
                for band in self.survey.bands
                if (of_band := [cuts[band] for cuts in group if band in cuts])
            }
            if len(group) > 1 and len(best) == len(self.survey.bands):
                yield best

    def _fetched(self, cuts: Mapping[str, Cut], num_cells: int) -> Fetched:
        _check_one_grid(cuts)
        names = {band: cut.cell for band, cut in cuts.items()}
        cells = sorted(set(names.values()))
        notes: dict[str, Any] = {"sky_cell": cells[0] if len(cells) == 1 else names}
        if num_cells > 1:
            notes["of_sky_cells"] = str(num_cells)
        return combined(
            self.survey,
            {band: cut.band for band, cut in cuts.items()},
            {f"{band}.fits": cut.content for band, cut in cuts.items()},
            **notes,
        )


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A band out of a sky cell.

    Attributes:
        cell: name of the sky cell.
        band: the stamp.
        content: the file that it was cut from.
    """

    cell: str
    band: Band
    content: bytes


def _num_nan(cuts: Mapping[str, Cut]) -> int:
    return sum(cut.band.num_nan for cut in cuts.values())


def _check_one_grid(cuts: Mapping[str, Cut]) -> None:
    """Makes sure that a pixel is the same place on the sky in every band."""
    (first, one), *others = cuts.items()
    for band, cut in others:
        apart = np.subtract(cut.band.offset_pixels, one.band.offset_pixels)
        turned_deg = abs(cut.band.tilt_deg - one.band.tilt_deg)
        if np.abs(apart).max() > _GRID_TOLERANCE_PIXELS or turned_deg > _GRID_TOLERANCE_DEG:
            raise RefusedError(
                f"band {band} of sky cell {cut.cell} lies on another grid of pixels than band "
                f"{first} of {one.cell} ({np.abs(apart).max():.2f} pixels, {turned_deg:.3f} "
                "degrees apart); bands are not resampled"
            )


def _checked(band: str, wanted: Wanted, content: bytes) -> tuple[Band, bytes]:
    planes = fits_planes(content, max_fits_nbytes(wanted.survey, wanted.size, 1))
    if len(planes) != 1:
        raise RefusedError(f"band {band}: it sent {len(planes)} images instead of one")
    if planes[0].band != band:
        raise RefusedError(f"band {band}: its header says that it holds band {planes[0].band}")
    return band_stamp(planes[0], band, wanted), content


def choose_stacks(content: bytes, survey: Survey, position: tuple[float, float]) -> list[Stacks]:
    """The sky cells of projections that have a stack of every band.

    Args:
        content: answer of `ps1filenames.py`.
        survey: whose bands are wanted.
        position: right ascension and declination that were asked for, degrees.

    Returns:
        At least one; first those that have every band themselves, of these the lowest numbers.

    Raises:
        RefusedError: the position has no stacks, or no projection has one stack of each band.
        SpoiledError: the answer is not such a table.
    """
    rows = _rows(content)
    if not rows:
        raise RefusedError("the position has no stack: it is outside of the survey")
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
    found = [
        Stacks(
            cell=cell,
            files={b: min(cells[cell][b]) for b in survey.bands if len(cells[cell][b]) == 1},
        )
        for cell in sorted(cells)
    ]
    bands_of: dict[str, set[str]] = defaultdict(set)
    for stacks in found:
        bands_of[stacks.projection].update(stacks.files)
    usable = [s for s in found if bands_of[s.projection].issuperset(survey.bands)]
    if not usable:
        raise RefusedError(_missing(cells, survey, flagged))
    return sorted(usable, key=lambda s: (len(s.files) < len(survey.bands), s.cell))


def _rows(content: bytes) -> list[dict[str, str]]:
    lines = [line.split() for line in content.decode("ascii", "replace").splitlines() if line]
    names = lines[0] if lines else []
    if any(column not in names for column in _COLUMNS):
        raise SpoiledError(f"it sent no list of files but {start_of(content)!r}")
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
    there = {band for bands in cells.values() for band in bands if bands[band]}
    missing = [band for band in survey.bands if band not in there]
    if missing:
        bad = [band for band in missing if band in flagged]
        remark = f" ({', '.join(bad)} is flagged as bad)" if bad else ""
        return f"the position has no stack of band {', '.join(missing)}{remark}"
    for cell in sorted(cells):
        for band in survey.bands:
            if len(cells[cell][band]) > 1:
                return f"sky cell {cell} has {len(cells[cell][band])} stacks of band {band}"
    lacks = (
        f"{cell} lacks {', '.join(b for b in survey.bands if not cells[cell][b])}"
        for cell in sorted(cells)
    )
    return (
        "its bands lie in sky cells of different projections, whose pixels are turned against "
        f"each other: {'; '.join(lacks)}"
    )
