"""The options of `msdata pack` for files of arrays: HDF5, NPZ, Zarr, Parquet, tars, images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from msdata.errors import UsageError
from msdata.sources.arrays.options import NAMES, ArrayOptions, find_kind, identifier
from msdata.sources.detect import is_packed, told_by_files
from msdata.sources.fits_options import DEFAULT_PATTERNS


def add_array_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that describe arrays, and choose them in files of arrays."""
    for option, example, what in (
        ("--bands", "ARRAY=g,r,...", "bands of an array, in order"),
        ("--unit", "ARRAY=UNIT", "unit of an array's pixels"),
        ("--zero-point", "ARRAY=MAG,...", "AB magnitude of one unit of flux, one or one per band"),
    ):
        parser.add_argument(
            option, action="append", default=[], metavar=example, help=f"{what}; repeatable"
        )
    group = parser.add_argument_group("HDF5, NPZ, Zarr, Parquet, WebDataset tars, images")
    group.add_argument(
        "--arrays",
        action="append",
        metavar="[NAME=]ARRAY,...",
        help="arrays of a sample, by their names in the files (default: all, except weights and "
        "masks)",
    )
    group.add_argument(
        "--labels",
        action="append",
        metavar="[NAME=]LABEL,...",
        help="columns of the index, by their names in the files, or none (default: all)",
    )
    group.add_argument(
        "--layout",
        action="append",
        metavar="[ARRAY=]HWC|CHW",
        help="where the bands of an image are: last or first (default: recognized by the sides)",
    )
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="ARRAY=BANDS,HEIGHT,WIDTH",
        help="shape of a sample's array that is stored flat; repeatable",
    )
    group.add_argument(
        "--per-file",
        choices=("one", "many"),
        help="objects in each NPZ file of a folder (default: told by their scalars and columns)",
    )


def array_options_of(args: argparse.Namespace) -> ArrayOptions | None:
    """How to read files of arrays; None where the source holds others.

    Raises:
        UsageError: an option is malformed, or the source holds no files of arrays.
    """
    kind = None if is_packed(args.source) else find_kind(args.source)
    if kind is None:
        given = [n for n in ("arrays", "labels", "layout", "shape", "per_file") if getattr(args, n)]
        if given and args.source.exists():
            option = f"--{given[0].replace('_', '-')}"
            raise UsageError(
                f"{option} is for {', '.join(NAMES.values())}, but {args.source} holds none"
            )
        return None
    layouts = [text.rpartition("=") for text in args.layout or ()]
    options = ArrayOptions(
        kind=kind,
        arrays=_renamed("--arrays", args.arrays) or {},
        labels=_renamed("--labels", args.labels),
        layouts={name or "*": layout for name, _, layout in layouts},
        id_column=args.id_column if args.catalog is None else None,
        shapes={name: _sides(name, value) for name, value in pairs_of("--shape", args.shape)},
        per_file=args.per_file or "",
    )
    if args.per_file and (kind != "npz" or not args.source.is_dir()):
        raise UsageError(f"--per-file is for folders of NPZ files, but {args.source} is none")
    return told_by_files(args.source, options)


def _sides(name: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--shape must be like {name}=3,64,64, got {name}={text}")
    return tuple(map(int, parts))


def _renamed(option: str, texts: list[str] | None) -> dict[str, str] | None:
    """Names in the files by those to use, of `a,b=c`; None where the option was not given."""
    if texts is None:
        return None
    found: dict[str, str] = {}
    for word in ",".join(texts).split(","):
        name, _, inside = word.rpartition("=")
        if word == "none" and option == "--labels":
            continue
        name = name or (identifier(inside) if option == "--arrays" else inside)
        if not inside or name in found:
            raise UsageError(f"{option} must be distinct names such as image=images, got {word!r}")
        found[name] = inside
    return found


def pairs_of(option: str, texts: Sequence[str] | None) -> list[tuple[str, str]]:
    """Names and values of each `NAME=VALUE` that was given to an option.

    Raises:
        UsageError: a text is not of that form.
    """
    return [_pair_of(option, text) for text in texts or ()]


def _pair_of(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(
            f"{option} must be like galex="
            + (DEFAULT_PATTERNS["galex"] if option == "--fits" else "...")
            + f", got {text!r}"
        )
    return name, value
