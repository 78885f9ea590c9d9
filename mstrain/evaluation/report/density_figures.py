"""Figures of calibration: PIT histogram, Q-Q plot, coverage, and the stacked densities."""

from __future__ import annotations

import numpy as np

from mstrain.evaluation.metrics.estimates import COVERAGE_LEVELS, coverage_name
from mstrain.evaluation.report.canvas import BLUE, GREY, ORANGE, PALE, Canvas, Picture
from mstrain.evaluation.report.content import Content

_NUM_PIT_BINS = 20
# Of the normal and the Kolmogorov distribution, both for 95 %.
_NORMAL_95, _KOLMOGOROV_95 = 1.959964, 1.358099
_MAX_QQ_POINTS = 1000


def draw_pit(content: Content) -> Picture:
    """Histogram of the PITs, and their distribution function less a uniform one's."""
    pit, summary = content.known("pit"), content.summary
    count = len(pit)
    with Canvas(9.6, 3.4, columns=2) as canvas:
        left, right = canvas.panels
        heights, edges = np.histogram(pit, bins=_NUM_PIT_BINS, range=(0, 1))
        share = 1 / _NUM_PIT_BINS
        spread = _NORMAL_95 * np.sqrt((1 - share) / (count * share))
        left.axhspan(1 - spread, 1 + spread, color=PALE, label="95 % of bins, if uniform")
        left.axhline(1, color=GREY, linewidth=0.8)
        left.stairs(heights / (count * share), edges, color=BLUE, fill=True, alpha=0.35)
        left.stairs(heights / (count * share), edges, color=BLUE, linewidth=1.3)
        left.set(xlabel="PIT", ylabel="density", xlim=(0, 1), title="PIT histogram")
        left.set_ylim(0, max(1 + 2 * spread, 1.15 * float(heights.max()) / (count * share)))
        left.legend(loc="upper center")

        chosen = np.unique(np.linspace(0, count - 1, min(count, _MAX_QQ_POINTS)).astype(int))
        ordered = np.sort(pit)[chosen]
        limit = _KOLMOGOROV_95 / np.sqrt(count)
        right.axhspan(-limit, limit, color=PALE, label="95 % of curves, if uniform")
        right.axhline(0, color=GREY, linewidth=0.8)
        right.plot(ordered, (chosen + 0.5) / count - ordered, color=BLUE)
        right.set(xlabel="PIT", ylabel="empirical CDF - PIT", xlim=(0, 1))
        right.set_title("Q-Q plot, less the diagonal")
        right.margins(y=0.25)
        right.legend(loc="upper center")
        return canvas.picture(
            "Calibration: PIT",
            alt=f"Histogram of {count:,} probability integral transforms, and the difference of "
            f"their distribution function from a uniform one; Kolmogorov-Smirnov statistic "
            f"{summary.pit_ks:.4f}.",
            caption="Calibrated densities have uniform PITs. A U in the histogram means too narrow "
            "densities, a hill too wide ones, a slope a bias. The largest distance from zero on "
            f"the right is the Kolmogorov-Smirnov statistic, {summary.pit_ks:.4f} "
            f"(p = {summary.pit_ks_p:.2g}).",
        )


def draw_stacked(content: Content) -> Picture:
    """Distribution of the truths beside the mean of the densities."""
    truth, edges, target = content.known("redshift"), content.edges, content.target
    inside = truth[(truth >= edges[0]) & (truth <= edges[-1])]
    step = max(1, round((len(edges) - 1) / 60))
    coarse = np.append(edges[:-1:step], edges[-1])
    counts, _ = np.histogram(inside, bins=coarse)
    cumulative = np.concatenate([[0], np.cumsum(content.stacked * np.diff(edges))])
    stacked = np.diff(np.interp(coarse, edges, cumulative)) / np.diff(coarse)
    with Canvas(5.4, 3.4) as canvas:
        (panel,) = canvas.panels
        heights = counts / (max(len(truth), 1) * np.diff(coarse))
        panel.stairs(
            heights,
            coarse,
            color=GREY,
            fill=True,
            alpha=0.3,
            label="spectroscopic" if target.is_redshift else "true",
        )
        panel.stairs(stacked, coarse, color=BLUE, linewidth=1.4, label="mean of the densities")
        is_whole = not len(inside) or not target.is_redshift
        top = edges[-1] if is_whole else min(edges[-1], 1.15 * np.quantile(inside, 0.999))
        panel.set(xlabel=target.axis_label)
        panel.set(ylabel=f"objects per unit {target.noun} (normalized)")
        panel.set(xlim=(edges[0], top))
        panel.set_ylim(bottom=0)
        panel.legend(loc="upper right")
        return canvas.picture(
            f"{target.noun.capitalize() if target.is_redshift else target.noun} distribution",
            alt=f"Histogram of {target.truth_words}s and the mean of all predicted densities.",
            caption="If the densities are right, their mean follows the histogram of the true "
            f"{'redshifts' if target.is_redshift else 'values'}.",
        )


def draw_coverage(content: Content) -> Picture:
    """Share of objects in their central intervals, against the intervals' probability."""
    off_center = np.sort(2 * np.abs(content.known("pit") - 0.5))
    levels = np.linspace(0, 1, 201)
    found = np.searchsorted(off_center, levels, side="right") / len(off_center)
    with Canvas(4.2, 3.4) as canvas:
        (panel,) = canvas.panels
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        panel.plot(levels, found, color=BLUE)
        for level in COVERAGE_LEVELS:
            metric = content.summary.density[coverage_name(level)]
            panel.plot([level, level], [metric.low, metric.high], color=ORANGE, linewidth=2)
            panel.plot(level, metric.value, "o", color=ORANGE, markersize=5)
        panel.set(xlabel="probability of the central interval", ylabel="objects in it")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.grid(visible=True)
        return canvas.picture(
            "Coverage",
            alt=f"Share of objects whose {content.target.noun} lies in the central interval of "
            "their density, against the interval's probability.",
            caption="Below the diagonal the densities are too narrow, above it too wide. Points: "
            "68, 90 and 95 %, with intervals.",
        )
