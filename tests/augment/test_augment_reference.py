"""Augmented batches: scaling, NaN, noise, blur, dropout, and what a batch may look like."""

from __future__ import annotations

import math
from typing import Any

import augmenting
import numpy as np
import pytest
from augmenting import augmented, by_survey, draws_of

from msdata.augment import AugmentConfig, open_augmenter, stream
from msdata.augment.draws import MEAN_PHASE
from msdata.errors import UsageError
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

EVERYTHING = AugmentConfig(scaling="asinh", noise=0.5, psf_blur_arcsec=0.3, band_dropout=0.2)


def opened(config: AugmentConfig, *, seed: int = 0, batch_size: int = 16, threads: int = 2) -> Any:
    statistics = augmenting.make_statistics()
    return open_augmenter(
        MANTIS_SHRIMP,
        config,
        seed=seed,
        batch_size=batch_size,
        statistics=statistics,
        threads=threads,
    )


def test_channels_are_in_the_order_of_wavelength() -> None:
    batch = augmenting.noise_batch(1)
    for array in MANTIS_SHRIMP.arrays:
        for band in range(array.num_bands):
            batch[array.name][:, band] = 100 * len(array.name) + band
    image = augmented(batch, draws_of(1))["image"]
    # NUV FUV, g r i z y, W1 W2.
    wanted = [500, 501, 900, 901, 902, 903, 904, 600, 601]
    assert image[0, :, 60, 60].tolist() == pytest.approx(wanted)
    with opened(AugmentConfig()) as augmenter:
        assert augmenter.num_channels == {"image": 9}
    late = {"galex": (2, 22, 22), "panstarrs": (5, 120, 120), "unwise": (2, 22, 22)}
    with opened(AugmentConfig(fusion="late")) as augmenter:
        assert augmenter.shapes == late
        images = augmenter.run(batch, 0)
        assert {name: image.shape[1:] for name, image in images.items()} == late


def test_scalings_are_what_their_names_say() -> None:
    batch = augmenting.noise_batch(1)
    flux = {k: v.astype(np.float64) for k, v in by_survey(augmented(batch, draws_of(1))).items()}
    wanted: dict[str, dict[str, Any]] = {
        "linear10": {name: values / 10 for name, values in flux.items()},
        "mantis": {
            "galex": np.clip(flux["galex"] / 0.05, 0, 1),
            "panstarrs": np.maximum(np.arcsinh(0.08 * flux["panstarrs"]) / 8, 0),
            "unwise": np.maximum(np.arcsinh(0.6 * flux["unwise"]) / 6, 0),
        },
        "asinh": {},
    }
    statistics = augmenting.make_statistics()
    for name, values in flux.items():
        bands = statistics.arrays[name].values()
        wanted["asinh"][name] = np.stack(
            [np.arcsinh(values[:, i] / b.sky_sigma) / b.asinh_std for i, b in enumerate(bands)],
            axis=1,
        )
    for scaling, images in wanted.items():
        found = by_survey(augmented(batch, draws_of(1), statistics=statistics, scaling=scaling))
        for name, values in images.items():
            assert np.allclose(found[name], values, rtol=1e-5, atol=1e-6), (scaling, name)


@pytest.mark.parametrize("rotation", ["any", "exact"])
def test_pixels_that_are_not_finite_count_as_zero(rotation: str) -> None:
    batch = augmenting.noise_batch(6)
    batch["panstarrs"][0, 1, 80:90, 80:95] = np.nan
    batch["unwise"][2, 0, 3, 16] = np.inf
    batch["galex"][4] = np.nan
    batch["panstarrs"][5, 0, 0, 0] = np.nan
    finite = {n: np.where(np.isfinite(batch[n]), batch[n], 0) for n in augmenting.SURVEYS}
    config = AugmentConfig(rotation=rotation, scaling="asinh")
    with opened(config) as augmenter:
        found = augmenter.run(batch, 0)["image"]
        wanted = augmenter.run({**finite, "sample_id": batch["sample_id"]}, 0)["image"]
    assert np.isfinite(found).all()
    assert np.array_equal(found, wanted)
    assert not found[4, :2].any()


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(fusion="late", rotation="exact")])
def test_a_sample_is_augmented_alike_in_any_batch_by_any_number_of_threads(config: Any) -> None:
    batch = augmenting.noise_batch(13)
    with opened(config, threads=3) as augmenter:
        whole = augmenter.run(batch, 5)
    for chosen in (slice(2, 9), slice(12, None, -1), slice(4, 5), slice(0, 0)):
        part = {name: values[chosen] for name, values in batch.items()}
        with opened(config, threads=1) as augmenter:
            for name, images in augmenter.run(part, 5).items():
                assert np.array_equal(images, whole[name][chosen])


