"""What the tests of augmentation share: star fields, batches, and maps made another way."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msdata.augment import AugmentConfig, Statistics, open_augmenter
from msdata.augment.draws import Draws, no_draws
from msdata.augment.statistics import BandStatistics
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

EXTRAS: dict[str, Any] = {"scaling": "asinh", "psf_blur_arcsec": 0.4, "band_dropout": 0.3}
CONFIGS: dict[str, dict[str, Any]] = {
    "early": {},
    "late": {"fusion": "late"},
    "crops": {"grid": "crops"},
    "exact": {"rotation": "exact"},
    "late and exact": {"fusion": "late", "rotation": "exact"},
    "flips": {"rotation": "none", "scaling": "linear10"},
    "everything": {**EXTRAS, "noise": 0.5},
    "everything late": {**EXTRAS, "noise": 0.5, "fusion": "late"},
    "one survey": {"surveys": ("unwise",)},
}
# A backend and the number of its GPU, if it is on one.
Place = tuple[str, int | None]
REFERENCE: Place = ("reference", None)
# Full width at half maximum of a star, arcsec: the sharpest band of each survey.
FWHM_ARCSEC = {"panstarrs": 1.09, "galex": 4.2, "unwise": 6.1}
FWHM_PER_SIGMA = 2.354_82
SURVEYS = ("galex", "panstarrs", "unwise")
CHANNELS = {"galex": slice(0, 2), "panstarrs": slice(2, 7), "unwise": slice(7, 9)}


def star(survey: Survey, x_arcsec: float, y_arcsec: float, flux: float = 1.0) -> Any:
    """A star in every band of a survey's array, that far from the middle: right and down.

    Returns:
        float32 (bands, height, width); light is sampled at the middles of pixels.
    """
    assert survey.pixel_scale_arcsec is not None
    sigma = FWHM_ARCSEC[survey.name] / FWHM_PER_SIGMA / survey.pixel_scale_arcsec
    place = [
        np.arange(n) - (n - 1) / 2 - offset / survey.pixel_scale_arcsec
        for n, offset in zip(survey.shape[1:], (y_arcsec, x_arcsec), strict=True)
    ]
    profile = [np.exp(-0.5 * (p / sigma) ** 2) for p in place]
    image = np.outer(*profile) * flux / (2 * np.pi * sigma**2)
    return np.broadcast_to(image, survey.shape).astype(np.float32)


def star_batch(places: Any, schema: Schema = MANTIS_SHRIMP) -> dict[str, Any]:
    """A batch with one star a sample, at the same place on the sky in every survey."""
    batch: dict[str, Any] = {
        a.name: np.stack([star(a, x, y) for x, y in places]) for a in schema.arrays
    }
    return {**batch, "sample_id": ids(len(places))}


def noise_batch(num_samples: int, schema: Schema = MANTIS_SHRIMP, seed: int = 0) -> dict[str, Any]:
    """A batch in which every pixel differs: stars everywhere, as far as a map can tell."""
    random = np.random.default_rng(seed)
    batch: dict[str, Any] = {
        a.name: random.normal(3, 10, (num_samples, *a.shape)).astype(a.dtype) for a in schema.arrays
    }
    return {**batch, "sample_id": ids(num_samples)}


def ids(num_samples: int) -> NDArray[np.str_]:
    """Ids as the loader gives them."""
    return np.array([f"{i:07d}" for i in range(num_samples)], np.str_)


def draws_of(num_samples: int, **values: Any) -> Draws:
    """Draws that change nothing but what is named; one value serves all samples."""
    fields = dict(vars(no_draws(num_samples)))
    for name, value in values.items():
        fields[name] = np.broadcast_to(np.asarray(value), (num_samples, *np.shape(value)[1:]))
        fields[name] = fields[name].astype(vars(no_draws(0))[name].dtype)
    return Draws(**fields)


def augmented(
    batch: dict[str, Any],
    draws: Draws,
    schema: Schema = MANTIS_SHRIMP,
    statistics: Statistics | None = None,
    place: Place = REFERENCE,
    **options: Any,
) -> dict[str, Any]:
    """Images of a batch by a backend, with given draws, on the host."""
    config = AugmentConfig(**{"scaling": "none", **options})
    with opened_at(place, config, schema=schema, batch_size=len(draws), statistics=statistics) as a:
        names = [g.name for g in a._spec.geometries]
        a.submit_draws([batch[name] for name in names], draws)
        return on_host(a.result())


def opened_at(place: Place, config: AugmentConfig, **options: Any) -> Any:
    """An augmenter of a backend, on a GPU or on the CPU; skips where that is missing."""
    backend, device_id = place
    if backend != "reference":
        module = {"dali": "nvidia.dali", "torch": "torch"}[backend]
        pytest.importorskip(module, reason=f"{module} is absent")
    options = {"schema": MANTIS_SHRIMP, "seed": 0, "batch_size": 16, "threads": 2, **options}
    return open_augmenter(config=config, backend=backend, device_id=device_id, **options)


def on_host(images: dict[str, Any]) -> dict[str, Any]:
    """Images of any backend as NumPy arrays, copied."""
    found = {}
    for name, image in images.items():
        if hasattr(image, "as_cpu"):
            image = image.as_cpu()
        elif hasattr(image, "cpu"):
            image = image.float().cpu().numpy()
        found[name] = np.array(image)
    return found


def num_gpus() -> int:
    """GPUs that CUDA's driver sees."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(count) == 0 else 0


