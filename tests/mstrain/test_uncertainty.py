"""Widths against errors, calibration in groups and kinds of outlier: known answers."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
import reporting
from scipy import stats
from test_report import Page

from mstrain.evaluation.bin_by import _by_edges, _by_value
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import (
    cdf_at,
    highest_density_level,
    lower_peak,
    make_densities,
)
from mstrain.evaluation.metrics.outliers import kinds_of
from mstrain.evaluation.metrics.uncertainty import (
    Grouping,
    assess,
    breusch_pagan,
    calibration_accuracy,
)
from mstrain.evaluation.report.assemble import sky_link
from mstrain.evaluation.report.content import kind_rows, worst_rows
from mstrain.evaluation.report.page import render_page
from mstrain.evaluation.report.unsure import uncertainty_text
from mstrain.evaluation.report.wording import TextTable

FEW = BootstrapConfig(num_replicates=200)
NORMAL = NormalDist()


def gaussian_table(
    count: int, *, told: float = 1.0, varies: bool = True, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Truths that scatter by sigma(v) about z_mean, told as `told` times sigma; and v."""
    random = np.random.default_rng(seed)
    v = random.uniform(0, 1, count)
    sigma = 0.02 + 0.06 * v if varies else np.full(count, 0.04)
    truth = random.uniform(0.1, 1.2, count)
    normal = random.standard_normal(count)
    width = told * sigma * (1 + truth)
    mean = truth + sigma * normal * (1 + truth)
    pit = stats.norm.cdf(-normal / told)
    columns = {
        "redshift": truth,
        "z_mean": mean,
        "z_std": width,
        "z_q16": mean - width,
        "z_q84": mean + width,
        "pit": pit,
        "hpd_level": np.abs(2 * pit - 1),
        "lower_peak": np.zeros(count),
    }
    return columns, v


def by(v: np.ndarray) -> Grouping:
    return _by_edges("v", "v", v, None, np.isfinite(v))


def test_calibrated_widths_have_slope_one_and_halved_ones_slope_two() -> None:
    for told, slope in ((1.0, 1.0), (0.5, 2.0)):
        columns, v = gaussian_table(20_000, told=told)
        (found,) = assess(columns, [by(v)], FEW).variables
        assert found.slope is not None
        assert found.slope.low < slope < found.slope.high
        assert found.slope.value == pytest.approx(slope, rel=0.02)
        assert len(found.groups) == 10
        for group in found.groups:
            assert group.num_samples == 2000
            spread, skill = group.metrics["spread"].value, group.metrics["skill"].value
            assert skill == pytest.approx(slope * spread, rel=0.08)
            inside = 2 * NORMAL.cdf(NORMAL.inv_cdf(0.84) * told) - 1
            assert group.metrics["coverage_0.68"].value == pytest.approx(inside, abs=0.05)
            assert group.metrics["width"].low <= group.metrics["width"].value
            assert sum(group.pit_counts) == 2000
            assert (group.pit_ks_p is not None and group.pit_ks_p > 1e-4) == (told == 1)


def test_breusch_pagan_rejects_a_varying_error_and_five_percent_of_constant_ones() -> None:
    columns, v = gaussian_table(2000)
    (found,) = assess(columns, [by(v)], FEW).variables
    assert found.breusch_pagan_p < 1e-6
    assert found.degrees == 1
    rejected = {"numbers": 0, "text": 0}
    for seed in range(200):
        random = np.random.default_rng(seed)
        residual, value = random.standard_normal(500), random.uniform(0, 1, 500)
        labels = [str(n) for n in random.integers(0, 4, 500)]
        text = _by_value("t", "t", labels, np.ones(500, bool))
        rejected["numbers"] += breusch_pagan(residual, by(value))[1] < 0.05
        rejected["text"] += breusch_pagan(residual, text)[1] < 0.05
    # Of 200 at 5 %: 10, with a standard deviation of 3.
    assert all(2 <= count <= 20 for count in rejected.values())


def test_breusch_pagan_is_n_r_squared_of_a_regression() -> None:
    random = np.random.default_rng(1)
    residual, value = random.standard_normal(300), random.uniform(0, 1, 300)
    statistic, p_value, degrees = breusch_pagan(residual, by(value))
    line = stats.linregress(value, residual**2)
    assert statistic == pytest.approx(300 * line.rvalue**2)
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 1))
    assert degrees == 1
    assert breusch_pagan(residual, by(np.ones(300)))[:2] == (0.0, 1.0)


