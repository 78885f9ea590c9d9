"""Redshifts of one place that contradict each other: how often, and which rows.

The rate is an estimate of the noise of the labels. Which redshift of a pair is wrong cannot be
told, or whether either is: two galaxies may lie that close. So all rows of a pair are marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from msdata.catalog.sky import close_pairs
from msdata.core.intervals import wilson_interval
from msdata.core.text import markdown_lines

DISPUTED = "is_disputed"


@dataclass(frozen=True, kw_only=True)
class PairRate:
    """How often redshifts of two surveys, or of one, contradict each other.

    Attributes:
        surveys: names of both, the better one first; equal for two spectra of one survey.
        num_pairs: pairs of rows within the distance.
        num_disagreeing: those whose redshifts differ.
        rate: their share.
        low: lower end of Wilson's 95 % interval.
        high: upper end.
    """

    surveys: tuple[str, str]
    num_pairs: int
    num_disagreeing: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Disagreements:
    """Redshifts that contradict each other.

    Attributes:
        pairs: int64 (pairs, 2), rows that disagree, the better one first.
        separation_arcsec: float64 (pairs,).
        scaled_difference: float64 (pairs,), |z_a - z_b| / (1 + (z_a + z_b) / 2).
        is_disputed: bool (rows,), whether a row is in any such pair.
        rates: one per pair of surveys that has pairs, all surveys together last.
    """

    pairs: NDArray[np.int64]
    separation_arcsec: NDArray[np.float64]
    scaled_difference: NDArray[np.float64]
    is_disputed: NDArray[np.bool_]
    rates: tuple[PairRate, ...]

    def table(self, rows: pa.Table, surveys: pa.Array, sample_ids: pa.Array) -> pa.Table:
        """A row per pair.

        Args:
            rows: `object_id`, `ra`, `dec` and `redshift` of all rows.
            surveys: name of each row's survey.
            sample_ids: id in the catalog; null for a row that is not in it.
        """
        columns: dict[str, Any] = {}
        for side, which in (("a", self.pairs[:, 0]), ("b", self.pairs[:, 1])):
            taken = pa.array(which)
            columns[f"sample_id_{side}"] = sample_ids.take(taken)
            columns[f"survey_{side}"] = surveys.take(taken)
            for name in ("object_id", "ra", "dec", "redshift"):
                columns[f"{name}_{side}"] = rows[name].take(taken)
        columns["separation_arcsec"] = self.separation_arcsec
        columns["scaled_difference"] = self.scaled_difference
        return pa.table(columns)


def find_disagreements(
    rows: pa.Table,
    rank: NDArray[np.int64],
    names: Sequence[str],
    *,
    within_arcsec: float,
    above: float,
) -> Disagreements:
    """Compares the redshifts of all rows that lie close to each other; 4.3 million take 7 s.

    Args:
        rows: `ra` and `dec` in degrees, `redshift`.
        rank: int64 (rows,), number of each row's survey, ascending.
        names: of the surveys.
        within_arcsec: greatest distance of a pair.
        above: pairs disagree where |dz| / (1 + mean z) is larger.
    """
    ra, dec, z = (rows[name].to_numpy().astype(np.float64) for name in ("ra", "dec", "redshift"))
    pairs = close_pairs(ra, dec, within_arcsec)
    first, second = pairs[:, 0], pairs[:, 1]
    scaled = np.abs(z[first] - z[second]) / (1 + (z[first] + z[second]) / 2)
    disagrees = scaled > above
    code = rank[first] * len(names) + rank[second]
    rates = []
    for number in np.unique(code).tolist():
        here = code == number
        both = (names[number // len(names)], names[number % len(names)])
        rates.append(_rate(both, int(here.sum()), int((here & disagrees).sum())))
    if len(rates) > 1:
        rates.append(_rate(("all", "all"), len(pairs), int(disagrees.sum())))
    found = pairs[disagrees]
    is_disputed = np.zeros(len(z), bool)
    is_disputed[found] = True
    return Disagreements(
        pairs=found,
        separation_arcsec=_separation(ra, dec, found),
        scaled_difference=scaled[disagrees],
        is_disputed=is_disputed,
        rates=tuple(rates),
    )


def _rate(surveys: tuple[str, str], num_pairs: int, num_disagreeing: int) -> PairRate:
    rate = num_disagreeing / num_pairs
    low, high = wilson_interval(rate, num_pairs)
    return PairRate(
        surveys=surveys,
        num_pairs=num_pairs,
        num_disagreeing=num_disagreeing,
        rate=rate,
        low=low,
        high=high,
    )


def _separation(
    ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Arcsec between the positions of pairs, by the haversine formula, exact for small angles."""
    ra, dec = np.radians(ra_deg[pairs]), np.radians(dec_deg[pairs])
    half = np.sin(np.diff(dec, axis=1)[:, 0] / 2) ** 2
    half += np.cos(dec).prod(axis=1) * np.sin(np.diff(ra, axis=1)[:, 0] / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600, np.float64)


def rate_rows(found: Disagreements) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of rates."""
    head = ["surveys", "pairs", "disagree", "rate", "95 % interval"]
    rows = [
        [
            f"{r.surveys[0]}, {r.surveys[1]}",
            f"{r.num_pairs:,}",
            f"{r.num_disagreeing:,}",
            f"{r.rate:.2%}",
            f"{r.low:.2%} to {r.high:.2%}",
        ]
        for r in found.rates
    ]
    return head, rows


def markdown_of(found: Disagreements, within_arcsec: float, above: float) -> Iterator[str]:
    """The part of the report on disagreements."""
    yield ""
    yield "## Redshifts that contradict each other"
    yield ""
    yield (
        f"Pairs of rows that pass the cuts and lie within {within_arcsec:g} arcsec, of two surveys "
        "or two spectra of one; they disagree where |z_a - z_b| / (1 + mean z) is above "
        f"{above:g}. Which one is wrong cannot be told, or whether any is: two galaxies may lie "
        f"that close. Objects of the catalog with such a pair have `{DISPUTED}`; the pairs are in "
        "`disagreements.parquet`."
    )
    yield ""
    if not found.rates:
        yield f"No two rows lie within {within_arcsec:g} arcsec."
        return
    yield from markdown_lines(*rate_rows(found))
