"""The settings of a fetch, and the check that a folder is resumed with the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msdata.core.checked_json import read_json
from msdata.core.files import locked, refusals, write_whole
from msdata.errors import UsageError
from msdata.fetch.adapter import Adapter
from msdata.fetch.journal import FOLDER, Entry
from msdata.fetch.legacy import LAYERS, ViewerAdapter
from msdata.fetch.panstarrs import PanstarrsAdapter
from msdata.fetch.service import SERVICES, Service
from msdata.fetch.surveys import survey_adapter
from msdata.fetch.targets import Slice
from msdata.fetch.unwise_me import UnwiseMeAdapter
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.pickles import object_path
from msdata.sources.survey_file import SurveyFile

_FORMAT_VERSION = 1
UNWISE_SERVICES = ("legacy", "unwise_me")
_OPTIONS = {
    "unwise_from": "--unwise-from",
    "pixel_scales_arcsec": "--pixel-scale",
    "surveys": "--survey",
}
OBJECTS, FITS = "photometry", "fits"


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """A fetch.

    Attributes:
        catalog: table with ids and positions.
        out: folder for the objects.
        id_column: the catalog's column with the ids; None looks for a known name.
        services: where to ask, by name.
        unwise_from: "legacy" or "unwise_me".
        pixel_scales_arcsec: scales of arrays that differ from the schema's, by name.
        part: the slice of the catalog.
        concurrent_slices: slices at work at a time; they share each service's rate.
        workers: objects in flight at a time.
        keep_fits: keep the services' files too.
        retry_refused: ask again for objects that were refused.
        contact: address for the operators of the services.
        pack: data set that all objects go into in the end; None for files alone.
        surveys: fetch FITS files of these instead, each from the service that it names.
    """

    catalog: Path
    out: Path
    id_column: str | None = None
    services: Mapping[str, Service] = field(default_factory=lambda: dict(SERVICES))
    unwise_from: str = "legacy"
    pixel_scales_arcsec: Mapping[str, float] = field(default_factory=dict)
    part: Slice = field(default_factory=Slice)
    concurrent_slices: int | None = None
    workers: int = 8
    keep_fits: bool = False
    retry_refused: bool = False
    contact: str | None = None
    pack: Path | None = None
    surveys: tuple[SurveyFile, ...] = ()

    def __post_init__(self) -> None:
        if self.unwise_from not in UNWISE_SERVICES:
            raise UsageError(
                f"--unwise-from must be one of {', '.join(UNWISE_SERVICES)}, "
                f"got {self.unwise_from!r}"
            )
        if not 1 <= self.workers <= 256:
            raise UsageError(f"--workers must be 1 to 256, got {self.workers}")
        shared = self.concurrent_slices
        if shared is not None and not 1 <= shared <= self.part.count:
            raise UsageError(
                f"--concurrent-slices {shared}: there are {self.part.count} slices; give 1 to "
                f"{self.part.count}"
            )
        for name, scale in self.pixel_scales_arcsec.items():
            if name not in ("galex", "unwise"):
                raise UsageError(
                    f"--pixel-scale {name}={scale:g}: only galex and unwise are resampled by their "
                    "service"
                )
            if not 0.1 <= scale <= 60:
                raise UsageError(f"--pixel-scale {name} must be > 0 arcsec, got {scale:g}")
        if self.contact is not None and not (
            self.contact.isascii() and self.contact.isprintable() and len(self.contact) <= 200
        ):
            raise UsageError("--contact goes into a request's header; give an address in ASCII")
        self._check_surveys()
        self.adapters()

    def _check_surveys(self) -> None:
        if not self.surveys:
            return
        names = [survey.name for survey in self.surveys]
        if len(set(names)) != len(names):
            raise UsageError(f"--survey must name distinct surveys, got {', '.join(names)}")
        others = {
            "--unwise-from": self.unwise_from != "legacy",
            "--pixel-scale": self.pixel_scales_arcsec,
            "--keep-fits": self.keep_fits,
        }
        for option in (name for name, is_given in others.items() if is_given):
            raise UsageError(
                f"{option} is for Pan-STARRS, GALEX and unWISE; with --survey leave it out"
            )
        if self.pack is not None:
            command = " ".join(f"--survey {name}" for name in names)
            raise UsageError(
                f"--pack takes no --survey; fetch first, then run 'msdata pack {self.out / FITS} "
                f"{self.pack} {command} --catalog {self.catalog}'"
            )

    def has_files(self, entry: Entry) -> bool:
        """Whether the files of an object that was fetched are there, with the bytes they had."""
        paths = [self.out / OBJECTS / object_path(entry.sample_id, ".npy")]
        if self.surveys:
            paths = [
                survey_path(self.out, entry.sample_id, survey.pattern.replace("{band}", band))
                for survey in self.surveys
                for band in (survey.bands if "{band}" in survey.pattern else ("",))
            ]
        is_there = all(path.exists() for path in paths)
        return is_there and sum(path.stat().st_size for path in paths) == entry.nbytes

    def adapters(self) -> list[Adapter]:
        """One for each array, in the schema's order."""
        if self.surveys:
            return [survey_adapter(survey) for survey in self.surveys]
        surveys = {
            a.name: replace(
                a, pixel_scale_arcsec=self.pixel_scales_arcsec.get(a.name, a.pixel_scale_arcsec)
            )
            for a in MANTIS_SHRIMP.arrays
        }
        galex, unwise = (ViewerAdapter(surveys[name], *LAYERS[name]) for name in LAYERS)
        is_me = self.unwise_from == "unwise_me"
        return [
            PanstarrsAdapter(surveys["panstarrs"]),
            galex,
            UnwiseMeAdapter(surveys["unwise"]) if is_me else unwise,
        ]

    def shared_services(self) -> dict[str, Service]:
        """The services that are asked, each with this slice's share of its rate."""
        share = self.concurrent_slices or self.part.count
        return {
            name: replace(service, requests_per_s=service.requests_per_s / share)
            for name, service in self.services.items()
            if name in {adapter.service for adapter in self.adapters()}
        }

    def to_json(self) -> dict[str, Any]:
        """What decides the pixels; a folder is resumed with the same only."""
        return {
            "unwise_from": self.unwise_from,
            "pixel_scales_arcsec": dict(sorted(self.pixel_scales_arcsec.items())),
            "surveys": {survey.name: survey.digest for survey in self.surveys},
        }


