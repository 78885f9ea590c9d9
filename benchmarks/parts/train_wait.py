"""How long a training waits for data, of the time of its epochs.

    python -m benchmarks train_wait --data bench-data

Runs `mstrain train` as a user would and reads its journal. The first epoch, with its imports and
cold files, is shown and does not count.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.harness import add_data, part_parser, write_part
from benchmarks.workloads import WHOLE, pack_mock, run_mstrain
from mstrain.training.checkpoint import has_config
from mstrain.training.metrics_log import read_journal

_KEPT = ("epoch", "samples_per_s", "data_wait_fraction", "seconds")


def measure(data: Path, run: Path, recipe: str, settings: list[str]) -> list[dict[str, float]]:
    """Trains from the start; returns rate and wait of each epoch."""
    if has_config(run) or not run.exists():
        shutil.rmtree(run, ignore_errors=True)
    run_mstrain("train", recipe, data, "--out", run, "log.tensorboard=no", *settings)
    epochs = [line for line in read_journal(run) if line["kind"] == "epoch"]
    return [{name: round(epoch[name], 5) for name in _KEPT} for epoch in epochs]


def main(words: list[str]) -> int:
    """Runs the benchmark; returns the exit code: 1 where the wait is more than the limit."""
    parser = part_parser("train_wait", "How long a training waits for data.")
    add_data(parser, 384)
    parser.add_argument("--recipe", default="resnet18_early", help="of mstrain train")
    parser.add_argument("--limit", type=float, default=0.02, help="of the wait; %(default)s")
    default = ["epochs=2", "batch_size=64", "compute.precision=float32"]
    parser.add_argument("settings", nargs="*", default=default, help="key=value, of the recipe")
    args = parser.parse_args(words)
    count, folder = args.objects, args.data
    data = pack_mock(folder / f"tar-{count}", folder / f"objects-{count}", count, *WHOLE)
    epochs = measure(data, folder / f"wait-{args.recipe}", args.recipe, args.settings)
    for epoch in epochs:
        print("  ".join(f"{name} {value:,}" for name, value in epoch.items()))
    worst = max(epoch["data_wait_fraction"] for epoch in epochs[1:] or epochs)
    facts = {"objects": args.objects, "recipe": args.recipe, "settings": args.settings}
    found = {"epochs": epochs, "data_wait_fraction": worst, "limit": args.limit}
    write_part("train_wait", {**facts, **found}, words, args.out)
    return int(worst > args.limit)
