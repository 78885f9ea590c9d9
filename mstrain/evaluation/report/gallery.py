"""The gallery: densities of some objects beside what the telescopes saw.

Arrays with bands are survey images: rows from south to north, columns from east to west. They are
drawn with north up and east left, which a compass marks; a bar marks their scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.stretch import MIN_WHITE_SIGMA, SOFTENING_SIGMA, sky_and_noise, stretch
from msdata.schema import Schema, Survey
from mstrain.evaluation.report.canvas import BLUE, INK, ORANGE, PALE, Canvas, Picture
from mstrain.evaluation.report.content import Content, GalleryObject

_MAX_STAMPS = 3
# The usual red, green and blue where a survey has them: they are deeper than bands beyond.
_USUAL_COLORS = ("i", "r", "g")
# Wavelengths in Angstrom of bands by their usual names: their order alone is used.
_WAVELENGTHS = {
    **{"FUV": 1528, "NUV": 2271, "u": 3551, "g": 4866, "r": 6215, "i": 7545, "VIS": 7150},
    **{"z": 8679, "Z": 8770, "y": 9633, "Y": 10_200, "J": 12_500, "H": 16_500, "K": 22_000},
    **{"F090W": 9020, "F115W": 11_540, "F150W": 15_010, "F200W": 19_880, "F277W": 27_760},
    **{
        "F356W": 35_650,
        "F444W": 44_040,
        "Ks": 21_500,
        "W1": 33_526,
        "W2": 46_028,
        "W3": 115_600,
        "W4": 220_900,
    },
}
# The white of a composite, at least, above the sky in sigma; the sky is a sigma above black.
_BLACK_SIGMA = 1.0
# Lengths of scale bars, and the longest bar as a share of a stamp.
_MARK_COLOR = "#ffe08a"
_BARS_ARCSEC = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_LONGEST_BAR = 0.45


def draw_gallery(objects: Sequence[GalleryObject], content: Content) -> list[Picture]:
    """One picture per object."""
    return [_draw_object(found, content) for found in objects]


def _draw_object(found: GalleryObject, content: Content) -> Picture:
    values = found.values
    with object_canvas(found.sample, content.schema) as canvas:
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Stamp:
    """A picture of an image array.

    Attributes:
        label: the array and its side.
        colors: what is red, green and blue; or the name of the one band.
        image: uint8 (H, W) or (H, W, 3), the first row on top.
        is_on_sky: north is up and east is left.
        pixel_scale_arcsec: None where it is not known.
    """

    label: str
    colors: str
    image: NDArray[np.uint8]
    is_on_sky: bool
    pixel_scale_arcsec: float | None


@contextmanager
def object_canvas(sample: Mapping[str, Any], schema: Schema) -> Iterator[Canvas]:
    """A canvas with pictures of an object's image arrays, and an empty panel at the right."""
    stamps = make_stamps(sample, schema)
    options = {"width_ratios": [*(1 for _ in stamps), 2.6]}
    width, columns = 1.55 * len(stamps) + 4.4, len(stamps) + 1
    with Canvas(width, 1.95, columns=columns, gridspec_kw=options) as canvas:
        for panel, stamp in zip(canvas.panels, stamps, strict=False):
            _draw_stamp(panel, stamp)
        yield canvas


def make_stamps(sample: Mapping[str, Any], schema: Schema) -> list[Stamp]:
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
        found.append(make_stamp(survey, image[:, ::-1] if survey.bands else image))
    return found[:_MAX_STAMPS]


def make_stamp(survey: Survey, image_BHW: NDArray[Any]) -> Stamp:
    """The picture of an image: in colors where two bands or more have known wavelengths.

    Args:
        survey: its array.
        image_BHW: (B, H, W), the first row on top.
    """
    height = image_BHW.shape[1] * (survey.pixel_scale_arcsec or 0)
    side = f', {height:.0f}"' if height else ""
    chosen = color_bands(survey.bands)
    if chosen:
        image = composite([image_BHW[band] for band in chosen])
        names = [survey.bands[band] for band in chosen]
        name = f"R {names[0]}, G {names[1] if len(names) > 2 else 'mean'}, B {names[-1]}"
    else:
        image, name = stretch(image_BHW[0]), survey.bands[0] if survey.bands else ""
    return Stamp(
        label=f"{survey.name}{side}",
        colors=name,
        image=image,
        is_on_sky=bool(survey.bands),
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
    )


