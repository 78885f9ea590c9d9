"""Fed steps of `python -m benchmarks gpu`: loader, augmentation and network at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import msdata
from benchmarks.questions.gpu_steps import (
    GpuRun,
    Timeline,
    batch_on_device,
    image_shapes,
    in_turns,
    made_up_statistics,
    run_steps,
)
from benchmarks.workloads import WORKLOADS, mock_objects, run_msdata, write_source
from mstrain.data.batches import (
    EpochEnd,
    Prefetcher,
    TensorBatch,
    make_augmenter,
    make_loader,
    training_stream,
)
from mstrain.overrides import apply_overrides
from mstrain.training.train_step import TrainStep

_NUM_PROFILED = 5
_PROFILE_ROWS = 30


def make_data(folder: Path, num_samples: int) -> Path:
    """A packed data set of noise with the shapes of Mantis Shrimp, unless it is there."""
    data = folder / f"gpu-{num_samples}"
    if not (data / "dataset.json").exists():
        objects = folder / f"gpu-objects-{num_samples}"
        source = write_source(objects, mock_objects(WORKLOADS["mantis"], num_samples))
        catalog = ("--catalog", source.objects / "catalog.csv")
        run_msdata("pack", source.objects, data, *catalog, "--split", "1,0,0")
    return data


@contextmanager
def opened_batches(run: GpuRun, words: Sequence[str]) -> Iterator[Iterator[TensorBatch]]:
    """Endless batches as a training with some settings gets them."""
    config = apply_overrides(run.config, words)
    split = msdata.open(make_data(run.folder, run.num_objects)).split("train")
    with ExitStack() as stack:
        loader = stack.enter_context(make_loader(split, config, run.ranks))
        augmenter = stack.enter_context(
            make_augmenter(split, config, run.ranks, made_up_statistics())
        )
        stream = training_stream(loader, augmenter, config, run.device)
        ahead = stack.enter_context(Prefetcher(stream))
        yield (b for b in ahead if not isinstance(b, EpochEnd))


def fed_against_limit(run: GpuRun) -> dict[str, Any]:
    """Training on batches that are made meanwhile, against batches that are on the device.

    Returns:
        By name, "limit" and each way to augment, what `run_steps` measures; and of the latter
        `batch_s`, a batch by itself, and `cost_share`: how much longer a step takes.
    """
    size, timeline = run.config.batch_size, Timeline(run.device)
    train_step = TrainStep(
        run.config, image_shapes(run.config), run.ranks, weights=None, num_steps=10**6
    )
    kept = itertools.repeat(batch_on_device(run.config, run.device, size))
    with ExitStack() as stack:

        def fed(words: Sequence[str]) -> Callable[[], dict[str, float]]:
            batches = stack.enter_context(opened_batches(run, words))
            # Compilation, the choice of kernels, page locks.
            run_steps(train_step, batches, timeline, max(2, run.num_steps // 4))

            def measure() -> dict[str, float]:
                # What was made ahead while others took their turn is not measured.
                run_steps(train_step, batches, timeline, 4)
                found = run_steps(train_step, batches, timeline, run.num_steps)
                timeline.wait()
                started_s = time.perf_counter()
                for _ in range(run.num_steps):
                    next(batches)
                timeline.wait()
                return {**found, "batch_s": (time.perf_counter() - started_s) / run.num_steps}

            return measure

        makers: dict[str, Any] = {
            "limit": lambda: lambda: run_steps(train_step, kept, timeline, run.num_steps),
            **{name: lambda words=words: fed(words) for name, words in run.backends.items()},
        }
        found = in_turns(run, "fed", makers)
    limit_s = found["limit"]["step_s"]["median"] if "limit" in found else None
    for name, numbers in found.items():
        if name != "limit" and limit_s:
            cost = {key: value / limit_s - 1 for key, value in numbers["step_s"].items()}
            numbers["cost_share"] = cost
    return found


def profile(run: GpuRun) -> dict[str, Any]:
    """Where the time of fed steps goes, as torch's profiler sees it: a table per backend."""
    train_step = TrainStep(
        run.config, image_shapes(run.config), run.ranks, weights=None, num_steps=10**6
    )
    return {
        name: run.attempt(f"profile: {name}", lambda words=words: _table(run, train_step, words))
        for name, words in run.backends.items()
    }


def _table(run: GpuRun, train_step: TrainStep, words: Sequence[str]) -> list[str]:
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with opened_batches(run, words) as batches:
        timeline = Timeline(run.device)
        run_steps(train_step, batches, timeline, 2)
        with torch.profiler.profile(activities=activities) as found:
            run_steps(train_step, batches, timeline, _NUM_PROFILED)
    order = "self_device_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
    table: str = found.key_averages().table(sort_by=order, row_limit=_PROFILE_ROWS)
    return table.splitlines()
