"""A program of subcommands: finds the one asked for, runs it, and prints errors as one sentence.

Each subcommand's module is imported only when it is asked for: start-up counts in short jobs, and
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
    """Parses a command line as argparse does."""
    return parser.parse_args(words)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program.

    Attributes:
        name: as users call it.
        description: one sentence for `--help`.
        commands: subcommand -> (module with `add_arguments` and `run`, one line of help). A module
            may say what follows from being interrupted, in `WHEN_INTERRUPTED`.
        when_interrupted: what follows where the module says nothing.
        parse: takes the parser of the subcommand and the words.
    """

    name: str
    description: str
    commands: Mapping[str, tuple[str, str]]
    when_interrupted: str
    parse: Parse = parse_all

    def parser(self, words: Sequence[str]) -> argparse.ArgumentParser:
        """The parser of all subcommands, with the options of the one that the words ask for."""
        parser = argparse.ArgumentParser(prog=self.name, description=self.description)
        # All packages come in one distribution and have one version.
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
            Exit code: 0 good, 1 the work found faults, 2 wrong usage, or what the subcommand says.
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
            # The reader of our output has gone (`| head`): no reason to complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            print(f"{name}: {shown_line(_refusal(error))}", file=sys.stderr)
            return exit_code_of(error)

    def _consequence(self, words: Sequence[str]) -> str:
        """What the subcommand says of being interrupted, as far as it has been imported."""
        module = sys.modules.get(self.commands.get(_command(words) or "", ("", ""))[0])
        says: str = getattr(module, "WHEN_INTERRUPTED", self.when_interrupted)
        return says


def _refusal(error: OSError) -> str:
    """The sentence for what the system refused where nobody expected it to."""
    if error.filename is not None:
        return str(storage_error("use", Path(os.fsdecode(error.filename)), error))
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        # Only what is printed has no name.
        return str(storage_error("write", Path("what is printed here"), error))
    return f"the system refused: {error.strerror or error}"


def _command(words: Sequence[str]) -> str | None:
    return next((word for word in words if not word.startswith("-")), None)
