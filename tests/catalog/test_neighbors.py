"""Close pairs and which to keep, against all pairs by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_surveys import shifted

from msdata.catalog.build.build import keep_best
from msdata.catalog.sky import close_pairs

# Centers of small crowds: the seam of right ascension, both poles, and places in between.
CENTERS = [
    (0.0, 0.0),
    (359.9999, 45.0),
    (123.0, 90.0),
    (0.0, -90.0),
    (10.0, 89.9995),
    (200.0, -29.0),
]


def separations(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Arcsec between all positions, by the formula that is exact for small angles."""
    ra, dec = np.radians(ra), np.radians(dec)
    xyz = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    chord = np.linalg.norm(xyz[:, None] - xyz[None], axis=2)
    return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600


@given(
    st.sampled_from(CENTERS),
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.floats(1, 30),
    st.floats(2, 60),
)
def test_pairs_are_those_of_brute_force(center, seed, count, spread_arcsec, angle_arcsec):
    random = np.random.default_rng(seed)
    ra, dec = shifted(
        np.full(count, center[0]),
        np.full(count, center[1]),
        random.uniform(0, 360, count),
        1.0,
    )
    for _ in range(3):
        ra, dec = shifted(ra, dec, random.uniform(0, 360, count), spread_arcsec)
    distance = separations(ra, dec)
    assert np.abs(distance - angle_arcsec).min() > 1e-7 or count == 1
    expected = np.argwhere(np.triu(distance <= angle_arcsec, 1))
    np.testing.assert_array_equal(close_pairs(ra, dec, angle_arcsec), expected)


@pytest.mark.parametrize(("ra", "dec"), CENTERS)
@pytest.mark.parametrize("bearing", [0.0, 90.0, 211.0])
@pytest.mark.parametrize(("arcsec", "is_close"), [(2.9, True), (2.9999, True), (3.1, False)])
def test_companions_are_found_up_to_three_arcseconds(ra, dec, bearing, arcsec, is_close):
    x, y = shifted(np.array([ra]), np.array([dec]), np.array([bearing]), arcsec)
    pairs = close_pairs(np.array([ra, x[0]]), np.array([dec, y[0]]), 3.0)
    assert len(pairs) == int(is_close)


def test_an_empty_sky_has_no_pairs():
    nothing = np.empty(0)
    assert close_pairs(nothing, nothing, 3.0).shape == (0, 2)


@given(st.integers(1, 12), st.data())
def test_what_is_kept_is_what_walking_from_the_best_keeps(num, data):
    numbers = st.integers(0, num - 1)
    drawn = data.draw(st.lists(st.tuples(numbers, numbers), max_size=30))
    pairs = sorted({(min(p), max(p)) for p in drawn if p[0] != p[1]})
    kept: list[int] = []
    for number in range(num):
        if not any((better, number) in pairs for better in kept):
            kept.append(number)
    found = keep_best(num, np.array(pairs, np.int64).reshape(-1, 2))
    assert np.flatnonzero(found).tolist() == kept


def test_of_a_chain_both_ends_are_kept_where_the_middle_is_not_the_best():
    assert keep_best(3, np.array([[0, 1], [1, 2]])).tolist() == [True, False, True]
    assert keep_best(3, np.array([[0, 1], [0, 2]])).tolist() == [True, False, False]
