"""The index's columns that go with a batch: labels, ids, whatever was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset import Split

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
            # One column at a time, so that only one is held twice.
            column = split.table([name]).column(0).combine_chunks()
            if str(column.type) in ("string", "large_string"):
                self._add_text(name, column)
            else:
                self._numbers[name] = column.to_numpy(zero_copy_only=False)

    def _add_text(self, name: str, column: Any) -> None:
        """Short ASCII texts become fixed-width bytes, which NumPy takes from 20 times faster."""
        import pyarrow.compute as pc

        lengths = pc.binary_length(column)
        width = pc.max(lengths).as_py() or 1
        is_ascii = bool(pc.all(pc.string_is_ascii(column)).as_py())
        if not is_ascii or width > _MAX_WIDTH or column.null_count:
            self._texts[name] = column
            return
        fixed = np.empty(len(column), f"S{width}")
        for start in range(0, len(column), _CONVERTED_AT_ONCE):
            part = column.slice(start, _CONVERTED_AT_ONCE)
            fixed[start : start + len(part)] = part.to_numpy(zero_copy_only=False)
        self._fixed[name] = fixed

    def take(self, samples: NDArray[np.int64]) -> dict[str, Any]:
        """Columns of some samples.

        Args:
            samples: int64 (n,), numbers within the split.

        Returns:
            Arrays (n,) by name; text as NumPy strings.
        """
        taken: dict[str, Any] = {
            name: column[samples].astype(np.str_) for name, column in self._fixed.items()
        }
        for name, column in self._texts.items():
            texts = ["" if t is None else t for t in column.take(samples).to_pylist()]
            taken[name] = np.array(texts, dtype=np.str_)
        for name, values in self._numbers.items():
            taken[name] = values[samples]
        return taken
