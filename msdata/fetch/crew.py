"""Threads that fetch objects, and stop at once when the run does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from msdata.fetch.failures import StoppedError
from msdata.fetch.journal import Entry
from msdata.fetch.targets import Target

_TICK_S = 1.0


class Crew:
    """Runs a function on many threads over a stream of objects; a context manager.

    The threads are daemons: one that waits for a dead server does not keep the process from ending.

    Args:
        work: fetches one object.
        num_threads: at a time.
        stop: set when the block is left.
    """

    def __init__(
        self, work: Callable[[Target], Entry], num_threads: int, stop: threading.Event
    ) -> None:
        self._work = work
        self._num_threads = num_threads
        self._stop = stop
        self._tasks: queue.SimpleQueue[Target | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Entry | BaseException] = queue.SimpleQueue()

    def __enter__(self) -> Crew:
        for number in range(self._num_threads):
            threading.Thread(target=self._serve, name=f"fetch-{number}", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for _ in range(self._num_threads):
            self._tasks.put(None)

    def results(self, targets: Iterator[Target]) -> Iterator[Entry | None]:
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
                result: Entry | BaseException = self._work(target)
            except StoppedError:
                return
            except BaseException as error:
                result = error
            self._results.put(result)
