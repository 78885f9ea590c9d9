"""Figures of point estimates: against the truth, and by redshift and magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mstrain.evaluation.metrics.binning import Binning
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import outlier_name
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.report.canvas import BLUE, COLOUR_MAP, GREY, INK, RED, Canvas, Picture
from mstrain.evaluation.report.content import Content
from mstrain.models.target import REDSHIFT_TARGET, Target

_MAX_CELLS = 90
# A median of fewer objects jumps about.
_MIN_RUNNING_COUNT = 8


def draw_redshifts(content: Content) -> Picture:
    """Estimate against truth, as counts in cells."""
    truth, estimate, target = content.known("redshift"), content.known("z_mean"), content.target
    low, high = min(0.0, truth.min()), _round_up(np.quantile(np.append(truth, estimate), 0.999))
    if not target.is_redshift:
        low, high = float(content.edges[0]), float(content.edges[-1])
    with Canvas(5.6, 4.9) as canvas:
        (panel,) = canvas.panels
        # Few objects need large cells to be seen as more than dust.
        num_cells = int(np.clip(1.5 * len(truth) ** 0.5, 30, _MAX_CELLS))
        cells = np.linspace(low, high, num_cells + 1)
        _draw_counts(canvas, panel, (truth, estimate), (cells, cells))
        line = np.array([low, high])
        panel.plot(line, line, color=INK, linewidth=0.9)
        for threshold, style in zip(target.thresholds, ("--", ":"), strict=False):
            for sign in (-1, 1):
                edge = line + sign * threshold * (1 + line)
                label = f"|d| = {threshold:g}" if sign > 0 else None
                panel.plot(line, edge, style, color=RED, linewidth=1.1, label=label)
        panel.set_xlabel(target.truth_label)
        panel.set_ylabel(target.estimate_label)
        panel.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        if target.thresholds:
            panel.legend(loc="upper left")
        outside = int(((truth > high) | (estimate > high)).sum())
        return canvas.picture(
            "Estimate against truth",
            alt=f"Two-dimensional histogram of {target.estimate_label} against {target.truth_label}"
            f" of {len(truth):,} objects, with the line of equality.",
            caption="Objects in each cell. Solid: equality"
            + (
                "; dashed and dotted: the limits beyond which an object counts as an outlier"
                if target.thresholds
                else ""
            )
            + (f"; objects outside of the picture: {outside:,}." if outside else "."),
        )


def draw_residuals(content: Content, magnitude: Binning | None) -> Picture:
    """Scaled residuals against redshift and, where there is one, magnitude."""
    truth = content.known("redshift")
    residual = scaled_residual(content.known("z_mean"), truth, content.target)
    axes = [(content.target.truth_label, truth)]
    if magnitude is not None and magnitude.column is not None:
        axes.append((f"{magnitude.column} [mag]", content.known(magnitude.column)))
    limit = 1.3 * float(np.quantile(np.abs(residual), 0.99))
    is_redshift = content.target.is_redshift
    limit = _round_up(float(np.clip(limit, 0.06, 1.0))) if is_redshift else limit or 1.0
    with Canvas(4.9 * len(axes), 3.6, columns=len(axes), sharey=True) as canvas:
        for panel, (label, values) in zip(canvas.panels, axes, strict=True):
            is_finite = np.isfinite(values)
            _draw_residual_panel(canvas, panel, values[is_finite], residual[is_finite], limit)
            panel.set(xlabel=label, ylim=(-limit, limit))
        canvas.panels[0].set_ylabel(f"d = {content.target.residual_text}")
        canvas.panels[0].legend(loc="upper right", ncols=2)
        outside = float((np.abs(residual) > limit).mean())
        return canvas.picture(
            "Residuals",
            alt="Two-dimensional histograms of the scaled residual against "
            + " and against ".join(label for label, _ in axes)
            + ", with running median and 68 % range.",
            caption="Lines: median and the range from the 16th to the 84th percentile of objects "
            f"side by side. {outside:.1%} of the objects lie above or below the picture.",
        )


def _draw_residual_panel(
    canvas: Canvas, panel: Any, values: Floats, residual: Floats, limit: float
) -> None:
    # A few extreme objects must not squeeze all others together.
    low, high = np.quantile(values, (0.001, 0.999)) if len(values) else (0.0, 1.0)
    high = high if high > low else low + 1
    cells = (np.linspace(low, high, 70), np.linspace(-limit, limit, 61))
    _draw_counts(canvas, panel, (values, residual), cells)
    panel.axhline(0, color=GREY, linewidth=0.8)
    centers, bands = _running(values, residual)
    panel.plot(centers, bands[:, 1], color=RED, label="median")
    for column, label in ((0, "16 %, 84 %"), (2, None)):
        panel.plot(centers, bands[:, column], "--", color=RED, linewidth=1.1, label=label)


def _running(values: Floats, residual: Floats) -> tuple[Floats, Floats]:
    """Quantiles of the residual in bins of equally many objects."""
    num_bins = int(np.clip(len(values) // 40, 4, 25))
    parts = np.array_split(np.argsort(values, kind="stable"), num_bins)
    parts = [part for part in parts if len(part) >= _MIN_RUNNING_COUNT]
    centers = np.array([np.median(values[part]) for part in parts])
    bands = np.array([np.quantile(residual[part], (0.16, 0.5, 0.84)) for part in parts])
    return centers, bands.reshape(-1, 3)


def draw_bins(binnings: Sequence[Binning], target: Target = REDSHIFT_TARGET) -> Picture | None:
    """Bias, NMAD and eta or RMSE in bins, with intervals; None where there are none."""
    shown = [b for b in binnings if any(one.metrics for one in b.bins)]
    if not shown:
        return None
    last, told = ("rmse", "RMSE", 1.0), "RMSE"
    if target.thresholds:
        first = target.thresholds[0]
        last, told = (outlier_name(first), f"η({first:g}) [%]", 100.0), "outliers"
    metrics = (("bias", "bias", 1.0), ("nmad", "NMAD", 1.0), last)
    with Canvas(4.2 * len(shown) + 1, 5.6, rows=3, columns=len(shown), sharex="col") as canvas:
        for row, (name, label, scale) in enumerate(metrics):
            for column, binning in enumerate(shown):
                panel = canvas.panels[row * len(shown) + column]
                _draw_bin_panel(panel, binning, name, scale)
                if row == 0:
                    panel.axhline(0, color=GREY, linewidth=0.8)
                else:
                    panel.set_ylim(bottom=0)
                if column == 0:
                    panel.set_ylabel(label)
                if row == len(metrics) - 1:
                    panel.set_xlabel(_axis_label(binning, target))
        names = " and ".join(b.name for b in shown)
        return canvas.picture(
            f"Bias, NMAD and {told} by {names}",
            alt=f"Bias, NMAD and {told} in bins of {names}, with intervals.",
            caption="Points: metrics of the objects in a bin; vertical bars: bootstrap intervals; "
            "horizontal bars: the bins. The numbers stand in the tables below.",
        )


def _draw_bin_panel(panel: Any, binning: Binning, name: str, scale: float) -> None:
    for found in binning.bins:
        if not found.metrics:
            continue
        metric = found.metrics[name]
        center = (found.low + found.high) / 2
        panel.plot([center, center], [scale * metric.low, scale * metric.high], color=BLUE)
        panel.plot([found.low, found.high], [scale * metric.value] * 2, color=BLUE, linewidth=0.9)
        panel.plot(center, scale * metric.value, "o", color=BLUE, markersize=4)
    panel.grid(visible=True, axis="y")


def _axis_label(binning: Binning, target: Target) -> str:
    if binning.name == target.noun:
        return target.truth_label
    return f"{binning.column} [mag]" if binning.name == "magnitude" else str(binning.column)


def _draw_counts(
    canvas: Canvas, panel: Any, points: tuple[Floats, Floats], cells: tuple[Floats, Floats]
) -> None:
    """A two-dimensional histogram; empty cells stay white."""
    counts, _, _ = np.histogram2d(*points, bins=cells)
    shown = np.ma.masked_equal(counts.T, 0)
    top = max(2.0, float(counts.max()))
    mesh = panel.pcolormesh(
        *cells, shown, norm="log", cmap=COLOUR_MAP, vmin=1, vmax=top, rasterized=True
    )
    mesh.set_clim(1, top)
    ticks = [f * 10.0**power for power in range(9) for f in (1, 2, 5) if f * 10.0**power <= top]
    bar = canvas.figure.colorbar(
        mesh, ax=panel, label="objects", fraction=0.046, pad=0.02, ticks=ticks, format="{x:,g}"
    )
    bar.minorticks_off()


def _round_up(value: float) -> float:
    """The next number with one digit after the first."""
    step = 10.0 ** np.floor(np.log10(max(value, 1e-3))) / 10
    return float(np.ceil(value / step) * step)
