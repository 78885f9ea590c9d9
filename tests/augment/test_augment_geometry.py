"""Places and fluxes: stars stay where they are on the sky, and as bright, in every survey."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import augmenting
import numpy as np
import pytest
from augmenting import PLACES, SURVEYS, Place, augmented, by_survey, draws_of
from hypothesis import given, settings
from hypothesis import strategies as st

from msdata.augment import AugmentConfig, open_augmenter
from msdata.augment.geometry import make_geometries
from msdata.augment.spec import make_spec
from msdata.errors import UsageError
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

# DALI itself warns of deprecated modules and a missing GPU.
pytestmark = pytest.mark.filterwarnings("ignore")

LAYOUTS: dict[str, dict[str, Any]] = {
    "sky": {},
    "crops": {"grid": "crops"},
    "late": {"fusion": "late"},
}
SYMMETRIES = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]


def symmetric(image: Any, turns: int, mirrored: bool) -> Any:
    """Mirrored left to right, then turned counter-clockwise; the last axes are rows, columns."""
    return np.rot90(image[..., ::-1] if mirrored else image, turns, axes=(-2, -1))


def scaled_schema(**scales: float) -> Schema:
    """The default schema with other pixel scales."""
    return replace(
        MANTIS_SHRIMP,
        arrays=tuple(
            replace(a, pixel_scale_arcsec=scales.get(a.name, a.pixel_scale_arcsec))
            for a in MANTIS_SHRIMP.arrays
        ),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("turns", "mirrored"), SYMMETRIES)
def test_an_exact_symmetry_moves_pixels_and_changes_none(
    layout: str, turns: int, mirrored: bool
) -> None:
    batch = augmenting.noise_batch(2)
    plain = by_survey(augmented(batch, draws_of(2), **LAYOUTS[layout]))
    drawn = draws_of(2, num_turns=turns, is_mirrored=mirrored)
    turned = by_survey(augmented(batch, drawn, **LAYOUTS[layout]))
    for name in SURVEYS:
        assert np.array_equal(turned[name], symmetric(plain[name], turns, mirrored)), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("turns", "mirrored"), SYMMETRIES)
def test_a_star_field_turned_before_or_after_packing_is_the_same_image(
    layout: str, turns: int, mirrored: bool
) -> None:
    batch = augmenting.noise_batch(2)
    field = {name: symmetric(batch[name], turns, mirrored) for name in SURVEYS}
    before = by_survey(augmented(field, draws_of(2), **LAYOUTS[layout]))
    drawn = draws_of(2, num_turns=turns, is_mirrored=mirrored)
    after = by_survey(augmented(batch, drawn, **LAYOUTS[layout]))
    for name in SURVEYS:
        # On a survey's own grid no pixel is computed; elsewhere the last bit may be rounded.
        is_own_grid = layout == "late" or name == "panstarrs"
        tolerance = 0 if is_own_grid else np.spacing(np.abs(after[name]).max())
        assert np.abs(before[name] - after[name]).max() <= tolerance, name


@pytest.mark.parametrize("turns", range(4))
def test_a_quarter_turn_by_interpolation_agrees_with_the_exact_one(turns: int) -> None:
    batch = augmenting.noise_batch(1)
    plain = by_survey(augmented(batch, draws_of(1, num_turns=turns)))
    # The smallest angle makes every survey go through the warp.
    warped = by_survey(augmented(batch, draws_of(1, num_turns=turns, angle_rad=1e-12)))
    for name in SURVEYS:
        assert np.abs(plain[name] - warped[name]).max() < 2e-3, name


def test_the_crop_is_the_middle_of_the_array() -> None:
    batch = augmenting.noise_batch(1)
    images = augmented(batch, draws_of(1), fusion="late")
    assert np.array_equal(images["panstarrs"], batch["panstarrs"][:, :, 25:145, 25:145])
    assert np.array_equal(images["galex"], batch["galex"][:, :, 5:27, 5:27])


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=12)
@given(
    angle=st.floats(0, math.pi / 2 - 1e-9),
    turns=st.integers(0, 3),
    mirrored=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_every_pixel_is_what_bilinear_interpolation_at_its_place_gives(
    place: Place, angle: float, turns: int, mirrored: bool, layout: str
) -> None:
    batch = augmenting.noise_batch(1)
    drawn = draws_of(1, angle_rad=angle, num_turns=turns, is_mirrored=mirrored)
    images = by_survey(augmented(batch, drawn, place=place, **LAYOUTS[layout]))
    # Neighbors differ by up to 60 here, and places are float32: a few 1e-5 of a pixel.
    tolerance = 0.12 if place[0] == "dali" else 3e-3
    theta = turns * math.pi / 2 + angle
    for geometry in make_geometries(MANTIS_SHRIMP, AugmentConfig(**LAYOUTS[layout])):
        # Several places a pixel where the survey's pixels are coarse: 4 by 4 in late fusion; but
        # whole pixels are only moved.
        is_coarse = layout == "late" and geometry.name != "panstarrs"
        places = 4 if is_coarse and angle else 1
        size, middle = geometry.output_size, geometry.size[0] / 2

        def before(x: Any, y: Any, n: int = places, g: Any = geometry, c: float = middle) -> Any:
            along, down = ((p / n - g.output_size / 2) * g.ratio for p in (x, y))
            old_x = along * math.cos(theta) - down * math.sin(theta)
            old_y = along * math.sin(theta) + down * math.cos(theta)
            return c + (-old_x if mirrored else old_x), c + old_y

        array = batch[geometry.name][0, 0]
        wanted = augmenting.map_bilinear(array, before, size * places)
        wanted = wanted.reshape(size, places, size, places).mean(axis=(1, 3))
        found = images[geometry.name][0, 0]
        assert np.abs(found - wanted).max() < tolerance, geometry.name


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=8)
@given(
    angle=st.floats(0, 2 * math.pi),
    mirrored=st.booleans(),
    radius=st.floats(0, 5),
    direction=st.floats(0, 2 * math.pi),
)
def test_a_star_is_at_the_same_place_in_every_survey_and_where_the_angle_takes_it(
    place: Place, angle: float, mirrored: bool, radius: float, direction: float
) -> None:
    x, y = radius * math.cos(direction), radius * math.sin(direction)
    turns, rest = divmod(angle % (2 * math.pi), math.pi / 2)
    drawn = draws_of(1, num_turns=int(turns) % 4, angle_rad=rest, is_mirrored=mirrored)
    images = by_survey(augmented(augmenting.star_batch([(x, y)]), drawn, place=place))
    x = -x if mirrored else x
    # Counter-clockwise where y runs downwards.
    wanted = [x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)]
    for name in SURVEYS:
        found = center_of_light(images[name][0, 0], wanted)
        assert math.dist(found, wanted) < 0.1, name


def center_of_light(image: Any, near: list[float]) -> list[float]:
    """Where the light around a place is, in arcsec from the middle, right and down."""
    middle = [round(offset / 0.25 + 59.5) for offset in near]
    column, row = (slice(max(m - 38, 0), m + 39) for m in middle)
    light = image[row, column].astype(np.float64)
    place = (np.arange(120) - 59.5) * 0.25
    return [
        float((light.sum(axis=axis) * place[part]).sum() / light.sum())
        for axis, part in ((0, column), (1, row))
    ]


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=12)
@given(
    angle=st.floats(0, 2 * math.pi),
    x=st.floats(-1.5, 1.5),
    y=st.floats(-1.5, 1.5),
    layout=st.sampled_from(sorted(LAYOUTS)),
    unwise_scale=st.sampled_from([1.5, 2.75]),
)
def test_the_flux_of_a_star_is_kept_to_half_a_per_cent(
    place: Place, angle: float, x: float, y: float, layout: str, unwise_scale: float
) -> None:
    schema = scaled_schema(unwise=unwise_scale)
    turns, rest = divmod(angle % (2 * math.pi), math.pi / 2)
    drawn = draws_of(1, num_turns=int(turns) % 4, angle_rad=rest)
    batch = augmenting.star_batch([(x, y)], schema)
    images = by_survey(augmented(batch, drawn, schema, place=place, **LAYOUTS[layout]))
    config = AugmentConfig(scaling="none", **LAYOUTS[layout])
    with open_augmenter(schema, config, seed=0, batch_size=1) as augmenter:
        factors = augmenter.flux_factors
    for name in SURVEYS:
        flux = images[name][0].sum(axis=(1, 2), dtype=np.float64) * factors[name]
        assert np.abs(flux / batch[name][0].sum(axis=(1, 2), dtype=np.float64) - 1).max() < 0.005


def test_flux_factors_are_the_ratio_of_the_areas_of_pixels() -> None:
    with open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1) as augmenter:
        wanted = {"galex": (0.25 / 1.5) ** 2, "panstarrs": 1.0, "unwise": (0.25 / 2.75) ** 2}
        assert augmenter.flux_factors == pytest.approx(wanted)
    config = AugmentConfig(grid="crops")
    with open_augmenter(MANTIS_SHRIMP, config, seed=0, batch_size=1) as augmenter:
        wanted = {"galex": (22 / 120) ** 2, "panstarrs": 1.0, "unwise": (22 / 120) ** 2}
        assert augmenter.flux_factors == pytest.approx(wanted)


@pytest.mark.parametrize("place", PLACES)
def test_surface_brightness_is_kept(place: Place) -> None:
    batch = {a.name: np.full((1, *a.shape), 7.0, np.float32) for a in MANTIS_SHRIMP.arrays}
    images = augmented(batch, draws_of(1, angle_rad=0.4), place=place)
    assert np.abs(images["image"] - 7).max() < 1e-5


def test_default_crops_are_the_largest_that_any_rotation_leaves_whole() -> None:
    for side in range(3, 200):
        schema = Schema(name="inferred", arrays=(Survey(name="image", shape=(1, side, side)),))
        (geometry,) = make_geometries(schema, AugmentConfig(fusion="late"))
        assert geometry.output_size * math.sqrt(2) <= side + 1e-6
        assert (geometry.output_size + 2) * math.sqrt(2) > side
    sizes = {g.name: g.output_size for g in make_geometries(MANTIS_SHRIMP, LATE)}
    assert sizes == {"galex": 22, "panstarrs": 120, "unwise": 22}


LATE = AugmentConfig(fusion="late")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": {"panstarrs": 122}}, "needs 172.534, the array has 170; choose a smaller crop"),
        ({"crops": {"panstarrs": 172}, "rotation": "exact"}, "needs 172, the array has 170"),
        ({"fusion": "late", "crops": {"galex": 21}}, "without a shift of half a pixel; choose 20"),
        ({"crops": {"wise": 20}}, "crops must name images in use .*, got wise"),
        ({"surveys": ("galex", "sdss")}, "cannot find array 'sdss'; the schema has"),
        ({"crops": {"panstarrs": 0}}, "crop of panstarrs must be an integer .*, at least 1, got 0"),
        ({"rotation": "90"}, "rotation must be one of any, exact, none, got '90'"),
        ({"band_dropout": 1.0}, "band_dropout must be >= 0 and < 1, got 1.0"),
        ({"noise": -1.0}, "noise must be >= 0 and finite, got -1.0"),
        ({"noise": "much"}, "noise must be >= 0 and finite, got 'much'"),
        ({"flips": "yes"}, "flips must be True or False, got 'yes'"),
        ({"crops": 120}, "crops must be pixels by survey .*, got 120"),
        ({"surveys": "galex"}, "surveys must be distinct names .*, got 'galex'"),
        ({"surveys": ("galex", "galex")}, "surveys must be distinct names of arrays"),
        ({"scaling": "asinh"}, "run 'msdata stats DATA'"),
        ({"noise": 0.1}, "noise needs the statistics of the data set"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_cure(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(**options), seed=0, batch_size=1)


def test_unknown_pixel_scales_are_refused_on_the_common_sky_only() -> None:
    schema = Schema(
        name="inferred",
        arrays=(Survey(name="one", shape=(1, 64, 64)), Survey(name="two", shape=(2, 32, 32))),
    )
    with pytest.raises(UsageError, match=r"the pixel scale of 'one' is unknown.*'crops'"):
        open_augmenter(schema, AugmentConfig(scaling="linear10"), seed=0, batch_size=1)
    config = AugmentConfig(scaling="linear10", grid="crops", output_size=50)
    with open_augmenter(schema, config, seed=0, batch_size=1) as augmenter:
        assert augmenter.shapes == {"image": (3, 50, 50)}
    blurred = replace(config, psf_blur_arcsec=1.0)
    with pytest.raises(UsageError, match="cannot blur 'one' by arcsec"):
        open_augmenter(schema, blurred, seed=0, batch_size=1)
    spectra = Schema(name="inferred", arrays=(Survey(name="spectrum", shape=(40,)),))
    with pytest.raises(UsageError, match="none of spectrum is an image"):
        open_augmenter(spectra, AugmentConfig(), seed=0, batch_size=1)


@pytest.mark.parametrize("options", [*LAYOUTS.values(), {"output_size": 32}], ids=str)
def test_validation_is_as_smooth_as_training_where_any_angle_is_drawn(options: Any) -> None:
    batch, stars = augmenting.noise_batch(16), augmenting.star_batch([(0, 0)] * 16)
    config = AugmentConfig(scaling="none", **options)
    with open_augmenter(MANTIS_SHRIMP, config, seed=0, batch_size=16) as augmenter:
        training, validation = (
            by_survey(augmenter.run(batch, 0, train)) for train in (True, False)
        )
        turned, still = (by_survey(augmenter.run(stars, 0, train)) for train in (True, False))
    for name in SURVEYS:
        # Without care the noise of Pan-STARRS would be half as large again in validation.
        assert training[name].std() == pytest.approx(validation[name].std(), rel=0.03), name
        assert width_of(turned[name]) == pytest.approx(width_of(still[name]), rel=0.01), name


def width_of(images: Any) -> float:
    """Mean variance of the light along a row, in pixels squared."""
    light = images.sum(axis=2, dtype=np.float64)
    light /= light.sum(axis=-1, keepdims=True)
    place = np.arange(light.shape[-1])
    return float(((light * place**2).sum(axis=-1) - (light * place).sum(axis=-1) ** 2).mean())


@pytest.mark.parametrize("rotation", ["exact", "none"])
def test_validation_shows_pixels_as_they_are_where_whole_pixels_are_moved(rotation: str) -> None:
    batch = augmenting.noise_batch(2)
    config = AugmentConfig(scaling="none", fusion="late", rotation=rotation)
    with open_augmenter(MANTIS_SHRIMP, config, seed=0, batch_size=2) as augmenter:
        images = augmenter.run(batch, 0, train=False)
    assert np.array_equal(images["panstarrs"], batch["panstarrs"][:, :, 25:145, 25:145])
    assert np.array_equal(images["unwise"], batch["unwise"][:, :, 5:27, 5:27])


def test_one_survey_alone_needs_no_pixel_scale() -> None:
    schema = Schema(name="x", arrays=(Survey(name="img", shape=(3, 64, 64)),))
    (sky,) = make_geometries(schema, AugmentConfig(output_size=40))
    (crops,) = make_geometries(schema, AugmentConfig(output_size=40, grid="crops"))
    assert sky == crops
    assert sky.ratio == 44 / 40


def test_a_blur_wider_than_the_image_is_refused() -> None:
    config = AugmentConfig(psf_blur_arcsec=1e6)
    with pytest.raises(UsageError, match=r"leaves nothing of 'galex'.*give at most 10"):
        make_spec(MANTIS_SHRIMP, config, 0, None)
