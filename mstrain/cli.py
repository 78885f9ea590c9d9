"""The `mstrain` command: finds the subcommand, prints errors as one sentence.

Each subcommand's module is imported only when it is asked for: importing torch takes seconds.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from msdata import __version__
from msdata.errors import MsdataError
from msdata.exits import exit_code_of, raise_on_sigterm

# Subcommand -> (module with add_arguments and run, one line of help).
COMMANDS = {
    "train": ("mstrain.train", "train a network by a recipe, or go on with a run"),
    "evaluate": ("mstrain.evaluate", "measure a trained network on a split, and draw a report"),
    "predict": ("mstrain.predict", "write a table of redshift densities of a data set"),
}


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mstrain",
        description="Trains and evaluates redshift networks on data sets made by msdata.",
    )
    # Both packages come in one distribution and have one version.
    parser.add_argument("--version", action="version", version=f"mstrain {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = _command(argv)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == chosen:
            importlib.import_module(module).add_arguments(sub)
    return parser


def _command(argv: Sequence[str]) -> str | None:
    return next((a for a in argv if not a.startswith("-")), None)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; settings may stand after options, where argparse takes no positionals.

    Args:
        arguments: without the program's name.

    Raises:
        SystemExit: they make no sense; 2.
    """
    parser = _parser(arguments)
    args, others = parser.parse_known_args(arguments)
    unknown = [w for w in others if w.startswith("-") or not hasattr(args, "settings")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if others:
        args.settings = [*args.settings, *others]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None means those of this process.

    Returns:
        Exit code: 0 good, 1 the work found faults, 2 wrong usage; 85 where a training was told to
        stop and has saved its state.
    """
    raise_on_sigterm()
    arguments = sys.argv[1:] if argv is None else list(argv)
    name = f"mstrain {_command(arguments) or ''}".rstrip()
    try:
        args = parse(arguments)
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except MsdataError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted; what was finished before is kept", file=sys.stderr)
        return exit_code_of(error)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): no reason to complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
