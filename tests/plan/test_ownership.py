"""Owners of shards respect capacities and stay put when nodes come and go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from msdata.errors import UsageError
from msdata.plan.ownership import (
    MEMORY,
    SSD,
    STORAGE,
    Nodes,
    Ownership,
    equal_nodes,
    level_room,
    own_shards,
)


@st.composite
def clusters(draw):
    num_nodes = draw(st.integers(1, 12))
    room = st.lists(st.integers(0, 400), min_size=num_nodes, max_size=num_nodes)
    keys = draw(
        st.lists(st.integers(0, 2**64 - 1), min_size=num_nodes, max_size=num_nodes, unique=True)
    )
    return Nodes(
        memory_bytes=np.array(draw(room)),
        ssd_bytes=np.array(draw(room)),
        keys=np.array(keys, dtype=np.uint64),
    )


shard_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=60).map(np.array)


def owner_keys(ownership):
    """The key of each shard's owner, None for none: comparable between clusters."""
    keys = [*ownership.node_keys.tolist(), None]
    return [keys[n] for n in ownership.owner_of_shard]


@given(sizes=shard_sizes, nodes=clusters())
def test_no_tier_of_any_node_holds_a_byte_more_than_its_capacity(sizes, nodes):
    owned = own_shards(sizes, nodes)
    assert (owned.held(sizes, MEMORY) <= nodes.memory_bytes).all()
    assert (owned.held(sizes, SSD) <= nodes.ssd_bytes).all()


@settings(max_examples=400)
@given(sizes=shard_sizes, nodes=clusters())
@example(
    sizes=np.array([1, 2]),
    nodes=Nodes(
        memory_bytes=np.zeros(5, np.int64),
        ssd_bytes=np.array([0, 0, 1, 1, 3]),
        keys=np.arange(5, dtype=np.uint64),
    ),
)
def test_a_shard_is_left_to_storage_only_if_no_tier_has_room_for_it(sizes, nodes):
    owned = own_shards(sizes, nodes)
    left = sizes[owned.tier_of_shard == STORAGE]
    for tier, capacity in ((MEMORY, nodes.memory_bytes), (SSD, nodes.ssd_bytes)):
        gap = (capacity - owned.held(sizes, tier)).max()
        assert not len(left) or left[left > 0].min(initial=gap + 1) > gap


@given(sizes=shard_sizes, nodes=clusters())
def test_ownership_is_a_function_of_its_arguments(sizes, nodes):
    one, other = own_shards(sizes, nodes), own_shards(sizes, nodes)
    np.testing.assert_array_equal(one.owner_of_shard, other.owner_of_shard)
    np.testing.assert_array_equal(one.tier_of_shard, other.tier_of_shard)


@pytest.mark.parametrize("num_nodes", [1, 3, 8, 64, 1024])
def test_equal_nodes_hold_equally_many_shards_to_within_one(num_nodes):
    owned = own_shards(np.full(4300, 600), equal_nodes(num_nodes, memory_bytes=10**9))
    counts = np.bincount(owned.owner_of_shard, minlength=num_nodes)
    assert counts.max() - counts.min() <= 1


def test_where_the_data_exceed_the_caches_nodes_weigh_by_their_capacity():
    nodes = Nodes(
        memory_bytes=np.array([1000, 3000, 500]),
        ssd_bytes=np.array([0, 0, 2000]),
        keys=np.arange(3, dtype=np.uint64),
    )
    sizes = np.full(2000, 10)
    owned = own_shards(sizes, nodes)
    assert owned.held(sizes, MEMORY).tolist() == [1000, 3000, 500]
    assert owned.held(sizes, SSD).tolist() == [0, 0, 2000]


def test_most_shards_stay_when_a_node_joins():
    sizes = np.full(4200, 600)
    before = own_shards(sizes, equal_nodes(8, memory_bytes=10**9))
    after = own_shards(sizes, equal_nodes(9, memory_bytes=10**9))
    moved = (before.owner_of_shard != after.owner_of_shard).mean()
    assert 1 / 9 - 0.01 < moved < 0.15


def test_renumbered_nodes_keep_their_shards_by_their_keys():
    sizes = np.full(500, 7)
    nodes = equal_nodes(6, memory_bytes=300)
    turned = Nodes(
        memory_bytes=nodes.memory_bytes, ssd_bytes=nodes.ssd_bytes, keys=nodes.keys[::-1].copy()
    )
    assert owner_keys(own_shards(sizes, nodes)) == owner_keys(own_shards(sizes, turned))


@settings(max_examples=50)
@given(nodes=clusters(), total=st.integers(0, 8000))
def test_the_level_distributes_the_whole_up_to_rounding(nodes, total):
    room = level_room(nodes.ssd_bytes, nodes.memory_bytes, total)
    assert (room <= nodes.memory_bytes).all()
    wanted = min(total, int(nodes.memory_bytes.sum()))
    assert wanted <= room.sum() < wanted + nodes.num_nodes


def test_wrong_arguments_are_refused_with_their_values():
    with pytest.raises(UsageError, match="same key"):
        Nodes(
            memory_bytes=np.zeros(2, np.int64),
            ssd_bytes=np.zeros(2, np.int64),
            keys=np.zeros(2, np.uint64),
        )
    with pytest.raises(UsageError, match="negative"):
        equal_nodes(2, memory_bytes=-1)
    with pytest.raises(UsageError, match="must have one shape"):
        equal_nodes(0, memory_bytes=1)
    with pytest.raises(UsageError, match="non-negative"):
        own_shards(np.array([-1]), equal_nodes(1, memory_bytes=9))
    with pytest.raises(UsageError, match="not of the same shards"):
        Ownership(
            owner_of_shard=np.zeros(1, np.int32),
            tier_of_shard=np.zeros(2, np.int8),
            node_keys=np.zeros(1, np.uint64),
        )
    with pytest.raises(UsageError, match="exactly if"):
        Ownership(
            owner_of_shard=np.array([-1], np.int32),
            tier_of_shard=np.array([MEMORY], np.int8),
            node_keys=np.zeros(1, np.uint64),
        )
