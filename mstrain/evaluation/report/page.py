"""The page: HTML with everything inside it, for a browser of today without a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mstrain.evaluation.report.canvas import Picture
from mstrain.evaluation.report.content import Content
from mstrain.evaluation.report.density_figures import draw_coverage, draw_pit, draw_stacked
from mstrain.evaluation.report.gallery import draw_gallery
from mstrain.evaluation.report.point_figures import draw_bins, draw_redshifts, draw_residuals
from mstrain.evaluation.report.training_figures import draw_hits, draw_learning, draw_throughput
from mstrain.evaluation.report.unsure import (
    draw_variables,
    outlier_tables,
    unsure_definitions,
    variable_tables,
)
from mstrain.evaluation.report.wording import (
    HEADINGS,
    TextTable,
    bins_table,
    count_notes,
    definitions,
    density_table,
    number_text,
    points_table,
    printable,
)

# Figures of at most this width are readable on a telephone.
_NARROW_PX = 560
# How every page's head ends.
MARK = b'<link rel="icon" href="data:,">\n<title>'
# Rows of the facts that a page of the same network on the same data has, too.
_FACT = r'<tr><th scope="row">(run|checkpoint|data set|split)</th><td>([^<]*)</td></tr>'
# A section that `page_with_section` put in.
_ADDED = r"<!-- ([\w-]+) --><section[^>]*><h2[^>]*>([^<]*)</h2>(.*?)</section>\n<!-- end of \1 -->"

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --gray: #56626c; --line: #d9dee2; --blue: #00538a; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header, nav { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 1.6rem 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
a { color: var(--blue); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; padding: 0; }
.tiles div { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem;
             flex: 1 1 9.5rem; }
.tiles dt { color: var(--gray); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tiles small { display: block; color: var(--gray); font-size: .8rem; }
.note { border-left: 4px solid #E69F00; padding: .3rem .9rem; background: #fdf6e7; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .facts td { text-align: left; white-space: normal; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
figure { margin: 1rem 0; min-width: 0; max-width: 100%; }
figure img { display: block; width: 100%; height: auto; }
/* On a narrow screen wide figures and tables scroll inside their frame, and stay readable. */
figure.wide .scroll img { min-width: 44rem; }
caption, figcaption, h1, h2, h3, p, .facts td { overflow-wrap: anywhere; }
tbody th { min-width: 6.5rem; max-width: 22rem; overflow-wrap: break-word; }
.row figure { flex: 1 1 20rem; }
.scroll { max-width: 100%; }
thead th { position: sticky; top: 0; background: #fff; }
figcaption { color: var(--gray); font-size: .88rem; max-width: 46rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--blue); }
footer { color: var(--gray); font-size: .85rem; margin: 3rem 0 2rem; }
@media print { nav, details { display: none; } figure, table { break-inside: avoid; }
               .scroll { overflow: visible; } table { font-size: .62rem; }
               th, td { padding-right: .4rem; } }
"""


def render_page(content: Content) -> str:
    """The report as one HTML document."""
    sections = [
        ("points", "Point estimates", _points(content)),
        ("calibration", "Densities", _calibration(content)),
        ("bins", "In bins", _bins(content)),
        ("unsure", "Where the network is unsure", _unsure(content)),
        *((s.key, s.title, section_body(s.notes, s.tables, s.pictures)) for s in content.sections),
        ("gallery", "Gallery", _gallery(content)),
        ("training", "Training", training_html(content.journal)),
        ("method", "Definitions and settings", _method(content)),
    ]
    notes = notes_html([*content.notes, *count_notes(content.summary, content.target)])
    head = f"{_tiles(content)}{notes}{facts_html(content.facts)}"
    return document(content.title, head, sections)


