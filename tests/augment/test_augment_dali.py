"""DALI gives the images of the reference for the same draws: on the CPU, and on a GPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import augmenting
import numpy as np
import pytest

import msdata
from msdata.augment import AugmentConfig, Statistics, open_augmenter, stream
from msdata.augment.dali import make_pipeline
from msdata.augment.spec import make_spec
from msdata.errors import MissingPackageError, UsageError
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

pytest.importorskip("nvidia.dali", reason="DALI is absent: pip install 'msdata[dali]'")
# DALI itself warns of deprecated modules and a missing GPU.
pytestmark = pytest.mark.filterwarnings("ignore")

# DALI adds up places along a row in float32, and so is off by up to a thousandth of a pixel.
PLACE_TOLERANCE_PIXELS = 2e-3
EVERYTHING = {"scaling": "asinh", "noise": 0.5, "psf_blur_arcsec": 0.4, "band_dropout": 0.3}
CONFIGS: dict[str, dict[str, Any]] = {
    "early": {},
    "late": {"fusion": "late"},
    "crops": {"grid": "crops"},
    "exact": {"rotation": "exact"},
    "late and exact": {"fusion": "late", "rotation": "exact"},
    "flips": {"rotation": "none", "scaling": "linear10"},
    "everything": EVERYTHING,
    "everything late": {**EVERYTHING, "fusion": "late"},
    "one survey": {"surveys": ("unwise",)},
}


def num_gpus() -> int:
    """GPUs that CUDA's driver sees."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(count) == 0 else 0


NEEDS_GPU = pytest.mark.skipif(num_gpus() == 0, reason="no GPU: CUDA's driver sees none")
DEVICES = [None, pytest.param(0, marks=NEEDS_GPU, id="gpu")]


def opened(
    backend: str,
    options: dict[str, Any],
    *,
    schema: Schema = MANTIS_SHRIMP,
    batch_size: int = 4,
    statistics: Statistics | None = None,
    device_id: int | None = None,
) -> Any:
    return open_augmenter(
        schema,
        AugmentConfig(**{"scaling": "none", **options}),
        seed=1,
        batch_size=batch_size,
        statistics=augmenting.make_statistics() if statistics is None else statistics,
        backend=backend,
        device_id=device_id,
        threads=1,
    )


def on_host(images: dict[str, Any]) -> dict[str, Any]:
    """Images of either backend as NumPy arrays, copied."""
    return {
        name: np.array(image.as_cpu() if hasattr(image, "as_cpu") else image)
        for name, image in images.items()
    }


def pair(options: dict[str, Any], **further: Any) -> tuple[Any, Any]:
    """The two backends, opened alike."""
    device_id = further.pop("device_id", None)
    dali = opened("dali", options, device_id=device_id, **further)
    return opened("reference", options, **further), dali


