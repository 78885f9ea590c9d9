"""What every transport between nodes has to do, whatever it is made of; and the job's keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdata.cache.rendezvous import address_of, announce, job_keys, withdraw
from msdata.cache.transport import Fetcher, Lookup, Server
from msdata.cache.zmq_transport import ZmqFetcher, ZmqServer, make_keys
from msdata.errors import StorageError

RECORDS = np.random.default_rng(1).integers(0, 256, (20, 5000), dtype=np.uint8)
RECORDS.setflags(write=False)


def fetch(fetcher: Fetcher, node: int, samples: list[int]) -> list[bytes | None]:
    """Records of one node as bytes; None for those that did not come."""
    rows = np.zeros((len(samples), RECORDS.shape[1]), np.uint8)
    parts = [[row[:2000], row[2000:2001], row[2001:]] for row in rows]
    came = fetcher.fetch([node] * len(samples), samples, parts)
    return [row.tobytes() if is_there else None for row, is_there in zip(rows, came, strict=True)]


def even_records(sample: int) -> Any | None:
    """A node that has every other sample."""
    return RECORDS[sample] if sample % 2 == 0 else None


class ZmqSuite:
    """Makes servers and fetchers of the ZeroMQ transport."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.keys = make_keys()
        self.addresses: dict[int, str] = {}

    def serve(self, node: int, lookup: Lookup = even_records) -> Server:
        server = ZmqServer(lookup, self.keys, "127.0.0.1")
        self.addresses[node] = server.address
        self._stack.callback(server.close)
        return server

    def fetcher(
        self, keys: tuple[str, str] | None = None, *, timeout_s: float = 10.0, pause_s: float = 60.0
    ) -> Fetcher:
        keys = keys or self.keys
        made = ZmqFetcher(self.addresses.get, keys, timeout_s=timeout_s, pause_s=pause_s)
        self._stack.callback(made.close)
        return made


@pytest.fixture(params=[ZmqSuite])
def suite(request: Any) -> Iterator[Any]:
    with ExitStack() as stack:
        yield request.param(stack)


def expected(samples: list[int]) -> list[bytes | None]:
    return [RECORDS[s].tobytes() if s % 2 == 0 else None for s in samples]


def test_records_come_in_the_order_asked_for_and_missing_ones_as_none(suite: Any) -> None:
    suite.serve(3)
    fetcher = suite.fetcher()
    for samples in ([4, 1, 0, 18, 0], [7], [2], []):
        assert fetch(fetcher, 3, samples) == expected(samples)


def test_several_nodes_are_told_apart(suite: Any) -> None:
    suite.serve(0)
    suite.serve(1, lambda sample: RECORDS[19 - sample])
    fetcher = suite.fetcher()
    assert fetch(fetcher, 0, [2]) == [RECORDS[2].tobytes()]
    assert fetch(fetcher, 1, [2]) == [RECORDS[17].tobytes()]


def test_one_request_goes_to_all_nodes_that_are_named(suite: Any) -> None:
    suite.serve(0)
    suite.serve(1, lambda sample: RECORDS[19 - sample])
    rows = np.zeros((5, 5000), np.uint8)
    came = suite.fetcher().fetch([1, 0, 7, 1, 0], [2, 4, 6, 3, 5], [[row] for row in rows])
    assert came == [True, True, False, True, False]
    for row, sample in ((0, 17), (1, 4), (3, 16)):
        assert rows[row].tobytes() == RECORDS[sample].tobytes()


def test_a_record_of_another_size_is_not_taken_and_the_next_one_is(suite: Any) -> None:
    suite.serve(0, lambda sample: RECORDS[sample][: 4000 if sample == 4 else 5000])
    fetcher = suite.fetcher()
    found = fetch(fetcher, 0, [2, 4, 6])
    assert found == [RECORDS[2].tobytes(), None, RECORDS[6].tobytes()]


def test_threads_share_a_fetcher(suite: Any) -> None:
    suite.serve(0)
    fetcher = suite.fetcher()
    faults: list[Any] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            samples = random.integers(0, 20, 7).tolist()
            if fetch(fetcher, 0, samples) != expected(samples):
                faults.append(samples)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_node_that_is_not_there_costs_no_time(suite: Any) -> None:
    started_s = time.monotonic()
    assert fetch(suite.fetcher(), 5, [1, 2]) == [None, None]
    assert time.monotonic() - started_s < 5


def test_a_node_that_died_costs_one_timeout_and_is_left_alone(suite: Any) -> None:
    server = suite.serve(0)
    fetcher = suite.fetcher(timeout_s=3.0)
    assert fetch(fetcher, 0, [0])[0] is not None
    server.close()
    started_s = time.monotonic()
    for _ in range(20):
        assert fetch(fetcher, 0, [0, 2]) == [None, None]
    assert 3 <= time.monotonic() - started_s < 6


def test_a_node_that_comes_back_is_used_again(suite: Any) -> None:
    fetcher = suite.fetcher(pause_s=0.1)
    assert fetch(fetcher, 0, [0]) == [None]
    suite.serve(0)
    time.sleep(0.2)
    assert fetch(fetcher, 0, [0]) == [RECORDS[0].tobytes()]


def test_a_node_that_hangs_costs_one_timeout_and_its_late_answer_is_not_taken(
    suite: Any,
) -> None:
    is_open = threading.Event()

    def slow(sample: int) -> Any:
        is_open.wait(20)
        return RECORDS[sample]

    suite.serve(0, slow)
    fetcher = suite.fetcher(timeout_s=1.0, pause_s=0.1)
    assert fetch(fetcher, 0, [1]) == [None]
    is_open.set()
    time.sleep(0.2)
    assert fetch(fetcher, 0, [2]) == [RECORDS[2].tobytes()]


def test_a_stranger_without_the_jobs_key_gets_nothing(suite: Any) -> None:
    suite.serve(0)
    stranger, friend = suite.fetcher(make_keys(), timeout_s=0.5), suite.fetcher()
    assert fetch(stranger, 0, [0]) == [None]
    assert fetch(friend, 0, [0])[0] is not None


def test_one_who_knows_the_public_key_only_gets_nothing(suite: Any) -> None:
    suite.serve(0)
    _, own_secret = make_keys()
    # Asks with a key of its own at a server whose public key it has overheard.
    thief = suite.fetcher((suite.keys[0], own_secret), timeout_s=0.5)
    assert fetch(thief, 0, [0]) == [None]


def test_closing_twice_or_with_requests_under_way_is_no_error(suite: Any) -> None:
    suite.serve(0, lambda sample: time.sleep(0.2))
    fetcher = suite.fetcher()
    thread = threading.Thread(target=fetch, args=(fetcher, 0, [1]))
    thread.start()
    time.sleep(0.05)
    fetcher.close()
    thread.join(20)
    assert not thread.is_alive()
    assert fetch(fetcher, 0, [0]) == [None]


# The job's folder.


def test_all_nodes_of_a_job_have_the_key_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    made: list[tuple[str, str]] = []

    def make() -> tuple[str, str]:
        made.append((f"p{len(made)}", f"s{len(made)}"))
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
        (lambda path: path.chmod(0o644), "may be read by others"),
        (lambda path: path.write_text("{"), "is no key"),
    ],
)
def test_a_key_that_is_no_secret_or_no_key_is_refused(
    tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    job_keys(tmp_path, make_keys)
    spoil(tmp_path / "key.json")
    with pytest.raises(StorageError, match=says):
        job_keys(tmp_path, make_keys)


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
