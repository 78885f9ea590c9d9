"""The options of `msdata pack` for raw FITS files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from msdata.errors import UsageError
from msdata.sources.detect import holds_fits
from msdata.sources.fits_options import CALIBRATIONS, DEFAULT_PATTERNS, FitsOptions


def add_fits_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("raw FITS files")
    group.add_argument(
        "--fits",
        action="append",
        metavar="ARRAY=PATTERN",
        help="an array and the names of its files, repeatable; default: "
        + ", ".join(f"{name}={pattern}" for name, pattern in DEFAULT_PATTERNS.items()),
    )
    group.add_argument(
        "--fits-bands",
        action="append",
        metavar="ARRAY=g,r,...",
        help="bands of an array; their order where headers do not name them",
    )
    group.add_argument(
        "--fits-size", action="append", metavar="ARRAY=PIXELS", help="side of an array's stamps"
    )
    group.add_argument(
        "--calibrate",
        choices=CALIBRATIONS,
        help="ab: nanomaggies, by zero-point and exposure time; default: the files' own unit",
    )


def fits_options_of(
    args: argparse.Namespace, pixel_scales_arcsec: Mapping[str, float]
) -> FitsOptions | None:
    """How to read FITS files; None where the source holds others.

    Raises:
        UsageError: an option makes no sense.
    """
    given = [n for n in ("fits", "fits_bands", "fits_size", "calibrate") if getattr(args, n)]
    if not args.fits and not holds_fits(args.source):
        if given and args.source.is_dir():
            raise UsageError(
                f"--{given[0].replace('_', '-')} is for FITS files, but {args.source} holds none "
                f"named {', '.join(DEFAULT_PATTERNS.values())}; name them with --fits ARRAY=PATTERN"
            )
        return None
    patterns = dict(_pair("--fits", text) for text in args.fits or ())
    bands = (_pair("--fits-bands", text) for text in args.fits_bands or ())
    sizes = (_pair("--fits-size", text) for text in args.fits_size or ())
    return FitsOptions(
        patterns=patterns or dict(DEFAULT_PATTERNS),
        bands={name: tuple(value.split(",")) for name, value in bands},
        sizes={name: _size(name, value) for name, value in sizes},
        pixel_scales_arcsec=dict(pixel_scales_arcsec),
        calibration=args.calibrate or "none",
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(
            f"{option} {text!r}: write for example galex="
            + (DEFAULT_PATTERNS["galex"] if option == "--fits" else "...")
        )
    return name, value


def _size(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"--fits-size {name}={value}: give a number of pixels") from None
