"""The options of `msdata pack` for raw FITS files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msdata.errors import UsageError
from msdata.pack.array_options import pairs_of
from msdata.pack.settings import parse_missing
from msdata.sources import SURVEYS
from msdata.sources.detect import holds_fits
from msdata.sources.fits_options import CALIBRATIONS, DEFAULT_PATTERNS, FitsOptions

if TYPE_CHECKING:
    from msdata.sources.survey_file import SurveyFile


def add_fits_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options for raw FITS files."""
    group = parser.add_argument_group("raw FITS files")
    group.add_argument(
        "--fits",
        action="append",
        metavar="ARRAY=PATTERN",
        help="an array and the names of its files; repeatable; default: "
        + ", ".join(f"{name}={pattern}" for name, pattern in DEFAULT_PATTERNS.items()),
    )
    group.add_argument(
        "--survey",
        action="append",
        metavar="NAME|FILE",
        help="a survey's images: a TOML file, or one of "
        + ", ".join(sorted(path.stem for path in SURVEYS.glob("*.toml")))
        + "; repeatable",
    )
    group.add_argument(
        "--fits-bands",
        action="append",
        metavar="ARRAY=g,r,...",
        help="bands of an array, in order where headers do not name them",
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
        UsageError: an option is malformed, or the source holds no FITS files.
    """
    given = [n for n in ("fits", "fits_bands", "fits_size", "calibrate") if getattr(args, n)]
    surveys = _surveys_of(args.survey or ())
    names = [survey.name for survey in surveys]
    if len(set(names)) != len(names):
        raise UsageError(f"--survey must name distinct surveys, got {', '.join(names)}")
    if not (args.fits or surveys) and not holds_fits(args.source):
        if given and args.source.is_dir():
            raise UsageError(
                f"--{given[0].replace('_', '-')} is for FITS files, but {args.source} holds none "
                f"named {', '.join(DEFAULT_PATTERNS.values())}; name them with --fits ARRAY=PATTERN"
            )
        return None
    patterns = {survey.name: survey.files for survey in surveys}
    patterns |= dict(pairs_of("--fits", args.fits))
    bands = pairs_of("--fits-bands", args.fits_bands)
    sizes = pairs_of("--fits-size", args.fits_size)
    return FitsOptions(
        patterns=patterns or dict(DEFAULT_PATTERNS),
        bands={name: tuple(value.split(",")) for name, value in bands},
        sizes={name: _size(name, value) for name, value in sizes},
        pixel_scales_arcsec=dict(pixel_scales_arcsec),
        calibration=args.calibrate or "none",
        surveys=surveys,
        fills_missing=parse_missing(args.missing) is not None,
    )


def _surveys_of(names: Sequence[str]) -> tuple[SurveyFile, ...]:
    if not names:
        return ()
    from msdata.sources.survey_file import read_survey

    return tuple(map(read_survey, names))


def _size(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"--fits-size must be like {name}=120, got {name}={value}") from None
