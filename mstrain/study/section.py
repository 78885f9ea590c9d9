"""A study in sentences, tables and figures, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mstrain.evaluation.report.canvas import BLUE, GREY, PALE, RED, Canvas, Picture
from mstrain.evaluation.report.page import page_with_section, section_body
from mstrain.evaluation.report.wording import HEADINGS, TextTable
from mstrain.study.effects import BETTER, EQUIVALENT, IDENTICAL, IN_NATS, POSSIBLE, WORSE

_WORDS = {
    WORSE: "worse",
    BETTER: "better",
    POSSIBLE: "possibly worse: the interval of {}, which is not corrected, leaves out 0",
    IDENTICAL: "identical: no value differs in any seed",
    EQUIVALENT: "equivalent",
}
# A fit says nothing of as many times the samples.
_FARTHEST = 100


def heading(metric: str) -> str:
    """What a metric is called in tables."""
    return HEADINGS[metric][0] if metric in HEADINGS else metric.replace("_", " ")


def _scaled(effect: Mapping[str, Any], name: str, metric: str) -> float:
    """A figure in percent of the reference's metric, of losses in nats."""
    unit = 1.0 if metric in IN_NATS else 100 / (abs(float(effect["reference"])) or np.inf)
    return unit * float(effect[name])


def difference_text(effect: Mapping[str, Any], metric: str) -> str:
    """A difference with its interval, such as `+1.2 % (-0.3 to +2.7)`."""
    middle, low, high = (_scaled(effect, n, metric) for n in ("difference", "low", "high"))
    if metric in IN_NATS:
        return f"{middle:+.4f} ({low:+.4f} to {high:+.4f})"
    return f"{middle:+.2f} % ({low:+.2f} to {high:+.2f})"


def size_text(effect: Mapping[str, Any], name: str, metric: str) -> str:
    """A size without a sign, such as a margin."""
    size = _scaled(effect, name, metric)
    return f"{size:.4f}" if metric in IN_NATS else f"{size:.2f} %"


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """What was found, a sentence per arm, after whether the study could have seen anything."""
    arms, spec = result["arms"], result["spec"]
    metric = spec["metrics"][0]
    first = next(iter(arms.values()))
    found = [
        f"{spec['seeds']} seeds per arm, {first['num_train']:,.0f} samples trained on and "
        f"{first['num_test']:,.0f} of split {spec['split']!r} measured; differences are paired by "
        "seed, intervals are 95 % t intervals, p are corrected for the number of comparisons "
        "(Holm)." + (f" One process played {spec['ranks']} ranks." if spec["ranks"] > 1 else "")
    ]
    controls = [a["title"] for a in arms.values() if a["is_control"]]
    if result["control"] is None:
        found.append(
            "The study has no control, an arm that must be found worse: it cannot show that it "
            "would have seen an effect."
        )
    elif result["control"]:
        found.append(f"The control works: the study sees the harm of {'; '.join(controls)}.")
    else:
        missed = [a["title"] for a in arms.values() if a["is_control"] and a["verdict"] != WORSE]
        found.append(
            f"THE CONTROL FAILED: the study could not have seen an effect, as it did not find that "
            f"{'; '.join(missed)} is worse; take more seeds, objects or epochs."
        )
    compared = [arm for arm in arms.values() if arm["effects"] is not None]
    found += [_sentence(arm, arms[arm["reference"]]["title"], metric) for arm in compared]
    if result["law"] is not None and metric in result["law"]:
        found.append(_law_sentence(result["law"][metric], metric))
    return found


def _sentence(arm: Mapping[str, Any], reference: str, metric: str) -> str:
    effect, verdict = arm["effects"][metric], arm["verdict"]
    told = _WORDS.get(verdict, "inconclusive: neither a difference nor equivalence was shown")
    above = [heading(name) for name, e in arm["effects"].items() if e["low"] > 0]
    text = f"{arm['title']} against {reference}: {told.format(' and '.join(above))}"
    if verdict == IDENTICAL:
        return f"{text}."
    text += f"; {heading(metric)} {difference_text(effect, metric)}, p {effect['p_holm']:.2g}"
    text += f"; equal within {size_text(effect, 'margin', metric)}: p "
    text += f"{effect['p_equivalence_holm']:.2g}, resolved margin "
    text += f"{size_text(effect, 'resolved', metric)} (uncorrected)"
    seen = size_text(effect, "smallest_seen", metric)
    return f"{text}; a harm of {seen} would have been seen in four of five such studies."


def _law_sentence(law: Mapping[str, Any], metric: str) -> str:
    b, floor, above = law["exponent"], law["floor"], law["exponent_above_floor"]
    halving = law["halving"]
    low, high = min(law["num_samples"]), max(law["num_samples"])
    text = (
        f"{heading(metric)} falls as n^-b with b = {b['value']:.3f} ({b['low']:.3f} to "
        f"{b['high']:.3f}) from {low:,.0f} to {high:,.0f} training samples, within "
        f"{law['worst']:.1%}"
    )
    if halving is not None and halving <= _FARTHEST:
        text += f": half of it takes {halving:,.1f} times the samples"
    return (
        f"{text}; with a floor, a n^-b + c, b = {above['value']:.3f} ({above['low']:.3f} to "
        f"{above['high']:.3f}) and c = {floor['value']:.4g} ({floor['low']:.4g} to "
        f"{floor['high']:.4g})."
    )


