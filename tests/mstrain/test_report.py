"""The HTML report: whole in itself, readable by machines, and not upset by odd data."""

from __future__ import annotations

import base64
import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
import reporting

from msdata.schema import Schema, Survey
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.summary import summarize
from mstrain.evaluation.report.content import GALLERY_PLACES, gallery_rows
from mstrain.evaluation.report.page import render_page
from mstrain.evaluation.report.wording import summary_text

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page's tags, checked for balance, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def test_a_full_report_stands_for_itself() -> None:
    columns, found = reporting.honest_predictions(300)
    content = reporting.content_of(
        columns,
        found,
        rows=[3],
        journal=reporting.journal_of(4),
        notes=["a <b>hostile</b> note"],
        settings={"model.depth": 18},
    )
    html = render_page(content)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    targets = [a[n] for _, a in page.tags for n in ("src", "href", "srcset", "data") if n in a]
    assert all(str(t).startswith(("data:", "#")) for t in targets)
    assert "url(" not in html
    assert "@import" not in html
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    anchors = {a.get("id") for _, a in page.tags}
    assert {str(t)[1:] for t in targets if str(t).startswith("#")} <= anchors
    assert "a <b>hostile</b> note" in page.text
    assert len(page.images()) == 10
    for image in page.images():
        assert image["alt"]
        check_drawing(str(image["src"]))
    summary = content.summary
    for value in (summary.points["z_mean"]["nmad"].value, summary.density["crps"].value):
        assert f"{value:.4f}" in page.text
    assert "eta (t = 0.05)" in page.text
    assert "95% intervals" in page.text
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[:2] == ["h1", "h2"]
    assert all(tag in ("th", "td") for tag, a in page.tags if a.get("scope"))


def check_drawing(uri: str) -> None:
    """The drawing is SVG, and refers to nothing outside of itself."""
    head, _, body = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    drawing = ET.fromstring(base64.b64decode(body))
    for element in drawing.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith(("#", "data:"))


def test_a_report_of_odd_data_is_drawn_all_the_same() -> None:
    columns, found = reporting.honest_predictions(2)
    columns["sample_id"][0] = "<script>alert(1)</script>"
    columns["mag_r_ab"][1] = np.nan
    columns["redshift"][1] = 3.0
    schema = Schema(
        name="inferred",
        arrays=(
            Survey(name="image", shape=(3, 8, 8)),
            Survey(name="spectrum", shape=(40,), dtype="<i2"),
            Survey(name="flat", shape=(6, 6)),
        ),
    )
    content = reporting.content_of(
        columns, found, rows=[0], schema=schema, journal=reporting.journal_of(1)
    )
    html = render_page(content)
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)" in html
    Page(html)


ODD_NAMES = {
    "half a formula": "$",
    "a formula that is none": "$\\frac{$",
    "a formula": "a$b_1$c",
    "tags": '<b onload="x()">&\'</b>',
    "escapes": "\x1b[31m\x00\x9b2J",
    "no font": "\u661f\U0001f642",
    "half a pair": "\udcff",
    "backwards": "\u202egnp.x",
    "two lines": "a\nb",
    "very long": "x" * 3000,
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_names_of_bands_units_and_columns_are_shown_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Figures without names take time.
    monkeypatch.setattr("mstrain.evaluation.report.page._calibration", lambda content: "")
    columns, found = reporting.honest_predictions(40)
    columns["sample_id"][0] = name
    columns[name] = columns.pop("mag_r_ab")
    survey = Survey(name="image", shape=(1, 8, 8), bands=(name,), unit=name)
    content = reporting.content_of(
        columns, found, rows=[0], schema=Schema(name="inferred", arrays=(survey,))
    )
    by = {n: (n, round_edges(columns[n])) for n in ("redshift",)}
    by["magnitude"] = (name, round_edges(columns[name]))
    summary = summarize(columns, reporting.FEW, binned_by=by, skipped={name: name})
    odd = {"facts": [(name, name)], "settings": {name: name}, "notes": [name], "title": name}
    html = render_page(dataclasses.replace(content, summary=summary, **odd))
    page = Page(html)
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    assert page.text.count(shown) >= 7
    assert page.tags.count(("b", {})) == 0
    assert not [a for _, a in page.tags if "onload" in a]
    assert html.encode().decode() == html
    assert all(c.isprintable() or c == "\n" for c in html)
    for image in page.images():
        check_drawing(str(image["src"]))
    assert all(c.isprintable() or c == "\n" for c in summary_text(summary))


def test_without_journal_gallery_and_magnitude_the_page_says_so() -> None:
    columns, found = reporting.honest_predictions(30)
    del columns["mag_r_ab"]
    page = Page(render_page(reporting.content_of(columns, found, rows=[])))
    assert "no metrics.jsonl" in page.text
    assert "No object was drawn" in page.text


def test_the_gallery_takes_objects_by_their_rank() -> None:
    crps = np.random.default_rng(0).permutation(1001) / 1000
    crps[crps > 0.9] = np.nan
    rows = gallery_rows(crps)
    assert [place for place, _ in rows] == list(GALLERY_PLACES)
    for place, row in rows:
        assert abs(crps[row] - 0.9 * place) < 1e-3 + 1e-9
    assert gallery_rows(np.array([np.nan, 0.1])) == [(GALLERY_PLACES[0], 1)]
    assert gallery_rows(np.array([np.nan])) == []


def test_the_terminal_gets_the_same_numbers() -> None:
    columns, found = reporting.honest_predictions(120)
    columns["redshift"][:3] = np.nan
    summary = reporting.content_of(columns, found, rows=[]).summary
    text = summary_text(summary)
    nmad = summary.points["z_mean"]["nmad"]
    assert f"{nmad.value:.4f} [{nmad.low:.4f}, {nmad.high:.4f}]" in text
    assert "3 samples without redshift count for nothing." in text
    assert "In bins of magnitude (mag_r_ab)" in text
    assert max(map(len, text.splitlines())) < 200
