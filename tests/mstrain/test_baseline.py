"""The baseline: fluxes, neighbors and paired differences with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from msdata.schema import MANTIS_SHRIMP, Survey
from mstrain.evaluation.baseline import (
    aperture_fluxes,
    asinh_magnitudes,
    color_features,
    compare_estimates,
    flux_noise,
    neighbor_estimates,
)
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig

FEW = BootstrapConfig(num_replicates=40)
IMAGE = Survey(name="image", shape=(2, 41, 41), bands=("g", "r"), pixel_scale_arcsec=1.0)


def test_fluxes_are_those_of_a_point_on_any_sky_with_holes_or_without() -> None:
    images = np.full((3, 2, 41, 41), 7.0, np.float32)
    images[:, 0, 20, 20] += 100
    images[:, 1, 19, 20] += 50
    images[1, :, 0:5] = np.nan
    images[2, 1] = np.nan
    found = aperture_fluxes(images, IMAGE)
    assert found == pytest.approx(np.array([[100, 50], [100, 50], [100, 0]]))
    # At a distance of 2 pixels, outside of an aperture of 1.5.
    images[:, 0, 22, 20] += 30
    assert aperture_fluxes(images, IMAGE, 1.5)[0, 0] == pytest.approx(100)
    tiny = MANTIS_SHRIMP["galex"]
    assert aperture_fluxes(np.ones((1, 2, 32, 32)), tiny).tolist() == [[0, 0]]


def test_magnitudes_are_the_usual_ones_of_bright_fluxes_and_colors_do_not_see_brightness() -> None:
    flux = np.array([[1e4, 2e4], [1e5, 2e5]])
    magnitudes = asinh_magnitudes(flux, np.array([1.0, 1.0]))
    assert magnitudes[1] - magnitudes[0] == pytest.approx([-2.5, -2.5])
    features = color_features(magnitudes)
    assert features[:, 0] == pytest.approx(2.5 * np.log10(2))
    assert np.isfinite(asinh_magnitudes(-flux, flux_noise(np.zeros((3, 2))))).all()


def test_neighbors_have_the_redshift_of_their_color() -> None:
    random = np.random.default_rng(0)
    train = random.uniform(0, 1, (2000, 2))
    test = random.uniform(0.1, 0.9, (300, 2))
    # The second feature says nothing, and is a thousand times as long.
    found = neighbor_estimates(train * [1, 1000], train[:, 0], test * [1, 1000], 10)
    assert np.abs(found - test[:, 0]).max() < 0.1
    own = neighbor_estimates(train, train[:, 0], train, 1)
    np.testing.assert_array_equal(own, train[:, 0])
    constant = neighbor_estimates(np.ones((5, 1)), np.arange(5.0), np.ones((1, 1)), 5)
    assert constant.tolist() == [2.0]


def test_a_network_that_is_the_baseline_differs_by_exactly_0() -> None:
    random = np.random.default_rng(1)
    truth = random.uniform(0, 1, 400)
    estimate = truth + 0.02 * (1 + truth) * random.standard_normal(400)
    same = compare_estimates(estimate, estimate, truth, FEW)["difference"]
    assert all((e.value, e.low, e.high) == (0, 0, 0) for e in same.values())
    worse = truth + 0.04 * (1 + truth) * random.standard_normal(400)
    found = compare_estimates(estimate, worse, truth, FEW)
    assert found["network"]["nmad"].value == pytest.approx(0.02, rel=0.15)
    assert found["difference"]["nmad"].value == pytest.approx(-0.02, rel=0.3)
    assert found["difference"]["nmad"].high < 0
