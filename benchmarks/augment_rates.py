"""How near augmentation comes to bare interpolation, and how true its images are.

    python -m benchmarks augment_rates [--repeats 7] [--gpu 0]

Rates: batches of 128 samples of the Mantis Shrimp schema, early fusion, any angle, from memory to
memory, in samples per second of a core: by processor time, so that other work on the machine counts
less. The limit is OpenCV's warp of every band and nothing else. A DALI pipeline with an operator a
step (rotate, flip, crop, resize, asinh) stands for how it is usually written; it leaves NaN in.

With --gpu: DALI and torch on that GPU, from page-locked buffers, by the wall clock; the limit is
copying the batch there.

Truth: the largest error of a star's total flux, and the largest difference from the reference on
stars as a share of the brightest pixel, over angles and places drawn at random.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import compare, part_parser, print_comparison, take_turns, write_part
from msdata.augment import BACKENDS, AugmentConfig, Augmenter, open_augmenter
from msdata.augment.draws import draw
from msdata.augment.geometry import make_geometries
from msdata.augment.reference import opencv_matrices
from msdata.loader.ring import BatchBuffer
from msdata.mock.surveys import FWHM_PER_SIGMA
from msdata.schema import MANTIS_SHRIMP, Survey

BATCH_SIZE = 128
NUM_THREADS = 2
SEED = 0
NUM_STARS = 256
WARPS = "OpenCV's warps alone"
# Full width at half maximum of a star in each survey's sharpest band.
FWHM_ARCSEC = {"panstarrs": 1.09, "galex": 4.2, "unwise": 6.1}
LAYOUTS = {
    "early": AugmentConfig(scaling="none"),
    "early, crops": AugmentConfig(scaling="none", grid="crops"),
    "late": AugmentConfig(scaling="none", fusion="late"),
}

Batch = dict[str, Any]


def noise_batch(buffer: BatchBuffer, random: np.random.Generator, num_samples: int) -> Batch:
    """A batch of noise in a buffer of the loader's ring, every pixel different."""
    arrays = buffer.lend(num_samples)
    for array in arrays.values():
        random.standard_normal(out=array, dtype=np.float32)
    return {**arrays, "sample_id": np.array([f"{i:07d}" for i in range(num_samples)])}