def test_validation_draws_nothing_and_training_differs_by_epoch() -> None:
    batch = augmenting.noise_batch(4)
    with opened(EVERYTHING) as augmenter, opened(EVERYTHING, seed=9) as other:
        plain = augmenter.run(batch, 0, train=False)["image"]
        assert np.array_equal(plain, other.run(batch, 3, train=False)["image"])
        first, second = (augmenter.run(batch, epoch)["image"] for epoch in (0, 1))
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, other.run(batch, 0)["image"])
    statistics = augmenting.make_statistics()
    still = draws_of(4, phase=MEAN_PHASE)
    found = augmented(batch, still, statistics=statistics, scaling="asinh")["image"]
    assert np.array_equal(plain, found)


def test_the_loaders_batch_is_not_changed() -> None:
    batch = augmenting.noise_batch(3)
    batch["panstarrs"][1, 2, 50:60] = np.nan
    before = {name: values.tobytes() for name, values in batch.items()}
    with opened(EVERYTHING) as augmenter:
        augmenter.run(batch, 0)
    assert {name: values.tobytes() for name, values in batch.items()} == before


def test_noise_has_the_drawn_share_of_the_sky_noise_and_differs_by_sample() -> None:
    statistics = augmenting.make_statistics()
    batch = {a.name: np.zeros((3, *a.shape), np.float32) for a in MANTIS_SHRIMP.arrays}
    drawn = draws_of(3, noise=0.4, noise_place=np.array([0.0, 0.5, 1 - 1e-9]))
    image = augmented(batch, drawn, statistics=statistics, noise=0.5)["image"]
    bands = [b for name in augmenting.SURVEYS for b in statistics.arrays[name].values()]
    for channel, band in enumerate(bands):
        # 43,200 values: their spread is known to a third of a per cent.
        assert image[:, channel].std() == pytest.approx(0.4 * band.sky_sigma, rel=0.02)
        assert abs(image[:, channel].mean()) < 0.02 * band.sky_sigma
    flat = image.reshape(27, -1)
    correlation = np.corrcoef(flat) - np.eye(27)
    assert np.abs(correlation).max() < 0.05


def test_blur_widens_a_star_by_the_drawn_width_and_keeps_its_flux() -> None:
    batch = augmenting.star_batch([(0, 0)])
    sharp = augmented(batch, draws_of(1))["image"][0]
    soft = augmented(batch, draws_of(1, blur_arcsec=0.5), psf_blur_arcsec=0.5)["image"][0]
    assert np.abs(soft.sum(axis=(1, 2)) / sharp.sum(axis=(1, 2)) - 1).max() < 0.005
    place = (np.arange(120) - 59.5) * 0.25
    for channel in range(2, 7):
        widths = [
            (image[channel].sum(axis=0) * place**2).sum() / image[channel].sum()
            for image in (sharp, soft)
        ]
        # Cut off at three standard deviations a Gaussian's variance is 2.7 % less.
        assert widths[1] - widths[0] == pytest.approx(0.25, rel=0.06)


def test_dropped_bands_are_zero_and_the_others_as_before() -> None:
    batch = augmenting.noise_batch(2)
    is_dropped = np.zeros((2, 9), bool)
    is_dropped[0, [1, 4, 8]] = True
    plain = augmented(batch, draws_of(2))["image"]
    found = augmented(batch, draws_of(2, is_dropped=is_dropped), band_dropout=0.1)["image"]
    assert not found[is_dropped].any()
    assert np.array_equal(found[~is_dropped], plain[~is_dropped])


def test_images_of_other_dtypes_and_shapes_are_taken() -> None:
    schema = Schema(
        name="inferred",
        arrays=(
            Survey(name="image", shape=(3, 24, 31), dtype="<i2", pixel_scale_arcsec=0.25),
            Survey(name="spectrum", shape=(40,)),
        ),
    )
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(-99, 99, (2, 3, 24, 31)).astype(np.int16),
        "sample_id": augmenting.ids(2),
    }
    config = AugmentConfig(fusion="late", rotation="none", crops={"image": 16}, scaling="linear10")
    with open_augmenter(schema, config, seed=0, batch_size=2) as augmenter:
        image = augmenter.run(batch, 0, train=False)["image"]
    # An even crop of 31 columns has its middle between two of them.
    crop = batch["image"][:, :, 4:20, :].astype(np.float64)
    assert np.allclose(image, (crop[..., 7:23] + crop[..., 8:24]) / 20, atol=1e-5)


