"""A tree of raw FITS files: a few files per object, cut around the object's position.

Which files belong to an object, and which bands they hold, is told by their names and headers,
never by their order: a missing band makes the object unusable, it does not shift its neighbors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.core.files import storage_error
from msdata.errors import DataError, SampleError, UsageError
from msdata.schema import Array, Sample, Schema, Survey
from msdata.sources.fits_choice import MissingError, by_band, named_planes, one_of, plane_of
from msdata.sources.fits_image import MAX_NBYTES, Plane
from msdata.sources.fits_options import (
    COMPRESSED,
    FitsOptions,
    pattern_expression,
    split_extension,
    zero_point_name,
)
from msdata.sources.listing import list_tree
from msdata.sources.stamp import Stamp, apart, cut_stamp
from msdata.sources.zero_points import nanomaggies_per_unit, zero_point_ab

if TYPE_CHECKING:
    import pyarrow as pa

# Zero-points are told to a thousandth.
_ZERO_POINT_TOLERANCE = 2e-3
# A tenth of a pixel, at the center and in the corner of 170: what headers' rounding explains.
_GRID_TOLERANCE_PIXELS = 0.1
_GRID_TOLERANCE_DEG = 0.05


class FitsTree:
    """Implements `Source` over raw FITS files.

    Attributes:
        root: the folder; paths are relative to it. A path is the folder that an object's files
            share, and its id.
        schema: what every object becomes.
    """

    def __init__(self, root: Path, options: FitsOptions) -> None:
        self.root = root
        self._schema = options.schema()
        self.schema: Schema | None = self._schema
        self._options = options
        # Zero-points are those of the files, also where pixels are calibrated.
        self._native = replace(options, calibration="none").schema()
        self._expressions = {
            name: pattern_expression(pattern, self._schema[name].bands)
            for name, pattern in options.patterns.items()
        }

    def scan(self) -> pa.Table:
        """Lists the objects; see `Source.scan`.

        Returns:
            Table with `sample_id`, `path` and `row` (-1), sorted by `sample_id`, then `path`. An
            object is there if any of its files is.

        Raises:
            UsageError: the root is not a folder.
            DataError: no file, or none of one of the arrays, has a name of the pattern.
            StorageError: the file system refused.
        """
        import pyarrow as pa

        if not self.root.is_dir():
            raise UsageError(
                f"{self.root} is not a folder; give the folder that holds the FITS files"
            )
        found: set[str] = set()
        others: list[str] = []

        def take(folder: str, name: str) -> tuple[str, str] | None:
            match = self._match(folder + name)
            if match is None:
                if not others and name.removesuffix(".gz").endswith((".fits", ".fit", ".fz")):
                    others.append(folder + name)
                return None
            found.add(match[0])
            return match[1:]

        chunks = list_tree(str(self.root), take)
        for name, pattern in self._options.patterns.items():
            if name not in found:
                known = [n for n in self._options.patterns if n in found]
                cure = f"take only {', '.join(known)} with --fits, or " if known else ""
                beside = f", but {others[0]}" if others else ""
                raise DataError(
                    f"{self.root} holds no file named {pattern} for the array {name}{beside}; "
                    f"{cure}name its files with --fits {name}=PATTERN"
                )
        table = pa.concat_tables(chunks).group_by(["sample_id", "path"]).aggregate([])
        table = table.sort_by([("sample_id", "ascending"), ("path", "ascending")])
        return table.append_column("row", pa.repeat(pa.scalar(-1, pa.int64()), table.num_rows))

    def _match(self, path: str) -> tuple[str, str, str] | None:
        """Array, id and object's path of a file; None where it is of no object."""
        for name, expression in self._expressions.items():
            match = expression.fullmatch(path)
            if match:
                return name, match["id"], match["folder"] + match["id"]
        return None

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one object's files and cuts its stamps; see `Source.read`.

        Args:
            path: folder and id, as `scan` lists them.
            row: not used.
            labels: `ra` and `dec` in degrees.

        Returns:
            float32 arrays (bands, size, size), rows from south to north and columns from east to
            west; and the zero-point of each band's file. Bands that are missing are NaN if they
            are to be filled.

        Raises:
            SampleError: a file or band is missing or unusable; the message names the file.
            StorageError: the file system refused.
        """
        position = _position(labels or {})
        folder, _, sample_id = path.rpartition("/")
        sample: Sample = {}
        for survey in self._schema.arrays:
            image, scale = np.full(survey.shape, np.nan, np.float32), survey.pixel_scale_arcsec
            assert scale is not None
            sample |= {zero_point_name(survey.name, band): math.nan for band in survey.bands}
            stamps: dict[str, Stamp] = {}
            for band, name, plane in self._planes(survey, self.root / folder, sample_id):
                try:
                    placement = plane.grid.locate(*position)
                    stamp = cut_stamp(plane.pixels, placement, survey.shape[1], scale)
                    area = placement.pixel_scale_arcsec**2
                    pixels, zero_point = self._pixels(survey, band, (plane, area), stamp)
                    stamps[band] = stamp
                    _check_one_grid(survey, stamps)
                except SampleError as error:
                    raise SampleError(f"{name}: {error}") from error
                image[survey.bands.index(band)] = pixels
                sample[zero_point_name(survey.name, band)] = zero_point
            sample[survey.name] = image
        return sample

    def _planes(
        self, survey: Survey, folder: Path, sample_id: str
    ) -> Iterator[tuple[str, str, Plane]]:
        """For each band of an array its name, the file's name and the plane."""
        is_there = suppress(MissingError) if self._options.fills_missing else nullcontext()
        pattern, extension = split_extension(self._options.patterns[survey.name])
        rules = self._options.survey_of(survey.name)
        pattern = pattern.replace("{id}", sample_id)
        if "{band}" not in pattern:
            with is_there:
                name, content = _read_first(folder, [pattern])
                planes = named_planes(name, content, extension, rules)
                order = self._options.bands.get(survey.name)
                chosen = by_band(survey, name, planes, order, rules)
                for band in survey.bands:
                    with is_there:
                        yield band, name, plane_of(band, name, chosen)
            return
        for band in survey.bands:
            names = [pattern.replace("{band}", word) for word in (band, band.lower(), band.upper())]
            with is_there:
                name, content = _read_first(folder, list(dict.fromkeys(names)))
                planes = named_planes(name, content, extension, rules)
                yield band, name, one_of(survey, band, name, planes, rules)

    def _pixels(
        self, survey: Survey, band: str, of: tuple[Plane, float], stamp: Stamp
    ) -> tuple[Array, float]:
        """Pixels (float32, in the schema's unit) and the file's AB zero-point, NaN if unknown."""
        plane, area_arcsec2 = of
        rules = self._options.survey_of(survey.name)
        zero_point = (
            zero_point_ab(self._native[survey.name], band, plane.photometry)
            if rules is None
            else rules.zero_point_ab(band, plane.photometry, area_arcsec2)
        )
        pixels = stamp.pixels
        if self._options.calibration == "ab":
            if zero_point is None:
                found = plane.photometry.exposure_fault
                raise SampleError(f"its header {found}, so its zero-point is unknown")
            pixels = pixels.astype(np.float64) * nanomaggies_per_unit(zero_point)
        else:
            _check_zero_point(survey, band, zero_point)
        with np.errstate(over="ignore"):
            return pixels.astype(np.float32), math.nan if zero_point is None else zero_point