def document(title: str, head: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A page.

    Args:
        title: its title, as text.
        head: HTML below the title.
        sections: anchor, heading and HTML of each; those without HTML are left out.
    """
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, heading, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{heading}</h2>{html}</section>\n'
        for key, heading, html in sections
    )
    title = _html(title)
    return _page(title, f"<header><h1>{title}</h1>{head}</header>\n", links, body)


def _page(title: str, header: str = "", links: str = "", body: str = "") -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{MARK.decode()}{title}</title>\n<style>{_STYLE}</style>\n"
        f'</head>\n<body>\n{header}<nav aria-label="Sections"><ul>{links}</ul></nav>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _tiles(content: Content) -> str:
    """The metrics that one looks for first, large."""
    summary = content.summary
    found = next(iter(summary.points.values()))
    names = dict.fromkeys(("nmad", "bias", *found))
    shown = {**{n: found[n] for n in names}, "crps": summary.density["crps"]}
    return tiles_html(
        [
            (
                HEADINGS[n][0],
                number_text(n, e.value),
                f"{number_text(n, e.low)} to {number_text(n, e.high)}",
            )
            for n, e in shown.items()
        ]
    )


def tiles_html(tiles: Iterable[tuple[str, str, str]]) -> str:
    """Names, values and intervals, large."""
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{interval}</small></dd></div>"
        for name, value, interval in tiles
    )
    return f'<dl class="tiles">{shown}</dl>'


def notes_html(notes: Iterable[str]) -> str:
    """Sentences that are not to be missed."""
    return "".join(f'<p class="note">{_html(note)}</p>' for note in notes)


def facts_html(facts: Iterable[tuple[str, Any]]) -> str:
    """A table of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{_html(name)}</th><td>{_html(value)}</td></tr>'
        for name, value in facts
    )
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def _points(content: Content) -> str:
    magnitude = next((b for b in content.summary.binnings if b.name == "magnitude"), None)
    pictures = [draw_redshifts(content), draw_residuals(content, magnitude)]
    return _table(points_table(content.summary)) + _figures(pictures)


def _calibration(content: Content) -> str:
    side_by_side = _figures([draw_coverage(content), draw_stacked(content)])
    tables = [density_table(content.summary), *([] if content.priors is None else [content.priors])]
    pit = _figures([draw_pit(content)])
    return "".join(map(_table, tables)) + f'{pit}<div class="row">{side_by_side}</div>'


def _bins(content: Content) -> str:
    binnings = content.summary.binnings
    picture = draw_bins(binnings, content.target)
    html = _figures([picture] if picture else [])
    html += "".join(_table(bins_table(b, content.target)) for b in binnings if b.bins)
    return html + "".join(
        f"<p>No bins of {_html(b.name)}: {_html(b.skipped)}</p>" for b in binnings if b.skipped
    )


def _unsure(content: Content) -> str:
    """Empty where the content has nothing to say of it."""
    found, level = content.uncertainty, content.summary.bootstrap.level
    if found is None:
        return ""
    tables = variable_tables(found, level, content.target)
    html = "".join(map(_table, [*outlier_tables(found, level, content.target), *tables[:1]]))
    html += _figures(draw_variables(found, content.target)) + "".join(map(_table, tables[1:]))
    if not found.variables:
        html += "<p>--bin-by shows widths, errors and calibration by columns of the index.</p>"
    html += _table(content.worst) if content.worst is not None else ""
    if content.kinds:
        html += "<p>Objects of each kind at fixed places in the order of |d|, largest first.</p>"
    return html + _figures(draw_gallery(content.kinds, content))


def _gallery(content: Content) -> str:
    pictures = draw_gallery(content.gallery, content)
    if not pictures:
        return "<p>No object was drawn.</p>"
    return (
        "<p>Objects at fixed places in the order of CRPS, from good to worst. Solid line: "
        f"{_html(content.target.truth_words)}; dashed: mean of the density; gray: its central "
        "68 %. Stamps are stretched each on its own.</p>" + _figures(pictures)
    )


def training_html(journal: Sequence[Mapping[str, Any]]) -> str:
    """Figures of a run's journal."""
    drawn = [draw(journal) for draw in (draw_learning, draw_throughput, draw_hits)]
    pictures = [picture for picture in drawn if picture is not None]
    if not pictures:
        return "<p>The run has no metrics.jsonl with a whole epoch.</p>"
    missing = drawn[2] is None
    return _figures(pictures) + (
        "<p>The run had no cache, so it has no hits to compare with a forecast.</p>"
        if missing
        else ""
    )


