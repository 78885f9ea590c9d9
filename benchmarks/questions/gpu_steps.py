"""Steps of `python -m benchmarks gpu`: the network on a batch that is on the device already.

Between the last kernel of a step and the first of the next one the device waits: that is measured
by CUDA's own events. Kernels of the data thread count as waiting there, as far as no other kernel
runs beside them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import msdata
from benchmarks.harness import spread, take_turns
from msdata.augment.spec import make_spec
from msdata.augment.statistics import BandStatistics, Statistics
from msdata.schema import MANTIS_SHRIMP
from mstrain.config import TrainConfig
from mstrain.data.batches import TensorBatch
from mstrain.distributed import Ranks
from mstrain.overrides import apply_overrides
from mstrain.training.train_step import TrainStep

_NUM_RANKS = 8


@dataclass(kw_only=True)
class GpuRun:
    """What all sections share.

    Attributes:
        config: settings of the network, for one rank.
        device: of the network.
        folder: where data is made, and kept.
        num_objects: samples of the data.
        num_steps: steps of each measurement.
        num_turns: turns that contestants take.
        batch_sizes: samples per step of section "batches".
        is_compiled: whether variants through `torch.compile` are measured.
        failures: what went wrong, by name.
        not_measured: what could not be measured here, with its reason.
    """

    config: TrainConfig
    device: torch.device
    folder: Path
    num_objects: int
    num_steps: int
    num_turns: int
    batch_sizes: Sequence[int]
    is_compiled: bool
    failures: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> Ranks:
        """The one rank."""
        return Ranks(topology=msdata.Topology(), device=self.device)

    @property
    def backends(self) -> dict[str, list[str]]:
        """Settings of every way to augment on this device, by name."""
        found = {"dali": ["backend=dali"], "torch": ["backend=torch"]}
        if self.is_compiled:
            found["torch, compiled"] = ["backend=torch", "compute.compile=true"]
        return found

    def by_backend(self, section: str, measure: Callable[[GpuRun, str], Any]) -> dict[str, Any]:
        """What a measurement gives for each of those that augment on the device."""
        return {
            name: self.attempt(f"{section}: {name}", partial(measure, self, name))
            for name in ("dali", "torch")
        }

    @property
    def index(self) -> int | None:
        """The GPU's number; None for the CPU."""
        return self.device.index or 0 if self.device.type == "cuda" else None

    def attempt(self, name: str, measure: Callable[[], Any]) -> Any:
        """What a measurement gives; None where it fails, which is noted and stops nothing else."""
        try:
            return measure()
        except torch.OutOfMemoryError as error:
            self.not_measured[name] = f"memory is short: {error}".splitlines()[0]
            torch.cuda.empty_cache()
        except ImportError as error:
            self.not_measured[name] = str(error)
        # Data that cannot be made end the process by themselves.
        except (Exception, SystemExit) as error:
            self.failures[name] = f"{type(error).__name__}: {error}"[:2000]
        return None


class Timeline:
    """Moments on the device's own clock.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """The moment at which all that was queued so far is done."""
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, first: Any, last: Any) -> float:
        """Between two moments that have been waited for."""
        return float(first.elapsed_time(last)) / 1e3 if self._is_gpu else last - first

    def wait(self) -> None:
        """Until the device is done."""
        if self._is_gpu:
            torch.cuda.synchronize()


def run_steps(
    train_step: TrainStep, batches: Iterator[TensorBatch], timeline: Timeline, num_steps: int
) -> dict[str, float]:
    """Trains on so many batches, at least two.

    Returns:
        `samples_per_s`, `step_s`, `host_s`, processor time of this thread per step, and
        `wait_share`: what part of the time from the first step's start to the last one's end the
        device was idle between two steps.
    """
    marks, num_samples = [], 0
    started_s = time.thread_time()
    for number in range(num_steps):
        batch = next(batches)
        begin = timeline.mark()
        train_step.add(batch)
        train_step.step(number)
        marks.append((begin, timeline.mark()))
        num_samples += len(batch)
    host_s = (time.thread_time() - started_s) / num_steps
    timeline.wait()
    total_s = timeline.seconds(marks[0][0], marks[-1][1])
    waits = (timeline.seconds(end, begin) for (_, end), (begin, _) in itertools.pairwise(marks))
    return {
        "samples_per_s": num_samples / total_s,
        "step_s": total_s / num_steps,
        "host_s": host_s,
        "wait_share": sum(waits) / total_s,
    }


def made_up_statistics() -> Statistics:
    """Statistics for scalings and noise that need some."""
    band = BandStatistics(
        **{"num_pixels": 1, "num_nan": 0, "num_missing": 0, "mean": 0.0, "std": 1.0},
        **{"minimum": 0.0, "maximum": 0.0, "quantiles": {}, "sky_sigma": 1.0, "asinh_std": 1.0},
    )
    arrays = {a.name: dict.fromkeys(a.bands, band) for a in MANTIS_SHRIMP.arrays}
    return Statistics(fingerprint="", split="train", num_samples=1, arrays=arrays)


def image_shapes(config: TrainConfig) -> dict[str, tuple[int, int, int]]:
    """Shapes of the network's images, for Mantis Shrimp's schema."""
    return make_spec(MANTIS_SHRIMP, config.augment, 0, made_up_statistics()).shapes


def batch_on_device(config: TrainConfig, device: torch.device, num_samples: int) -> TensorBatch:
    """A batch of noise, as `torch` or DALI would leave it on the device."""
    layout = torch.channels_last if config.compute.channels_last else torch.contiguous_format
    images = {
        name: torch.randn((num_samples, *shape), device=device).to(memory_format=layout)
        for name, shape in image_shapes(config).items()
    }
    redshift = torch.rand(num_samples, device=device, dtype=torch.float64)
    ids = np.array([str(i) for i in range(num_samples)])
    return TensorBatch(images=images, ebv=None, redshift=redshift, sample_id=ids)


def make_step(config: TrainConfig, ranks: Ranks) -> TrainStep:
    """Steps of a network with new weights."""
    return TrainStep(config, image_shapes(config), ranks, weights=None, num_steps=10**6)


def steps_of(
    run: GpuRun, config: TrainConfig, num_samples: int, ranks: Ranks | None = None
) -> Callable[[], dict[str, float]]:
    """Warms up a network; what this returns trains it on a batch that is on the device."""
    ranks = ranks or run.ranks
    config = replace(config, batch_size=num_samples * ranks.count)
    train_step = make_step(config, ranks)
    batch, timeline = batch_on_device(config, run.device, num_samples), Timeline(run.device)
    run_steps(train_step, itertools.repeat(batch), timeline, max(2, run.num_steps // 4))
    return lambda: run_steps(train_step, itertools.repeat(batch), timeline, run.num_steps)


def in_turns(
    run: GpuRun, section: str, makers: Mapping[str, Callable[[], Callable[[], dict[str, float]]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Has contestants take turns; what each measured: median, least and greatest over turns.

    By name, `makers` make a contestant, a function that measures once. Those that cannot be made
    are noted in `run`, after the section's name, and left out.
    """
    made = {name: run.attempt(f"{section}: {name}", make) for name, make in makers.items()}
    turns = take_turns(
        {n: partial(run.attempt, f"{section}: {n}", m) for n, m in made.items() if m is not None},
        run.num_turns,
        warm_ups=0,
    )
    whole = {name: [turn for turn in found if turn is not None] for name, found in turns.items()}
    return {
        name: {key: spread([turn[key] for turn in found]) for key in found[0]}
        for name, found in whole.items()
        if found
    }


