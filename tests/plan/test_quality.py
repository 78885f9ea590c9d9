"""Measures of shuffle quality find a uniform draw uniform and a poor one poor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.errors import UsageError
from msdata.plan import quality
from msdata.plan.assign import assign_epoch
from msdata.plan.order import epoch_order, global_positions
from msdata.topology import Topology

NUM_SAMPLES, SHARD, BATCH = 100_000, 500, 250
SIZES = np.full(NUM_SAMPLES // SHARD, SHARD)
SHARDS = np.repeat(np.arange(len(SIZES), dtype=np.int32), SIZES)


def order_of(policy, epoch, **options):
    return epoch_order(
        policy, seed=0, epoch=epoch, num_samples=NUM_SAMPLES, shard_sizes=SIZES, **options
    )


def count_pairs_one_by_one(rows):
    return sum(
        row[i] == row[j] for row in rows for i in range(len(row)) for j in range(i + 1, len(row))
    )


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_pairs_are_counted_within_rows_only(rows):
    table = np.sort(np.array(rows), axis=1)
    assert quality._equal_pairs(table) == count_pairs_one_by_one(table.tolist())


def test_a_uniform_shuffle_measures_as_uniform():
    one, other = order_of("shuffle", 1), order_of("shuffle", 2)
    batches = quality.batches_of(one, BATCH)
    assert quality.same_shard_pairs(batches, SHARDS).ratio == pytest.approx(1, abs=0.02)
    assert quality.repeated_pairs(one, other, BATCH).ratio == pytest.approx(1, abs=0.05)
    assert quality.displacement(one, other).ratio == pytest.approx(1, abs=0.01)


def test_a_block_shuffle_shows_its_shards():
    one, other = (order_of("block", e, buffer_samples=1000) for e in (1, 2))
    batches = quality.batches_of(one, BATCH)
    assert quality.same_shard_pairs(batches, SHARDS).ratio > 20
    assert quality.repeated_pairs(one, other, BATCH).ratio > 5
    # Its shards do move as far as samples of a shuffle: why displacement alone is not enough.
    assert quality.displacement(one, other).ratio == pytest.approx(1, abs=0.1)


def test_an_order_that_repeats_has_all_its_pairs_and_no_displacement():
    order = order_of("shuffle", 0)
    for batch in (BATCH, 300):  # 300 leaves an incomplete batch, which does not count
        pairs = quality.repeated_pairs(order, order, batch)
        assert pairs.value == batch * (batch - 1) / 2
        assert pairs.ratio > 100
    assert quality.displacement(order, order).value == 0


def test_labels_of_uniform_batches_drift_as_expected():
    label = np.random.default_rng(0).gamma(2, 0.15, NUM_SAMPLES)
    drift = quality.label_drift(quality.batches_of(order_of("shuffle", 3), BATCH), label)
    assert drift.num_batches == NUM_SAMPLES // BATCH
    assert drift.mean.ratio == pytest.approx(1, abs=0.1)
    assert drift.distribution.ratio == pytest.approx(1, abs=0.03)


def test_labels_sorted_into_shards_drift_under_a_block_shuffle():
    label = np.sort(np.random.default_rng(0).gamma(2, 0.15, NUM_SAMPLES))
    blocks = quality.batches_of(order_of("block", 3, buffer_samples=1000), BATCH)
    drift = quality.label_drift(blocks, label)
    assert drift.mean.ratio > 3
    assert drift.distribution.ratio > 3


def test_the_distance_of_distributions_is_that_of_kolmogorov_and_smirnov():
    random = np.random.default_rng(4)
    # Rounded, so that there are ties.
    label = random.gamma(2, 0.15, 500).round(2)
    batches = quality.batches_of(random.permutation(500), 50)
    expected = []
    for batch in batches:
        middle = [((label < v).sum() + (label <= v).sum()) / 1000 for v in np.sort(label[batch])]
        steps = np.arange(51) / 50
        expected.append(max(np.abs(middle - steps[1:]).max(), np.abs(middle - steps[:-1]).max()))
    drift = quality.label_drift(batches, label)
    assert drift.distribution.value == pytest.approx(np.mean(expected), abs=1e-12)


def test_coarse_labels_are_compared_in_the_middle_of_their_ties():
    label = np.repeat([0.0, 1.0], NUM_SAMPLES // 2)
    drift = quality.label_drift(np.arange(NUM_SAMPLES)[None], label)
    assert drift.distribution.value == pytest.approx(0.25, abs=1e-4)
    assert drift.mean.uniform == 0
    assert math.isnan(drift.mean.ratio)


def reads_of_rank_0(policy, topology, num_epochs):
    owner = np.arange(NUM_SAMPLES, dtype=np.int32) % topology.num_nodes
    batches = global_positions(
        num_samples=NUM_SAMPLES,
        batch_per_rank=BATCH // topology.num_ranks,
        num_ranks=topology.num_ranks,
        last="drop",
    )
    for epoch in range(num_epochs):
        order = order_of(policy, epoch)
        args = {"order": order, "batches": batches, "topology": topology}
        yield assign_epoch(policy, **args, owner_of_sample=owner).samples[:, 0]


def test_a_rank_sees_the_data_under_shuffle_as_a_uniform_draw_has_it():
    topology = Topology(num_nodes=5)
    seen = quality.seen_share(reads_of_rank_0("shuffle", topology, 4), NUM_SAMPLES)
    expected = [quality.uniform_seen_share(5, e) for e in range(1, 5)]
    assert seen == pytest.approx(expected, abs=0.01)


def test_a_rank_sees_little_but_its_nodes_data_under_locality():
    topology = Topology(num_nodes=5)
    seen = quality.seen_share(reads_of_rank_0("locality", topology, 4), NUM_SAMPLES)
    assert seen[0] == pytest.approx(0.2, abs=0.01)
    assert seen[-1] < 0.3
    assert (np.diff(seen) >= 0).all()


def test_unusable_arguments_are_refused():
    with pytest.raises(UsageError, match="do not fill a global batch of 20"):
        quality.batches_of(np.arange(19), 20)
    with pytest.raises(UsageError, match="1 labels are not finite"):
        quality.label_drift(np.arange(4)[None], np.array([0.0, 1.0, np.nan, 2.0]))
