"""Draws a contact sheet: one row per object, one column per band, redshift and id below.

Survey images are stored with rows from south to north and columns from east to west: the sheet
shows their first row at the bottom, so that north is up and east is left, and marks them. It shows
arrays of unknown orientation with their first row on top.
"""

from __future__ import annotations

import struct
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.output_file import PNG_MARK
from msdata.core.stretch import STRETCH_TEXT, stretch
from msdata.dataset.dataset import Dataset
from msdata.errors import MsdataError, UsageError
from msdata.schema import Array, Sample, Schema, Survey

Image = NDArray[np.uint8]

# Blue, green, red, as in OpenCV.
PAPER = (30, 26, 24)
INK = (235, 235, 235)
FAINT_INK = (160, 155, 150)
NAN_COLOR = (200, 40, 230)
_HATCH = (78, 72, 68)
_HATCH_PAPER = (46, 42, 40)
_LINE_COLOR = (120, 210, 250)

# Stamps of the usual 170 pixels keep their size.
CELL_MIN, CELL_MAX = 128, 192
MAX_COLUMNS_PER_ARRAY = 12
_GAP, _ARRAY_GAP, _MARGIN = 4, 18, 20
_CAPTION_HEIGHT, _HEAD_HEIGHT, _FOOT_LINE = 30, 58, 20
_HATCH_STEP = 12
_ARROW = 20
# The signature and the first chunk; other chunks follow in any order.
_PNG_HEADER_NBYTES = 8 + 25
_MARK_TEXT = "north is up, east is left, as marked; the first stored row is the lowest"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the sheet.

    Attributes:
        array: the array that it shows.
        number: number of the image; None if the array is one image or one curve.
        label: text above the column.
        is_last_axis: the images lie along the last axis, not the first.
    """

    array: Survey
    number: int | None
    label: str
    is_last_axis: bool = False

    @property
    def is_on_sky(self) -> bool:
        """Whether its rows run from south to north and its columns from east to west."""
        return bool(self.array.bands) and len(self.array.shape) == 3

    def values(self, sample: Mapping[str, Any]) -> Array:
        """Returns the column's image (height, width) or curve (points,) of one sample."""
        array: Array = sample[self.array.name]
        if self.number is not None:
            array = array[..., self.number] if self.is_last_axis else array[self.number]
        return np.abs(array) if array.dtype.kind == "c" else array

    def is_missing(self, sample: Mapping[str, Any]) -> bool:
        """Whether the survey did not observe there."""
        missing = str(sample.get("missing_bands") or "").split(",")
        return f"{self.array.name}.{self.label}" in missing


def sheet_columns(schema: Schema) -> tuple[list[Column], list[str]]:
    """Lists the columns of a schema's arrays.

    Returns:
        The columns, and a remark on each array that is not drawn in full.

    Raises:
        UsageError: none of the arrays can be drawn.
    """
    columns: list[Column] = []
    notes: list[str] = []
    for array in schema.arrays:
        found = _columns_of(array)
        if not found:
            shape = "x".join(map(str, array.shape))
            notes.append(f"'{array.name}' ({shape}) is neither curve nor image and is not drawn")
        if len(found) > MAX_COLUMNS_PER_ARRAY:
            notes.append(f"'{array.name}': the first {MAX_COLUMNS_PER_ARRAY} of {len(found)}")
        columns += found[:MAX_COLUMNS_PER_ARRAY]
    if not columns:
        raise UsageError(f"cannot draw a sheet: {'; '.join(notes)}")
    return columns, notes


def _columns_of(array: Survey) -> list[Column]:
    if array.bands and len(array.shape) == 3:
        return [Column(array=array, number=i, label=b) for i, b in enumerate(array.bands)]
    if len(array.shape) in (1, 2):
        return [Column(array=array, number=None, label="")]
    if len(array.shape) != 3:
        return []
    # As in training: camera pictures have their three or four colors last.
    is_last = array.has_bands_last
    count = array.shape[-1] if is_last else array.shape[0]
    return [Column(array=array, number=i, label=str(i), is_last_axis=is_last) for i in range(count)]


