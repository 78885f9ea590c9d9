"""A comparison in tables and figures, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from mstrain.comparison.paired import ECA, METRICS, Scored
from mstrain.evaluation.metrics.binning import MIN_BIN_COUNT, round_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig, bootstrap, nmad
from mstrain.evaluation.metrics.estimates import (
    OUTLIER_THRESHOLDS,
    Estimate,
    estimate_of,
    outlier_name,
    point_averages,
)
from mstrain.evaluation.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, RED, Canvas, Picture
from mstrain.evaluation.report.page import section_body
from mstrain.evaluation.report.wording import HEADINGS, TextTable, estimate_text

_COLORS = (BLUE, RED, GREEN, ORANGE, INK, GREY)
_BIN_REPLICATES = 100
_BINNED = ("nmad", "bias", outlier_name(OUTLIER_THRESHOLDS[0]))
NOT_THE_SAME = "not the same objects"
# Sample, objects, what was measured, NMAD, bias, eta (t = 0.05), as published; absent ones empty.
_PUBLISHED = (
    ("MGS", "102,850", "upstream", "0.00995", "-0.0002", "0.53 %"),
    ("MGS", "", "Beck et al., local linear regression", "0.0137", "", "1.09 %"),
    ("WISE-PS1-STRM", "596,443", "upstream", "0.0186", "0.0029", "6.59 %"),
    ("WISE-PS1-STRM", "596,443", "Beck et al.", "0.0178", "0.0018", "7.79 %"),
    ("Zhou et al. 2023", "281,103", "upstream", "0.0196", "", "7.93 %"),
    ("Zhou et al. 2023", "281,103", "Zhou et al. 2023", "0.0151", "", "6.09 %"),
)


def metrics_table(name: str, scored: Scored) -> TextTable:
    """Metrics of a sample: a row each."""
    return TextTable(
        caption=f"Sample {name}: {scored.num_samples:,} objects, the same in every row",
        head=["row", *(_heading(metric) for metric in METRICS)],
        rows=[
            [row, *(_text(metric, found.get(metric)) for metric in METRICS)]
            for row, found in scored.metrics.items()
        ],
    )


def differences_table(name: str, scored: Scored, level: float) -> TextTable | None:
    """Paired differences to the first row; None for one row alone."""
    if not scored.differences:
        return None
    first = next(iter(scored.metrics))
    return TextTable(
        caption=f"Sample {name}: row minus {first}, paired, with {level:.0%} intervals; "
        "* where the interval leaves out 0",
        head=["row", *(_heading(metric) for metric in METRICS)],
        rows=[
            [row, *(_marked(metric, found.get(metric)) for metric in METRICS)]
            for row, found in scored.differences.items()
        ],
    )


def _heading(metric: str) -> str:
    return "ECA" if metric == ECA else HEADINGS[metric][0]


def _text(metric: str, found: Estimate | None) -> str:
    if found is None:
        return "-"
    # Shown as CRPS is: four digits.
    return estimate_text("crps" if metric == ECA else metric, found)


def _marked(metric: str, found: Estimate | None) -> str:
    is_sure = found is not None and not found.low <= 0 <= found.high
    return _text(metric, found) + ("*" if is_sure else "")


def published_table() -> TextTable:
    """Figures of papers."""
    return TextTable(
        caption=f"Published: {NOT_THE_SAME} as above, so no difference says anything",
        head=["sample", "objects", "what", "NMAD", "bias", "eta (t = 0.05)", "note"],
        rows=[[*cells, NOT_THE_SAME] for cells in _PUBLISHED],
    )


def published_section(notes: Sequence[str]) -> str:
    """HTML of the published figures, and what was left out above."""
    return section_body(notes, [published_table()], [])


def draw_sample(
    scored: Scored, config: BootstrapConfig, redshift_edges: Sequence[float] = ()
) -> str:
    """HTML of a sample's section.

    Args:
        scored: its metrics.
        config: how intervals are made.
        redshift_edges: edges of the figure's bins; empty chooses round numbers.
    """
    tables = [metrics_table("", scored), differences_table("", scored, config.level)]
    shown = [replace(t, caption=t.caption.removeprefix("Sample : ")) for t in tables if t]
    rows = TextTable(
        caption="Rows",
        head=["row", "what it is"],
        rows=[list(pair) for pair in scored.what.items()],
    )
    return section_body([], [*shown, rows], [_draw_bins(scored, config, redshift_edges)])


def _draw_bins(scored: Scored, config: BootstrapConfig, redshift_edges: Sequence[float]) -> Picture:
    """Point metrics of all rows in bins of redshift."""
    edges = np.array(redshift_edges or round_edges(scored.truth, 8), np.float64)
    how = replace(config, num_replicates=min(_BIN_REPLICATES, config.num_replicates))
    bin_N = np.searchsorted(edges, scored.truth, side="right") - 1
    with Canvas(4.2 * len(_BINNED), 3.6, columns=len(_BINNED)) as canvas:
        for number, (row, residual_N) in enumerate(scored.residuals.items()):
            color = _COLORS[number % len(_COLORS)]
            style = ("-", "--", ":")[number // len(_COLORS) % 3]
            points = []
            for k, (low, high) in enumerate(pairwise(edges)):
                inside = residual_N[bin_N == k]
                if len(inside) < MIN_BIN_COUNT:
                    continue
                averages = point_averages(inside)
                found = bootstrap(averages, inside, how)
                metrics = {"nmad": estimate_of(nmad(inside), found.nmads, how)}
                for (n, values), means_R in zip(averages.items(), found.means.T, strict=True):
                    metrics[n] = estimate_of(float(values.mean()), means_R, how)
                points.append(((low + high) / 2, metrics))
            for panel, metric in zip(canvas.panels, _BINNED, strict=True):
                scale = 100 if HEADINGS[metric][1] else 1
                x, shown = [center for center, _ in points], [m[metric] for _, m in points]
                y = [scale * e.value for e in shown]
                bars = [
                    [max(0.0, v - scale * e.low) for v, e in zip(y, shown, strict=True)],
                    [max(0.0, scale * e.high - v) for v, e in zip(y, shown, strict=True)],
                ]
                panel.errorbar(
                    x, y, bars, color=color, linestyle=style, marker="o", markersize=3, label=row
                )
        for panel, metric in zip(canvas.panels, _BINNED, strict=True):
            unit = " [%]" if HEADINGS[metric][1] else ""
            panel.set(xlabel="spectroscopic redshift z", ylabel=HEADINGS[metric][0] + unit)
            panel.grid(axis="y")
        canvas.panels[0].legend(loc="upper left")
        return canvas.picture(
            "In bins of redshift",
            alt="NMAD, bias and share of outliers against redshift, a line for each of "
            + ", ".join(scored.residuals),
            caption=f"The same objects in every line; bars: {how.level:.0%} intervals. Bins of "
            f"fewer than {MIN_BIN_COUNT} objects are left out.",
        )
