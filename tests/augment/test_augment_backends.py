"""The contract of every backend: agreement, scaling, NaN, noise, blur, dropout, batches, wrong use.

DALI and torch give the images of the reference for the same draws; what a backend has beyond that
is in test_augment_dali.py and test_augment_torch.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import augmenting
import numpy as np
import pytest
from augmenting import (
    CONFIGS,
    EXTRAS,
    OTHERS,
    PLACES,
    REFERENCE,
    Place,
    augmented,
    by_survey,
    draws_of,
    on_host,
)

import msdata
from msdata.augment import AugmentConfig, open_augmenter, stream
from msdata.augment.draws import MEAN_PHASE
from msdata.errors import UsageError
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

# DALI itself warns of deprecated modules and a missing GPU.
pytestmark = pytest.mark.filterwarnings("ignore")

# DALI adds up places along a row in float32, and so is off by up to a thousandth of a pixel.
PLACE_TOLERANCE_PIXELS = 2e-3
EVERYTHING = AugmentConfig(**EXTRAS, noise=0.5)


def opened(config: AugmentConfig, place: Place = REFERENCE, **options: Any) -> Any:
    statistics = augmenting.make_statistics()
    return augmenting.opened_at(place, config, **{"statistics": statistics, **options})


@pytest.mark.parametrize("place", OTHERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_backend_gives_the_images_of_the_reference(name: str, place: Place) -> None:
    config = AugmentConfig(**{"scaling": "none", **CONFIGS[name]})
    batch = augmenting.noise_batch(4)
    # Of unscaled flux: what a shift by the tolerance changes where neighbors differ most.
    steepest = max(np.abs(np.diff(batch[n], axis=-1)).max() for n in augmenting.SURVEYS)
    tolerance = PLACE_TOLERANCE_PIXELS * float(steepest)
    with opened(config, seed=1) as reference, opened(config, place, seed=1) as other:
        assert other.shapes == reference.shapes
        assert other.num_channels == reference.num_channels
        assert other.flux_factors == reference.flux_factors
        for train in (True, False):
            wanted = on_host(reference.run(batch, 7, train))
            found = on_host(other.run(batch, 7, train))
            assert list(found) == list(wanted)
            for key, image in found.items():
                assert image.dtype == np.float32
                assert image.shape == wanted[key].shape
                assert np.abs(image - wanted[key]).max() < tolerance, (key, train)
                if name == "late and exact":
                    assert np.array_equal(image, wanted[key]), key


@pytest.mark.parametrize("place", OTHERS)
@pytest.mark.parametrize("scaling", ["mantis", "asinh", "linear10"])
def test_a_star_field_agrees_to_a_thousandth(scaling: str, place: Place) -> None:
    batch = augmenting.star_batch([(0, 0), (3, -2), (-5, 1), (2, 6)])
    for name, flux in {"galex": 0.2, "panstarrs": 2e4, "unwise": 500.0}.items():
        batch[name] = batch[name] * np.float32(flux)
    config = AugmentConfig(scaling=scaling)
    with opened(config) as reference, opened(config, place) as other:
        wanted, found = (on_host(a.run(batch, 0))["image"] for a in (reference, other))
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["<f8", "<f2", "<i4", "<i2", "<u2", "|i1", "|u1", "|b1"])
def test_every_dtype_is_taken(dtype: str, place: Place) -> None:
    survey = Survey(name="image", shape=(2, 30, 30), dtype=dtype, pixel_scale_arcsec=0.3)
    schema = Schema(name="inferred", arrays=(survey,))
    pixels = np.random.default_rng(0).integers(0, 100, (3, 2, 30, 30)).astype(dtype)
    ids = augmenting.ids(3)
    floats = Schema(name="inferred", arrays=(replace(survey, dtype="<f4"),))
    with (
        opened(AugmentConfig(scaling="none"), schema=floats) as reference,
        opened(AugmentConfig(scaling="none"), place, schema=schema) as augmenter,
    ):
        wanted = reference.run({"image": pixels.astype(np.float32), "sample_id": ids}, 0)["image"]
        found = on_host(augmenter.run({"image": pixels, "sample_id": ids}, 0))["image"]
    assert np.abs(found - wanted).max() < PLACE_TOLERANCE_PIXELS * 100


@pytest.mark.parametrize("place", PLACES)
def test_the_border_continues_as_its_outermost_pixels(place: Place) -> None:
    # An image of 26 of 30 pixels turned by 45 degrees reaches over the border at its corners.
    ramp = np.arange(30, dtype=np.float32)
    batch = {"image": np.broadcast_to(ramp, (1, 1, 30, 30)), "sample_id": augmenting.ids(1)}
    schema = Schema(
        name="inferred",
        arrays=(Survey(name="image", shape=(1, 30, 30), pixel_scale_arcsec=0.3),),
    )
    drawn = draws_of(1, angle_rad=math.pi / 4)
    options = {"rotation": "exact", "crops": {"image": 26}, "fusion": "late"}
    image = augmented(batch, drawn, schema, place=place, **options)["image"][0, 0]
    assert image.min() == 0
    assert image.max() == 29
    along, down = np.meshgrid(np.arange(26) - 12.5, np.arange(26) - 12.5)
    wanted = np.clip(14.5 + (along - down) * math.sqrt(0.5), 0, 29)
    assert np.abs(image - wanted).max() < PLACE_TOLERANCE_PIXELS


@pytest.mark.parametrize("place", PLACES)
def test_channels_are_in_the_order_of_wavelength(place: Place) -> None:
    batch = augmenting.noise_batch(1)
    for array in MANTIS_SHRIMP.arrays:
        for band in range(array.num_bands):
            batch[array.name][:, band] = 100 * len(array.name) + band
    image = augmented(batch, draws_of(1), place=place)["image"]
    # NUV FUV, g r i z y, W1 W2.
    wanted = [500, 501, 900, 901, 902, 903, 904, 600, 601]
    assert image[0, :, 60, 60].tolist() == pytest.approx(wanted)
    with opened(AugmentConfig(), place) as augmenter:
        assert augmenter.num_channels == {"image": 9}
    late = {"galex": (2, 22, 22), "panstarrs": (5, 120, 120), "unwise": (2, 22, 22)}
    with opened(AugmentConfig(fusion="late"), place) as augmenter:
        assert augmenter.shapes == late
        images = on_host(augmenter.run(batch, 0))
        assert {name: image.shape[1:] for name, image in images.items()} == late


@pytest.mark.parametrize("place", PLACES)
def test_scalings_are_what_their_names_say(place: Place) -> None:
    batch = augmenting.noise_batch(1)
    plain = by_survey(augmented(batch, draws_of(1), place=place))
    flux = {k: v.astype(np.float64) for k, v in plain.items()}
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
        options = {"statistics": statistics, "scaling": scaling, "place": place}
        found = by_survey(augmented(batch, draws_of(1), **options))
        for name, values in images.items():
            assert np.allclose(found[name], values, rtol=1e-5, atol=1e-6), (scaling, name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rotation", ["any", "exact"])
def test_pixels_that_are_not_finite_count_as_zero(rotation: str, place: Place) -> None:
    batch = augmenting.noise_batch(6)
    batch["panstarrs"][0, 1, 80:90, 80:95] = np.nan
    batch["unwise"][2, 0, 3, 16] = np.inf
    batch["galex"][4] = np.nan
    batch["panstarrs"][5, 0, 0, 0] = np.nan
    finite = {n: np.where(np.isfinite(batch[n]), batch[n], 0) for n in augmenting.SURVEYS}
    config = AugmentConfig(rotation=rotation, scaling="asinh")
    with opened(config, place) as augmenter:
        found = on_host(augmenter.run(batch, 0))["image"]
        finite["sample_id"] = batch["sample_id"]
        wanted = on_host(augmenter.run(finite, 0))["image"]
    assert np.isfinite(found).all()
    assert np.array_equal(found, wanted)
    assert not found[4, :2].any()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(fusion="late", rotation="exact")])
def test_a_sample_is_augmented_alike_in_any_batch_by_any_number_of_threads(
    config: Any, place: Place
) -> None:
    batch = augmenting.noise_batch(13)
    with opened(config, place, threads=3) as augmenter:
        whole = on_host(augmenter.run(batch, 5))
    with opened(config, place, threads=1) as augmenter:
        for chosen in (slice(2, 9), slice(12, None, -1), slice(4, 5), slice(0, 0)):
            part = {name: values[chosen] for name, values in batch.items()}
            for name, images in on_host(augmenter.run(part, 5)).items():
                assert np.array_equal(images, whole[name][chosen])


@pytest.mark.parametrize("place", PLACES)
def test_validation_draws_nothing_and_training_differs_by_epoch(place: Place) -> None:
    batch = augmenting.noise_batch(4)
    with opened(EVERYTHING, place) as augmenter, opened(EVERYTHING, place, seed=9) as other:
        plain = on_host(augmenter.run(batch, 0, train=False))["image"]
        assert np.array_equal(plain, on_host(other.run(batch, 3, train=False))["image"])
        first, second = (on_host(augmenter.run(batch, epoch))["image"] for epoch in (0, 1))
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, on_host(other.run(batch, 0))["image"])
    still = draws_of(4, phase=MEAN_PHASE)
    options = {"statistics": augmenting.make_statistics(), "place": place, **EXTRAS}
    assert np.array_equal(plain, augmented(batch, still, **options)["image"])


@pytest.mark.parametrize("place", PLACES)
def test_the_loaders_batch_is_not_changed(place: Place) -> None:
    batch = augmenting.noise_batch(3)
    batch["panstarrs"][1, 2, 50:60] = np.nan
    before = {name: values.tobytes() for name, values in batch.items()}
    with opened(EVERYTHING, place) as augmenter:
        augmenter.run(batch, 0)
    assert {name: values.tobytes() for name, values in batch.items()} == before


@pytest.mark.parametrize("place", PLACES)
def test_noise_has_the_drawn_share_of_the_sky_noise_and_differs_by_sample(place: Place) -> None:
    statistics = augmenting.make_statistics()
    batch = {a.name: np.zeros((3, *a.shape), np.float32) for a in MANTIS_SHRIMP.arrays}
    drawn = draws_of(3, noise=0.4, noise_place=np.array([0.0, 0.5, 1 - 1e-9]))
    image = augmented(batch, drawn, statistics=statistics, place=place, noise=0.5)["image"]
    bands = [b for name in augmenting.SURVEYS for b in statistics.arrays[name].values()]
    for channel, band in enumerate(bands):
        # 43,200 values: their spread is known to a third of a per cent.
        assert image[:, channel].std() == pytest.approx(0.4 * band.sky_sigma, rel=0.02)
        assert abs(image[:, channel].mean()) < 0.02 * band.sky_sigma
    flat = image.reshape(27, -1)
    correlation = np.corrcoef(flat) - np.eye(27)
    assert np.abs(correlation).max() < 0.05


@pytest.mark.parametrize("place", PLACES)
def test_blur_widens_a_star_by_the_drawn_width_and_keeps_its_flux(place: Place) -> None:
    batch = augmenting.star_batch([(0, 0)])
    sharp = augmented(batch, draws_of(1), place=place)["image"][0]
    drawn = draws_of(1, blur_arcsec=0.5)
    soft = augmented(batch, drawn, place=place, psf_blur_arcsec=0.5)["image"][0]
    assert np.abs(soft.sum(axis=(1, 2)) / sharp.sum(axis=(1, 2)) - 1).max() < 0.005
    place = (np.arange(120) - 59.5) * 0.25
    for channel in range(2, 7):
        widths = [
            (image[channel].sum(axis=0) * place**2).sum() / image[channel].sum()
            for image in (sharp, soft)
        ]
        # Cut off at three standard deviations a Gaussian's variance is 2.7 % less.
        assert widths[1] - widths[0] == pytest.approx(0.25, rel=0.06)


@pytest.mark.parametrize("place", PLACES)
def test_dropped_bands_are_zero_and_the_others_as_before(place: Place) -> None:
    batch = augmenting.noise_batch(2)
    is_dropped = np.zeros((2, 9), bool)
    is_dropped[0, [1, 4, 8]] = True
    plain = augmented(batch, draws_of(2), place=place)["image"]
    drawn = draws_of(2, is_dropped=is_dropped)
    found = augmented(batch, drawn, place=place, band_dropout=0.1)["image"]
    assert not found[is_dropped].any()
    assert np.array_equal(found[~is_dropped], plain[~is_dropped])


@pytest.mark.parametrize("place", PLACES)
def test_images_of_other_shapes_are_taken(place: Place) -> None:
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
    with opened(config, place, schema=schema) as augmenter:
        image = on_host(augmenter.run(batch, 0, train=False))["image"]
    # An even crop of 31 columns has its middle between two of them.
    crop = batch["image"][:, :, 4:20, :].astype(np.float64)
    assert np.allclose(image, (crop[..., 7:23] + crop[..., 8:24]) / 20, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_stream_hands_out_every_batch_with_its_own_images_to_keep(place: Place) -> None:
    batches = [augmenting.noise_batch(n, seed=n) for n in (5, 5, 3, 5, 1)]
    with opened(AugmentConfig(), place) as augmenter:
        wanted = [on_host(augmenter.run(batch, 2))["image"] for batch in batches]
        found = list(stream(batches, augmenter, 2, ahead=2))
        assert all(batch is given for (batch, _), given in zip(found, batches, strict=True))
        for (_, images), image in zip(found, wanted, strict=True):
            assert np.array_equal(on_host(images)["image"], image)
        for _ in stream(batches, augmenter, 2):
            break
        # What was begun is finished when the loop is left.
        assert np.array_equal(on_host(augmenter.run(batches[0], 2))["image"], wanted[0])


@pytest.mark.parametrize("place", PLACES)
def test_any_number_of_batches_may_be_submitted_and_come_in_order(place: Place) -> None:
    sizes = [4, 1, 0, 3, 4, 0, 2]
    batches = [augmenting.noise_batch(n, seed=i) for i, n in enumerate(sizes)]
    with opened(AugmentConfig(fusion="late"), place) as augmenter:
        wanted = [on_host(augmenter.run(batch, 0, i % 3 > 0)) for i, batch in enumerate(batches)]
        for i, batch in enumerate(batches):
            augmenter.submit(batch, 0, i % 3 > 0)
        for images in wanted:
            found = on_host(augmenter.result())
            for name, image in images.items():
                assert np.array_equal(found[name], image)
        with pytest.raises(UsageError, match="no batch was submitted"):
            augmenter.result()
        # Closing the augmenter finishes batches in flight.
        for batch in batches:
            augmenter.submit(batch, 0)


@pytest.mark.parametrize("place", OTHERS)
def test_batches_of_the_ring_are_read_before_they_are_filled_again(
    packed: Callable[..., Path], mantis_source: Path, place: Place
) -> None:
    split = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1")).split("train")
    config = AugmentConfig(scaling="none")
    with (
        opened(config) as reference,
        opened(config, place) as other,
        msdata.Loader(split, 5, seed=0, prefetch=1, threads=2) as loader,
    ):
        for _ in range(2):
            for batch, images in stream(loader, other, 0, ahead=1):
                wanted = reference.run(batch, 0)["image"]
                assert np.abs(on_host(images)["image"] - wanted).max() < 0.2


@pytest.mark.parametrize("place", PLACES)
def test_training_takes_the_images_without_a_copy(place: Place) -> None:
    torch = pytest.importorskip("torch")
    from mstrain.data.transfer import DeviceTransfer

    batch = augmenting.noise_batch(2)
    device = torch.device("cpu" if place[1] is None else "cuda")
    with opened(AugmentConfig(), place) as augmenter:
        images = augmenter.run(batch, 0)["image"]
        tensor = DeviceTransfer(device, torch.contiguous_format).image(images)
        if place != ("dali", 0):
            assert tensor.data_ptr() == torch.from_dlpack(images).data_ptr()
        before = tensor.clone()
        for epoch in range(1, 4):
            augmenter.run(batch, epoch)
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("place", PLACES)
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
def test_a_batch_of_another_schema_is_refused(
    change: dict[str, Any], message: str, place: Place
) -> None:
    batch = {**augmenting.noise_batch(2), **change}
    batch = {name: values for name, values in batch.items() if values is not None}
    with opened(AugmentConfig(), place) as augmenter, pytest.raises(UsageError, match=message):
        augmenter.run(batch, 0)


@pytest.mark.parametrize("place", PLACES)
def test_wrong_use_is_refused(place: Place) -> None:
    batch = augmenting.noise_batch(3)
    with (
        opened(AugmentConfig(), place, batch_size=2) as augmenter,
        pytest.raises(UsageError, match="batch_size, 2 samples, got 3"),
    ):
        augmenter.run(batch, 0)
    with opened(AugmentConfig(), place) as augmenter:
        with pytest.raises(UsageError, match="no batch was submitted"):
            augmenter.result()
        augmenter.submit(batch, 0)
        with pytest.raises(UsageError, match=r"call result\(\) first"):
            augmenter.run(batch, 0)
    augmenter.close()
    with pytest.raises(UsageError, match="the augmenter was closed; open a new one"):
        augmenter.run(batch, 0)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="seed must be an integer of at least 0, got 'a'"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed="a", batch_size=1)  # type: ignore
    with pytest.raises(UsageError, match="one of reference, dali, torch, got 'gpu'"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1, backend="gpu")
    with pytest.raises(UsageError, match="runs on the CPU"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1, device_id=0)
    with pytest.raises(UsageError, match="dtype must be one of float32, bfloat16, got 'int8'"):
        opened(AugmentConfig(), ("torch", None), dtype="int8")
    with pytest.raises(UsageError, match="are options of backend 'torch' only"):
        opened(AugmentConfig(), channels_last=True)


def test_the_config_survives_json_and_refuses_unknown_settings() -> None:
    assert AugmentConfig.from_dict(EVERYTHING.as_dict()) == EVERYTHING
    assert AugmentConfig.from_dict({"surveys": ["galex"]}).surveys == ("galex",)
    with pytest.raises(UsageError, match="no setting 'rotate'; it has fusion, rotation"):
        AugmentConfig.from_dict({"rotate": "any"})
    assert math.isclose(AugmentConfig.from_dict({"noise": 0.5}).noise, 0.5)


@pytest.mark.parametrize("place", PLACES)
def test_stream_takes_the_epoch_from_the_loader(place: Place) -> None:
    class Loader(list):  # type: ignore[type-arg]
        def state_dict(self) -> dict[str, int]:
            return {"epoch": 2}

    batches = Loader([augmenting.noise_batch(3, seed=1)])
    with opened(AugmentConfig(), place) as augmenter:
        wanted = on_host(augmenter.run(batches[0], 2))["image"]
        ((_, images),) = stream(batches, augmenter)
        assert np.array_equal(on_host(images)["image"], wanted)
