"""Sends whole Python objects between a pack and its worker processes.

`multiprocessing.connection` does the same, but importing it takes a tenth of a process's start.
"""

from __future__ import annotations

import os
import pickle
import select
from collections.abc import Sequence
from typing import Any

_HEADER_NBYTES = 8
# A pipe holds no more at a time, unless told to.
_READ_NBYTES = 1 << 20


class Pipe:
    """One end of a two-way pipe; one thread may send while another receives.

    Args:
        receive_fd: descriptor to read from; owned.
        send_fd: descriptor to write to; owned.
    """

    def __init__(self, receive_fd: int, send_fd: int) -> None:
        self.receive_fd = receive_fd
        self.send_fd = send_fd

    def send(self, message: object) -> None:
        """Sends an object.

        Raises:
            BrokenPipeError: the other process has closed its end.
        """
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        left = memoryview(len(content).to_bytes(_HEADER_NBYTES, "little") + content)
        while left:
            left = left[os.write(self.send_fd, left) :]

    def receive(self) -> Any:
        """Waits for the next object.

        Raises:
            EOFError: the other process has closed its end.
        """
        return pickle.loads(self._read(int.from_bytes(self._read(_HEADER_NBYTES), "little")))

    def _read(self, nbytes: int) -> bytearray:
        content = bytearray()
        while len(content) < nbytes:
            part = os.read(self.receive_fd, min(nbytes - len(content), _READ_NBYTES))
            if not part:
                raise EOFError
            content += part
        return content

    def close(self) -> None:
        """Closes this end; the other process's `receive` raises `EOFError`."""
        os.close(self.receive_fd)
        os.close(self.send_fd)


def open_pipe() -> tuple[Pipe, Pipe]:
    """Makes the two ends of a pipe.

    Raises:
        OSError: the process has too many open files.
    """
    first = os.pipe()
    try:
        second = os.pipe()
    except OSError:
        for fd in first:
            os.close(fd)
        raise
    return Pipe(first[0], second[1]), Pipe(second[0], first[1])


def wait_for(pipes: Sequence[Pipe], wait_s: float) -> list[Pipe]:
    """Returns the pipes with something to receive, or whose other end is closed.

    Args:
        pipes: the pipes to watch.
        wait_s: how long to wait for the first, in seconds.
    """
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe.receive_fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(1000 * wait_s)}
    return [pipe for pipe in pipes if pipe.receive_fd in ready]
