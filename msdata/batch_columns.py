"""The index's columns that go with a batch: labels, ids, whatever was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset import Split
from msdata.index import arrow_numbers

DEFAULT_COLUMNS = ("redshift",)
_ID = "sample_id"
# Wider texts stay in Arrow, whose memory is what the texts need and no more.
_MAX_WIDTH = 24
_CONVERTED_AT_ONCE = 1 << 16


class BatchColumns:
    """Columns of one split, ready to be taken from.

    Numbers are kept as arrays, text as Arrow keeps it: 4.3 million ids as Python strings would take
    a quarter of a GiB.

    Args:
        split: whose samples.
        columns: names; None means `redshift` where the index has it. `sample_id` always comes.

    Raises:
        UsageError: there is no such column.
    """

    def __init__(self, split: Split, columns: Sequence[str] | None) -> None:
        if columns is None:
            columns = [c for c in DEFAULT_COLUMNS if c in split.dataset.columns]
        names = [_ID, *(c for c in columns if c != _ID)]
        self._numbers: dict[str, NDArray[Any]] = {}
        self._fixed: dict[str, NDArray[np.bytes_]] = {}
        self._texts: dict[str, Any] = {}
        for name in names:
            self._add(split, name)

    def _add(self, split: Split, name: str) -> None:
        import pyarrow as pa

        kind = split.column_type(name)
        if str(kind) not in ("string", "large_string"):
            parts = (arrow_numbers(part) for part in split.column_parts(name))
            self._numbers[name] = _joined(parts, len(split), np.float64)
        elif all(is_short_ascii(part) for part in split.column_parts(name)):
            self._fixed[name] = _joined(
                (fixed_width(part) for part in split.column_parts(name)), len(split), "S1"
            )
        else:
            self._texts[name] = pa.chunked_array(split.column_parts(name), kind).combine_chunks()
        # Arrow keeps what it freed for later; later never comes, and the ring needs it.
        pa.default_memory_pool().release_unused()

    def take(self, samples: NDArray[np.int64]) -> dict[str, Any]:
        """Columns of some samples.

        Args:
            samples: int64 (n,), numbers within the split.

        Returns:
            Arrays (n,) by name; text as NumPy strings.
        """
        taken: dict[str, Any] = {
            name: _as_text(column[samples]) for name, column in self._fixed.items()
        }
        for name, column in self._texts.items():
            texts = ["" if t is None else t for t in column.take(samples).to_pylist()]
            taken[name] = np.array(texts, dtype=np.str_)
        for name, values in self._numbers.items():
            taken[name] = values[samples]
        return taken


def _as_text(fixed: NDArray[np.bytes_]) -> NDArray[np.str_]:
    """ASCII bytes as text; `astype` gives the same and takes five times as long."""
    width = fixed.dtype.itemsize
    codes = fixed.view(np.uint8).reshape(len(fixed), width).astype(np.uint32)
    return codes.reshape(-1).view(f"U{width}")


def _letters(part: Any) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The bytes of an Arrow array of texts, one after the other, and where each begins and ends.

    By way of NumPy: `pyarrow.compute` costs every process that loads data 3 MiB.
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
    """Parts as one array of `count`, each part dropped before the next one is made.

    Args:
        parts: arrays one after the other; their types may widen (null makes integers floats).
        count: values of all parts.
        empty: type of the result where there is no part.
    """
    joined: NDArray[Any] | None = None
    start = 0
    for part in parts:
        if joined is None:
            joined = np.empty(count, part.dtype)
        kind = np.promote_types(joined.dtype, part.dtype)
        if kind != joined.dtype:
            joined = joined.astype(kind)
        joined[start : start + len(part)] = part
        start += len(part)
    return np.empty(count, empty) if joined is None else joined
