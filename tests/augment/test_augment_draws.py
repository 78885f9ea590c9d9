"""The draws of augmentation depend on (seed, epoch, sample id) and on nothing else."""

from __future__ import annotations

import math
from typing import Any

import augmenting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.augment import AugmentConfig, draw
from msdata.augment.draws import id_hashes, philox4x32
from msdata.errors import UsageError

ALL = AugmentConfig(noise=0.5, psf_blur_arcsec=0.4, band_dropout=0.3)
# Counter, key and result of the authors' known-answer tests (Random123, kat_vectors).
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def rows(draws: Any) -> list[tuple[Any, ...]]:
    """The draws sample by sample."""
    fields = [np.asarray(value).tolist() for value in vars(draws).values()]
    return list(zip(*fields, strict=True))


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_the_generator_is_philox_4x32_10(counter: Any, key: Any, result: Any) -> None:
    words = philox4x32(np.array(counter, np.uint64)[:, None], key[0] | key[1] << 32)
    assert words[:, 0].tolist() == list(result)


@given(
    numbers=st.lists(st.integers(0, 10**9), unique=True, min_size=1, max_size=40),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 10_000),
    data=st.data(),
)
def test_a_sample_is_drawn_alike_in_any_batch_at_any_place(
    numbers: list[int], seed: int, epoch: int, data: Any
) -> None:
    texts = [str(n) for n in numbers]
    whole = dict(zip(texts, rows(draw(seed, epoch, texts, ALL, num_channels=9)), strict=True))
    some = data.draw(st.permutations(texts))[: data.draw(st.integers(0, len(texts)))]
    found = rows(draw(seed, epoch, some, ALL, num_channels=9))
    assert found == [whole[text] for text in some]


def test_ids_are_the_same_as_numbers_or_text_of_any_width() -> None:
    narrow = id_hashes(np.array(["7", "12"]))
    assert id_hashes(np.array(["7", "12", "a much longer id"]))[:2].tolist() == narrow.tolist()
    assert id_hashes(np.array([7, 12])).tolist() == narrow.tolist()
    assert id_hashes(np.array([b"7", b"12"])).tolist() == narrow.tolist()
    assert len(id_hashes(np.array([], np.str_))) == 0
    assert len(set(id_hashes(np.arange(100_000)).tolist())) == 100_000


PINNED: list[Any] = [
    (
        True,
        1,
        0.6525238628437711,
        0.0,
        0.2585728943813592,
        0.9408832131884992,
        0.10747010717168451,
        [False, False, False],
    ),
    (
        True,
        0,
        1.519125326398899,
        0.0,
        0.4898087647743523,
        0.868823585100472,
        0.13664697268977763,
        [True, False, False],
    ),
]


def test_the_draws_of_a_key_never_change() -> None:
    draws = draw(7, 3, ["0001234", "0001235"], ALL, num_channels=3)
    assert rows(draws) == PINNED


@pytest.mark.parametrize("other", [(1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (2**32, 0, "a")])
def test_seed_epoch_and_id_all_change_the_draws(other: tuple[int, int, str]) -> None:
    seed, epoch, name = other
    assert rows(draw(0, 0, ["a"], ALL)) != rows(draw(seed, epoch, [name], ALL))


def test_further_options_leave_the_angles_as_they_were() -> None:
    ids = augmenting.ids(50)
    plain, full = draw(0, 0, ids, AugmentConfig()), draw(0, 0, ids, ALL, num_channels=9)
    assert np.array_equal(plain.angle_rad, full.angle_rad)
    assert np.array_equal(plain.num_turns, full.num_turns)


def test_angles_are_uniform_over_the_circle() -> None:
    draws = draw(0, 0, augmenting.ids(20_000), AugmentConfig())
    share = np.sort((draws.num_turns * (math.pi / 2) + draws.angle_rad) / (2 * math.pi))
    # Kolmogorov and Smirnov: 1.63 / sqrt(n) is passed once in 100 times.
    distance = np.abs(share - np.arange(20_000) / 20_000).max()
    assert distance < 1.63 / math.sqrt(20_000)
    assert abs(draws.is_mirrored.mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("rotation", "flips", "wanted"),
    [("exact", True, 8), ("exact", False, 4), ("none", True, 4), ("none", False, 1)],
)
def test_symmetries_are_drawn_equally_often(rotation: str, flips: bool, wanted: int) -> None:
    config = AugmentConfig(rotation=rotation, flips=flips)
    draws = draw(0, 0, augmenting.ids(8000), config)
    assert not draws.angle_rad.any()
    counts = np.bincount(draws.num_turns * 2 + draws.is_mirrored)
    counts = counts[counts > 0]
    assert len(counts) == wanted
    assert np.abs(counts - 8000 / wanted).max() < 5 * math.sqrt(8000 / wanted)
    if rotation == "none":
        assert not (draws.num_turns % 2).any()


def test_bands_are_dropped_at_the_given_rate_but_never_all() -> None:
    config = AugmentConfig(band_dropout=0.6)
    dropped = draw(0, 0, augmenting.ids(4000), config, num_channels=2).is_dropped
    assert not dropped.all(axis=1).any()
    # One of two is dropped with 2 * 0.6 * 0.4, of which half for either.
    assert abs(dropped.mean() - 0.24) < 0.02
    config = AugmentConfig(band_dropout=0.2)
    dropped = draw(0, 0, augmenting.ids(4000), config, num_channels=9).is_dropped
    assert dropped.shape == (4000, 9)
    assert np.abs(dropped.mean(axis=0) - 0.2).max() < 0.03


def test_a_negative_key_is_refused() -> None:
    with pytest.raises(UsageError, match="seed and epoch must be at least 0, got -1 and 0"):
        draw(-1, 0, ["a"], ALL)


def test_a_batch_that_is_turned_alike_keeps_all_other_draws_of_its_samples() -> None:
    config = AugmentConfig(noise=0.5, band_dropout=0.3, turned_by="batch")
    ids = [str(n) for n in range(9)]
    alike, own = draw(1, 2, ids, config, num_channels=3), draw(1, 2, ids, ALL, num_channels=3)
    for name in ("is_mirrored", "num_turns", "angle_rad"):
        np.testing.assert_array_equal(getattr(alike, name), getattr(own, name)[0])
    np.testing.assert_array_equal(alike.noise, own.noise)
    np.testing.assert_array_equal(alike.is_dropped, own.is_dropped)
    assert draw(1, 2, [], config).angle_rad.shape == (0,)
