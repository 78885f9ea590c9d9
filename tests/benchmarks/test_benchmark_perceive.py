"""The question of bands against redshift: the yardstick, the rank correlation, the controls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.questions.perceive import question, trainings
from benchmarks.questions.perceive.findings import (
    OBJECT,
    check_controls,
    is_in_order,
    leading_bands,
    maps_of,
    marginal_crps,
    rank_correlations,
)
from benchmarks.questions.perceive.fisher import flux_errors, lost_shares, mock_shares
from msdata.mock.objects import mantis_id
from msdata.mock.photometry import BANDS

NUM_BINS = 3


def test_shares_of_information_equal_those_of_the_inverse_fisher_matrix() -> None:
    random = np.random.default_rng(0)
    flux_NB, slope_NB, error_NB = random.uniform(1, 2, (3, 5, 4))

    def information(keep: list[int], row: int) -> float:
        design = np.stack([slope_NB[row, keep], flux_NB[row, keep]]) / error_NB[row, keep]
        return float(1 / np.linalg.inv(design @ design.T)[0, 0])

    found = lost_shares(flux_NB, slope_NB, error_NB)
    for row in range(5):
        whole = information([0, 1, 2, 3], row)
        for band in range(4):
            rest = [b for b in range(4) if b != band]
            assert found[row, band] == pytest.approx(1 - information(rest, row) / whole, abs=1e-9)


def test_a_color_of_two_bands_is_lost_with_either_and_a_flat_third_adds_little() -> None:
    flux = np.ones((1, 3))
    slope = np.array([[1.0, -1.0, 0.0]])
    errors = np.array([[0.1, 0.1, 1e6]])
    assert lost_shares(flux, slope, errors) == pytest.approx(np.array([[1, 1, 0]]), abs=1e-6)


def test_depths_of_point_sources_are_those_of_the_mock() -> None:
    depth = dict(zip(BANDS, -2.5 * np.log10(5 * flux_errors(np.zeros((1, 9)))[0]), strict=True))
    assert [round(depth[b], 2) for b in "grizy"] == [23.3, 23.2, 23.1, 22.3, 21.4]
    # 5 sigma of unWISE coadds in AB: 20.72 + 0.7 and 19.97 + 0.5 (Schlafly et al. 2019), +- 0.6.
    assert depth["W1"] == pytest.approx(21.4, abs=0.6)
    assert depth["W2"] == pytest.approx(20.5, abs=0.6)


def test_the_break_passes_through_the_bands_in_order() -> None:
    ids = [f"{mantis_id(0, number):07d}" for number in range(100)]
    share_NB = mock_shares(ids, np.full(100, 0.03), 100)
    assert share_NB.shape == (100, 9)
    assert (share_NB > -1e-9).all()
    assert (share_NB < 1 + 1e-9).all()
    assert 0.2 < np.median(share_NB[:, BANDS.index("W1")]) < 0.6
    assert np.median(share_NB[:, BANDS.index("FUV")]) < 0.01


def make_objects(
    salience_NB: np.ndarray, share_NB: np.ndarray, rise_NB: np.ndarray | None = None
) -> np.ndarray:
    found = np.zeros(len(salience_NB), OBJECT)
    found["bin"] = np.arange(len(found)) % NUM_BINS
    found["loss"], found["marginal"] = 0.01, 0.11
    found["exchanged"] = 0.01 + (salience_NB if rise_NB is None else rise_NB)
    found["salience"], found["share"] = salience_NB, share_NB
    return found


def make_shares() -> np.ndarray:
    """Shares whose order among bands differs from bin to bin, the same for all objects of one."""
    random = np.random.default_rng(3)
    return random.uniform(0, 0.5, (NUM_BINS, 9))[np.arange(300) % NUM_BINS]


def test_rho_is_1_where_salience_follows_the_information_and_minus_1_where_it_opposes_it() -> None:
    share_NB = make_shares()
    for sign in (1, -1):
        objects = make_objects(1 + sign * share_NB, share_NB)
        found = rank_correlations(objects, NUM_BINS, replicates=1)
        for measure in ("salience", "score", "salience within bins", "score within bins"):
            assert found[measure]["value"] == pytest.approx(sign)
        assert found["salience"]["cells"] == (share_NB[:3] > 0.05).sum()


def test_rho_of_noise_has_an_interval_that_holds_0() -> None:
    share_NB = make_shares()
    noise_NB = np.random.default_rng(1).exponential(1, share_NB.shape)
    found = rank_correlations(make_objects(noise_NB, share_NB), NUM_BINS, replicates=40)
    assert found["salience"]["low"] < 0 < found["salience"]["high"]


def test_scores_in_bins_are_the_rise_over_what_the_network_knows() -> None:
    rise_NB = np.tile(np.arange(9) / 100, (30, 1))
    found = maps_of(make_objects(np.ones((30, 9)), np.ones((30, 9)), rise_NB), NUM_BINS)
    assert found["score"] == pytest.approx(np.tile(np.arange(9)[:, None] / 10, (1, NUM_BINS)))
    # Of two redshifts at a distance of 1: the integral of (1/2)^2.
    assert marginal_crps(np.array([0.2, 1.2])).tolist() == [0.25, 0.25]


def test_leading_bands_are_told_to_be_in_order_or_not() -> None:
    found = np.zeros((9, 4))
    for column, band in enumerate("griz"):
        found[BANDS.index(band), column] = 1
    found[BANDS.index("W1")] = 2
    assert leading_bands(found) == ["W1"] * 4
    assert leading_bands(found, ("g", "r", "i", "z")) == ["g", "r", "i", "z"]
    assert is_in_order(["g", None, "g", "r", "i", "i", "z"])
    assert not is_in_order(["g", "r", "g", "i", "z"])
    assert not is_in_order(["g", "r", "i", "i"])


def scores_of(values: dict[str, tuple[float, float, float] | None]) -> dict[str, Any]:
    modalities = {
        name: {
            "kind": "band",
            "by_task": v and dict(zip(("value", "low", "high"), v, strict=True)),
        }
        for name, v in values.items()
    }
    return {"perception": {"runs": [{"scores": {"crps": {"modalities": modalities}}}]}}


@pytest.mark.parametrize(
    ("deaf", "only", "other", "holds"),
    [
        ((0.001, -0.004, 0.006), (0.98, 0.9, 1.1), (-0.01, -0.03, 0.01), (True, True)),
        ((0.001, 0.0005, 0.006), (0.7, 0.6, 0.9), (0.01, 0.0, 0.02), (False, False)),
        ((0.03, -0.04, 0.06), (0.98, 0.9, 1.1), (-0.06, -0.2, 0.2), (False, False)),
        (None, None, (0.0, 0.0, 0.0), (False, False)),
    ],
)
def test_controls_hold_only_within_their_limits(
    deaf: Any, only: Any, other: Any, holds: tuple[bool, bool]
) -> None:
    found = check_controls(
        scores_of({"unwise.W2": deaf, "panstarrs.g": other}),
        scores_of({"unwise.W1": only, "panstarrs.g": other}),
    )
    assert (found["deaf"]["holds"], found["only"]["holds"]) == holds


def make_result() -> dict[str, Any]:
    values = [[0.1 * (1 + z) for z in range(NUM_BINS)] for _ in BANDS]
    score = {"value": 0.1, "low": 0.0, "high": 0.2}
    rho = {**score, "cells": 9}
    names = ("early", "small-early", "small-late")
    measures = ("fisher", "salience", "score")
    exchange = {
        "maps": dict.fromkeys(measures, values),
        "leading_optical": {measure: ["g", "r", None] for measure in measures},
        "rho": {f"{m}{w}": rho for m in ("salience", "score") for w in ("", " within bins")},
    }
    return {
        "design": {
            "num_objects": 10,
            "epochs": 1,
            "num_control": 5,
            "control_epochs": 2,
            "redshift_edges": [0, 0.4, 0.8, 1.6],
        },
        "num_test": 9,
        "objects_in_bins": [3, 3, 3],
        "exchanges": dict.fromkeys(("early", "magnitude"), exchange),
        "networks": {
            name: {"NMAD": 0.02, "CRPS": score, "panstarrs.g": score, "E(B-V)": None}
            for name in names
        },
        "late_minus_early": {"panstarrs.g": score},
        "controls": check_controls(scores_of({}), scores_of({})),
    }


def test_the_report_says_what_was_not_reached_and_the_picture_has_its_bands() -> None:
    shown = question.show(make_result())
    assert any("the goal of 0.6 is NOT reached" in s for s in shown.sentences)
    assert any("NOT in the order g r i z" in s for s in shown.sentences)
    assert any("IT FAILS" in s for s in shown.sentences)
    alone = {**make_result(), "late_minus_early": {}}
    assert question.show(alone).tables[1].columns[-1] == "P, small-late"
    assert shown.tables[1].columns[-1] == "late minus early, paired"
    assert len(shown.charts[0].series[0].values) == len(shown.charts[0].labels) == 2
    svg = question.draw_headline(make_result())
    assert b"<title>Bands against redshift</title>" in svg
    assert len(svg) < 200_000


def test_cells_that_were_measured_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = trainings.Design(
        num_objects=10,
        epochs=1,
        num_control=10,
        control_epochs=1,
        permutations=2,
        redshift_edges=(0, 1),
    )
    ran: list[tuple[Any, ...]] = []

    def run_mstrain(*words: Any) -> None:
        ran.append(words)
        if words[0] == "perceive":
            out = Path(words[words.index("--out") + 1])
            out.mkdir()
            (out / "perceive-test.json").write_text(json.dumps({"by": out.name}))

    monkeypatch.setattr(trainings, "run_mstrain", run_mstrain)
    monkeypatch.setattr(trainings, "make_data", lambda name, *_: tmp_path / f"data-{name}")
    first = trainings.measure_all(design, tmp_path)
    assert [words[0] for words in ran].count("perceive") == 5
    assert {"augment.fusion=late", "epochs=1"} <= {w for words in ran for w in words}
    (pair,) = (w for w in ran if w[0] == "perceive" and tmp_path / "run-small-late" in w)
    assert pair[1:3] == (tmp_path / "run-small-early", tmp_path / "run-small-late")
    assert len(trainings.cells_of(replace(design, has_pair=False))) == 4
    ran.clear()
    assert trainings.measure_all(design, tmp_path) == first
    assert not ran


@pytest.mark.parametrize("words", [["--workload", "stamps"], ["--data", "DATA"]])
def test_objects_of_unknown_spectra_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    words = [str(tmp_path / "data") if word == "DATA" else word for word in words]
    assert main(["perceive", "--out", str(tmp_path / "out"), *words]) == 2
    assert "perceive must make its own mock objects" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
