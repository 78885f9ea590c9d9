"""`mstrain train`: a recipe, a data set and a folder in, a trained network in that folder out.

mstrain train demo DATA --out RUN [key=value ...]
torchrun --nproc-per-node 4 -m mstrain.train resnet18_early DATA --out RUN [key=value ...]
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msdata.topology import from_env
from mstrain import REQUEUE_EXIT_CODE
from mstrain.config import batch_per_rank
from mstrain.distributed import (
    SharedError,
    Stopped,
    StopRequest,
    choose_device,
    joined_ranks,
    set_threads,
)
from mstrain.options import add_data, add_settings
from mstrain.overrides import settings_of
from mstrain.recipes import AUTO, RECIPES, config_for
from mstrain.training.checkpoint import check_run_folder, locked_run
from mstrain.training.run import train_on_ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain train`."""
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join((AUTO, *RECIPES))}")
    add_data(parser)
    add_settings(parser, "the recipe")
    parser.add_argument(
        "--out",
        metavar="RUN",
        type=Path,
        required=True,
        help="folder of the run; an existing run resumes from its last checkpoint",
    )
    parser.add_argument(
        "--init",
        metavar="SOURCE",
        type=Path,
        help="start from a run's weights, MODEL.msz, .safetensors or a .pt state dict",
    )
    parser.add_argument(
        "--without",
        metavar="SUSPECTS.csv",
        type=Path,
        help="do not train on the samples of this table's column sample_id",
    )
    parser.add_argument(
        "--settings",
        action=_ListSettings,
        help="list all settings and exit; batch_size counts the samples of all ranks together",
    )


class _ListSettings(argparse.Action):
    """Prints the settings of all recipes, as `--help` prints the options."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        columns = {name: dict(settings_of(make())) for name, make in RECIPES.items()}
        for name in next(iter(columns.values())):
            if name != "recipe":
                print(
                    f"{name:<26}" + "".join(f"{values[name]!s:>16}" for values in columns.values())
                )
        parser.exit()


def run(args: argparse.Namespace) -> int:
    """Trains.

    Returns:
        0, or 85 where SIGUSR1 or SIGTERM came and the state was saved.
    """
    topology = from_env()
    if args.without is not None:
        args.settings = [*args.settings, f"data.without={args.without.absolute()}"]
    config, data = config_for(args.recipe, args.settings, args.data, topology.num_ranks)
    batch_per_rank(config, topology.num_ranks)
    device = choose_device(config.compute.device, topology)
    set_threads(config.compute.threads, topology, device)
    try:
        with StopRequest() as stop, joined_ranks(topology, device) as ranks, ExitStack() as stack:
            ranks.on_first(lambda: check_run_folder(args.out))
            ranks.on_first(lambda: stack.enter_context(locked_run(args.out)))
            train_on_ranks(args.out, config, data, ranks, stop, init=args.init)
    except Stopped:
        if topology.rank == 0:
            print(
                f"mstrain train: stopped as asked, {args.out} is saved: the same command resumes "
                f"(exit code {REQUEUE_EXIT_CODE})",
                file=sys.stderr,
            )
        return REQUEUE_EXIT_CODE
    except SharedError as error:
        # The first rank says it for all.
        if topology.rank == 0:
            raise
        return error.code
    return 0