def tables_of(result: Mapping[str, Any]) -> list[TextTable]:
    """Arms, then effects by each metric."""
    metrics = result["spec"]["metrics"]
    arms = result["arms"]
    rows = [
        [
            arm["title"],
            f"{arm['num_train']:,.0f}",
            *(f"{arm['mean'][m]:.4f} ± {arm['std'][m]:.4f}" for m in metrics),
            (arm["verdict"] or "reference") + (" (control)" if arm["is_control"] else ""),
        ]
        for arm in arms.values()
    ]
    tables = [
        TextTable(
            caption="Arms: mean ± standard deviation over seeds; less is better",
            head=["arm", "trained on", *map(heading, metrics), "verdict"],
            rows=rows,
        )
    ]
    return tables + [_effects_table(arms, metric) for metric in metrics]


def _effects_table(arms: Mapping[str, Mapping[str, Any]], metric: str) -> TextTable:
    rows = []
    for arm in arms.values():
        if arm["effects"] is None:
            continue
        effect = arm["effects"][metric]
        d = effect["cohen_d"]
        rows.append(
            [
                arm["title"],
                arms[arm["reference"]]["title"],
                difference_text(effect, metric),
                "-" if d is None else f"{d:+.2f}",
                f"{effect['p_holm']:.2g}",
                size_text(effect, "smallest_seen", metric),
                f"{effect['p_equivalence_holm']:.2g}",
                size_text(effect, "resolved", metric),
            ]
        )
    margin = next(a["effects"][metric] for a in arms.values() if a["effects"] is not None)
    unit = "in nats" if metric in IN_NATS else "in percent of the reference's"
    return TextTable(
        caption=f"{heading(metric)}: arm minus reference, {unit}; equivalent means within "
        f"{size_text(margin, 'margin', metric)}",
        head=[
            *("arm", "reference", "difference (95 %)", "Cohen's d", "p (Holm)"),
            *("80 % power from", "p (equivalence)", "resolved margin"),
        ],
        rows=rows,
    )


def draw_effects(result: Mapping[str, Any]) -> Picture:
    """Differences with intervals and the margin, a panel per metric."""
    metrics = result["spec"]["metrics"]
    arms = [arm for arm in result["arms"].values() if arm["effects"] is not None]
    height = 1.2 + 0.32 * len(arms)
    with Canvas(1.5 + 3.6 * len(metrics), height, columns=len(metrics), sharey=True) as canvas:
        for panel, metric in zip(canvas.panels, metrics, strict=True):
            margins = [_scaled(a["effects"][metric], "margin", metric) for a in arms]
            panel.axvspan(-max(margins), max(margins), color=PALE)
            panel.axvline(0, color=GREY, linewidth=0.8)
            for place, arm in enumerate(arms):
                ends = ("difference", "low", "high")
                middle, low, high = (_scaled(arm["effects"][metric], n, metric) for n in ends)
                color = RED if arm["verdict"] == WORSE else BLUE
                bars = [[middle - low], [high - middle]]
                panel.errorbar([middle], [place], xerr=bars, color=color, marker="o", markersize=4)
            unit = "nats" if metric in IN_NATS else "% of the reference"
            panel.set(xlabel=f"{heading(metric)}: difference, {unit}")
            panel.grid(axis="x")
        panel = canvas.panels[0]
        panel.set_yticks(range(len(arms)), [arm["title"] for arm in arms])
        panel.set_ylim(len(arms) - 0.5, -0.5)
        return canvas.picture(
            "Differences to the reference",
            alt="Differences with intervals for " + ", ".join(arm["title"] for arm in arms),
            caption="Right of 0 is worse. Bars: 95 % intervals of the paired difference; shaded: "
            "the margin of equivalence; red: worse after correction.",
        )


def draw_law(result: Mapping[str, Any]) -> Picture:
    """The errors against the number of training samples, with the power laws."""
    law = result["law"]
    metrics = [m for m in result["spec"]["metrics"] if m in law]
    with Canvas(1 + 3.6 * len(metrics), 3.2, columns=len(metrics)) as canvas:
        for panel, metric in zip(canvas.panels, metrics, strict=True):
            fit = law[metric]
            arms = [result["arms"][name] for name in law["arms"]]
            num_A = np.array(fit["num_samples"])
            x = np.geomspace(num_A.min(), num_A.max(), 50)
            panel.plot(x, fit["factor"] * x ** -fit["exponent"]["value"], color=GREY)
            panel.errorbar(
                num_A,
                [arm["mean"][metric] for arm in arms],
                [arm["std"][metric] for arm in arms],
                color=BLUE,
                marker="o",
                linestyle="",
            )
            panel.set(xlabel="training samples", ylabel=heading(metric), xscale="log", yscale="log")
            panel.grid()
        return canvas.picture(
            "Error against the number of training samples",
            alt="Error against the number of training samples on logarithmic axes",
            caption="Bars: standard deviation from seed to seed; line: power law.",
        )


def page_of(result: Mapping[str, Any]) -> str:
    """The page as HTML."""
    pictures = [draw_effects(result)]
    if result["law"] is not None and len(result["law"]) > 1:
        pictures.append(draw_law(result))
    body = section_body(sentences_of(result), tables_of(result), pictures)
    return page_with_section(None, "study", result["title"], body)


def text_of(result: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    tables = [f"{table.caption}\n{table.as_text()}" for table in tables_of(result)]
    lines: Sequence[str] = sentences_of(result)
    return "\n\n".join([*tables, "\n".join(lines)])
