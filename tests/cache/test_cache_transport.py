"""What every transport between nodes has to do, whatever it is made of; and the job's keys."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
from peer_records import NBYTES, RECORDS, cached_records

from msdata.cache.arena import arena_path
from msdata.cache.config import CacheConfig
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cache.transport.link import LinkFetcher, link_address
from msdata.cache.transport.peer_links import PeerLinks
from msdata.cache.transport.rendezvous import address_of, announce, job_keys, withdraw
from msdata.cache.transport.zmq_transport import Lookup, ZmqFetcher, ZmqServer, make_keys
from msdata.core.checksum import crc32c
from msdata.errors import StorageError

# What two nodes have of what they own, the samples up to 9 and those from 10.
KEPT = {0: range(0, 10, 2), 1: range(10, 20)}


def fetch(fetcher: PeerLinks, node: int, samples: list[int]) -> list[bytes | None]:
    """Records of one node as bytes; None for those that did not come."""
    rows = [np.zeros(NBYTES[s % len(NBYTES)], np.uint8) for s in samples]
    parts = [[row[:2000], row[2000:2001], row[2001:]] for row in rows]
    came = fetcher.fetch([node] * len(samples), samples, parts, lambda i, crc: True)
    return [row.tobytes() if is_there else None for row, is_there in zip(rows, came, strict=True)]


class ZmqSuite:
    """Servers and fetchers of the ZeroMQ transport, all in this process."""

    is_encrypted = True

    def __init__(self, stack: ExitStack, tmp_path: Path) -> None:
        self._stack = stack
        self.keys = make_keys()
        self.addresses: dict[int, str] = {}
        self._servers: dict[int, ZmqServer] = {}
        self._may_answer = threading.Event()
        self._may_answer.set()

    def serve(self) -> None:
        for node in KEPT:
            self.serve_with(node, lambda samples, node=node: self._records(node, samples))

    def serve_with(self, node: int, lookup: Lookup) -> None:
        server = ZmqServer(lookup, self.keys, "127.0.0.1", is_encrypted=self.is_encrypted)
        self.addresses[node] = server.address
        self._servers[node] = server
        self._stack.callback(server.close)

    def _records(self, node: int, samples: Any) -> list[Any | None]:
        self._may_answer.wait(20)
        return [RECORDS[s] if s in KEPT[node] else None for s in samples.tolist()]

    def kill(self, node: int) -> None:
        self._servers[node].close()

    def hang(self, node: int) -> None:
        self._may_answer.clear()

    def go_on(self, node: int) -> None:
        self._may_answer.set()

    def fetcher(
        self, keys: tuple[str, str] | None = None, *, timeout_s: float = 10.0, pause_s: float = 60.0
    ) -> PeerLinks:
        keys = keys or self.keys
        made = ZmqFetcher(self.addresses.get, keys, timeout_s=timeout_s, pause_s=pause_s)
        self._stack.callback(made.close)
        return made


class PlainZmqSuite(ZmqSuite):
    """The same without encryption."""

    is_encrypted = False


class MpiSuite:
    """Three services under mpiexec; the third keeps nothing and is the one that is asked."""

    _ASKED = 2

    def __init__(self, stack: ExitStack, tmp_path: Path) -> None:
        self._stack = stack
        self._shm_dir = tmp_path
        name = CacheConfig(job="contract", shm_dir=tmp_path, node=f"served.n{self._ASKED}")
        self._address = link_address(arena_path(name, cached_records(), self._ASKED))

    def serve(self) -> None:
        order = {
            "owners": [sample // 10 for sample in range(len(RECORDS))],
            "kept": {sample: node for node, samples in KEPT.items() for sample in samples},
            "shm_dir": str(self._shm_dir),
        }
        program = Path(__file__).parents[1].joinpath("support", "peer_service.py")
        command = [packing.mpiexec(), "-n", "3", sys.executable, program, json.dumps(order)]
        process = packing.start([str(word) for word in command])
        self._stack.callback(self._end, process)
        assert packing.wait_for(lambda: len(list(self._shm_dir.glob("ready-?"))) == 3, process)

    def _end(self, process: Any) -> None:
        for node in range(3):
            packing.kill(self._pid_of(node))
        process.communicate(timeout=packing.TIMEOUT_S)
        remove_dead_shared_memory()

    def kill(self, node: int) -> None:
        os.kill(self._pid_of(node), signal.SIGKILL)

    def hang(self, node: int) -> None:
        os.kill(self._pid_of(self._ASKED), signal.SIGSTOP)

    def go_on(self, node: int) -> None:
        os.kill(self._pid_of(self._ASKED), signal.SIGCONT)

    def _pid_of(self, node: int) -> int:
        return int((self._shm_dir / f"ready-{node}").read_text())

    def fetcher(self, *, timeout_s: float = 10.0, pause_s: float = 60.0) -> PeerLinks:
        nbytes = int(NBYTES.max())
        made = LinkFetcher(self._address, nbytes, timeout_s=timeout_s, pause_s=pause_s)
        self._stack.callback(made.close)
        return made


MPI = pytest.param(
    MpiSuite,
    marks=[
        pytest.mark.mpi,
        pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py"),
    ],
)


@pytest.fixture(params=[ZmqSuite, PlainZmqSuite, MPI])
def suite(request: Any, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield request.param(stack, tmp_path)


@pytest.fixture
def zmq_suite(tmp_path: Path) -> Iterator[ZmqSuite]:
    with ExitStack() as stack:
        yield ZmqSuite(stack, tmp_path)


def expected(node: int, samples: list[int]) -> list[bytes | None]:
    return [RECORDS[s].tobytes() if s in KEPT[node] else None for s in samples]


def test_records_come_from_their_nodes_in_the_order_asked_for_and_missing_ones_do_not(
    suite: Any,
) -> None:
    suite.serve()
    fetcher = suite.fetcher()
    for samples in ([4, 1, 0, 8, 0], [7], [2], [], [12], [8]):
        assert fetch(fetcher, 0, samples) == expected(0, samples)
    assert fetch(fetcher, 1, [12, 11, 17, 4, 19]) == expected(1, [12, 11, 17, 4, 19])
    rows = np.zeros((6, 5000), np.uint8)
    nodes, samples = [1, 0, 7, 1, 0, 1], [12, 4, 6, 13, 5, 99]
    came = fetcher.fetch(nodes, samples, [[row] for row in rows], lambda i, crc: True)
    assert came == [True, True, False, True, False, False]
    for row in (0, 1, 3):
        assert rows[row].tobytes() == RECORDS[samples[row]].tobytes()


def test_threads_share_a_fetcher(suite: Any) -> None:
    suite.serve()
    fetcher = suite.fetcher()
    faults: list[Any] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for node in [0, 1] * 25:
            samples = random.integers(0, 20, 7).tolist()
            if fetch(fetcher, node, samples) != expected(node, samples):
                faults.append(samples)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_node_that_is_not_there_costs_no_time(suite: Any) -> None:
    started_s = time.monotonic()
    assert fetch(suite.fetcher(), 5, [1, 2]) == [None, None]
    assert time.monotonic() - started_s < 5


def test_a_node_that_died_costs_one_timeout_at_most_and_is_left_alone(suite: Any) -> None:
    suite.serve()
    fetcher = suite.fetcher(timeout_s=3.0)
    assert fetch(fetcher, 0, [0])[0] is not None
    suite.kill(0)
    started_s = time.monotonic()
    packing.wait_for(lambda: fetch(fetcher, 0, [0, 2]) == [None, None])
    for _ in range(20):
        assert fetch(fetcher, 0, [0, 2]) == [None, None]
    # A timeout for each of them would be a minute.
    assert time.monotonic() - started_s < 30
    assert fetcher.stats()["failures"] == fetcher.stats()["down"] <= 1


def test_a_row_that_is_found_altered_did_not_come(suite: Any) -> None:
    suite.serve()
    rows = np.zeros((3, 5000), np.uint8)
    full = []

    def is_sound(i: int, crc: int) -> bool:
        assert crc == crc32c(rows[i])
        full.append(rows[i].tobytes())
        return i != 1

    came = suite.fetcher().fetch([0] * 3, [0, 2, 4], [[row] for row in rows], is_sound)
    assert came == [True, False, True]
    assert full == [RECORDS[s].tobytes() for s in (0, 2, 4)]


def test_a_node_that_comes_back_is_used_again(suite: Any) -> None:
    fetcher = suite.fetcher(pause_s=0.1)
    assert fetch(fetcher, 0, [0]) == [None]
    suite.serve()
    assert packing.wait_for(lambda: fetch(fetcher, 0, [0]) == [RECORDS[0].tobytes()])


def test_a_node_that_hangs_costs_one_timeout_and_its_late_answer_is_not_taken(
    suite: Any,
) -> None:
    suite.serve()
    fetcher = suite.fetcher(timeout_s=1.0, pause_s=0.1)
    suite.hang(0)
    assert fetch(fetcher, 0, [4]) == [None]
    suite.go_on(0)
    deadline_s = time.monotonic() + packing.TIMEOUT_S
    # Never the late answer to the first request.
    while (found := fetch(fetcher, 0, [2])) == [None]:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert found == [RECORDS[2].tobytes()]


def test_closing_twice_or_with_requests_under_way_is_no_error(suite: Any) -> None:
    suite.serve()
    fetcher = suite.fetcher()
    suite.hang(0)
    thread = threading.Thread(target=fetch, args=(fetcher, 0, [4]))
    thread.start()
    time.sleep(0.05)
    threading.Timer(0.2, suite.go_on, [0]).start()
    fetcher.close()
    thread.join(20)
    assert not thread.is_alive()
    assert fetch(fetcher, 0, [0]) == [None]


# ZeroMQ alone: what comes over a network from anybody.


def test_a_record_of_another_size_is_not_taken_and_the_next_one_is(zmq_suite: ZmqSuite) -> None:
    zmq_suite.serve_with(0, lambda all: [RECORDS[s][: 4000 if s == 4 else 5000] for s in all])
    found = fetch(zmq_suite.fetcher(), 0, [2, 4, 6])
    assert found == [RECORDS[2].tobytes(), None, RECORDS[6].tobytes()]


def test_a_stranger_without_the_jobs_key_gets_nothing(zmq_suite: ZmqSuite) -> None:
    zmq_suite.serve()
    stranger, friend = zmq_suite.fetcher(make_keys(), timeout_s=0.5), zmq_suite.fetcher()
    assert fetch(stranger, 0, [0]) == [None]
    assert fetch(friend, 0, [0])[0] is not None


def test_one_who_knows_the_public_key_only_gets_nothing(zmq_suite: ZmqSuite) -> None:
    zmq_suite.serve()
    _, own_secret = make_keys()
    # Asks with a key of its own at a server whose public key it has overheard.
    thief = zmq_suite.fetcher((zmq_suite.keys[0], own_secret), timeout_s=0.5)
    assert fetch(thief, 0, [0]) == [None]


# The job's folder.


def test_all_nodes_of_a_job_have_the_key_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    made: list[tuple[str, str]] = []

    def make() -> tuple[str, str]:
        made.append((f"p{len(made)}".ljust(40, "."), f"s{len(made)}".ljust(40, ".")))
        return made[-1]

    found: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(job_keys(folder, make))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert (folder / "key.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in folder.iterdir()] == ["key.json"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.chmod(0o644), "others may open it"),
        (lambda path: path.write_text("{"), "is not a key file"),
        (lambda path: path.write_text('["a", "b"]'), "is not a key file"),
        (lambda path: path.write_text("[" * 4000), "is not a key file"),
        (lambda path: path.write_text("[" * 5000), "more than 4,096 bytes"),
    ],
)
def test_a_key_that_is_no_secret_or_no_key_is_refused(
    tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    job_keys(tmp_path, make_keys)
    spoil(tmp_path / "key.json")
    with pytest.raises(StorageError, match=says):
        job_keys(tmp_path, make_keys)


def test_services_that_announce_a_node_at_the_same_time_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    faults: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(60):
                announce(tmp_path, "data", 0, f"tcp://host:{number}")
        except StorageError as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert address_of(tmp_path, "data", 0) in {f"tcp://host:{number}" for number in range(4)}
    assert len(list(tmp_path.iterdir())) == 1


def test_an_announcement_is_found_and_taken_back_by_its_maker_only(tmp_path: Path) -> None:
    assert address_of(tmp_path, "data", 0) is None
    announce(tmp_path, "data", 0, "tcp://a:1")
    announce(tmp_path, "data", 1, "tcp://b:1")
    assert address_of(tmp_path, "data", 0) == "tcp://a:1"
    withdraw(tmp_path, "data", 0, "tcp://other:1")
    assert address_of(tmp_path, "data", 0) == "tcp://a:1"
    withdraw(tmp_path, "data", 0, "tcp://a:1")
    assert address_of(tmp_path, "data", 0) is None
    assert address_of(tmp_path, "data", 1) == "tcp://b:1"
