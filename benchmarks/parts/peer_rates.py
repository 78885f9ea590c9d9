"""How near records fetched from another node come to a bare socket.

python -m benchmarks peer_rates --realtime --samples 480 --repeats 25

Records of 580 KiB (float32), then of 88 KiB (coded), in shared memory, asked for 16 at a time by
one thread, received into the rows of a batch. The limit is the same over a bare TCP connection:
`sendall` from the shared memory, then `recv_into` into the rows. Every record that our fetcher
gives is held against its CRC32C, as the loader does it; of the others the first and last word are
looked at. Server and client are processes of this machine, so both share its cores: ratios of one
run mean something, rates do not. Other work on the machine disturbs processor time, told for each
end, less than rates.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import compare, part_parser, print_comparison, take_turns, write_part
from msdata.cache.transport.peer_links import PeerLinks
from msdata.cache.transport.zmq_transport import ZmqFetcher, ZmqServer, make_keys
from msdata.core.checksum import crc32c
from msdata.schema import MANTIS_SHRIMP

SAMPLE_NBYTES = sum(a.nbytes for a in MANTIS_SHRIMP.arrays)
CODED_NBYTES = 90_000
# Where in a record its arrays begin and end.
PIECES = tuple(pairwise(accumulate((a.nbytes for a in MANTIS_SHRIMP.arrays), initial=0)))
BATCH_SIZE = 128
REQUEST_SIZE = 16
NUM_RECORDS = 256
_REALTIME_PRIORITY = 10
BARE = "bare socket"
BARE_ZMQ, BARE_CURVE = "bare ZeroMQ PAIR", "bare ZeroMQ PAIR, CURVE"

# Takes the pipe on which the port is told; serves until its process is killed.
Serve = Callable[[Any], None]
# Receives records of some samples into rows.
Receive = Callable[[NDArray[np.int64], NDArray[np.uint8]], None]


def make_records(nbytes: int = SAMPLE_NBYTES) -> NDArray[np.uint8]:
    """Records in shared memory, uint8 (NUM_RECORDS, nbytes); the same in every process."""
    area = mmap.mmap(-1, NUM_RECORDS * nbytes)
    records = np.frombuffer(area, np.uint8).reshape(NUM_RECORDS, nbytes)
    one = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
    for number, record in enumerate(records):
        record[:] = one
        record[:8] = record[-8:] = np.array([number]).view(np.uint8)
    return records


def serve_bare(records: NDArray[np.uint8], pipe: Any) -> None:
    """Sends records over a bare connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            request = connection.recv(8 * REQUEST_SIZE, socket.MSG_WAITALL)
            for sample in np.frombuffer(request, np.int64).tolist():
                connection.sendall(records[sample])


