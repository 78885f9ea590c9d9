"""The options of `msdata pack`, and the settings that they ask for."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from msdata.catalog.values import EBV_RANGE, REDSHIFT_RANGE
from msdata.core.options import add_jobs
from msdata.dataset.coding_options import add_coding_arguments, parse_quantize
from msdata.dataset.manifest import CONTAINERS
from msdata.errors import UsageError
from msdata.pack.array_options import add_array_arguments, array_options_of, pairs_of
from msdata.pack.fits_arguments import add_fits_arguments, fits_options_of
from msdata.pack.settings import SPLIT_BY, PackSettings
from msdata.sources.detect import is_packed

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def parse_bytes(text: str) -> int:
    """Bytes of `1GiB`, `500MB`, `65536`.

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    units = {**_UNITS, **_BINARY}
    if match is None or match[2] not in units:
        raise UsageError(f"a size must be like 1GiB, 256MiB or 500MB, got {text!r}")
    return int(float(match[1]) * units[match[2]])


def parse_fractions(text: str) -> tuple[float, ...]:
    """Fractions of `0.7,0.1,0.2`.

    Raises:
        UsageError: the text is not a list of numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--split must be fractions such as 0.7,0.1,0.2, got {text!r}") from None


def _parse_names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split(","))


def _parse_scale(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--pixel-scale must be like unwise=1.5, got {text!r}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata pack`."""
    parser.add_argument(
        "source",
        type=Path,
        help="folder of pickled dicts, block files, FITS files, PNG or JPEG images, or of a packed "
        "data set; HDF5, NPZ, Zarr or Parquet file, WebDataset tar, or a folder of them",
    )
    parser.add_argument("out", type=Path, help="folder of the data set, new or empty")
    _add_label_arguments(parser)
    parser.add_argument(
        "--format",
        choices=CONTAINERS,
        default="tar",
        help="format of the shards (default: %(default)s)",
    )
    parser.add_argument(
        "--chunked", action="store_true", help="with --format hdf5: one chunk per sample"
    )
    parser.add_argument(
        "--shard-size", help="maximum size of a shard (default: 1GiB, less for a small data set)"
    )
    _add_splits(parser)
    _add_pixel_arguments(parser)
    add_coding_arguments(parser)
    add_array_arguments(parser)
    add_fits_arguments(parser)
    parser.add_argument(
        "--max-rejected",
        type=int,
        help="stop after more unusable objects than this (default: pack to the end, exit code 1 if "
        "most objects are unusable)",
    )
    add_jobs(parser, "worker processes")
    parser.add_argument("--resume", action="store_true", help="resume an unfinished pack")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress line")


def _add_pixel_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inpaint", help="arrays whose NaN pixels are filled, or none (default: panstarrs)"
    )
    parser.add_argument(
        "--max-nan-fraction",
        type=float,
        help="reject an object if more than this fraction of any band is NaN (default: 0.01; 1 for "
        "a packed data set)",
    )
    parser.add_argument(
        "--missing",
        default=PackSettings.missing,
        metavar="reject|fill[=VALUE]",
        help="objects that lack an array or a band: reject them, or fill it with NaN or VALUE and "
        "list it in missing_bands (default: %(default)s)",
    )
    parser.add_argument(
        "--pixel-scale",
        action="append",
        default=[],
        metavar="ARRAY=ARCSEC",
        help="pixel scale of an array, arcsec/pixel; repeatable",
    )


def _add_label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--catalog",
        type=Path,
        help="table of labels: CSV, TSV, Parquet (also a folder), FITS, VOTable or ECSV",
    )
    parser.add_argument(
        "--id-column", help="catalog column of object ids (default: a column of a known name)"
    )
    parser.add_argument(
        "--redshift-column", help="catalog column of redshifts (default: a column of a known name)"
    )
    parser.add_argument(
        "--unlabeled", action="store_true", help="keep objects without redshift, to predict theirs"
    )
    # The spelling of earlier versions.
    parser.add_argument(
        "--unlabelled", action="store_true", dest="unlabeled", help=argparse.SUPPRESS
    )
    _add_range(parser, "--redshift-range", "redshifts", REDSHIFT_RANGE)
    _add_range(parser, "--ebv-range", "E(B-V) in columns named like ebv", EBV_RANGE)


