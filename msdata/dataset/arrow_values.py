"""Converts Arrow's columns to NumPy arrays exactly: integers beside nulls stay integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# float64 holds every integer up to here.
_MAX_EXACT = 1 << 53


def arrow_values(part: pa.Array) -> NDArray[Any]:
    """Returns the exact values of an Arrow array, without a copy if possible.

    Arrow's `to_numpy` turns integers beside nulls into doubles, and imports pandas if it is
    installed, which costs every loading process 26 MiB and a third of a second.

    Args:
        part: numbers or truth values; other types go through `to_numpy`.

    Returns:
        (n,); nulls are NaN among floats, NaT among times, None among objects. Integers and truth
        values with nulls are a `numpy.ma.MaskedArray` of their own type, see `masked_values`.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(part.type):
        part = part.dictionary_decode()
    if pa.types.is_null(part.type):
        return np.full(len(part), np.nan)
    is_bool = pa.types.is_boolean(part.type)
    if not (is_bool or pa.types.is_integer(part.type) or pa.types.is_floating(part.type)):
        return np.asarray(part.to_numpy(zero_copy_only=False))
    if not len(part):
        return np.empty(0, part.type.to_pandas_dtype())
    validity, content = part.buffers()
    if is_bool:
        values: NDArray[Any] = _bits(content, part)
    else:
        values = np.frombuffer(content, part.type.to_pandas_dtype())
        values = values[part.offset : part.offset + len(part)]
    if not part.null_count:
        return values
    is_null = ~_bits(validity, part)
    if pa.types.is_floating(part.type):
        return np.where(is_null, np.asarray(np.nan, values.dtype), values)
    return masked_values(values, is_null)


def _bits(buffer: Any, part: pa.Array) -> NDArray[np.bool_]:
    """Unpacks a bitmap of an Arrow array: one truth value per value."""
    skipped = part.offset % 8
    packed = np.frombuffer(buffer, np.uint8)[part.offset // 8 :]
    bits = np.unpackbits(packed, bitorder="little", count=skipped + len(part))
    return bits[skipped:].astype(np.bool_)


def masked_values(values: NDArray[Any], is_null: NDArray[np.bool_]) -> NDArray[Any]:
    """Masks null values in a `numpy.ma.MaskedArray`.

    Args:
        values: (n,), integers, truth values or text.
        is_null: bool (n,).

    Returns:
        (n,), dtype of `values`. The masked values are integers that no catalog holds: the lowest of
        the type, the highest of an unsigned type; False or "" for other types.
    """
    kind = values.dtype.kind
    absent: Any = {"b": False, "U": ""}.get(kind)
    if absent is None:
        limits = np.iinfo(values.dtype)
        absent = limits.max if kind == "u" else limits.min
    found: NDArray[Any] = np.ma.MaskedArray(
        np.where(is_null, np.asarray(absent, values.dtype), values), is_null, fill_value=absent
    )
    return found


def cast_exactly(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Casts values to another type of numbers; null becomes NaN.

    Raises:
        UsageError: the cast would change a value.
    """
    if values.dtype.kind not in "biuf":
        raise UsageError("holds no numbers; read it with table()")
    if values.dtype == dtype and not np.ma.isMaskedArray(values):
        return values
    numbers, num_null = np.ma.getdata(values), int(np.ma.getmaskarray(values).sum())
    if dtype.kind in "iu":
        if num_null:
            raise UsageError(f"has {num_null:,} nulls, which {dtype} cannot hold; read it masked")
        if values.dtype.kind == "f":
            is_whole = np.isfinite(numbers) & (numbers == np.trunc(numbers))
            if num_odd := int(np.count_nonzero(~is_whole)):
                raise UsageError(f"has {num_odd:,} values that are not integers; use float64")
        limits = np.iinfo(dtype)
        low, high = numbers.min(initial=0), numbers.max(initial=0)
        if int(low) < limits.min or int(high) > limits.max:
            raise UsageError(f"has values from {low} to {high}, which {dtype} cannot hold")
    if dtype == np.float64 and values.dtype in (np.int64, np.uint64):
        is_large = (numbers > _MAX_EXACT) | (numbers < -_MAX_EXACT)
        is_large &= ~np.ma.getmaskarray(values)
        if is_large.any():
            raise UsageError(
                f"holds {numbers[is_large][0]}, which float64 would round; read it with "
                f"numbers(..., np.{values.dtype}) or table()"
            )
    cast = numbers.astype(dtype)
    if num_null and dtype.kind == "f":
        cast[np.ma.getmaskarray(values)] = np.nan
    return cast
