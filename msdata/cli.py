"""The `msdata` command: its subcommands; `msdata.core.program` does the rest."""

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
    when_interrupted="nothing finished is lost",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see `Program.main`."""
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