def _add_range(
    parser: argparse.ArgumentParser, option: str, what: str, default: tuple[float, float]
) -> None:
    parser.add_argument(
        option,
        nargs=2,
        type=float,
        default=default,
        metavar=("LOW", "HIGH"),
        help=f"treat {what} outside as missing (default: {default[0]:g} {default[1]:g})",
    )


def settings_of(args: argparse.Namespace) -> PackSettings:
    """The settings that the options ask for."""
    if args.catalog is not None and is_packed(args.source):
        raise UsageError(
            f"--catalog {args.catalog}: {args.source} is a packed data set, whose labels are kept; "
            "leave it out"
        )
    shard_nbytes = None if args.shard_size is None else parse_bytes(args.shard_size)
    scales = dict(_parse_scale(t) for t in args.pixel_scale)
    fits = fits_options_of(args, scales)
    return PackSettings(
        source=args.source,
        out=args.out,
        catalog=args.catalog,
        container=args.format,
        chunked=args.chunked,
        shard_nbytes=shard_nbytes,
        split_fractions=_split_fractions(args),
        split_by=_split_by(args),
        split_column=args.split_column,
        seed=args.seed,
        id_column=args.id_column,
        redshift_column=args.redshift_column,
        unlabelled=args.unlabeled,
        redshift_range=tuple(args.redshift_range),
        ebv_range=tuple(args.ebv_range),
        inpaint=_inpaint_of(args),
        max_nan_fraction=_max_nan_fraction_of(args),
        missing=args.missing,
        pixel_scales_arcsec=scales,
        bands={n: tuple(v.split(",")) for n, v in pairs_of("--bands", args.bands)},
        units=dict(pairs_of("--unit", args.unit)),
        zero_points_ab={n: _numbers(n, v) for n, v in pairs_of("--zero-point", args.zero_point)},
        fits=fits,
        arrays=array_options_of(args) if fits is None else None,
        quantize=parse_quantize(args.quantize),
        compress=args.compress,
    )


def _inpaint_of(args: argparse.Namespace) -> tuple[str, ...] | None:
    if args.inpaint is not None:
        return _parse_names(args.inpaint)
    # A packed data set keeps its pixels: whoever packed it chose which NaN to fill.
    return () if is_packed(args.source) else None


def _max_nan_fraction_of(args: argparse.Namespace) -> float:
    if args.max_nan_fraction is not None:
        return float(args.max_nan_fraction)
    return 1.0 if is_packed(args.source) else PackSettings.max_nan_fraction


def _split_fractions(args: argparse.Namespace) -> tuple[float, ...]:
    if args.split is None:
        return PackSettings.split_fractions
    if args.split_column is not None:
        raise UsageError(
            f"--split {args.split} and --split-column {args.split_column} contradict each other; "
            "give one of them"
        )
    return parse_fractions(args.split)


def _split_by(args: argparse.Namespace) -> str:
    if args.split_by != "id" and args.split_column is not None:
        raise UsageError(
            f"--split-by {args.split_by} and --split-column {args.split_column} contradict each "
            "other; give one of them"
        )
    return str(args.split_by)


def _add_splits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", help="fractions of train, val and test (default: 0.7,0.1,0.2)")
    parser.add_argument(
        "--split-by",
        choices=SPLIT_BY,
        default="id",
        help="draw the split of each object by its id, or of whole cells of the sky of one degree "
        "(default: %(default)s)",
    )
    parser.add_argument("--split-column", help="catalog column that names the split of each object")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of splits and order (%(default)s)"
    )


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--zero-point must be like {name}=27.0, got {name}={text}") from None
