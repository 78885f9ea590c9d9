"""From scores of objects to what the study says: maps, rank correlations, controls.

Axes: N objects, B bands (in the order of BANDS), Z bins of redshift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


# What is known of an object: its bin of redshift (-1 or Z outside), its CRPS as it is and that of
# the distribution of all redshifts; for each band the CRPS with the band exchanged, the salience V,
# and the share of the information.
OBJECT = np.dtype(
    [("bin", "<i8"), ("loss", "<f8"), ("marginal", "<f8")]
    + [(name, "<f8", (len(BANDS),)) for name in ("exchanged", "salience", "share")]
)
Objects = NDArray[Any]


def read_objects(path: Path, edges: Sequence[float], shares: Mapping[str, Floats]) -> Objects:
    """`OBJECT` (N,) of a table of `mstrain perceive`.

    Args:
        path: the table.
        edges: of the bins of redshift.
        shares: float64 (B,) by the object's id.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = {name.rpartition(".")[2]: name[5:] for name in table.column_names if "crps:" in name}
    truth_N = table["redshift"].to_numpy()
    found = np.empty(len(truth_N), OBJECT)
    found["bin"] = np.searchsorted(np.asarray(edges), truth_N, side="right") - 1
    found["loss"] = table["crps:as it is"].to_numpy()
    found["marginal"] = marginal_crps(truth_N)
    for number, band in enumerate(BANDS):
        found["exchanged"][:, number] = table[f"crps:{names[band]}"].to_numpy()
        found["salience"][:, number] = table[f"salience:{names[band]}"].to_numpy()
    found["share"] = [shares[name] for name in table["sample_id"].to_pylist()]
    return found


def maps_of(objects: Objects, num_bins: int) -> dict[str, Floats]:
    """Maps of bands against redshift, float64 (B, Z); NaN in empty bins.

    Returns:
        "salience", median V; "score", P by task of the CRPS, NaN where the network knows no more
        than the distribution of all redshifts; "fisher", median share of information.
    """
    from scipy.stats import binned_statistic

    def by_bin(values_NB: Floats, statistic: str) -> Floats:
        edges = np.arange(num_bins + 1) - 0.5
        found: Floats = binned_statistic(objects["bin"], values_NB.T, statistic, edges).statistic
        return found

    rise_BZ = by_bin(objects["exchanged"] - objects["loss"][:, None], "mean")
    known_1Z = by_bin((objects["marginal"] - objects["loss"])[:, None], "mean")
    return {
        "salience": by_bin(objects["salience"], "median"),
        "score": rise_BZ / np.where(known_1Z > 0, known_1Z, np.nan),
        "fisher": by_bin(objects["share"], "median"),
    }


def marginal_crps(truth_N: Floats) -> Floats:
    """CRPS of the distribution of all redshifts as a forecast of each, float64 (N,).

    Source: Gneiting and Raftery 2007, JASA 102, 359, equation 21.
    """
    distance_NN = np.abs(truth_N[:, None] - truth_N)
    return np.asarray(distance_NN.mean(axis=1) - distance_NN.mean() / 2, np.float64)


def rank_correlations(
    objects: Objects, num_bins: int, *, replicates: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Spearman's rho of both measures with the shares of information, with 95 % intervals.

    Over all cells whose share is above `LEAST_SHARE`, the same cells in every replicate; and the
    mean over bins of rho over the nine bands ("... within bins").

    Args:
        objects: of a network.
        num_bins: Z.
        replicates: resamplings of the objects.
        seed: of them.
    """
    maps = maps_of(objects, num_bins)
    cells = maps["fisher"] > LEAST_SHARE
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(replicates + 1):
        for measure in ("salience", "score"):
            rho = _spearman(maps[measure][cells], maps["fisher"][cells])
            found.setdefault(measure, []).append(rho)
            pairs = zip(maps[measure].T, maps["fisher"].T, strict=True)
            known = [rho for pair in pairs if np.isfinite(rho := _spearman(*pair))]
            mean = float(np.mean(known)) if known else float("nan")
            found.setdefault(f"{measure} within bins", []).append(mean)
        maps = maps_of(objects[random.integers(len(objects), size=len(objects))], num_bins)
    return {name: {**interval(values), "cells": int(cells.sum())} for name, values in found.items()}


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