def _method(content: Content) -> str:
    how, target = content.summary.bootstrap, content.target
    return (
        f"{facts_html((*definitions(target), *unsure_definitions(target)))}"
        f"<p>Intervals hold the central {how.level:.0%} of {how.num_replicates:,} bootstrap "
        f"replicates (Poisson weights, seed {how.seed}); for shares of 0 or 1 they are Wilson's. "
        "All integrals are exact for densities that are constant in each bin.</p>"
        f"{settings_html(content.settings)}"
    )


def settings_html(settings: Mapping[str, Any]) -> str:
    """The settings of a run, folded."""
    return (
        f"<details><summary>Settings of the run</summary>{facts_html(settings.items())}</details>"
    )


def _table(table: TextTable) -> str:
    head = "".join(f'<th scope="col">{_html(cell)}</th>' for cell in table.head)
    links = table.links or [""] * len(table.rows)
    rows = "".join(
        f"<tr>{_cells(row, link)}</tr>" for row, link in zip(table.rows, links, strict=True)
    )
    return (
        f'<div class="scroll"><table><caption>{_html(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _html(text: object) -> str:
    """Text that came from wherever, between tags or in an attribute."""
    return escape(printable(text))


def _cells(row: Sequence[str], link: str = "") -> str:
    cells = [_html(cell) for cell in row[1:]]
    if link:
        cells[-1] = f'<a href="{_html(link)}" rel="noopener noreferrer">{cells[-1]}</a>'
    rest = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<th scope="row">{_html(row[0])}</th>{rest}'


def _figures(pictures: Iterable[Picture]) -> str:
    return "".join(
        f"<figure{' class=wide' if p.width_px > _NARROW_PX else ''} "
        f'style="max-width: min(100%, {p.width_px}px)"><h3>{_html(p.title)}</h3>'
        f'<div class="scroll"><img src="{p.data_uri()}" alt="{_html(p.alt)}"></div>'
        f"<figcaption>{_html(p.caption)}</figcaption></figure>\n"
        for p in pictures
    )


def page_with_section(page: str | None, key: str, title: str, body: str) -> str:
    """A page with a section at its end, in the place of an earlier one of the same key.

    Args:
        page: a report as `render_page` made it; None makes a page of the section alone.
        key: the section's anchor.
        title: its heading.
        body: HTML, from `section_body`.
    """
    title = _html(title)
    return _insert(_page(title) if page is None else page, key, title, body)


def _insert(page: str, key: str, title: str, body: str) -> str:
    """Puts in a section of HTML and its link, in the place of an earlier one of the same key."""
    first, last = f"<!-- {key} -->", f"<!-- end of {key} -->"
    while first in page and last in page.partition(first)[2]:
        before, _, rest = page.partition(first)
        page = before + rest.partition(last)[2]
    link = f'{first}<li><a href="#{key}">{title}</a></li>{last}'
    section = (
        f'{first}<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>{body}'
        f"</section>\n{last}"
    )
    page = page.replace("</ul></nav>", f"{link}</ul></nav>", 1)
    head, _, tail = page.rpartition("</main>")
    return f"{head}{section}</main>{tail}"


def with_kept_sections(earlier: str | None, page: str) -> str:
    """A page with the sections that other commands added to an earlier page of the same network.

    Args:
        earlier: the page that is replaced; None where there is none.
        page: from `render_page`.

    Returns:
        The page. Sections of an earlier page of another run, checkpoint or data set are left out.
    """
    facts = re.findall(_FACT, page)
    if earlier is None or not facts or re.findall(_FACT, earlier) != facts:
        return page
    for key, title, body in re.findall(_ADDED, earlier, re.DOTALL):
        page = _insert(page, key, title, body)
    return page


def section_body(
    notes: Sequence[str], tables: Sequence[TextTable], pictures: Sequence[Picture]
) -> str:
    """HTML of a section: pictures, tables, then notes."""
    words = "".join(f"<p>{_html(note)}</p>" for note in notes)
    return _figures(pictures) + "".join(map(_table, tables)) + words
