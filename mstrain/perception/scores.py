"""Perceptual scores, salience and Shapley values, with intervals from one set of resamplings.

S is the mean loss of the samples as they are, S_M with modality M taken from others, S_0 that of
the marginal density of redshift for all. By task, P_M = (S_M - S) / (S_0 - S): 0 where M is
ignored, 1 where its exchange is as bad as knowing nothing. By model, (S_M - S) / S. Axes: N
samples, R replicates.

Source: Gat, Schwartz and Schwing 2021 (arXiv:2110.14375), equation 2: exchange in one term only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import DataError
from mstrain.evaluation.metrics.binning import MIN_BIN_COUNT
from mstrain.evaluation.metrics.bootstrap import (
    BootstrapConfig,
    nmad,
    percentile_interval,
    poisson_weights,
)
from mstrain.evaluation.metrics.densities import Floats, make_densities
from mstrain.evaluation.metrics.estimates import Estimate
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.models.target import REDSHIFT_TARGET, Target
from mstrain.perception.exchange import Modality, coalition_name
from mstrain.perception.measure import BASE, LOSSES, losses_of

Columns = Mapping[str, NDArray[Any]]
MARGINAL = "marginal"
_PIECE_WEIGHTS = 4_000_000
_PIECE_ROWS = 10_000


def with_marginal(
    columns: Columns, edges: Floats, target: Target = REDSHIFT_TARGET
) -> dict[str, NDArray[Any]]:
    """The samples with known labels, and their losses under the marginal density.

    Args:
        columns: (N,) each, from `measure`.
        edges: float64 (K + 1,), bins of the densities.
        target: what the network tells.

    Raises:
        DataError: no sample has a known label within the bins.
    """
    is_known_N = np.isfinite(np.asarray(columns["redshift"], np.float64))
    known = {name: np.asarray(values)[is_known_N] for name, values in columns.items()}
    count_K, _ = np.histogram(known["redshift"], edges)
    if not count_K.sum():
        raise DataError(f"no sample has a known {target.noun} within the bins of the network")
    density_K = count_K / (count_K.sum() * np.diff(edges))
    parts = []
    for start in range(0, len(known["redshift"]), _PIECE_ROWS):
        truth_N = np.asarray(known["redshift"][start : start + _PIECE_ROWS], np.float64)
        marginal = make_densities(np.tile(density_K, (len(truth_N), 1)), edges)
        parts.append(losses_of(marginal, truth_N, target))
    for loss in losses_in(known):
        known[f"{loss}|{MARGINAL}"] = np.concatenate([part[loss] for part in parts])
    return known


def losses_in(columns: Columns) -> list[str]:
    """The losses that columns from `measure` have."""
    return [loss for loss in LOSSES if f"{loss}|{BASE}" in columns]


def _weights(num_samples: int, config: BootstrapConfig) -> Iterator[NDArray[Any]]:
    """How often each object is drawn, (r, N) at a time; the same for the same N and seed."""
    rows = max(1, _PIECE_WEIGHTS // num_samples)
    sizes = [min(rows, config.num_replicates - n) for n in range(0, config.num_replicates, rows)]
    for size, seed in zip(
        sizes, np.random.SeedSequence(config.seed).spawn(len(sizes)), strict=True
    ):
        yield poisson_weights(np.random.Generator(np.random.SFC64(seed)), size, num_samples)


def mean_replicates(values_NM: Floats, config: BootstrapConfig) -> Floats:
    """Means of resampled objects, float64 (R, M); the same weights for the same N and seed."""
    pieces = (piece.astype(np.float64) for piece in _weights(len(values_NM), config))
    parts = [
        (weights_RN @ values_NM) / weights_RN.sum(axis=1, keepdims=True) for weights_RN in pieces
    ]
    return np.concatenate(parts)


def median_replicates(values_N: Floats, config: BootstrapConfig) -> Floats:
    """Medians (the lower of two) of resampled objects, float64 (R,)."""
    sorted_N = np.sort(values_N)
    parts = []
    for weights_RN in _weights(len(values_N), config):
        total_RN = weights_RN.cumsum(axis=1, dtype=np.int64)
        parts.append(sorted_N[(2 * total_RN >= total_RN[:, -1:]).argmax(axis=1)])
    return np.concatenate(parts)


class Resampled:
    """Mean losses of samples and of their resamplings, by column.

    Args:
        columns: (N,) each, from `with_marginal`.
        names: modalities.
        config: how intervals are made.
        losses: which losses; None takes all that there are.
    """

    def __init__(
        self,
        columns: Columns,
        names: Sequence[str],
        config: BootstrapConfig,
        losses: Sequence[str] | None = None,
    ) -> None:
        losses = losses_in(columns) if losses is None else losses
        keys = [f"{loss}|{name}" for loss in losses for name in (BASE, MARGINAL, *names)]
        values_NM = np.stack([np.asarray(columns[key], np.float64) for key in keys], axis=1)
        # The first row is of the samples as they are, the others are replicates.
        found = np.vstack([values_NM.mean(axis=0), mean_replicates(values_NM, config)])
        self._level = config.level
        self.means = dict(zip(keys, found.T, strict=True))

    def mean(self, loss: str, name: str) -> Floats:
        """Mean loss, float64 (1 + R,)."""
        found: Floats = self.means[f"{loss}|{name}"]
        return found

    def by_task(self, loss: str, name: str) -> Floats:
        """Perceptual score by task, float64 (1 + R,); NaN where the network knows nothing."""
        base = self.mean(loss, BASE)
        return _ratio(self.mean(loss, name) - base, self.mean(loss, MARGINAL) - base)

    def by_model(self, loss: str, name: str) -> Floats:
        """Perceptual score by model, float64 (1 + R,); NaN where the loss is not above 0."""
        base = self.mean(loss, BASE)
        return _ratio(self.mean(loss, name) - base, base)

    def estimate(self, values: Floats) -> dict[str, float] | None:
        """See `estimate_of`."""
        return estimate_of(values, self._level)


def estimate_of(values: Floats, level: float) -> dict[str, float] | None:
    """A value (the first) with the interval of its replicates (the others); None where NaN."""
    if not np.isfinite(values).all():
        return None
    low, high = percentile_interval(values[1:], level)
    return asdict(Estimate(value=float(values[0]), low=low, high=high))


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Floats = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    return found


def score_table(
    columns: Columns,
    modalities: Sequence[Modality],
    resampled: Resampled,
    target: Target = REDSHIFT_TARGET,
) -> dict[str, Any]:
    """Perceptual scores of each loss, as plain values for JSON.

    `resampled` is of the same `columns`, those of `with_marginal`.
    """
    table: dict[str, Any] = {}
    for loss in losses_in(columns):
        base, marginal = resampled.mean(loss, BASE), resampled.mean(loss, MARGINAL)
        table[loss] = {
            "loss": resampled.estimate(base),
            "marginal_loss": resampled.estimate(marginal),
            "normalizer": resampled.estimate(marginal - base),
            "modalities": {
                m.name: {
                    "kind": m.kind,
                    "loss": resampled.estimate(resampled.mean(loss, m.name)),
                    "by_task": resampled.estimate(resampled.by_task(loss, m.name)),
                    "by_model": resampled.estimate(resampled.by_model(loss, m.name)),
                }
                for m in modalities
            },
        }
    truth_N = columns["redshift"]
    table["nmad"] = {
        "loss": nmad(scaled_residual(columns["z_mean"], truth_N, target)),
        "modalities": {m.name: nmad(columns[f"residual|{m.name}"]) for m in modalities},
    }
    return table


def shapley_values(players: Sequence[str], value: Mapping[str, Floats]) -> dict[str, Floats]:
    """Exact Shapley values: what each player adds, averaged over all orders of joining.

    Args:
        players: names of the players.
        value: loss when the players of a set are exchanged, by `coalition_name` of the set in the
            order of `players`; "" for the empty set.

    Returns:
        One value a player, of the shape of the losses; their sum is the loss with all exchanged,
        minus that with none.

    Source: Shapley 1953; over 2^n sets the sum is exact.
    """
    found = {}
    for player in players:
        others = [name for name in players if name != player]
        total = np.zeros_like(value[""])
        for size in range(len(others) + 1):
            weight = 1 / (len(players) * math.comb(len(others), size))
            for subset in combinations(others, size):
                joined = tuple(n for n in players if n == player or n in subset)
                total += weight * (value[coalition_name(joined)] - value[coalition_name(subset)])
        found[player] = total
    return found


def shapley_table(players: Sequence[str], resampled: Resampled) -> dict[str, Any]:
    """Shapley values of the CRPS, by player, and their sum; as plain values for JSON."""
    sets = [coalition_name(s) for n in range(len(players)) for s in combinations(players, n + 1)]
    value = {name: resampled.mean("crps", name or BASE) for name in ("", *sets)}
    found = shapley_values(players, value)
    total = value[coalition_name(tuple(players))] - value[""]
    return {
        "loss": "crps",
        "players": {name: resampled.estimate(values) for name, values in found.items()},
        "sum": resampled.estimate(total),
    }


def in_bins(
    columns: Columns, modalities: Sequence[Modality], edges: Floats, config: BootstrapConfig
) -> list[dict[str, Any]]:
    """Scores by task and salience in bins of redshift; intervals only of 10 objects and more.

    `columns` are those of `with_marginal`.
    """
    bin_N = np.searchsorted(edges, columns["redshift"], side="right") - 1
    found = []
    for number, (low, high) in enumerate(pairwise(edges)):
        is_in_N = bin_N == number
        entry: dict[str, Any] = {"low": float(low), "high": float(high)}
        entry |= {"num_samples": int(is_in_N.sum()), "modalities": {}}
        found.append(entry)
        if is_in_N.sum() < MIN_BIN_COUNT:
            continue
        inside = {name: values[is_in_N] for name, values in columns.items()}
        resampled = Resampled(inside, [m.name for m in modalities], config, ("crps",))
        for m in modalities:
            entry["modalities"][m.name] = {
                "by_task": resampled.estimate(resampled.by_task("crps", m.name)),
                "salience": _median_estimate(inside[f"salience|{m.name}"], config),
                "jsd": _median_estimate(inside[f"jsd|{m.name}"], config),
            }
    return found


def _median_estimate(values_N: Floats, config: BootstrapConfig) -> dict[str, float] | None:
    if not np.isfinite(values_N).all():
        return None
    middle = np.sort(values_N)[(len(values_N) - 1) // 2]
    return estimate_of(np.append(middle, median_replicates(values_N, config)), config.level)
