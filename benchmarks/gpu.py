"""Does a GPU wait for data? ResNet-50 on nine bands, fed by loader and augmentation, or by nobody.

    python -m benchmarks.gpu --data DIR

One command for whoever has a GPU for half an hour; it makes its own data. It checks that DALI on
the GPU agrees with the reference, then trains three ways: on one batch that is on the GPU already
(the limit), on batches of loader and augmenter, and not at all, for the time that batches take by
themselves. Between the last kernel of a step and the first of the next one the GPU waits: that is
measured with CUDA's own events. Exit code 1 where a limit is not kept. With `--device cpu` it
runs anywhere, for tests.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import msdata
from benchmarks.augment_rates import measure_truth
from benchmarks.harness import RESULTS, write_result
from benchmarks.workloads import WORKLOADS, mock_objects, run_msdata, write_source
from msdata.errors import MsdataError, UsageError
from mstrain.config import TrainConfig
from mstrain.data.batches import (
    EpochEnd,
    Prefetcher,
    TensorBatch,
    make_augmenter,
    make_loader,
    training_stream,
)
from mstrain.distributed import Ranks, choose_device
from mstrain.overrides import apply_overrides
from mstrain.recipes import find_recipe
from mstrain.training.train_step import TrainStep

# Of the issue: shares of the step that the GPU may wait, and that making batches may cost.
MAX_WAIT, MAX_COST = 0.01, 0.05
# Of stars, of the brightest pixel: what DESIGN.md of the augmentation states.
MAX_DIFFERENCE = 1e-3


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
    """Trains on so many batches.

    Args:
        train_step: warmed up.
        batches: at least as many.
        timeline: of the device.
        num_steps: at least 2.

    Returns:
        `samples_per_s`, `step_s`, and `wait_share`: of the time from the first step's begin to the
        last one's end, what the device stood idle between two steps.
    """
    marks, num_samples = [], 0
    for number in range(num_steps):
        batch = next(batches)
        begin = timeline.mark()
        train_step.add(batch)
        train_step.step(number)
        marks.append((begin, timeline.mark()))
        num_samples += len(batch)
    timeline.wait()
    total_s = timeline.seconds(marks[0][0], marks[-1][1])
    waits = (timeline.seconds(end, begin) for (_, end), (begin, _) in itertools.pairwise(marks))
    return {
        "samples_per_s": num_samples / total_s,
        "step_s": total_s / num_steps,
        "wait_share": sum(waits) / total_s,
    }


def batches_alone(batches: Iterator[TensorBatch], timeline: Timeline, num_steps: int) -> float:
    """Seconds that loader and augmenter take for a batch, with the device to themselves."""
    timeline.wait()
    started_s = time.perf_counter()
    for _ in range(num_steps):
        next(batches)
    timeline.wait()
    return (time.perf_counter() - started_s) / num_steps


@contextmanager
def opened_batches(
    data: Path, config: TrainConfig, ranks: Ranks
) -> Iterator[tuple[Iterator[TensorBatch], Any]]:
    """Endless batches as a training gets them, and the shapes of their images."""
    split = msdata.open(data).split("train")
    with ExitStack() as stack:
        loader = stack.enter_context(make_loader(split, config, ranks))
        augmenter = stack.enter_context(make_augmenter(split, config, ranks))
        stream = training_stream(loader, augmenter, config, ranks.device)
        ahead = stack.enter_context(Prefetcher(stream))
        yield (b for b in ahead if not isinstance(b, EpochEnd)), augmenter.shapes


def measure(data: Path, config: TrainConfig, ranks: Ranks, num_steps: int) -> dict[str, Any]:
    """Trains on batches that are there and on batches that are made.

    Args:
        data: packed, at least a batch of it.
        config: of the network.
        ranks: one.
        num_steps: of each measurement.

    Returns:
        `limit` and `fed`, see `run_steps`; `batch_s`, see `batches_alone`; `cost_share`: how much
        longer a step takes when its batches are made meanwhile.
    """
    timeline = Timeline(ranks.device)
    with opened_batches(data, config, ranks) as (batches, shapes):
        train_step = TrainStep(config, shapes, ranks, weights=None, num_steps=10**6)
        kept = next(batches)
        # Compilation, the choice of kernels, page locks.
        run_steps(train_step, batches, timeline, max(2, num_steps // 4))
        limit = run_steps(train_step, iter([kept] * num_steps), timeline, num_steps)
        # What was made ahead meanwhile is no measure.
        run_steps(train_step, batches, timeline, 4)
        fed = run_steps(train_step, batches, timeline, num_steps)
        batch_s = batches_alone(batches, timeline, num_steps)
    return {
        "limit": limit,
        "fed": fed,
        "batch_s": batch_s,
        "cost_share": max(0.0, fed["step_s"] / limit["step_s"] - 1),
    }


def make_data(folder: Path, num_samples: int) -> Path:
    """A packed data set of noise with the shapes of Mantis Shrimp, unless it is there."""
    data = folder / f"gpu-{num_samples}"
    if not (data / "dataset.json").exists():
        objects = folder / f"gpu-objects-{num_samples}"
        source = write_source(objects, mock_objects(WORKLOADS["mantis"], num_samples))
        catalog = ("--catalog", source.objects / "catalog.csv")
        run_msdata("pack", source.objects, data, *catalog, "--split", "1,0,0")
    return data


def has_dali() -> bool:
    """Whether DALI is installed."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True