def test_stream_hands_out_every_batch_with_its_own_images() -> None:
    batches = [augmenting.noise_batch(n, seed=n) for n in (5, 5, 3, 5, 1)]
    with opened(AugmentConfig()) as augmenter:
        wanted = [augmenter.run(batch, 2)["image"] for batch in batches]
        found = list(stream(batches, augmenter, 2, ahead=2))
        assert [batch is given for (batch, _), given in zip(found, batches, strict=True)]
        for (_, images), image in zip(found, wanted, strict=True):
            assert np.array_equal(images["image"], image)
        for _ in stream(batches, augmenter, 2):
            break
        # What was begun is finished when the loop is left.
        assert np.array_equal(augmenter.run(batches[0], 2)["image"], wanted[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"galex": None}, "the batch has no array 'galex'"),
        ({"sample_id": None}, "the batch has no sample_id, which keys the draws"),
        ({"sample_id": np.array(["1"])}, "the batch has 1 ids for 2 samples"),
        ({"galex": np.zeros((2, 2, 32, 30))}, r"\(samples, 2, 32, 32\), got \(2, 2, 32, 30\)"),
        ({"unwise": np.zeros((3, 2, 32, 32))}, r"\(samples, 2, 32, 32\), got \(3, 2, 32, 32\)"),
    ],
)
def test_a_batch_of_another_schema_is_refused(change: dict[str, Any], message: str) -> None:
    batch = {**augmenting.noise_batch(2), **change}
    batch = {name: values for name, values in batch.items() if values is not None}
    with opened(AugmentConfig()) as augmenter, pytest.raises(UsageError, match=message):
        augmenter.run(batch, 0)


def test_wrong_use_is_refused() -> None:
    batch = augmenting.noise_batch(3)
    with (
        opened(AugmentConfig(), batch_size=2) as augmenter,
        pytest.raises(UsageError, match="batch_size, 2 samples, got 3"),
    ):
        augmenter.run(batch, 0)
    with opened(AugmentConfig()) as augmenter:
        with pytest.raises(UsageError, match="no batch was submitted"):
            augmenter.result()
        augmenter.submit(batch, 0)
        with pytest.raises(UsageError, match=r"call result\(\) first"):
            augmenter.run(batch, 0)
    for backend in ("reference", "dali"):
        closed = open_augmenter(
            MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=3, backend=backend, threads=1
        )
        closed.submit(batch, 0)
        closed.close()
        closed.close()
        with pytest.raises(UsageError, match="the augmenter was closed; open a new one"):
            closed.run(batch, 0)
    with pytest.raises(UsageError, match="seed must be an integer of at least 0, got 'a'"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed="a", batch_size=1)  # type: ignore
    with pytest.raises(UsageError, match="backend must be one of reference, dali, got 'gpu'"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1, backend="gpu")
    with pytest.raises(UsageError, match="runs on the CPU"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1, device_id=0)


def test_the_config_survives_json_and_refuses_unknown_settings() -> None:
    assert AugmentConfig.from_dict(EVERYTHING.as_dict()) == EVERYTHING
    assert AugmentConfig.from_dict({"surveys": ["galex"]}).surveys == ("galex",)
    with pytest.raises(UsageError, match="no setting 'rotate'; it has fusion, rotation"):
        AugmentConfig.from_dict({"rotate": "any"})
    assert math.isclose(AugmentConfig.from_dict({"noise": 0.5}).noise, 0.5)


def test_stream_takes_the_epoch_from_the_loader() -> None:
    class Loader(list):  # type: ignore[type-arg]
        def state_dict(self) -> dict[str, int]:
            return {"epoch": 2}

    batches = Loader([augmenting.noise_batch(3, seed=1)])
    with opened(AugmentConfig()) as augmenter:
        wanted = augmenter.run(batches[0], 2)["image"]
        ((_, images),) = stream(batches, augmenter)
        assert np.array_equal(images["image"], wanted)
