"""Fetches one object: all its arrays, then its file, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msdata.core.checksum import crc32c
from msdata.core.files import refusals, write_whole
from msdata.fetch.adapter import Fetched
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError, UnavailableError
from msdata.fetch.journal import FETCHED, REFUSED, UNSETTLED, Entry
from msdata.fetch.settings import FITS, OBJECTS, FetchSettings, survey_path
from msdata.fetch.targets import Target
from msdata.sources.fits_options import zero_point_name
from msdata.sources.pickles import object_bytes, object_path


class ObjectFetcher:
    """Fetches objects; called from many threads.

    Args:
        settings: what to fetch, and where to write it.
        clients: by service.
    """

    def __init__(self, settings: FetchSettings, clients: Mapping[str, Client]) -> None:
        self._adapters = settings.adapters()
        self._clients = clients
        self._out = settings.out
        self._keep_fits = settings.keep_fits
        self._is_of_surveys = bool(settings.surveys)

    def fetch(self, target: Target) -> Entry:
        """Fetches one object and writes its files.

        Returns:
            What became of it.

        Raises:
            StorageError: the file system refused.
            StoppedError: the run is ending.
        """
        if not target.has_position:
            return _entry(target, REFUSED, reason="it has no position in the catalog")
        arrays: dict[str, Fetched] = {}
        for adapter in self._adapters:
            name = adapter.survey.name
            try:
                client = self._clients[adapter.service]
                arrays[name] = adapter.fetch(client, target.position)
            except (RefusedError, UnavailableError) as error:
                state = REFUSED if isinstance(error, RefusedError) else UNSETTLED
                reason = f"{name}: {error}"
                return _entry(target, state, service=adapter.service, reason=reason)
        if self._keep_fits:
            for found in arrays.values():
                for name, content in found.files.items():
                    place = object_path(target.sample_id, f".{name}")
                    self._write(self._out / FITS / place, content)
        if self._is_of_surveys:
            files = {n: c for found in arrays.values() for n, c in found.files.items()}
            for pattern, content in files.items():
                self._write(survey_path(self._out, target.sample_id, pattern), content)
            content = b"".join(files.values())
        else:
            content = fetched_bytes(arrays)
            self._write(self._out / OBJECTS / object_path(target.sample_id, ".npy"), content)
        notes = {name: dict(found.notes) for name, found in arrays.items() if found.notes}
        return _entry(target, FETCHED, nbytes=len(content), crc32c=crc32c(content), notes=notes)

    def _write(self, path: Path, content: bytes) -> None:
        with refusals("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def fetched_bytes(arrays: Mapping[str, Fetched]) -> bytes:
    """An object's file: float32 arrays by name, and the AB zero-point of each band's file."""
    sample: dict[str, Any] = {name: found.pixels for name, found in arrays.items()}
    for name, found in arrays.items():
        for band, zero_point in found.zero_points.items():
            sample[zero_point_name(name, band)] = zero_point
    return object_bytes(sample)


def _entry(target: Target, state: str, **fields: Any) -> Entry:
    ra, dec = target.position if target.has_position else (None, None)
    return Entry(sample_id=target.sample_id, state=state, ra=ra, dec=dec, **fields)
