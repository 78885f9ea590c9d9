"""The `mstrain` command: trains and evaluates redshift networks. It has no recipes yet."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from msdata import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mstrain",
        description="Trains and evaluates redshift networks on data sets made by msdata.",
        epilog="This version has no training recipes yet; load the data with msdata.Loader.",
    )
    # Both packages come in one distribution and have one version.
    parser.add_argument("--version", action="version", version=f"mstrain {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None means those of this process.

    Returns:
        Exit code: 2, as there is no recipe to run yet; `--version` and `--help` leave with 0.
    """
    parser = _parser()
    parser.parse_args(argv)
    parser.print_help(sys.stderr)
    return 2