def _check_one_grid(survey: Survey, stamps: Mapping[str, Stamp]) -> None:
    """Refuses bands that are whole pixels of different grids: their pixels are different sky."""
    (band, first), *_, (_, last) = [*stamps.items()] * 2
    if first.is_resampled or last.is_resampled:
        return
    pixels, degrees = apart(first, last)
    if pixels > _GRID_TOLERANCE_PIXELS or degrees > _GRID_TOLERANCE_DEG:
        raise SampleError(
            f"its pixels lie {pixels:.2f} pixels and {degrees:.2f} degrees off those of band "
            f"{band}; cut all bands of {survey.name} out of one sky cell or tile"
        )


def _position(labels: Mapping[str, Any]) -> tuple[float, float]:
    ra, dec = labels.get("ra"), labels.get("dec")
    if ra is None or dec is None:
        raise SampleError("it has no position (ra, dec) in the catalog")
    if not (-360 <= ra <= 720 and -90 <= dec <= 90):
        raise SampleError(f"its position must be in degrees, got ra {ra}, dec {dec}")
    return float(ra), float(dec)


def _read_first(folder: Path, names: Sequence[str]) -> tuple[str, bytes]:
    """Name and content of the first of the files that is there, compressed or not."""
    for name in names:
        for suffix in COMPRESSED:
            path = folder / f"{name}{suffix}"
            try:
                with path.open("rb") as file:
                    nbytes = os.fstat(file.fileno()).st_size
                    if nbytes > MAX_NBYTES:
                        raise SampleError(f"{path.name} has more than {MAX_NBYTES >> 20} MiB")
                    return path.name, file.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise storage_error("read", path, error) from error
    raise MissingError(f"it has no file {names[0]}")


def _check_zero_point(survey: Survey, band: str, zero_point: float | None) -> None:
    """Refuses pixels in another unit than the schema promises."""
    if survey.zero_points_ab is None:
        return
    promised = survey.zero_points_ab[survey.bands.index(band)]
    if zero_point is None or abs(zero_point - promised) > _ZERO_POINT_TOLERANCE:
        said = "unknown" if zero_point is None else f"{zero_point:.3f}"
        raise SampleError(
            f"its AB zero-point is {said}, the schema's {promised:g}; pack with --calibrate ab"
        )
