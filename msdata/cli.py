"""The `msdata` command: the table of its subcommands, which `msdata.core.program` runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from msdata.core.program import Program

# Subcommand -> (module with add_arguments and run, one line of help).
COMMANDS = {
    "mock": ("msdata.mock.command", "make mock objects and their catalog"),
    "fetch": ("msdata.fetch.command", "fetch cutouts from the surveys' services"),
    "pack": ("msdata.pack.command", "pack objects into shards and an index"),
    "catalog": (
        "msdata.catalog.command",
        "compile a spectroscopic sample from surveys' tables",
    ),
    "verify": ("msdata.verify.command", "check every byte of a data set"),
    "info": ("msdata.describe.info_command", "show counts, sizes and statistics of a data set"),
    "card": ("msdata.describe.card_command", "write a data card, for people and for machines"),
    "stats": (
        "msdata.describe.stats_command",
        "measure noise and spread of each band for augmentation",
    ),
    "plan": (
        "msdata.plan.command",
        "predict what a job will read from where, before it is submitted",
    ),
    "cache": ("msdata.cache.command", "serve a node's cache to others, show and clean caches"),
    "probe": ("msdata.cluster.probe_command", "measure this node's memory, disks and network"),
    "doctor": (
        "msdata.cluster.doctor_command",
        "find faults of a job's nodes, and their cures",
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
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
