"""Records of their own lengths in both tiers: packed, counted in bytes, kept between jobs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import caching
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.cache.arena import Arena, own_arenas
from msdata.cache.client import LOCAL, SSD, STORAGE, CacheClient
from msdata.cache.config import GIB, CacheConfig, CachedSplit, Owners, RecordStarts
from msdata.cache.slot_file import READY, SlotFile
from msdata.cache.slot_places import packed, payload_at, slots_at_owners, usable_slots
from msdata.cache.split import owners_by_capacity
from msdata.cache.status import describe
from msdata.core.checksum import crc32c
from msdata.topology import Topology

SIZES = np.array([11, 1, 20, 17, 9, 2])
NBYTES = np.random.default_rng(5).integers(1, 100_000, SIZES.sum())
RECORDS = [np.random.default_rng(n).integers(0, 256, k, np.uint8) for n, k in enumerate(NBYTES)]


def split_of(nbytes: Any, sizes: Any = SIZES, records: Any = RECORDS) -> CachedSplit:
    return CachedSplit(
        fingerprint="f" * 16,
        name="train",
        record_nbytes=np.asarray(nbytes),
        shard_sizes=np.asarray(sizes),
        checksums=np.array([crc32c(r) for r in records], np.uint32),
    )


SPLIT = split_of(NBYTES)
ALL = np.arange(len(NBYTES))


@contextmanager
def opened(config: CacheConfig, *, is_filled: bool = True) -> Iterator[CacheClient]:
    own = owners_by_capacity(SPLIT, Topology())
    client = CacheClient(config, SPLIT, 0, own, lambda sample: RECORDS[sample])
    try:
        if is_filled:
            client.start()
            client.filler.wait()
        yield client
    finally:
        client.close()


def capacities(tmp_path: Path, memory: float, ssd: float, job: str = "test") -> CacheConfig:
    shares = {"memory_gib": memory * SPLIT.nbytes / GIB, "ssd_gib": ssd * SPLIT.nbytes / GIB}
    return caching.config(tmp_path, ssd_dir=tmp_path / "ssd" if ssd else None, job=job, **shares)


def assert_records_are_whole(client: CacheClient) -> None:
    """Every cached record is byte for byte the one of its sample."""
    places = client.locate(ALL)
    assert (places.nbytes == NBYTES).all()
    memory = client.tiers[LOCAL].slots
    for i in np.flatnonzero(places.source == LOCAL).tolist():
        assert memory.record(int(places.slots[i])).tobytes() == RECORDS[i].tobytes()
        at = int(places.at[i])
        assert memory._bytes[at : at + NBYTES[i]].tobytes() == RECORDS[i].tobytes()
    for i in np.flatnonzero(places.source == SSD).tolist():
        slots = client.tiers[SSD].slots
        assert slots.read_record(int(places.slots[i])) == RECORDS[i].tobytes()
        assert slots.record_at(int(places.slots[i])) == places.at[i]


@pytest.mark.parametrize("memory", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("ssd", [0.0, 0.3, 1.0])
def test_tiers_hold_the_shards_that_fit_by_their_bytes(
    tmp_path: Path, memory: float, ssd: float
) -> None:
    with opened(capacities(tmp_path, memory, ssd)) as client:
        owner, tier = client.owners
        source = client.locate(ALL).source
        shards = np.repeat(np.arange(len(SIZES)), SIZES)
        assert (source == np.where(owner < 0, STORAGE, tier)[shards]).all()
        for code, share in ((LOCAL, memory), (SSD, ssd)):
            held = (owner >= 0) & (tier == code)
            held_nbytes = int(SPLIT.shard_nbytes[held].sum())
            assert held_nbytes <= share * SPLIT.nbytes
            if code in client.tiers:
                slots = client.tiers[code].slots
                assert slots.ready_nbytes == held_nbytes
                assert slots.num_ready == slots.num_slots == SIZES[held].sum()
        assert_records_are_whole(client)
        assert client.stats()["cache"]["filler"]["bytes"] == sum(
            t.slots.ready_nbytes for t in client.tiers.values()
        )


def test_the_filled_bytes_are_known_without_the_data(tmp_path: Path) -> None:
    config = capacities(tmp_path, 0.6, 0)
    with opened(config) as client:
        (path,) = own_arenas(config.shm_dir)
        status = describe(path, None)
        assert status is not None
        held = SPLIT.shard_nbytes[client.owners[0] == 0].sum()
        assert status["bytes"] == held > 0


@pytest.mark.parametrize("other", [(0.0, 1.1), (0.0, 0.5), (0.5, 0.25), (0.1, 0.7), (1.1, 0.2)])
def test_an_ssd_tier_of_other_capacities_keeps_what_both_jobs_want(
    tmp_path: Path, other: tuple[float, float]
) -> None:
    with opened(capacities(tmp_path, 0.25, 0.5, "first")) as client:
        first = client.owners[1] == SSD
    with opened(capacities(tmp_path, *other, "second"), is_filled=False) as client:
        second = client.owners[1] == SSD
        slots = client.tiers[SSD].slots
        assert slots.num_ready == SIZES[first & second].sum()
        assert slots.ready_nbytes == SPLIT.shard_nbytes[first & second].sum()
        assert_records_are_whole(client)
    with opened(capacities(tmp_path, *other, "third")) as client:
        slots = client.tiers[SSD].slots
        # What the second job does not want has given its space back, but for parts of pages.
        most_nbytes = slots.payload_at + slots.ready_nbytes + 2 * 4096 * len(SIZES)
        assert os.fstat(slots.fd).st_blocks * 512 <= most_nbytes
        assert slots.num_ready == slots.num_slots == SIZES[second].sum()
        assert_records_are_whole(client)


def test_a_record_of_another_length_is_refused_and_its_neighbors_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(capacities(tmp_path, 1.0, 0)) as client:
        tier = client.tiers[LOCAL]
        places = client.locate(ALL)
        tier.slots.set_state(int(places.slots[3]), 0)
        longer = np.concatenate([RECORDS[3], RECORDS[3]])
        assert not tier.keep(int(places.slots[3]), 3, [longer])
        assert tier.num_refused == 1
        assert tier.keep(int(places.slots[3]), 3, [RECORDS[3][:1], RECORDS[3][1:]])
        assert_records_are_whole(client)
    assert [r.levelno for r in caplog.records] == [logging.WARNING]


def test_an_arena_of_other_lengths_is_of_other_data(tmp_path: Path) -> None:
    config = capacities(tmp_path, 1.0, 0)
    other = replace(SPLIT, record_nbytes=NBYTES + (ALL == 5))
    with opened(config) as client, pytest.raises(OSError, match="is of other data"):
        SlotFile(client.tiers[LOCAL].slots.fd, other, is_mapped=True)


lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(lengths, st.data())
def test_a_file_keeps_the_first_records_that_end_within_its_capacity(
    nbytes: list[int], data: Any
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(nbytes)), max_size=6))
    sizes = np.diff([0, *sorted(cuts), len(nbytes)])
    split = split_of(nbytes, sizes, [np.zeros(k, np.uint8) for k in nbytes])
    held = np.array(data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))))
    most = data.draw(st.integers(0, sum(nbytes) + 5))
    preferred = np.array(data.draw(st.lists(st.booleans(), min_size=len(held), max_size=len(held))))
    left, wanted = most, [0] * len(sizes)
    for shard in sorted(np.flatnonzero(held), key=lambda s: (not preferred[s], s)):
        for sample in range(split.first_samples[shard], split.first_samples[shard] + sizes[shard]):
            left -= nbytes[sample]
            wanted[shard] += left >= 0
    assert usable_slots(split, held, most, preferred).tolist() == wanted
    if not preferred.any():
        assert usable_slots(split, held, most).tolist() == wanted


@given(lengths, st.integers(1, 4), st.data())
def test_other_nodes_compute_where_a_record_lies(
    nbytes: list[int], num_nodes: int, data: Any
) -> None:
    sizes = np.ones(len(nbytes), np.int64)
    split = split_of(nbytes, sizes, [np.zeros(k, np.uint8) for k in nbytes])
    drawn = st.lists(st.integers(-1, num_nodes - 1), min_size=len(sizes), max_size=len(sizes))
    owner = np.array(data.draw(drawn), np.int32)
    owners: Owners = owner, np.where(owner < 0, 2, 0).astype(np.int8)
    places = slots_at_owners(owners, split, num_nodes)
    for node in range(num_nodes):
        held = owner == node
        at = places.records_at[held]
        packed_at = packed(held, split.shard_nbytes)[held]
        payload = payload_at(len(sizes), int(held.sum()))
        assert (at == payload + packed_at).all()
    assert (places.records_at[owner < 0] == -1).all()


def test_a_constant_length_needs_no_table() -> None:
    many = np.broadcast_to(np.int64(596_000), (1 << 40,))
    starts = RecordStarts(many)
    assert starts.of(np.array([0, 7, 1 << 40])).tolist() == [0, 7 * 596_000, 596_000 << 40]
    assert starts._starts is None


def test_a_damaged_table_of_shards_is_refused(tmp_path: Path) -> None:
    config = capacities(tmp_path, 1.0, 0)
    arena = Arena(config, SPLIT, 0, owners_by_capacity(SPLIT, Topology()))
    assert not (arena.slots.entries["state"] == READY).any()
    content = arena.path.read_bytes()
    at = len(content) - arena.slots.nbytes
    start = content.rindex(SIZES[-1:].tobytes(), 0, at) - 16
    for field, value in ((0, 1 << 50), (0, -2), (8, -7), (8, 1 << 40), (16, 3), (16, -1)):
        altered = bytearray(content)
        altered[start + field : start + field + 8] = int(value).to_bytes(8, "little", signed=True)
        (tmp_path / "altered").write_bytes(altered)
        with (tmp_path / "altered").open("rb") as file, pytest.raises(OSError, match="the cache"):
            SlotFile(file.fileno(), SPLIT, is_mapped=True)
    arena.close()
