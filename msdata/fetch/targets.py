"""The objects to fetch: from a catalog's rows to ids, positions and paths."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msdata.catalog.columns import missing_id_column, read_catalog
from msdata.errors import UsageError
from msdata.sources.pickles import take_pickle

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_ID_DIGITS = 7
# Objects of one strip of sky cells follow each other: servers then have the files cached.
_STRIP_DEG = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One object.

    Attributes:
        sample_id: its id, as its file is named.
        ra: right ascension, degrees; NaN where the catalog has none.
        dec: declination, degrees.
    """

    sample_id: str
    ra: float
    dec: float

    @property
    def has_position(self) -> bool:
        """Whether it can be looked for."""
        return math.isfinite(self.ra) and math.isfinite(self.dec) and -90 <= self.dec <= 90

    @property
    def position(self) -> tuple[float, float]:
        """Right ascension from 0 to 360 and declination, degrees."""
        return self.ra % 360, self.dec


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the catalog: every `count`-th row from row `index` on.

    Attributes:
        index: which part, from 0.
        count: parts in all.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"--slice {self.index}/{self.count}: slices count from 0/{self.count} to "
                f"{self.count - 1}/{self.count}"
            )

    @property
    def suffix(self) -> str:
        """What the names of a slice's files end with; empty where there is but one."""
        return "" if self.count == 1 else f"-{self.index:04d}-of-{self.count:04d}"

    @classmethod
    def parse(cls, text: str) -> Slice:
        """The slice of `3/16`.

        Raises:
            UsageError: the text is none.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None:
            raise UsageError(
                f"--slice must be a part such as 3/16, got {text!r}; parts count from 0"
            )
        return cls(index=int(match[1]), count=int(match[2]))


def read_targets(
    path: Path, *, id_column: str | None, part: Slice
) -> tuple[list[Target], tuple[str, ...]]:
    """Reads a catalog's objects, those of one strip of the sky after each other.

    Args:
        path: CSV, Parquet or FITS table with ids and positions.
        id_column: column with the ids; None looks for a known name.
        part: which rows.

    Returns:
        The objects, each id once; and remarks for the user.

    Raises:
        UsageError: no ids or positions, or ids that cannot name files.
        DataError: the file is broken.
        StorageError: the file system refused.
    """
    catalog = read_catalog(path, id_column=id_column, columns=(), needs_redshift=False)
    if catalog.ids is None:
        raise missing_id_column(catalog)
    for name in ("ra", "dec"):
        if name not in catalog.columns.column_names:
            raise UsageError(
                f"catalog {path} has no column {name!r} of a known name; it has "
                f"{', '.join(catalog.file_columns)}; rename its position's columns to ra and dec"
            )
    ra = catalog.columns["ra"].to_numpy()
    dec = catalog.columns["dec"].to_numpy()
    found, ambiguous, num_repeated = _distinct(catalog.ids.to_pylist(), path)
    targets = [
        Target(
            sample_id=text.zfill(_ID_DIGITS) if _is_number(text) else text,
            ra=float(ra[row]),
            dec=float(dec[row]),
        )
        for key, (row, text) in found.items()
        if row % part.count == part.index and key not in ambiguous
    ]
    remarks = []
    if ambiguous:
        key, text = next(iter(ambiguous.items()))
        pair = f"{found[key][1]!r} and {text!r}"
        remarks.append(
            f"ids that differ by leading zeros alone, such as {pair}: left out: {len(ambiguous):,}"
        )
    if num_repeated:
        remarks.append(f"{num_repeated:,} rows repeat an id: the first row of each counts")
    if catalog.ids.null_count:
        remarks.append(f"{catalog.ids.null_count:,} rows have no id: left out")
    return sorted(targets, key=_along_strips), tuple(remarks)


def _distinct(
    ids: list[str | None], path: Path
) -> tuple[dict[str, tuple[int, str]], dict[str, str], int]:
    """First row and text of each id, by the number it means; a second text; rows that repeat one.

    `5` and `0000005` mean one number, and one file: whose it is cannot be told.
    """
    found: dict[str, tuple[int, str]] = {}
    ambiguous: dict[str, str] = {}
    num_repeated = 0
    for row, text in enumerate(ids):
        if text is None:
            continue
        is_listed = _SAFE_ID.fullmatch(text) and take_pickle("", f"{text}.npy") is not None
        # Another command would not find the file of other ids.
        if not (_is_number(text) or is_listed):
            raise UsageError(
                f"catalog {path}: id {text!r} cannot name a file; use letters, digits and _ . + -, "
                "or name another column with --id-column"
            )
        key = text.lstrip("0") if _is_number(text) else text
        first = found.setdefault(key, (row, text))
        if first[1] != text:
            ambiguous.setdefault(key, text)
        elif first[0] != row:
            num_repeated += 1
    return found, ambiguous, num_repeated


def _along_strips(target: Target) -> tuple[float, float, str]:
    if not target.has_position:
        return math.inf, math.inf, target.sample_id
    return float(np.floor(target.dec / _STRIP_DEG)), target.ra % 360, target.sample_id


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
