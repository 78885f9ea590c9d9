"""Metrics of densities: against scipy, qp-prob and scoringrules, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import qp
import scoringrules
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from qp.metrics.concrete_metric_classes import CDELossMetric
from qp.metrics.pit import PIT
from scipy import stats

from msdata.errors import DataError, UsageError
from mstrain.evaluation.metrics import densities as piecewise
from mstrain.evaluation.metrics.densities import Densities, make_densities
from mstrain.evaluation.metrics.scores import point_estimates, scores

Floats = NDArray[np.float64]
TOLERANCE = 1e-6


def random_densities(
    seed: int, num_objects: int = 40, num_bins: int = 30, *, is_even: bool = False
) -> Densities:
    """Rough densities with gaps on uneven bins."""
    random = np.random.default_rng(seed)
    edges = np.concatenate([[0], np.cumsum(random.uniform(0.01, 0.1, num_bins))])
    if is_even:
        edges = np.linspace(0, 1.6, num_bins + 1)
    values = random.gamma(0.3, 1, (num_objects, num_bins))
    values[random.random(values.shape) < 0.2] = 0
    values[:, num_bins // 2] += 0.1
    return make_densities(values / (values @ np.diff(edges))[:, None], edges)


def random_truths(found: Densities, seed: int) -> Floats:
    """Redshifts of which some lie outside of the bins."""
    low, high = found.edges[[0, -1]]
    return np.random.default_rng(seed + 99).uniform(low - 0.1, high + 0.1, len(found))


def gaussian(mean_N: Floats, sigma_N: Floats, num_bins: int = 40_000) -> Densities:
    """Gaussians averaged over fine bins, all but entirely within them."""
    edges = np.linspace(-1, 3, num_bins + 1)
    cdf_NE = stats.norm.cdf(edges, mean_N[:, None], sigma_N[:, None])
    return make_densities(np.diff(cdf_NE, axis=1) / np.diff(edges), edges)


def qp_ensemble(found: Densities) -> qp.Ensemble:
    return qp.Ensemble(qp.hist, data={"bins": found.edges, "pdfs": found.values})


def scipy_histograms(found: Densities) -> list[stats.rv_histogram]:
    return [stats.rv_histogram((row, found.edges), density=True) for row in found.values]


@pytest.mark.parametrize("seed", range(3))
def test_points_and_cdf_agree_with_scipy(seed: int) -> None:
    found = random_densities(seed)
    truth = random_truths(found, seed)
    points = point_estimates(found)
    for i, histogram in enumerate(scipy_histograms(found)):
        assert points["z_mean"][i] == pytest.approx(histogram.mean(), abs=TOLERANCE)
        assert points["z_median"][i] == pytest.approx(histogram.median(), abs=TOLERANCE)
        assert points["z_q16"][i] == pytest.approx(histogram.ppf(stats.norm.cdf(-1)), abs=TOLERANCE)
        assert points["z_q84"][i] == pytest.approx(histogram.ppf(stats.norm.cdf(1)), abs=TOLERANCE)
        assert piecewise.cdf_at(found, truth)[i] == pytest.approx(
            histogram.cdf(truth[i]), abs=TOLERANCE
        )
        assert piecewise.density_at(found, truth)[i] == pytest.approx(
            histogram.pdf(truth[i]), abs=TOLERANCE
        )
        assert points["z_std"][i] ** 2 == pytest.approx(histogram.var(), abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_points_pit_and_cde_loss_agree_with_qp(seed: int) -> None:
    found = random_densities(seed)
    truth = np.clip(random_truths(found, seed), found.edges[0] + 1e-6, found.edges[-1] - 1e-6)
    ensemble = qp_ensemble(found)
    points, scored = point_estimates(found), scores(found, truth)
    # The moments of qp 1.1.4 take all bins to be as wide as the first.
    even = random_densities(seed, is_even=True)
    theirs = qp_ensemble(even).mean().ravel()
    np.testing.assert_allclose(piecewise.mean(even), theirs, atol=TOLERANCE)
    np.testing.assert_allclose(points["z_median"], ensemble.ppf(0.5).ravel(), atol=TOLERANCE)
    pit = PIT(ensemble, truth, np.linspace(0, 1, 20))
    np.testing.assert_allclose(scored["pit"], pit.pit_samps, atol=TOLERANCE)
    ks = pit.evaluate_PIT_KS()
    ours = stats.kstest(scored["pit"], "uniform")
    assert tuple(ours)[:2] == pytest.approx((ks.statistic, ks.pvalue), abs=TOLERANCE)
    # qp sums by trapezoids: both sides of each edge, and the truths, make them exact here.
    gap = 1e-11
    grid = np.concatenate([found.edges[:-1] + gap, found.edges[1:] - gap, truth])
    loss = CDELossMetric(np.sort(grid)).evaluate(ensemble, truth)
    assert scored["cde_loss"].mean() == pytest.approx(loss, abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_crps_agrees_with_scoringrules(seed: int) -> None:
    found = random_densities(seed, num_objects=8)
    truth = random_truths(found, seed)
    # As an ensemble of weighted members, so many in each bin that their steps do not show.
    num_parts = 400
    centers = (np.arange(num_parts) + 0.5) / num_parts
    members = (found.edges[:-1, None] + found.widths[:, None] * centers).ravel()
    weights = np.repeat(found.masses, num_parts, axis=1) / num_parts
    ensemble = np.broadcast_to(members, weights.shape)
    theirs = scoringrules.crps_ensemble(truth, ensemble, ens_w=weights, estimator="qd")
    np.testing.assert_allclose(piecewise.crps(found, truth), theirs, atol=TOLERANCE)


@settings(max_examples=30)
@given(
    low=st.floats(-1, 1),
    width=st.floats(0.01, 2),
    truth=st.floats(-2, 4),
    num_bins=st.integers(2, 9),
)
def test_crps_of_a_uniform_density_is_the_closed_form(
    low: float, width: float, truth: float, num_bins: int
) -> None:
    edges = np.linspace(low, low + width, num_bins + 1)
    found = make_densities(np.full((1, num_bins), 1 / width), edges)
    theirs = scoringrules.crps_uniform(truth, low, low + width)
    assert piecewise.crps(found, np.array([truth]))[0] == pytest.approx(theirs, abs=1e-9)


def test_gaussians_have_their_closed_forms() -> None:
    mean, sigma = np.array([0.3, 0.8, 1.5]), np.array([0.05, 0.1, 0.2])
    found = gaussian(mean, sigma)
    # At the center of a bin its mean density is the density, up to the bin's width squared.
    truth = found.centers[np.searchsorted(found.edges, [0.31, 0.5, 1.5])]
    points, scored = point_estimates(found), scores(found, truth)
    for name in ("z_mean", "z_median"):
        np.testing.assert_allclose(points[name], mean, atol=TOLERANCE)
    np.testing.assert_allclose(points["z_mode"], mean, atol=4 / 40_000)
    np.testing.assert_allclose(points["z_std"], sigma, atol=TOLERANCE)
    np.testing.assert_allclose(points["z_q84"] - points["z_q16"], 2 * sigma, atol=TOLERANCE)
    np.testing.assert_allclose(scored["pit"], stats.norm.cdf(truth, mean, sigma), atol=TOLERANCE)
    closed_crps = scoringrules.crps_normal(truth, mean, sigma)
    np.testing.assert_allclose(scored["crps"], closed_crps, atol=TOLERANCE)
    density = stats.norm.pdf(truth, mean, sigma)
    closed_loss = 1 / (2 * sigma * math.sqrt(math.pi)) - 2 * density
    np.testing.assert_allclose(scored["cde_loss"], closed_loss, atol=2e-6)
    np.testing.assert_allclose(scored["log_likelihood"], np.log(density), atol=TOLERANCE)


def test_outside_of_the_bins_the_truth_costs_its_distance() -> None:
    found = random_densities(5)
    beyond = np.full(len(found), found.edges[-1] + 0.25)
    scored = scores(found, beyond)
    at_edge = piecewise.crps(found, np.full(len(found), found.edges[-1]))
    np.testing.assert_allclose(scored["crps"], at_edge + 0.25, atol=1e-12)
    assert (scored["pit"] == 1).all()
    assert (scored["log_likelihood"] == math.log(1e-10)).all()
    assert (scores(found, -beyond)["pit"] == 0).all()


def test_an_unknown_truth_has_no_score() -> None:
    found = random_densities(6)
    truth = random_truths(found, 6)
    some = np.where(np.arange(len(found)) % 2, truth, np.nan)
    for name, values in scores(found, some).items():
        np.testing.assert_array_equal(values[1::2], scores(found, truth)[name][1::2])
        assert np.isnan(values[::2]).all()


@pytest.mark.parametrize("level", [0.5, 0.68, 0.9, 0.95])
def test_coverage_by_pit_is_coverage_by_interval(level: float) -> None:
    found = random_densities(7, num_objects=400)
    truth = np.random.default_rng(8).uniform(*found.edges[[0, -1]], len(found))
    low, high = piecewise.quantiles(found, ((1 - level) / 2, (1 + level) / 2)).T
    by_pit = np.abs(piecewise.cdf_at(found, truth) - 0.5) <= level / 2
    np.testing.assert_array_equal(by_pit, (low <= truth) & (truth <= high))


def test_quantiles_invert_the_cdf() -> None:
    found = random_densities(9)
    levels = (0.01, 0.3, 0.5, 0.99)
    for column, level in enumerate(levels):
        at = piecewise.quantiles(found, levels)[:, column]
        np.testing.assert_allclose(piecewise.cdf_at(found, at), level, atol=1e-12)
    with pytest.raises(UsageError, match="between 0 and 1"):
        piecewise.quantiles(found, (0.0,))


def test_rounding_of_float32_is_made_good() -> None:
    found = random_densities(10)
    again = make_densities(found.values.astype(np.float32), found.edges.astype(np.float32))
    assert again.values.dtype == np.float64
    np.testing.assert_allclose(again.masses.sum(axis=1), 1, atol=1e-14)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -0.1, 5.0])
def test_what_is_no_density_is_refused_with_its_row(fault: float) -> None:
    found = random_densities(11)
    values = found.values.copy()
    values[3, 5] += fault if fault > 0 else fault - values[3, 5]
    with pytest.raises(DataError, match=r"1 of 40 densities are invalid: row 3 .* diverged"):
        make_densities(values, found.edges)


def test_edges_that_do_not_fit_are_refused() -> None:
    found = random_densities(12)
    with pytest.raises(UsageError, match="do not fit"):
        make_densities(found.values, found.edges[1:])
    with pytest.raises(UsageError, match="bin edges must ascend"):
        make_densities(found.values, found.edges[::-1])
