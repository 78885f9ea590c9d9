"""The columns of the index in a batch: labels, ids and requested ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.arrow_values import arrow_values, masked_values
from msdata.dataset.dataset import Split
from msdata.dataset.index import BATCH_NAMES
from msdata.errors import UsageError

DEFAULT_COLUMNS = ("redshift",)
_ID = "sample_id"
# Wider texts stay in Arrow, which takes only the memory of the texts.
_MAX_WIDTH = 24
_CONVERTED_AT_ONCE = 1 << 16


class BatchColumns:
    """Columns of one split, ready to be taken from.

    Numbers are kept as arrays, text in Arrow: 4.3 million ids as Python strings take 0.25 GiB.

    Args:
        split: the samples.
        columns: names; None means `redshift` if the index has it. `sample_id` always comes.
        fill_nulls: replacement of null, by column; other columns with nulls come masked.
        extra: what batches have besides, (samples, ...) by name.

    Attributes:
        names: names of the columns, in order.

    Raises:
        UsageError: a column is missing, its name is reserved, or it cannot hold the replacement of
            null.
    """

    def __init__(
        self,
        split: Split,
        columns: Sequence[str] | None,
        fill_nulls: Mapping[str, Any] | None = None,
        extra: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.names = _checked_names(split, columns)
        self._numbers: dict[str, NDArray[Any]] = {}
        self._fixed: dict[str, NDArray[np.bytes_]] = {}
        self._texts: dict[str, Any] = {}
        for name in self.names:
            self._add(split, name)
        for name, values in (extra or {}).items():
            if name in (*self.names, *split.schema.names):
                raise UsageError(f"batches need the name {name!r} for steps; leave out the column")
            self._numbers[name] = values
        self._fill_of_text: dict[str, str] = {}
        for name, value in (fill_nulls or {}).items():
            self._fill(name, value)

    def _add(self, split: Split, name: str) -> None:
        import pyarrow as pa

        kind = split.column_type(name)
        if name in DEFAULT_COLUMNS:
            # Labels are float64 whatever the catalog's type, and null is NaN.
            self._numbers[name] = split.numbers(name)
        elif str(kind) not in ("string", "large_string"):
            parts = (arrow_values(part) for part in split.column_parts(name))
            self._numbers[name] = _joined(parts, len(split), np.float64)
        elif all(is_short_ascii(part) for part in split.column_parts(name)):
            self._fixed[name] = _joined(
                (fixed_width(part) for part in split.column_parts(name)), len(split), "S1"
            )
        else:
            self._texts[name] = pa.chunked_array(split.column_parts(name), kind).combine_chunks()
        # Arrow keeps freed memory for reuse, but the ring needs it.
        pa.default_memory_pool().release_unused()

    def _fill(self, name: str, value: Any) -> None:
        """Puts a value in place of a column's nulls."""
        if name not in self.names:
            raise UsageError(
                f"fill_nulls names {name!r}, which is not among the columns {', '.join(self.names)}"
            )
        values = self._numbers.get(name)
        if values is None:
            if not isinstance(value, str):
                raise UsageError(f"fill_nulls[{name!r}] must be a str, got {value!r}")
            self._fill_of_text[name] = value
        elif np.ma.isMaskedArray(values):
            filled = np.array(np.ma.getdata(values))
            if type(value) not in ((bool,) if values.dtype.kind == "b" else (int,)):
                raise UsageError(f"fill_nulls[{name!r}] must be a {values.dtype}, got {value!r}")
            try:
                filled[np.ma.getmaskarray(values)] = value
            except OverflowError:
                raise UsageError(
                    f"fill_nulls[{name!r}] must be a {values.dtype}, got {value}"
                ) from None
            self._numbers[name] = filled

    def null_counts(self) -> dict[str, int]:
        """The number of nulls of each column that comes masked."""
        masked = {n: v for n, v in self._numbers.items() if np.ma.isMaskedArray(v)}
        counts = {name: int(np.ma.getmaskarray(values).sum()) for name, values in masked.items()}
        texts = {n: t.null_count for n, t in self._texts.items() if n not in self._fill_of_text}
        return {name: count for name, count in {**counts, **texts}.items() if count}

    def numbers(self) -> dict[str, NDArray[Any]]:
        """The columns that are not text, whole: (samples,) by name."""
        return dict(self._numbers)

    def take(self, samples: NDArray[np.int64]) -> dict[str, Any]:
        """Columns of some samples.

        Args:
            samples: int64 (n,), numbers within the split.

        Returns:
            Arrays (n,) by name; text as NumPy strings. A column that has nulls anywhere in the
            split is a `numpy.ma.MaskedArray`, unless it holds floats, whose null is NaN.
        """
        taken: dict[str, Any] = {
            name: _as_text(column[samples]) for name, column in self._fixed.items()
        }
        for name, column in self._texts.items():
            texts = column.take(samples).to_pylist()
            absent = self._fill_of_text.get(name, "")
            values = np.array([absent if t is None else t for t in texts], dtype=np.str_)
            if column.null_count and name not in self._fill_of_text:
                values = masked_values(values, np.array([t is None for t in texts], np.bool_))
            taken[name] = values
        for name, values in self._numbers.items():
            taken[name] = values[samples]
        return taken


