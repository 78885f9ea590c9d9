"""Runs a fetch: what is left of the slice, on threads, each object's fate into the journal."""

from __future__ import annotations

import csv
import io
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from msdata.core.files import write_whole
from msdata.core.progress import ProgressLine
from msdata.errors import DataError
from msdata.fetch.client import Client
from msdata.fetch.failures import StoppedError
from msdata.fetch.into_shards import check_target, check_unfinished
from msdata.fetch.journal import FETCHED, REFUSED, UNSETTLED, Entry, Journal, read_entries
from msdata.fetch.objects import ObjectFetcher
from msdata.fetch.settings import FetchSettings, claim_folder
from msdata.fetch.targets import Target, read_targets

# Where so many objects were refused and none fetched, a layer or address is wrong: more requests
# would only cost the service, and the user, more of the same.
PATIENCE = 25
# A killed run's last requests may have reached the services a moment ago.
_PAUSE_BEFORE_RESUMING_S = 1.0
_TICK_S = 1.0

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class FetchReport:
    """What a fetch did.

    Attributes:
        num_objects: objects in the slice.
        states: how many objects are in which state now.
        num_fetched_now: by this run.
        services: counters of requests, retries and bytes by service.
        failed_path: the list of failed objects.
        no_coverage: how many fetched objects lack coverage, by band.
        notes: remarks on the catalog.
    """

    num_objects: int
    states: Mapping[str, int]
    num_fetched_now: int
    services: Mapping[str, Mapping[str, int]]
    failed_path: Path
    no_coverage: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether every object is there or cannot be had."""
        return not self.states.get(UNSETTLED) and sum(self.states.values()) == self.num_objects


class Crew(Generic[Task, Result]):
    """Runs a function on many threads over a stream of objects; a context manager.

    The threads are daemons: one that waits for a dead server does not keep the process from ending.

    Args:
        work: fetches one object.
        num_threads: at a time.
        stop: set when the block is left.
    """

    def __init__(
        self, work: Callable[[Task], Result], num_threads: int, stop: threading.Event
    ) -> None:
        self._work = work
        self._num_threads = num_threads
        self._stop = stop
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()

    def __enter__(self) -> Crew[Task, Result]:
        for number in range(self._num_threads):
            threading.Thread(target=self._serve, name=f"fetch-{number}", daemon=True).start()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._stop.set()
        for _ in range(self._num_threads):
            self._tasks.put(None)

    def results(self, targets: Iterator[Task]) -> Iterator[Result | None]:
        """What became of each object, as they are done; None every second without one.

        Raises:
            BaseException: whatever a thread did not expect.
        """
        num_out = 0
        while True:
            while num_out < self._num_threads and (target := next(targets, None)) is not None:
                self._tasks.put(target)
                num_out += 1
            if not num_out:
                return
            try:
                result = self._results.get(timeout=_TICK_S)
            except queue.Empty:
                yield None
                continue
            num_out -= 1
            if isinstance(result, BaseException):
                raise result
            yield result

    def _serve(self) -> None:
        while (target := self._tasks.get()) is not None:
            try:
                result: Result | BaseException = self._work(target)
            except StoppedError:
                return
            except BaseException as error:
                result = error
            self._results.put(result)


@contextmanager
def open_clients(
    settings: FetchSettings, stop: threading.Event, *, is_resumed: bool
) -> Iterator[dict[str, Client]]:
    """Opens a client of each service that a fetch asks; closes them at the end.

    Args:
        settings: the fetch.
        stop: set when the run ends.
        is_resumed: an earlier run may have asked the services a moment ago: wait a second first.

    Yields:
        The clients by service.
    """
    first_s = time.monotonic() + _PAUSE_BEFORE_RESUMING_S if is_resumed else 0.0
    clients = {
        name: Client(service, stop, first_after_s=first_s, contact=settings.contact)
        for name, service in settings.shared_services().items()
    }
    try:
        yield clients
    finally:
        for client in clients.values():
            client.close()


def targets_left(
    targets: Iterable[Target],
    entries: Mapping[str, Entry],
    settings: FetchSettings,
    *,
    is_packed: bool,
) -> list[Target]:
    """The objects that are to be fetched: those neither there nor refused.

    Args:
        targets: the slice's.
        entries: what became of objects before.
        settings: the fetch; a file that is gone or of another size is fetched again.
        is_packed: fetched objects are in the data set and need no files.
    """
    left = []
    for target in targets:
        entry = entries.get(target.sample_id)
        if entry is not None and entry.is_of(target):
            if entry.state == REFUSED and not settings.retry_refused:
                continue
            if entry.state == FETCHED and (is_packed or settings.has_files(entry)):
                continue
        left.append(target)
    return left


def fetch(settings: FetchSettings, *, is_quiet: bool = True) -> FetchReport:
    """Fetches what is left of a slice.

    Args:
        settings: what, from where, how fast.
        is_quiet: no progress line.

    Returns:
        What was done, and what is left.

    Raises:
        UsageError: settings, catalog and folder do not fit.
        DataError: a service is down, or refused object after object.
        StorageError: the file system refused.
    """
    targets, notes = read_targets(
        settings.catalog, id_column=settings.id_column, part=settings.part
    )
    is_packed = check_target(settings)
    has_begun = claim_folder(settings)
    with Journal(settings.out, settings.part) as journal:
        entries = read_entries(settings.out, {target.sample_id for target in targets})
        left = targets_left(targets, entries, settings, is_packed=is_packed)
        check_unfinished(settings, len(left))
        stop = threading.Event()
        with open_clients(settings, stop, is_resumed=has_begun) as clients:
            tally = _Tally(len(left), clients, is_quiet=is_quiet)
            fetcher = ObjectFetcher(settings, clients)
            try:
                with Crew(fetcher.fetch, settings.workers, stop) as crew:
                    for entry in crew.results(iter(left)):
                        if entry is not None:
                            journal.add(entry)
                            entries[entry.sample_id] = entry
                            tally.add(entry)
                        tally.show(tally.line.update)
            finally:
                tally.show(tally.line.close)
                path = settings.out / f"failed{settings.part.suffix}.csv"
                of_slice = _of_slice(targets, entries)
                write_failed(path, of_slice)
    return FetchReport(
        num_objects=len(targets),
        states=Counter(entry.state for entry in of_slice),
        num_fetched_now=tally.num_fetched,
        services={name: dict(client.counts) for name, client in clients.items()},
        failed_path=path,
        no_coverage=_no_coverage(of_slice),
        notes=notes,
    )


def _of_slice(targets: Iterable[Target], entries: Mapping[str, Entry]) -> list[Entry]:
    found = ((target, entries.get(target.sample_id)) for target in targets)
    of_slice = [entry for target, entry in found if entry is not None and entry.is_of(target)]
    return sorted(of_slice, key=lambda entry: entry.sample_id)


def _no_coverage(entries: Iterable[Entry]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for entry in entries:
        for array, notes in entry.notes.items():
            counts.update(f"{array}.{band}" for band in notes.get("no_coverage", ()))
    return dict(sorted(counts.items()))


def write_failed(path: Path, entries: Iterable[Entry]) -> None:
    """Lists the objects that are not there, with the reason, as CSV.

    Raises:
        StorageError: the file system refused.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["sample_id", "ra", "dec", "state", "service", "reason"])
    for entry in entries:
        if entry.state != FETCHED:
            place = ["" if v is None else f"{v:.7f}" for v in (entry.ra, entry.dec)]
            writer.writerow([entry.sample_id, *place, entry.state, entry.service, entry.reason])
    write_whole(path, file.getvalue().encode())


