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
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msdata
from benchmarks.harness import RESULTS, write_result
from benchmarks.questions import gpu_fed, gpu_smoke, gpu_steps
from benchmarks.questions.gpu_steps import GpuRun
from msdata.core.files import write_whole
from msdata.errors import MsdataError, UsageError
from mstrain.distributed import choose_device
from mstrain.overrides import apply_overrides
from mstrain.recipes import find_recipe

NAME = "gpu"
# Of issue 16: shares of the step that the GPU may wait, and that making batches may cost.
MAX_WAIT, MAX_COST = 0.01, 0.05
# In this order: what is certain to be needed comes first.
SECTIONS: dict[str, Callable[[GpuRun], dict[str, Any]]] = {
    "device": gpu_smoke.device_facts,
    "page locks": gpu_smoke.page_locks,
    "agreement": gpu_smoke.agreement,
    "held images": gpu_smoke.held_images,
    "copies": gpu_smoke.copy_rates,
    "augmentation": gpu_smoke.augmentation,
    "batches": gpu_steps.by_batch_size,
    "fed": gpu_fed.fed_against_limit,
    "variants": gpu_steps.by_variant,
    "ranks": gpu_steps.by_norm,
    "profile": gpu_fed.profile,
}


def exceeded_limits(fed: Mapping[str, Any]) -> dict[str, str]:
    """The limits that fed training exceeds, in words.

    Args:
        fed: what section "fed" found: numbers by way to augment.
    """
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
            low, middle, high = (value[key] for key in ("least", "median", "greatest"))
            lines.append(f"{prefix}{name:<20} {middle:.4g} ({low:.4g} to {high:.4g})")
        elif isinstance(value, dict | list):
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
    """Runs sections one after the other and writes after each.

    Args:
        run: what they share.
        names: the sections to run.
        command: what was typed.
        folder: of the result.

    Returns:
        What was written last.
    """
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
        found = run.attempt(name, lambda name=name: SECTIONS[name](run))
        waiting.pop(0)
        result["sections"][name] = found or {}
        result.setdefault("section_s", {})[name] = round(time.perf_counter() - started_s, 2)
        print("\n".join(lines_of(result["sections"][name])))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--data", type=Path, default=Path("bench-data"), help="created if missing")
    parser.add_argument("--objects", type=int, default=2048, help="0.6 MB each; %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="per measurement; %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="of contestants; %(default)s")
    parser.add_argument(
        "--batches",
        type=lambda text: tuple(int(word) for word in text.split(",")),
        default=(16, 32, 64, 128, 256, 512),
        help="samples per step of section batches; 16 to 512",
    )
    parser.add_argument(
        "--sections",
        type=lambda text: tuple(word.strip() for word in text.split(",")),
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


def run_all(args: argparse.Namespace, words: list[str]) -> int:
    """Measures, prints, writes; returns 1 where something failed or a limit is exceeded."""
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
    command = shlex.join(["python", "-m", "benchmarks", "gpu", *words])
    result = measure(run, args.sections, command, args.out)
    for title in ("failures", "limits_exceeded", "not_measured"):
        for name, text in result[title].items():
            print(f"{title.replace('_', ' ')}: {name}: {text}")
    return int(bool(result["failures"] or result["limits_exceeded"]))


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return run_all(make_parser().parse_args(words), words)
    except MsdataError as error:
        print(f"benchmarks gpu: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
