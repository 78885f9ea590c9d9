"""Figures of a search: its course, its settings side by side, and which of them matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mstrain.evaluation.report.canvas import BLUE, GREY, INK, ORANGE, RED, Canvas, Picture
from mstrain.tune.journal import COMPLETE, FAILED, PRUNED, Trial
from mstrain.tune.space import Dimension, setting_text

# What is worse than so many of the trials would flatten the axis.
_SHOWN_SHARE = 0.9


def draw_history(trials: Sequence[Trial], objective: str) -> Picture | None:
    """Objective by number of the trial, and the best so far; None without a complete trial."""
    done = [trial for trial in trials if trial.value is not None]
    if not done:
        return None
    values = np.array([trial.value for trial in done], np.float64)
    numbers = [trial.number for trial in done]
    pruned = [t for t in trials if t.state == PRUNED and t.reported]
    lasts = [trial.reported[max(trial.reported)] for trial in pruned]
    failed = [trial.number for trial in trials if trial.state == FAILED]
    top = max(float(np.quantile([*values, *lasts], _SHOWN_SHARE)), values[0])
    with Canvas(7.6, 3.6) as canvas:
        (panel,) = canvas.panels
        panel.scatter(
            [t.number for t in pruned], lasts, s=14, color=GREY, marker="x", label="pruned"
        )
        panel.scatter(numbers, values, s=18, color=BLUE, label="complete")
        best = np.minimum.accumulate(values)
        panel.step(numbers, best, where="post", color=ORANGE, label="best so far")
        low = values.min()
        room = 0.05 * (top - low) or 0.05 * abs(low) or 1.0
        panel.set_ylim(low - room, top + room)
        if failed:
            height = np.full(len(failed), low - 0.6 * room)
            panel.scatter(failed, height, s=18, color=RED, marker="v", label="failed")
        panel.set(xlabel="trial", ylabel=f"validation {objective}")
        panel.grid(axis="y")
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return canvas.picture(
            "Course of the search",
            alt=f"{len(done)} complete, {len(pruned)} pruned and {len(failed)} failed trials by "
            f"number; the best reaches {values.min():.4g}",
            caption="Pruned trials stand where they were left. The axis ends where a tenth of the "
            "trials lies above it, unless the first complete one does.",
        )


def draw_coordinates(
    trials: Sequence[Trial], space: Sequence[Dimension], objective: str
) -> Picture | None:
    """A line for each trial through its settings, the best in color; None without a trial."""
    done = [trial for trial in trials if trial.state == COMPLETE and trial.value is not None]
    if not done:
        return None
    order = sorted(done, key=lambda trial: trial.value or 0.0)
    num_best = max(1, len(done) // 10)
    names = [*(dimension.name for dimension in space), f"validation {objective}"]
    values = np.array([trial.value for trial in order], np.float64)
    spread = values.max() - values.min()
    heights = [[_height(d, trial.params[d.name]) for d in space] for trial in order]
    with Canvas(max(5.0, 1.6 * len(names)), 3.8) as canvas:
        (panel,) = canvas.panels
        # The best are drawn last, above the others.
        for rank in range(len(order) - 1, -1, -1):
            is_best = rank < num_best
            last = (values[rank] - values.min()) / spread if spread else 0.5
            panel.plot(
                range(len(names)),
                [*heights[rank], last],
                color=BLUE if is_best else GREY,
                alpha=1.0 if is_best else 0.35,
                linewidth=1.6 if is_best else 0.8,
            )
        ends = [(_end(d, 0), _end(d, -1)) for d in space]
        ends.append((f"{values.min():.4g}", f"{values.max():.4g}"))
        for place, (low, high) in enumerate(ends):
            panel.vlines(place, 0, 1, color=INK, linewidth=0.8)
            panel.text(place, -0.04, low, ha="center", va="top", fontsize=8)
            panel.text(place, 1.04, high, ha="center", va="bottom", fontsize=8)
        panel.set_xticks(range(len(names)), [name.rpartition(".")[2] for name in names])
        panel.set_yticks([])
        panel.set_ylim(-0.14, 1.14)
        panel.tick_params(axis="x", length=0)
        for side in ("left", "bottom"):
            panel.spines[side].set_visible(False)
        return canvas.picture(
            "Settings of the complete trials",
            alt=f"{len(done)} lines through {', '.join(names)}; the best {num_best} in color",
            caption=f"Blue: the best {num_best} of {len(done)}. Axes of log: are logarithmic; "
            "choices stand in the order given.",
        )


def _height(of: Dimension, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1."""
    if of.choices:
        return of.choices.index(value) / (len(of.choices) - 1)
    low, high = of.ends()
    if of.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def _end(of: Dimension, number: int) -> str:
    value = of.ends()[number]
    return f"{value:.4g}" if isinstance(value, float) else setting_text(value)


def draw_importances(importances: Mapping[str, float]) -> Picture | None:
    """Bars of importances, the greatest on top; None where there are none."""
    if not importances:
        return None
    ordered = sorted(importances.items(), key=lambda pair: pair[1])
    with Canvas(6.0, 1.2 + 0.35 * len(ordered)) as canvas:
        (panel,) = canvas.panels
        panel.barh([name for name, _ in ordered], [share for _, share in ordered], color=BLUE)
        panel.set(xlabel="share of the objective's variance", xlim=(0, 1))
        panel.grid(axis="x")
        return canvas.picture(
            "Which settings matter",
            alt="; ".join(f"{name} {share:.0%}" for name, share in reversed(ordered)),
            caption="fANOVA over the complete trials: forests of 32 trees. Pruned trials are left "
            "out, so what the pruner cuts off early counts too little.",
        )
