"""Metrics of many objects: definitions, bootstrap intervals, bins."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from msdata.errors import DataError, UsageError
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.bootstrap import (
    BootstrapConfig,
    bootstrap,
    nmad,
    percentile_interval,
    poisson_weights,
    weighted_nmads,
    wilson_interval,
)
from mstrain.evaluation.metrics.summary import Summary, summarize

FAST = BootstrapConfig(num_replicates=50)


def table(count: int, seed: int = 0, scatter: float = 0.03) -> dict[str, np.ndarray]:
    """Predictions as good as their scores say they are."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0.05, 1.2, count)
    residual = scatter * random.standard_normal(count)
    return {
        "redshift": truth,
        "z_mean": truth + residual * (1 + truth),
        "z_median": truth + residual * (1 + truth) + 0.001,
        "z_mode": truth + residual * (1 + truth) * 1.1,
        "pit": random.random(count),
        "crps": random.gamma(2, 0.01, count),
        "cde_loss": random.normal(-5, 1, count),
        "log_likelihood": random.normal(1, 1, count),
        "mag_r": 17 + 2 * truth + random.normal(0, 0.3, count),
    }


def summary_of(columns: dict[str, np.ndarray], config: BootstrapConfig = FAST) -> Summary:
    by = {"redshift": ("redshift", round_edges(columns["redshift"]))}
    return summarize(columns, config, binned_by=by, skipped={"magnitude": "no column"})


def test_point_metrics_are_their_definitions() -> None:
    columns = table(501)
    d = (columns["z_mean"] - columns["redshift"]) / (1 + columns["redshift"])
    found = summary_of(columns).points["z_mean"]
    assert found["bias"].value == pytest.approx(d.mean(), abs=1e-12)
    scatter = stats.median_abs_deviation(d, scale=1 / 1.4826)
    assert found["nmad"].value == pytest.approx(scatter, abs=1e-12)
    assert found["eta_0.05"].value == np.mean(np.abs(d) >= 0.05)
    assert found["eta_0.15"].value == np.mean(np.abs(d) >= 0.15)


def test_density_metrics_are_means_of_scores() -> None:
    columns = table(400)
    found = summary_of(columns)
    for name in ("crps", "cde_loss", "log_likelihood"):
        assert found.density[name].value == pytest.approx(columns[name].mean())
    inside = np.abs(columns["pit"] - 0.5) <= 0.34
    assert found.density["coverage_0.68"].value == inside.mean()
    theirs = stats.kstest(columns["pit"], "uniform")
    assert (found.pit_ks, found.pit_ks_p) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_objects_without_redshift_are_counted_and_left_out() -> None:
    columns = table(100)
    columns["redshift"][::4] = np.nan
    found = summary_of(columns)
    assert (found.num_samples, found.num_unlabelled) == (75, 25)
    known = {name: values[np.isfinite(columns["redshift"])] for name, values in columns.items()}
    assert found.points == summary_of(known).points
    columns["redshift"][:] = np.nan
    with pytest.raises(DataError, match="none of the 100 samples has a known redshift"):
        summarize(columns, FAST, binned_by={})


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_weighted_nmad_is_the_nmad_of_repeated_values(values: list[float], seed: int) -> None:
    ordered = np.sort(np.array(values))
    weights = poisson_weights(np.random.default_rng(seed), 5, len(ordered))
    expected = [nmad(np.repeat(ordered, row)) for row in weights]
    np.testing.assert_allclose(weighted_nmads(weights, ordered), expected, atol=1e-12)


def test_bootstrap_widths_are_the_theory_s_for_a_gaussian() -> None:
    count, widths = 4000, []
    for seed in range(8):
        values = np.random.default_rng(seed).standard_normal(count)
        shares = (np.abs(values) > 1).astype(float)
        config = BootstrapConfig(num_replicates=400, seed=seed)
        found = bootstrap({"mean": values, "share": shares}, values, config)
        widths.append([*found.means.std(axis=0), found.nmads.std()])
    # Standard errors of mean, share, and NMAD (37 % as efficient as the standard deviation).
    share = 2 * stats.norm.sf(1)
    nmad_error = 1.4826 / (4 * stats.norm.pdf(stats.norm.ppf(0.75)))
    expected = np.array([1, math.sqrt(share * (1 - share)), nmad_error])
    np.testing.assert_allclose(np.mean(widths, axis=0) * math.sqrt(count), expected, rtol=0.08)


