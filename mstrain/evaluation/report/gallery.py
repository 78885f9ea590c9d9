"""The gallery: densities of some objects beside what the telescopes saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.stretch import stretch
from msdata.schema import Schema, Survey
from mstrain.evaluation.report.canvas import BLUE, INK, ORANGE, PALE, Canvas, Picture
from mstrain.evaluation.report.content import Content, GalleryObject

_MAX_STAMPS = 3
# Red, green and blue of a picture in false colors: the longest of three wavelengths is red.
_COLORS = ("i", "r", "g")


def draw_gallery(objects: Sequence[GalleryObject], content: Content) -> list[Picture]:
    """One picture per object."""
    return [_draw_object(found, content) for found in objects]


def _draw_object(found: GalleryObject, content: Content) -> Picture:
    stamps = make_stamps(found.sample, content.schema)
    values = found.values
    options = {"width_ratios": [*(1 for _ in stamps), 2.6]}
    width, columns = 1.55 * len(stamps) + 4.4, len(stamps) + 1
    with Canvas(width, 1.95, columns=columns, gridspec_kw=options) as canvas:
        draw_stamps(canvas.panels, stamps)
        _draw_density(canvas.panels[-1], found, content)
        truth, target = float(values["redshift"]), content.target
        return canvas.picture(
            f"{values['sample_id']}: "
            + (found.kind or f"{1 - found.place:.0%} of the objects have a larger CRPS"),
            alt=f"Cutouts of object {values['sample_id']} and its predicted density; "
            f"{target.truth_words} {truth:.4f}, predicted mean {values['z_mean']:.4f}.",
            caption=f"{target.symbol} = {truth:.4f}, predicted {values['z_mean']:.4f} "
            f"(68 %: {values['z_q16']:.4f} to {values['z_q84']:.4f}), CRPS {values['crps']:.4f}, "
            f"PIT {values['pit']:.3f}",
        )


def _draw_density(panel: Any, found: GalleryObject, content: Content) -> None:
    values, edges, target = found.values, content.edges, content.target
    truth = float(values["redshift"])
    panel.axvspan(values["z_q16"], values["z_q84"], color=PALE, label="68 %")
    panel.stairs(found.density, edges, color=BLUE, linewidth=1.2)
    panel.axvline(truth, color=INK, linewidth=1.2, label=target.symbol)
    panel.axvline(values["z_mean"], color=ORANGE, linewidth=1.2, linestyle="--", label="mean")
    # The bins that hold all but a hundredth of the probability, and the truth.
    cdf = np.cumsum(found.density * np.diff(edges))
    inside = edges[:-1][(cdf > 5e-3) & (cdf < 1 - 5e-3)]
    low, high = (inside.min(), inside.max()) if len(inside) else (edges[0], edges[-1])
    low, high = min(low, truth), max(high, truth)
    least = 0.01 if target.is_redshift else (edges[-1] - edges[0]) / 100
    margin = 0.08 * (high - low) + least
    panel.set(xlim=(low - margin, high + margin), xlabel=target.axis_label)
    panel.set(ylabel=f"p({target.symbol})")
    panel.set_ylim(bottom=0)
    panel.legend(loc="best", fontsize=7, handlelength=1.2)


def draw_stamps(panels: Sequence[Any], stamps: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
    """Draws pictures from `make_stamps` into the first panels."""
    for panel, (label, image) in zip(panels, stamps, strict=False):
        panel.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panel.set_title(label, fontsize=8, fontweight="normal")
        panel.set_axis_off()


def make_stamps(sample: Mapping[str, Any], schema: Schema) -> list[tuple[str, NDArray[np.uint8]]]:
    """A gray or color picture of each image array, at most three."""
    found = []
    for survey in schema.arrays:
        array = np.asarray(sample[survey.name])
        if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
            continue
        image = array if array.ndim == 3 else array[None]
        if survey.has_bands_last:
            image = np.moveaxis(image, -1, 0)
        # Surveys' rows run from south to north: drawn upwards, north is up and east is left.
        found.append(_stamp(survey, image[:, ::-1] if survey.bands else image))
    return found[:_MAX_STAMPS]


def _stamp(survey: Survey, image_BHW: NDArray[Any]) -> tuple[str, NDArray[np.uint8]]:
    height = image_BHW.shape[1] * (survey.pixel_scale_arcsec or 0)
    side = f', {height:.0f}"' if height else ""
    if all(band in survey.bands for band in _COLORS):
        bands = [survey.bands.index(band) for band in _COLORS]
        colors = np.stack([stretch(image_BHW[band]) for band in bands], axis=-1)
        return f"{survey.name} {''.join(_COLORS)}{side}", colors
    name = f" {survey.bands[0]}" if survey.bands else ""
    return f"{survey.name}{name}{side}", stretch(image_BHW[0])