def rate_of(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Samples per second, of the wall or of the processor, of something that augments a batch."""
    started_s = clock()
    run()
    return BATCH_SIZE / (clock() - started_s)


def warps_alone(batch: Batch) -> Callable[[], Any]:
    """Every band through `cv2.warpAffine`, straight to the output grid, on two threads."""
    import cv2

    config = AugmentConfig()
    draws = draw(SEED, 0, batch["sample_id"], config)
    geometries = make_geometries(MANTIS_SHRIMP, config)
    matrices = [opencv_matrices(g.matrices(draws)) for g in geometries]
    image = np.empty((BATCH_SIZE, 9, 120, 120), np.float32)

    def one(i: int) -> None:
        channel = 0
        for geometry, of_survey in zip(geometries, matrices, strict=True):
            for band in batch[geometry.name][i]:
                flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
                cv2.warpAffine(band, of_survey[i], (120, 120), dst=image[i, channel], flags=flags)
                channel += 1

    executor = ThreadPoolExecutor(NUM_THREADS)
    return lambda: list(executor.map(one, range(BATCH_SIZE)))


def dali_step_by_step(batch: Batch) -> Callable[[], Any]:
    """A DALI pipeline with an operator a step, on the CPU."""
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali import math as dali_math

    pipeline: Any = Pipeline(BATCH_SIZE, NUM_THREADS, None, prefetch_queue_depth=1)
    crops = {"galex": 20, "panstarrs": 120, "unwise": 10}
    with pipeline:
        angle = fn.external_source(name="angle", dtype=types.FLOAT, ndim=0)
        images = []
        for name, crop in crops.items():
            image = fn.external_source(
                name=name, no_copy=True, dtype=types.FLOAT, ndim=4, layout="FHWC"
            )
            image = fn.rotate(image, angle=angle, keep_size=True)
            image = fn.flip(image, horizontal=1)
            image = fn.crop(image, crop_h=crop, crop_w=crop)
            if crop != 120:
                image = fn.resize(image, size=[120, 120])
            images.append(dali_math.asinh(image * 0.08) * 0.125)
        pipeline.set_outputs(fn.cat(*images, axis=0))
    pipeline.build()
    angles = np.linspace(0, 360, BATCH_SIZE, dtype=np.float32)

    def run() -> Any:
        pipeline.feed_input("angle", angles)
        for name in crops:
            pipeline.feed_input(name, batch[name][..., None], layout="FHWC")
        pipeline.schedule_run()
        return pipeline.outputs()

    return run


def copies_to_gpu(batch: Batch, device_id: int) -> Callable[[], Any]:
    """A DALI pipeline that only copies the batch to the GPU, from page-locked memory."""
    from nvidia.dali import Pipeline, fn, tensors, types

    from msdata.augment.pinning import PinnedBuffers

    pipeline: Any = Pipeline(BATCH_SIZE, NUM_THREADS, device_id, prefetch_queue_depth=1)
    names = MANTIS_SHRIMP.names
    with pipeline:
        arrays = [
            fn.external_source(name=name, no_copy=True, dtype=types.FLOAT, ndim=3) for name in names
        ]
        pipeline.set_outputs(*(array.gpu() for array in arrays))
    pipeline.build()
    pinned = PinnedBuffers(device_id)

    def run() -> Any:
        for name in names:
            is_pinned = pinned.pin(batch[name])
            pipeline.feed_input(name, tensors.TensorListCPU(batch[name], "CHW", is_pinned))
        pipeline.schedule_run()
        return pipeline.outputs()

    return run


def opened(backend: str, config: AugmentConfig, device_id: int | None = None) -> Augmenter:
    """An augmenter as the benchmark runs it."""
    return open_augmenter(
        MANTIS_SHRIMP,
        config,
        seed=SEED,
        batch_size=BATCH_SIZE,
        backend=backend,
        device_id=device_id,
        threads=NUM_THREADS,
    )


def pipelined(augmenter: Augmenter, batch: Batch) -> Callable[[], Any]:
    """As in training: the next batch is under way while one is waited for."""
    augmenter.submit(batch, 0)

    def run() -> Any:
        augmenter.submit(batch, 0)
        return augmenter.result()

    return run


def measure_rates(repeats: int, device_id: int | None) -> dict[str, Any]:
    """Rates on the CPU, or on a GPU; see `compare` for what is returned."""
    buffer = BatchBuffer(MANTIS_SHRIMP, BATCH_SIZE)
    batch = noise_batch(buffer, np.random.default_rng(SEED), BATCH_SIZE)
    with ExitStack() as stack:

        def augmenter(backend: str, **settings: Any) -> Augmenter:
            config = AugmentConfig(**settings)
            return stack.enter_context(opened(backend, config, device_id))

        if device_id is not None:
            limit, clock = "copies to the GPU alone", time.perf_counter
            runs = {limit: copies_to_gpu(batch, device_id)}
            runs |= {name: pipelined(augmenter(name), batch) for name in ("dali", "torch")}
        else:
            limit, clock = WARPS, time.process_time
            reference = augmenter("reference")
            others = {
                "reference": reference,
                "reference, rotation=exact": augmenter("reference", rotation="exact"),
                "reference, fusion=late": augmenter("reference", fusion="late"),
                "torch on the CPU": augmenter("torch"),
                "dali on the CPU": augmenter("dali"),
            }
            runs = {WARPS: warps_alone(batch)}
            runs |= {name: partial(other.run, batch, 0) for name, other in others.items()}
            runs["reference, validation"] = partial(reference.run, batch, 0, train=False)
            runs["DALI, an operator a step"] = dali_step_by_step(batch)
        contestants = {name: partial(rate_of, run, clock) for name, run in runs.items()}
        return compare(take_turns(contestants, repeats), [limit])


def star(survey: Survey, x_arcsec: float, y_arcsec: float) -> NDArray[np.float32]:
    """A star of unit flux in every band, that far from the middle: right and down."""
    scale = survey.pixel_scale_arcsec or 1.0
    sigma = FWHM_ARCSEC[survey.name] / FWHM_PER_SIGMA / scale
    size = survey.shape[1]
    rows, columns = (
        np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2 - offset / scale) / sigma) ** 2)
        for offset in (y_arcsec, x_arcsec)
    )
    image = np.outer(rows, columns) / (2 * math.pi * sigma**2)
    return np.broadcast_to(image, survey.shape).astype(np.float32)


def measure_truth(backend: str, device_id: int | None = None) -> dict[str, Any]:
    """How true the images of a backend are, by layout.

    Args:
        backend: on that GPU, or on the CPU.
        device_id: number of the GPU.

    Returns:
        `flux_error` by survey; `difference` from the reference, or where OpenCV is too old for it
        from torch on the CPU, as `against` says.
    """
    random = np.random.default_rng(SEED)
    found: dict[str, Any] = {}
    for layout, config in LAYOUTS.items():
        differences, errors = [], []
        try:
            truth, against = opened("reference", config), "reference"
        except ImportError:
            truth, against = opened("torch", config), "torch on the CPU"
        with truth, opened(backend, config, device_id) as other:
            for epoch in range(-(-NUM_STARS // BATCH_SIZE)):
                places = random.uniform(-1.5, 1.5, (BATCH_SIZE, 2))
                batch: Batch = {
                    a.name: np.stack([star(a, x, y) for x, y in places])
                    for a in MANTIS_SHRIMP.arrays
                }
                batch["sample_id"] = np.arange(BATCH_SIZE)
                wanted, images = (
                    {name: on_host(image) for name, image in each.run(batch, epoch).items()}
                    for each in (truth, other)
                )
                differences += [
                    float(np.abs(image - wanted[name]).max()) / float(wanted[name].max())
                    for name, image in images.items()
                ]
                errors.append(_flux_errors(images, batch, other.flux_factors))
        found[layout] = {
            "flux_error": {n: round(max(e[n] for e in errors), 6) for n in errors[0]},
            "difference": round(max(differences), 7),
            "against": against,
        }
    return found


def on_host(image: Any) -> NDArray[Any]:
    """An image of any backend in the host's memory."""
    if hasattr(image, "as_cpu"):
        return np.array(image.as_cpu())
    return np.asarray(image.cpu().numpy() if hasattr(image, "cpu") else image)


def _flux_errors(images: Batch, batch: Batch, factors: dict[str, float]) -> dict[str, float]:
    """The largest error of total flux, as a share, by survey."""
    channels = {"galex": slice(0, 2), "panstarrs": slice(2, 7), "unwise": slice(7, 9)}
    errors = {}
    for name, factor in factors.items():
        image = images["image"][:, channels[name]] if "image" in images else images[name]
        flux = image.sum(axis=(2, 3), dtype=np.float64) * factor
        truth = batch[name].sum(axis=(2, 3), dtype=np.float64)
        errors[name] = float(np.abs(flux / truth - 1).max())
    return errors


def main(words: list[str]) -> int:
    """Runs the benchmark; writes `augment_rates.json`, with --gpu `augment_rates_gpu.json`."""
    parser = part_parser("augment_rates", "Augmentation beside bare interpolation.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--gpu", type=int, help="number of the GPU to measure on")
    parser.add_argument("--data", help="not needed: the batch is made up")
    args = parser.parse_args(words)
    rates = measure_rates(args.repeats, args.gpu)
    print_comparison("augmentation, early fusion", rates, MANTIS_SHRIMP.sample_nbytes)
    backends = ("dali", "torch") if args.gpu is not None else BACKENDS
    truth = {backend: measure_truth(backend, args.gpu) for backend in backends}
    for backend, layouts in truth.items():
        for layout, numbers in layouts.items():
            print(f"  {backend}, {layout}: {numbers}")
    result = {"batch_size": BATCH_SIZE, "threads": NUM_THREADS, "rates": rates, "truth": truth}
    suffix = "" if args.gpu is None else "_gpu"
    write_part("augment_rates", result, words, args.out, suffix=suffix)
    return 0
