"""Epoch orders and batch positions hold their invariants for any sizes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.errors import UsageError
from msdata.plan import order, random_words

PINNED_SHUFFLE = [9, 1, 6, 7, 3, 4, 5, 8, 0, 2]
PINNED_BLOCK = [5, 4, 6, 7, 8, 9, 0, 1, 3, 2]

sizes_of_shards = st.lists(st.integers(0, 40), min_size=1, max_size=30).map(np.array)
seeds = st.integers(0, 2**70)


@given(policy=st.sampled_from(order.POLICIES), sizes=sizes_of_shards, seed=seeds, epoch=seeds)
def test_every_epoch_is_a_permutation_of_all_samples(policy, sizes, seed, epoch):
    num_samples = int(sizes.sum())
    permutation = order.epoch_order(
        policy, seed=seed, epoch=epoch, num_samples=num_samples, shard_sizes=sizes, buffer_samples=7
    )
    assert permutation.dtype == np.int64
    np.testing.assert_array_equal(np.sort(permutation), np.arange(num_samples))


def test_the_order_is_pinned_for_all_time():
    first = order.epoch_order("shuffle", seed=7, epoch=3, num_samples=10)
    block = order.epoch_order(
        "block", seed=7, epoch=3, num_samples=10, shard_sizes=np.array([4, 3, 3]), buffer_samples=3
    )
    assert first.tolist() == PINNED_SHUFFLE
    assert block.tolist() == PINNED_BLOCK


def test_the_keys_are_those_of_splitmix64():
    # First outputs of the reference generator (Vigna, splitmix64.c) started from 1234567.
    words = np.array([1234567], dtype=np.uint64) + np.arange(1, 4, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    random_words.mix64(words)
    assert words.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_locality_has_the_order_of_shuffle():
    args = {"seed": 5, "epoch": 2, "num_samples": 5000}
    shuffled = order.epoch_order("shuffle", **args)
    np.testing.assert_array_equal(shuffled, order.epoch_order("locality", **args))


def test_seeds_and_epochs_give_unrelated_orders():
    orders = [
        order.epoch_order("shuffle", seed=s, epoch=e, num_samples=2000)
        for s in range(4)
        for e in range(4)
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Fixed points of a random permutation are Poisson of mean 1.
            assert (one == other).sum() < 12
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.12


def test_numbers_are_taken_modulo_two_to_the_64():
    one = order.epoch_order("shuffle", seed=3 + 2**64, epoch=1, num_samples=100)
    other = order.epoch_order("shuffle", seed=3, epoch=1 + 2**64, num_samples=100)
    np.testing.assert_array_equal(one, other)


@given(sizes=sizes_of_shards, buffer=st.integers(1, 100), seed=seeds)
def test_the_block_buffer_bounds_the_displacement(sizes, buffer, seed):
    num_samples = int(sizes.sum())
    args = {"seed": seed, "epoch": 0, "num_samples": num_samples, "shard_sizes": sizes}
    stream = order.epoch_order("block", **args, buffer_samples=1)
    shuffled = order.epoch_order("block", **args, buffer_samples=buffer)
    displacement = np.abs(np.argsort(stream) - np.argsort(shuffled))
    assert displacement.max(initial=0) < buffer
    # Without a buffer the shards are whole runs.
    shard = np.repeat(np.arange(len(sizes)), sizes)[stream]
    assert (np.diff(shard) != 0).sum() + 1 <= max(1, (sizes > 0).sum())


def test_every_place_is_equally_likely():
    counts = np.zeros((6, 6))
    for epoch in range(6000):
        counts[np.arange(6), order.epoch_order("shuffle", seed=1, epoch=epoch, num_samples=6)] += 1
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2 < 60  # 25 degrees of freedom: p = 1e-4


layouts = st.fixed_dictionaries(
    {
        "num_samples": st.integers(0, 300),
        "batch_per_rank": st.integers(1, 9),
        "num_ranks": st.integers(1, 8),
        "last": st.sampled_from(order.LAST),
    }
)


@given(layout=layouts, data=st.data())
def test_the_ranks_together_take_each_global_batch_once_and_in_order(layout, data):
    first = data.draw(st.integers(0, layout["num_samples"]))
    grids = [
        order.rank_positions(**layout, first_position=first, rank=r)
        for r in range(layout["num_ranks"])
    ]
    global_batch = layout["num_ranks"] * layout["batch_per_rank"]
    left = layout["num_samples"] - first
    steps = order.num_steps(left, global_batch, layout["last"])
    assert {g.positions.shape for g in grids} == {(steps, layout["batch_per_rank"])}
    consumed = []
    for step in range(steps):
        batch = np.concatenate([g.positions[step][g.is_real[step]] for g in grids])
        low, high = order.batch_bounds(
            step,
            num_samples=layout["num_samples"],
            global_batch=global_batch,
            first_position=first,
        )
        np.testing.assert_array_equal(batch, np.arange(low, high))
        consumed.append(batch)
    end = first + (left // global_batch * global_batch if layout["last"] == "drop" else left)
    np.testing.assert_array_equal(np.concatenate([[], *consumed]), np.arange(first, end))


@given(layout=layouts)
def test_global_positions_are_those_of_the_ranks(layout):
    whole = order.global_positions(**layout)
    for rank in range(layout["num_ranks"]):
        part = order.rank_positions(**layout, rank=rank)
        np.testing.assert_array_equal(whole.positions[:, rank], part.positions)
        np.testing.assert_array_equal(whole.is_real[:, rank], part.is_real)


@given(batch=st.integers(1, 6), samples=st.integers(1, 500), last=st.sampled_from(order.LAST))
def test_global_batches_are_the_same_for_every_number_of_ranks(batch, samples, last):
    global_batch = 24 * batch
    reference = None
    for ranks in (1, 2, 3, 4, 6, 8, 12, 24):
        grid = order.global_positions(
            num_samples=samples, batch_per_rank=global_batch // ranks, num_ranks=ranks, last=last
        )
        flat = np.sort(grid.positions.reshape(len(grid.positions), global_batch), axis=1)
        reference = flat if reference is None else reference
        np.testing.assert_array_equal(flat, reference)


@given(layout=layouts, data=st.data())
def test_a_resumed_run_is_the_tail_of_the_uninterrupted_one(layout, data):
    whole = order.global_positions(**layout)
    global_batch = layout["num_ranks"] * layout["batch_per_rank"]
    done = data.draw(st.integers(0, len(whole.positions)))
    resumed = order.global_positions(
        **layout, first_position=min(done * global_batch, layout["num_samples"])
    )
    np.testing.assert_array_equal(resumed.positions, whole.positions[done:])
    np.testing.assert_array_equal(resumed.is_real, whole.is_real[done:])


@given(samples=st.integers(1, 300), data=st.data())
def test_a_run_resumed_on_other_ranks_and_batches_misses_and_repeats_nothing(samples, data):
    position, seen = 0, []
    while position < samples:
        ranks, batch = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
        grid = order.global_positions(
            num_samples=samples,
            batch_per_rank=batch,
            num_ranks=ranks,
            last="short",
            first_position=position,
        )
        stop = data.draw(st.integers(1, len(grid.positions)))
        taken = grid.positions[:stop][grid.is_real[:stop]]
        seen.append(taken)
        position += len(taken)
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(samples))


@given(layout=layouts)
def test_padding_repeats_the_start_of_the_epoch_and_is_marked(layout):
    layout = {**layout, "last": "pad"}
    grid = order.global_positions(**layout)
    padding = grid.positions[~grid.is_real]
    samples = max(1, layout["num_samples"])
    np.testing.assert_array_equal(padding, np.arange(len(padding)) % samples)


@given(layout=layouts)
def test_a_short_last_batch_is_dealt_out_evenly(layout):
    grid = order.global_positions(**{**layout, "last": "short"})
    if len(grid.positions):
        share = grid.is_real[-1].sum(axis=1)
        assert share.max() - share.min() <= 1


def test_a_rank_takes_its_slice_of_the_global_batch():
    grid = order.rank_positions(num_samples=100, batch_per_rank=4, num_ranks=5, rank=2, last="drop")
    np.testing.assert_array_equal(grid.positions[1], np.arange(20, 40)[order.rank_slice(2, 4)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: order.epoch_order("best", seed=0, epoch=0, num_samples=3),
            "policy must be one of .* got 'best'",
        ),
        (
            lambda: order.epoch_order("shuffle", seed=-1, epoch=0, num_samples=3),
            "must be at least 0, got -1 and",
        ),
        (
            lambda: order.epoch_order("shuffle", seed=0, epoch=-2, num_samples=3),
            "must be at least 0, got 0 and -2",
        ),
        (
            lambda: order.epoch_order("shuffle", seed=0, epoch=0, num_samples=-1),
            "num_samples must be at least 0, got -1",
        ),
        (lambda: order.epoch_order("block", seed=0, epoch=0, num_samples=3), "shard_sizes"),
        (
            lambda: order.epoch_order(
                "block", seed=0, epoch=0, num_samples=3, shard_sizes=np.array([1, 1])
            ),
            "hold 2 samples, the epoch 3",
        ),
        (
            lambda: order.epoch_order(
                "block",
                seed=0,
                epoch=0,
                num_samples=3,
                shard_sizes=np.array([3]),
                buffer_samples=0,
            ),
            "buffer_samples must be from 1 to .* got 0",
        ),
        (lambda: order.num_steps(3, 0, "drop"), "global batch must have at least 1 sample, got 0"),
        (
            lambda: order.num_steps(3, 1, "keep"),
            "remainder must be one of drop, pad, short, got 'keep'",
        ),
        (lambda: order.num_steps(-3, 1, "pad"), "past the end of the epoch: -3 samples"),
        (
            lambda: order.rank_positions(
                num_samples=3, batch_per_rank=1, num_ranks=2, rank=2, last="drop"
            ),
            "rank must be from 0 to 1, got 2",
        ),
        (
            lambda: order.global_positions(
                num_samples=3, batch_per_rank=1, num_ranks=2, last="drop", first_position=4
            ),
            "position 4 is outside",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_their_values(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("policy", order.POLICIES)
def test_an_epoch_of_four_million_samples_is_ordered_in_well_under_a_second(policy):
    sizes = np.full(4200, 1000)
    seconds = []
    for epoch in range(3):
        start = time.process_time()
        order.epoch_order(policy, seed=0, epoch=epoch, num_samples=4_200_000, shard_sizes=sizes)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0


@given(
    num_samples=st.integers(0, 300),
    num_ranks=st.integers(1, 9),
    batch=st.integers(1, 12),
    last=st.sampled_from(["short", "drop"]),
    epoch=seeds,
)
def test_a_partition_gives_each_rank_its_own_stretch_of_the_index_in_every_epoch(
    num_samples, num_ranks, batch, last, epoch
):
    drawn = order.epoch_order(
        "partition", seed=1, epoch=epoch, num_samples=num_samples, layout=(num_ranks, batch)
    )
    np.testing.assert_array_equal(np.sort(drawn), np.arange(num_samples))
    places = order.global_positions(
        num_samples=num_samples, batch_per_rank=batch, num_ranks=num_ranks, last=last
    )
    ends = num_samples * np.arange(num_ranks + 1) // num_ranks
    for rank in range(num_ranks):
        positions = places.positions[:, rank][places.is_real[:, rank]]
        samples = np.sort(drawn[positions])
        assert set(samples) <= set(range(ends[rank], ends[rank + 1]))
        if last == "short":
            np.testing.assert_array_equal(samples, np.arange(ends[rank], ends[rank + 1]))


def test_a_partition_is_shuffled_in_each_epoch_and_of_one_rank_is_a_shuffle():
    options = {"seed": 3, "num_samples": 64}
    first, second = (
        order.epoch_order("partition", epoch=e, layout=(2, 8), **options) for e in (0, 1)
    )
    assert (first != second).mean() > 0.8
    np.testing.assert_array_equal(
        order.epoch_order("partition", epoch=1, layout=(1, 8), **options),
        order.epoch_order("shuffle", epoch=1, **options),
    )