def test_calibration_accuracy_is_the_closed_form_of_halved_widths() -> None:
    columns, _ = gaussian_table(200_000, told=0.5)
    # C(a) lies below the diagonal: the integral is E|2 PIT - 1| - 1/2, PIT = Phi(n / told).
    normal = np.linspace(-8, 8, 200_001)
    mean = np.trapezoid(np.abs(2 * stats.norm.cdf(2 * normal) - 1) * stats.norm.pdf(normal), normal)
    found = assess(columns, [], FEW).eca
    assert found.value == pytest.approx(1 - (mean - 0.5), abs=0.003)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.01


def test_intervals_of_calibration_accuracy_hold_one_for_calibrated_densities() -> None:
    held = 0
    for seed in range(60):
        columns, _ = gaussian_table(500, seed=seed)
        found = assess(columns, [], BootstrapConfig(num_replicates=100, seed=seed)).eca
        assert found.low <= found.value <= found.high
        held += found.high == 1
    assert held >= 54


def test_calibration_accuracy_is_exact() -> None:
    pit = np.random.default_rng(0).random(7) ** 2
    level = np.abs(2 * pit - 1)
    fine = (np.arange(1_000_000) + 0.5) / 1_000_000
    share = np.searchsorted(np.sort(level), fine, side="right") / 7
    assert calibration_accuracy(pit) == pytest.approx(1 - np.abs(share - fine).mean(), abs=1e-5)
    assert calibration_accuracy(np.full(5, 0.5)) == 0.5
    assert calibration_accuracy(np.linspace(0, 1, 100_001)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("told", [1.0, 0.5])
def test_shares_of_outliers_are_the_normal_distribution_s(told: float) -> None:
    count = 100_000
    columns, _ = gaussian_table(count, told=told, varies=False)
    found = assess(columns, [], FEW).outliers
    outside = 2 * NORMAL.cdf(-told * NORMAL.inv_cdf(0.995))
    wrong = 2 * NORMAL.cdf(-0.05 / 0.04)
    # Constant widths: the truth is outside of the region exactly where |d| is large.
    limit = max(0.05 / 0.04, told * NORMAL.inv_cdf(0.995))
    both = 2 * NORMAL.cdf(-limit)
    slack = 5 * np.sqrt(0.25 / count)
    for share, table in (
        (found.outside_central, found.central),
        (found.outside_highest, found.highest),
    ):
        assert share.value == pytest.approx(outside, abs=slack)
        assert sum(map(sum, table)) == count
        assert sum(table[1]) / count == pytest.approx(wrong, abs=slack)
        assert table[1][1] / count == pytest.approx(both, abs=slack)
    assert found.kinds["confident"] == found.highest[1][1]
    assert sum(found.kinds.values()) == count


def test_one_percent_of_truths_lie_outside_of_highest_regions_of_any_density() -> None:
    random = np.random.default_rng(3)
    edges = np.cumsum(random.uniform(0.01, 0.1, 31))
    shapes = random.gamma(0.5, 1, (40_000, 30))
    shapes[::2] = np.round(shapes[::2])
    shapes[:, 0] += 0.01
    found = make_densities(shapes / (shapes @ np.diff(edges))[:, None], edges)
    # One draw of each density, by its own distribution function.
    level = random.random(len(found))
    number = (found.cdf[:, 1:] < level[:, None]).sum(axis=1)
    rows = np.arange(len(found))
    share = (level - found.cdf[rows, number]) / found.masses[rows, number]
    truth = edges[number] + np.clip(share, 0, 1) * found.widths[number]
    highest = highest_density_level(found, truth)
    assert stats.kstest(highest, "uniform").pvalue > 1e-3
    assert (highest > 0.99).mean() == pytest.approx(0.01, abs=0.002)
    np.testing.assert_allclose(cdf_at(found, truth), level, atol=1e-9)
    assert highest_density_level(found, np.full(len(found), 99.0)).tolist() == [1.0] * len(found)


def test_the_kinds_are_told_apart() -> None:
    edges = np.linspace(0, 1, 101)
    centers = (edges[:-1] + edges[1:]) / 2

    def bump(at: float, width: float) -> np.ndarray:
        return np.exp(-0.5 * ((centers - at) / width) ** 2) / width

    shapes = [
        bump(0.2, 0.02),
        bump(0.2, 0.02),
        0.7 * bump(0.2, 0.04) + 0.3 * bump(0.8, 0.04),
        bump(0.5, 0.2),
        0.7 * bump(0.2, 0.04) + 0.3 * bump(0.8, 0.04),
        0.995 * bump(0.2, 0.04) + 0.005 * bump(0.8, 0.04),
    ]
    found = make_densities([s / s.sum() * 100 for s in shapes], edges)
    truth = np.array([0.205, 0.6, 0.8, 0.8, 0.5, 0.8])
    columns = {
        "redshift": truth,
        "z_mean": found.masses @ centers,
        "hpd_level": highest_density_level(found, truth),
        "lower_peak": lower_peak(found, truth),
    }
    expected = ["right", "confident", "two-peaked", "wide", "right", "confident"]
    columns["z_mean"][4] = 0.5
    assert kinds_of(columns).tolist() == expected
    np.testing.assert_allclose(columns["lower_peak"], [0, 0, 0.3, 0, 0, 0.005], atol=2e-3)


def test_values_and_bins_hold_each_object_once() -> None:
    labels = [*(["a"] * 5), *(["b"] * 9), "", None, *(f"rare {n}" for n in range(20))]
    found = _by_value("survey", "survey", labels, np.ones(len(labels), bool))
    assert found.labels[:2] == ["b", "a"]
    assert found.labels[-1] == "12 other values"
    assert "(none)" in found.labels
    assert (found.group < 0).sum() == 1
    assert np.bincount(found.group[found.group >= 0]).sum() == len(labels) - 1
    assert (found.group == 11).sum() == 12
    v = np.array([3.0, 1, 1, 2, np.nan, np.inf])
    few = _by_edges("n", "n", v, None, np.ones(6, bool))
    assert (few.labels, few.group.tolist()) == (["1", "2", "3"], [2, 0, 0, 1, -1, -1])
    given = _by_edges("n", "n", v, np.array([1.0, 2, 3]), np.ones(6, bool))
    assert given.group.tolist() == [-1, 0, 0, 1, -1, -1]
    marked = np.array([18.0, -999, 99, 20])
    assert _by_edges("magnitude", "r", marked, None, np.ones(4, bool)).group.tolist() == [
        *(0, -1, -1, 1)
    ]
    many = by(np.random.default_rng(0).random(1000))
    assert np.bincount(many.group).tolist() == [100] * 10


def test_small_groups_and_unlabelled_objects_have_no_metrics_and_stay_plain_json() -> None:
    columns, v = gaussian_table(60)
    columns["redshift"][:5] = np.nan
    labels = ["few"] * 12 + ["many"] * 48
    text = _by_value("s", "s", labels, np.isfinite(columns["redshift"]))
    found = assess(columns, [text, by(v)], FEW)
    assert [(g.label, g.num_samples, bool(g.metrics)) for g in found.variables[0].groups] == [
        ("many", 48, True),
        ("few", 7, False),
    ]
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["variables"][1]["name"] == "v"
    said = uncertainty_text(found, 0.95)
    assert "< 10 objects" in said
    assert "confident and wrong" in said


def test_the_report_shows_panels_kinds_and_the_worst_with_links() -> None:
    columns, found = reporting.honest_predictions(300)
    columns["z_mean"][:4] += 0.4
    rows = [row for _, _, row in kind_rows(columns)]
    assert len(rows) == len(set(rows))
    worst = worst_rows(columns, 2)
    residual = np.abs(columns["z_mean"] - columns["redshift"]) / (1 + columns["redshift"])
    assert worst.tolist() == np.argsort(-residual)[:2].tolist()
    link = sky_link(10.5, -0.25)
    groupings = [by(columns["mag_r_ab"]), _by_value("<s>", "<s>", ["x", "$y"] * 150, residual > -1)]
    content = reporting.content_of(
        columns,
        found,
        rows=[1],
        uncertainty=assess(columns, groupings, FEW),
        worst=TextTable(caption="Worst", head=["o", "sky"], rows=[["1", "Aladin"]], links=[link]),
    )
    html = render_page(content)
    page = Page(html)
    assert "Where the network is unsure" in page.text
    assert "By <s>" in page.text
    assert link.replace("&", "&amp;") in html
    addresses = [(tag, a[n]) for tag, a in page.tags for n in ("src", "href") if n in a]
    outward = [(tag, to) for tag, to in addresses if not str(to).startswith(("#", "data:"))]
    assert outward == [("a", link)]
    assert "target=10.500000%20-0.250000&fov" in link
    assert "%20%2B0.250000&fov" in sky_link(10.5, 0.25)
    assert sky_link(float("nan"), 0) == sky_link(-999, 0) == sky_link(0, 95) == ""
