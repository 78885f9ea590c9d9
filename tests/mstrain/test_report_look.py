"""How the report looks: colors, marks on stamps, the sky, and two widths in a real browser."""

from __future__ import annotations

import re
from html import escape, unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reporting
from browsing import needs_browser, open_page

from msdata.schema import MANTIS_SHRIMP, Survey
from mstrain.evaluation.metrics.bootstrap import nmad
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.report import sky
from mstrain.evaluation.report.content import Section
from mstrain.evaluation.report.gallery import bar_arcsec, color_bands, composite, make_stamp
from mstrain.evaluation.report.page import page_with_section, render_page, with_kept_sections
from mstrain.evaluation.report.wording import TextTable

WIDTHS = (390, 1440)


@pytest.mark.parametrize(
    ("bands", "chosen"),
    [
        ("g r i z y", "i r g"),
        ("g r z", "z r g"),
        ("Y J H", "H J Y"),
        ("F090W F150W F444W", "F444W F150W F090W"),
        ("NUV FUV", "NUV FUV"),
        ("W1 W2", "W2 W1"),
        ("VIS", ""),
        ("a b c", ""),
    ],
)
def test_the_longest_wavelength_is_red(bands: str, chosen: str) -> None:
    names = bands.split()
    assert [names[place] for place in color_bands(names)] == chosen.split()


def noisy(peak: float) -> Any:
    image = np.random.default_rng(0).normal(100, 2, (40, 40))
    image[20:23, 20:23] += peak
    return image


def test_a_composite_keeps_its_hue_where_it_is_bright_and_is_gray_where_bands_agree() -> None:
    same = composite([noisy(100)] * 3)
    assert (same == same[..., :1]).all()
    bright, faint = (composite([noisy(3 * f), noisy(2 * f), noisy(f)]) for f in (2000, 200))
    for image in (bright, faint):
        red, green, blue = image[21, 21] / 255
        assert red == pytest.approx(1, abs=0.02)
        assert (green / red, blue / red) == pytest.approx((2 / 3, 1 / 3), abs=0.03)
    sky_level = np.median(same)
    assert 10 < sky_level < 120
    two = composite([noisy(2000), noisy(0)])
    red, green, blue = two[21, 21].astype(float)
    assert green == pytest.approx((red + blue) / 2, abs=2)
    holes = noisy(10)
    holes[:] = np.nan
    assert composite([noisy(10), holes, holes]).shape == (40, 40, 3)


def test_stamps_say_their_colors_and_arrays_without_bands_have_no_compass() -> None:
    stamp = make_stamp(MANTIS_SHRIMP["panstarrs"], np.ones((5, 170, 170), np.float32))
    assert (stamp.label, stamp.colors) == ('panstarrs, 42"', "R i, G r, B g")
    assert stamp.is_on_sky
    two = make_stamp(MANTIS_SHRIMP["unwise"], np.ones((2, 32, 32), np.float32))
    assert two.colors == "R W2, G mean, B W1"
    bare = make_stamp(Survey(name="image", shape=(3, 8, 8)), np.ones((3, 8, 8), np.float32))
    assert (bare.label, bare.colors, bare.is_on_sky) == ("image", "", False)


def test_scale_bars_are_round_and_fit() -> None:
    assert [bar_arcsec(width) for width in (42.5, 88, 6.4, 0)] == [10, 30, 2, 0]


def test_cells_of_the_sky_have_equal_areas_and_the_nmad_of_their_objects() -> None:
    random = np.random.default_rng(0)
    count = 40_000
    positions = np.stack(
        [random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))], axis=1
    )
    residual = np.where(positions[:, 0] < 180, 0.01, 0.05) * random.standard_normal(count)
    found = sky.sky_maps(positions, residual)
    assert found["objects"].shape == (12, 24)
    assert np.nansum(found["objects"]) == count
    # 139 objects in each cell, +- 5 sigma.
    assert np.abs(found["objects"] - count / 288).max() < 5 * np.sqrt(count / 288)
    assert np.median(found["NMAD"][:, :12]) == pytest.approx(0.01, rel=0.1)
    assert np.median(found["NMAD"][:, 12:]) == pytest.approx(0.05, rel=0.1)
    corner = sky.cells_of(np.array([[360.0, 90.0], [0.0, -90.0]]))
    assert [axis.tolist() for axis in corner] == [[23, 0], [11, 0]]


