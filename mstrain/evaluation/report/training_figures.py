"""Figures of the training: learning curves, throughput, cache hits against forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.report.canvas import BLUE, GREEN, GREY, ORANGE, RED, Canvas, Picture

Lines = Sequence[Mapping[str, Any]]
_NOTE: Mapping[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 8.5}


def of_kind(journal: Lines, kind: str) -> list[Mapping[str, Any]]:
    """Lines of the journal of one kind, "step" or "epoch"."""
    return [line for line in journal if line.get("kind") == kind]


def column(lines: Lines, name: str) -> Floats:
    """A value of each line, NaN where there is none."""
    found = [line.get(name) for line in lines]
    return np.array([np.nan if v is None else float(v) for v in found], np.float64)


def draw_learning(journal: Lines) -> Picture | None:
    """Loss against epochs; None for a run without a whole epoch."""
    epochs, steps = of_kind(journal, "epoch"), of_kind(journal, "step")
    if not epochs:
        return None
    with Canvas(6.2, 3.4) as canvas:
        (panel,) = canvas.panels
        ends = column(epochs, "epoch") + 1
        if steps:
            # A step's place among the epochs, by the steps at which epochs ended.
            at = np.interp(
                column(steps, "step"),
                np.append(0, column(epochs, "step")),
                np.append(0, ends),
            )
            panel.plot(at, column(steps, "loss"), color=BLUE, alpha=0.3, linewidth=1)
        marker = "o" if len(ends) <= 30 else None
        style = {"marker": marker, "markersize": 3.5}
        panel.plot(ends, column(epochs, "loss"), color=BLUE, label="training", **style)
        validation = column(epochs, "validation_loss")
        if np.isfinite(validation).any():
            panel.plot(ends, validation, color=ORANGE, label="validation", **style)
            best = int(np.nanargmin(validation))
            panel.axvline(ends[best], color=GREY, linewidth=0.8, linestyle=":")
            place = {"xycoords": ("data", "axes fraction"), "xytext": (-4, 4)}
            panel.annotate(f"best: epoch {ends[best]:.0f}", (ends[best], 0), **place, **_NOTE)
        panel.set(xlabel="epoch", ylabel="cross-entropy [nat]", xlim=(0, 1.02 * ends[-1]))
        _count_epochs(panel)
        panel.grid(visible=True, axis="y")
        panel.legend(loc="upper right")
        return canvas.picture(
            "Learning curves",
            alt="Training and validation loss against the epoch.",
            caption="Loss of each epoch; faint: of the steps within. The training loss is that of "
            "augmented samples under the weights of the moment, the validation loss that of the "
            "averaged weights, where the run averages them.",
        )


def draw_throughput(journal: Lines) -> Picture | None:
    """Samples a second and the share of time waited for data; None without whole epochs."""
    epochs = of_kind(journal, "epoch")
    rate, wait = column(epochs, "samples_per_s"), column(epochs, "data_wait_fraction")
    if not (rate > 0).any():
        return None
    ends = column(epochs, "epoch") + 1
    with Canvas(9.6, 2.9, columns=2) as canvas:
        left, right = canvas.panels
        left.plot(ends, np.where(rate > 0, rate, np.nan), color=BLUE, marker="o", markersize=3)
        left.set(xlabel="epoch", ylabel="samples/s", title="Throughput of training")
        right.plot(ends, 100 * wait, color=RED, marker="o", markersize=3)
        right.axhline(2, color=GREY, linewidth=0.8, linestyle="--")
        place = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 2)}
        right.annotate("2 %", (1, 2), **place, **_NOTE)
        right.set(xlabel="epoch", ylabel="of the time [%]", title="Waiting for data")
        for panel in (left, right):
            panel.grid(visible=True, axis="y")
            _count_epochs(panel)
        left.set_ylim(0, 1.12 * float(np.nanmax(rate)))
        right.set_ylim(0, max(3.0, 1.15 * 100 * float(np.nanmax(wait))))
        return canvas.picture(
            "Throughput",
            alt="Samples a second, and the share of the time that training waited for data, "
            "against the epoch.",
            caption="All ranks together. Up to 2 % of waiting the data path does not slow the "
            "training.",
        )


def draw_hits(journal: Lines) -> Picture | None:
    """Cache hits against the forecast; None for a run without a cache."""
    epochs = of_kind(journal, "epoch")
    found, forecast = column(epochs, "hit_rate"), column(epochs, "forecast_hit_rate")
    if not np.isfinite(found).any():
        return None
    ends = column(epochs, "epoch") + 1
    with Canvas(6.2, 2.9) as canvas:
        (panel,) = canvas.panels
        panel.plot(ends, 100 * forecast, color=GREEN, linewidth=5, alpha=0.35, label="forecast")
        panel.plot(ends, 100 * found, color=BLUE, marker="o", markersize=3, label="measured")
        panel.set(xlabel="epoch", ylabel="samples not from storage [%]", ylim=(-2, 102))
        panel.grid(visible=True, axis="y")
        _count_epochs(panel)
        panel.legend(loc="best")
        # While the cache fills, what comes from it depends on who was faster.
        apart = np.abs(found - forecast)[1:]
        largest = float(np.nanmax(apart)) if np.isfinite(apart).any() else None
        told = "" if largest is None else f" Largest difference after: {100 * largest:.2g} points."
        return canvas.picture(
            "Cache hits against forecast",
            alt="Share of samples that did not come from storage, measured and forecast, against "
            "the epoch.",
            caption="Samples from this node's memory or SSD, or from peers. The forecast counts "
            f"the first epoch, in which the cache fills, as reads from storage.{told}",
        )


def _count_epochs(panel: Any) -> None:
    """Ticks at whole epochs only."""
    panel.xaxis.get_major_locator().set_params(integer=True)
