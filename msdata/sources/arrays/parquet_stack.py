"""Opens a Parquet file with images or arrays in a column, one sample per row.

Columns are nested lists of numbers, PNG or JPEG bytes as Hugging Face's `datasets` stores them, or
lists of bands as the Multimodal Universe does. Scalar columns are labels.

Source: datasets 5.2, `features.Image`, `features.Array2D`, `features.ClassLabel`, and
`DatasetInfo` in the schema's metadata; The Multimodal Universe Collaboration 2024,
arXiv:2412.02527.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from msdata.catalog.scalars import plain_column
from msdata.core.trusted_names import short
from msdata.errors import DataError, SampleError
from msdata.schema import Array
from msdata.sources.arrays.members import IMAGE_MAGICS, decode_image
from msdata.sources.arrays.options import ArrayOptions
from msdata.sources.arrays.parquet_rows import ColumnRows, open_file

# Rows that tell bands, shape and dtype: enough to outvote a few broken ones.
_NUM_LOOKED_AT = 16
# Longer values are taken for files, not labels; labels are read whole.
_MAX_LABEL_NBYTES = 4096
_Decode = Callable[[pa.Array], Array]
_Told = TypeVar("_Told", bound=Hashable)


class ParquetArrays:
    """Implements `StackArray` over a column of images or arrays.

    Args:
        name: the column's.
        rows: its rows.
        decode: the array of a row, an Arrow array of length 1.
        bands: names of the entries of the first axis; empty for unknown ones.
        has_bands_first: whether the axes are known to be (bands, height, width).

    Attributes:
        shape: samples first.
        dtype: of the first rows, as most of them are.
        bands: see above.
        has_bands_first: see above.
        pixel_scale_arcsec: None where it is unknown, or not that of every band and row.
    """

    pixel_scale_arcsec: float | None = None

    def __init__(
        self,
        name: str,
        rows: ColumnRows,
        decode: _Decode,
        bands: tuple[str, ...] = (),
        *,
        has_bands_first: bool = False,
    ) -> None:
        self._rows, self._decode = rows, decode
        self.bands, self.has_bands_first = bands, has_bands_first

        def look(value: pa.Array) -> tuple[tuple[int, ...], Any]:
            array = decode(value)
            return array.shape, array.dtype

        inner, self.dtype = _most_common(name, rows, look)
        self.shape = (len(rows), *inner)
        rows.expect(int(np.prod(inner)) * self.dtype.itemsize)

    def __getitem__(self, key: int) -> Array:
        return self._decode(self._rows.row(key))


class ParquetLabels:
    """Implements `StackArray` over a column of numbers, texts or truth values.

    Args:
        read: reads the column.
        num_rows: its rows.

    Attributes:
        shape: (samples,).
        dtype: object, whatever the column holds.
    """

    dtype = np.dtype(object)

    def __init__(self, read: Callable[[], pa.ChunkedArray], num_rows: int) -> None:
        self._read, self.shape = read, (num_rows,)

    def __getitem__(self, key: Any) -> pa.ChunkedArray:
        return self._read()


def open_parquet(
    path: Path, options: ArrayOptions
) -> tuple[Mapping[str, ParquetArrays | ParquetLabels], list[str]]:
    """Opens a file.

    Args:
        path: the file; it is opened again for each read.
        options: a flat list is an array where they name it or say its shape.

    Returns:
        Its columns by name, a class's names as `NAME_name`; and notes on those left out.

    Raises:
        DataError: it is not Parquet, broken, or has no column of images or arrays.
        StorageError: the file system refused.
    """
    with open_file(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    if not metadata.num_rows:
        raise DataError("it has no rows; leave it out")
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DataError(f"it has two columns named {twice[0]!r}; rename one")
    columns: dict[str, ParquetArrays | ParquetLabels] = {}
    notes: list[str] = []
    features = _features(schema)
    for field in schema:
        own = [leaf for leaf in leaves if leaf == field.name or leaf.startswith(f"{field.name}.")]
        opened = _Opened(path, metadata, field, own, options)
        why = opened.left_out()
        if why:
            notes.append(f"column {field.name!r} ({short(str(field.type))}) is left out: {why}")
        elif opened.is_label:
            columns |= opened.labels(features.get(field.name))
        else:
            columns[field.name] = opened.arrays()
    if not any(isinstance(found, ParquetArrays) for found in columns.values()):
        told = "; ".join(notes) or f"its columns are {', '.join(schema.names)}"
        raise DataError(
            f"it has no column of images or arrays: {told}. Name flat lists with --arrays or "
            "--shape; a table of labels is for --catalog"
        )
    return columns, notes


class _Opened:
    """One column of a file, and what it may be."""

    def __init__(
        self, path: Path, metadata: Any, field: pa.Field, leaves: list[str], options: ArrayOptions
    ) -> None:
        self._path, self._metadata, self._field, self._leaves = path, metadata, field, leaves
        self._names = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
        self._scratch = None if options.scratch is None else Path(options.scratch)
        self._depth, value = _list_depth(field.type)
        self._inner = _field_names(value)
        is_wanted = field.name in options.arrays.values() or field.name in options.shapes
        self._is_flat = self._depth == 1 and types.is_list(field.type) and not is_wanted
        self._is_number = (
            types.is_integer(value) or types.is_floating(value) or types.is_boolean(value)
        )
        self._is_bytes = types.is_binary(value) or types.is_large_binary(value)
        self.is_label = not self._depth and not self._inner and not self._is_image()

    def left_out(self) -> str:
        """Why it is neither array nor label; empty where it is one."""
        if self._inner:
            is_known = {"band", "flux"} <= self._inner or {"bytes", "path"} <= self._inner
            return "" if is_known else "neither an image nor a label"
        if self._depth:
            if not self._is_number:
                return "lists of other things than numbers"
            order = getattr(self._field.type, "permutation", None)
            if order is not None and list(order) != sorted(order):
                return "a tensor with permuted axes"
            return "a flat list; --arrays or --shape takes it" if self._is_flat else ""
        if self.is_label:
            if plain_column(pa.chunked_array([], self._field.type))[0] is None:
                return "neither a number, text nor truth value"
            if self._nbytes_per_row() > _MAX_LABEL_NBYTES:
                return "too long for a label"
        return ""

    def _nbytes_per_row(self) -> int:
        groups = (self._metadata.row_group(g) for g in range(self._metadata.num_row_groups))
        chunks = (group.column(i) for group in groups for i in range(group.num_columns))
        nbytes = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in self._leaves)
        return int(nbytes) // int(self._metadata.num_rows)

    def _is_image(self) -> bool:
        """Whether a column of bytes holds PNG or JPEG files."""
        if self._depth or not self._is_bytes:
            return False
        head = self._rows(self._leaves).first(_NUM_LOOKED_AT).drop_null().to_pylist()
        return any(value.startswith(IMAGE_MAGICS) for value in head)

    def _rows(self, leaves: list[str]) -> ColumnRows:
        return ColumnRows(self._path, self._metadata, leaves, self._scratch)

    def arrays(self) -> ParquetArrays:
        """The column as arrays."""
        name = self._field.name
        if {"band", "flux"} <= self._inner:
            rows = self._rows([leaf for leaf in self._leaves if self._is_of(leaf, "band", "flux")])
            bands = _most_common(name, rows, lambda value: tuple(_bands_of(value)[0]))
            if len(set(bands)) != len(bands):
                raise DataError(f"column {name!r} has a band twice: {', '.join(bands)}")

            def stack(value: pa.Array) -> Array:
                return _in_order(*_bands_of(value), bands)

            found = ParquetArrays(name, rows, stack, bands, has_bands_first=True)
            found.pixel_scale_arcsec = self._scale()
            return found
        if self._inner or self._is_bytes:
            wanted = self._leaves if self._is_bytes else [f"{name}.bytes", f"{name}.path"]
            return ParquetArrays(name, self._rows(wanted), _decoded, has_bands_first=True)
        shape = tuple(getattr(self._field.type, "shape", ()))
        rows = self._rows(self._leaves)
        if shape:
            return ParquetArrays(name, rows, lambda value: _dense(value).reshape(shape))
        return ParquetArrays(name, rows, lambda value: _dense(value)[0])

    def _is_of(self, leaf: str, *names: str) -> bool:
        return any(part in names for part in leaf[len(self._field.name) :].split("."))

    def _scale(self) -> float | None:
        """The pixel scale of all bands and rows, if it is one."""
        leaves = [leaf for leaf in self._leaves if self._is_of(leaf, "scale")]
        if not leaves:
            return None
        values = self._read(leaves)
        while types.is_nested(values.type):
            is_struct = types.is_struct(values.type)
            values = pc.struct_field(values, "scale") if is_struct else pc.list_flatten(values)
        found = pc.unique(values.drop_null()).to_numpy()
        # As text, float32's 0.262 is not 0.26199999.
        return float(str(found[0])) if len(found) == 1 and found[0] > 0 else None

    def labels(self, feature: Any) -> dict[str, ParquetLabels]:
        """The column as labels; a class also by its names."""
        name, num_rows = self._field.name, self._metadata.num_rows
        found = {name: ParquetLabels(lambda: self._read(self._leaves), num_rows)}
        names = feature.get("names") if isinstance(feature, dict) else None
        is_free = f"{name}_name" not in self._names
        if is_free and isinstance(names, list) and all(isinstance(n, str) for n in names):
            found[f"{name}_name"] = ParquetLabels(
                lambda: _named(name, self._read(self._leaves), names), num_rows
            )
        return found

    def _read(self, leaves: list[str]) -> pa.ChunkedArray:
        try:
            with open_file(self._path, self._metadata) as file:
                return file.read(columns=leaves).column(0)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DataError) or getattr(error, "errno", None) is not None:
                raise
            raise DataError(f"column {self._field.name!r} is broken: {error}") from error


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The features that `datasets` wrote into the metadata, by column; empty without."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _list_depth(kind: pa.DataType) -> tuple[int, pa.DataType]:
    """How deep lists are nested, and what the innermost hold."""
    depth = 0
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            depth, kind = depth + 1, kind.value_type
        else:
            return depth, kind


def _field_names(kind: pa.DataType) -> set[str]:
    return {field.name for field in kind} if types.is_struct(kind) else set()


def _dense(values: pa.Array) -> Array:
    """The array of nested lists that have equal lengths, (len(values), ...)."""
    shape = [len(values)]
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise SampleError("it holds nulls")
        if not _list_depth(values.type)[0]:
            break
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            told = " and ".join(map(str, sorted(lengths)[:2]))
            raise SampleError(f"its lists have {told or 0} entries; all must have as many")
        shape += lengths
        values = values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _decoded(value: pa.Array) -> Array:
    """The image of PNG or JPEG bytes, or of a struct of these and a path."""
    path = None
    if types.is_struct(value.type):
        fields = dict(zip((f.name for f in value.type), value.flatten(), strict=True))
        value, path = fields["bytes"], fields["path"][0].as_py()
    content = value[0].as_py()
    if content is None and path is not None:
        raise SampleError(
            f"it holds no image but a path, {short(path)}, which is not followed; embed the images "
            "with Dataset.to_parquet of `datasets`"
        )
    if content is None:
        raise SampleError("it holds no image: null")
    return decode_image(content)


def _bands_of(value: pa.Array) -> tuple[list[str], Array]:
    """Bands and pixels of one row: a list of structs, or a struct of lists."""
    if value.null_count:
        raise SampleError("it holds no image: null")
    is_list = not types.is_struct(value.type)
    items = value.flatten() if is_list else value
    if items.null_count:
        raise SampleError("one of its bands is null")
    parts = dict(zip((f.name for f in items.type), items.flatten(), strict=True))
    band, flux = parts["band"], parts["flux"]
    if not is_list:
        if band.null_count or flux.null_count:
            raise SampleError("it holds no image: null")
        band, flux = band.flatten(), flux.flatten()
    bands = [str(name) for name in band.to_pylist()]
    if not bands or len(bands) != len(flux):
        raise SampleError(f"it has {len(bands)} names of bands for {len(flux)} images")
    return bands, _dense(flux)


def _most_common(name: str, rows: ColumnRows, look: Callable[[pa.Array], _Told]) -> _Told:
    """What most of a column's first rows tell."""
    votes: Counter[_Told] = Counter()
    reason = "it is empty"
    head = rows.first(_NUM_LOOKED_AT)
    for row in range(len(head)):
        try:
            votes[look(head.slice(row, 1))] += 1
        except SampleError as error:
            reason = str(error)
    if not votes:
        raise DataError(f"none of the first rows of column {name!r} is usable: {reason}")
    return votes.most_common(1)[0][0]


def _in_order(found: list[str], pixels: Array, bands: tuple[str, ...]) -> Array:
    """The pixels with their bands in the order of `bands`."""
    if tuple(found) == bands:
        return pixels
    if sorted(found) != sorted(bands):
        raise SampleError(f"its bands are {', '.join(found)}, others have {', '.join(bands)}")
    return pixels[[found.index(band) for band in bands]]


def _named(name: str, values: pa.ChunkedArray, names: list[str]) -> pa.ChunkedArray:
    """Names of classes; null for -1, which stands for none."""
    numbers = pc.cast(values, pa.int64())
    largest = pc.max(numbers).as_py()
    if largest is not None and largest >= len(names):
        raise DataError(f"column {name!r} has a class {largest}, but {len(names)} names")
    numbers = pc.if_else(pc.less(numbers, 0), pa.scalar(None, pa.int64()), numbers)
    return pc.take(pa.array(names, pa.string()), numbers)
