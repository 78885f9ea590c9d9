"""Sections of the sky: where the errors are, and which spectroscopic survey has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Split
from mstrain.evaluation.bin_by import is_label, make_groupings
from mstrain.evaluation.metrics.binning import metrics_inside
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig, nmad
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import (
    COVERAGE_LEVELS,
    Columns,
    coverage_name,
    point_metrics,
)
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.report.canvas import COLOUR_MAP, Canvas, Picture
from mstrain.evaluation.report.content import Section
from mstrain.evaluation.report.wording import HEADINGS, TextTable, estimate_cells, printable
from mstrain.models.target import REDSHIFT_TARGET, Target

SURVEY_COLUMN = "survey"
# Cells of equal area: right ascension by the sine of declination, 15 by 10 degrees at the equator.
_NUM_CELLS = (24, 12)
# Objects of a cell that has an NMAD.
_MIN_COUNT = 10
_COVERAGE = coverage_name(COVERAGE_LEVELS[0])
# Characters of a survey's name.
_MAX_LABEL = 40


def sky_section(
    columns: Columns,
    positions: Floats | None,
    split: Split,
    config: BootstrapConfig,
    target: Target = REDSHIFT_TARGET,
) -> list[Section]:
    """Maps of the sky and a row per spectroscopic survey, as far as the index has them.

    Args:
        columns: the predictions, (N,) each.
        positions: float64 (N, 2), right ascension and declination in degrees.
        split: whose index.
        config: how intervals are made.
        target: what the network tells.

    Returns:
        The section; nothing where the index has neither positions nor surveys.
    """
    truth_N = np.asarray(columns["redshift"], np.float64)
    residual_N = scaled_residual(np.asarray(columns["z_mean"], np.float64), truth_N, target)
    notes: list[str] = []
    pictures: list[Picture] = []
    tables: list[TextTable] = []
    if positions is not None:
        is_shown_N = np.isfinite(residual_N) & possible_positions(positions)
        left_out = int((np.isfinite(residual_N) & ~is_shown_N).sum())
        if left_out:
            notes.append(f"{left_out:,} objects without a possible position are not on the maps.")
        if is_shown_N.any():
            pictures.append(draw_sky(positions[is_shown_N], residual_N[is_shown_N]))
    if SURVEY_COLUMN in split.dataset.columns and is_label(split, SURVEY_COLUMN):
        tables.append(survey_table(columns, split, config, target))
    if not pictures and not tables:
        return []
    return [Section(key="sky", title="On the sky", notes=notes, tables=tables, pictures=pictures)]


def survey_table(
    columns: Columns, split: Split, config: BootstrapConfig, target: Target = REDSHIFT_TARGET
) -> TextTable:
    """Metrics of the objects of each spectroscopic survey, the largest first."""
    (grouping,) = make_groupings(split, columns, {SURVEY_COLUMN: SURVEY_COLUMN}, {}, target)
    is_known_N = np.isfinite(np.asarray(columns["redshift"], np.float64))
    names = [*point_metrics(target), "crps", _COVERAGE]
    rows = []
    for number, label in enumerate(grouping.labels):
        is_in_N = is_known_N & (grouping.group == number)
        metrics = metrics_inside(columns, is_in_N, config, target)
        shown = estimate_cells(names, metrics)
        rows.append([printable(label, _MAX_LABEL), f"{int(is_in_N.sum()):,}", *shown])
    return TextTable(
        caption="By spectroscopic survey",
        head=["survey", "objects", *(HEADINGS[n][0] for n in names)],
        rows=rows,
    )


def possible_positions(positions_N2: Floats) -> NDArray[np.bool_]:
    """Whether right ascension and declination in degrees are possible, bool (N,)."""
    ra_N, dec_N = positions_N2.T
    return np.asarray((ra_N >= 0) & (ra_N <= 360) & (dec_N >= -90) & (dec_N <= 90))


def cells_of(positions_N2: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Column and row of the cell that each position lies in, int64 (N,) each."""
    ra_N, dec_N = positions_N2.T
    shares = (ra_N / 360, (np.sin(np.radians(dec_N)) + 1) / 2)
    column_N, row_N = (
        np.minimum((share * count).astype(np.int64), count - 1)
        for share, count in zip(shares, _NUM_CELLS, strict=True)
    )
    return column_N, row_N


def sky_maps(positions_N2: Floats, residual_N: Floats) -> dict[str, Floats]:
    """Objects, NMAD and bias of each cell, float64 (rows, columns); NaN where there are too few."""
    column_N, row_N = cells_of(positions_N2)
    cell_N = row_N * _NUM_CELLS[0] + column_N
    shape = (_NUM_CELLS[1], _NUM_CELLS[0])
    count, spread, bias = (np.full(shape[0] * shape[1], np.nan) for _ in range(3))
    for cell in np.unique(cell_N):
        inside = residual_N[cell_N == cell]
        count[cell] = len(inside)
        if len(inside) >= _MIN_COUNT:
            spread[cell], bias[cell] = nmad(inside), inside.mean()
    return {
        "objects": count.reshape(shape),
        "NMAD": spread.reshape(shape),
        "bias": bias.reshape(shape),
    }


def draw_sky(positions_N2: Floats, residual_N: Floats) -> Picture:
    """Objects, NMAD and bias in cells of equal area; right ascension grows to the left."""
    maps = sky_maps(positions_N2, residual_N)
    ra = np.linspace(0, 360, _NUM_CELLS[0] + 1)
    sine = np.linspace(-1, 1, _NUM_CELLS[1] + 1)
    with Canvas(12.4, 2.9, columns=3, sharey=True) as canvas:
        for panel, (name, values) in zip(canvas.panels, maps.items(), strict=True):
            _draw_map(canvas, panel, (ra, sine), name, values)
        canvas.panels[0].set_ylabel("Dec [degrees]")
        return canvas.picture(
            "On the sky",
            alt="Maps of the number of objects, NMAD and bias in cells of the sky.",
            caption="Cells of equal area, right ascension by the sine of declination. NMAD and "
            f"bias of cells of at least {_MIN_COUNT} objects: a patch that stands out points to "
            "dust, depth or calibration there.",
        )


def _draw_map(
    canvas: Canvas, panel: Any, edges: tuple[Floats, Floats], name: str, values: Floats
) -> None:
    shown = np.ma.masked_invalid(values)
    limits: Mapping[str, Any] = {}
    if name == "bias" and np.isfinite(values).any():
        reach = float(np.nanmax(np.abs(values))) or 1e-3
        limits = {"vmin": -reach, "vmax": reach}
    mesh = panel.pcolormesh(*edges, shown, cmap=COLOUR_MAP, rasterized=True, **limits)
    if np.isfinite(values).any():
        canvas.figure.colorbar(mesh, ax=panel, pad=0.02)
    else:
        name = f"{name}: n/a, too few objects in each cell"
    dec = (-90, -30, 0, 30, 90)
    panel.set(title=name, xlabel="RA [degrees]", xlim=(360, 0), ylim=(-1, 1))
    panel.set_yticks(np.sin(np.radians(dec)), [f"{value}" for value in dec])
    panel.set_xticks(range(0, 361, 60))
