"""`msdata sheet`: its options, the choice of objects, the PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import msdata
from msdata.augment.augmenter import preview
from msdata.augment.config import FUSIONS
from msdata.core.files import write_whole
from msdata.core.output_file import PNG_MARK, check_output
from msdata.dataset.dataset import Dataset
from msdata.describe.sheet import caption, draw_sheet, png_bytes, samples_by_id
from msdata.errors import UsageError
from msdata.schema import Sample

_MAX_OBJECTS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata sheet`."""
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("out", type=Path, help="the picture to write, a .png file")
    parser.add_argument("--split", help="the split to draw (default: test, or the last one)")
    parser.add_argument(
        "--n", type=int, default=12, help="number of objects to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random choice (default: %(default)s)"
    )
    parser.add_argument("--ids", help="draw these objects instead, separated by commas")
    parser.add_argument(
        "--augment",
        choices=FUSIONS,
        help="show the images as a network of this fusion gets them in its first epoch with --seed",
    )
    parser.add_argument(
        "--columns", default="", help="other columns of the index to show, separated by commas"
    )


def run(args: argparse.Namespace) -> int:
    """Draws a contact sheet; returns the exit code."""
    if args.out.suffix.lower() != ".png":
        raise UsageError(f"out must be a .png file, got {args.out}")
    check_output(args.out, PNG_MARK)
    if not 1 <= args.n <= _MAX_OBJECTS:
        raise UsageError(f"--n must be 1 to {_MAX_OBJECTS}, got {args.n}")
    data = msdata.open(args.data)
    shown = [name for name in args.columns.split(",") if name]
    unknown = [name for name in shown if name not in data.columns]
    if unknown:
        raise UsageError(
            f"{args.data} has no column {', '.join(unknown)}; it has {', '.join(data.columns)}"
        )
    samples, what = chosen(data, args)
    captions = [caption(sample, shown) for sample in samples]
    title = f"{args.data.name}  {data.manifest.fingerprint}  {what}"
    schema = data.schema
    if args.augment is not None:
        samples, schema = preview(samples, schema, args.augment, seed=args.seed)
        title += f", augmented for {args.augment} fusion"
    image = draw_sheet(
        samples, schema, captions=captions, title=title, is_turned=args.augment is not None
    )
    write_whole(args.out, png_bytes(image))
    print(f"drew {len(samples)} objects into {args.out} ({image.shape[1]} x {image.shape[0]})")
    return 0


def chosen(data: Dataset, args: argparse.Namespace) -> tuple[list[Sample], str]:
    """Chooses the objects to draw, and describes the choice in a phrase.

    Raises:
        UsageError: the split or an id does not exist.
    """
    if args.ids is not None:
        names = data.splits if args.split is None else (args.split,)
        return samples_by_id(data, names, args.ids.split(",")), "objects asked for"
    default = "test" if "test" in data.splits else data.splits[-1]
    split = data.split(default if args.split is None else args.split)
    count = min(args.n, len(split))
    rows = np.random.default_rng(args.seed).choice(len(split), count, replace=False)
    return (
        [split[int(row)] for row in rows],
        f"{split.name}: {count} of {len(split):,} objects, seed {args.seed}",
    )
