"""What is shown of results: tables and charts, in one HTML page and in Markdown.

A question says itself what the report shows of it (`Table`, `Chart`, sentences), so the report
knows no question, and a result file is readable without the program that wrote it. The page needs
no network: charts are drawn by matplotlib into it. A script of a few lines counts the charts that
the browser really drew and says so where one is empty, so that a broken page is seen at once.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.comparison import RACED, add_to_history, race_history, read_result
from benchmarks.harness import Settings, write_result
from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.errors import UsageError, needing

# The questions in the order of the page; others come after them.
ORDER = (
    "limit",
    "loaders",
    "loaders_stamps",
    "loaders_large",
    "cache",
    "policies",
    "smaller",
    "law",
    "perceive",
    "scale",
)
PAGE, MARKDOWN = "report.html", "report.md"
_PAGE_MARK, _MARKDOWN_MARK = b"<title>I/O benchmarks</title>", b"python -m benchmarks"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5em; border-bottom: 2px solid #1b6ca8; }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; }
th, td { border: 1px solid #ccc; padding: 3px 8px; vertical-align: top; }
th { background: #f0f4f8; text-align: left; } td.number { text-align: right; }
.scroll { overflow-x: auto; } .note, .facts { color: #555; font-size: 13px; }
svg.chart { width: 100%; height: auto; }
.fault { color: #b00020; font-weight: bold; }
@media (prefers-color-scheme: dark) { :root { color-scheme: light; } body { background: #fff; } }
"""

# getBBox of a mark is empty where nothing was laid out.
_SCRIPT = """
const charts = [...document.querySelectorAll('svg.chart')];
const drawn = charts.filter(chart => [...chart.querySelectorAll('[id^=mark]')].some(mark => {
  const box = mark.getBBox();
  return box.width > 0 || box.height > 0;
}));
document.body.dataset.chartsDrawn = drawn.length + ' of ' + charts.length;
if (drawn.length < charts.length) {
  document.getElementById('faults').textContent =
    (charts.length - drawn.length) + ' charts of this page are empty';
}
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the report.

    Attributes:
        title: what it shows.
        columns: their heads, with units.
        rows: cells, as text or numbers; None is shown as a dash.
        in_readme: whether it belongs to the Markdown for the docs.
        note: how to read it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    in_readme: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart, or one group of bars.

    Attributes:
        name: for the legend.
        values: numbers; for lines the y of each x.
        least: lower ends of the intervals; empty for none.
        greatest: upper ends.
        x: for lines, the x of each value; empty for bars.
    """

    name: str
    values: Sequence[float]
    least: Sequence[float] = ()
    greatest: Sequence[float] = ()
    x: Sequence[float] = ()


