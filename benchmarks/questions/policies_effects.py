"""What paired trainings tell: differences with intervals, their size, and what could be seen.

Arms are compared seed by seed: the same split, the same initial weights. Legend: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key", bound=Hashable)
LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How much worse an arm is than another, by one metric (less is better).

    Attributes:
        num_seeds: pairs.
        reference: the other's mean.
        difference: mean of arm minus reference; above 0 the arm is worse.
        low: lower end of the 95 % t interval of the difference.
        high: upper end.
        cohen_d: difference over the standard deviation of the pairs' differences.
        in_seed_spread: difference over the reference's standard deviation from seed to seed.
        p: of the paired t test, two-sided.
        p_holm: the same, corrected for the number of comparisons.
        smallest_seen: the least difference that this many pairs of this scatter would have shown
            at 5 %, two-sided, in 80 of 100 such studies.
    """

    num_seeds: int
    reference: float
    difference: float
    low: float
    high: float
    cohen_d: float
    in_seed_spread: float
    p: float
    p_holm: float
    smallest_seen: float

    def relative(self, value: float) -> float:
        """A difference as a share of the reference's mean."""
        return value / self.reference

    def to_json(self) -> dict[str, Any]:
        """Plain values; figures that are not finite become None."""
        return {
            name: value if math.isfinite(value) else None for name, value in asdict(self).items()
        }


def paired_effect(arm_S: Sequence[float], reference_S: Sequence[float]) -> Effect:
    """Compares two arms over the same seeds.

    Args:
        arm_S: a metric of one arm, less is better.
        reference_S: of the other, in the same order; at least two.

    Returns:
        The effect; `p_holm` is not yet corrected, see `holm`.

    Source: Student's t for paired samples; Cohen 1988, section 2.3.5 (d for pairs). The power is
    that of two quantiles of t, which overstates it by little from five pairs on.
    """
    arm, reference = np.asarray(arm_S, np.float64), np.asarray(reference_S, np.float64)
    difference = arm - reference
    num, mean = len(difference), float(difference.mean())
    scatter = float(difference.std(ddof=1))
    error = scatter / math.sqrt(num)
    t = stats.t(num - 1)
    reach = float(t.ppf((1 + LEVEL) / 2)) * error
    p = 2 * float(t.sf(abs(mean) / error)) if error else float(mean == 0)
    spread = float(reference.std(ddof=1))
    return Effect(
        num_seeds=num,
        reference=float(reference.mean()),
        difference=mean,
        low=mean - reach,
        high=mean + reach,
        cohen_d=mean / scatter if scatter else math.nan,
        in_seed_spread=mean / spread if spread else math.nan,
        p=p,
        p_holm=p,
        smallest_seen=float(t.ppf((1 + LEVEL) / 2) + t.ppf(POWER)) * error,
    )


def holm(effects: Mapping[Key, Effect]) -> dict[Key, Effect]:
    """The effects with p corrected for their number.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65).
    """
    found: dict[Key, Effect] = {}
    largest = 0.0
    for done, name in enumerate(sorted(effects, key=lambda n: effects[n].p)):
        largest = max(largest, min(1.0, effects[name].p * (len(effects) - done)))
        found[name] = replace(effects[name], p_holm=largest)
    return {name: found[name] for name in effects}