def draw_sheet(
    samples: Sequence[Sample],
    schema: Schema,
    *,
    captions: Sequence[str],
    title: str,
    is_turned: bool = False,
) -> Image:
    """Draws the sheet.

    Args:
        samples: results of `Split.__getitem__`.
        schema: their arrays.
        captions: text below each object.
        title: text at the top.
        is_turned: images were rotated or mirrored, so do not mark north.

    Returns:
        uint8 (height, width, 3), blue, green, red.

    Raises:
        UsageError: none of the arrays can be drawn.
    """
    columns, notes = sheet_columns(schema)
    cell = _cell_size(columns)
    lefts = _lefts(columns, cell)
    marked = [k for k in _starts(columns) if columns[k].is_on_sky and not is_turned]
    foot = [_MARK_TEXT if marked else "", STRETCH_TEXT, _legend(columns, samples), *notes]
    # Letters of this size are 7.5 pixels wide on average.
    num_letters = max(20, int((lefts[-1] - 2 * _MARGIN) / 7.5))
    foot = [line for text in foot for line in textwrap.wrap(text, num_letters)]
    top = _MARGIN + _HEAD_HEIGHT
    row_height = cell + _CAPTION_HEIGHT
    height = top + len(samples) * row_height + len(foot) * _FOOT_LINE + _MARGIN
    sheet: Image = np.full((height, lefts[-1], 3), PAPER, np.uint8)
    _write(sheet, title, (_MARGIN, _MARGIN + 6), scale=0.55)
    _draw_heads(sheet, columns, lefts, top)
    for i, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        y = top + i * row_height
        for k, (column, x) in enumerate(zip(columns, lefts[:-1], strict=True)):
            sheet[y : y + cell, x : x + cell] = draw_cell(column, sample, cell)
            if k in marked:
                _mark_sky(sheet[y : y + cell, x : x + cell])
        _write(sheet, caption, (_MARGIN, y + cell + 17), scale=0.5)
    for i, line in enumerate(foot):
        y = top + len(samples) * row_height + (i + 1) * _FOOT_LINE
        _write(sheet, line, (_MARGIN, y), scale=0.42, color=FAINT_INK)
    return sheet


