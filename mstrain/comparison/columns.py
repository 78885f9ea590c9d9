"""Columns to compare and to select by: of a table of predictions, or of the index behind it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.dataset.dataset import Split
from msdata.errors import MsdataError, UsageError
from mstrain.evaluation.list_table import as_floats
from mstrain.evaluation.predictions import Predictions


def places_of(ids: Any, others: Any) -> NDArray[np.int64]:
    """Row in `others` of each id, -1 for none, int64 (N,); both are text of Arrow."""
    import pyarrow.compute as pc

    places = pc.fill_null(pc.index_in(ids, value_set=others), -1)
    return np.asarray(places.to_numpy(zero_copy_only=False), np.int64)


def column_names(text: str) -> list[str]:
    """The column and, after a colon, its error's.

    Raises:
        UsageError: the text is malformed.
    """
    name, colon, error = (part.strip() for part in text.partition(":"))
    if not name or bool(colon) != bool(error):
        raise UsageError(f"--column must be NAME or NAME:ERROR, got {text!r}")
    return [name, error] if error else [name]


def read_columns(
    first: Predictions,
    rows: NDArray[np.int64],
    wanted: Sequence[str],
    folder: Path | None,
    notes: list[str],
) -> dict[str, NDArray[Any]]:
    """Columns of the first table's objects: its own, else the data set's.

    Args:
        first: the table.
        rows: int64 (N,), its rows to take.
        wanted: names of columns.
        folder: the data set; None takes the one that was predicted.
        notes: a remark is added where the data set is another one.

    Returns:
        (N,) by name, numbers as float64, NaN where unknown; text as objects.

    Raises:
        UsageError: a column, an object or the data set is not there.
    """
    found: dict[str, NDArray[Any]] = {"sample_id": first.columns["sample_id"][rows]}
    lacking = [name for name in dict.fromkeys(wanted) if name not in first.columns]
    for name in wanted:
        if name in first.columns:
            found[name] = _plain(first.columns[name][rows], name)
    if not lacking:
        return found
    data = _open_data(first, folder, lacking)
    unknown = [name for name in lacking if name not in data.columns]
    if unknown:
        raise UsageError(
            f"neither {first.path} nor {data.path} has a column {', '.join(unknown)}; the data "
            f"set has {', '.join(data.columns)}; 'msdata index add' adds columns"
        )
    import pyarrow as pa

    splits = [data.split(name) for name in data.splits if len(data.split(name))]
    ids = pa.chunked_array(
        [p.cast(pa.string()) for split in splits for p in split.column_parts("sample_id")]
    )
    place = places_of(pa.array(found["sample_id"], pa.string()), ids)
    if (place < 0).any():
        raise UsageError(
            f"{int((place < 0).sum()):,} of {len(place):,} objects of {first.path} are not in "
            f"{data.path}; give the data set that was predicted with --data"
        )
    if first.origin.get("fingerprint") != data.manifest.fingerprint:
        notes.append(f"{data.path} is another data set than the one that was predicted.")
    for name in lacking:
        found[name] = _index_column(splits, name)[place]
    return found


def _open_data(first: Predictions, folder: Path | None, lacking: Sequence[str]) -> msdata.Dataset:
    """The data set that was given, or that the predictions are of."""
    if folder is not None:
        return msdata.open(folder)
    given = str(first.origin.get("data", ""))
    try:
        data = msdata.open(given)
        is_same = data.manifest.fingerprint == first.origin.get("fingerprint")
    except (MsdataError, OSError):
        is_same = False
    if not is_same:
        own = [name for name in first.columns if name not in ("sample_id", "split")]
        close = difflib.get_close_matches(lacking[0], own, n=1)
        raise UsageError(
            f"{first.path} has no column {', '.join(lacking)}"
            + (f" (did you mean {close[0]!r}?)" if close else "")
            + f", and its data set {given!r} is not there any more; give the data set with --data"
        )
    return data


def _index_column(splits: Sequence[Split], name: str) -> NDArray[Any]:
    import pyarrow as pa

    kind = splits[0].column_type(name)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.concatenate([split.numbers(name) for split in splits])
    parts = [value for split in splits for part in split.column_parts(name) for value in part]
    return _plain(np.array([value.as_py() for value in parts], object), name)


def _plain(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Numbers as float64, NaN where unknown; text and truth values as objects."""
    if np.ma.isMaskedArray(values) or values.dtype.kind in "iuf":
        return as_floats(values)
    if values.dtype.kind == "b":
        return values.astype(np.float64)
    if all(value is None or isinstance(value, bool) for value in values):
        return np.array([np.nan if v is None else float(v) for v in values])
    if not all(value is None or isinstance(value, str) for value in values):
        raise UsageError(f"column {name!r} holds neither numbers nor text")
    return values