class _Tally:
    """Counts, shows, and loses patience with a service that only refuses."""

    def __init__(self, num_left: int, clients: Mapping[str, Client], *, is_quiet: bool) -> None:
        self.num_fetched = 0
        self._num_done = 0
        self._clients = clients
        self.line = ProgressLine("fetch", num_left, is_quiet=is_quiet)
        self._refused: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        """Counts an object.

        Raises:
            DataError: its service has refused all so far, and they are many.
        """
        self._num_done += 1
        self.num_fetched += entry.state == FETCHED
        if entry.state != REFUSED or not entry.service or self.num_fetched:
            return
        self._refused[entry.service] += 1
        if self._refused[entry.service] == PATIENCE:
            url = self._clients[entry.service].service.base_url
            raise DataError(
                f"service {entry.service} ({url}) refused the first {PATIENCE} objects, the last: "
                f"{entry.reason}; nothing finished is lost: see to the cause, then run the same "
                "command again, with --retry-refused"
            )

    def show(self, tell: Callable[[int, int, str], None]) -> None:
        """Shows how far it is, by the line's `update` or `close`."""
        parts = []
        for name, client in self._clients.items():
            again = f" ({client.counts['retries']:,} again)" if client.counts["retries"] else ""
            parts.append(f"{name} {client.counts['requests']:,}{again}")
        nbytes = sum(client.counts["nbytes"] for client in self._clients.values())
        tell(self._num_done, nbytes, ", ".join(parts))
