"""The headline: heat maps of bands against redshift, breaks over them, beside the information.

It stands alone as the only file of the study that draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.questions.perceive.trainings import EARLY, WITHIN
from msdata.mock.filters import find_crossings, load_filters
from msdata.mock.photometry import BANDS
from mstrain.evaluation.report.canvas import COLOUR_MAP, Canvas
from mstrain.perception.section import draw_tracks


def _map(result: Mapping[str, Any], name: str, measure: str) -> Any:
    return np.array(result["exchanges"][name]["maps"][measure], np.float64)


def draw_headline(result: Mapping[str, Any]) -> bytes:
    """The figure as SVG.

    Args:
        result: of the study.
    """
    edges = np.asarray(result["design"]["redshift_edges"], np.float64)
    panels = [("information lost with the band", _map(result, EARLY, "fisher"), (0.0, 0.6))]
    for name, partners in ((EARLY, "all"), (WITHIN, "near in r")):
        with np.errstate(divide="ignore", invalid="ignore"):
            salience = np.log10(_map(result, name, "salience"))
        salience = np.where(np.isfinite(salience), salience, np.nan)
        panels.append((f"log10 of salience V, partners {partners}", salience, None))
        panels.append((f"score P, partners {partners}", _map(result, name, "score"), None))
    crossings = find_crossings(load_filters(), float(edges[-1]))
    rows = np.arange(len(BANDS) + 1) - 0.5
    with Canvas(12.6, 7.6, rows=2, columns=3, sharey=True) as canvas:
        # The yardstick on the left of the upper row; the place below it is left for the legend.
        *places, empty = [canvas.panels[n] for n in (0, 1, 2, 4, 5, 3)]
        empty.set_axis_off()
        for panel, (title, values, limits) in zip(places, panels, strict=True):
            low, high = limits or (None, None)
            shown = np.ma.masked_invalid(values)
            drawn = panel.pcolormesh(
                edges, rows, shown, cmap=COLOUR_MAP, vmin=low, vmax=high, rasterized=True
            )
            canvas.figure.colorbar(drawn, ax=panel, pad=0.01)
            panel.set(title=title, xlabel="redshift", xlim=(edges[0], edges[-1]))
            panel.set(ylim=(len(BANDS) - 0.5, -0.5), yticks=range(len(BANDS)), yticklabels=BANDS)
            draw_tracks(panel, BANDS, crossings)
        places[3].tick_params(labelleft=True)
        handles, labels = canvas.panels[0].get_legend_handles_labels()
        # One of the lines is white.
        box = {"frameon": True, "facecolor": "#8fa3b3", "framealpha": 1}
        title = "a feature lies within the band"
        empty.legend(handles, labels, loc="center", title=title, **box)
        svg = canvas.picture("", alt="", caption="").svg
    head, _, tail = svg.partition(b"<svg ")
    opening, _, rest = tail.partition(b">")
    name = b"<title>Bands against redshift</title>"
    return head + b"<svg " + opening + b">\n " + name + rest
