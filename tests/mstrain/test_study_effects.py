"""Effects of paired trainings against closed forms: t tests, Holm, equivalence, power laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mstrain.study.effects import effects_of, fit_law, holm, paired_effect, verdict_of


def test_effects_are_those_of_a_paired_t_test() -> None:
    random = np.random.default_rng(7)
    reference = random.normal(1, 0.2, 9)
    arm = reference + random.normal(0.1, 0.1, 9)
    effect, wanted = paired_effect(arm, reference, 0.01), stats.ttest_rel(arm, reference)
    interval = wanted.confidence_interval(0.95)
    np.testing.assert_allclose(effect["p"], wanted.pvalue)
    np.testing.assert_allclose([effect["low"], effect["high"]], [interval.low, interval.high])
    np.testing.assert_allclose(effect["cohen_d"], wanted.statistic / 3)
    same = paired_effect(reference, reference, 0.01)
    assert (same["difference"], same["p"], same["cohen_d"]) == (0, 1, None)


@pytest.mark.parametrize("shift", [-0.02, 0.0, 0.03, 0.2])
def test_equivalence_is_two_one_sided_t_tests_and_resolved_the_end_of_a_90_percent_interval(
    shift: float,
) -> None:
    random, margin = np.random.default_rng(3), 0.08
    reference = random.normal(1, 0.2, 8)
    arm = reference + shift + random.normal(0, 0.05, 8)
    effect = paired_effect(arm, reference, margin)
    sides = [
        stats.ttest_1samp(arm - reference, -margin, alternative="greater").pvalue,
        stats.ttest_1samp(arm - reference, margin, alternative="less").pvalue,
    ]
    np.testing.assert_allclose(effect["p_equivalence"], max(sides))
    ends = stats.ttest_1samp(arm - reference, 0).confidence_interval(0.9)
    np.testing.assert_allclose(effect["resolved"], max(abs(ends.low), abs(ends.high)))
    again = paired_effect(arm, reference, effect["resolved"])
    np.testing.assert_allclose(again["p_equivalence"], 0.05)


def test_the_smallest_effect_is_seen_in_four_of_five_studies() -> None:
    random, num = np.random.default_rng(8), 6
    noise = random.normal(0, 1, (4000, num))
    typical = np.array([-1.0, 1.0] * (num // 2)) * np.sqrt((num - 1) / num)
    assert typical.std(ddof=1) == pytest.approx(1)
    smallest = paired_effect(typical + 5, np.full(num, 5.0), 0.1)["smallest_seen"]
    p = stats.ttest_1samp(noise + smallest, 0, axis=1).pvalue
    assert 0.72 < np.mean(p < 0.05) < 0.85


def test_p_is_corrected_for_the_number_of_comparisons() -> None:
    base = paired_effect([1.0, 2.0, 3.5], [1.0, 1.5, 2.0], 0.1)
    given = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5}
    found = holm({n: {**base, "p": p} for n, p in given.items()})
    assert {n: round(e["p_holm"], 6) for n, e in found.items()} == {
        **{"a": 0.09, "b": 0.04},
        **{"c": 0.09, "d": 0.5},
    }
    assert list(found) == list(given)


def test_a_tiny_scatter_about_0_is_equivalent_and_a_large_one_is_inconclusive() -> None:
    random = np.random.default_rng(1)
    reference = random.normal(0.05, 0.005, 8)
    values = {
        "reference": {"nmad": reference, "loss": reference - 1},
        "near": {"nmad": reference + random.normal(0, 5e-5, 8), "loss": reference - 1},
        "loose": {"nmad": reference + random.normal(0, 5e-3, 8), "loss": reference - 1},
        "worse": {"nmad": reference * 1.3, "loss": reference - 0.9},
        "better": {"nmad": reference * 0.7, "loss": reference - 1.1},
    }
    found = effects_of(values, dict.fromkeys(list(values)[1:], "reference"), ("nmad", "loss"), 0.01)
    assert {name: verdict_of(effects) for name, effects in found.items()} == {
        "near": "equivalent",
        "loose": "inconclusive",
        "worse": "WORSE",
        "better": "BETTER",
    }
    assert found["near"]["nmad"]["margin"] == pytest.approx(0.01 * reference.mean())
    # A loss has no zero: its margin is in nats.
    assert found["near"]["loss"]["margin"] == 0.01


def test_a_power_law_is_found_with_its_exponent_and_its_floor() -> None:
    random, num = np.random.default_rng(4), np.array([100.0, 200, 400, 800, 1600])
    noise = np.exp(random.normal(0, 0.01, (8, 5)))
    found = fit_law(num, 2 * num**-0.4 * noise)
    assert found["exponent"]["low"] < 0.4 < found["exponent"]["high"]
    assert found["exponent"]["value"] == pytest.approx(0.4, abs=0.02)
    assert found["halving"] == pytest.approx(2**2.5, rel=0.15)
    assert found["floor"]["low"] == 0
    assert found["worst"] < 0.03
    raised = fit_law(num, (2 * num**-0.6 + 0.02) * noise)
    assert raised["floor"]["low"] < 0.02 < raised["floor"]["high"]
    assert raised["exponent_above_floor"]["low"] < 0.6 < raised["exponent_above_floor"]["high"]
