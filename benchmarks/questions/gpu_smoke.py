"""What `python -m benchmarks gpu` looks at first: does the path to the device work at all?"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.augment_rates import measure_truth, noise_batch
from benchmarks.harness import versions_of
from benchmarks.questions.gpu_steps import GpuRun, Timeline, in_turns, made_up_statistics
from msdata.augment import Augmenter, open_augmenter
from msdata.augment.pinning import PinnedBuffers
from msdata.loader.ring import BatchBuffer
from msdata.schema import MANTIS_SHRIMP
from mstrain.data.transfer import DeviceTransfer

_PACKAGES = (
    "torch",
    "triton",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "opencv-python-headless",
)
# Of stars, of the brightest pixel: what docs/design/augment.md states.
MAX_DIFFERENCE = 1e-3
_NUM_HELD = 12
_NUM_BUFFERS = 4
# Multiplications of square matrices that keep a device busy while a batch is read.
_NUM_BUSY, _BUSY_SIZE = 20, 4096


def device_facts(run: GpuRun) -> dict[str, Any]:
    """The device and the packages that use it."""
    versions = versions_of(_PACKAGES)
    found: dict[str, Any] = {"device": str(run.device), "cuda": torch.version.cuda, **versions}
    for name in set(_PACKAGES) - versions.keys():
        run.not_measured[f"device: {name}"] = "not installed"
    if run.device.type == "cuda":
        facts = torch.cuda.get_device_properties(run.device)
        found |= {
            "name": facts.name,
            "memory_gib": round(facts.total_memory / 2**30, 1),
            "multiprocessors": facts.multi_processor_count,
            "num_gpus": torch.cuda.device_count(),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def page_locks(run: GpuRun) -> dict[str, Any]:
    """Whether a buffer of the loader's ring can be locked, and is seen as such by torch."""
    if run.device.type != "cuda":
        run.not_measured["page locks"] = "no GPU to lock pages for"
        return {}
    buffer = BatchBuffer(MANTIS_SHRIMP, run.config.batch_size)
    with PinnedBuffers(run.index or 0) as pinned:
        started_s = time.perf_counter()
        is_locked = pinned.pin(buffer.arrays["panstarrs"])
        lock_s = time.perf_counter() - started_s
        is_seen = torch.from_numpy(buffer.arrays["panstarrs"]).is_pinned()
    if not (is_locked and is_seen):
        run.failures["page locks"] = f"locked: {is_locked}, as torch sees it: {is_seen}"
    return {
        "is_locked": is_locked,
        "is_seen_by_torch": is_seen,
        "lock_s": lock_s,
        "nbytes": buffer.nbytes,
    }


def agreement(run: GpuRun) -> dict[str, Any]:
    """How far each backend on the device is from the reference, by layout; see `measure_truth`."""
    found = run.by_backend("agreement", lambda run, backend: measure_truth(backend, run.index))
    for backend, layouts in found.items():
        for layout, numbers in (layouts or {}).items():
            if numbers["difference"] > MAX_DIFFERENCE:
                run.failures[f"agreement: {backend}, {layout}"] = (
                    f"images differ by {numbers['difference']:.1e} of the brightest pixel"
                )
    return found


def opened(run: GpuRun, backend: str, **options: Any) -> Augmenter:
    """An augmenter on the device, for batches of the recipe's size."""
    return open_augmenter(
        MANTIS_SHRIMP,
        run.config.augment,
        seed=0,
        batch_size=run.config.batch_size,
        statistics=made_up_statistics(),
        backend=backend,
        device_id=None if backend == "reference" else run.index,
        **options,
    )


def held_images(run: GpuRun) -> dict[str, Any]:
    """Whether images are whole when a busy device reads them late, and the ring is filled again.

    Each batch is augmented twice: alone, and with two batches in flight while kernels are queued
    that take long, behind which the images are read, when nothing on the host holds them.
    """
    return run.by_backend("held images", _held)


