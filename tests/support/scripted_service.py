"""A server of scripted answers, and requests to it through the client."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fetching

from msdata.fetch.client import Client
from msdata.fetch.service import SERVICES, Service, changed

Answer = bytes | Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"


@contextlib.contextmanager
def scripted(*answers: Answer) -> Iterator[tuple[str, list[float]]]:
    """Serves these answers, one per connection, the last repeated; yields URL and request times."""
    with fetching.loopback_only(), socket.create_server(("127.0.0.1", 0)) as server:
        times_s: list[float] = []
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        if not connection.recv(65536):
                            continue
                        answer = answers[min(len(times_s), len(answers) - 1)]
                        times_s.append(time.monotonic())
                        if callable(answer):
                            answer(connection)
                        else:
                            connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", times_s
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                socket.create_connection(server.getsockname(), timeout=1).close()
            thread.join(5)


def service(url: str, **changes: Any) -> Service:
    return changed(SERVICES["ps1"], {"base_url": url, **fetching.QUICK, **changes})


def get(url: str, *, max_nbytes: int = 1000, check: Any = bytes, **changes: Any) -> bytes:
    client = Client(service(url, **changes), threading.Event())
    try:
        return bytes(client.get("name", {"ra": "1"}, max_nbytes, check))
    finally:
        client.close()
