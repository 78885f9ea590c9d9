"""Section "Where the network is unsure": tables for terminal and page, and a row of panels each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mstrain.evaluation.metrics.binning import MIN_BIN_COUNT
from mstrain.evaluation.metrics.estimates import COVERAGE_LEVELS, coverage_name
from mstrain.evaluation.metrics.outliers import KINDS
from mstrain.evaluation.metrics.uncertainty import Group, Uncertainty, Variable
from mstrain.evaluation.report.canvas import BLUE, COLOUR_MAP, GREY, ORANGE, Canvas, Picture
from mstrain.evaluation.report.wording import TextTable, interval_text, printable, tables_text
from mstrain.models.target import REDSHIFT_TARGET, Target

_COVERAGE = coverage_name(COVERAGE_LEVELS[0])
_HEADINGS = {
    "width": "width, z_std",
    "width_quantile": "width, quantiles",
    "spread": "RMS s",
    "skill": "RMS d",
    "nmad": "NMAD",
    _COVERAGE: f"coverage {COVERAGE_LEVELS[0]:.0%}",
}
# Characters of a value below its group.
_MAX_TICK = 14


def unsure_definitions(target: Target) -> tuple[tuple[str, str], ...]:
    """What the words of the section mean."""
    y, std, q84, q16 = ("z" if target.is_redshift else "y", *map(target.public, _WIDTHS))
    width, half = target.per_scale(std), target.per_scale(f"({q84} - {q16}) / 2")
    shown = [found for found in _DEFINITIONS if found[0] != "kinds" or target.thresholds]
    return (
        ("s", f"{width}; widths in bins are medians, of {half} too"),
        *((name, text.replace("share of z", f"share of {y}")) for name, text in shown),
    )


_WIDTHS = ("z_std", "z_q84", "z_q16")
_DEFINITIONS = (
    ("slope", "RMS d on RMS s over bins, through the origin; 1 if calibrated"),
    ("Breusch-Pagan", "n R^2 of d^2 on the quantity (Koenker); small p: the error depends on it"),
    (
        "ECA",
        "1 - integral over a of |C(a) - a|, C(a) the share of z in the central interval of "
        "probability a; 1 if calibrated (the name is in use without a definition; this is ours)",
    ),
    ("99 % region", "central: PIT from 0.005 to 0.995; highest-density: the smallest region"),
    (
        "kinds",
        "wrong: |d| >= 0.05; confident: z outside of the highest-density 99 % region; lower peak: "
        "else, if the density has a valley of half its value at z or less between mode and z, with "
        "5 % or more beyond; wide: else",
    ),
)


def uncertainty_text(
    uncertainty: Uncertainty, level: float, target: Target = REDSHIFT_TARGET
) -> str:
    """All tables for a terminal."""
    tables = outlier_tables(uncertainty, level, target)
    return tables_text([*tables, *variable_tables(uncertainty, level, target)])


def outlier_tables(
    uncertainty: Uncertainty, level: float, target: Target = REDSHIFT_TARGET
) -> list[TextTable]:
    """ECA and shares outside of regions; the 2 x 2 table and the kinds where there are any."""
    found = uncertainty.outliers
    expected, total = f"{100 * (1 - found.level):.2f} %", sum(found.kinds.values())
    region = f"{found.level:.0%} region"
    regions = {"central": found.outside_central, "highest-density": found.outside_highest}
    tables = [
        TextTable(
            caption=f"Calibration, with {level:.0%} intervals",
            head=["metric", "value", "if calibrated"],
            rows=[
                ["ECA", interval_text(uncertainty.eca), "1"],
                *(
                    [
                        f"{target.symbol} outside of the {name} {region}",
                        interval_text(outside, is_share=True),
                        expected,
                    ]
                    for name, outside in regions.items()
                ),
            ],
        )
    ]
    if found.threshold is None:
        return tables
    return [
        *tables,
        TextTable(
            caption=f"Outliers: |d| against the {found.level:.0%} regions, objects",
            head=["", "in central", "outside", "in highest-density", "outside"],
            rows=[
                [f"|d| {sign} {found.threshold:g}", *(f"{n:,}" for n in (*central, *highest))]
                for sign, central, highest in zip(
                    ("<", ">="), found.central, found.highest, strict=True
                )
            ],
        ),
        TextTable(
            caption=f"Kinds; all but the last have |d| >= {found.threshold:g}",
            head=["kind", "objects", "share"],
            rows=[
                [KINDS[kind], f"{count:,}", f"{100 * count / total:.2f} %"]
                for kind, count in found.kinds.items()
            ],
        ),
    ]


def variable_tables(
    uncertainty: Uncertainty, level: float, target: Target = REDSHIFT_TARGET
) -> list[TextTable]:
    """The tests, a row per quantity, and its groups in a table each."""
    variables = uncertainty.variables
    if not variables:
        return []
    tests = TextTable(
        caption=f"Does the width follow the error? With {level:.0%} intervals",
        head=["by", "slope of RMS d on RMS s", "Breusch-Pagan", "p", "objects left out"],
        rows=[
            [
                v.name,
                "" if v.slope is None else interval_text(v.slope),
                f"{v.breusch_pagan:.1f} ({v.degrees} d.o.f.)",
                f"{v.breusch_pagan_p:.2g}",
                f"{v.num_left_out:,}",
            ]
            for v in variables
        ],
    )
    return [tests, *(_group_table(v, target) for v in variables)]


def _group_table(variable: Variable, target: Target) -> TextTable:
    heading = variable.name
    if variable.column != variable.name:
        heading += f" ({variable.column})"
    headings = {**_HEADINGS, "width": f"width, {target.public('z_std')}"}
    return TextTable(
        caption=f"Widths and errors by {heading}",
        head=[variable.name, "objects", *headings.values(), "PIT, KS statistic"],
        rows=[
            [printable(g.label, 40), f"{g.num_samples:,}", *_group_cells(g)]
            for g in variable.groups
        ],
    )


def _group_cells(group: Group) -> list[str]:
    if group.pit_ks is None:
        return [f"< {MIN_BIN_COUNT} objects", *[""] * len(_HEADINGS)]
    cells = [interval_text(group.metrics[n], is_share=n == _COVERAGE) for n in _HEADINGS]
    return [*cells, f"{group.pit_ks:.4f} (p = {group.pit_ks_p:.2g})"]


def draw_variables(uncertainty: Uncertainty, target: Target = REDSHIFT_TARGET) -> list[Picture]:
    """One row of panels per quantity that has a group of enough objects."""
    shown = [v for v in uncertainty.variables if any(g.metrics for g in v.groups)]
    return [_draw_variable(v, target) for v in shown]


def _draw_variable(variable: Variable, target: Target) -> Picture:
    groups = [group for group in variable.groups if group.metrics]
    with Canvas(12.4, 3.3, columns=4) as canvas:
        widths, skill, coverage, pits = canvas.panels
        for name, color, offset in (("width", BLUE, -0.1), ("width_quantile", ORANGE, 0.1)):
            _draw_metric(widths, groups, name, color, offset)
        widths.set(title="Width", ylabel=f"median {target.per_scale('width')}")
        widths.margins(y=0.15)
        widths.set_ylim(bottom=0)
        widths.legend(loc="best")
        _draw_skill(skill, groups)
        _draw_metric(coverage, groups, _COVERAGE, BLUE, 0.0)
        coverage.axhline(COVERAGE_LEVELS[0], color=GREY, linewidth=0.8)
        coverage.set(title=f"Coverage of {COVERAGE_LEVELS[0]:.0%}", ylabel="share of objects")
        _draw_pits(canvas, pits, groups)
        for panel in (widths, coverage, pits):
            labels = [printable(group.label, _MAX_TICK) for group in groups]
            panel.set_xticks(range(len(groups)), labels, rotation=60, ha="right", fontsize=7)
            panel.set_xlabel(printable(variable.name, 24))
        return canvas.picture(
            f"By {variable.name}",
            alt=f"By {variable.name}: median widths, root mean square of d against that of s, "
            "coverage, and histograms of PIT.",
            caption="Bars: intervals. Second panel: calibrated widths lie on the diagonal, too "
            "narrow ones above it. Last panel: each column is the PIT histogram of a bin, 1 if "
            f"calibrated. Bins of the true {target.noun} choose objects by the truth, so that even "
            "calibrated densities leave the diagonal there."
            + (f" {variable.num_left_out:,} objects left out." if variable.num_left_out else ""),
        )


def _draw_metric(panel: Any, groups: Sequence[Group], name: str, color: str, offset: float) -> None:
    for number, group in enumerate(groups):
        found, place = group.metrics[name], number + offset
        panel.plot([place, place], [found.low, found.high], color=color)
        label = _HEADINGS[name] if not number else None
        panel.plot(place, found.value, "o", color=color, markersize=4, label=label)
    panel.grid(visible=True, axis="y")


def _draw_skill(panel: Any, groups: Sequence[Group]) -> None:
    for group in groups:
        spread, skill = group.metrics["spread"], group.metrics["skill"]
        panel.plot([spread.value] * 2, [skill.low, skill.high], color=BLUE)
        panel.plot([spread.low, spread.high], [skill.value] * 2, color=BLUE)
        panel.plot(spread.value, skill.value, "o", color=BLUE, markersize=4)
    top = 1.05 * max(max(g.metrics["spread"].high, g.metrics["skill"].high) for g in groups)
    panel.plot([0, top], [0, top], color=GREY, linewidth=0.8)
    panel.set(title="Spread and skill", xlabel="RMS s", ylabel="RMS d")
    panel.set(xlim=(0, top), ylim=(0, top))


def _draw_pits(canvas: Canvas, panel: Any, groups: Sequence[Group]) -> None:
    counts = np.array([group.pit_counts for group in groups], np.float64)
    heights = (counts * counts.shape[1] / counts.sum(axis=1, keepdims=True)).T
    mesh = panel.pcolormesh(
        np.arange(len(groups) + 1) - 0.5,
        np.linspace(0, 1, len(heights) + 1),
        heights,
        cmap=COLOUR_MAP,
        vmin=0,
        vmax=2,
        rasterized=True,
    )
    canvas.figure.colorbar(mesh, ax=panel, label="density", extend="max", pad=0.02)
    panel.set(title="PIT", ylabel="PIT")