def _checked_names(split: Split, columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        columns = [c for c in DEFAULT_COLUMNS if c in split.dataset.columns]
    split.check_columns(columns)
    for name in columns:
        if name in BATCH_NAMES:
            raise UsageError(
                f"column {name!r} has a name that batches use for something else; read it with "
                f"split.table([{name!r}])"
            )
    return list(dict.fromkeys((_ID, *columns)))


def _as_text(fixed: NDArray[np.bytes_]) -> NDArray[np.str_]:
    """ASCII bytes as text, five times faster than `astype`."""
    width = fixed.dtype.itemsize
    codes = fixed.view(np.uint8).reshape(len(fixed), width).astype(np.uint32)
    return codes.reshape(-1).view(f"U{width}")


def _letters(part: Any) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The joined bytes of an Arrow array of texts, and the bounds of each.

    NumPy does it, since `pyarrow.compute` takes 3 MiB in every process that loads data.
    """
    _, ends, letters = part.buffers()
    wide = str(part.type) == "large_string"
    bounds = np.frombuffer(ends, np.int64 if wide else np.int32) if ends else np.zeros(1, np.int32)
    bounds = bounds[part.offset : part.offset + len(part) + 1] if len(part) else bounds[:1]
    text = np.frombuffer(letters, np.uint8) if letters else np.empty(0, np.uint8)
    return text[bounds[0] : bounds[-1]], bounds - bounds[0]


def is_short_ascii(part: Any) -> bool:
    """Whether all texts are short ASCII: as fixed-width bytes NumPy takes them 20 times faster.

    Args:
        part: Arrow array of type string or large_string.
    """
    letters, bounds = _letters(part)
    is_short = int(np.diff(bounds).max(initial=0)) <= _MAX_WIDTH
    return is_short and not part.null_count and int(letters.max(initial=0)) < 128


def fixed_width(part: Any) -> NDArray[np.bytes_]:
    """Short ASCII texts as bytes of one width.

    Args:
        part: Arrow array of which `is_short_ascii` holds.

    Returns:
        bytes (n,), as wide as the longest text, at least 1.
    """
    letters, bounds = _letters(part)
    widths = np.diff(bounds)
    width = max(1, int(widths.max(initial=0)))
    if (widths == width).all():
        return letters.view(f"S{width}")
    fixed = np.zeros((len(part), width), np.uint8)
    for start in range(0, len(part), _CONVERTED_AT_ONCE):
        some = slice(start, min(start + _CONVERTED_AT_ONCE, len(part)))
        is_letter = np.arange(width) < widths[some, None]
        fixed[some][is_letter] = letters[bounds[some.start] : bounds[some.stop]]
    return fixed.reshape(-1).view(f"S{width}")


def _joined(parts: Iterable[NDArray[Any]], count: int, empty: Any) -> NDArray[Any]:
    """Joins parts into one array of `count`; each part is dropped before the next is made.

    Args:
        parts: arrays one after the other, some of them masked; text may grow wider.
        count: values of all parts.
        empty: type of the result without parts.
    """
    joined: NDArray[Any] = np.empty(0, empty)
    is_null: NDArray[np.bool_] | None = None
    start = 0
    for part in parts:
        kind = np.promote_types(joined.dtype, part.dtype) if start else part.dtype
        if not start:
            joined = np.empty(count, kind)
        elif kind != joined.dtype:
            joined = joined.astype(kind)
        stop = start + len(part)
        joined[start:stop] = np.ma.getdata(part)
        if np.ma.isMaskedArray(part):
            is_null = np.zeros(count, np.bool_) if is_null is None else is_null
            is_null[start:stop] = np.ma.getmaskarray(part)
        start = stop
    return joined if is_null is None else masked_values(joined, is_null)
