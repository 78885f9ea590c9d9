"""From scores of objects to what the study says: maps, rank correlations, controls.

Axes: N objects, B bands (in the order of BANDS), Z bins of redshift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.questions.perceive.trainings import DEAF_BAND, ONLY_BAND
from msdata.mock.photometry import BANDS

Floats = NDArray[np.float64]

# Cells (band, bin) of a smaller share of information are left out of the rank correlation.
LEAST_SHARE = 0.05
GOAL_RHO = 0.6
# What the scores of the controls must be.
MOST_DEAF, LEAST_ONLY, MOST_OTHER = 0.02, 0.8, 0.05
# Bands whose order the 4000 A break passes through.
OPTICAL = ("g", "r", "i", "z")
_BASE = "as it is"


@dataclass(frozen=True, kw_only=True)
class Objects:
    """What is known of each object.

    Attributes:
        sample_ids: (N,), in the order of all else.
        bins: int64 (N,), bin of redshift; -1 or Z outside of the bins.
        losses: float64 (N,), CRPS as it is.
        marginal: float64 (N,), CRPS of the distribution of all redshifts.
        exchanged: float64 (N, B), CRPS with a band exchanged.
        salience: float64 (N, B), V.
    """

    sample_ids: tuple[str, ...]
    bins: NDArray[np.int64]
    losses: Floats
    marginal: Floats
    exchanged: Floats
    salience: Floats


def read_objects(path: Path, edges: Sequence[float]) -> tuple[Objects, dict[str, Floats]]:
    """Objects of a table of `mstrain perceive`, and their CRPS by what was exchanged.

    Returns:
        The objects; float64 (N,) by modality, with "as it is", "marginal" and "sample_id".
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = {name.rpartition(".")[2]: name[5:] for name in table.column_names if "crps:" in name}
    columns = [names[band] for band in BANDS]

    def numbers(name: str) -> Floats:
        return np.asarray(table.column(name).to_numpy(), np.float64)

    truth_N = numbers("redshift")
    names_of_losses = [name for name in table.column_names if name.startswith("crps:")]
    losses = {name[5:]: numbers(name) for name in names_of_losses}
    losses |= {"marginal": marginal_crps(truth_N)}
    losses["sample_id"] = table.column("sample_id").to_numpy(zero_copy_only=False)
    objects = Objects(
        sample_ids=tuple(losses["sample_id"].tolist()),
        bins=np.searchsorted(np.asarray(edges), truth_N, side="right") - 1,
        losses=numbers(f"crps:{_BASE}"),
        marginal=marginal_crps(truth_N),
        exchanged=np.stack([numbers(f"crps:{name}") for name in columns], axis=1),
        salience=np.stack([numbers(f"salience:{name}") for name in columns], axis=1),
    )
    return objects, losses


