"""The picture of one position: the cutouts that the network saw, and its density beside them.

It stands alone: `positions` computes without matplotlib, and the report's gallery shows objects
whose redshift is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.stretch import stretch
from msdata.schema import Schema
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.report.canvas import BLUE, GREY, ORANGE, PALE, Canvas
from mstrain.serving.positions import PredictedPosition

_CELL, _GAP = 120, 6
_PAPER, _NO_COVERAGE = 255, 225


def draw_position(found: PredictedPosition, edges: Floats, schema: Schema) -> bytes:
    """A PNG of an object's cutouts, band by band, beside its density.

    Args:
        found: the object.
        edges: float64 (K + 1,), edges of the density's bins.
        schema: bands and pixel scales of the cutouts.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    image, labels = _mosaic(found, schema)
    options = {"width_ratios": [image.shape[1] / image.shape[0], 1.3]}
    with Canvas(11.0, 3.6, columns=2, gridspec_kw=options) as canvas:
        stamps, density = canvas.panels
        stamps.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        for x, y, label in labels:
            stamps.text(x, y, label, fontsize=7, va="top")
        stamps.set_axis_off()
        stamps.set_title(f"{found.ra:.5f} {found.dec:+.5f}  N up, E left")
        _draw_density(density, found, edges)
        return canvas.drawing("png", Software="msdata")


def _mosaic(
    found: PredictedPosition, schema: Schema
) -> tuple[NDArray[np.uint8], list[tuple[int, int, str]]]:
    """One row per survey, one stamp per band, and where their labels stand."""
    surveys = [array for array in schema.arrays if array.bands and len(array.shape) == 3]
    num_columns = max(len(survey.bands) for survey in surveys)
    pitch = (_CELL + 5 * _GAP, _CELL + _GAP)
    mosaic = np.full((len(surveys) * pitch[0], num_columns * pitch[1]), _PAPER, np.uint8)
    labels = []
    for row, survey in enumerate(surveys):
        for column, band in enumerate(survey.bands):
            y, x = row * pitch[0], column * pitch[1]
            # Surveys' rows run from south to north: drawn upwards, north is up and east is left.
            stamp = stretch(found.cutouts[survey.name][column][::-1])
            if is_missing := f"{survey.name}.{band}" in found.missing_bands:
                stamp = np.full((2, 2), _NO_COVERAGE, np.uint8)
            lines, pixels = (np.arange(_CELL) * size // _CELL for size in stamp.shape)
            mosaic[y : y + _CELL, x : x + _CELL] = stamp[np.ix_(lines, pixels)]
            side = survey.shape[1] * (survey.pixel_scale_arcsec or 0)
            size = "no coverage" if is_missing else f'{side:.0f}"'
            labels.append((x, y + _CELL + 2, f"{survey.name} {band}, {size}"))
    return mosaic, labels


def _draw_density(panel: Any, found: PredictedPosition, edges: Floats) -> None:
    said = found.estimates
    panel.axvspan(said["z_q16"], said["z_q84"], color=PALE, label="68 %")
    panel.stairs(found.density, edges, color=BLUE, linewidth=1.2)
    panel.axvline(said["z_mean"], color=ORANGE, linestyle="--", label="mean")
    panel.axvline(said["z_median"], color=GREY, linestyle=":", label="median")
    # The bins that hold all but a hundredth of the probability.
    cdf = np.cumsum(found.density * np.diff(edges))
    inside = np.flatnonzero((cdf > 5e-3) & (cdf < 1 - 5e-3))
    low, high = (edges[inside[0]], edges[inside[-1] + 1]) if len(inside) else (edges[0], edges[-1])
    margin = 0.08 * (high - low) + 0.01
    panel.set(xlim=(low - margin, high + margin), xlabel="redshift z", ylabel="p(z)")
    panel.set_ylim(bottom=0)
    panel.set_title(f"z = {said['z_mean']:.4f} ({said['z_q16']:.4f} to {said['z_q84']:.4f})")
    panel.legend(loc="best")
