"""A canary: what services answered for a few positions, and what they changed since.

A service that reduces its images again alters what a training gets, under the same address. The
reference file holds of each band checksums of file and pixels, their mean, noise and zero-point,
which tell a new header from new pixels. Positions are asked for as in a fetch.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from msdata.core.checked_json import Count, Within, read_json
from msdata.core.files import write_whole
from msdata.core.progress import ProgressLine
from msdata.errors import DataError, UsageError
from msdata.fetch.adapter import Adapter, Fetched
from msdata.fetch.client import Client
from msdata.fetch.failures import LostError, RefusedError, SpoiledError, UnavailableError
from msdata.fetch.run import Crew, open_clients
from msdata.fetch.settings import FetchSettings, check_same
from msdata.fetch.targets import read_targets

NUM_POSITIONS = 20
# A reference from elsewhere decides how many requests are sent.
_MAX_POSITIONS = 100
_MAX_NBYTES = 4 << 20
_NOISE_TOLERANCE = 0.01
_CURE = "restore it, or make another with 'msdata fetch CATALOG --canary REF'"
BYTES, VALUES, NOISE, ZERO_POINT = "bytes only", "values", "noise", "zero-point"
MISSING, APPEARED = "missing", "appeared"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is kept of one band at one position.

    Attributes:
        file_sha256: digest of the service's file; of all its files where bands share one.
        pixels_sha256: digest of the stamp's float32 pixels.
        mean: of the pixels that are not NaN, in the service's unit.
        noise: 1.4826 times the median of absolute deviations from the median, likewise.
        num_nan: NaN pixels.
        zero_point: AB magnitude of a pixel value of 1.
    """

    file_sha256: Annotated[str, Within(64, 64)]
    pixels_sha256: Annotated[str, Within(64, 64)]
    mean: float
    noise: Annotated[float, Within(0)]
    num_nan: Count
    zero_point: float

    def change_to(self, now: Mark) -> str:
        """The kind of a change to another mark; empty where both are equal."""
        if now.pixels_sha256 != self.pixels_sha256:
            is_noise = abs(now.noise - self.noise) > _NOISE_TOLERANCE * self.noise
            return NOISE if is_noise else VALUES
        if now.zero_point != self.zero_point:
            return ZERO_POINT
        return BYTES if now.file_sha256 != self.file_sha256 else ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One position.

    Attributes:
        ra: right ascension, degrees.
        dec: declination, degrees.
        arrays: marks by array and band; None for an array that its service refuses.
    """

    ra: Annotated[float, Within(0, 360)]
    dec: Annotated[float, Within(-90, 90)]
    arrays: Mapping[str, Mapping[str, Mark] | None]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A reference file.

    Attributes:
        settings: what decides the pixels; see `FetchSettings.to_json`.
        places: the positions.
    """

    format_version: Literal[1] = 1
    settings: Mapping[str, Any]
    places: Annotated[tuple[Place, ...], Within(1, _MAX_POSITIONS)]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a service changed of one band, or of an array as a whole.

    Attributes:
        service: its name.
        band: "ARRAY.BAND"; "ARRAY" for what is missing or appeared.
        kind: BYTES, VALUES, NOISE, ZERO_POINT, MISSING or APPEARED.
        num_positions: where it did.
        ra: right ascension of the largest change, degrees.
        dec: declination there, degrees.
        before: the mark there; None for what is missing or appeared.
        now: likewise.
        reason: the service's, for what is missing.
    """

    service: str
    band: str
    kind: str
    num_positions: int
    ra: float
    dec: float
    before: Mark | None = None
    now: Mark | None = None
    reason: str = ""

    @property
    def size(self) -> float:
        """How large it is, to find the largest of one band."""
        if self.before is None or self.now is None:
            return 0.0
        pairs = zip(_numbers(self.before), _numbers(self.now), strict=True)
        return sum(abs(b - a) for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class CanaryReport:
    """What was found.

    Attributes:
        is_new: the reference was made now, so nothing was compared.
        num_positions: positions in it.
        num_compared: positions with an answer of then and now, by array.
        changes: see `Change`.
        undelivered: positions without an answer now, and why, by service.
    """

    is_new: bool
    num_positions: int
    num_compared: Mapping[str, int]
    changes: tuple[Change, ...] = ()
    undelivered: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def is_changed(self) -> bool:
        """Whether a fetch gets other values than then."""
        return any(change.kind != BYTES for change in self.changes)

    @property
    def is_compared(self) -> bool:
        """Whether every service answered at some position."""
        return all(number < self.num_positions for number, _ in self.undelivered.values())


class _Outcome(NamedTuple):
    """What a service said of one array: marks, or why not; `is_final` if it will say so again."""

    marks: Mapping[str, Mark] | None
    reason: str = ""
    is_final: bool = True


_Outcomes = dict[str, _Outcome]


def watch(path: Path, settings: FetchSettings, *, is_quiet: bool = True) -> CanaryReport:
    """Makes a reference file where there is none, else compares the services with it.

    Args:
        path: the reference file.
        settings: services and surveys; its catalog is read for a new reference only.
        is_quiet: no progress line.

    Raises:
        UsageError: there is neither reference nor catalog, or the reference is of other settings.
        DataError: the reference is damaged; or a service delivers nothing for a new one.
        StorageError: the file system refused.
    """
    if not path.exists():
        return _make(path, settings, is_quiet=is_quiet)
    found = read_json(path, cure=_CURE, max_nbytes=_MAX_NBYTES, has_paths=True)
    canary = found.read_as(Canary)
    check_same(settings, canary.settings, "give the same, or make another reference")
    _check_bands(path, canary, settings)
    positions = [(place.ra, place.dec) for place in canary.places]
    return _compared(canary, _ask(settings, positions, is_first=False, is_quiet=is_quiet), settings)


def _make(path: Path, settings: FetchSettings, *, is_quiet: bool) -> CanaryReport:
    if settings.catalog == Path():
        raise UsageError(
            f"{path} does not exist, and no catalog was given to take positions from; check the "
            f"path, or make it with 'msdata fetch CATALOG --canary {path}'"
        )
    if not path.parent.is_dir():
        raise UsageError(f"the folder of --canary does not exist: {path.parent}; make it first")
    targets, _ = read_targets(settings.catalog, id_column=settings.id_column, part=settings.part)
    places = list(dict.fromkeys(t.position for t in targets if t.has_position))
    if not places:
        raise UsageError(f"catalog {settings.catalog} has no object with a position")
    rows = np.linspace(0, len(places) - 1, min(NUM_POSITIONS, len(places))).round().astype(int)
    positions = [places[row] for row in rows]
    found = _ask(settings, positions, is_first=True, is_quiet=is_quiet)
    counts = {
        adapter.survey.name: sum(o[adapter.survey.name].marks is not None for o in found)
        for adapter in settings.adapters()
    }
    for name in (name for name, count in counts.items() if not count):
        raise DataError(
            f"cannot make {path}: {name} was refused at all {len(found)} positions, the first: "
            f"{found[0][name].reason}; give a catalog of positions that it covers"
        )
    canary = Canary(
        settings=settings.to_json(),
        places=tuple(
            Place(ra=ra, dec=dec, arrays={name: o.marks for name, o in outcomes.items()})
            for (ra, dec), outcomes in zip(positions, found, strict=True)
        ),
    )
    write_whole(path, (json.dumps(asdict(canary), indent=1) + "\n").encode())
    return CanaryReport(is_new=True, num_positions=len(found), num_compared=counts)


def _check_bands(path: Path, canary: Canary, settings: FetchSettings) -> None:
    """Refuses a reference with other arrays or bands than these settings fetch."""
    wanted = {a.survey.name: set(a.survey.bands) for a in settings.adapters()}
    for place in canary.places:
        is_known = place.arrays.keys() == wanted.keys() and all(
            marks is None or marks.keys() == wanted[name] for name, marks in place.arrays.items()
        )
        if not is_known:
            raise DataError(
                f"{path} is damaged: every position must have the arrays {', '.join(wanted)} with "
                f"all their bands; {_CURE}"
            )


def _ask(
    settings: FetchSettings,
    positions: Sequence[tuple[float, float]],
    *,
    is_first: bool,
    is_quiet: bool,
) -> list[_Outcomes]:
    """What the services say of each position, by array.

    A new reference needs every answer: the first that is not delivered raises its DataError.
    """
    stop = threading.Event()
    adapters = settings.adapters()
    found: list[_Outcomes] = [{} for _ in positions]
    lost: set[str] = set()
    line = ProgressLine("canary", len(positions), is_quiet=is_quiet)
    with open_clients(settings, stop, is_resumed=not is_first) as clients:

        def work(number: int) -> None:
            for adapter in adapters:
                client = clients[adapter.service]
                outcome = _outcome(adapter, client, positions[number], lost, is_first)
                found[number][adapter.survey.name] = outcome

        with Crew(work, settings.workers, stop) as crew:
            for _ in crew.results(iter(range(len(positions)))):
                num_done = sum(len(outcomes) == len(adapters) for outcomes in found)
                line.update(num_done, sum(client.counts["nbytes"] for client in clients.values()))
        line.close(len(found), sum(client.counts["nbytes"] for client in clients.values()))
    return found


def _outcome(
    adapter: Adapter, client: Client, position: tuple[float, float], lost: set[str], is_first: bool
) -> _Outcome:
    service = client.service
    if service.name in lost:
        return _Outcome(None, "", is_final=False)
    try:
        return _Outcome(_marks(adapter.fetch(client, position)))
    except (RefusedError, UnavailableError, LostError) as error:
        said = str(error).partition("; nothing finished is lost")[0]
        said = said.replace(f"service {service.name} ({service.base_url}) ", "it ")
        # A page of another kind, such as one about maintenance, says nothing of the position.
        is_final = isinstance(error, RefusedError) and not isinstance(error.__cause__, SpoiledError)
        if is_first and not is_final:
            raise DataError(
                f"cannot make the reference: service {service.name} ({service.base_url}): {said}; "
                "nothing was written, try again later"
            ) from error
        if isinstance(error, LostError):
            lost.add(service.name)
        return _Outcome(None, said, is_final=is_final)


def _marks(found: Fetched) -> dict[str, Mark]:
    """The marks of an array's bands."""
    bands = list(found.zero_points)
    contents = list(found.files.values())
    if len(contents) != len(bands):
        contents = [b"".join(contents)] * len(bands)
    marks = {}
    for band, image_HW, content in zip(bands, found.pixels, contents, strict=True):
        values = image_HW[~np.isnan(image_HW)].astype(np.float64)
        deviations = np.abs(values - np.median(values))
        marks[band] = Mark(
            file_sha256=hashlib.sha256(content).hexdigest(),
            pixels_sha256=hashlib.sha256(image_HW.tobytes()).hexdigest(),
            mean=float(values.mean()),
            noise=float(1.4826 * np.median(deviations)),
            num_nan=int(image_HW.size - values.size),
            zero_point=found.zero_points[band],
        )
    return marks


