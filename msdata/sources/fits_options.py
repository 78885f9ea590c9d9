"""How raw FITS files become samples: which files, bands, sizes, and in what unit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from msdata.core.checked_json import parse_json
from msdata.errors import UsageError
from msdata.schema import MANTIS_SHRIMP, Schema, Survey
from msdata.sources.survey_file import SurveyFile, check_not_auxiliary
from msdata.sources.zero_points import NANOMAGGY, NANOMAGGY_ZERO_POINT

DEFAULT_PATTERNS = {
    "panstarrs": "{id}.{band}.fits",
    "galex": "{id}.Galex.fits",
    "unwise": "{id}.Unwise.fits",
}
CALIBRATIONS = ("none", "ab")
# Left as they are: how programs compress FITS.
COMPRESSED = ("", ".gz", ".fz")


@dataclass(frozen=True, kw_only=True)
class FitsOptions:
    """What to read from raw FITS files. Arrays are those of `MANTIS_SHRIMP` and of `surveys`.

    Attributes:
        patterns: the arrays of a sample, each with the names of its files: `{id}` stands for the
            object's id, `{band}` for a band where each has a file of its own. A pattern may name
            folders, below the folder that all files of an object share, and end with the
            extension to take, by name or number: `{id}.{band}.fits[SCI]`.
        bands: bands of an array that has others than usual; also the order of a file's planes
            whose header names none.
        sizes: pixels of a stamp's side, where they differ from the usual.
        pixel_scales_arcsec: pixel scales, where they differ from the usual.
        calibration: "ab" for nanomaggies, "none" for the files' own unit.
        surveys: further surveys; `patterns` names their files too.
        fills_missing: bands without a file or image are NaN; else their object is refused.
    """

    patterns: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_PATTERNS))
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    pixel_scales_arcsec: Mapping[str, float] = field(default_factory=dict)
    calibration: str = "none"
    surveys: tuple[SurveyFile, ...] = ()
    fills_missing: bool = False

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise UsageError(
                f"--calibrate must be one of {', '.join(CALIBRATIONS)}, got {self.calibration!r}"
            )
        if not self.patterns:
            raise UsageError("a sample needs at least one array; name it with --fits")
        for name, pattern in self.patterns.items():
            _check_array(name, f"--fits {name}={pattern}", tuple(self.known))
            pattern_expression(pattern, self.known[name].bands)
            check_not_auxiliary(f"array {name}", pattern)
        for option, values in (("--fits-bands", self.bands), ("--fits-size", self.sizes)):
            for name in values:
                _check_array(name, f"{option} {name}=...", tuple(self.patterns))
        for name, size in self.sizes.items():
            if not 1 <= size <= 8192:
                raise UsageError(f"--fits-size {name} must be 1 to 8192 pixels, got {size}")
        for name, bands in self.bands.items():
            known = self.known[name].bands
            if not bands or len(set(bands)) != len(bands) or not set(bands) <= set(known):
                raise UsageError(
                    f"--fits-bands {name}={','.join(bands)}: give some of {', '.join(known)}, each "
                    "once"
                )

    @property
    def known(self) -> dict[str, Survey]:
        """The arrays that there may be, by name."""
        arrays = (*MANTIS_SHRIMP.arrays, *(survey.survey() for survey in self.surveys))
        return {array.name: array for array in arrays}

    def survey_of(self, name: str) -> SurveyFile | None:
        """The survey file of an array; None for those of `MANTIS_SHRIMP`."""
        return next((s for s in self.surveys if s.name == name), None)

    def schema(self) -> Schema:
        """The schema of the samples."""
        arrays = tuple(self._survey(a) for a in self.known.values() if a.name in self.patterns)
        is_whole = [(a.name, a.shape) for a in arrays] == [
            (a.name, a.shape) for a in MANTIS_SHRIMP.arrays
        ]
        return Schema(
            name=MANTIS_SHRIMP.name if is_whole else "fits",
            arrays=arrays,
            scalars=tuple(zero_point_name(a.name, b) for a in arrays for b in a.bands),
        )

    def _survey(self, usual: Survey) -> Survey:
        bands = self.bands.get(usual.name, usual.bands)
        size = self.sizes.get(usual.name, usual.shape[1])
        known = usual.zero_points_ab
        zero_points = None
        if known is not None:
            zero_points = tuple(known[usual.bands.index(band)] for band in bands)
        survey = replace(
            usual,
            bands=bands,
            shape=(len(bands), size, size),
            pixel_scale_arcsec=self.pixel_scales_arcsec.get(usual.name, usual.pixel_scale_arcsec),
            zero_points_ab=zero_points,
        )
        if self.calibration == "none":
            return survey
        return replace(survey, unit=NANOMAGGY, zero_points_ab=(NANOMAGGY_ZERO_POINT,) * len(bands))

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `dataset.json` and for worker processes."""
        # Lists in place of tuples, as a resumed pack reads them.
        surveys = json.dumps([asdict(survey) for survey in self.surveys])
        return {
            "patterns": dict(self.patterns),
            "bands": {name: list(bands) for name, bands in self.bands.items()},
            "sizes": dict(self.sizes),
            "pixel_scales_arcsec": dict(self.pixel_scales_arcsec),
            "calibration": self.calibration,
            **({"fills_missing": True} if self.fills_missing else {}),
            **({"surveys": json.loads(surveys)} if self.surveys else {}),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> FitsOptions:
        """The inverse of `to_json`."""
        bands = {name: tuple(bands) for name, bands in fields["bands"].items()}
        text = json.dumps(fields.get("surveys", []))
        surveys = parse_json(text, "survey", cure="").read_as(tuple[SurveyFile, ...])
        return cls(**{**fields, "bands": bands, "surveys": surveys})


def zero_point_name(array: str, band: str) -> str:
    """The index's column with the AB zero-point of an object's file, before any calibration."""
    return f"zero_point_{array}_{band}"


def split_extension(pattern: str) -> tuple[str, str | None]:
    """A pattern of files' names, and the extension in brackets at its end, None without one."""
    match = re.fullmatch(r"(.+)\[([^][{}]+)\]", pattern)
    return (match[1], match[2]) if match else (pattern, None)


def pattern_expression(pattern: str, bands: tuple[str, ...]) -> re.Pattern[str]:
    """The regular expression of a pattern, with the groups `id` and, where asked for, `band`.

    Args:
        pattern: such as `{id}.{band}.fits` or `{id}.fits[SCI]`; compressed files match too.
        bands: what `{band}` may be, in either case.

    Raises:
        UsageError: the pattern has no `{id}`, or more than one.
    """
    pattern, _ = split_extension(pattern)
    parts = re.split(r"(\{id\}|\{band\})", pattern)
    if parts.count("{id}") != 1 or parts.count("{band}") > 1 or "{id}" in pattern.split("/")[:-1]:
        raise UsageError(
            f"--fits pattern {pattern!r} needs {{id}} once, in the file's name, such as "
            "{id}.Galex.fits"
        )
    band = "|".join(re.escape(b) for b in sorted(bands, key=len, reverse=True))
    groups = {"{id}": r"(?P<id>[^/]+?)", "{band}": f"(?P<band>(?i:{band}))"}
    text = "".join(groups.get(part, re.escape(part)) for part in parts)
    return re.compile(rf"(?P<folder>(?:.*/)?){text}(?:\.gz|\.fz)?")


def _check_array(name: str, option: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UsageError(f"{option}: unknown array {name!r}; known are {', '.join(known)}")
