"""The figure of `msdata plan`: hits and epoch time against the number of nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msdata.core.files import whole_file
from msdata.errors import MissingPackageError
from msdata.plan.forecast import TIERS
from msdata.plan.timing import Variant

# Told apart by readers with any colour vision, and in print. Source: Okabe & Ito, "Color Universal
# Design" (2008).
TIER_COLOURS = ("#0072b2", "#56b4e9", "#f0e442", "#d55e00")
_PART_COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#000000", "#cc79a7", "#009e73")
_MARKERS = "osD^vPX"
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def draw_by_nodes(variants: Sequence[Variant], path: Path) -> None:
    """Draw where reads go to, and how long an epoch takes, for several numbers of nodes.

    Args:
        variants: one per number of nodes, ascending.
        path: PNG file to write.

    Raises:
        MissingPackageError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    figure = figure_of(variants)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": "msdata"})


def figure_of(variants: Sequence[Variant]) -> Any:
    """The figure, a matplotlib `Figure` of one panel, or two where rates are known.

    Args:
        variants: one per number of nodes, ascending.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "a figure needs matplotlib: pip install 'msdata[bench]'"
        ) from error
    has_times = any(v.time.epoch_s is not None for v in variants)
    figure = Figure(figsize=(9 if has_times else 5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if has_times else 1, squeeze=False)[0]
    _draw_tiers(panels[0], variants)
    if has_times:
        _draw_times(panels[1], variants)
    names = [f"{v.num_nodes:,}" for v in variants]
    for panel in panels:
        panel.set(xlabel="nodes", xticks=range(len(names)), xticklabels=names)
    return figure


def _draw_tiers(panel: Any, variants: Sequence[Variant]) -> None:
    bottoms = [0.0] * len(variants)
    for number, (tier, colour) in enumerate(zip(TIERS, TIER_COLOURS, strict=True)):
        heights = [100 * float(v.forecast.shares[number]) for v in variants]
        panel.bar(
            range(len(variants)),
            heights,
            bottom=bottoms,
            label=tier,
            color=colour,
            edgecolor="white",
            width=0.8,
        )
        bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
    panel.set(ylabel="reads [%]", ylim=(0, 100), title="where samples come from")
    panel.legend(loc="lower right", fontsize="small")


def _draw_times(panel: Any, variants: Sequence[Variant]) -> None:
    parts = variants[0].time.busy_s
    longest_s = max(v.time.busy_s[part] or 0.0 for v in variants for part in parts)
    unit, unit_s = next((u for u in _UNITS if longest_s >= 2 * u[1]), _UNITS[-1])
    for number, part in enumerate(parts):
        # A logarithmic axis has no place for a part with nothing to do.
        times = [(v.time.busy_s[part] or math.nan) / unit_s for v in variants]
        panel.plot(
            range(len(variants)),
            times,
            marker=_MARKERS[number % len(_MARKERS)],
            color=_PART_COLOURS[number % len(_PART_COLOURS)],
            label=part,
        )
    panel.set(ylabel=f"{unit} per epoch", yscale="log", title="what an epoch waits for")
    panel.legend(fontsize="small")
