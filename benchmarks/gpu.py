"""Does a GPU wait for data? One command for whoever has a GPU for half an hour.

    python -m benchmarks gpu --out DIR

It makes its own data and measures section by section: first whether the path to the device works
(page locks, agreement of the backends with the reference, images that are read late, copies), then
rates: the backends by themselves, the network over batch sizes and variants, one rank of eight, and
at last training fed by loader and augmentation against batches that are on the device (the limit).
`DIR/gpu.json` is written after each section, so that nothing is lost where a later one fails: that
is noted, and the next one runs. What could not be measured is listed with its reason. Exit code 1
where something failed or a limit is exceeded. With `--device cpu` it runs anywhere, for tests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import msdata
from benchmarks.harness import add_data, command_of, interval_text, part_parser, write_result
from benchmarks.questions import gpu_smoke, gpu_steps
from benchmarks.questions.gpu_steps import (
    GpuRun,
    Timeline,
    batch_on_device,
    in_turns,
    made_up_statistics,
    make_step,
    run_steps,
)
from benchmarks.workloads import WORKLOADS, mock_objects, redshift_of
from msdata.core.files import write_whole
from msdata.errors import UsageError
from msdata.schema import MANTIS_SHRIMP
from mstrain.data.batches import (
    EpochEnd,
    Prefetcher,
    TensorBatch,
    make_augmenter,
    make_loader,
    training_stream,
)
from mstrain.distributed import choose_device
from mstrain.overrides import apply_overrides
from mstrain.recipes import find_recipe
from mstrain.training.train_step import TrainStep

NAME = "gpu"
# Of issue 16: shares of the step that the GPU may wait, and that making batches may cost.
MAX_WAIT, MAX_COST = 0.01, 0.05
_NUM_PROFILED = 5
_PROFILE_ROWS = 30


def make_data(folder: Path, num_samples: int) -> Path:
    """A packed data set of noise with the shapes of Mantis Shrimp, unless it is there."""
    data = folder / f"gpu-{num_samples}"
    if not (data / "dataset.json").is_file():
        with msdata.Writer(data, schema=MANTIS_SHRIMP, split_fractions=(1, 0, 0)) as writer:
            for number, arrays in enumerate(mock_objects(WORKLOADS["mantis"], num_samples)):
                writer.write(f"{number:07d}", arrays, redshift=redshift_of(number))
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
    train_step = make_step(run.config, run.ranks)
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

        limit = partial(run_steps, train_step, kept, timeline, run.num_steps)
        makers: dict[str, Any] = {"limit": lambda: limit}
        makers |= {name: partial(fed, words) for name, words in run.backends.items()}
        found = in_turns(run, "fed", makers)
    limit_s = found["limit"]["step_s"]["median"] if "limit" in found else None
    for name, numbers in found.items():
        if name != "limit" and limit_s:
            cost = {key: value / limit_s - 1 for key, value in numbers["step_s"].items()}
            numbers["cost_share"] = cost
    return found


def profile(run: GpuRun) -> dict[str, Any]:
    """Where the time of fed steps goes, as torch's profiler sees it: a table per backend."""
    train_step = make_step(run.config, run.ranks)
    return {
        name: run.attempt(f"profile: {name}", partial(_table, run, train_step, words))
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


# In this order: what is certain to be needed comes first.
SECTIONS: dict[str, Callable[[GpuRun], dict[str, Any]]] = {
    "device": gpu_smoke.device_facts,
    "page locks": gpu_smoke.page_locks,
    "agreement": gpu_smoke.agreement,
    "held images": gpu_smoke.held_images,
    "copies": gpu_smoke.copy_rates,
    "augmentation": gpu_smoke.augmentation,
    "batches": gpu_steps.by_batch_size,
    "fed": fed_against_limit,
    "variants": gpu_steps.by_variant,
    "ranks": gpu_steps.by_norm,
    "profile": profile,
}


def exceeded_limits(fed: Mapping[str, Any]) -> dict[str, str]:
    """The limits that fed training exceeds, in words, by what section "fed" found."""
    found = {}
    for name, numbers in fed.items():
        wait = numbers["wait_share"]["median"]
        if name != "limit" and wait > MAX_WAIT:
            found[f"fed: {name}: wait"] = f"the device waits {wait:.2%}, limit {MAX_WAIT:.0%}"
        cost = numbers.get("cost_share", {"median": 0.0})["median"]
        if cost > MAX_COST:
            found[f"fed: {name}: cost"] = f"batches cost {cost:.2%} of a step, limit {MAX_COST:.0%}"
    return found


def lines_of(found: Any, prefix: str = "  ") -> list[str]:
    """What a section found as lines of text."""
    if not isinstance(found, dict):
        return [f"{prefix}{line}" for line in (found if isinstance(found, list) else [found])]
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value.keys() >= {"median", "least", "greatest"}:
            value = interval_text(value, ".4g")
        if isinstance(value, dict | list):
            lines += [f"{prefix}{name}", *lines_of(value, prefix + "  ")]
        else:
            lines.append(f"{prefix}{name:<20} {value}")
    return lines


def write(result: Mapping[str, Any], command: str, folder: Path) -> Path:
    """Writes what is known so far; where facts of the host cannot be found, without them."""
    try:
        return write_result(NAME, result, command=command, folder=folder)
    except Exception as error:
        print(f"  the result lacks facts of the host: {error}")
        path = folder / f"{NAME}.json"
        content = {"benchmark": NAME, "command": command, **result}
        write_whole(path, (json.dumps(content, default=str) + "\n").encode())
        return path


def measure(run: GpuRun, names: tuple[str, ...], command: str, folder: Path) -> dict[str, Any]:
    """Runs sections one after the other and writes after each; returns what was written last."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [name for name in SECTIONS if name in names]
    skipped = {name: "not asked for" for name in SECTIONS if name not in names}
    result: dict[str, Any] = {"config": run.config.as_dict(), "sections": {}}
    while True:
        limits = exceeded_limits(result["sections"].get("fed", {}))
        result["failures"] = run.failures
        result["limits_exceeded"] = limits
        later = dict.fromkeys(waiting, "the benchmark ended before")
        result["not_measured"] = {**run.not_measured, **skipped, **later}
        path = write(result, command, folder)
        if not waiting:
            print(path)
            return result
        name = waiting[0]
        print(f"\n== {name}", flush=True)
        started_s = time.perf_counter()
        # An interruption leaves what is written, with this section among what was not measured.
        found = run.attempt(name, partial(SECTIONS[name], run))
        waiting.pop(0)
        result["sections"][name] = found or {}
        result.setdefault("section_s", {})[name] = round(time.perf_counter() - started_s, 2)
        print("\n".join(lines_of(result["sections"][name])))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = part_parser(NAME, __doc__)
    add_data(parser, 2048)
    parser.add_argument("--steps", type=int, default=50, help="per measurement; %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="of contestants; %(default)s")
    parser.add_argument(
        "--batches",
        type=lambda text: tuple(map(int, text.split(","))),
        default=(16, 32, 64, 128, 256, 512),
        help="samples per step of section batches; 16 to 512",
    )
    parser.add_argument(
        "--sections",
        type=lambda text: tuple(map(str.strip, text.split(","))),
        default=tuple(SECTIONS),
        help=f"of {', '.join(SECTIONS)}; all",
    )
    parser.add_argument("--recipe", default="resnet50_early", help="of mstrain; %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="%(default)s")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="also measure what torch.compile makes; on a GPU by default",
    )
    parser.add_argument("settings", nargs="*", help="key=value, of the recipe")
    return parser


def main(words: list[str]) -> int:
    """Measures, prints, writes; returns 1 where something failed or a limit is exceeded."""
    args = make_parser().parse_args(words)
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        raise UsageError(
            f"--sections must be some of {', '.join(SECTIONS)}, got {', '.join(unknown)}"
        )
    if args.steps < 2 or args.turns < 1 or min(args.batches) < 1:
        raise UsageError("--steps must be at least 2, --turns and --batches at least 1")
    settings = ["ebv_column=none", "epochs=1000000", *args.settings]
    run = GpuRun(
        config=apply_overrides(find_recipe(args.recipe), settings),
        device=choose_device(args.device, msdata.Topology()),
        folder=args.data,
        num_objects=args.objects,
        num_steps=args.steps,
        num_turns=args.turns,
        batch_sizes=args.batches,
        is_compiled=args.device == "cuda" if args.compile is None else args.compile,
    )
    if args.objects < run.config.batch_size:
        raise UsageError(
            f"{args.objects} objects do not fill a batch of {run.config.batch_size}; give more "
            "--objects"
        )
    result = measure(run, args.sections, command_of([NAME, *words]), args.out)
    for title in ("failures", "limits_exceeded", "not_measured"):
        for name, text in result[title].items():
            print(f"{title.replace('_', ' ')}: {name}: {text}")
    return int(bool(result["failures"] or result["limits_exceeded"]))
