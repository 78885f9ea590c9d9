"""`python -m benchmarks QUESTION`: the I/O benchmarks, their report, and the guard of regressions.

Exit codes: 0 good, 1 work found faults (a contestant gave wrong data, a ratio fell), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from benchmarks.question import add_arguments, claimed_folder, settings_of
from msdata.core.signals import exit_code_of
from msdata.errors import MsdataError, UsageError

# Name -> (module with `answer(settings) -> int`, what it asks).
QUESTIONS = {
    "limit": ("benchmarks.questions.limit", "how fast could this machine be?"),
    "loaders": ("benchmarks.questions.loaders", "how fast are we, and everyone else, on the same bytes?"),
    "cache": ("benchmarks.questions.cache", "what does the cache give, and does the forecast hold?"),
    "policies": ("benchmarks.questions.policies", "does an order made for the cache cost accuracy?"),
    "scale": ("benchmarks.questions.scale", "what will N nodes do?"),
}
# Benchmarks of one part of the product, into benchmarks/results/: `rates` runs them all.
RATES: dict[str, list[str]] = {
    "benchmarks.questions.load_rates": ["--cold"],
    "benchmarks.augment_rates": [],
    "benchmarks.questions.train_wait": [],
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="question", required=True, metavar="QUESTION")
    for name, (_, text) in QUESTIONS.items():
        add_arguments(commands.add_parser(name, help=text, description=text))
    commands.choices["loaders"].add_argument(
        "--peers",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAME[,NAME...]",
        help="race these only, such as ours_tar,bare_map",
    )
    commands.choices["scale"].add_argument(
        "--machine", type=Path, metavar="JSON", help="rates of `msdata probe`; else measured"
    )
    report = commands.add_parser("report", help="one HTML page of all results in a folder")
    report.add_argument("folder", type=Path, metavar="DIR")
    compared = commands.add_parser("compare", help="flags ratios that fell; exit code 1 if any")
    compared.add_argument("old", type=Path, metavar="OLD.json")
    compared.add_argument("new", type=Path, metavar="NEW.json")
    rates = commands.add_parser("rates", help="loader and augmentation against bare reads")
    rates.add_argument("--data", type=Path, default=Path("bench-data"), help="made if absent")
    return parser


def run_rates(data: Path) -> int:
    """Runs the benchmarks of parts; returns the first exit code that is not 0."""
    for module, options in RATES.items():
        print(f"== {module}", flush=True)
        code = int(importlib.import_module(module).main(["--data", str(data), *options]))
        if code:
            return code
    return 0


def run(arguments: list[str]) -> int:
    """Does what the command line asks for; returns the exit code."""
    args = make_parser().parse_args(arguments)
    if args.question == "report":
        return int(importlib.import_module("benchmarks.report").write_report(args.folder))
    if args.question == "compare":
        guard = importlib.import_module("benchmarks.regressions")
        return int(guard.compare_files(args.old, args.new))
    if args.question == "rates":
        return run_rates(args.data)
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    module = importlib.import_module(QUESTIONS[args.question][0])
    settings = settings_of(args, command)
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
        print(f"benchmarks: cannot go on:{place}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("benchmarks: interrupted: this question has no result", file=sys.stderr)
        return exit_code_of(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
