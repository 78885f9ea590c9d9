"""Recalibration of densities: the closed form, repair by a feature, files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest, norm

from msdata.errors import DataError, UsageError
from mstrain.calibration import fit
from mstrain.calibration.fit import fit_global, fit_local
from mstrain.evaluation.calibration import (
    FittedOn,
    GlobalMap,
    LocalMap,
    calibrated,
    read_calibration,
    write_calibration,
)
from mstrain.evaluation.metrics.densities import Densities, cde_loss, cdf_at, make_densities

SIGMA = 0.06
EDGES = np.linspace(0, 2, 201)
ORIGIN = FittedOn(
    checkpoint_sha256="a" * 64,
    checkpoint="best",
    step=3,
    prior="natural",
    prior_digest="00000000",
    data="DATA",
    fingerprint="0" * 16,
    split="val",
    num_samples=2000,
)


def toy(num: int, seed: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray, Densities]:
    """A feature, truths N(mu, SIGMA), and densities N(mu, s SIGMA), s from low to high with it."""
    random = np.random.default_rng(seed)
    feature, mu = random.uniform(0, 1, num), random.uniform(0.6, 1.4, num)
    truth = mu + SIGMA * random.normal(size=num)
    scale = np.where(feature < 0.5, low, high) * SIGMA
    cdf = norm.cdf((EDGES - mu[:, None]) / scale[:, None])
    cdf[:, 0], cdf[:, -1] = 0, 1
    return feature, truth, make_densities(np.diff(cdf, axis=1) / np.diff(EDGES), EDGES)


def applied(densities: Densities, made: GlobalMap | LocalMap, feature: np.ndarray) -> Densities:
    return make_densities(calibrated(densities, made, feature[:, None]), EDGES)


@pytest.fixture(scope="module")
def uneven() -> tuple[GlobalMap, LocalMap]:
    """Maps fitted where densities are too narrow at low values of the feature, too wide at high."""
    feature, truth, densities = toy(3000, 1, 0.6, 1.6)
    pit = cdf_at(densities, truth)
    first = fit_global(pit)
    return first, fit_local(pit, feature[:, None], ["v"], first)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_global_map_is_that_of_the_closed_form(scale: float) -> None:
    num = 10_000
    _, truth, densities = toy(num, 2, scale, scale)
    made = fit_global(cdf_at(densities, truth))
    level = np.linspace(0.001, 0.999, 999)
    expected = norm.cdf(scale * norm.ppf(level))
    # 1.63 / sqrt(n): a Kolmogorov-Smirnov distance is larger once in a hundred times.
    found = made.levels(level[None], np.zeros((1, 0)))[0]
    assert np.abs(found - expected).max() < 1.63 / np.sqrt(num)


def test_the_local_map_repairs_every_bin_of_the_feature_and_the_global_one_does_not(uneven) -> None:
    feature, truth, densities = toy(4000, 3, 0.6, 1.6)
    found = {}
    for made in (None, *uneven):
        after = densities if made is None else applied(densities, made, feature)
        pit = cdf_at(after, truth)
        parts = [pit[(feature >= a) & (feature < a + 0.25)] for a in (0, 0.25, 0.5, 0.75)]
        ks = [kstest(part, "uniform").statistic for part in parts]
        found["none" if made is None else made.name] = ks, cde_loss(after, truth).mean()
    assert min(found["none"][0]) > 0.1
    assert min(found["global"][0]) > 0.1
    # The critical distance of 1,000 PITs at 1 % is 0.052; the fit adds its own of 3,000 objects.
    assert max(found["local"][0]) < 0.09
    assert np.mean(found["local"][0]) < 0.06
    assert found["local"][1] < found["global"][1] - 0.3


def test_calibrated_densities_stay_within_the_interval_of_their_cde_loss() -> None:
    feature, truth, densities = toy(2000, 4, 1.0, 1.0)
    pit = cdf_at(densities, truth)
    first = fit_global(pit)
    feature, truth, densities = toy(2000, 5, 1.0, 1.0)
    before = cde_loss(densities, truth)
    for made in (first, fit_local(pit, feature[:, None], ["v"], first)):
        after = cde_loss(applied(densities, made, feature), truth)
        assert abs((after - before).mean()) < 1.96 * before.std() / np.sqrt(len(before))


def test_maps_are_monotone_and_densities_integrate_to_one(uneven) -> None:
    feature, _, densities = toy(50, 6, 0.6, 1.6)
    feature[:3] = np.nan
    for made in uneven:
        level = made.levels(np.tile(np.linspace(0, 1, 501), (50, 1)), feature[:, None])
        assert (np.diff(level, axis=1) > 0).all()
        assert (level[:, 0] == 0).all()
        np.testing.assert_allclose(level[:, -1], 1, atol=1e-12)
        after = calibrated(densities, made, feature[:, None])
        assert after.dtype == np.float32
        np.testing.assert_allclose(after @ np.diff(EDGES), 1, atol=1e-6)
        # A bin without probability stays without.
        assert (after[densities.values == 0] == 0).all()


def test_our_reading_of_the_trees_is_that_of_scikit_learn(monkeypatch) -> None:
    kept = []
    make = fit._classifier
    monkeypatch.setattr(fit, "_classifier", lambda *a: kept.append(make(*a)) or kept[-1])
    feature, truth, densities = toy(600, 7, 0.6, 1.6)
    feature[::7] = np.nan
    pit = cdf_at(densities, truth)
    made = fit_local(pit, feature[:, None], ["v"], fit_global(pit))
    assert len(made.trees) > 5
    rows = np.array([[v, a] for v in feature[:40] for a in made.asked])
    expected = kept[0].predict_proba(rows)[:, 1].reshape(40, -1)
    found = (
        made.at_corners(feature[:40, None]) - made.identity * np.array([0, *made.asked, 1])
    ) / (1 - made.identity)
    np.testing.assert_allclose(found[:, 1:-1], expected, atol=1e-12)


def test_a_file_gives_the_same_map_bit_for_bit_and_an_altered_one_is_refused(
    uneven, tmp_path: Path
) -> None:
    feature, _, densities = toy(20, 8, 0.6, 1.6)
    for made in uneven:
        path = write_calibration(tmp_path, made, ORIGIN)
        again, origin = read_calibration(tmp_path, made.name)
        assert origin == ORIGIN
        np.testing.assert_array_equal(
            calibrated(densities, again, feature[:, None]),
            calibrated(densities, made, feature[:, None]),
        )
        content = json.loads(path.read_text())
        assert b"pickle" not in path.read_bytes()
    tree = content["map"]["trees"][0]
    wrongs = [
        {"trees": [{**tree, "left": [0] * len(tree["left"])}]},
        {"trees": [{**tree, "feature": [7, *tree["feature"][1:]]}]},
        {"trees": [{**tree, "value": tree["value"][1:]}]},
        {"asked": [0.5, 0.4]},
        {"identity": 0.0},
        {"first": asdict(replace(uneven[0], share=uneven[0].share[::-1]))},
        {"first": {"pit": [0.0], "share": [0.0]}},
    ]
    for wrong in wrongs:
        path.write_text(json.dumps({**content, "map": {**content["map"], **wrong}}))
        with pytest.raises(
            DataError, match=r"calibration-local.json is damaged: .*calibrate' again"
        ):
            read_calibration(tmp_path, "local")
    with pytest.raises(UsageError, match="no global calibration; fit one with"):
        read_calibration(tmp_path / "none", "global")
    with pytest.raises(DataError, match="at least 20 objects with a known label, got 5"):
        fit_global(np.linspace(0, 1, 5))


def test_many_equal_pits_make_a_map_all_the_same() -> None:
    made = fit_global(np.concatenate([np.zeros(500), np.ones(300), np.linspace(0.2, 0.8, 200)]))
    assert made.check() == ""
    assert fit_global(np.full(100, 0.5)).check() == ""