@pytest.mark.parametrize("device_id", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_both_backends_give_the_same_images(name: str, device_id: int | None) -> None:
    options = CONFIGS[name]
    batch = augmenting.noise_batch(4)
    reference, dali = pair(options, device_id=device_id)
    # Of unscaled flux: what a shift by the tolerance changes where neighbors differ most.
    steepest = max(np.abs(np.diff(batch[n], axis=-1)).max() for n in augmenting.SURVEYS)
    tolerance = PLACE_TOLERANCE_PIXELS * float(steepest)
    with reference, dali:
        assert dali.shapes == reference.shapes
        assert dali.num_channels == reference.num_channels
        assert dali.flux_factors == reference.flux_factors
        for train in (True, False):
            wanted = on_host(reference.run(batch, 7, train))
            found = on_host(dali.run(batch, 7, train))
            assert list(found) == list(wanted)
            for key, image in found.items():
                assert image.dtype == np.float32
                assert image.shape == wanted[key].shape
                assert np.abs(image - wanted[key]).max() < tolerance, (key, train)
                if options == CONFIGS["late and exact"]:
                    assert np.array_equal(image, wanted[key]), key


@pytest.mark.parametrize("device_id", DEVICES)
@pytest.mark.parametrize("scaling", ["mantis", "asinh", "linear10"])
def test_a_star_field_agrees_to_a_thousandth(scaling: str, device_id: int | None) -> None:
    batch = augmenting.star_batch([(0, 0), (3, -2), (-5, 1), (2, 6)])
    for name, flux in {"galex": 0.2, "panstarrs": 2e4, "unwise": 500.0}.items():
        batch[name] = batch[name] * np.float32(flux)
    reference, dali = pair({"scaling": scaling}, device_id=device_id)
    with reference, dali:
        wanted, found = (on_host(a.run(batch, 0))["image"] for a in (reference, dali))
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("device_id", DEVICES)
def test_an_exact_symmetry_moves_pixels_and_changes_none(device_id: int | None) -> None:
    batch = augmenting.noise_batch(8)
    options = {"fusion": "late", "rotation": "exact"}
    reference, dali = pair(options, batch_size=8, device_id=device_id)
    with reference, dali:
        wanted, found = on_host(reference.run(batch, 0)), on_host(dali.run(batch, 0))
    for name in augmenting.SURVEYS:
        assert np.array_equal(found[name], wanted[name])


@pytest.mark.parametrize("device_id", DEVICES)
def test_pixels_that_are_not_finite_count_as_zero(device_id: int | None) -> None:
    batch = augmenting.noise_batch(3)
    batch["panstarrs"][0, 1, 80:90, 80:95] = np.nan
    batch["galex"][1] = np.inf
    batch["unwise"][2, 0, 3] = -np.inf
    finite = {n: np.where(np.isfinite(batch[n]), batch[n], 0) for n in augmenting.SURVEYS}
    with opened("dali", {"scaling": "asinh"}, device_id=device_id) as dali:
        found = on_host(dali.run(batch, 0))["image"]
        wanted = on_host(dali.run({**finite, "sample_id": batch["sample_id"]}, 0))["image"]
    assert np.isfinite(found).all()
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("device_id", DEVICES)
@pytest.mark.parametrize("dtype", ["<f8", "<i2", "|u1"])
def test_other_dtypes_are_taken(dtype: str, device_id: int | None) -> None:
    schema = Schema(
        name="inferred",
        arrays=(Survey(name="image", shape=(2, 30, 30), dtype=dtype, pixel_scale_arcsec=0.3),),
    )
    random = np.random.default_rng(0)
    pixels = random.integers(0, 100, (3, 2, 30, 30)).astype(dtype)
    batch = {"image": pixels, "sample_id": augmenting.ids(3)}
    reference, dali = pair({}, schema=schema, device_id=device_id)
    with reference, dali:
        wanted, found = (on_host(a.run(batch, 0))["image"] for a in (reference, dali))
    assert np.abs(found - wanted).max() < PLACE_TOLERANCE_PIXELS * 100


def test_torch_takes_the_images_without_a_copy_and_may_keep_them() -> None:
    torch = pytest.importorskip("torch")
    batches = [augmenting.noise_batch(n, seed=n) for n in (4, 4, 3, 4, 2)]
    with opened("dali", {}) as dali:
        kept, wanted = [], []
        for _, images in stream(batches, dali, 0):
            tensor = torch.from_dlpack(images["image"])
            assert tensor.data_ptr() == images["image"].data_ptr()
            assert tensor.is_contiguous()
            kept.append(tensor)
            wanted.append(tensor.clone())
        assert [len(t) for t in kept] == [4, 4, 3, 4, 2]
    for tensor, values in zip(kept, wanted, strict=True):
        assert torch.equal(tensor, values)


@pytest.mark.parametrize("backend", ["reference", "dali"])
def test_training_takes_the_images_without_a_copy(backend: str) -> None:
    torch = pytest.importorskip("torch")
    from mstrain.config import TrainConfig
    from mstrain.data.batches import make_transfer, to_tensors

    config = TrainConfig()
    config = replace(
        config,
        model=replace(config.model, ebv_column=None),
        compute=replace(config.compute, channels_last=False),
    )
    batch = augmenting.noise_batch(2)
    with opened(backend, {}) as augmenter:
        images = augmenter.run(batch, 0)
        transfer = make_transfer(config, torch.device("cpu"))
        tensors = to_tensors(batch, images, config, transfer).images
        assert tensors["image"].data_ptr() == torch.from_dlpack(images["image"]).data_ptr()
        before = tensors["image"].clone()
        for epoch in range(1, 4):
            augmenter.run(batch, epoch)
        assert torch.equal(tensors["image"], before)


def test_any_number_of_batches_may_be_submitted_and_come_in_order() -> None:
    sizes = [4, 1, 0, 3, 4, 0, 2]
    batches = [augmenting.noise_batch(n, seed=i) for i, n in enumerate(sizes)]
    with opened("dali", {"fusion": "late"}) as dali:
        wanted = [on_host(dali.run(batch, 0, i % 3 > 0)) for i, batch in enumerate(batches)]
        for i, batch in enumerate(batches):
            dali.submit(batch, 0, i % 3 > 0)
        for images in wanted:
            found = on_host(dali.result())
            for name, image in images.items():
                assert np.array_equal(found[name], image)
        with pytest.raises(UsageError, match="no batch was submitted"):
            dali.result()
        # Closing the augmenter finishes batches in flight.
        for batch in batches:
            dali.submit(batch, 0)


def test_batches_of_the_ring_are_read_where_they_are_before_they_are_filled_again(
    packed: Callable[..., Path], mantis_source: Path
) -> None:
    split = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1")).split("train")
    reference, dali = pair({}, batch_size=5)
    with reference, dali, msdata.Loader(split, 5, seed=0, prefetch=1, threads=2) as loader:
        for _ in range(2):
            for batch, images in stream(loader, dali, 0, ahead=1):
                wanted = reference.run(batch, 0)["image"]
                assert np.abs(on_host(images)["image"] - wanted).max() < 0.2


def test_a_batch_that_is_too_long_or_of_another_schema_is_refused() -> None:
    with opened("dali", {}, batch_size=2) as dali:
        with pytest.raises(UsageError, match="a batch must have at most the augmenter's"):
            dali.run(augmenting.noise_batch(3), 0)
        with pytest.raises(UsageError, match="the batch has no array 'galex'"):
            dali.run({"panstarrs": np.zeros((1, 5, 170, 170), np.float32)}, 0)


def test_the_pipeline_of_a_gpu_can_be_laid_out_without_one() -> None:
    for options in CONFIGS.values():
        config = AugmentConfig(**{"scaling": "asinh", **options})
        spec = make_spec(MANTIS_SHRIMP, config, 0, augmenting.make_statistics())
        for is_interpolated in (True, False):
            make_pipeline(spec, 8, is_interpolated=is_interpolated, device_id=0, num_threads=1)


@pytest.mark.skipif(num_gpus() > 0, reason="there is a GPU")
def test_an_absent_gpu_is_said_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"DALI cannot use GPU 0 .*device_id=None for the CPU"):
        opened("dali", {}, device_id=0)


