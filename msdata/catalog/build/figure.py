"""The figure of a built catalogue: redshift histograms by survey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msdata.errors import MissingPackageError

_BIN_WIDTH = 0.02


def check_figures() -> None:
    """Raises MissingPackageError unless figures can be drawn; before hours of work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "the redshift histogram needs matplotlib: pip install 'msdata[catalog]', or leave it "
            "out with --no-figure"
        ) from error


def draw_redshifts(
    table: pa.Table, surveys: Sequence[str], limits: tuple[float, float], file: IO[bytes]
) -> None:
    """Draws one panel for all objects, stacked by survey, and one with each survey's own shape.

    Args:
        table: with `redshift` and `survey`.
        surveys: names, in the order of the stack.
        limits: of the redshift axis.
        file: open for writing; gets a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_bins = max(1, round((limits[1] - limits[0]) / _BIN_WIDTH))
    edges = np.linspace(*limits, num_bins + 1)
    counts = {
        name: np.histogram(table.filter(pc.equal(table["survey"], name))["redshift"], edges)[0]
        for name in surveys
    }
    below = np.zeros(num_bins)
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    whole, each = figure.subplots(2, 1, sharex=True)
    for name, count in counts.items():
        whole.stairs(below + count, edges, baseline=below, fill=True, label=name)
        below = below + count
    whole.set(ylabel=f"objects a bin of {edges[1] - edges[0]:.2f}")
    whole.legend(fontsize="small", ncols=2)
    for name, count in counts.items():
        if count.sum():
            each.stairs(count / count.max(), edges, label=f"{name} {count.sum():,}")
    each.set(xlabel="redshift", ylabel="share of the survey's fullest bin", xlim=limits)
    each.legend(fontsize="small", ncols=2)
    # The version of matplotlib is no part of the result.
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
