"""How a survey's table is read: columns, cuts, units, citation. Recipes are TOML files.

Those of `recipes/` come with msdata; a spec may name files of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.core.files import storage_error
from msdata.errors import UsageError

FOLDER = Path(__file__).parent / "recipes"
# The better survey first, for objects that several have: surveys of the whole sky with the most
# even quality before deep fields, those before surveys of emission lines and of early type. The
# order is a choice; a spec's `order` replaces it.
BUILT_IN = ("sdss", "desi", "gama", "deep2", "vipers", "vvds", "wigglez", "sixdf")
SPEED_OF_LIGHT_KM_S = 299792.458
REDSHIFT_UNITS = ("1", "km/s")
_ROLES = ("id", "ra", "dec", "redshift")
_TESTS = ("equals", "one_of", "at_least", "above", "at_most", "below")
_FIELDS = {
    *("name", "title", "files", "where", "citation", "license", "hdu", "stars_below"),
    *("columns", "units", "cuts"),
}

Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A condition on a column.

    Attributes:
        column: names that the column may have; the first that is there counts.
        tests: name of the test (`equals`, `one_of`, `at_least`, `above`, `at_most`, `below`) and
            its value; all have to hold. NaN and null never do.
        reason: why a row is dropped that fails.
        is_optional: a table without the column is read without the cut.
    """

    column: Names
    tests: Mapping[str, Any]
    reason: str
    is_optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A survey.

    Attributes:
        name: what the catalog calls it.
        title: its full name and release.
        files: names of the files it was written for.
        where: address where they are.
        citation: papers to cite.
        license: terms of use.
        hdu: extension of a FITS file with the table; None for the first table.
        id: names that the column of the photometric id may have.
        ra: names of the right ascension: degrees; text is read as sexagesimal hours.
        dec: names of the declination: degrees; text is read as sexagesimal degrees.
        redshifts: names of one or several redshifts: the first value above 0 counts.
        redshift_unit: "1", or "km/s" where the column holds c z.
        stars_below: what has a smaller redshift is a star; None where a column tells stars.
        cuts: the survey's own, in order.
    """

    name: str
    title: str = ""
    files: str = ""
    where: str = ""
    citation: str = ""
    license: str = ""
    hdu: str | int | None = None
    id: Names
    ra: Names
    dec: Names
    redshifts: tuple[Names, ...]
    redshift_unit: str = "1"
    stars_below: float | None = None
    cuts: tuple[Cut, ...] = ()


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe.

    Args:
        path: a TOML file, or the bare name of a recipe that comes with msdata.

    Raises:
        UsageError: it does not exist, is not TOML, or has an invalid entry.
        StorageError: the file system refused.
    """
    if path.suffix != ".toml" and str(path) in BUILT_IN:
        path = FOLDER / f"{path}.toml"
    content = read_toml(path, "recipe")
    if "licence" in content:
        content.setdefault("license", content.pop("licence"))
    try:
        return _recipe_of(content)
    except (KeyError, TypeError) as error:
        raise UsageError(f"recipe {path} lacks {error}; compare it with {FOLDER}") from error
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: the file.
        what: what it is, for messages.

    Raises:
        UsageError: it does not exist, or is not TOML.
        StorageError: the file system refused.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        known = f"; known names are {', '.join(BUILT_IN)}" if what == "recipe" else ""
        raise UsageError(f"{what} {path} is not a file; check the path{known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} is not TOML: {error}") from error
    except OSError as error:
        raise storage_error("read", path, error) from error


def _recipe_of(content: Mapping[str, Any]) -> Recipe:
    check_names(content, _FIELDS, "entry")
    columns = content["columns"]
    check_names(columns, _ROLES, "column")
    units = content.get("units", {})
    check_names(units, ("redshift",), "unit")
    unit = units.get("redshift", "1")
    if unit not in REDSHIFT_UNITS:
        raise UsageError(f"redshift unit must be one of {', '.join(REDSHIFT_UNITS)}, got {unit!r}")
    stars_below = content.get("stars_below")
    if stars_below is not None and not isinstance(stars_below, int | float):
        raise UsageError(f"stars_below must be a number, got {stars_below!r}")
    texts = ("name", "title", "files", "where", "citation", "license")
    return Recipe(
        **{name: str(content[name]) for name in texts if name in content},
        hdu=content.get("hdu"),
        id=_names(columns["id"]),
        ra=_names(columns["ra"]),
        dec=_names(columns["dec"]),
        redshifts=tuple(_names(n) for n in columns["redshift"]),
        redshift_unit=unit,
        stars_below=stars_below,
        cuts=tuple(_cut_of(c) for c in content.get("cuts", ())),
    )


def _names(value: Any) -> Names:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names or not all(isinstance(n, str) for n in names):
        raise UsageError(f"column names must be a text or a list of texts, got {value!r}")
    return names


def _cut_of(content: Mapping[str, Any]) -> Cut:
    check_names(content, ("column", "reason", "optional", *_TESTS), "entry of a cut")
    tests = {name: content[name] for name in _TESTS if name in content}
    if not tests:
        raise UsageError(f"the cut on {content['column']} tests nothing; give {', '.join(_TESTS)}")
    return Cut(
        column=_names(content["column"]),
        tests=tests,
        reason=str(content["reason"]),
        is_optional=content.get("optional", False) is True,
    )


def check_names(content: Mapping[str, Any], known: Sequence[str] | set[str], what: str) -> None:
    """Refuses entries that would be ignored, as typos are.

    Raises:
        UsageError: there is one.
    """
    for name in content:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}; known are {', '.join(sorted(known))}")
