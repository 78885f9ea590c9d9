"""Labels that lie beside the arrays: columns of the index, and the ids of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import DataError, UsageError
from msdata.sources.arrays.options import ArrayOptions

if TYPE_CHECKING:
    import pyarrow as pa

_CHOOSE = "choose labels with --labels"
# Doubles hold every integer up to here.
_MAX_EXACT = 1 << 53


def label_column(where: str, values: Any) -> pa.Array:
    """A column of an array of one axis: numbers, bools or text.

    Args:
        where: file and name, for messages.
        values: any array, or an Arrow column; bytes are taken as UTF-8.

    Raises:
        DataError: it holds other things, or text that is not UTF-8.
    """
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        return _plain(where, values)
    found = np.asarray(values)
    if found.dtype.kind in "biuf":
        kind = found.dtype.newbyteorder("=")
        return pa.array(found.astype(np.float32 if kind == np.float16 else kind, copy=False))
    try:
        text = [v.decode() if isinstance(v, bytes) else v for v in found.tolist()]
        return pa.array([v if v is None else v.strip(" \0") for v in text], pa.string())
    except (UnicodeDecodeError, AttributeError, pa.ArrowException) as error:
        raise DataError(
            f"{where} holds neither numbers nor UTF-8 text ({error}); {_CHOOSE}"
        ) from error


def _plain(where: str, values: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    from msdata.catalog.scalars import plain_column

    column, remark = plain_column(values)
    if column is None or remark:
        raise DataError(f"{where} holds neither numbers nor UTF-8 text ({values.type}); {_CHOOSE}")
    if pa.types.is_string(column.type):
        column = pc.utf8_trim(column, characters=" \0")
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def column_of_values(values: Sequence[Any]) -> pa.Array:
    """A column of what JSON and text files hold, one value per sample.

    Args:
        values: numbers, bools, text, None; others become text.

    Returns:
        Bools, integers or floats where all values are; otherwise text.
    """
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return pa.array(values, pa.bool_())
    if kinds <= {int}:
        bits = max(abs(v) for v in values if v is not None).bit_length()
        if bits < 64:
            return pa.array(values, pa.int64())
    elif kinds <= {int, float}:
        whole = [v for v in values if isinstance(v, int)]
        if all(abs(v) <= _MAX_EXACT for v in whole):
            return pa.array([v if v is None else float(v) for v in values], pa.float64())
    return pa.array([v if v is None else str(v) for v in values], pa.string())


def objects_table(
    options: ArrayOptions,
    given: Path,
    objects: Sequence[tuple[str, str, int]],
    labels: Sequence[Mapping[str, Any]],
) -> tuple[pa.Table, Mapping[str, str]]:
    """The table of samples whose labels lie beside each, for `Source.scan`.

    Args:
        options: say which labels are wanted.
        given: what the user named, for messages.
        objects: id, used unless `--id-column` names a label, path and row of each.
        labels: of each, by name.

    Returns:
        The table, sorted; and the labels' names in the files, by column.

    Raises:
        UsageError: no sample has a label that the options name.
        DataError: samples have no id.
    """
    import pyarrow as pa

    found = {name: name for own in labels for name in own}
    names = found if options.labels is None else options.named_labels()
    for inside in names.values():
        if inside not in found:
            has = ", ".join(found) or "none"
            raise UsageError(f"{given} has no label {inside!r} (--labels); it has {has}")
    columns = {
        name: column_of_values([own.get(inside) for own in labels])
        for name, inside in names.items()
    }
    ids, paths, rows = zip(*objects, strict=True)
    table = labeled_table(options, "", "", np.array(rows, np.int64), columns)
    table = table.set_column(1, "path", pa.array(paths, pa.string()))
    if options.id_column is None:
        table = table.set_column(0, "sample_id", pa.array(ids, pa.string()))
    return table.sort_by([("sample_id", "ascending"), ("path", "ascending")]), names


def labeled_table(
    options: ArrayOptions,
    prefix: str,
    path: str,
    rows: NDArray[np.int64],
    columns: Mapping[str, pa.Array],
) -> pa.Table:
    """The table of a file's samples for `Source.scan`.

    Args:
        options: say which column names the samples.
        prefix: of ids where no column names the samples.
        path: of the file.
        rows: of the samples.
        columns: the labels.

    Raises:
        UsageError: the column that `--id-column` names is absent.
        DataError: samples have no id.
    """
    import pyarrow as pa

    from msdata.catalog.columns import ID_NAMES
    from msdata.catalog.values import id_text

    lower = {name.lower(): name for name in columns}
    chosen = options.id_column or next((lower[n] for n in ID_NAMES if n in lower), None)
    if chosen is None:
        ids = pa.array([f"{prefix}{row:07d}" for row in rows.tolist()], pa.string())
    elif chosen not in columns:
        has = ", ".join(columns) or "none"
        raise UsageError(f"{path} has no label {chosen!r} (--id-column); its labels: {has}")
    else:
        ids = id_text(chosen, columns[chosen])
        if ids.null_count:
            raise DataError(
                f"{path}: {ids.null_count:,} samples have an empty {chosen!r}; name another label "
                "with --id-column"
            )
    own = ("sample_id", "path", "row", "split", "reason", "catalog_row")
    labels = {(f"file_{n}" if n in own else n): c for n, c in columns.items() if n != "sample_id"}
    return pa.table(
        {
            "sample_id": ids,
            "path": pa.repeat(path, len(rows)),
            "row": pa.array(rows, pa.int64()),
            **labels,
        }
    )