def _held(run: GpuRun, backend: str) -> dict[str, Any]:
    size = run.config.batch_size
    with (
        opened(run, backend) as augmenter,
        DeviceTransfer(run.device, torch.channels_last) as transfer,
    ):
        buffers = [BatchBuffer(MANTIS_SHRIMP, size) for _ in range(_NUM_BUFFERS)]
        seeds = range(_NUM_HELD)

        def batch(seed: int) -> dict[str, Any]:
            return noise_batch(buffers[seed % _NUM_BUFFERS], np.random.default_rng(seed), size)

        wanted = []
        for seed in seeds:
            wanted.append(_sum_of(transfer, augmenter.run(batch(seed), 0)))
            Timeline(run.device).wait()
        side = _BUSY_SIZE if run.device.type == "cuda" else 64
        busy = torch.ones((side, side), device=run.device)
        read: list[torch.Tensor] = []
        augmenter.submit(batch(0), 0)
        for seed in seeds:
            if seed + 1 < _NUM_HELD:
                augmenter.submit(batch(seed + 1), 0)
            images = augmenter.result()
            for _ in range(_NUM_BUSY):
                busy = busy @ busy * (1 / side)
            read.append(_sum_of(transfer, images))
            del images
        Timeline(run.device).wait()
        wrong = [
            seed for seed, a, b in zip(seeds, wanted, read, strict=True) if not torch.equal(a, b)
        ]
    if wrong:
        run.failures[f"held images: {backend}"] = (
            f"batches {wrong} of {_NUM_HELD} have other images"
        )
    return {"num_batches": _NUM_HELD, "num_wrong": len(wrong)}


def _sum_of(transfer: DeviceTransfer, images: dict[str, Any]) -> torch.Tensor:
    """A number per channel of a batch's images, which is queued on the device."""
    moved = [transfer.image(image).double().mean(dim=(2, 3)) for image in images.values()]
    return torch.cat(moved, dim=1)


def copy_rates(run: GpuRun) -> dict[str, Any]:
    """Bytes per second to the device from page-locked and other memory, and on it."""
    buffer = BatchBuffer(MANTIS_SHRIMP, run.config.batch_size)
    array = torch.from_numpy(buffer.arrays["panstarrs"])
    timeline = Timeline(run.device)
    target = torch.empty_like(array, device=run.device)

    def rate(source: torch.Tensor) -> Callable[[], dict[str, float]]:
        def measure() -> dict[str, float]:
            begin = timeline.mark()
            for _ in range(run.num_steps):
                target.copy_(source, non_blocking=True)
            end = timeline.mark()
            timeline.wait()
            seconds = timeline.seconds(begin, end) / run.num_steps
            return {"gb_per_s": array.numel() * 4 / seconds / 1e9}

        measure()
        return measure

    on_device = torch.empty_like(target, memory_format=torch.channels_last)
    makers = {
        "from the host's memory": lambda: rate(array),
        "on the device, to another layout": lambda: rate(on_device),
    }
    if run.device.type != "cuda":
        run.not_measured["copies: page-locked"] = "no GPU to lock pages for"
        return in_turns(run, "copies", makers)
    with PinnedBuffers(run.index or 0) as pinned:
        locked = BatchBuffer(MANTIS_SHRIMP, run.config.batch_size)
        pinned.pin(locked.arrays["panstarrs"])
        locked_array = torch.from_numpy(locked.arrays["panstarrs"])
        makers["from the ring, page-locked"] = lambda: rate(locked_array)
        return in_turns(run, "copies", makers)


def augmentation(run: GpuRun) -> dict[str, Any]:
    """Rates of the backends with the device to themselves, two batches in flight."""
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "reference, on the CPU": ("reference", {}),
        "dali": ("dali", {}),
        "torch": ("torch", {}),
        "torch, bfloat16, channels last": ("torch", {"dtype": "bfloat16", "channels_last": True}),
    }
    if run.is_compiled:
        forms["torch, compiled"] = ("torch", {"compiled": True})
        form = {"dtype": "bfloat16", "channels_last": True, "compiled": True}
        forms["torch, compiled, bfloat16, channels last"] = ("torch", form)
    else:
        run.not_measured["augmentation: compiled"] = "not asked for; give --compile"
    size, random = run.config.batch_size, np.random.default_rng(0)
    batch = noise_batch(BatchBuffer(MANTIS_SHRIMP, size), random, size)

    def make(backend: str, options: dict[str, Any]) -> Callable[[], dict[str, float]]:
        augmenter = stack.enter_context(opened(run, backend, **options))
        augmenter.run(batch, 0)

        def measure() -> dict[str, float]:
            wall_s, host_s = time.perf_counter(), time.process_time()
            augmenter.submit(batch, 0)
            for _ in range(run.num_steps):
                augmenter.submit(batch, 0)
                augmenter.result()
            augmenter.result()
            num_samples = (run.num_steps + 1) * size
            return {
                "samples_per_s": num_samples / (time.perf_counter() - wall_s),
                "host_us_per_sample": (time.process_time() - host_s) / num_samples * 1e6,
            }

        return measure

    makers = {name: partial(make, *form) for name, form in forms.items()}
    with ExitStack() as stack:
        return in_turns(run, "augmentation", makers)
