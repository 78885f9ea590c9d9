"""The `msdata` command: finds the subcommand, prints errors as one sentence.

Each subcommand's module is imported only when it is asked for: start-up counts in short jobs.
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
    "mock": ("msdata.sources.mock.command", "make mock objects and their catalogue"),
    "fetch": ("msdata.fetch.command", "fetch cutouts from the surveys' services"),
    "pack": ("msdata.pack.command", "pack objects into shards and an index"),
    "catalog": (
        "msdata.skycatalog.command",
        "compile a spectroscopic sample from surveys' tables",
    ),
    "verify": ("msdata.verify_command", "check every byte of a data set"),
    "info": ("msdata.info_command", "show counts, sizes and statistics of a data set"),
    "card": ("msdata.card_command", "write a data card, for people and for machines"),
    "stats": ("msdata.stats_command", "measure noise and spread of each band, for augmentation"),
    "plan": ("msdata.plan_command", "say what a job will read from where, before it is submitted"),
    "cache": ("msdata.cache_command", "serve a node's cache to others, show and clean caches"),
    "probe": ("msdata.probe_command", "measure this node's memory, disks and network"),
    "doctor": ("msdata.doctor.command", "say what is wrong with a job's nodes, and the cure"),
    "sheet": ("msdata.sheet_command", "draw a contact sheet of a data set"),
}


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="msdata", description="Packs, plans, caches and loads image cutouts for training."
    )
    parser.add_argument("--version", action="version", version=f"msdata {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = _command(argv)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == chosen:
            importlib.import_module(module).add_arguments(sub)
    return parser


def _command(argv: Sequence[str]) -> str | None:
    return next((a for a in argv if not a.startswith("-")), None)


def _consequence(argv: Sequence[str]) -> str:
    """What the subcommand says of being interrupted, as far as it has been imported."""
    module = sys.modules.get(COMMANDS.get(_command(argv) or "", ("", ""))[0])
    return getattr(module, "WHEN_INTERRUPTED", "nothing finished is lost")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None means those of this process.

    Returns:
        Exit code: 0 good, 1 the work found faults, 2 wrong usage.
    """
    raise_on_sigterm()
    arguments = sys.argv[1:] if argv is None else list(argv)
    name = f"msdata {_command(arguments) or ''}".rstrip()
    try:
        args = _parser(arguments).parse_args(arguments)
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except MsdataError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted; {_consequence(arguments)}", file=sys.stderr)
        return exit_code_of(error)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): no reason to complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