NEEDS_GPU = pytest.mark.skipif(num_gpus() == 0, reason="no GPU: CUDA's driver sees none")
# Every backend other than the reference, where it runs.
OTHERS = [
    pytest.param(("dali", None), id="dali"),
    pytest.param(("torch", None), id="torch"),
    pytest.param(("dali", 0), id="dali-gpu", marks=NEEDS_GPU),
    pytest.param(("torch", 0), id="torch-gpu", marks=NEEDS_GPU),
]
PLACES = [pytest.param(REFERENCE, id="reference"), *OTHERS]


def by_survey(images: dict[str, Any]) -> dict[str, Any]:
    """Images of either fusion, by survey."""
    if "image" not in images:
        return images
    return {name: images["image"][:, channels] for name, channels in CHANNELS.items()}


def make_statistics(**overrides: Any) -> Statistics:
    """Statistics of made-up numbers for the default schema, different for each band."""
    values: dict[str, Any] = {
        **{"num_pixels": 1, "num_nan": 0, "num_missing": 0, "mean": 0.0, "std": 1.0},
        **{"minimum": 0.0, "maximum": 0.0, "quantiles": {}},
    }
    arrays = {
        a.name: {
            band: BandStatistics(**values, sky_sigma=1.5 + i, asinh_std=0.7 + 0.1 * i)
            for i, band in enumerate(a.bands)
        }
        for a in MANTIS_SHRIMP.arrays
    }
    return Statistics(
        **{"fingerprint": "f", "split": "train", "num_samples": 1, "arrays": arrays, **overrides}
    )


def map_bilinear(image_HW: Any, place: Callable[[Any, Any], tuple[Any, Any]], size: int) -> Any:
    """An image at other places, pixel by pixel in float64: what a warp should give.

    Args:
        image_HW: the array.
        place: from an image's x and y to the array's, both from the corner.
        size: pixels along a side of the image.
    """
    x, y = place(*np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5))
    height, width = image_HW.shape
    column, row = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
    left = np.clip(np.floor(column).astype(int), 0, width - 2)
    top = np.clip(np.floor(row).astype(int), 0, height - 2)
    right_share, low_share = column - left, row - top
    image = image_HW.astype(np.float64)
    upper = image[top, left] * (1 - right_share) + image[top, left + 1] * right_share
    lower = image[top + 1, left] * (1 - right_share) + image[top + 1, left + 1] * right_share
    return upper * (1 - low_share) + lower * low_share
