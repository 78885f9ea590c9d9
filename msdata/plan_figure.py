"""The figure of `msdata plan`: hits and epoch time against the number of nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from msdata.atomic_file import whole_file
from msdata.errors import MissingPackageError
from msdata.plan.forecast import TIERS
from msdata.plan.timing import Variant


def draw_by_nodes(variants: Sequence[Variant], path: Path) -> None:
    """Draw where reads go to, and how long an epoch takes, for several numbers of nodes.

    Args:
        variants: one a number of nodes, ascending.
        path: PNG file to write.

    Raises:
        MissingPackageError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "a figure needs matplotlib: pip install 'msdata[bench]'"
        ) from error
    numbers = [v.num_nodes for v in variants]
    has_times = any(v.time.epoch_s is not None for v in variants)
    figure = Figure(figsize=(9 if has_times else 5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if has_times else 1, squeeze=False)[0]
    shares = [[100 * float(v.forecast.shares[t]) for v in variants] for t in range(len(TIERS))]
    colours = ("#1b7837", "#7fbf7b", "#2166ac", "#b2182b")
    panels[0].stackplot(numbers, *shares, labels=TIERS, colors=colours)
    panels[0].set(ylabel="reads [%]", ylim=(0, 100), title="where samples come from")
    panels[0].legend(loc="lower right", fontsize="small")
    if has_times:
        for part in variants[0].time.busy_s:
            # A logarithmic axis has no place for a part with nothing to do.
            hours = [v.time.busy_s[part] / 3600 or math.nan for v in variants]
            panels[1].plot(numbers, hours, marker="o", label=part)
        panels[1].set(ylabel="hours an epoch", yscale="log", title="what an epoch waits for")
        panels[1].legend(fontsize="small")
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set(xlabel="nodes", xticks=numbers, xticklabels=[str(n) for n in numbers])
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": "msdata"})