class Index(SimpleNamespace):
    """The part of a split that the section asks: one column of text."""

    def column_type(self, _: str) -> Any:
        import pyarrow as pa

        return pa.string()

    def column_parts(self, _: str) -> Any:
        import pyarrow as pa

        return [pa.array(self.surveys)]


HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def columns() -> Any:
    """60 objects, one of unknown redshift, one of a hostile name."""
    made, _ = reporting.honest_predictions(60)
    made["redshift"][0] = np.nan
    made["sample_id"][3] = HOSTILE + "x" * 200
    return made


@pytest.fixture(scope="module")
def section(columns: Any) -> Section:
    names = ["SDSS"] * 40 + [HOSTILE] * 15 + [None] * 5
    positions = np.tile([10.0, 20.0], (60, 1))
    positions[5] = [400.0, 0.0]
    split: Any = Index(dataset=SimpleNamespace(columns=("survey",)), surveys=names)
    (made,) = sky.sky_section(columns, positions, split, reporting.FEW)
    return made


@pytest.fixture(scope="module")
def page(columns: Any, section: Section) -> str:
    """A report with long words everywhere."""
    _, found = reporting.honest_predictions(60)
    wide = TextTable(caption="c " * 90, head=list("abcdefgh"), rows=[["w" * 90, *["v" * 30] * 7]])
    content = reporting.content_of(
        columns,
        found,
        rows=[3],
        sections=[section],
        worst=wide,
        facts=[("run", "/a/" + "b" * 300), ("checkpoint", "step 2")],
        notes=["n" * 300],
    )
    return render_page(content)


def test_surveys_have_a_row_each_and_impossible_positions_are_counted(
    columns: Any, section: Section
) -> None:
    assert section.notes == ["1 objects without a possible position are not on the maps."]
    (table,) = section.tables
    assert [row[:2] for row in table.rows] == [["SDSS", "39"], [HOSTILE, "15"]]
    inside = {n: np.asarray(v)[1:40] for n, v in columns.items()}
    expected = nmad(scaled_residual(inside["z_mean"], inside["redshift"]))
    assert table.rows[0][3].startswith(f"{expected:.4f}")


def test_added_sections_stay_on_the_page_of_the_same_network_only(page: str) -> None:
    later = page.replace("step 2", "step 3")
    added = page_with_section(page, "perceive", HOSTILE, "<p>first</p>")
    added = page_with_section(added, "compare", "Others", "<p>second</p>")
    assert with_kept_sections(added, page) == added
    assert with_kept_sections(added, later) == later
    assert with_kept_sections(None, page) == page
    assert added.count('<h2 id="perceive">') == added.count('href="#perceive"') == 1
    assert HOSTILE not in added


@needs_browser
def test_nothing_overflows_on_a_telephone_or_a_desk(page: str, tmp_path: Path) -> None:
    # Frames of the page's own origin, so that one start of the browser measures all widths.
    frames = "".join(
        f'<iframe style="width: {w}px; height: 900px; border: 0" srcdoc="{escape(page)}"></iframe>'
        for w in WIDTHS
    )
    script = (
        "onload = () => { document.body.dataset.widths = [...document.querySelectorAll('iframe')]"
        ".map(f => f.contentDocument.documentElement).map(e => e.scrollWidth + '/' + e.clientWidth"
        " + '/' + e.querySelectorAll('figure .scroll').length).join(' ') }"
    )
    harness = tmp_path / "widths.html"
    harness.write_text(
        f'<!DOCTYPE html><link rel="icon" href="data:,"><body>{frames}<script>{script}</script>'
    )
    opened = open_page(harness, tmp_path / "profile", "--window-size=1600,1000")
    assert opened.console == []
    measured = re.search(r'data-widths="([^"]*)"', opened.dom)
    assert measured is not None
    sizes = [tuple(map(int, word.split("/"))) for word in unescape(measured[1]).split()]
    assert [size[0] for size in sizes] == [size[1] for size in sizes]
    for width, (_, shown, figures) in zip(WIDTHS, sizes, strict=True):
        # A scroll bar at the side may take some.
        assert width - 20 <= shown <= width
        assert figures >= 6
