"""Reads `catalog.json` for data cards.

It stands alone because `report` imports all that builds a catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msdata.core.checked_json import Count, Within, read_json
from msdata.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class _ReportSpec:
    IGNORES_UNKNOWN = True

    order: tuple[str, ...]
    separation_arcsec: float
    dec_above: float
    redshift: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _ReportCut:
    IGNORES_UNKNOWN = True

    column: Annotated[tuple[str, ...], Within(1)]


@dataclass(frozen=True, kw_only=True)
class _ReportSurvey:
    IGNORES_UNKNOWN = True

    name: str
    files: Mapping[str, Count]
    citation: str
    licence: str
    cuts: tuple[_ReportCut, ...]
    num_available: Count
    num_accepted: Count


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What the card takes of a catalog's report."""

    IGNORES_UNKNOWN = True

    format: Literal["msdata-catalog"]
    num_objects: Count
    sha256: str
    spec: _ReportSpec
    surveys: tuple[_ReportSurvey, ...]


def read_catalog_report(path: Path) -> dict[str, Any]:
    """Reads the `catalog.json` that `msdata catalog build` writes.

    Args:
        path: the file, or the catalog's folder.

    Raises:
        UsageError: it is not there.
        DataError: it is something else, or damaged.
        StorageError: the file system refused.
    """
    if path.is_dir():
        path = path / "catalog.json"
    try:
        found = read_json(path, cure="give the catalog.json of msdata catalog build")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"catalog report {path} does not exist; check the path") from None
    found.read_as(_Report)
    report: dict[str, Any] = found.value
    return report
