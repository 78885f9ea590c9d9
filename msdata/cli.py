"""The `msdata` command: its subcommands; `msdata.program` does the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from msdata.program import Program

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
