"""One self-contained HTML page of all results in a folder, and a Markdown table for the README.

The page needs no network and no plotting package. A script of a few lines counts the charts that
the browser really drew and says so where one is empty, so that a broken page is seen at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.charts import draw
from benchmarks.question import Shown, Table
from benchmarks.regressions import read_result
from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.errors import UsageError

# The questions in the order of the page; others come after them.
ORDER = ("limit", "loaders", "cache", "policies", "scale")
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
svg.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.fault { color: #b00020; font-weight: bold; }
@media (prefers-color-scheme: dark) { :root { color-scheme: light; } body { background: #fff; } }
"""

# getBBox of a mark is empty where nothing was laid out.
_SCRIPT = """
const charts = [...document.querySelectorAll('svg.chart')];
const drawn = charts.filter(chart => [...chart.querySelectorAll('.mark')].some(mark => {
  const box = mark.getBBox();
  return box.width > 0 || box.height > 0;
}));
document.body.dataset.chartsDrawn = drawn.length + ' of ' + charts.length;
if (drawn.length < charts.length) {
  document.getElementById('faults').textContent =
    (charts.length - drawn.length) + ' charts of this page are empty';
}
"""


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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def html_table(table: Table) -> str:
    """The table as HTML, with its title and note."""
    heads = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=number' if _is_number(cell) else ''}>{escape(cell_text(cell))}</td>"
            for cell in row
        )
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h3>{escape(table.title)}</h3><div class="scroll">{body}</div>{note}'


def markdown_table(table: Table) -> str:
    """The table as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    lines = [line(table.columns), "|" + "---|" * len(table.columns)]
    lines += [line([cell_text(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines)


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


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The HTML page.

    Args:
        results: contents of result files, in the order of the page.
    """
    sections = "".join(_section(result) for result in results)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>I/O benchmarks</title><style>{_STYLE}</style></head><body>"
        f'<h1>I/O benchmarks</h1><p class="fault" id="faults"></p>{sections}'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The tables for the README, each with the sentences of its question and what it was run on."""
    parts = []
    for result in results:
        shown = Shown.from_json(result["shown"])
        tables = [t for t in shown.tables if t.in_readme]
        if tables:
            sentences = "\n".join(f"- {s}" for s in shown.sentences)
            body = "\n\n".join(f"{markdown_table(t)}\n\n{t.note}".strip() for t in tables)
            facts = "\n".join(f"- {fact}" for fact in _facts(result))
            parts.append(f"## {shown.title}\n\n{body}\n\n{sentences}\n\n{facts}")
    return "\n\n".join(parts) + "\n"


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder that have something to show, in the order of the page.

    Raises:
        UsageError: there is no such folder, or no such result in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name the --out of an earlier benchmark")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            content = read_result(path)  # says what is wrong with it
        if isinstance(content, dict) and "shown" in content:
            found.append(content)
    if not found:
        raise UsageError(
            f"{folder} holds no result to show; run `python -m benchmarks loaders --out {folder}`"
        )
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(found, key=lambda result: places.get(result["benchmark"], len(ORDER)))


def write_report(folder: Path) -> int:
    """Writes `report.html` and `report.md` into the folder; returns the exit code 0."""
    results = read_results(folder)
    for name, mark in ((PAGE, _PAGE_MARK), (MARKDOWN, _MARKDOWN_MARK)):
        check_output(folder / name, mark)
    write_whole(folder / PAGE, page(results).encode())
    write_whole(folder / MARKDOWN, markdown(results).encode())
    print(f"{folder / PAGE} and {folder / MARKDOWN}: {len(results)} questions")
    return 0
