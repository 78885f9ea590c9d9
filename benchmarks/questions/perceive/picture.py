"""The headline: heat maps of bands against redshift, breaks over them, beside the information.

It stands alone as the only file of the study that draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from msdata.mock.filters import find_crossings, load_filters
from msdata.mock.photometry import BANDS
from mstrain.evaluation.report.canvas import COLOUR_MAP, Canvas
from mstrain.perception.section import draw_tracks


def draw_headline(result: Mapping[str, Any]) -> bytes:
    """The figure as SVG.

    Args:
        result: of the study.
    """
    maps = {name: np.array(found, np.float64) for name, found in result["maps"].items()}
    edges = np.asarray(result["design"]["redshift_edges"], np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        salience = np.log10(maps["salience"])
    panels = (
        ("log10 of salience V", np.where(np.isfinite(salience), salience, np.nan), None),
        ("perceptual score P", maps["score"], None),
        ("information lost with the band", maps["fisher"], (0.0, 0.6)),
    )
    crossings = find_crossings(load_filters(), float(edges[-1]))
    rows = np.arange(len(BANDS) + 1) - 0.5
    with Canvas(12.6, 4.4, columns=3, sharey=True) as canvas:
        for panel, (title, values, limits) in zip(canvas.panels, panels, strict=True):
            low, high = limits or (None, None)
            shown = np.ma.masked_invalid(values)
            drawn = panel.pcolormesh(
                edges, rows, shown, cmap=COLOUR_MAP, vmin=low, vmax=high, rasterized=True
            )
            canvas.figure.colorbar(drawn, ax=panel, pad=0.01)
            panel.set(title=title, xlabel="redshift", xlim=(edges[0], edges[-1]))
            panel.set(ylim=(len(BANDS) - 0.5, -0.5), yticks=range(len(BANDS)), yticklabels=BANDS)
            draw_tracks(panel, BANDS, crossings)
        handles, labels = canvas.panels[0].get_legend_handles_labels()
        canvas.figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        svg = canvas.picture("", alt="", caption="").svg
    head, _, tail = svg.partition(b"<svg ")
    opening, _, rest = tail.partition(b">")
    title = b"<title>Bands against redshift</title>"
    return head + b"<svg " + opening + b">\n " + title + rest
