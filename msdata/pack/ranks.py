"""MPI ranks as workers of a pack: rank 0 drives them, and has a worker process of its own.

Messages are polled for, so that no rank waits inside MPI: signals are handled, and a rank that
waits for storage does not hold up the others.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

from msdata.core.signals import exit_code_of
from msdata.errors import MsdataError
from msdata.pack.folder_lock import folder_lock, share
from msdata.pack.pool import Worker
from msdata.pack.settings import PackSettings
from msdata.pack.state import PackState
from msdata.pack.worker import serve
from msdata.sources.detect import detect_source

_TAG = 4711
_POLL_S = 0.01
_START, _ENDED = "start", "ended"


class _StopError(Exception):
    """Rank 0 has finished, or failed: all ranks end with its exit code, the one argument."""


class _Mailbox:
    """Sends and receives objects without waiting; for one thread."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._sending: list[Any] = []
        self._receiving: deque[Any] = deque()

    def send(self, rank: int, message: Any) -> None:
        self._sending = [request for request in self._sending if not request.test()[0]]
        letter = (self._world.Get_rank(), message)
        self._sending.append(self._world.isend(letter, dest=rank, tag=_TAG))

    def receive(self) -> tuple[int, Any] | None:
        """The next message with its sender; None if none has arrived completely."""
        while (found := self._world.improbe(tag=_TAG)) is not None:
            self._receiving.append(found.irecv())
        if self._receiving:
            is_here, letter = self._receiving[0].test()
            if is_here:
                self._receiving.popleft()
                sender, message = letter
                return sender, message
        return None

    def flush(self) -> None:
        """Waits until all messages are received."""
        for request in self._sending:
            request.wait()


class Ranks:
    """A context manager: the other ranks, as rank 0 sees them; implements `Transport`.

    At its end it tells them the exit code, unless an error is not the package's own.

    Args:
        world: mpi4py communicator.
    """

    def __init__(self, world: Any) -> None:
        self._mailbox = _Mailbox(world)
        self.workers = [
            Worker(send=partial(self._mailbox.send, rank)) for rank in range(1, world.Get_size())
        ]

    def start(self, lock_fd: int) -> None:
        """Starts the others, when planning is done; each takes the folder's lock too."""
        share(lock_fd)
        self._tell_all(_START)

    def messages(self, wait_s: float) -> Iterator[tuple[Worker, Any]]:
        """Yields what ranks have sent; does not wait."""
        while (letter := self._mailbox.receive()) is not None:
            yield self.workers[letter[0] - 1], letter[1]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Ends all other ranks, and waits until they have removed their unfinished shards."""
        if error is not None and not isinstance(error, MsdataError):
            return
        self._tell_all(_StopError(exit_code_of(error)))
        num_left = len(self.workers)
        while num_left:
            num_left -= sum(message == _ENDED for _, message in self.messages(0))
            time.sleep(_POLL_S)

    def _tell_all(self, message: Any) -> None:
        for rank in range(1, len(self.workers) + 1):
            self._mailbox.send(rank, message)


class _Link:
    """Rank 0, as another rank sees it; all but `send` is for the main thread."""

    def __init__(self, world: Any) -> None:
        self._mailbox = _Mailbox(world)
        # Not every MPI library may be called from two threads.
        self.send_queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._received: deque[Any] = deque()

    def check(self) -> None:
        """Sends and receives; raises `_StopError` if rank 0 says so."""
        while not self.send_queue.empty():
            self._mailbox.send(0, self.send_queue.get())
        while (letter := self._mailbox.receive()) is not None:
            if isinstance(letter[1], _StopError):
                raise letter[1]
            self._received.append(letter[1])

    def receive(self) -> Any:
        """Waits for a message."""
        while True:
            self.check()
            if self._received:
                return self._received.popleft()
            time.sleep(_POLL_S)

    def end(self) -> None:
        """Sends the last message."""
        self._mailbox.send(0, _ENDED)
        self._mailbox.flush()


def serve_rank(settings: PackSettings, world: Any) -> int:
    """Packs what rank 0 hands out; call it on every other rank.

    Args:
        settings: the settings of the pack, equal on every rank.
        world: mpi4py communicator.

    Returns:
        The exit code; the reason for one other than 0 is printed by rank 0.
    """
    link = _Link(world)
    try:
        try:
            link.receive()
            with folder_lock(PackState(settings.out).lock_path, is_shared=True):
                source = detect_source(settings.source, settings.fits, settings.arrays)
                serve(source, link.receive, link.send_queue.put, link.check)
        except MsdataError as error:
            link.send_queue.put(error)
        while True:
            link.receive()
    except _StopError as stop:
        link.end()
        return int(stop.args[0])