def by_batch_size(run: GpuRun) -> dict[str, Any]:
    """Rates of the network alone over samples per step: where the host is what is waited for."""
    found = {}
    for size in run.batch_sizes:
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        # One after the other: the greatest leave no memory for others.
        makers = {f"{size}": partial(steps_of, run, run.config, size)}
        found.update(in_turns(run, "batches", makers))
        if run.device.type == "cuda" and f"{size}" in found:
            found[f"{size}"]["peak_gib"] = spread([torch.cuda.max_memory_allocated() / 2**30])
    return found


def by_variant(run: GpuRun) -> dict[str, Any]:
    """Optimizers, averaging, precision, layout, and compilation of the network."""
    variants = {
        "as in the recipe": [],
        "adamw": ["optim.name=adamw"],
        "no averaged weights": ["ema_decay=0"],
        "precision=float32": ["precision=float32"],
        "channels_last=false": ["channels_last=false"],
    }
    if run.is_compiled:
        variants["compiled"] = ["compute.compile=true"]
        variants["compiled, adamw"] = ["compute.compile=true", "optim.name=adamw"]
    else:
        run.not_measured["variants: compiled"] = "not asked for; give --compile"
    configs = {name: apply_overrides(run.config, words) for name, words in variants.items()}
    size = run.config.batch_size
    makers = {name: partial(steps_of, run, config, size) for name, config in configs.items()}
    return in_turns(run, "variants", makers)


@contextmanager
def fake_group(device: torch.device) -> Iterator[Ranks]:
    """The first of eight ranks whose collectives do nothing; the host does its part."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    begin = DistributedDataParallel.__init__

    # Without annotations: DDP compares them as types, and here they are text.
    def summed(state, bucket):  # type: ignore[no-untyped-def]
        devices = [device] if device.type == "cuda" else []
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future(devices=devices)
        future.set_result(bucket.buffer())
        return future

    def init(self: DistributedDataParallel, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        # The group's own all-reduce gives no tensor, which DDP waits for.
        self.register_comm_hook(None, summed)

    dist.init_process_group("fake", rank=0, world_size=_NUM_RANKS, store=FakeStore())  # type: ignore[no-untyped-call]
    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]
    try:
        yield Ranks(topology=msdata.Topology(ranks_per_node=_NUM_RANKS), device=device)
    finally:
        DistributedDataParallel.__init__ = begin  # type: ignore[method-assign]
        dist.destroy_process_group()


def by_norm(run: GpuRun) -> dict[str, Any]:
    """One rank of eight against one alone: waits and launches that batch norm over ranks costs."""
    run.not_measured["ranks: collectives"] = "one process stands for eight; NCCL takes no part"
    size = run.config.batch_size
    variants = {
        "synchronized": [],
        "each rank's own": ["sync_batch_norm=false"],
        "group norm": ["norm=group"],
    }
    makers: dict[str, Any] = {"one rank": partial(steps_of, run, run.config, size)}
    with fake_group(run.device) as ranks:
        for name, words in variants.items():
            config = apply_overrides(run.config, words)
            makers[f"eight, {name}"] = partial(steps_of, run, config, size, ranks)
        return in_turns(run, "ranks", makers)