def agreement(device: torch.device) -> dict[str, Any] | None:
    """How far DALI on a GPU is from the reference; None where there is no GPU, or no DALI."""
    if device.type != "cuda" or not has_dali():
        return None
    return measure_truth(device.index)


def faults_of(result: dict[str, Any]) -> list[str]:
    """The limits that a result does not keep, in words."""
    faults = []
    if result["fed"]["wait_share"] > MAX_WAIT:
        faults.append(f"the GPU waits {result['fed']['wait_share']:.2%}, limit {MAX_WAIT:.0%}")
    if result["cost_share"] > MAX_COST:
        faults.append(f"batches cost {result['cost_share']:.2%} of the step, limit {MAX_COST:.0%}")
    for layout, numbers in (result["agreement"] or {}).items():
        if numbers["difference_of_backends"] > MAX_DIFFERENCE:
            faults.append(f"{layout}: DALI is off by {numbers['difference_of_backends']:.1e}")
    return faults


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--data", type=Path, default=Path("bench-data"), help="made if absent")
    parser.add_argument("--objects", type=int, default=4096, help="0.6 MB each; %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="of each measurement; %(default)s")
    parser.add_argument("--recipe", default="resnet50_early", help="of mstrain; %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="%(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("settings", nargs="*", help="key=value, of the recipe")
    return parser


def run(args: argparse.Namespace, words: list[str]) -> int:
    """Measures, prints, writes `gpu_training.json`; returns 1 where a limit is not kept."""
    ranks = Ranks(topology=msdata.Topology(), device=choose_device(args.device, msdata.Topology()))
    config = apply_overrides(
        find_recipe(args.recipe), ["ebv_column=none", "epochs=1000000", *args.settings]
    )
    if args.objects < config.batch_size:
        raise UsageError(
            f"{args.objects} objects are no batch of {config.batch_size}; give more --objects"
        )
    if args.device == "cuda" and not has_dali() and config.data.backend == "auto":
        print("DALI is not installed: batches are made on the CPU, which is no fair race")
        config = apply_overrides(config, ["backend=reference"])
    found = measure(make_data(args.data, args.objects), config, ranks, args.steps)
    result = {
        "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
        "backend": config.data.backend,
        "config": config.as_dict(),
        "agreement": agreement(ranks.device),
        **found,
    }
    for name in ("limit", "fed"):
        print(f"{name:<6}" + "".join(f"  {key} {value:.4g}" for key, value in found[name].items()))
    print(
        f"a batch by itself {found['batch_s']:.4g} s; it costs {found['cost_share']:.2%} of a step"
    )
    faults = faults_of(result)
    result["faults"] = faults
    print(*faults, sep="\n")
    command = shlex.join(["python", "-m", "benchmarks.gpu", *words])
    print(write_result("gpu_training", result, command=command, folder=args.out))
    return int(bool(faults))


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return run(make_parser().parse_args(words), words)
    except MsdataError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
