"""Checks the ids, splits and labels that a program gives to `msdata.Writer`, before they are kept.

It stands alone because the writer owns files and this does not: pure functions of the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from msdata.catalog.values import (
    EBV_RANGE,
    MAX_EXACT,
    POSITION_RANGES,
    REDSHIFT_RANGE,
    Limits,
)
from msdata.core.trusted_names import is_plain_name, short
from msdata.errors import SampleError
from msdata.pack.columns import label_names
from msdata.schema import Schema
from msdata.sources.parts import LabelKind

RANGES: Mapping[str, Limits] = {
    "redshift": REDSHIFT_RANGE,
    "ebv": EBV_RANGE,
    **POSITION_RANGES,
}
_NUMBERS = ("integer", "number")
# Other columns of a pack's plan.
_OF_THE_PLAN = ("sample_id", "path", "row", "split", "catalog_row", "reason")
_MAX_INT64 = (1 << 63) - 1


def check_id(sample_id: Any) -> None:
    """Refuses an id that is not a text of one line.

    Raises:
        SampleError: it is none.
    """
    if not isinstance(sample_id, str) or not sample_id or not sample_id.isprintable():
        raise SampleError(f"a sample's id must be a printable text, got {short(sample_id)}")


def check_split(split: Any) -> None:
    """Refuses a split that cannot name a folder.

    Raises:
        SampleError: it cannot.
    """
    if not is_plain_name(split) or not split.replace("-", "_").isidentifier():
        raise SampleError(f"split must be a word such as train, val or test, got {short(split)}")


def check_label_name(name: str, schema: Schema) -> None:
    """Refuses a label whose name the index, a batch or an array has.

    Raises:
        SampleError: it is taken.
    """
    if name in _OF_THE_PLAN or label_names([name], schema)[name] != name:
        raise SampleError(f"label {name!r} has a name that msdata uses itself; rename it")


def plain_value(name: str, value: Any) -> tuple[Any, LabelKind]:
    """Converts a label to a value of JSON.

    Args:
        name: the label's name.
        value: text, a truth value, a number or None; also NumPy's. NaN means None.

    Returns:
        The value, and its kind.

    Raises:
        SampleError: it is something else, or outside of what `msdata pack` believes.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, "nothing"
    if isinstance(value, str):
        kind: LabelKind = "text"
    elif isinstance(value, bool):
        kind = "truth value"
    elif isinstance(value, int) and abs(value) <= _MAX_INT64:
        kind = "integer"
    elif isinstance(value, float) and math.isfinite(value):
        kind = "number"
    else:
        raise SampleError(
            f"label {name!r} must be a finite number, a text, a truth value or None, got "
            f"{short(value)}"
        )
    if name in RANGES:
        low, high = RANGES[name]
        if kind not in _NUMBERS or not low <= value <= high:
            raise SampleError(
                f"label {name!r} must be a number from {low:g} to {high:g}, or None where unknown, "
                f"got {short(value)}"
            )
        return float(value), "number"
    return value, kind


def joined_kind(name: str, before: LabelKind, now: LabelKind) -> LabelKind:
    """The kind of a label whose values so far are of one kind, and now of another.

    Raises:
        SampleError: no column holds both.
    """
    if now == "nothing" or before == now:
        return before
    if before == "nothing":
        return now
    if before in _NUMBERS and now in _NUMBERS:
        return "number"
    raise SampleError(
        f"label {name!r} must be of one kind in all samples, got a {now} after a {before}"
    )


def check_exact(name: str, value: Any, kind: LabelKind) -> None:
    """Refuses an integer in a column of fractions that a double cannot hold.

    Raises:
        SampleError: it is beyond 2**53.
    """
    if kind == "number" and isinstance(value, int) and abs(value) > MAX_EXACT:
        raise SampleError(
            f"label {name!r} must not mix fractions with integers beyond 2**53, got {value}; give "
            "it as text"
        )