def spread_series(
    name: str, spreads: Sequence[Mapping[str, float]], x: Sequence[float] = ()
) -> Series:
    """The medians of spreads, with their intervals."""
    middle, least, greatest = (
        [found[key] for found in spreads] for key in ("median", "least", "greatest")
    )
    return Series(name=name, x=x, values=middle, least=least, greatest=greatest)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the report.

    Attributes:
        title: what it shows.
        kind: "bars", horizontal, one per label; or "lines".
        series: what is drawn.
        labels: names of the bars, the same for all series.
        x_label: unit of the horizontal axis (of the values, for bars).
        y_label: unit of the vertical axis of lines.
        is_log: logarithmic axis of values; for lines both axes.
    """

    title: str
    kind: str
    series: Sequence[Series]
    labels: Sequence[str] = ()
    x_label: str = ""
    y_label: str = ""
    is_log: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("bars", "lines"):
            raise UsageError(f"kind of chart {self.title!r} must be bars or lines: {self.kind!r}")


def bars_of(
    title: str,
    x_label: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[Mapping[str, float]]],
) -> Chart:
    """A chart of bars with their intervals: for each series its spreads, one per label."""
    drawn = [spread_series(name, spreads) for name, spreads in series.items()]
    return Chart(title=title, kind="bars", labels=labels, x_label=x_label, series=drawn)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the report shows of a result: the question, sentences, tables and charts."""

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()

    def to_json(self) -> dict[str, Any]:
        """For the result file's `shown`."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Shown:
        """The inverse of `to_json`."""
        charts = [
            Chart(**{**chart, "series": [Series(**s) for s in chart["series"]]})
            for chart in fields["charts"]
        ]
        tables = [Table(**table) for table in fields["tables"]]
        return cls(**{**fields, "tables": tables, "charts": charts})


def draw(chart: Chart) -> str:
    """The chart as an `<svg>` element; bars are horizontal so that long names stay readable."""
    with needing("the report's charts need matplotlib", "bench"):
        import matplotlib
        from matplotlib.figure import Figure
    style = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "text.parse_math": False}
    is_bars = chart.kind == "bars"
    height = 0.9 + 0.3 * len(chart.labels) * (0.4 + 0.6 * len(chart.series)) if is_bars else 4.0
    with matplotlib.rc_context({**style, "font.size": 9}):
        figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.subplots()
        for number, one in enumerate(chart.series):
            (_draw_bars if is_bars else _draw_line)(axes, chart, number, one)
        axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
        if chart.is_log:
            axes.set_xscale("log")
        if chart.is_log and not is_bars:
            axes.set_yscale("log")
        if is_bars:
            axes.invert_yaxis()
        elif not chart.is_log:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(alpha=0.3)
        if len(chart.series) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    label = f'<svg class="chart" role="img" aria-label="{escape(chart.title)}" '
    return label + svg[svg.index("<svg ") + 5 :]


def _draw_bars(axes: Any, chart: Chart, number: int, series: Series) -> None:
    thick = 0.8 / len(chart.series)
    places = [row + (number + 0.5) * thick - 0.4 for row in range(len(chart.labels))]
    bars = axes.barh(places, series.values, 0.9 * thick, xerr=_whiskers(series), label=series.name)
    axes.bar_label(bars, fmt=cell_text, padding=4)
    axes.set_yticks(range(len(chart.labels)), chart.labels)
    for row, bar in enumerate(bars):
        bar.set_gid(f"mark-{number}-{row}")


def _draw_line(axes: Any, _: Chart, number: int, series: Series) -> None:
    drawn = axes.errorbar(
        series.x, series.values, _whiskers(series), fmt="o-", ms=4, capsize=2, label=series.name
    )
    drawn[0].set_gid(f"mark-{number}")


def _whiskers(series: Series) -> list[list[float]] | None:
    if not series.least:
        return None
    low = [max(0.0, v - w) for v, w in zip(series.values, series.least, strict=True)]
    high = [max(0.0, w - v) for v, w in zip(series.values, series.greatest, strict=True)]
    return [low, high]


def cell_text(value: Any) -> str:
    """A cell for people: numbers with separators and at most three digits, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def html_table(table: Table) -> str:
    """The table as HTML, with its title and note."""

    def cell(value: Any) -> str:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return f"<td{' class=number' if is_number else ''}>{escape(cell_text(value))}</td>"

    heads = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h3>{escape(table.title)}</h3><div class="scroll">{body}</div>{note}'


