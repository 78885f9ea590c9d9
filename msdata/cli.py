"""The `msdata` command, and `Program`: finds a subcommand, runs it, prints errors in one sentence.

A subcommand's module is imported only when it is needed: start-up counts in short jobs, and
importing torch takes seconds.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msdata import __version__
from msdata.core.arrow_start import start_arrow_alone
from msdata.core.files import storage_error
from msdata.core.signals import (
    end_on_signals,
    exit_code_of,
    keep_lines_whole,
    open_standard_streams,
    raise_on_signals,
)
from msdata.core.terminal import plain_streams, shown_line
from msdata.errors import MsdataError

Parse = Callable[[argparse.ArgumentParser, Sequence[str]], argparse.Namespace]


def parse_all(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parses a command line with argparse."""
    return parser.parse_args(words)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program of subcommands.

    Attributes:
        name: its command.
        description: one sentence for `--help`.
        commands: subcommand -> (module with `add_arguments` and `run`, one line of help). A module
            may state the effect of an interruption in `WHEN_INTERRUPTED`.
        when_interrupted: the effect of an interruption for the other modules.
        parse: parses the words with the parser.
    """

    name: str
    description: str
    commands: Mapping[str, tuple[str, str]]
    when_interrupted: str
    parse: Parse = parse_all

    def parser(self, words: Sequence[str]) -> argparse.ArgumentParser:
        """Makes the parser of all subcommands, with the options of the requested one."""
        parser = argparse.ArgumentParser(prog=self.name, description=self.description)
        # Both packages belong to one distribution and share its version.
        version = f"{self.name} {__version__}"
        parser.add_argument("--version", action="version", version=version)
        commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
        chosen = _command(words)
        for name, (module, text) in self.commands.items():
            sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
            if name == chosen:
                importlib.import_module(module).add_arguments(sub)
        return parser

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command line.

        Args:
            argv: arguments without the program's name; None means those of this process.

        Returns:
            Exit code: 0 success, 1 faults, 2 wrong usage, or the subcommand's own.
        """
        words = sys.argv[1:] if argv is None else list(argv)
        name = f"{self.name} {_command(words) or ''}".rstrip()
        end_on_signals(f"{name}: interrupted before any work started")
        open_standard_streams()
        keep_lines_whole()
        with plain_streams():
            return self._run(words, name)

    def _run(self, words: Sequence[str], name: str) -> int:
        try:
            try:
                args = self.parse(self.parser(words), words)
            finally:
                raise_on_signals()
            return int(importlib.import_module(self.commands[args.command][0]).run(args))
        except MsdataError as error:
            print(f"{name}: {shown_line(str(error))}", file=sys.stderr)
            return exit_code_of(error)
        except KeyboardInterrupt as error:
            print(f"{name}: interrupted; {self._consequence(words)}", file=sys.stderr)
            return exit_code_of(error)
        except BrokenPipeError:
            # The reader of our output has exited (`| head`), which is not an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            print(f"{name}: {shown_line(_refusal(error))}", file=sys.stderr)
            return exit_code_of(error)

    def _consequence(self, words: Sequence[str]) -> str:
        """The effect of an interruption; the subcommand states it if its module is imported."""
        module = sys.modules.get(self.commands.get(_command(words) or "", ("", ""))[0])
        says: str = getattr(module, "WHEN_INTERRUPTED", self.when_interrupted)
        return says


def _refusal(error: OSError) -> str:
    """Words an unexpected refusal of the system."""
    if error.filename is not None:
        return str(storage_error("use", Path(os.fsdecode(error.filename)), error))
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        # Only printed output has no file name.
        return str(storage_error("write", Path("what is printed here"), error))
    return f"the system refused: {error.strerror or error}"


def _command(words: Sequence[str]) -> str | None:
    return next((word for word in words if not word.startswith("-")), None)


# Subcommand -> (module with add_arguments and run, one line of help).
COMMANDS = {
    "mock": ("msdata.mock.command", "make mock objects and their catalog"),
    "filters": ("msdata.mock.filters_command", "print passbands and the features that cross them"),
    "fetch": ("msdata.fetch.command", "fetch cutouts from the surveys' services"),
    "pack": ("msdata.pack.command", "pack objects into shards and an index"),
    "unpack": (
        "msdata.ingest.unpack_command",
        "write the samples of a data set as objects and a catalog",
    ),
    "index": ("msdata.ingest.command", "open tar, HDF5 and .npy files in place, copying nothing"),
    "catalog": (
        "msdata.catalog.command",
        "compile a spectroscopic sample from survey tables",
    ),
    "verify": ("msdata.verify.command", "check every byte of a data set"),
    "info": ("msdata.describe.info_command", "show counts, sizes and statistics of a data set"),
    "card": ("msdata.describe.card_command", "write a data card for people and machines"),
    "stats": (
        "msdata.describe.stats",
        "measure noise and spread per band, for augmentation",
    ),
    "plan": (
        "msdata.plan.command",
        "predict what a job will read from where, before you submit it",
    ),
    "cache": ("msdata.cache.command", "serve a node's cache to other nodes; show and clean caches"),
    "probe": ("msdata.cluster.probe_command", "measure this node's memory, disks and network"),
    "doctor": (
        "msdata.cluster.doctor_command",
        "find faults of a job's nodes and say how to fix them",
    ),
    "sheet": ("msdata.describe.sheet_command", "draw a contact sheet of a data set"),
}
PROGRAM = Program(
    name="msdata",
    description="Packs, plans, caches and loads image cutouts for training.",
    commands=COMMANDS,
    when_interrupted="finished work is kept",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see `Program.main`."""
    if argv is None:
        # The process is the command, and no other code in it uses pandas.
        start_arrow_alone()
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
