"""Objects are held to the schema, NaN are filled as OpenCV fills them, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdata.errors import SampleError, UsageError
from msdata.pack.planning import schema_of
from msdata.pack.prepare import Preparation, conform, count_nan, inpaint, prepare
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

INPAINTING = Preparation(inpaint=("panstarrs",))


def _sample(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {a.name: random.normal(5, 2, a.shape).astype(np.float32) for a in MANTIS_SHRIMP.arrays}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 20), size=st.integers(3, 40), share=st.floats(0, 0.9))
def test_inpainting_is_opencvs_and_leaves_other_pixels_bit_for_bit(
    seed: int, size: int, share: float
) -> None:
    random = np.random.default_rng(seed)
    # A noise at which OpenCV's term of +-1 does not count, and a sky of 0.
    image = random.normal(0, 1e6, (3, size, size + 1)).astype(np.float32)
    image[random.random(image.shape) < share] = np.nan
    image[:, 0, 0] = 1.0
    before = image.copy()
    filled = inpaint(image)
    assert image.tobytes() == before.tobytes()
    for band, result in zip(image, filled, strict=True):
        mask = np.isnan(band)
        assert np.isfinite(result).all()
        assert result[~mask].tobytes() == band[~mask].tobytes()
        known = band[~mask]
        sky = np.float32(np.median(known))
        zeroed = np.where(mask, np.float32(0), band - sky)
        wanted = sky + cv2.inpaint(zeroed, mask.astype(np.uint8), 3, cv2.INPAINT_TELEA)[mask]
        wanted = np.clip(wanted, known.min(), known.max())
        assert np.abs(result[mask] - wanted).max(initial=0) < 0.01 * 1e6


def _galaxy() -> np.ndarray[Any, np.dtype[np.float32]]:
    """A galaxy of 100 sigma whose core, a corner and a far pixel are NaN; noise 1, sky 0."""
    y, x = np.mgrid[:170, :170]
    image = 100 * np.exp(-((x - 85) ** 2 + (y - 85) ** 2) / 128)
    image += np.random.default_rng(3).normal(0, 1, image.shape)
    image[80:84, 83:88] = image[:3, :3] = image[40, 40] = np.nan
    return image[None].astype(np.float32)


@pytest.mark.parametrize("unit", [1e-2, 1e-4, 1e4, 1e-30, 1e30])
@pytest.mark.parametrize("sky", [0.0, 30.0])
def test_the_fill_scales_with_the_unit_and_moves_with_the_sky(unit: float, sky: float) -> None:
    image = _galaxy()
    mask = np.isnan(image)
    plain = inpaint(image)[mask]
    scaled = inpaint(((image.astype(np.float64) + sky) * unit).astype(np.float32))[mask]
    # In sigma of the noise; 1e-2 is float32's rounding of a peak of 100 and a term of OpenCV's.
    assert np.abs(scaled.astype(np.float64) / unit - sky - plain).max() < 1e-2
    assert np.abs(plain[:9]).max() < 3, "sky at the corner"
    assert abs(plain[9]) < 3, "sky around the far pixel"
    assert np.abs(plain[10:] - 90).max() < 20, "the galaxy's core"


def test_bands_without_noise_are_filled_with_their_value() -> None:
    image = np.stack([np.full((20, 20), v, np.float32) for v in (0, 7, -1e-45, 3e38)])
    image[:, 4:6, 4:6] = image[:, 0, 0] = np.nan
    filled = inpaint(image)
    for band, value in zip(filled, (0, 7, -1e-45, 3e38), strict=True):
        assert (band == np.float32(value)).all()


@pytest.mark.parametrize("peak", [1.0, 1e12, 3.4e38])
@pytest.mark.parametrize("noise", [0.0, 1e-45, 1e-30])
def test_a_band_of_a_huge_range_is_filled_within_it(peak: float, noise: float) -> None:
    image = np.random.default_rng(4).choice([-noise, noise], (1, 30, 30)).astype(np.float32)
    image[0, 10:20, 10:20] = [-peak, peak] * 5
    image[0, 14:16, 14:16] = image[0, 25, 25] = np.nan
    filled = inpaint(image)
    assert np.isfinite(filled).all()
    assert np.abs(filled).max() <= np.float32(peak)
    assert abs(filled[0, 25, 25]) <= 1e-25 + 2e-30 * peak, "far from what is bright"


def test_a_band_whose_sampled_pixels_are_all_nan_is_filled_all_the_same() -> None:
    image = np.random.default_rng(5).normal(50, 1, (1, 128, 128)).astype(np.float32)
    image.reshape(-1)[::4] = np.nan
    filled = inpaint(image)
    assert np.isfinite(filled).all()
    assert 45 < filled.min() <= filled.max() < 55


def test_infinities_are_refused_where_they_would_be_filled_from() -> None:
    schema = Schema(name="inferred", arrays=(Survey(name="image", shape=(1, 9, 9)),))
    image = np.ones((1, 9, 9), np.float32)
    image[0, 4, 4], image[0, 0, 0] = np.inf, np.nan
    with pytest.raises(SampleError, match="array 'image' holds infinite pixels"):
        prepare({"image": image}, schema, Preparation(inpaint=("image",)))
    assert prepare({"image": image}, schema, Preparation()).num_nan == ((1,),)


@pytest.mark.parametrize("edge", [np.s_[:3], np.s_[-3:], np.s_[:, :3], np.s_[:, -3:]])
def test_nan_at_every_edge_are_filled(edge: Any) -> None:
    image = np.random.default_rng(1).normal(100, 1, (1, 170, 170)).astype(np.float32)
    image[0][edge] = np.nan
    filled = inpaint(image)
    assert np.isfinite(filled).all()
    assert 50 < filled.min() <= filled.max() < 150


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    dtype=st.sampled_from(["<f2", "<f4", "<f8"]),
    size=st.integers(1, 20_000),
    exponent=st.integers(-300, 300),
    num_nan=st.integers(0, 3),
)
def test_nan_are_counted_among_values_of_any_size(
    seed: int, dtype: str, size: int, exponent: int, num_nan: int
) -> None:
    random = np.random.default_rng(seed)
    largest = float(np.finfo(dtype).max)
    values = random.choice([-1.0, 1.0], size) * min(10.0**exponent, largest)
    values[random.permutation(size)[:num_nan]] = np.nan
    survey = Survey(name="image", shape=(size,), dtype=dtype)
    found = min(num_nan, size)
    assert count_nan(values.astype(dtype), survey) == ((found,) if found else ())


def test_negative_zero_and_denormals_survive_beside_filled_pixels() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 0] = -0.0
    image[0, 1] = np.float32(1e-45)
    image[0, 5, 5] = np.nan
    filled = inpaint(image)
    mask = np.isnan(image)
    assert filled[~mask].tobytes() == image[~mask].tobytes()


def test_a_band_of_nothing_but_nan_cannot_be_filled() -> None:
    image = np.ones((2, 4, 4), np.float32)
    image[1] = np.nan
    with pytest.raises(SampleError, match="NaN throughout"):
        inpaint(image)


def test_preparing_changes_nothing_that_it_was_given() -> None:
    sample = _sample()
    sample["panstarrs"][1, 3:6, 3:6] = np.nan
    before = {name: array.tobytes() for name, array in sample.items()}
    prepared = prepare(sample, MANTIS_SHRIMP, INPAINTING)
    assert {name: array.tobytes() for name, array in sample.items()} == before
    assert prepared.num_filled == ((0, 9, 0, 0, 0), (), ())
    assert np.isfinite(prepared.arrays[0]).all()


@pytest.mark.parametrize(("count", "is_good"), [(289, True), (290, False)])
def test_one_per_cent_of_a_band_is_the_limit(count: int, is_good: bool) -> None:
    sample = _sample()
    sample["panstarrs"][3].reshape(-1)[:count] = np.nan
    if is_good:
        assert prepare(sample, MANTIS_SHRIMP, INPAINTING).num_filled[0] == (0, 0, 0, count, 0)
        return
    with pytest.raises(SampleError, match=r"1\.00 % of panstarrs band z is NaN, more than 1 %"):
        prepare(sample, MANTIS_SHRIMP, INPAINTING)


def test_nan_in_arrays_that_are_not_inpainted_are_counted_and_kept() -> None:
    sample = _sample()
    sample["galex"][0, 1, 1:4] = np.nan
    prepared = prepare(sample, MANTIS_SHRIMP, INPAINTING)
    assert prepared.num_nan == ((), (3, 0), ())
    assert np.array_equal(prepared.arrays[1], sample["galex"], equal_nan=True)


def test_bands_of_zeros_are_flagged_where_zero_means_no_coverage() -> None:
    sample = _sample()
    sample["galex"][1] = 0
    sample["unwise"][0] = 0
    assert prepare(sample, MANTIS_SHRIMP, INPAINTING).missing_bands == ("galex.FUV",)
    sample["galex"][1, 31, 31] = 1e-9
    assert prepare(sample, MANTIS_SHRIMP, INPAINTING).missing_bands == ()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_pixels_of_a_survey_are_refused(value: float) -> None:
    sample = _sample()
    sample["unwise"][1, 2, 3] = value
    with pytest.raises(SampleError, match="'unwise' holds infinite pixels"):
        prepare(sample, MANTIS_SHRIMP, INPAINTING)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(np.float64),
        lambda a: a.astype(">f4"),
        np.asfortranarray,
        lambda a: np.stack([a, a], axis=-1)[..., 0],
        lambda a: a[::-1].copy()[::-1],
    ],
    ids=["float64", "big-endian", "Fortran", "strided", "reversed"],
)
def test_other_layouts_of_the_same_values_give_the_same_bytes(change: Any) -> None:
    sample = _sample()
    wanted = prepare(sample, MANTIS_SHRIMP, INPAINTING).arrays
    changed = {name: change(array) for name, array in sample.items()}
    for found, array in zip(
        prepare(changed, MANTIS_SHRIMP, INPAINTING).arrays, wanted, strict=True
    ):
        assert found.dtype == np.dtype("<f4")
        assert found.flags.c_contiguous
        assert found.tobytes() == array.tobytes()


def test_an_inferred_schema_takes_casts_that_keep_every_value_and_no_others() -> None:
    survey = Survey(name="x", shape=(3,), dtype="<i4")
    assert conform({"x": np.array([1, 2, 3], np.int16)}, survey).dtype == np.dtype("<i4")
    for array in (np.array([1, 2, 3], np.int64), np.array([1.0, 2, 3])):
        with pytest.raises(SampleError, match="does not fit int32"):
            conform({"x": array}, survey)
    with pytest.raises(SampleError, match="not numbers"):
        conform({"x": np.array(["a", "b", "c"])}, survey)


def test_values_beyond_the_range_are_refused_rather_than_made_infinite() -> None:
    sample = _sample()
    sample["unwise"] = np.full((2, 32, 32), 1e39)
    with pytest.raises(SampleError, match="beyond the range of float32"):
        prepare(sample, MANTIS_SHRIMP, INPAINTING)


def test_entries_that_an_inferred_schema_does_not_know_are_refused_unless_text() -> None:
    schema = Schema(name="inferred", arrays=(Survey(name="x", shape=(2,)),), scalars=("n",))
    good = {"x": np.zeros(2, np.float32), "n": 3, "name": "M 31", "is_good": True, "note": None}
    assert prepare(good, schema, Preparation()).scalars == {"n": 3}
    for extra in (np.zeros(2), 7, 7.5, np.float32(1)):
        with pytest.raises(SampleError, match="an entry 'y' that the schema lacks"):
            prepare({**good, "y": extra}, schema, Preparation())


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (3, 3),
        (np.int64(1) << 60, 1 << 60),
        (np.array(2.5, ">f8"), 2.5),
        (np.float32(0.5), 0.5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (-(1 << 63), -(1 << 63)),
    ],
)
def test_numbers_of_any_kind_become_plain_ones(value: Any, wanted: float) -> None:
    schema = Schema(name="inferred", arrays=(Survey(name="x", shape=(2,)),), scalars=("n",))
    sample = {"x": np.zeros(2, np.float32), "n": value}
    found = prepare(sample, schema, Preparation()).scalars["n"]
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize("value", [True, "3", 1j, np.zeros(1), np.array("3")])
def test_what_is_no_number_is_refused_as_one(value: Any) -> None:
    schema = Schema(name="mantis_shrimp", arrays=(Survey(name="x", shape=(2,)),), scalars=("n",))
    with pytest.raises(SampleError, match="it has no number 'n'"):
        prepare({"x": np.zeros(2, np.float32), "n": value}, schema, Preparation())


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, 10**400])
def test_whole_numbers_of_more_than_64_bits_are_refused_not_rounded(value: int) -> None:
    schema = Schema(name="mantis_shrimp", arrays=(Survey(name="x", shape=(2,)),), scalars=("n",))
    with pytest.raises(SampleError, match="its number 'n' has more than 64 bits"):
        prepare({"x": np.zeros(2, np.float32), "n": value}, schema, Preparation())


def test_integers_have_no_nan_and_a_fraction_is_a_fraction() -> None:
    assert count_nan(np.zeros((2, 3), np.int16), Survey(name="x", shape=(2, 3), dtype="<i2")) == ()
    for fraction in (-0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="--max-nan-fraction"):
            replace(Preparation(), max_nan_fraction=fraction)


def test_arrays_that_are_filled_by_request_are_held_to_the_fraction_too() -> None:
    schema = Schema(name="inferred", arrays=(Survey(name="image", shape=(2, 20, 20)),))
    image = np.ones((2, 20, 20), np.float32)
    image[1, 3, :5] = np.nan
    with pytest.raises(SampleError, match=r"1\.25 % of image band 1 is NaN, more than 1 %"):
        prepare({"image": image}, schema, Preparation(inpaint=("image",)))
    lenient = Preparation(inpaint=("image",), max_nan_fraction=0.02)
    assert prepare({"image": image}, schema, lenient).num_filled == ((0, 5),)
    assert prepare({"image": image}, schema, Preparation()).num_nan == ((5,),)


@pytest.mark.parametrize(
    "extra",
    [
        np.array("text"),
        np.array(b"bytes"),
        np.array(""),
        np.array(True),
        np.array(1j),
        "text",
        True,
    ],
)
def test_text_bytes_and_flags_hinder_no_object_also_as_arrays_without_axes(extra: Any) -> None:
    # As `dict(numpy.load(npz))` has them.
    sample = {"x": np.zeros(2, np.float32), "n": np.array(0.5), "name": extra}
    schema = schema_of(sample)
    assert (schema.names, schema.scalars) == (("x",), ("n",))
    assert prepare(sample, schema, Preparation()).scalars == {"n": 0.5}
