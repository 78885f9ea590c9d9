"""What a report is made from: columns, metrics, the run's journal, and some objects to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Schema
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.outliers import KINDS, kinds_of
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.metrics.summary import Summary
from mstrain.evaluation.metrics.uncertainty import Uncertainty
from mstrain.evaluation.report.canvas import Picture
from mstrain.evaluation.report.wording import TextTable
from mstrain.models.target import REDSHIFT_TARGET, Target

# Objects of the gallery by their place among all, ordered by CRPS: good, usual, bad, worst.
GALLERY_PLACES = (0.02, 0.15, 0.35, 0.5, 0.65, 0.85, 0.98, 1.0)
# Of the objects of a kind, ordered by |d|.
KIND_PLACES = (1.0, 0.75, 0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class GalleryObject:
    """One object to show.

    Attributes:
        place: its place by CRPS, from 0 (best) to 1 (worst).
        sample: what `Split.__getitem__` gives: arrays and columns.
        values: its row of the predictions, without the density.
        density: float (K,), per unit redshift.
        kind: what it is an example of; empty for an object shown for its place.
    """

    place: float
    sample: Mapping[str, Any]
    values: Mapping[str, Any]
    density: NDArray[Any]
    kind: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A section of the report.

    Attributes:
        key: its anchor.
        title: its heading.
        notes: sentences at its end.
        tables: its tables.
        pictures: its figures, before the tables.
    """

    key: str
    title: str
    notes: Sequence[str] = ()
    tables: Sequence[TextTable] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """Everything a report shows.

    Attributes:
        title: the page's title.
        facts: rows of the table at the top: what was evaluated on what.
        notes: sentences the reader should know before the numbers.
        columns: the predictions, (N,) each, without densities, by the names of a redshift's.
        edges: float64 (K + 1,), bins of the densities.
        stacked: float64 (K,), mean of the densities of objects with known redshift.
        summary: the metrics.
        priors: those of several priors side by side; None where there is one.
        schema: arrays of the gallery's objects.
        gallery: objects to show.
        uncertainty: what the densities know of their errors; None leaves the section out.
        kinds: objects to show of each kind of outlier.
        worst: the objects of largest |d|.
        sections: more sections, before the gallery.
        journal: lines of the run's metrics.jsonl.
        settings: the run's configuration, name and value.
        target: what the network tells.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    columns: Columns
    edges: Floats
    stacked: Floats
    summary: Summary
    schema: Schema
    priors: TextTable | None = None
    notes: Sequence[str] = ()
    gallery: Sequence[GalleryObject] = ()
    uncertainty: Uncertainty | None = None
    kinds: Sequence[GalleryObject] = ()
    worst: TextTable | None = None
    sections: Sequence[Section] = ()
    journal: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: Target = REDSHIFT_TARGET

    def known(self, name: str) -> Floats:
        """A column where the label is known, float64."""
        is_known = np.isfinite(np.asarray(self.columns["redshift"], np.float64))
        return np.asarray(self.columns[name], np.float64)[is_known]


def gallery_rows(score_N: Floats) -> list[tuple[float, int]]:
    """Which objects to show: at fixed places in the order of a score, so none is hand-picked.

    Args:
        score_N: float64 (N,), such as CRPS; NaN where the label is not known.

    Returns:
        Place from 0 to 1 and row of each, without doubles.
    """
    return _at_places(np.isfinite(score_N), score_N, GALLERY_PLACES)


def _at_places(
    is_in_N: NDArray[np.bool_], value_N: Floats, places: Sequence[float]
) -> list[tuple[float, int]]:
    """Place and row of chosen objects at places in the order of a value, without doubles."""
    chosen = np.flatnonzero(is_in_N)
    order = chosen[np.argsort(value_N[chosen], kind="stable")]
    rows: dict[int, float] = {}
    for place in places if len(order) else ():
        rows.setdefault(int(order[round(place * (len(order) - 1))]), place)
    return [(place, row) for row, place in rows.items()]


def kind_rows(columns: Columns) -> list[tuple[str, float, int]]:
    """Which objects to show of each kind: at fixed places in the order of |d|.

    Args:
        columns: the predictions, (N,) each; where the redshift is NaN, objects count for nothing.

    Returns:
        Key of `KINDS`, place from 0 to 1 and row of each, without doubles.
    """
    truth_N = np.asarray(columns["redshift"], np.float64)
    size_N = np.abs(scaled_residual(np.asarray(columns["z_mean"], np.float64), truth_N))
    kind_N = np.where(np.isfinite(truth_N), kinds_of(columns), "")
    return [
        (kind, *found)
        for kind in KINDS
        for found in _at_places(kind_N == kind, size_N, KIND_PLACES)
    ]


def worst_rows(columns: Columns, count: int, target: Target = REDSHIFT_TARGET) -> NDArray[np.int64]:
    """Rows of the objects of largest |d|, largest first; at most `count` of known label."""
    truth_N = np.asarray(columns["redshift"], np.float64)
    size_N = np.abs(scaled_residual(np.asarray(columns["z_mean"], np.float64), truth_N, target))
    known = np.flatnonzero(np.isfinite(truth_N))
    return known[np.argsort(-size_N[known], kind="stable")][:count]
