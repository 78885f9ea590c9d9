"""What paired trainings tell: differences with intervals, power, equivalence, and how errors fall.

Arms are compared seed by seed: the same initial weights, the same split. Less is better in every
metric. The law of an error with the number of training samples is a n^-b + c. Legend: S seeds,
A arms.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.summary import import_stats

Key = TypeVar("Key", bound=Hashable)
Effect = dict[str, float | None]
Floats = NDArray[np.float64]
LEVEL, POWER = 0.95, 0.8
SIGNIFICANT = 0.05
_NUM_FLOORS, _NUM_RESAMPLINGS = 400, 1000
# Metrics of densities in nats, which have no zero that shares could be taken of.
IN_NATS = ("loss", "log_loss")
WORSE, BETTER, POSSIBLE = "WORSE", "BETTER", "possibly worse"
IDENTICAL, EQUIVALENT, OPEN = "identical", "equivalent", "inconclusive"


def paired_effect(arm_S: Sequence[float], reference_S: Sequence[float], margin: float) -> Effect:
    """How much worse an arm is than another over the same seeds, by a metric (less is better).

    Args:
        arm_S: the metric of one arm.
        reference_S: of the other, in the same order; at least two.
        margin: difference that counts as equal, in the metric's unit, > 0.

    Returns:
        `reference`, the other's mean; `difference` of the means, above 0 the arm is worse, with its
        95 % t interval `low` and `high`; `cohen_d`, difference over the standard deviation of the
        pairs' differences; `in_seed_spread`, over the reference's from seed to seed; `p` of the
        two-sided paired t test, and `p_holm`, see `holm`; `smallest_seen`, the least difference
        that this many pairs of this scatter would have shown at 5 %, in 80 of 100 such studies;
        `margin`; `p_equivalence` of two one-sided t tests against it, and `p_equivalence_holm`;
        `resolved`, the least margin for which `p_equivalence` is 5 %. Figures that are not finite
        are None.

    Source: Student's t for paired samples; Cohen 1988, section 2.3.5 (d for pairs); Schuirmann
    1987, J. Pharmacokinetics and Biopharmaceutics 15, 657 (two one-sided tests). The power is
    that of two quantiles of t, which overstates it by little from five pairs on.
    """
    arm, reference = np.asarray(arm_S, np.float64), np.asarray(reference_S, np.float64)
    difference = arm - reference
    num, mean, scatter = len(difference), float(difference.mean()), float(difference.std(ddof=1))
    error, spread = scatter / math.sqrt(num), float(reference.std(ddof=1))
    t = import_stats().t(num - 1)
    two_sided, power, one_sided = t.ppf([(1 + LEVEL) / 2, POWER, 1 - SIGNIFICANT]).tolist()
    p, p_equivalence = float(mean == 0), float(abs(mean) >= margin)
    if error:
        p = 2 * float(t.sf(abs(mean) / error))
        p_equivalence = float(t.sf((margin - abs(mean)) / error))
    found = {
        "num_seeds": num,
        "reference": float(reference.mean()),
        "difference": mean,
        "low": mean - two_sided * error,
        "high": mean + two_sided * error,
        "cohen_d": mean / scatter if scatter else math.nan,
        "in_seed_spread": mean / spread if spread else math.nan,
        "p": p,
        "p_holm": p,
        "smallest_seen": (two_sided + power) * error,
        "margin": margin,
        "p_equivalence": p_equivalence,
        "p_equivalence_holm": p_equivalence,
        "resolved": abs(mean) + one_sided * error,
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def holm(effects: Mapping[Key, Effect], name: str = "p") -> dict[Key, Effect]:
    """The effects with `p_holm`, or another one, corrected for their number.

    Args:
        effects: the family.
        name: "p" or "p_equivalence".

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65).
    """
    keys = sorted(effects, key=lambda key: effects[key][name] or 0.0)
    raised = [(effects[k][name] or 0.0) * (len(keys) - done) for done, k in enumerate(keys)]
    corrected = np.maximum.accumulate(np.minimum(1.0, raised)).tolist()
    by_key = dict(zip(keys, corrected, strict=True))
    return {key: {**effects[key], f"{name}_holm": by_key[key]} for key in effects}


def effects_of(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    references: Mapping[str, str],
    metrics: Sequence[str],
    margin: float,
    controls: Collection[str] = (),
) -> dict[str, dict[str, Effect]]:
    """Effects of all arms by all metrics, corrected over the family that they are.

    Equivalence is corrected over the arms but the controls, by each metric alone: the first
    one decides on it.

    Args:
        values: for each arm and metric a value per seed.
        references: for each arm that is compared the one that it is compared with.
        metrics: names.
        margin: share of the reference's mean that counts as equal; of metrics in nats the margin.
        controls: arms that are known to be worse.
    """
    found: dict[tuple[str, str], Effect] = {}
    for arm, reference in references.items():
        for metric in metrics:
            other = values[reference][metric]
            unit = 1.0 if metric in IN_NATS else abs(float(np.mean(other)))
            # A reference without any error leaves no room for another.
            found[arm, metric] = paired_effect(
                values[arm][metric], other, margin * unit or math.ulp(0.0)
            )
    found = holm(found)
    for metric in metrics:
        own = {(a, m): e for (a, m), e in found.items() if m == metric and a not in controls}
        found |= holm(own, "p_equivalence")
    return {a: {m: found[a, m] for m in metrics} for a in references}


def verdict_of(effects: Mapping[str, Mapping[str, Any]]) -> str:
    """What an arm's effects say, by metric; the first metric decides on equivalence.

    Returns:
        `IDENTICAL` where no value differs; `WORSE` or `BETTER` where the p of a metric, corrected
        for the number of comparisons, is below 5 %; `EQUIVALENT` by the two one-sided tests;
        `POSSIBLE` where an interval, which is not corrected, lies above 0; else `OPEN`.
    """
    found = list(effects.values())
    if all(e["difference"] == e["low"] == e["high"] == 0 for e in found):
        return IDENTICAL
    sure = [e for e in found if e["p_holm"] < SIGNIFICANT]
    if sure:
        return WORSE if any(e["difference"] > 0 for e in sure) else BETTER
    if found[0]["p_equivalence_holm"] < SIGNIFICANT:
        return EQUIVALENT
    return POSSIBLE if any(e["low"] > 0 for e in found) else OPEN


def fit_law(num_A: Floats, error_SA: Floats) -> dict[str, Any]:
    """Fits a n^-b by seed, and a n^-b + c to the means.

    Args:
        num_A: float64 (A,), numbers of training samples, at least three different ones.
        error_SA: float64 (S, A), errors > 0; at least two seeds.

    Returns:
        `exponent` b and `factor` a of the power law, means over seeds of fits in logarithms, with
        `low` and `high` by Student's t; `halving`, by what n grows until the error is half;
        `floor` c, with an interval from resampled seeds, `exponent_above_floor` likewise, and
        `worst`, the largest relative distance of a mean from the power law.
    """
    x_A, y_SA = np.log(num_A), np.log(error_SA)
    slope_S, offset_S = _lines(x_A, y_SA)
    quantile = float(import_stats().t(len(slope_S) - 1).ppf((1 + LEVEL) / 2))

    def told(values_S: Floats) -> dict[str, float]:
        mean, error = values_S.mean(), values_S.std(ddof=1) / np.sqrt(len(values_S))
        ends = mean - quantile * error, mean + quantile * error
        return {"value": float(mean), "low": float(ends[0]), "high": float(ends[1])}

    random = np.random.default_rng(0)
    chosen_RS = random.integers(0, len(error_SA), (_NUM_RESAMPLINGS, len(error_SA)))
    means_RA = np.concatenate([error_SA.mean(axis=0)[None], error_SA[chosen_RS].mean(axis=1)])
    exponent_R, floor_R = _with_floor(x_A, means_RA)
    share = (1 - LEVEL) / 2

    def resampled(values_R: Floats) -> dict[str, float]:
        low, high = np.quantile(values_R[1:], [share, 1 - share]).tolist()
        return {"value": float(values_R[0]), "low": low, "high": high}

    law_A = np.exp(offset_S.mean() + slope_S.mean() * x_A)
    exponent = told(-slope_S)
    return {
        "num_seeds": len(error_SA),
        "num_samples": [float(n) for n in num_A],
        "exponent": exponent,
        "factor": float(np.exp(offset_S.mean())),
        "halving": 2 ** (1 / exponent["value"]) if exponent["value"] > 0 else None,
        "floor": resampled(floor_R),
        "exponent_above_floor": resampled(exponent_R),
        "worst": float(np.abs(error_SA.mean(axis=0) / law_A - 1).max()),
    }


def _lines(x_A: Floats, y_SA: Floats) -> tuple[Floats, Floats]:
    """Slopes and offsets of the lines of least squares, float64 (S,) each."""
    off_A = x_A - x_A.mean()
    slope_S = (y_SA @ off_A) / (off_A @ off_A)
    return slope_S, y_SA.mean(axis=1) - slope_S * x_A.mean()


def _with_floor(x_A: Floats, mean_RA: Floats) -> tuple[Floats, Floats]:
    """Exponents and floors of a n^-b + c, float64 (R,) each, by a search over c in [0, least)."""
    best_R = np.full(len(mean_RA), np.inf)
    exponent_R, floor_R = np.zeros(len(mean_RA)), np.zeros(len(mean_RA))
    for share in np.linspace(0, 0.999, _NUM_FLOORS):
        c_R = share * mean_RA.min(axis=1)
        y_RA = np.log(mean_RA - c_R[:, None])
        slope_R, offset_R = _lines(x_A, y_RA)
        fitted_RA = np.exp(offset_R[:, None] + slope_R[:, None] * x_A) + c_R[:, None]
        miss_R = (np.log(fitted_RA / mean_RA) ** 2).sum(axis=1)
        is_better = miss_R < best_R
        best_R = np.where(is_better, miss_R, best_R)
        exponent_R = np.where(is_better, -slope_R, exponent_R)
        floor_R = np.where(is_better, c_R, floor_R)
    return exponent_R, floor_R
