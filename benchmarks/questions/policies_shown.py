"""What the report shows of the study of policies: effects with intervals, beside the orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.question import Chart, Series, Shown, Table

TITLE = "Does an order made for the cache cost accuracy?"
_NAMES = {"nmad": "NMAD", "loss": "loss", "crps": "CRPS"}
HARM, POSSIBLE, NONE = "HARM", "POSSIBLE HARM", "no harm seen"
_SIGNIFICANT = 0.05


def _percent(effect: Mapping[str, Any], name: str) -> float:
    return 100 * float(effect[name]) / float(effect["reference"])


def _interval(effect: Mapping[str, Any], metric: str) -> str:
    """NMAD and CRPS in percent of the reference, the loss in nats, which have no zero."""
    if metric == "loss":
        values = [effect[n] for n in ("difference", "low", "high")]
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(*values)
    values = [_percent(effect, n) for n in ("difference", "low", "high")]
    return "{:+.1f} % ({:+.1f} to {:+.1f})".format(*values)


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
    """What was found, an arm a sentence, after what it rests on."""
    design, arms = result["design"], result["arms"]
    titles = {arm["name"]: arm["title"] for arm in arms}
    found = [
        f"{design['num_seeds']} seeds an arm, {result['num_train']:,} stamps trained on for "
        f"{design['epochs']} epochs and {result['num_test']:,} measured, 4 ranks of 16 samples a "
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
        effects = arm["effects"]
        if effects:
            nmad = effects["nmad"]
            d = nmad["cohen_d"]
            row += [
                verdict_of(arm),
                _interval(nmad, "nmad"),
                None if d is None else f"{d:+.2f}",
                f"{nmad['p_holm']:.2g}",
                f"{_percent(nmad, 'smallest_seen'):.1f} %",
                _interval(effects["loss"], "loss"),
            ]
        else:
            row += [None] * 6
        quality = arm["quality"]
        row += [
            f"{quality[name]:.2f}"
            for name in ("displacement", "repeated_pairs", "same_shard_pairs", "redshift_distance")
        ]
        rows.append(row)
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


def _chart(result: Mapping[str, Any]) -> Chart:
    arms = [arm for arm in result["arms"] if arm["reference"]]
    ends = {
        name: [100 + _percent(arm["effects"]["nmad"], name) for arm in arms]
        for name in ("difference", "low", "high")
    }
    return Chart(
        title="NMAD, shuffle's with the same batch norm being 100 %",
        kind="bars",
        labels=[arm["title"] for arm in arms],
        x_label="percent; above 100 is worse; whiskers: 95 % intervals of the paired difference",
        series=[
            Series(
                name="NMAD",
                values=ends["difference"],
                least=ends["low"],
                greatest=ends["high"],
            )
        ],
    )


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of the study.

    Args:
        result: as `benchmarks.questions.policies.answer` collects it.
    """
    return Shown(
        title=TITLE,
        sentences=sentences_of(result),
        tables=[_effects_table(result), _ranks_table(result)],
        charts=[_chart(result)],
    )