def survey_path(out: Path, sample_id: str, pattern: str) -> Path:
    """Where a file of an object lies: folders as for all objects, the name of the survey."""
    return out / FITS / object_path(sample_id, "").parent / pattern.replace("{id}", sample_id)


def claim_folder(settings: FetchSettings) -> bool:
    """Takes the folder for a fetch with these settings; a new one is made.

    Returns:
        Whether an earlier fetch started there.

    Raises:
        UsageError: it was started with others, or holds something else.
        StorageError: the file system refused.
    """
    path = settings.out / FOLDER / "settings.json"
    with refusals("write", settings.out):
        if settings.out.exists() and not settings.out.is_dir():
            raise UsageError(f"{settings.out} is a file; give a folder for the objects")
        has_begun = path.parent.exists()
        if not has_begun and settings.out.exists() and any(settings.out.iterdir()):
            raise UsageError(
                f"{settings.out} is not empty and was not made by 'msdata fetch'; give a new folder"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
    # Slices begin at the same moment.
    with locked(path.parent / "settings.lock", waits=True):
        if not path.exists():
            fields = {"format_version": _FORMAT_VERSION, **settings.to_json()}
            write_whole(path, (json.dumps(fields, indent=1) + "\n").encode())
            return has_begun
        found = read_json(path, cure="fetch into a new folder, or restore it", has_paths=True)
        version = found["format_version"].read_as(int)
        if version != _FORMAT_VERSION:
            raise UsageError(f"{settings.out} was started by another version of msdata ({version})")
        check_same(settings, found.value, "resume with the same, or fetch into another folder")
    return has_begun


def check_same(settings: FetchSettings, before: Mapping[str, Any], cure: str) -> None:
    """Refuses settings whose `to_json` differs from that which `settings.out` was started with.

    Raises:
        UsageError: they differ; the message ends with the cure.
    """
    for name, value in settings.to_json().items():
        # Earlier versions wrote no surveys.
        if (before.get(name) or None) != (value or None):
            raise UsageError(
                f"{settings.out} was started with {_OPTIONS[name]} {_shown(before.get(name))}, not "
                f"{_shown(value)}; {cure}"
            )


def _shown(value: Any) -> str:
    """A setting as a message shows it; of a survey its name and what tells its file from others."""
    if isinstance(value, dict):
        value = " ".join(f"{name}={said}" for name, said in value.items())
    return str(value or "(none)")