def test_without_dali_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'msdata\[dali\]'"):
        opened("dali", {})


@NEEDS_GPU
def test_images_on_the_gpu_become_tensors_there_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")
    batches = [augmenting.noise_batch(4, seed=n) for n in range(6)]
    reference, dali = pair({}, device_id=0)
    with reference, dali:
        for batch, images in stream(batches, dali, 0):
            tensor = torch.from_dlpack(images["image"])
            assert tensor.is_cuda
            assert tensor.data_ptr() == images["image"].data_ptr()
            wanted = reference.run(batch, 0)["image"]
            assert np.abs(tensor.cpu().numpy() - wanted).max() < 0.2


@NEEDS_GPU
def test_the_ring_is_page_locked_once_and_unlocked_at_the_end(
    packed: Callable[..., Path], mantis_source: Path
) -> None:
    split = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1")).split("train")
    reference, dali = pair({}, batch_size=5, device_id=0)
    with reference, dali, msdata.Loader(split, 5, seed=0, prefetch=2, threads=2) as loader:
        for _ in range(2):
            for batch, images in stream(loader, dali, 0):
                wanted = reference.run(batch, 0)["image"]
                assert np.abs(on_host(images)["image"] - wanted).max() < 0.2
        pinned = dali._pinned
        assert 1 <= len(pinned._ours) <= 5
    assert not pinned._ours
