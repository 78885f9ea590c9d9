"""`python -m benchmarks QUESTION`: all benchmarks, their report, and two results side by side.

Exit codes: 0 good, 1 work found faults (a contestant gave wrong data, a ratio is below the older
one), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.comparison import compare_files
from benchmarks.harness import RESULTS, Settings, add_arguments, claimed_folder, command_of
from msdata.core.signals import exit_code_of
from msdata.errors import MsdataError, UsageError

# Name -> (module with `answer(settings) -> int`, what it asks). A new question is one row here, and
# `benchmarks/questions/NAME.py` with what `benchmarks.report` shows of it.
QUESTIONS = {
    "limit": ("benchmarks.questions.limit", "how fast could this machine be?"),
    "loaders": ("benchmarks.questions.loaders", "how fast are all loaders on the same bytes?"),
    "cache": ("benchmarks.questions.cache", "what does the cache give, as the forecast says?"),
    "policies": (
        "benchmarks.questions.policies",
        "does an order for the cache cost accuracy?",
    ),
    "smaller": (
        "benchmarks.questions.smaller",
        "what do coded samples save, and what do they cost?",
    ),
    "law": ("benchmarks.questions.policies", "how does the error fall with the number of objects?"),
    "perceive": (
        "benchmarks.questions.perceive.question",
        "which band matters at which redshift, and is it the one that can tell?",
    ),
    "scale": ("benchmarks.questions.scale", "what will N nodes do?"),
}
# Benchmarks of one part of the product, with options of their own: name -> (module with
# `main(arguments) -> int`, what it measures).
PARTS = {
    "peer_rates": ("benchmarks.parts.peer_rates", "records over ZeroMQ against a socket"),
    "peer_rates_mpi": ("benchmarks.parts.peer_rates_mpi", "records over MPI against MPI_Get"),
    "pack_rates": ("benchmarks.parts.pack_rates", "packing against copying the bytes"),
    "catalog_build": ("benchmarks.parts.catalog_build", "`msdata catalog build` on 5 M rows"),
    "augment_rates": ("benchmarks.augment_rates", "augmentation against bare interpolation"),
    "train_wait": ("benchmarks.parts.train_wait", "how long a training waits for data"),
    "labels": ("benchmarks.parts.labels", "which score finds planted mislabels"),
    "photoz": ("benchmarks.parts.photoz", "a network against boosted trees"),
    "gpu": ("benchmarks.gpu", "does a GPU wait for data?"),
    "demo": ("benchmarks.parts.demo", "mock objects to a trained network"),
}
# Races of some contestants by a name of their own.
RACES = {
    "load_rates": (
        *("ours_tar", "ours_hdf5", "ours_cached", "ours_block"),
        *("bare_map", "bare_preadv", "bare_sequential"),
    ),
    "cache_rates": ("ours_cached", "bare_map"),
}
# What `rates` runs, into benchmarks/results/.
RATES = ("load_rates", "augment_rates", "train_wait")


def make_parser() -> argparse.ArgumentParser:
    """The command line, but for the options of parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="question", required=True, metavar="QUESTION")
    for name, (_, text) in QUESTIONS.items():
        add_arguments(commands.add_parser(name, help=text, description=text))
    _add_minutes(commands.choices["loaders"])
    commands.choices["loaders"].add_argument(
        "--peers",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAME[,NAME...]",
        help="race these only, such as ours_tar,bare_map",
    )
    commands.choices["perceive"].add_argument(
        "--no-pair",
        dest="has_pair",
        action="store_false",
        help="do not compare early with late fusion: half of the time",
    )
    commands.choices["scale"].add_argument(
        "--machine", type=Path, metavar="JSON", help="rates of `msdata probe`; else measured"
    )
    report = commands.add_parser("report", help="one HTML page of all results in a folder")
    report.add_argument("folder", type=Path, metavar="DIR")
    compared = commands.add_parser("compare", help="ratios side by side; exit code 1 if one fell")
    for name in ("old", "new"):
        compared.add_argument(name, metavar=f"{name.upper()}.json", help="or COMMIT:FILE")
    rates = commands.add_parser("rates", help=f"all of {', '.join(RATES)}")
    rates.add_argument("--data", type=Path, default=Path("bench-data"), help="created if missing")
    for name, peers in RACES.items():
        race = commands.add_parser(name, help=f"loaders --peers {','.join(peers)}")
        add_arguments(race)
        _add_minutes(race)
        race.set_defaults(peers=peers)
    for name, (_, text) in PARTS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _add_minutes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="take fewer turns, but two at least, to end within M (default: 30; 10 with --quick)",
    )


def run_part(name: str, arguments: list[str]) -> int:
    """Runs the benchmark of one part."""
    return int(importlib.import_module(PARTS[name][0]).main(arguments))


def run(arguments: list[str]) -> int:
    """Does what the command line asks for; returns the exit code."""
    if arguments and arguments[0] in PARTS:
        return run_part(arguments[0], arguments[1:])
    args = make_parser().parse_args(arguments)
    if args.question == "report":
        return int(importlib.import_module("benchmarks.report").write_report(args.folder))
    if args.question == "compare":
        return compare_files(args.old, args.new)
    if args.question == "rates":
        for name in RATES:
            print(f"== {name}", flush=True)
            where = ["--out", str(RESULTS)] if name in RACES else ["--data", str(args.data)]
            if code := run([name, *where]):
                return code
        return 0
    settings = Settings(**vars(args), command=command_of(arguments))
    question = "loaders" if args.question in RACES else args.question
    module = importlib.import_module(QUESTIONS[question][0])
    with claimed_folder(settings.out):
        return int(module.answer(settings))


def main(arguments: list[str]) -> int:
    """Runs; a known fault becomes one sentence and an exit code."""
    try:
        return run(arguments)
    except MsdataError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        print(f"benchmarks: stopped:{place}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(
            "benchmarks: interrupted: no result yet; the same command resumes what it kept",
            file=sys.stderr,
        )
        return exit_code_of(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
