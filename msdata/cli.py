"""The `msdata` command: its subcommands; `msdata.core.program` does the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from msdata.core.program import Program

# Subcommand -> (module with add_arguments and run, one line of help).
COMMANDS = {
    "mock": ("msdata.mock.command", "make mock objects and their catalogue"),
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
        "measure noise and spread of each band, for augmentation",
    ),
    "plan": ("msdata.plan.command", "say what a job will read from where, before it is submitted"),
    "cache": ("msdata.cache.command", "serve a node's cache to others, show and clean caches"),
    "probe": ("msdata.cluster.probe_command", "measure this node's memory, disks and network"),
    "doctor": (
        "msdata.cluster.doctor_command",
        "say what is wrong with a job's nodes, and the cure",
    ),
    "sheet": ("msdata.describe.sheet_command", "draw a contact sheet of a data set"),
}
PROGRAM = Program(
    name="msdata",
    description="Packs, plans, caches and loads image cutouts for training.",
    commands=COMMANDS,
    when_interrupted="nothing finished is lost",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see `Program.main`."""
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