def markdown_table(table: Table) -> str:
    """The table as Markdown."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(cell_text(c).replace("|", "\\|") for c in cells) + " |"

    rule = "|" + "---|" * len(table.columns)
    return "\n".join([line(table.columns), rule, *map(line, table.rows)])


def _facts(result: Mapping[str, Any]) -> list[str]:
    """Command, commit, host and versions, a sentence each."""
    host = result["host"]
    system = host.get("file_system", {})
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    lines = [
        f"Command: {result['command']}",
        f"Finished {result['finished']}, commit {result['commit']}",
        f"Host: {host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, kernel "
        f"{host['kernel']}, load at the end {host['load_average']}; file system "
        f"{system.get('type', 'unknown')} ({system.get('options', '')})",
        f"Versions: {versions}",
    ]
    if result.get("quick"):
        lines.insert(0, "Measured with --quick: few samples and repeats, not for publication.")
    return lines


def _section(result: Mapping[str, Any]) -> str:
    shown = Shown.from_json(result["shown"])
    sentences = "".join(f"<li>{escape(s)}</li>" for s in shown.sentences)
    charts = "".join(f"<h3>{escape(c.title)}</h3>{draw(c)}" for c in shown.charts)
    tables = "".join(html_table(t) for t in shown.tables)
    facts = "<br>".join(escape(text) for text in _facts(result))
    return (
        f"<section><h2>{escape(shown.title)}</h2><ul>{sentences}</ul>{charts}{tables}"
        f'<p class="facts">{facts}</p></section>'
    )


def write_shown(
    name: str,
    result: dict[str, Any],
    shown: Shown,
    settings: Settings,
    raw: Mapping[str, Any] | None = None,
) -> None:
    """Prints what a question found, and writes its summary, its single runs and its history."""
    for sentence in shown.sentences:
        print(f"  {sentence}")
    result = {**result, "shown": shown.to_json()}
    path = write_result(name, result, command=settings.command, folder=settings.out, raw=raw)
    add_to_history(path)
    print(path)


def history_table(folder: Path) -> Table | None:
    """The races that `history.csv` in a folder knows; None for none."""
    rows = race_history(folder)
    if not rows:
        return None
    return Table(
        title="History of the race",
        columns=("finished", "commit", "workload", "quick", *RACED),
        rows=rows,
        note=(
            "The best of those of msdata that keep all bytes, with the interval over turns, in "
            "every race whose result was written here."
        ),
    )


def page(results: Sequence[Mapping[str, Any]], history: Table | None = None) -> str:
    """The HTML page of the contents of result files."""
    sections = "".join(_section(result) for result in results)
    sections += f"<section>{html_table(history)}</section>" if history else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>I/O benchmarks</title><style>{_STYLE}</style></head><body>"
        f'<h1>I/O benchmarks</h1><p class="fault" id="faults"></p>{sections}'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def markdown(results: Sequence[Mapping[str, Any]], history: Table | None = None) -> str:
    """The tables for the docs, each with the sentences of its question and what it was run on."""
    parts = []
    for result in results:
        shown = Shown.from_json(result["shown"])
        tables = [t for t in shown.tables if t.in_readme]
        if tables:
            body = "\n\n".join(f"{markdown_table(t)}\n\n{t.note}".strip() for t in tables)
            sentences, facts = (
                "\n".join(f"- {line}" for line in lines)
                for lines in (shown.sentences, _facts(result))
            )
            parts.append(f"## {shown.title}\n\n{body}\n\n{sentences}\n\n{facts}")
    if history:
        parts.append(f"## {history.title}\n\n{markdown_table(history)}\n\n{history.note}")
    return "\n\n".join(parts) + "\n"


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder that have something to show, in the order of the page.

    Raises:
        UsageError: the folder or a result in it is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name the --out of an earlier benchmark")
    found = []
    for path in sorted(folder.glob("*.json")):
        if b'"benchmark"' in path.read_bytes() and "shown" in (content := read_result(path)):
            found.append(content)
    if not found:
        raise UsageError(
            f"{folder} holds nothing to show; run `python -m benchmarks loaders --out {folder}`"
        )
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(found, key=lambda result: places.get(result["benchmark"], len(ORDER)))


def write_report(folder: Path) -> int:
    """Writes `report.html` and `report.md` into the folder; returns the exit code 0."""
    results, history = read_results(folder), history_table(folder)
    for name, mark in ((PAGE, _PAGE_MARK), (MARKDOWN, _MARKDOWN_MARK)):
        check_output(folder / name, mark)
    write_whole(folder / MARKDOWN, markdown(results, history).encode())
    write_whole(folder / PAGE, page(results, history).encode())
    print(f"{folder / PAGE} and {folder / MARKDOWN}: {len(results)} questions")
    return 0
