"""How long a training waits for data, of the time of its epochs.

    python -m benchmarks.questions.train_wait --data bench-data

Runs `mstrain train` as a user would and reads its journal. The first epoch, with its imports and
cold files, is shown and does not count.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.harness import write_result
from benchmarks.workloads import make_dataset, run_mstrain
from mstrain.training.checkpoint import has_config
from mstrain.training.metrics_log import read_journal

_KEPT = ("epoch", "samples_per_s", "data_wait_fraction", "seconds")


def measure(data: Path, run: Path, recipe: str, settings: list[str]) -> list[dict[str, float]]:
    """Trains anew; returns rate and wait of each epoch."""
    if has_config(run) or not run.exists():
        shutil.rmtree(run, ignore_errors=True)
    run_mstrain("train", recipe, data, "--out", run, "log.tensorboard=no", *settings)
    epochs = [line for line in read_journal(run) if line["kind"] == "epoch"]
    return [{name: round(epoch[name], 5) for name in _KEPT} for epoch in epochs]


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code: 1 where the wait is more than the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.questions.train_wait")
    parser.add_argument("--data", type=Path, default=Path("bench-data"), help="for data and run")
    parser.add_argument("--objects", type=int, default=384, help="mock objects, 0.6 MB each")
    parser.add_argument("--recipe", default="resnet18_early", help="of mstrain train")
    parser.add_argument("--limit", type=float, default=0.02, help="of the wait; %(default)s")
    default = ["epochs=2", "batch_size=64", "compute.precision=float32"]
    parser.add_argument("settings", nargs="*", default=default, help="key=value, of the recipe")
    args = parser.parse_args(argv)
    data = make_dataset(args.data, "tar", args.objects)
    epochs = measure(data, args.data / f"wait-{args.recipe}", args.recipe, args.settings)
    for epoch in epochs:
        print("  ".join(f"{name} {value:,}" for name, value in epoch.items()))
    worst = max(epoch["data_wait_fraction"] for epoch in epochs[1:] or epochs)
    result = {
        "objects": args.objects,
        "recipe": args.recipe,
        "settings": args.settings,
        "epochs": epochs,
        "data_wait_fraction": worst,
        "limit": args.limit,
    }
    command = (
        f"python -m benchmarks.questions.train_wait --objects {args.objects} --recipe {args.recipe}"
    )
    print(write_result("train_wait", result, command=" ".join([command, *args.settings])))
    return int(worst > args.limit)


if __name__ == "__main__":
    sys.exit(main())
