"""`mstrain tune`: searches settings of a recipe; every call on one study is a worker of it.

mstrain tune demo DATA --out STUDY --trials 60 --search 'optim.learning_rate=log:1e-4..1e-2'
mstrain tune --out STUDY --show
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from msdata.errors import DataError, UsageError
from msdata.topology import Topology, from_env
from mstrain import REQUEUE_EXIT_CODE
from mstrain.data.share import training_split
from mstrain.distributed import Ranks, Stopped, StopRequest, choose_device, set_threads
from mstrain.models.labels import resolve
from mstrain.options import add_settings
from mstrain.overrides import full_name
from mstrain.recipes import AUTO, RECIPES, config_for
from mstrain.tune.journal import PRUNERS, RUNNING, SAMPLERS
from mstrain.tune.results import (
    best_command,
    best_table,
    best_trial,
    check_results,
    count_text,
    write_page,
    write_tables,
)
from mstrain.tune.space import CRPS, OBJECTIVES, parse_space
from mstrain.tune.study import Study, StudyConfig, read_study
from mstrain.tune.worker import (
    Worker,
    reserved_samples,
    say_to_stderr,
    shared_arena,
    trial_training,
    with_shared_cache,
)

WHEN_INTERRUPTED = "the same command resumes the trial from its last checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain tune`."""
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help=f"one of {', '.join((AUTO, *RECIPES))}"
    )
    parser.add_argument(
        "data", metavar="DATA", type=Path, nargs="?", help="folder that 'msdata pack' wrote"
    )
    add_settings(parser, "all trials")
    parser.add_argument(
        "--out",
        metavar="STUDY",
        type=Path,
        required=True,
        help="folder of the study; a call on an existing one is a further worker of it",
    )
    parser.add_argument(
        "--trials",
        metavar="N",
        type=int,
        default=60,
        help="trials of the whole study, whichever worker trains them (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        metavar="NAME=SPACE",
        nargs="+",
        default=[],
        help="settings to search: NAME=LOW..HIGH, NAME=log:LOW..HIGH or NAME=A,B,C",
    )
    for name, choices, text in (
        ("--objective", OBJECTIVES, "of split val, by the weights with the least loss"),
        ("--pruner", PRUNERS, "what ends trials early"),
        ("--sampler", SAMPLERS, "how settings are drawn"),
    ):
        parser.add_argument(
            name, choices=choices, default=choices[0], help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the draws (default: %(default)s)"
    )
    parser.add_argument(
        "--show", action="store_true", help="train nothing: write and print the results so far"
    )


def run(args: argparse.Namespace) -> int:
    """Works on a study.

    Returns:
        0, or 85 where SIGUSR1 or SIGTERM came and the trial was saved.
    """
    if args.show:
        if args.recipe is not None:
            raise UsageError(f"--show takes a study alone, got {args.recipe!r}; leave it out")
        config = read_study(args.out)
        words = [f"{name}={text}" for name, text in config.search.items()]
        space = parse_space(words, config.config, config.words, config.objective)
        _show(Study(args.out, config, space))
        return 0
    if args.recipe is None or args.data is None:
        raise UsageError("mstrain tune must have RECIPE and DATA, or --show")
    if args.trials < 1:
        raise UsageError(f"--trials must be at least 1, got {args.trials}")
    return _work(args)


def _work(args: argparse.Namespace) -> int:
    base, data = config_for(args.recipe, args.settings, args.data, 1)
    space = parse_space(args.search, base, args.settings, args.objective)
    if base.epochs < 1:
        raise UsageError(f"epochs must be at least 1, got {base.epochs}")
    if args.objective == CRPS and resolve(base, data).model.classes:
        raise UsageError("--objective must be loss where classes are learned, got crps")
    config = StudyConfig(
        recipe=args.recipe,
        words=tuple(args.settings),
        config=base,
        search={dimension.name: str(dimension) for dimension in space},
        data=str(args.data.absolute()),
        fingerprint=data.manifest.fingerprint,
        objective=args.objective,
        sampler=args.sampler,
        pruner=args.pruner,
        seed=args.seed,
    )
    # Each process that a launcher starts is a worker, on the GPU of its number.
    place = from_env()
    device = choose_device(base.compute.device, place)
    set_threads(base.compute.threads, place, device)
    ranks = Ranks(topology=Topology(), device=device)
    with StopRequest() as stop:
        train = trial_training(data, ranks, stop)
        study = Study(args.out, config, space)
        check_results(study.folder)
        given = [full_name(word.partition("=")[0]) for word in args.settings]
        base = replace(base, data=with_shared_cache(base.data, given, study.config.token))
        worker = Worker(study=study, base=base, train=train, stop=stop, say=say_to_stderr)
        reserved = reserved_samples(base, space, place.ranks_per_node)
        try:
            if study.has_work(args.trials):
                splits = training_split(data, resolve(base, data)), data.split("val")
                with shared_arena(splits, base.data, reserved, stop, say_to_stderr):
                    worker.run(args.trials)
        except Stopped:
            write_tables(study)
            print(
                f"mstrain tune: stopped as asked, {args.out} is saved: the same command resumes "
                f"(exit code {REQUEUE_EXIT_CODE})",
                file=sys.stderr,
            )
            return REQUEUE_EXIT_CODE
        except DataError:
            write_tables(study)
            raise
    _show(study)
    return 0


def _show(study: Study) -> None:
    """Writes the results, and prints the best of them."""
    trials = write_tables(study)
    page = write_page(study, trials)
    print(count_text(trials))
    if any(trial.state == RUNNING for trial in trials):
        print("running ones have a worker, or wait for the next call of the same command")
    best = best_trial(trials)
    if best is None:
        return
    names = [dimension.name for dimension in study.space]
    table = best_table(trials, names, study.config.objective, 5)
    print(f"{table.caption}\n{table.as_text()}\n{best_command(study, best)}")
    print(f"table:  {study.folder / 'trials.csv'}\nreport: {page}")
