"""A rank's connections to other nodes: made on demand, shared by threads, dropped after a timeout.

A node that fails costs one timeout, however long it is down: a separate thread reconnects, and
requests resume only once that thread has a connection. If node after node times out, this node has
lost its own link, and requests to all nodes pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from msdata.cache.tier import LOG

# Position of a filled row in the request, CRC32C of its content -> whether the content is right.
IsSound = Callable[[int, int], bool]

# A record takes milliseconds; a node that takes longer is worse than storage.
TIMEOUT_S = 2.0
# Pause after a node's failure. Each consecutive timeout doubles it, up to `_MOST_PAUSES` times.
PAUSE_S = 5.0
_MOST_PAUSES = 64
# After one timeout, nodes that have not answered since get this share of the time limit.
_SUSPECT_SHARE = 0.15
# After so many timeouts in a row, all nodes count as down.
_MOST_SILENT = 3
# Connections per node, and so the number of threads that can use it at once.
_MOST_LINKS = 4
# Unused connections to all nodes together: a large job has a thousand other nodes.
_MOST_FREE = 256
_STARTING_S = 60.0


class Link(Protocol):
    """A connection to one node, used by one thread at a time; `OSError` means that it is lost."""

    def ask(self, samples: Sequence[Any]) -> None:
        """Sends a request without waiting for the answer."""

    def take(
        self, rows: Sequence[Sequence[Any]], timeout_s: float, is_sound: IsSound
    ) -> list[bool]:
        """Receives the answer into rows; see `PeerLinks.fetch`."""

    def interrupt(self) -> None:
        """Makes the thread that waits for the answer get an `OSError` soon."""

    def close(self) -> None:
        """Closes the connection; called by the thread that uses it."""


# Node number and time limit in seconds -> a connection; raises `OSError` if there is none.
Connect = Callable[[int, float], Link]


@dataclass
class _Node:
    """The state of a node; guarded by the lock of `PeerLinks`."""

    free: list[Link] = field(default_factory=list)
    num_links: int = 0
    is_down: bool = False
    is_awaited: bool = False
    num_pauses: int = 0
    paused_until_s: float = 0.0


class PeerLinks:
    """Gets records of other nodes within a time limit, or not, over connections of any kind.

    It raises nothing for a node that is gone, slow or wrong: a record that does not come is read
    from storage. All threads of a rank use it at once.

    Args:
        connect: makes a connection.
        timeout_s: time limit of a node for a record.
        pause_s: pause after a node's failure; timeouts in a row double it.
    """

    # What a message calls a node, and says of its samples.
    _name = "node {}"
    _loss = (
        "its samples come from storage until it does, as do those of any other node that fails "
        "from now on"
    )

    def __init__(
        self, connect: Connect, *, timeout_s: float = TIMEOUT_S, pause_s: float = PAUSE_S
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._changed = threading.Condition()
        self._nodes: dict[int, _Node] = {}
        self._used: set[Link] = set()
        # Number of threads that connect, ask or wait.
        self._num_busy = 0
        self._num_free = 0
        self._num_silent = 0
        self._num_failures = 0
        self._has_warned = False
        self._made_s = time.monotonic()
        self._is_closed = False

    def fetch(
        self,
        nodes: Sequence[int],
        samples: Sequence[Any],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> list[bool]:
        """Fetches records straight into their rows, from all nodes at once.

        Args:
            nodes: the node that keeps each sample.
            samples: numbers within the split.
            rows: for each sample the memory that its record fills, as consecutive pieces, each a
                writable uint8 array.
            is_sound: called for every row as soon as it is full, while others are in flight.

        Returns:
            Whether each record came and is right; the content of other rows is undefined. Requests
            to a node that did not answer in time pause for some seconds.
        """
        came = [False] * len(samples)
        # One deadline for all nodes, connecting included.
        deadline_s = time.monotonic() + self._timeout_s
        requests = []
        for node in sorted(set(nodes)):
            places = [i for i, n in enumerate(nodes) if n == node]
            link = self._borrow(node, deadline_s)
            if link is None:
                continue
            try:
                is_all = len(places) == len(samples)
                link.ask(samples if is_all else [samples[i] for i in places])
                requests.append((node, link, places))
            except OSError as error:
                self._fail(node, error, link)
        for node, link, places in requests:
            # Time spent waiting for one node counted for the others too.
            left_s = max(deadline_s - time.monotonic(), _SUSPECT_SHARE * self._timeout_s)
            timeout_s = min(left_s, self._patience_s())
            try:
                found = _take(link, places, rows, timeout_s, is_sound)
            except OSError as error:
                self._fail(node, error, link)
                continue
            self._give_back(node, link)
            for i, is_there in zip(places, found, strict=True):
                came[i] = is_there
        return came

    def _patience_s(self) -> float:
        return self._timeout_s * (_SUSPECT_SHARE if self._num_silent else 1.0)

    def _borrow(self, node: int, deadline_s: float) -> Link | None:
        """A connection to a node; None while requests to the node pause."""
        with self._changed:
            known = self._nodes.get(node) or self._nodes.setdefault(node, _Node())
            while not known.free and known.num_links >= _MOST_LINKS and not known.is_down:
                if not self._changed.wait(deadline_s - time.monotonic()):
                    return None
            if self._is_closed:
                return None
            if known.is_down or self._num_silent >= _MOST_SILENT:
                self._await(node, known)
                return None
            self._num_busy += 1
            if known.free:
                self._num_free -= 1
                self._used.add(link := known.free.pop())
                return link
            known.num_links += 1
        left_s = min(deadline_s - time.monotonic(), self._patience_s())
        try:
            if left_s <= 0:
                raise TimeoutError("other nodes have used up the time limit")
            link = self._connect(node, left_s)
        except OSError as error:
            self._fail(node, error, None)
            return None
        with self._changed:
            self._used.add(link)
        return link

    def _give_back(self, node: int, link: Link) -> None:
        with self._changed:
            known = self._nodes[node]
            known.num_pauses = 0
            self._num_silent = 0
            self._num_busy -= 1
            self._used.discard(link)
            is_kept = self._num_free < _MOST_FREE and not (self._is_closed or known.is_down)
            if is_kept:
                known.free.append(link)
                self._num_free += 1
            else:
                known.num_links -= 1
            self._changed.notify_all()
        if not is_kept:
            link.close()

    def _fail(self, node: int, error: OSError, link: Link | None) -> None:
        """Pauses requests to a node."""
        unused = []
        if link is not None:
            link.close()
        with self._changed:
            self._num_busy -= 1
            if link is not None:
                self._used.discard(link)
            known = self._nodes[node]
            known.num_links -= 1
            # A node that refuses at once is up without its service, and costs no time.
            self._num_silent += isinstance(error, TimeoutError)
            if not (self._is_closed or known.is_down):
                self._num_failures += 1
                known.is_down = True
                self._pause(known, error)
                unused, known.free = known.free, []
                known.num_links -= len(unused)
                self._num_free -= len(unused)
                self._say(node, error)
            self._changed.notify_all()
        for other in unused:
            other.close()

    def _say(self, node: int, error: OSError) -> None:
        # Services may start after ranks: one that is not up yet deserves no warning.
        is_early = time.monotonic() < self._made_s + _STARTING_S
        is_minor = self._has_warned or (is_early and isinstance(error, FileNotFoundError))
        (LOG.info if is_minor else LOG.warning)(
            "%s does not answer (%s): %s", self._name.format(node), error, self._loss
        )
        self._has_warned |= not is_minor

    def _pause(self, known: _Node, error: OSError) -> None:
        # A node that is up without its service is found out at once, as soon as that is back.
        if isinstance(error, TimeoutError):
            known.num_pauses = min(_MOST_PAUSES, 2 * known.num_pauses or 1)
        known.paused_until_s = time.monotonic() + max(1, known.num_pauses) * self._pause_s

    def _await(self, node: int, known: _Node) -> None:
        """Starts to reconnect to a node, once its pause is over."""
        if not known.is_awaited and time.monotonic() >= known.paused_until_s:
            known.is_awaited = True
            self._num_busy += 1
            threading.Thread(
                target=self._reconnect, args=(node,), name="msdata-cache-reconnect", daemon=True
            ).start()

    def _reconnect(self, node: int) -> None:
        try:
            link: Link | None = self._connect(node, self._timeout_s)
        except OSError as error:
            link, reason = None, error
        with self._changed:
            known = self._nodes[node]
            known.is_awaited = False
            if link is None:
                self._pause(known, reason)
                self._say(node, reason)
            elif not self._is_closed:
                known.is_down = False
                known.free.append(link)
                known.num_links += 1
                self._num_free += 1
                self._num_silent = 0
                LOG.info("%s answers again", self._name.format(node))
                link = None
        if link is not None:
            link.close()
        with self._changed:
            self._num_busy -= 1
            self._changed.notify_all()

    def stats(self) -> dict[str, int]:
        """`failures`: number of unanswered requests; `down`: number of nodes paused now."""
        with self._changed:
            down = sum(known.is_down for known in self._nodes.values())
            return {"failures": self._num_failures, "down": down}

    def close(self) -> bool:
        """Closes the connections to all nodes; requests in flight get nothing.

        Returns:
            Whether every thread has stopped using them.
        """
        with self._changed:
            self._is_closed = True
            free = [link for known in self._nodes.values() for link in known.free]
            for known in self._nodes.values():
                known.free = []
            for link in self._used:
                link.interrupt()
            self._changed.notify_all()
            is_over = self._changed.wait_for(lambda: not self._num_busy, 2 * self._timeout_s)
        for link in free:
            link.close()
        return is_over


def _take(
    link: Link,
    places: Sequence[int],
    rows: Sequence[Sequence[Any]],
    timeout_s: float,
    is_sound: IsSound,
) -> list[bool]:
    """Receives the rows at some places of the caller's lists."""
    if len(places) == len(rows):
        return link.take(rows, timeout_s, is_sound)
    mine = [rows[i] for i in places]
    return link.take(mine, timeout_s, lambda i, crc: is_sound(places[i], crc))