def png_bytes(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encodes a picture as PNG with a mark that msdata made it.

    Args:
        image: uint8 (height, width, 3), blue, green, red.
    """
    import cv2

    is_done, content = cv2.imencode(".png", image)
    if not is_done:
        raise MsdataError(
            f"cannot encode a picture of {image.shape}: OpenCV failed; draw fewer objects"
        )
    text = b"tEXt" + PNG_MARK
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return bytes(content[:_PNG_HEADER_NBYTES]) + chunk + bytes(content[_PNG_HEADER_NBYTES:])


def samples_by_id(data: Dataset, names: Sequence[str], ids: Sequence[str]) -> list[Sample]:
    """Reads samples of some splits; raises UsageError where an id is unknown."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, Sample] = {}
    for name in names:
        split = data.split(name)
        column = split.table(["sample_id"]).column(0)
        places = pc.index_in(pa.array(ids, pa.string()), value_set=column).to_pylist()
        found |= {i: split[row] for i, row in zip(ids, places, strict=True) if row is not None}
    absent = [i for i in ids if i not in found]
    if absent:
        raise UsageError(f"{data.path} has no sample {', '.join(absent)} in {', '.join(names)}")
    return [found[i] for i in ids]


def caption(sample: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Formats the text below an object: id, redshift, and the requested columns."""
    parts = [str(sample["sample_id"])]
    redshift = sample.get("redshift")
    if redshift is not None:
        parts.append(f"z = {redshift:.4f}")
    for name in columns:
        value = sample[name]
        parts.append(f"{name} = {value:.5g}" if isinstance(value, float) else f"{name} = {value}")
    return "   ".join(parts)


def _starts(columns: Sequence[Column]) -> list[int]:
    """Numbers of the first column of each array."""
    return [k for k, c in enumerate(columns) if k == 0 or columns[k - 1].array is not c.array]


def _mark_sky(stamp: Image) -> None:
    """Draws arrows to north and east in the lower right corner of a stamp."""
    import cv2

    corner = stamp.shape[1] - 8, stamp.shape[0] - 8
    for letter, (right, down) in (("N", (0, -1)), ("E", (-1, 0))):
        tip = corner[0] + right * _ARROW, corner[1] + down * _ARROW
        cv2.arrowedLine(stamp, corner, tip, _LINE_COLOR, 1, cv2.LINE_AA, tipLength=0.3)
        place = tip[0] - (4 if right == 0 else 11), tip[1] + (4 if down == 0 else -3)
        _write(stamp, letter, place, scale=0.33, color=_LINE_COLOR)


def _cell_size(columns: Sequence[Column]) -> int:
    sides = [max(_image_shape(c)) for c in columns if len(_image_shape(c)) == 2]
    return int(np.clip(max(sides, default=CELL_MIN), CELL_MIN, CELL_MAX))


def _image_shape(column: Column) -> tuple[int, ...]:
    shape = column.array.shape
    if column.number is None:
        return shape
    return shape[:-1] if column.is_last_axis else shape[1:]


def _lefts(columns: Sequence[Column], cell: int) -> list[int]:
    """Computes the left edge of each column, and the width of the sheet."""
    starts = _starts(columns)
    lefts = [_MARGIN]
    for k in range(1, len(columns) + 1):
        lefts.append(lefts[-1] + cell + (_ARRAY_GAP if k in starts else _GAP))
    lefts[-1] = max(lefts[-1] - _GAP + _MARGIN, 640)
    return lefts


def _draw_heads(sheet: Image, columns: Sequence[Column], lefts: Sequence[int], top: int) -> None:
    import cv2

    for i, after in pairwise([*_starts(columns), len(columns)]):
        x, array = lefts[i], columns[i].array
        right = lefts[after] - (_ARRAY_GAP if after < len(columns) else _MARGIN)
        label = f"{array.name}  {'x'.join(map(str, _image_shape(columns[i])))}"
        if array.pixel_scale_arcsec:
            label += f'  {array.pixel_scale_arcsec:g}"/pixel'
        _write(sheet[:, :right], label, (x, top - 28), scale=0.48)
        cv2.line(sheet, (x, top - 20), (right, top - 20), FAINT_INK, 1)
    for column, x in zip(columns, lefts[:-1], strict=True):
        _write(sheet, column.label, (x + 2, top - 6), scale=0.45)


def draw_cell(column: Column, sample: Mapping[str, Any], cell: int) -> Image:
    """Draws one stamp of `cell` x `cell` pixels.

    Returns:
        uint8 (cell, cell, 3).
    """
    if column.is_missing(sample):
        return _no_coverage(cell)
    values = column.values(sample)
    if values.ndim == 1:
        return _curve(values, cell)
    if column.is_on_sky:
        values = values[::-1]
    gray = stretch(values)
    stamp: Image = np.repeat(gray[..., None], 3, axis=2)
    if values.dtype.kind == "f":
        stamp[~np.isfinite(values)] = NAN_COLOR
    return _centered(_resized(stamp, cell), cell)


def _resized(stamp: Image, cell: int) -> Image:
    """Enlarges small stamps by a whole factor, so that pixels stay square; averages large ones."""
    import cv2

    height, width = stamp.shape[:2]
    factor = cell // max(height, width)
    if factor >= 1:
        return np.repeat(np.repeat(stamp, factor, axis=0), factor, axis=1)
    shrink = cell / max(height, width)
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return np.asarray(cv2.resize(stamp, size, interpolation=cv2.INTER_AREA), np.uint8)


def _centered(stamp: Image, cell: int) -> Image:
    framed: Image = np.full((cell, cell, 3), PAPER, np.uint8)
    y, x = (cell - stamp.shape[0]) // 2, (cell - stamp.shape[1]) // 2
    framed[y : y + stamp.shape[0], x : x + stamp.shape[1]] = stamp
    return framed


def _no_coverage(cell: int) -> Image:
    import cv2

    stamp: Image = np.full((cell, cell, 3), _HATCH_PAPER, np.uint8)
    for start in range(-cell, cell, _HATCH_STEP):
        cv2.line(stamp, (start, cell), (start + cell, 0), _HATCH, 1, cv2.LINE_AA)
    (width, height), _ = cv2.getTextSize("no coverage", cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    x, y = (cell - width) // 2, (cell + height) // 2
    stamp[y - height - 6 : y + 8, max(0, x - 6) : x + width + 6] = _HATCH_PAPER
    _write(stamp, "no coverage", (x, y), scale=0.45)
    return stamp


def _curve(values_N: Array, cell: int) -> Image:
    """Draws a one-dimensional array as a line, scaled to its smallest and largest value."""
    import cv2

    stamp: Image = np.full((cell, cell, 3), _HATCH_PAPER, np.uint8)
    values = values_N.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        stamp[:] = NAN_COLOR
        return stamp
    low, high = float(finite.min()), float(finite.max())
    share = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    x = np.linspace(4, cell - 5, len(values))
    y = cell - 5 - share * (cell - 9)
    points = np.round(np.stack([x, np.nan_to_num(y)], axis=1)).astype(np.int32)
    is_finite = np.isfinite(values)
    for a, b, seen in zip(points[:-1], points[1:], is_finite[:-1] & is_finite[1:], strict=True):
        if seen:
            cv2.line(stamp, a.tolist(), b.tolist(), _LINE_COLOR, 1, cv2.LINE_AA)
    return stamp


def _legend(columns: Sequence[Column], samples: Sequence[Sample]) -> str:
    floats = [c for c in columns if c.array.numpy_dtype.kind in "fc"]
    has_nan = any(np.isnan(c.values(s)).any() for c in floats for s in samples)
    return "pixels in magenta are NaN" if has_nan else ""


def _write(
    sheet: Image,
    text: str,
    place: tuple[int, int],
    *,
    scale: float,
    color: tuple[int, int, int] = INK,
) -> None:
    """Writes text on the sheet; OpenCV's letters are ASCII."""
    import cv2

    ascii_text = text.encode("ascii", "backslashreplace").decode()
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(sheet, ascii_text, place, font, scale, color, 1, cv2.LINE_AA)
