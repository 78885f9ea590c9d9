"""What `msdata catalog build` is asked for: a TOML file with the surveys' tables and the cuts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.catalog.build.recipe import BUILT_IN, Recipe, check_names, load_recipe, read_toml
from msdata.errors import UsageError

_NUMBERS = ("separation_arcsec", "dec_above", "disagreement_arcsec", "disagreement_above")
_ENTRIES = ("order", "redshift", "previous", "surveys", "ebv", *_NUMBERS)
_MAP_KINDS = ("healpix", "call", "column")


@dataclass(frozen=True, kw_only=True)
class SurveyTask:
    """A survey's recipe and tables.

    Attributes:
        key: what the spec calls it.
        recipe: how to read it.
        files: its tables; the first has the first rows.
    """

    key: str
    recipe: Recipe
    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class DustTask:
    """A column of E(B-V).

    Attributes:
        name: the column becomes `ebv_` and this.
        kind: "healpix" (a FITS map), "call" (Python, `module:name`) or "column" (of the surveys'
            tables).
        value: file, `module:name`, or the column's name.
        field: column of a HEALPix file; None takes the first.
        frame: a HEALPix map's, "G" galactic or "C" equatorial; None: as the file says, else "G".
    """

    name: str
    kind: str
    value: str
    field: str | None = None
    frame: str | None = None


@dataclass(frozen=True, kw_only=True)
class CatalogSpec:
    """All of it.

    Attributes:
        surveys: the better one first.
        separation_arcsec: no two objects of the catalog are this close.
        dec_above: degrees.
        redshift_above: redshifts are larger than this.
        redshift_below: and smaller than this.
        disagreement_arcsec: redshifts of rows that lie this close are compared.
        disagreement_above: and disagree where they differ by more, over 1 + z.
        previous: an earlier catalog whose ids are kept; None for none.
        dust: the columns of E(B-V).
    """

    surveys: tuple[SurveyTask, ...]
    separation_arcsec: float = 3.0
    dec_above: float = -30.0
    redshift_above: float = 0.0
    redshift_below: float = 1.6
    disagreement_arcsec: float = 3.0
    disagreement_above: float = 0.005
    previous: Path | None = None
    dust: tuple[DustTask, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What the catalog's own report records."""
        return {
            "order": [task.key for task in self.surveys],
            "separation_arcsec": self.separation_arcsec,
            "dec_above": self.dec_above,
            "redshift": [self.redshift_above, self.redshift_below],
            "disagreement_arcsec": self.disagreement_arcsec,
            "disagreement_above": self.disagreement_above,
            "previous": None if self.previous is None else self.previous.name,
            "ebv": {d.name: {d.kind: d.value} for d in self.dust},
        }


def read_spec(path: Path) -> CatalogSpec:
    """Reads a spec; paths in it are relative to its folder.

    Raises:
        UsageError: it does not exist, is not TOML, or has an invalid entry.
        StorageError: the file system refused.
    """
    content = read_toml(path, "spec")
    try:
        check_names(content, _ENTRIES, "entry")
        return _spec_of(content, path.parent)
    except UsageError as error:
        raise UsageError(f"spec {path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"spec {path} has a value of the wrong kind ({error}); see msdata catalog --help"
        ) from error


def _spec_of(content: Mapping[str, Any], folder: Path) -> CatalogSpec:
    asked = content.get("surveys", {})
    if not asked:
        raise UsageError("it names no survey; write [surveys.sdss] and files = [...] below it")
    tasks = {key: _survey_of(key, entry, folder) for key, entry in asked.items()}
    redshifts = content.get("redshift", (0.0, 1.6))
    if len(redshifts) != 2 or not float(redshifts[0]) < float(redshifts[1]):
        raise UsageError(f"redshift must be a range such as [0.0, 1.6], got {list(redshifts)}")
    previous = content.get("previous")
    spec = CatalogSpec(
        surveys=tuple(tasks[key] for key in _order_of(content.get("order"), tuple(tasks))),
        redshift_above=float(redshifts[0]),
        redshift_below=float(redshifts[1]),
        previous=None if previous is None else folder / str(previous),
        dust=tuple(_dust_of(n, entry, folder) for n, entry in content.get("ebv", {}).items()),
        **{name: float(content[name]) for name in _NUMBERS if name in content},
    )
    if not 1 <= spec.separation_arcsec <= 3600:
        raise UsageError(f"separation_arcsec must be 1 to 3600, got {spec.separation_arcsec:g}")
    if not (0 < spec.disagreement_arcsec <= 60 and 0 < spec.disagreement_above < math.inf):
        raise UsageError(
            "disagreement_arcsec must be above 0 and at most 60, disagreement_above above 0, got "
            f"{spec.disagreement_arcsec:g} and {spec.disagreement_above:g}"
        )
    return spec


def _order_of(asked: Any, keys: tuple[str, ...]) -> tuple[str, ...]:
    if asked is not None:
        if sorted(asked) != sorted(keys):
            raise UsageError(f"order = {list(asked)} has to name each survey once: {list(keys)}")
        return tuple(asked)
    unknown = [key for key in keys if key not in BUILT_IN]
    if unknown:
        raise UsageError(f"say with order = [...] where survey {unknown[0]!r} stands; best first")
    return tuple(key for key in BUILT_IN if key in keys)


def _survey_of(key: str, entry: Mapping[str, Any], folder: Path) -> SurveyTask:
    check_names(entry, ("files", "recipe"), f"entry of surveys.{key}")
    named = entry.get("files", ())
    files = tuple(folder / name for name in ([named] if isinstance(named, str) else named))
    if not files:
        raise UsageError(f"surveys.{key} has no files; write files = [...]")
    own = str(entry.get("recipe", key))
    is_known = own in BUILT_IN or "recipe" not in entry
    recipe = load_recipe(Path(own) if is_known else folder / own)
    return SurveyTask(key=key, recipe=recipe, files=files)


def _dust_of(name: str, entry: Mapping[str, Any], folder: Path) -> DustTask:
    check_names(entry, (*_MAP_KINDS, "field", "frame"), f"entry of ebv.{name}")
    kinds = [kind for kind in _MAP_KINDS if kind in entry]
    if len(kinds) != 1 or not name.isidentifier():
        raise UsageError(f"ebv.{name} needs a plain name and one of {', '.join(_MAP_KINDS)}")
    frame = entry.get("frame")
    if frame not in (None, "G", "C"):
        raise UsageError(f"ebv.{name}: frame {frame!r} is neither G (galactic) nor C (equatorial)")
    value = str(entry[kinds[0]])
    return DustTask(
        name=name,
        kind=kinds[0],
        value=str(folder / value) if kinds[0] == "healpix" else value,
        field=entry.get("field"),
        frame=frame,
    )


def healpix_task(name: str, path: str) -> DustTask:
    """A column `ebv_NAME` of a HEALPix map.

    Raises:
        UsageError: the name is none, or the file does not exist.
    """
    if not (name.isidentifier() and path):
        raise UsageError(
            f"--ebv must be NAME=MAP.fits, such as csfd=csfd_ebv.fits, got {name}={path}"
        )
    if not Path(path).is_file():
        raise UsageError(f"the map {path} of E(B-V) is not a file; check the path")
    return DustTask(name=name, kind="healpix", value=path)
