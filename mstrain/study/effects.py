"""What paired trainings tell: differences with intervals, power, and equivalence.

Arms are compared seed by seed: the same initial weights, the same split. Less is better in every
metric. Legend: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mstrain.evaluation.metrics.summary import import_stats

Key = TypeVar("Key", bound=Hashable)
Effect = dict[str, float | None]
LEVEL, POWER = 0.95, 0.8
SIGNIFICANT = 0.05
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
) -> dict[str, dict[str, Effect]]:
    """Effects of all arms by all metrics, corrected over the family that they are.

    Equivalence is corrected over the arms, by each metric alone: the first one decides on it.

    Args:
        values: for each arm and metric a value per seed.
        references: for each arm that is compared the one that it is compared with.
        metrics: names.
        margin: share of the reference's mean that counts as equal; of metrics in nats the margin.
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
        own = {(a, m): e for (a, m), e in found.items() if m == metric}
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
