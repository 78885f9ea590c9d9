"""Charts as inline SVG: text in, text out, no plotting package, readable in any browser.

Bars are horizontal so that long names stay readable; whiskers are the intervals over turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.question import Chart, Series

COLOURS = ("#1b6ca8", "#d1603d", "#3a7d44", "#7a4fa3", "#b8860b", "#5c6670", "#c2417c", "#2a9d8f")
_WIDTH = 860
_LABEL_WIDTH = 300
_BAR_HEIGHT = 18
_PLOT_HEIGHT = 300
_LEGEND_HEIGHT = 18


def draw(chart: Chart) -> str:
    """The chart as an `<svg>` element.

    Args:
        chart: its values must be finite; on a logarithmic axis above 0.

    Returns:
        SVG text, with a `<title>`.
    """
    return _bars(chart) if chart.kind == "bars" else _lines(chart)


def ticks(least: float, greatest: float, *, is_log: bool) -> list[float]:
    """Round values for an axis, four to ten of them, or the powers of ten on a logarithmic one."""
    if is_log:
        first, last = math.floor(math.log10(least)), math.ceil(math.log10(greatest))
        return [10.0**power for power in range(first, max(last, first + 1) + 1)]
    span = (greatest - least) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(k for k in (1, 2, 5, 10) if span / (step * k) <= 8)
    first = math.floor(least / step)
    return [round(step * k, 12) for k in range(first, math.ceil(greatest / step) + 1)]


class _Axis:
    """Places of values along an axis."""

    def __init__(self, values: Sequence[float], start: float, stop: float, is_log: bool) -> None:
        known = [v for v in values if v > 0] if is_log else [0.0, *values]
        low, high = (min(known), max(known)) if known else (0.1, 1.0)
        self.ticks = ticks(low, high, is_log=is_log)
        self._is_log = is_log
        self._ends = (self._scaled(self.ticks[0]), self._scaled(self.ticks[-1]))
        self._start, self._stop = start, stop

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._is_log else value

    def __call__(self, value: float) -> float:
        if self._is_log and value <= 0:
            return self._start
        low, high = self._ends
        part = (self._scaled(value) - low) / ((high - low) or 1.0)
        return round(self._start + part * (self._stop - self._start), 1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>'


def _frame(chart: Chart, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">'
        f"<title>{escape(chart.title)}</title>{''.join(parts)}</svg>"
    )


def _legend(series: Sequence[Series]) -> tuple[list[str], float]:
    """The names of the series, in as many lines as they need, and where what follows may begin."""
    if len(series) < 2:
        return [], 12.0
    parts, x, y = [], 10.0, 16.0
    for k, one in enumerate(series):
        colour = COLOURS[k % len(COLOURS)]
        width = 36 + 7.0 * len(one.name)
        if x > 10 and x + width > _WIDTH:
            x, y = 10.0, y + _LEGEND_HEIGHT
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 16, y, one.name))
        x += width
    return parts, y + 14


def _extent(series: Sequence[Series]) -> list[float]:
    return [v for s in series for v in (*s.values, *s.least, *s.greatest)]


def _bars(chart: Chart) -> str:
    parts, top = _legend(chart.series)
    group = _BAR_HEIGHT * len(chart.series) + 8
    bottom = top + group * len(chart.labels)
    axis = _Axis(_extent(chart.series), _LABEL_WIDTH, _WIDTH - 80, chart.is_log)
    for value in axis.ticks:
        parts.append(_line(axis(value), top, axis(value), bottom, "#ddd"))
        parts.append(_text(axis(value), bottom + 16, _number(value), "middle"))
    parts.append(_text(_LABEL_WIDTH, bottom + 36, chart.x_label))
    for row, label in enumerate(chart.labels):
        y = top + row * group
        parts.append(_text(_LABEL_WIDTH - 8, y + group / 2, label, "end"))
        for k, one in enumerate(chart.series):
            parts += _bar(axis, one, row, y + k * _BAR_HEIGHT, COLOURS[k % len(COLOURS)])
    return _frame(chart, bottom + 44, parts)


def _bar(axis: _Axis, series: Series, row: int, y: float, colour: str) -> list[str]:
    value = series.values[row]
    width = max(1.0, axis(value) - _LABEL_WIDTH)
    end, middle = axis(value), y + _BAR_HEIGHT / 2
    parts = [
        f'<rect class="mark" x="{_LABEL_WIDTH}" y="{y + 2:.1f}" width="{width:.1f}" '
        f'height="{_BAR_HEIGHT - 4}" fill="{colour}"/>'
    ]
    if series.least and series.greatest:
        low, high = axis(series.least[row]), axis(series.greatest[row])
        parts.append(_line(low, middle, high, middle, "#222"))
        end = max(end, high)
    return [*parts, _text(end + 6, middle + 4, _number(value))]


def _lines(chart: Chart) -> str:
    parts, legend_end = _legend(chart.series)
    left, top = 80.0, legend_end + _LEGEND_HEIGHT
    bottom = top + _PLOT_HEIGHT
    xs = [x for s in chart.series for x in s.x]
    across = _Axis(xs, left, _WIDTH - 30, chart.is_log)
    upward = _Axis(_extent(chart.series), bottom, top, chart.is_log)
    for value in across.ticks:
        parts.append(_line(across(value), top, across(value), bottom, "#eee"))
        parts.append(_text(across(value), bottom + 16, _number(value), "middle"))
    for value in upward.ticks:
        parts.append(_line(left, upward(value), _WIDTH - 30, upward(value), "#ddd"))
        parts.append(_text(left - 6, upward(value) + 4, _number(value), "end"))
    parts.append(_text(left, bottom + 36, chart.x_label))
    parts.append(_text(_WIDTH - 30, top - 6, chart.y_label, "end"))
    for k, one in enumerate(chart.series):
        parts += _curve(across, upward, one, COLOURS[k % len(COLOURS)])
    return _frame(chart, bottom + 44, parts)


def _curve(across: _Axis, upward: _Axis, series: Series, colour: str) -> list[str]:
    points = [(across(x), upward(y)) for x, y in zip(series.x, series.values, strict=True)]
    path = " ".join(f"{x},{y}" for x, y in points)
    parts = [
        f'<polyline class="mark" points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    ]
    parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in points]
    ends = zip(points, series.least, series.greatest, strict=False)
    parts += [_line(x, upward(low), x, upward(high), colour) for (x, _), low, high in ends]
    return parts