def _compared(canary: Canary, found: Sequence[_Outcomes], settings: FetchSettings) -> CanaryReport:
    services = {a.survey.name: a.service for a in settings.adapters()}
    changes: dict[tuple[str, str], list[Change]] = {}
    compared = dict.fromkeys(services, 0)
    undelivered: dict[str, set[int]] = {}
    reasons: dict[str, str] = {}
    for number, (place, outcomes) in enumerate(zip(canary.places, found, strict=True)):
        for name, outcome in outcomes.items():
            service = services[name]
            if not outcome.is_final:
                undelivered.setdefault(service, set()).add(number)
                reasons[service] = outcome.reason or reasons.get(service, "")
                continue
            compared[name] += place.arrays[name] is not None and outcome.marks is not None
            for change in _changes_at(place, name, outcome, service):
                changes.setdefault((change.band, change.kind), []).append(change)
    return CanaryReport(
        is_new=False,
        num_positions=len(found),
        num_compared=compared,
        changes=tuple(
            replace(max(of_band, key=lambda change: change.size), num_positions=len(of_band))
            for of_band in changes.values()
        ),
        undelivered={name: (len(at), reasons[name]) for name, at in undelivered.items()},
    )


def _changes_at(place: Place, name: str, outcome: _Outcome, service: str) -> Iterator[Change]:
    at: dict[str, Any] = {"service": service, "num_positions": 1, "ra": place.ra, "dec": place.dec}
    before, now = place.arrays[name], outcome.marks
    if before is None and now is not None:
        yield Change(band=name, kind=APPEARED, **at)
    elif before is not None and now is None:
        yield Change(band=name, kind=MISSING, reason=outcome.reason, **at)
    elif before is not None and now is not None:
        for band, mark in before.items():
            kind = mark.change_to(now[band])
            if kind:
                yield Change(band=f"{name}.{band}", kind=kind, before=mark, now=now[band], **at)


