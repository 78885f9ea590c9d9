"""Arguments and options that several commands of mstrain have, each declared once.

What needs the constants of evaluation stands in `mstrain.evaluation.command`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_run(parser: argparse.ArgumentParser, *, has_model_files: bool = False) -> None:
    """Declares the argument RUN.

    Args:
        parser: the command's parser.
        has_model_files: whether the command also takes a file of `mstrain export`.
    """
    text = "folder of a training (its --out)"
    if has_model_files:
        text += ", or a model file of 'mstrain export'"
    parser.add_argument("run", metavar="RUN", type=Path, help=text)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Declares the argument DATA."""
    parser.add_argument("data", metavar="DATA", type=Path, help="folder that 'msdata pack' wrote")


def add_settings(parser: argparse.ArgumentParser, of: str) -> None:
    """Declares the arguments `key=value`; `of` says what they are settings of."""
    text = f"settings of {of}"
    parser.add_argument("settings", metavar="key=value", nargs="*", default=[], help=text)


def add_split(parser: argparse.ArgumentParser, purpose: str, default: str | None = "test") -> None:
    """Declares `--split`.

    Args:
        parser: the command's parser.
        purpose: what the command does with it, such as "evaluate".
        default: None means all splits that have samples.
    """
    shown = "all that have samples" if default is None else "%(default)s"
    parser.add_argument("--split", default=default, help=f"split to {purpose} (default: {shown})")


def add_out(parser: argparse.ArgumentParser, what: str = "results", default: str = "RUN") -> None:
    """Declares `--out` of a command that has a default folder for what it writes.

    Args:
        parser: the command's parser.
        what: what the folder is of.
        default: the default, in words.
    """
    text = f"folder of {what} (default: {default})"
    parser.add_argument("--out", metavar="DIR", type=Path, help=text)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Declares `--columns`, the columns of an index that a table gets too."""
    text = "comma-separated columns of the data to copy into the table"
    parser.add_argument("--columns", default="", help=text)


def add_edges(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declares `--NAME-edges` for each name."""
    text = "edges of the bins (default: round numbers)"
    for name in names:
        parser.add_argument(f"--{name}-edges", metavar="A,B,...", default="", help=text)


def add_device(parser: argparse.ArgumentParser, what: str = "where the network runs") -> None:
    """Declares `--device`; `what` says what it is for."""
    choices = ("auto", "cpu", "cuda")
    text = f"{what} (default: %(default)s)"
    parser.add_argument("--device", choices=choices, default="auto", help=text)


def add_printed(
    parser: argparse.ArgumentParser, *, report: str | None = None, is_quiet_known: bool = False
) -> None:
    """Declares `--json`, `--no-report` and `--quiet`, as far as a command has them.

    Args:
        parser: the command's parser.
        report: name of the page that the command writes or adds to, which `--no-report` prevents.
        is_quiet_known: whether it prints its progress and has no `add_network_arguments`, which
            declares `--quiet` as well.
    """
    if report is not None:
        parser.add_argument("--no-report", action="store_true", help=f"do not write {report}")
    if is_quiet_known:
        parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--json", action="store_true", help="print JSON only")


def parse_names(text: str) -> tuple[str, ...]:
    """Reads `A,B,...`: the names in their order."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
