"""What paired trainings tell: differences with intervals, in numbers and in words.

Arms are compared seed by seed: the same split, the same initial weights. Legend: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from benchmarks.report import Chart, Series, Shown, Table

Key = TypeVar("Key", bound=Hashable)
Effect = dict[str, float | None]
LEVEL, POWER = 0.95, 0.8
TITLE = "Does an order made for the cache cost accuracy?"
HARM, POSSIBLE, NONE = "HARM", "POSSIBLE HARM", "no harm seen"
_NAMES = {"nmad": "NMAD", "loss": "loss", "crps": "CRPS"}
_SIGNIFICANT = 0.05


def paired_effect(arm_S: Sequence[float], reference_S: Sequence[float]) -> Effect:
    """How much worse an arm is than another over the same seeds, by a metric (less is better).

    Args:
        arm_S: the metric of one arm.
        reference_S: of the other, in the same order; at least two.

    Returns:
        `reference`, the other's mean; `difference` of the means, above 0 the arm is worse, with its
        95 % t interval `low` and `high`; `cohen_d`, difference over the standard deviation of the
        pairs' differences; `in_seed_spread`, over the reference's from seed to seed; `p` of the
        two-sided paired t test, and `p_holm`, see `holm`; `smallest_seen`, the least difference
        that this many pairs of this scatter would have shown at 5 %, in 80 of 100 such studies.
        Figures that are not finite are None.

    Source: Student's t for paired samples; Cohen 1988, section 2.3.5 (d for pairs). The power is
    that of two quantiles of t, which overstates it by little from five pairs on.
    """
    arm, reference = np.asarray(arm_S, np.float64), np.asarray(reference_S, np.float64)
    difference = arm - reference
    num, mean, scatter = len(difference), float(difference.mean()), float(difference.std(ddof=1))
    low = high = mean
    p = float(mean == 0)
    if scatter:
        test = stats.ttest_rel(arm, reference)
        low, high = test.confidence_interval(LEVEL)
        p = float(test.pvalue)
    spread = float(reference.std(ddof=1))
    quantiles = stats.t(num - 1).ppf([(1 + LEVEL) / 2, POWER])
    found = {
        "num_seeds": num,
        "reference": float(reference.mean()),
        "difference": mean,
        "low": float(low),
        "high": float(high),
        "cohen_d": mean / scatter if scatter else math.nan,
        "in_seed_spread": mean / spread if spread else math.nan,
        "p": p,
        "p_holm": p,
        "smallest_seen": float(quantiles.sum()) * scatter / math.sqrt(num),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def holm(effects: Mapping[Key, Effect]) -> dict[Key, Effect]:
    """The effects with `p_holm` corrected for their number.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65).
    """
    keys = sorted(effects, key=lambda key: effects[key]["p"] or 0.0)
    raised = [(effects[k]["p"] or 0.0) * (len(keys) - done) for done, k in enumerate(keys)]
    corrected = np.maximum.accumulate(np.minimum(1.0, raised)).tolist()
    by_key = dict(zip(keys, corrected, strict=True))
    return {key: {**effects[key], "p_holm": by_key[key]} for key in effects}


def _percent(effect: Mapping[str, Any], name: str) -> float:
    return 100 * float(effect[name]) / float(effect["reference"])


def _interval(effect: Mapping[str, Any], metric: str) -> str:
    """NMAD and CRPS in percent of the reference, the loss in nats, which have no zero."""
    ends = ("difference", "low", "high")
    if metric == "loss":
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(*(effect[n] for n in ends))
    return "{:+.1f} % ({:+.1f} to {:+.1f})".format(*(_percent(effect, n) for n in ends))


def verdict_of(arm: Mapping[str, Any]) -> str:
    """Whether an arm is worse than its reference, by NMAD or loss.

    Returns:
        `HARM` where p is below 5 % when corrected for the number of comparisons, `POSSIBLE` where
        only the interval, which is not corrected, lies above 0; else `NONE`.
    """
    effects = [arm["effects"][metric] for metric in ("nmad", "loss")]
    if any(e["difference"] > 0 and e["p_holm"] < _SIGNIFICANT for e in effects):
        return HARM
    return POSSIBLE if any(e["low"] > 0 for e in effects) else NONE


def _sentence(arm: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    effect, loss = arm["effects"]["nmad"], arm["effects"]["loss"]
    verdict, d = verdict_of(arm), effect["cohen_d"]
    size = "all pairs alike" if d is None else f"Cohen's d {d:+.2f}"
    found = (
        f"{arm['title']} against {titles[arm['reference']]}: {verdict}; NMAD "
        f"{_interval(effect, 'nmad')}, {size}, p {effect['p_holm']:.2g}; loss "
        f"{_interval(loss, 'loss')}, p {loss['p_holm']:.2g}."
    )
    if verdict != NONE:
        return found
    return (
        f"{found} 80 % power from {_percent(effect, 'smallest_seen'):.1f} % of the NMAD: smaller "
        "harm may have been missed."
    )


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """What was found, one sentence per arm, after what it rests on."""
    design, arms = result["design"], result["arms"]
    titles = {arm["name"]: arm["title"] for arm in arms}
    found = [
        f"{design['num_seeds']} seeds per arm, {result['num_train']:,} stamps trained on for "
        f"{design['epochs']} epochs and {result['num_test']:,} measured, 4 ranks of 16 samples per "
        "step; differences are paired by seed, intervals are 95 % t intervals, p are corrected "
        "for the number of comparisons (Holm)."
    ]
    controls = [a for a in arms if a["title"].endswith("by redshift")]
    harmed = [a["title"] for a in controls if verdict_of(a) == HARM]
    if harmed:
        found.append(f"The control works: the study sees harm in {'; '.join(harmed)}.")
    else:
        found.append(
            "THE CONTROL FAILED: no harm was seen even in shards by redshift, so this study is "
            "blind, and 'no harm seen' means nothing; take more seeds, objects or epochs."
        )
    return found + [_sentence(arm, titles) for arm in arms if arm["reference"]]


def _effects_table(result: Mapping[str, Any]) -> Table:
    rows = []
    for arm in result["arms"]:
        row: list[Any] = [arm["title"], f"{arm['mean']['nmad']:.4f}", f"{arm['mean']['loss']:.3f}"]
        effects, quality = arm["effects"], arm["quality"]
        if effects:
            nmad, d = effects["nmad"], effects["nmad"]["cohen_d"]
            row += [verdict_of(arm), _interval(nmad, "nmad"), None if d is None else f"{d:+.2f}"]
            row += [f"{nmad['p_holm']:.2g}", f"{_percent(nmad, 'smallest_seen'):.1f} %"]
            row += [_interval(effects["loss"], "loss")]
        else:
            row += [None] * 6
        measures = ("displacement", "repeated_pairs", "same_shard_pairs", "redshift_distance")
        rows.append([*row, *(f"{quality[name]:.2f}" for name in measures)])
    return Table(
        title="Networks trained under each policy",
        columns=(
            *("order", "NMAD", "loss", "harm", "NMAD against shuffle (95 %)", "Cohen's d"),
            *("p (Holm)", "80 % power from", "loss against shuffle (95 %)", "displacement"),
            *("repeated pairs", "same-shard pairs", "redshift distance"),
        ),
        rows=rows,
        in_readme=True,
        note=(
            "Means over seeds. Against shuffle with the same kind of batch norm, paired by seed; "
            "above 0 is worse. Cohen's d: mean over standard deviation of the pairs' differences. "
            "80 % power from: the least harm that four of five such studies would have seen. The "
            "last four columns are ratios to a uniform draw, 1 is as good: how far samples move "
            "between epochs, pairs that meet again in a batch, pairs of one shard in a batch, and "
            "the distance of a batch's redshifts from all redshifts; a batch is what batch norm "
            "sees, of all ranks or of one."
        ),
    )


def _ranks_table(result: Mapping[str, Any]) -> Table:
    rows = [
        [
            arm["title"],
            arm["quality"]["seen_by_rank"],
            *(f"{arm['mean'][m]:.4f} ± {arm['std'][m]:.4f}" for m in _NAMES),
            *(arm["effects"].get(m, {}).get("in_seed_spread") for m in _NAMES),
        ]
        for arm in result["arms"]
    ]
    return Table(
        title="All metrics, and the scatter from seed to seed",
        columns=(
            *("order", "seen by one rank"),
            *(f"{name}, mean ± std" for name in _NAMES.values()),
            *(f"{name}: difference / std of shuffle" for name in _NAMES.values()),
        ),
        rows=rows,
        note=(
            "Seen by one rank: share of the samples by the last epoch, over that of uniform "
            "shuffles. A standard deviation is that over seeds, which have other splits, weights "
            "and orders."
        ),
    )


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of the study, as `benchmarks.questions.policies` collects it."""
    arms = [arm for arm in result["arms"] if arm["reference"]]
    middle, low, high = (
        [100 + _percent(arm["effects"]["nmad"], name) for arm in arms]
        for name in ("difference", "low", "high")
    )
    chart = Chart(
        title="NMAD, shuffle's with the same batch norm being 100 %",
        kind="bars",
        labels=[arm["title"] for arm in arms],
        x_label="percent; above 100 is worse; whiskers: 95 % intervals of the paired difference",
        series=[Series(name="NMAD", values=middle, least=low, greatest=high)],
    )
    return Shown(
        title=TITLE,
        sentences=sentences_of(result),
        tables=[_effects_table(result), _ranks_table(result)],
        charts=[chart],
    )
