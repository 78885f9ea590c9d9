"""Labels of a file that is indexed in place, as columns: a file may hold millions of samples.

Values are judged as `msdata.Writer` judges them: one that it would refuse becomes null, counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import SampleError, UsageError, naming
from msdata.ingest.label_checks import RANGES, check_exact, joined_kind, plain_value
from msdata.pack.columns import label_names
from msdata.schema import Schema
from msdata.sources.parts import LabelKind

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_INT64 = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class FoundLabel:
    """A label of all samples of a file.

    Attributes:
        kind: of its values.
        values: one per sample, null where it is missing.
        num_dropped: values that an index cannot keep.
    """

    kind: LabelKind
    values: pa.Array
    num_dropped: int = 0


def label_of_values(name: str, values: Sequence[Any], ids: Sequence[str]) -> FoundLabel | None:
    """A label of Python's values, one per sample, None where a sample lacks it.

    Returns:
        The label; None where no value can be kept.

    Raises:
        UsageError: the values are of several kinds.
    """
    import pyarrow as pa

    kind: LabelKind = "nothing"
    kept: list[Any] = []
    num_dropped = 0
    for value, sample_id in zip(values, ids, strict=True):
        try:
            plain, now = plain_value(name, value)
        except SampleError:
            kept.append(None)
            num_dropped += 1
            continue
        try:
            kind = joined_kind(name, kind, now)
            check_exact(name, plain, kind)
        except SampleError as error:
            raise UsageError(f"cannot index sample {sample_id!r}: {error}") from error
        kept.append(plain)
    return FoundLabel(kind=kind, values=pa.array(kept, _type_of(kind)), num_dropped=num_dropped)


def label_of_array(name: str, values: NDArray[Any]) -> FoundLabel:
    """A label of an array of numbers or truth values, one per sample."""
    import pyarrow as pa

    is_dropped = np.zeros(len(values), np.bool_)
    kind: LabelKind = {"b": "truth value", "f": "number"}.get(values.dtype.kind, "integer")  # type: ignore[assignment]
    if values.dtype.kind == "u":
        is_dropped = values > _MAX_INT64
        values = np.where(is_dropped, 0, values)
    elif values.dtype.kind == "i":
        is_dropped = values == -_MAX_INT64 - 1
    is_missing = is_dropped
    if kind == "number":
        is_dropped, is_missing = np.isinf(values), ~np.isfinite(values)
    if name in RANGES:
        low, high = RANGES[name]
        is_number = kind != "truth value"
        # Comparisons with NaN are false.
        is_outside = (values < low) | (values > high) if is_number else np.bool_(True)
        is_dropped, is_missing = is_dropped | is_outside, is_missing | is_outside
        kind = "number"
    if bool(is_missing.all()):
        kind = "nothing"
    plain = values.astype({"truth value": bool, "integer": np.int64}.get(kind, np.float64))
    return FoundLabel(
        kind=kind, values=pa.array(plain, mask=is_missing), num_dropped=int(is_dropped.sum())
    )


def label_columns(
    files: Sequence[Mapping[str, FoundLabel]], sizes: Sequence[int], schema: Schema
) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """The columns of the index, in the order of files and samples, and notes on them.

    Args:
        files: labels of each file.
        sizes: samples of each file.
        schema: the arrays, whose names are taken.

    Raises:
        UsageError: files have values of different kinds for one label.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds: dict[str, LabelKind] = {}
    num_dropped: Counter[str] = Counter()
    for labels in files:
        for name, found in labels.items():
            with naming("cannot index these files", UsageError):
                kinds[name] = joined_kind(name, kinds.get(name, "nothing"), found.kind)
            num_dropped[name] += found.num_dropped
    # A label whose every value was dropped is none, unless its name says what it is.
    kinds = {n: k for n, k in kinds.items() if k != "nothing" or n in RANGES or _has_null(files, n)}
    columns = {}
    free = label_names(kinds, schema)
    for name, kind in kinds.items():
        chunks = []
        for labels, size in zip(files, sizes, strict=True):
            label = labels.get(name)
            if label is None:
                chunks.append(pa.nulls(size, _type_of(kind)))
                continue
            if kind == "number" and label.kind == "integer":
                limits = pc.min_max(label.values).as_py()
                largest = max((v for v in limits.values() if v is not None), key=abs, default=0)
                with naming("cannot index these files", UsageError):
                    check_exact(name, largest, "number")
            chunks.append(label.values.cast(_type_of(kind)))
        columns[free[name]] = pa.chunked_array(chunks, _type_of(kind))
    notes = [f"label {a!r} is kept as {b!r}" for a, b in free.items() if a != b]
    notes += [
        f"label {name!r} of {count:,} samples is null: it must be a number, text or truth value "
        "that msdata believes"
        for name, count in num_dropped.items()
        if count
    ]
    return columns, notes


def _has_null(files: Sequence[Mapping[str, FoundLabel]], name: str) -> bool:
    """Whether a label without values is missing somewhere, rather than dropped everywhere."""
    found = [labels[name] for labels in files if name in labels]
    return any(label.num_dropped < len(label.values) for label in found)


def _type_of(kind: LabelKind) -> pa.DataType:
    import pyarrow as pa

    return {
        "truth value": pa.bool_(),
        "integer": pa.int64(),
        "text": pa.string(),
        "number": pa.float64(),
        "nothing": pa.float64(),
    }[kind]