def report_lines(report: CanaryReport, path: Path) -> Iterator[str]:
    """The report in sentences, one for each band and kind of change."""
    of = f"of {report.num_positions} positions"
    for change in report.changes:
        where = f"{change.service} {change.band}: {change.kind}"
        line = f"{where} at {change.num_positions} {of}"
        if change.reason:
            line += f", such as {change.ra:.5f} {change.dec:+.5f}: {change.reason}"
        if change.before is not None and change.now is not None and change.kind != BYTES:
            line += f", most at {change.ra:.5f} {change.dec:+.5f}: "
            line += ", ".join(_differences(change.before, change.now))
        yield line
    counts = ", ".join(f"{name} {count}" for name, count in report.num_compared.items())
    if report.is_new:
        yield f"kept {report.num_positions} positions in {path}; delivered: {counts}"
    else:
        found = "values changed" if report.is_changed else "no value is known to have changed"
        yield f"{found} since {path} was made; compared: {counts} {of}"


def _differences(before: Mark, now: Mark) -> Iterator[str]:
    names = ("mean", "noise", "zero-point", "NaN pixels")
    has_any = False
    for name, a, b in zip(names, _numbers(before), _numbers(now), strict=True):
        if f"{a:.5g}" != f"{b:.5g}":
            has_any = True
            by = f" (times {b / a:.3g})" if a > 0 and b > 0 and name != "zero-point" else ""
            yield f"{name} {a:.5g} to {b:.5g}{by}"
    if not has_any:
        yield f"mean {before.mean:.5g} by {now.mean - before.mean:+.2g}"


def _numbers(mark: Mark) -> tuple[float, ...]:
    return mark.mean, mark.noise, mark.zero_point, mark.num_nan