def test_bootstrap_intervals_are_those_of_plain_resampling() -> None:
    columns = table(300)
    d = (columns["z_mean"] - columns["redshift"]) / (1 + columns["redshift"])
    found = summary_of(columns, BootstrapConfig(num_replicates=2000)).points["z_mean"]
    draws = np.random.default_rng(1).integers(0, len(d), (2000, len(d)))
    for name, plain in (
        ("bias", d[draws].mean(axis=1)),
        ("nmad", np.array([nmad(d[row]) for row in draws])),
    ):
        low, high = percentile_interval(plain, 0.95)
        slack = 0.15 * (high - low)
        assert found[name].low == pytest.approx(low, abs=slack)
        assert found[name].high == pytest.approx(high, abs=slack)


def test_the_same_seed_gives_the_same_intervals_and_another_one_others() -> None:
    columns = table(200)
    assert summary_of(columns) == summary_of(columns)
    other = summary_of(columns, BootstrapConfig(num_replicates=50, seed=1))
    assert other.points["z_mean"]["nmad"].low != summary_of(columns).points["z_mean"]["nmad"].low


def test_shares_of_none_and_all_still_have_intervals() -> None:
    columns = table(80, scatter=0.001)
    found = summary_of(columns).points["z_mean"]["eta_0.15"]
    assert (found.value, found.low) == (0, 0)
    theirs = stats.binomtest(0, 80).proportion_ci(method="wilson")
    assert found.high == pytest.approx(theirs.high, abs=1e-12)
    assert wilson_interval(0.3, 50, 0.9) == pytest.approx(
        tuple(stats.binomtest(15, 50).proportion_ci(0.9, method="wilson"))
    )


def test_bins_hold_each_object_once_and_small_ones_have_no_metrics() -> None:
    columns = table(300)
    columns["mag_r"][:5] = np.nan
    by = {
        "redshift": ("redshift", np.array([0, 0.5, 1.19, 1.3])),
        "magnitude": ("mag_r", round_edges(columns["mag_r"])),
    }
    in_redshift, in_magnitude = summarize(columns, FAST, binned_by=by).binnings
    assert sum(b.num_samples for b in in_redshift.bins) == 300
    assert sum(b.num_samples for b in in_magnitude.bins) == 295
    first = in_redshift.bins[0]
    inside = {n: v[columns["redshift"] < 0.5] for n, v in columns.items()}
    assert first.metrics["nmad"] == summary_of(inside).points["z_mean"]["nmad"]
    for found in (*in_redshift.bins, *in_magnitude.bins):
        assert bool(found.metrics) == (found.num_samples >= 10)


def test_the_summary_is_plain_json() -> None:
    found = summary_of(table(60)).as_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["points"]["z_mean"]["eta_0.05"].keys() == {"value", "low", "high"}
    assert again["binnings"][1]["skipped"] == "no column"


@settings(max_examples=60)
@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    st.integers(1, 12),
)
def test_round_edges_enclose_everything_in_few_bins(values: list[float], max_bins: int) -> None:
    edges = round_edges(np.array(values), max_bins + 1)
    assert len(edges) <= max_bins + 2
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= min(values) + 1e-9
    assert max(values) < edges[-1] + 1e-9


def test_too_few_replicates_are_refused() -> None:
    with pytest.raises(UsageError, match="5 bootstrap replicates are too few; give at least 20"):
        BootstrapConfig(num_replicates=5)
    with pytest.raises(UsageError, match=r"level must be between 0 and 1, got 1\.5"):
        BootstrapConfig(level=1.5)
