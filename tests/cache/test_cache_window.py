"""How a service reads other nodes' arenas where one of them does not let itself be read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from peer_records import NBYTES, RECORDS, cached_records

from msdata.cache.slot_places import slots_at_owners
from msdata.cache.transport import mpi_transport
from msdata.cache.transport.link import parts_of
from msdata.cache.transport.mpi_transport import WindowReader

OWNERS = np.arange(len(RECORDS), dtype=np.int32) // 10, np.zeros(len(RECORDS), np.int8)


class CutWindow:
    """Two nodes' records; what is begun while a node is cut off comes when it is not any more."""

    def __init__(self) -> None:
        self.cut: set[int] = set()
        self.num_begun = 0
        self._places = slots_at_owners(OWNERS, cached_records(), 2)

    def get(self, rank: int, target: NDArray[np.uint8], at: int) -> Any:
        self.num_begun += 1
        (sample,) = np.flatnonzero((self._places.records_at == at) & (OWNERS[0] == rank))
        target[:] = RECORDS[sample]
        return rank

    def is_here(self, begun: Sequence[Any]) -> bool:
        return not self.cut & {rank for rank in begun if rank is not None}

    def wait(self, begun: Sequence[Any], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not self.is_here(begun):
            if time.monotonic() > deadline_s:
                raise TimeoutError


def read(reader: WindowReader, samples: list[int]) -> list[bool]:
    rows = [np.zeros(NBYTES[s], np.uint8) for s in samples]
    nodes = OWNERS[0][samples].astype(np.int64)
    came = np.concatenate(list(reader.read(nodes, np.array(samples), rows))).tolist()
    assert all(
        (rows[i] == RECORDS[samples[i]]).all() for i, is_there in enumerate(came) if is_there
    )
    return came


def test_a_node_that_is_cut_off_costs_one_timeout_and_is_read_again_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mpi_transport, "_ANSWER_S", 0.05)
    window = CutWindow()
    reader = WindowReader(window, [0, 1], OWNERS, cached_records())
    reader._is_full[:] = b"\1" * len(RECORDS)
    assert read(reader, [1, 12, 3]) == [True, True, True]
    assert read(reader, [17, 11, 8, 18]) == [True] * 4
    window.cut = {1}
    assert read(reader, [12, 13]) == [False, False]
    assert reader.num_failures == 1
    begun = window.num_begun
    for _ in range(20):
        assert read(reader, [1, 12, 3]) == [True, False, True]
    # Of the node that is cut off nothing was asked, so nothing was waited for either.
    assert window.num_begun == begun + 40
    assert reader.num_failures == 1
    window.cut = set()
    assert read(reader, [1, 12, 3]) == [True, True, True]


def test_records_are_asked_for_in_parts_of_some_bytes_and_longer_ones_alone() -> None:
    assert parts_of([4, 4, 4, 20, 1, 1, 8, 8], 10) == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8)]
    assert parts_of([], 10) == []
    parts = parts_of([1] * 600, 1000)
    assert [stop - start for start, stop in parts] == [256, 256, 88]