def serve_bare_zmq(records: NDArray[np.uint8], keys: tuple[str, str] | None, pipe: Any) -> None:
    """Sends records over a pair of ZeroMQ's sockets, uncopied."""
    import zmq

    made = zmq.Context().socket(zmq.PAIR)
    if keys:
        made.curve_server = True
        made.curve_publickey, made.curve_secretkey = (k.encode() for k in keys)
    pipe.send(made.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        samples = np.frombuffer(made.recv(), np.int64).tolist()
        made.send_multipart([records[sample] for sample in samples], copy=False)


def serve_ours(
    records: NDArray[np.uint8], keys: tuple[str, str], is_encrypted: bool, pipe: Any
) -> None:
    """Serves records as a service does."""
    server = ZmqServer(
        lambda samples: [records[s] for s in samples.tolist()],
        keys,
        "127.0.0.1",
        is_encrypted=is_encrypted,
    )
    pipe.send(server.address)
    time.sleep(3600)


@contextmanager
def served(serve: Serve) -> Iterator[tuple[Any, int]]:
    """Another process that serves; gives where, and the process's id."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv(), process.pid or 0
    finally:
        process.kill()
        process.join()


def receive_bare(connection: socket.socket, samples: NDArray[np.int64], rows: Any) -> None:
    """See `serve_bare`."""
    connection.sendall(samples.tobytes())
    for row in rows:
        view = memoryview(row)
        while view:
            view = view[connection.recv_into(view, len(view), socket.MSG_WAITALL) :]


def receive_bare_zmq(made: Any, samples: NDArray[np.int64], rows: Any) -> None:
    """See `serve_bare_zmq`."""
    made.send(samples.tobytes())
    for row, frame in zip(rows, made.recv_multipart(copy=False), strict=True):
        row[:] = np.frombuffer(frame.buffer, np.uint8)


def receive_ours(
    fetcher: PeerLinks, checksums: list[int], samples: NDArray[np.int64], rows: Any, node: int = 0
) -> None:
    """As the loader does: rows in three pieces, each record against its checksum."""
    pieces = PIECES if rows.shape[1] == SAMPLE_NBYTES else ((0, rows.shape[1]),)
    parts = [[row[start:stop] for start, stop in pieces] for row in rows]
    wanted = [checksums[sample] for sample in samples.tolist()]
    came = fetcher.fetch(
        [node] * len(rows),
        samples.tolist(),
        parts,
        lambda i, crc: crc == wanted[i],
    )
    if not all(came):
        raise SystemExit("a record did not come, or was altered: no result")


def run(receive: Receive, num_samples: int, rows: NDArray[np.uint8]) -> float:
    """Receives so many records into uint8 (BATCH_SIZE, nbytes); samples per second."""
    order = np.random.default_rng(1).integers(0, NUM_RECORDS, num_samples)
    started_s = time.perf_counter()
    for start in range(0, num_samples, REQUEST_SIZE):
        samples = order[start : start + REQUEST_SIZE]
        at = start % BATCH_SIZE
        into = rows[at : at + len(samples)]
        receive(samples, into)
        if not (into[:, :8].copy().view(np.int64).ravel() == samples).all():
            raise SystemExit("other records came than were asked for: no result")
    return num_samples / (time.perf_counter() - started_s)


def open_contestants(
    stack: ExitStack, records: NDArray[np.uint8]
) -> dict[str, tuple[Receive, int]]:
    """All of them, each with a server process of its own, whose id is given."""
    import zmq

    keys = make_keys()
    checksums = [crc32c(record) for record in records]
    port, pid = stack.enter_context(served(partial(serve_bare, records)))
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    found: dict[str, tuple[Receive, int]] = {BARE: (partial(receive_bare, connection), pid)}
    context = stack.enter_context(zmq.Context())
    for name, their_keys in ((BARE_ZMQ, None), (BARE_CURVE, keys)):
        port, pid = stack.enter_context(served(partial(serve_bare_zmq, records, their_keys)))
        made = stack.enter_context(context.socket(zmq.PAIR))
        if their_keys:
            made.curve_serverkey = made.curve_publickey = keys[0].encode()
            made.curve_secretkey = keys[1].encode()
        made.connect(f"tcp://127.0.0.1:{port}")
        found[name] = partial(receive_bare_zmq, made), pid
    for name, is_encrypted in (("ZmqFetcher, plain", False), ("ZmqFetcher, CURVE", True)):
        serve = partial(serve_ours, records, keys, is_encrypted)
        address, pid = stack.enter_context(served(serve))
        fetcher = ZmqFetcher({0: address}.get, keys, timeout_s=20)
        stack.callback(fetcher.close)
        found[name] = partial(receive_ours, fetcher, checksums), pid
    return found


def processor_s(pid: int | str) -> float:
    """Processor time of a process so far, in seconds."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def measure(nbytes: int, num_samples: int, repeats: int) -> dict[str, Any]:
    """Rates of all, and processor seconds per GiB as (client, server), medians of turns."""
    rows = np.ones((BATCH_SIZE, nbytes), np.uint8)
    costs: dict[str, list[tuple[float, float]]] = {}

    def timed(name: str, receive: Receive, pid: int) -> float:
        before = processor_s("self"), processor_s(pid)
        rate = run(receive, num_samples, rows)
        gib = num_samples * nbytes / 2**30
        ends = processor_s("self") - before[0], processor_s(pid) - before[1]
        costs.setdefault(name, []).append((ends[0] / gib, ends[1] / gib))
        return rate

    with ExitStack() as stack:
        opened = open_contestants(stack, make_records(nbytes))
        contestants = {name: partial(timed, name, *ends) for name, ends in opened.items()}
        found = compare(take_turns(contestants, repeats), [BARE])
    print_comparison(f"records of {nbytes:,} bytes from another process", found, nbytes)
    print("  processor seconds per GiB, client and server:")
    for name, turns in costs.items():
        client, server = np.median(turns[1:], axis=0).round(2).tolist()
        found["contestants"][name]["processor_s_per_gib"] = [client, server]
        print(f"  {name:<34}{client:>10.2f}{server:>7.2f}")
    return found


def main(words: list[str]) -> int:
    """Runs the benchmark; writes `results/peer_rates.json`."""
    args = parse("peer_rates", "Records from another process beside a bare socket.", words)
    found = measure(SAMPLE_NBYTES, args.samples, args.repeats)
    coded = measure(CODED_NBYTES, args.samples, args.repeats)
    result = {"sample_nbytes": SAMPLE_NBYTES, "request_size": REQUEST_SIZE, "peer": found}
    result |= {"coded_nbytes": CODED_NBYTES, "coded_peer": coded}
    write_part("peer_rates", result, words, args.out)
    return 0


def parse(name: str, text: str, words: list[str]) -> argparse.Namespace:
    """The options of both benchmarks of records from elsewhere; obeys `--realtime`.

    Raises:
        SystemExit: the system does not allow it.
    """
    parser = part_parser(name, text)
    parser.add_argument("--samples", type=int, default=1600)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run all contestants alike before other processes of the machine (SCHED_FIFO; root)",
    )
    args = parser.parse_args(words)
    if args.realtime:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
        except PermissionError:
            raise SystemExit("--realtime needs root, or CAP_SYS_NICE: run it without") from None
    return args