def score_differences(
    losses: Mapping[str, Mapping[str, Floats]], *, replicates: int, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Scores by task of the second network minus the first's, paired by object.

    Args:
        losses: of two networks on the same objects, from `read_objects`.
        replicates: resamplings of the objects.
        seed: of them.

    Returns:
        The difference with its 95 % interval, by modality that both have.
    """
    first, second = losses.values()
    place = {name: row for row, name in enumerate(second["sample_id"])}
    rows_N = np.array([place[name] for name in first["sample_id"]])
    known = set(first) & set(second) - {_BASE, "marginal", "sample_id"}
    random = np.random.default_rng(seed)
    count = len(rows_N)
    draws = [np.arange(count), *(random.integers(count, size=count) for _ in range(replicates))]

    def score(one: Mapping[str, Floats], name: str, rows: NDArray[np.int64]) -> float:
        base = one[_BASE][rows].mean()
        return float((one[name][rows].mean() - base) / (one["marginal"][rows].mean() - base))

    return {
        name: interval([score(second, name, rows_N[d]) - score(first, name, d) for d in draws])
        for name in first
        if name in known and "+" not in name
    }


def by_bin(
    values_NB: Floats, bin_N: NDArray[np.int64], num_bins: int, reduce: Callable[..., Any]
) -> Floats:
    """A statistic of every band in every bin, float64 (B, Z); NaN in empty bins."""
    found = np.full((values_NB.shape[1], num_bins), np.nan)
    for number in range(num_bins):
        inside = values_NB[bin_N == number]
        if len(inside):
            found[:, number] = reduce(inside, axis=0)
    return found


def maps_of(objects: Objects, share_NB: Floats, num_bins: int) -> dict[str, Floats]:
    """Maps of bands against redshift, float64 (B, Z).

    Returns:
        "salience", median V; "score", P by task of the CRPS, NaN where the network knows no more
        than the distribution of all redshifts; "fisher", median share of information.
    """
    rise_NB = objects.exchanged - objects.losses[:, None]
    known_N1 = (objects.marginal - objects.losses)[:, None]
    rise_BZ, known_1Z = (
        by_bin(values, objects.bins, num_bins, np.mean) for values in (rise_NB, known_N1)
    )
    return {
        "salience": by_bin(objects.salience, objects.bins, num_bins, np.median),
        "score": rise_BZ / np.where(known_1Z > 0, known_1Z, np.nan),
        "fisher": by_bin(share_NB, objects.bins, num_bins, np.median),
    }


def marginal_crps(truth_N: Floats) -> Floats:
    """CRPS of the distribution of all redshifts as a forecast of each, float64 (N,).

    Source: Gneiting and Raftery 2007, JASA 102, 359, equation 21.
    """
    distance_NN = np.abs(truth_N[:, None] - truth_N)
    return np.asarray(distance_NN.mean(axis=1) - distance_NN.mean() / 2, np.float64)


def rank_correlations(
    objects: Objects, share_NB: Floats, num_bins: int, *, replicates: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Spearman's rho of both measures with the shares of information, with 95 % intervals.

    Over all cells whose share is above `LEAST_SHARE`, the same cells in every replicate; and the
    mean over bins of rho over the nine bands ("... within bins").

    Args:
        objects: of a network.
        share_NB: float64 (N, B), their shares.
        num_bins: Z.
        replicates: resamplings of the objects.
        seed: of them.
    """
    whole = maps_of(objects, share_NB, num_bins)
    cells = whole["fisher"] > LEAST_SHARE
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for replicate in range(replicates + 1):
        maps = whole
        if replicate:
            rows = random.integers(len(share_NB), size=len(share_NB))
            maps = maps_of(_taken(objects, rows), share_NB[rows], num_bins)
        for measure in ("salience", "score"):
            rho = _spearman(maps[measure][cells], maps["fisher"][cells])
            within = [_spearman(maps[measure][:, z], maps["fisher"][:, z]) for z in range(num_bins)]
            found.setdefault(measure, []).append(rho)
            known = [rho for rho in within if np.isfinite(rho)]
            mean = float(np.mean(known)) if known else float("nan")
            found.setdefault(f"{measure} within bins", []).append(mean)
    return {name: {**interval(values), "cells": int(cells.sum())} for name, values in found.items()}


def _taken(objects: Objects, rows: NDArray[np.int64]) -> Objects:
    return Objects(
        sample_ids=(),
        bins=objects.bins[rows],
        losses=objects.losses[rows],
        marginal=objects.marginal[rows],
        exchanged=objects.exchanged[rows],
        salience=objects.salience[rows],
    )


def _spearman(one: Floats, other: Floats) -> float:
    from scipy.stats import spearmanr

    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < 3:
        return float("nan")
    return float(spearmanr(one[known], other[known]).statistic)


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """The first value, and the central 95 % of the others; None where one is not defined."""
    if not np.isfinite(values[0]):
        return dict.fromkeys(("value", "low", "high"))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def leading_bands(found: Floats, names: Sequence[str] = BANDS) -> list[str | None]:
    """The band of the largest value in each bin; None where there is none.

    Args:
        found: float64 (B, Z).
        names: bands to choose among.
    """
    rows = [BANDS.index(name) for name in names]
    return [
        names[int(np.nanargmax(column))] if np.isfinite(column).any() else None
        for column in found[rows].T
    ]


def is_in_order(leading: Sequence[str | None], order: Sequence[str] = OPTICAL) -> bool:
    """Whether each band of an order leads somewhere, and none after a later one led."""
    places = [order.index(band) for band in leading if band is not None]
    return places == sorted(places) and set(places) == set(range(len(order)))


def check_controls(deaf: Mapping[str, Any], only: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Whether controls give the answers that are known.

    Args:
        deaf: scores of the network trained where a band says nothing.
        only: of the one trained where one band alone says something.

    Returns:
        "deaf": score of the deaf band, whether its interval holds 0 and |P| < MOST_DEAF; "only":
        score of the only band, the other of the largest |P|, whether P > LEAST_ONLY and all others
        are < MOST_OTHER. A score that is not defined (None) does not hold.
    """
    silent = _scores(deaf).get(DEAF_BAND)
    scores = _scores(only)
    speaking = scores.pop(ONLY_BAND, None)
    other = max(scores, key=lambda name: abs(scores[name]["value"]), default=None)
    is_alone = other is not None and abs(scores[other]["value"]) < MOST_OTHER
    return {
        "deaf": {
            "band": DEAF_BAND,
            "score": silent,
            "holds": silent is not None
            and silent["low"] <= 0 <= silent["high"]
            and abs(silent["value"]) < MOST_DEAF,
        },
        "only": {
            "band": ONLY_BAND,
            "score": speaking,
            "largest_other": other,
            "other_score": None if other is None else scores[other],
            "holds": is_alone and speaking is not None and speaking["value"] > LEAST_ONLY,
        },
    }


def _scores(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Scores by task (CRPS) of the bands of the first network."""
    modalities = result["perception"]["runs"][0]["scores"]["crps"]["modalities"]
    return {n: m["by_task"] for n, m in modalities.items() if m["kind"] == "band" and m["by_task"]}
