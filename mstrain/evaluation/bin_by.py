"""Quantities to bin by: names that the user gives, to groups of the objects of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.data.columns import sane_magnitudes
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.scores import POINT_ESTIMATES, SPREADS
from mstrain.evaluation.metrics.uncertainty import Grouping
from mstrain.models.target import REDSHIFT_TARGET, Target

MAGNITUDE = "magnitude"
_MAX_BINS = 10
# Objects of a bin, so that its intervals say something.
_MIN_COUNT = 50
_MAX_VALUES = 12


def find_columns(
    split: Split,
    names: Sequence[str],
    magnitude: str | None,
    why_not: str,
    option: str = "--bin-by",
    target: Target = REDSHIFT_TARGET,
) -> dict[str, str]:
    """The column of each quantity.

    Args:
        split: whose index.
        names: "magnitude", columns of the index, point estimates or spreads.
        magnitude: column of the magnitude; None where there is none.
        why_not: the reason for that.
        option: what names them, for messages.
        target: what the network tells; its name is in those of the estimates.

    Returns:
        Columns by name, in the order given.

    Raises:
        UsageError: a name is twice there, unknown, or its column holds neither numbers nor text.
    """
    found = {}
    for name in names:
        if name in found:
            raise UsageError(f"{option} must name each column once, got {name!r} twice")
        if name == MAGNITUDE and MAGNITUDE not in split.dataset.columns:
            if magnitude is None:
                raise UsageError(f"cannot bin by magnitude: {why_not}")
            found[name] = magnitude
            continue
        if name not in computed_columns(target):
            _check_kind(split, name, option, target)
        found[name] = name
    return found


def computed_columns(target: Target = REDSHIFT_TARGET) -> tuple[str, ...]:
    """Columns to bin by that are not the index's."""
    if target.classes:
        return ()
    return tuple(map(target.public, (*POINT_ESTIMATES, *SPREADS)))


def _check_kind(split: Split, name: str, option: str, target: Target) -> None:
    if name not in split.dataset.columns:
        raise UsageError(
            f"{option} must name columns of {split.dataset.path}, got {name!r}; it has "
            f"{', '.join((*split.dataset.columns, MAGNITUDE, *computed_columns(target)))}"
        )
    if not (_is_number(split, name) or is_label(split, name)):
        raise UsageError(
            f"cannot bin by {name!r}: it holds {split.column_type(name)}; give a column of "
            "numbers, text or booleans"
        )


def make_groupings(
    split: Split,
    columns: Columns,
    names: Mapping[str, str],
    edges: Mapping[str, Floats],
    target: Target = REDSHIFT_TARGET,
) -> list[Grouping]:
    """Groups of a split's objects by each quantity.

    Args:
        split: whose index.
        columns: the predictions for it, (N,) each.
        names: from `find_columns`.
        edges: edges of the bins of some columns; others get bins of equally many objects.
        target: as for `find_columns`.
    """
    found = []
    is_known_N = np.isfinite(np.asarray(columns["redshift"], np.float64))
    computed = computed_columns(target)
    for name, column in names.items():
        if column not in computed and is_label(split, column):
            found.append(_by_value(name, column, _labels(split, column), is_known_N))
            continue
        is_computed = column in computed
        values_N = np.asarray(columns[column] if is_computed else split.numbers(column), np.float64)
        found.append(_by_edges(name, column, values_N, edges.get(column), is_known_N))
    return found


def _is_number(split: Split, column: str) -> bool:
    import pyarrow as pa

    kind = split.column_type(column)
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def is_label(split: Split, column: str) -> bool:
    """Whether a column of the index holds text or booleans."""
    import pyarrow as pa

    kind = split.column_type(column)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)
    )


def _labels(split: Split, column: str) -> list[str | None]:
    values = [value for part in split.column_parts(column) for value in part.to_pylist()]
    return [None if v is None else str(v).lower() if isinstance(v, bool) else v for v in values]


def _by_value(
    name: str, column: str, labels: Sequence[str | None], is_known_N: NDArray[np.bool_]
) -> Grouping:
    """A group per value, the most frequent first, the rarest together in the last."""
    known = [label for label, is_known in zip(labels, is_known_N, strict=True) if is_known]
    counts = Counter(label for label in known if label is not None)
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    shown = ordered if len(ordered) <= _MAX_VALUES else ordered[: _MAX_VALUES - 1]
    number_of: dict[str | None, int] = {value: number for number, value in enumerate(shown)}
    number_of[None] = -1
    group_N = np.array([number_of.get(label, len(shown)) for label in labels], np.int64)
    told = [value or "(none)" for value in shown]
    if len(shown) < len(ordered):
        told.append(f"{len(ordered) - len(shown):,} other values")
    return Grouping(name=name, column=column, labels=told, group=group_N, values=None)


def _between(edges: Floats) -> list[str]:
    return [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)]


def _by_edges(
    name: str,
    column: str,
    values_N: Floats,
    edges: Floats | None,
    is_known_N: NDArray[np.bool_],
) -> Grouping:
    """Bins between edges; without edges as many objects in each, or one bin per value.

    A lowest value of many objects has a bin of its own: of pixels without coverage most have none.
    """
    if name == MAGNITUDE:
        is_sane_N = np.isin(values_N, sane_magnitudes(values_N))
        values_N = np.where(is_sane_N, values_N, np.nan)
    is_finite_N = np.isfinite(values_N)
    finite = values_N[is_finite_N & is_known_N]
    labels: list[str] = []
    if edges is None:
        distinct = np.unique(finite)
        num_bins = int(np.clip(len(finite) // _MIN_COUNT, 1, _MAX_BINS))
        # The last bin holds the largest value.
        last = np.nextafter(finite.max(), np.inf) if len(finite) else np.inf
        if len(distinct) <= _MAX_BINS:
            labels = [f"{value:g}" for value in distinct]
        else:
            rest = finite[finite > distinct[0]]
            if len(finite) - len(rest) > len(finite) / max(num_bins, 2):
                num_bins = int(np.clip(len(rest) // _MIN_COUNT, 1, _MAX_BINS - 1))
                labels, own = [f"{distinct[0]:g}"], distinct[:1]
            else:
                rest, own = finite, distinct[:0]
            quantiles = np.unique(np.quantile(rest, np.linspace(0, 1, num_bins + 1)))[:-1]
            labels += _between(np.append(quantiles, last))
            distinct = np.append(own, quantiles)
        edges = np.append(distinct, last)
    labels = labels or _between(edges)
    group_N = np.searchsorted(edges, values_N, side="right").astype(np.int64) - 1
    group_N[~is_finite_N | (group_N >= len(edges) - 1)] = -1
    return Grouping(name=name, column=column, labels=labels, group=group_N, values=values_N)
