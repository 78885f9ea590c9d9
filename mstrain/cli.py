"""The `mstrain` command: its subcommands; `msdata.cli` does the rest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from msdata.cli import Program

# Subcommand -> (module with add_arguments and run, one line of help).
COMMANDS = {
    "train": ("mstrain.training.command", "train a network by a recipe, or resume a run"),
    "tune": ("mstrain.tune.command", "search settings of a recipe, with any number of workers"),
    "evaluate": (
        "mstrain.evaluation.command",
        "measure a trained network on a split and draw a report",
    ),
    "predict": (
        "mstrain.serving.predict_command",
        "write a table of densities, or of class probabilities, of a data set",
    ),
    "export": ("mstrain.serving.export", "write a trained network as one file, without pickles"),
    "baseline": (
        "mstrain.evaluation.baseline_command",
        "compare an evaluated network with nearest neighbors in colors of the same cutouts",
    ),
    "calibrate": (
        "mstrain.calibration.command",
        "fit what recalibrates a trained network's densities",
    ),
    "compare": (
        "mstrain.comparison.command",
        "compare networks and catalogs on the same objects",
    ),
    "perceive": (
        "mstrain.perception.command",
        "measure which bands and surveys a trained network listens to",
    ),
    "embed": ("mstrain.embedding.command", "write a table of a trained network's embeddings"),
    "neighbors": (
        "mstrain.embedding.neighbors",
        "draw the objects whose embeddings are nearest to an object's",
    ),
    "shift": (
        "mstrain.comparison.shift_command",
        "test whether two sets of objects differ, as a trained network sees them",
    ),
    "flag": (
        "mstrain.embedding.flag_command",
        "measure how unlike the training's objects are, and flag them where it pays",
    ),
    "study": (
        "mstrain.study.command",
        "train arms of settings with several seeds, and tell how they differ",
    ),
    "attribute": (
        "mstrain.attribution.command",
        "rank suspect training labels, and show what a density rests on",
    ),
}


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Settings may stand after options, where argparse takes no positionals."""
    args, others = parser.parse_known_args(words)
    unknown = [w for w in others if w.startswith("-") or not hasattr(args, "settings")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if others:
        args.settings = [*args.settings, *others]
    return args


PROGRAM = Program(
    name="mstrain",
    description="Trains and evaluates networks on data sets made by msdata.",
    commands=COMMANDS,
    when_interrupted="what was finished before is kept",
    parse=_parse,
)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parses a command line.

    Args:
        words: without the program's name.

    Raises:
        SystemExit: the words are not a valid command; code 2.
    """
    return _parse(PROGRAM.parser(words), words)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see `Program.main`.

    Returns:
        Also 85, where a training was told to stop and has saved its state.
    """
    return PROGRAM.main(argv)


def run_module(command: str, name: str) -> None:
    """Runs `python -m mstrain.COMMAND`.

    `mstrain.COMMAND` is a function of the package, too. An import of the module would put the
    module in the function's place.

    Args:
        command: the subcommand.
        name: the module's `__name__`.

    Raises:
        SystemExit: always, with the command's exit code, where the module is the program.
        ImportError: the module is imported.
    """
    if name == "__main__":
        sys.exit(main([command, *sys.argv[1:]]))
    if name == f"mstrain.{command}":
        raise ImportError(f"{name} is a function: 'import mstrain', then call {name}()")