def color_bands(bands: Sequence[str]) -> tuple[int, ...]:
    """Which bands are red, green and blue: the longest wavelength is red.

    Args:
        bands: of an array.

    Returns:
        Places of i, r and g where they are there; else of the longest, the one nearest to the
        geometric mean, and the shortest wavelength; two places where two are known, else none.
    """
    if all(band in bands for band in _USUAL_COLORS):
        return tuple(bands.index(band) for band in _USUAL_COLORS)
    known = sorted(
        (number for number, band in enumerate(bands) if band in _WAVELENGTHS),
        key=lambda number: -_WAVELENGTHS[bands[number]],
    )
    if len(known) < 3:
        return tuple(known) if len(known) == 2 else ()
    waves = [np.log(_WAVELENGTHS[bands[number]]) for number in known]
    middle = int(np.argmin(np.abs(np.array(waves[1:-1]) - (waves[0] + waves[-1]) / 2))) + 1
    return known[0], known[middle], known[-1]


def composite(channels: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """A picture in false colors whose hue does not depend on brightness.

    Args:
        channels: red, green and blue, (H, W) of real numbers each; of two, green is their mean.

    Returns:
        uint8 (H, W, 3). Channels count in sigma of their noise; pixels that are not finite have
        the sky's value.

    Source: Lupton et al. 2004, PASP 116, 133: asinh of the mean of the channels.
    """
    scaled = []
    for channel in channels:
        values = channel.astype(np.float64)
        finite = values[np.isfinite(values)]
        sky, sigma = sky_and_noise(finite) if finite.size else (0.0, 0.0)
        values = (np.where(np.isfinite(values), values, sky) - sky) / (sigma or 1.0)
        scaled.append(np.maximum(values + _BLACK_SIGMA, 0))
    if len(scaled) == 2:
        scaled.insert(1, (scaled[0] + scaled[1]) / 2)
    color_HW3 = np.stack(scaled, axis=-1)
    mean_HW1 = color_HW3.mean(axis=-1, keepdims=True)
    white = max(MIN_WHITE_SIGMA, float(np.percentile(mean_HW1, 99.8)))
    gain = np.arcsinh(mean_HW1 / SOFTENING_SIGMA) / np.arcsinh(white / SOFTENING_SIGMA)
    color_HW3 *= np.divide(gain, mean_HW1, out=np.zeros_like(gain), where=mean_HW1 > 0)
    # Too bright for the page: scaled as a whole, so that the hue stays.
    color_HW3 /= np.maximum(color_HW3.max(axis=-1, keepdims=True), 1)
    return (color_HW3 * 255).astype(np.uint8)


def _draw_stamp(panel: Any, stamp: Stamp) -> None:
    panel.imshow(stamp.image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    panel.set_title(stamp.label, fontsize=8, fontweight="normal")
    panel.set_axis_off()
    height, width = stamp.image.shape[:2]
    words = {"color": _MARK_COLOR, "fontsize": 6}
    panel.text(0.05 * width, 0.04 * height, stamp.colors, va="top", **words)
    style = {"color": _MARK_COLOR, "linewidth": 1.1, "solid_capstyle": "butt"}
    if stamp.is_on_sky:
        x, y, length = 0.94 * width, 0.94 * height, 0.16 * min(height, width)
        panel.plot([x, x, x - length], [y - length, y, y], **style)
        for letter, place in (("N", (x, y - 1.35 * length)), ("E", (x - 1.35 * length, y))):
            panel.text(*place, letter, ha="center", va="center", **words)
    length = bar_arcsec(width * (stamp.pixel_scale_arcsec or 0))
    if length:
        x, y = 0.05 * width, 0.94 * height
        panel.plot([x, x + length / (stamp.pixel_scale_arcsec or 1)], [y, y], **style)
        panel.text(x, y - 0.04 * height, f'{length:g}"', color=_MARK_COLOR, fontsize=6, va="bottom")


def bar_arcsec(width_arcsec: float) -> float:
    """Length of the scale bar of a stamp: a round number; 0 where none fits."""
    return max((n for n in _BARS_ARCSEC if n <= _LONGEST_BAR * width_arcsec), default=0.0)
