"""`msdata sheet`: its options, the choice of objects, the PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import msdata
from msdata.augment.augmenter import preview
from msdata.augment.config import FUSIONS, AugmentConfig
from msdata.augment.statistics import Statistics, read_statistics
from msdata.core.checked_json import read_json
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
        metavar="early|late|RUN",
        help="show the images as a network of this fusion gets them in its first epoch with "
        "--seed, or as the run in this folder did, with its settings and seed",
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=1,
        help="with --augment: rows per object, one for each of the first epochs "
        "(default: %(default)s)",
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
    if args.draws != 1 and args.augment is None:
        raise UsageError("--draws shows versions of augmentation; add --augment early, late or RUN")
    most = _MAX_OBJECTS // (args.n if args.ids is None else len(args.ids.split(",")))
    if not 1 <= args.draws <= max(1, most):
        raise UsageError(
            f"--draws must be 1 to {max(1, most)}, for a sheet of at most {_MAX_OBJECTS} rows, "
            f"got {args.draws}"
        )
    augmented = None if args.augment is None else _augmentation(args.augment, args.seed)
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
    num_objects = len(samples)
    if augmented is not None:
        config, seed, statistics = augmented
        epochs = range(args.draws)
        samples, schema = preview(
            samples, schema, config, seed=seed, epochs=epochs, statistics=statistics
        )
        title += f", augmented for {config.fusion} fusion with seed {seed}"
        if args.draws > 1:
            captions = [f"{text}   epoch {epoch}" for text in captions for epoch in epochs]
    is_turned = augmented is not None
    image = draw_sheet(samples, schema, captions=captions, title=title, is_turned=is_turned)
    write_whole(args.out, png_bytes(image))
    drawn = f"{num_objects} objects" + (f", {args.draws} times each," if args.draws > 1 else "")
    print(f"drew {drawn} into {args.out} ({image.shape[1]} x {image.shape[0]})")
    return 0


def _augmentation(asked: str, seed: int) -> tuple[AugmentConfig, int, Statistics | None]:
    """The augmentation that was asked for, with the seed and statistics that go with it."""
    if asked in FUSIONS:
        return AugmentConfig(fusion=asked, scaling="none"), seed, None
    path = Path(asked) / "config.json"
    try:
        saved = read_json(path, cure="give another run, or early or late", has_paths=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"--augment must be early, late or the folder of a run, got {asked}: {path} does not "
            "exist"
        ) from None
    fields = saved["config"]
    config = AugmentConfig.from_dict({n: v.value for n, v in fields["augment"].fields().items()})
    statistics = read_statistics(Path(asked)) if config.noise else None
    return config, fields["seed"].read_as(int), statistics


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
