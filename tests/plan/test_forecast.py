"""Forecasts agree with a count done by hand, and the closed form agrees with the forecast."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdata.errors import UsageError
from msdata.plan.closed_form import expect_epoch, levelled_shares, moved_share, owned_shares
from msdata.plan.forecast import (
    TIERS,
    EpochForecast,
    Job,
    assign_job,
    count_tiers,
    forecast_epoch,
    own_job,
)
from msdata.plan.order import LAST, POLICIES
from msdata.plan.ownership import MEMORY, SSD, Nodes, equal_nodes
from msdata.plan.timing import Machine, by_nodes, on_nodes, time_epoch, what_if
from msdata.topology import Topology

SAMPLE_BYTES = 100


def job_of(num_nodes=4, ranks=2, memory=0.25, ssd=0.0, **options):
    """A job whose nodes each hold the given shares of the data."""
    shard_sizes = np.full(options.pop("num_shards", 256), options.pop("shard_samples", 64))
    total = int(shard_sizes.sum()) * SAMPLE_BYTES
    nodes = equal_nodes(num_nodes, memory_bytes=int(memory * total), ssd_bytes=int(ssd * total))
    return Job(
        topology=Topology(num_nodes=num_nodes, ranks_per_node=ranks),
        nodes=nodes,
        shard_sizes=shard_sizes,
        sample_bytes=SAMPLE_BYTES,
        **{"batch_per_rank": 16, "policy": "locality", "last": "drop", **options},
    )


def count_one_by_one(job, ownership, epoch):
    """Tier of every read, sample by sample in Python: samples and bytes; and bytes of each SSD."""
    assignment = assign_job(job, ownership, epoch)
    shard_of_sample = np.repeat(np.arange(len(job.shard_sizes)), job.shard_sizes)
    counts, nbytes = np.zeros((2, job.topology.num_nodes, len(TIERS)), dtype=int)
    ssd_reads = np.zeros(job.topology.num_nodes, dtype=int)
    record_bytes = np.broadcast_to(job.sample_bytes, len(shard_of_sample))
    for step in assignment.samples:
        for rank, samples in enumerate(step):
            node = rank // job.topology.ranks_per_node
            for sample in samples[samples >= 0]:
                shard = shard_of_sample[sample]
                owner = ownership.owner_of_shard[shard]
                on_ssd = ownership.tier_of_shard[shard] == SSD
                name = "ssd" if on_ssd else "local"
                name = name if owner == node else ("storage" if owner < 0 else "peer")
                counts[node, TIERS.index(name)] += 1
                nbytes[node, TIERS.index(name)] += record_bytes[sample]
                ssd_reads[owner] += on_ssd * record_bytes[sample]
    return counts, nbytes, ssd_reads


@settings(max_examples=40)
@given(
    policy=st.sampled_from(POLICIES),
    last=st.sampled_from(LAST),
    capacity=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
    epoch=st.integers(1, 3),
    is_coded=st.booleans(),
)
def test_the_forecast_is_the_count_of_every_read_by_hand(policy, last, capacity, epoch, is_coded):
    shard_sizes = np.arange(1, 21)
    coded = np.random.default_rng(7).integers(SAMPLE_BYTES // 9, SAMPLE_BYTES, shard_sizes.sum())
    memory, ssd = (np.array(c) * 10 * SAMPLE_BYTES for c in zip(*capacity, strict=True))
    nodes = Nodes(memory_bytes=memory, ssd_bytes=ssd, keys=np.arange(len(memory), dtype=np.uint64))
    job = Job(
        topology=Topology(num_nodes=len(memory), ranks_per_node=2),
        nodes=nodes,
        shard_sizes=shard_sizes,
        sample_bytes=coded if is_coded else SAMPLE_BYTES,
        batch_per_rank=3,
        policy=policy,
        last=last,
        buffer_samples=9,
    )
    ownership = own_job(job)
    forecast = forecast_epoch(job, ownership, epoch)
    by_hand, nbytes, ssd_reads = count_one_by_one(job, ownership, epoch)
    np.testing.assert_array_equal(forecast.tier_samples, by_hand)
    np.testing.assert_array_equal(forecast.storage_bytes, nbytes[:, 3])
    np.testing.assert_array_equal(forecast.ssd_bytes, ssd_reads)
    np.testing.assert_array_equal(forecast.tier_bytes, nbytes)
    held = np.array([ownership.held(job.cached_bytes, tier) for tier in (MEMORY, SSD)])
    assert (held <= [memory, ssd]).all()


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "partition"])
def test_a_job_resumed_on_more_nodes_resumes_with_the_same_global_batches(policy):
    four, eight = (job_of(num_nodes=n, batch_per_rank=64 // n, policy=policy) for n in (4, 8))
    whole = assign_job(four, own_job(four), 3)
    position = 40 * four.topology.num_ranks * four.batch_per_rank
    resumed = assign_job(eight, own_job(eight), 3, first_position=position)
    assert len(resumed.samples) == len(whole.samples) - 40
    for one, other in zip(whole.samples[40:], resumed.samples, strict=True):
        np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_hits_are_the_cached_share_to_within_one_shard_a_node(policy, share):
    job = job_of(memory=share / 4, policy=policy, buffer_samples=512)
    hits = 1 - forecast_epoch(job, own_job(job), 1).shares[3]
    shard = 1 / len(job.shard_sizes)
    # A block epoch that drops its tail may drop cached samples; here nothing is dropped.
    assert share - 4 * shard <= hits <= share + 1e-12


def test_an_order_that_is_not_drawn_has_no_mean_epoch():
    job = job_of(memory=0.25, policy="sequential")
    with pytest.raises(UsageError, match=r"cannot predict policy 'sequential'.* plan with policy"):
        expect_epoch(job, 1, owned_shares(job, own_job(job)))


@pytest.mark.parametrize("policy", POLICIES[:3])
@pytest.mark.parametrize(("memory", "ssd"), [(0.25, 0), (0.1, 0), (0.1, 0.05), (0.05, 0.3)])
def test_the_closed_form_is_the_mean_of_the_forecasts(policy, memory, ssd):
    job = job_of(memory=memory, ssd=ssd, policy=policy, batch_per_rank=32, buffer_samples=512)
    ownership = own_job(job)
    replayed = np.mean([forecast_epoch(job, ownership, e).shares for e in range(1, 21)], axis=0)
    expected = expect_epoch(job, 1, owned_shares(job, ownership)).shares
    # The small difference between large shares is what `locality` moves.
    assert expected == pytest.approx(replayed, abs=0.002)
    levelled = expect_epoch(job, 1, levelled_shares(job)).shares
    # Without shards there cannot be gaps of less than a shard in each tier of each node.
    assert levelled == pytest.approx(replayed, abs=2 * 4 / len(job.shard_sizes))


def test_what_locality_moves_is_the_closed_form_within_five_percent():
    job = job_of(num_nodes=8, memory=0.2, ranks=8, batch_per_rank=16, num_shards=2048)
    ownership = own_job(job)
    moved = np.mean([forecast_epoch(job, ownership, e).shares[2] for e in range(1, 6)])
    assert moved == pytest.approx(moved_share(8, 128), rel=0.05)
    assert moved_share(8, 128) == pytest.approx(math.sqrt(7 / 8 / (2 * math.pi * 128)))


def test_unequal_holdings_move_more_and_the_closed_form_knows():
    job = job_of(num_nodes=2, memory=0.5)
    quarter = job.nodes.memory_bytes // 2
    uneven = replace(job.nodes, memory_bytes=quarter * np.array([3, 1]))
    job = replace(job, nodes=uneven)
    ownership = own_job(job)
    forecast = forecast_epoch(job, ownership, 1)
    expected = expect_epoch(job, 1, owned_shares(job, ownership))
    assert forecast.shares[2] == pytest.approx(0.25, abs=0.01)
    assert expected.shares == pytest.approx(forecast.shares, abs=0.005)


@pytest.mark.parametrize("memory", [0, 0.1, 0.25])
def test_the_cold_epoch_reads_everything_from_storage_once(memory):
    job = job_of(memory=memory)
    cold = forecast_epoch(job, own_job(job), 0)
    assert cold.storage_bytes.sum() == job.num_samples * SAMPLE_BYTES
    assert cold.shares[:2].tolist() == [0, 0]
    expected = expect_epoch(job, 0, owned_shares(job, own_job(job)))
    assert expected.storage_bytes.sum() == pytest.approx(job.num_samples * SAMPLE_BYTES)
    assert expected.shares == pytest.approx(cold.shares, abs=0.005)


def test_fully_cached_jobs_read_storage_once_in_all_their_epochs():
    job = job_of(memory=0.3)
    ownership = own_job(job)
    read = sum(int(forecast_epoch(job, ownership, e).storage_bytes.sum()) for e in range(5))
    assert read == job.num_samples * SAMPLE_BYTES


def test_misses_are_even_over_nodes_under_locality():
    job = job_of(memory=0.1)
    counts = forecast_epoch(job, own_job(job), 2).tier_samples
    steps = job.num_samples // 128
    assert counts[:, 3].max() - counts[:, 3].min() <= steps
    assert len(set(counts.sum(axis=1).tolist())) == 1


def machine():
    return Machine(
        memory=1000.0, ssd=100.0, network=50.0, storage=10.0, storage_total=20.0, samples_per_s=1.0
    )


def forecast_of(tier_samples, storage_bytes):
    return EpochForecast(
        epoch=1,
        tier_samples=np.array(tier_samples),
        ssd_bytes=np.zeros(len(tier_samples)),
        storage_bytes=np.array(storage_bytes),
        tier_bytes=SAMPLE_BYTES * np.array(tier_samples),
        is_exact=True,
    )


def test_an_epoch_lasts_as_long_as_its_slowest_part():
    forecast = forecast_of([[10, 0, 5, 0], [10, 0, 0, 3]], [0, 300])
    timed = time_epoch(forecast, machine(), Topology(num_nodes=2))
    assert timed.busy_s == {"memory": 1.5, "ssd": 0, "network": 10, "storage": 30, "gpu": 14}
    assert (timed.binds, timed.epoch_s, timed.gpu_wait_s) == ("storage", 30, 16)


def test_shared_storage_binds_all_nodes_together():
    forecast = forecast_of([[0, 0, 0, 3]] * 4, [300] * 4)
    assert time_epoch(forecast, machine(), Topology(num_nodes=4)).busy_s["storage"] == 60


def test_without_bandwidths_there_is_no_time():
    forecast = forecast_of([[1, 0, 0, 0]], [0])
    timed = time_epoch(forecast, Machine(), Topology())
    assert (timed.busy_s, timed.binds, timed.epoch_s, timed.gpu_wait_s) == ({}, None, None, None)


def test_the_variants_say_what_more_would_change():
    rows = what_if(job_of(memory=0.1, ssd=0.0), machine())
    hits = {row.name: 1 - row.forecast.shares[3] for row in rows}
    assert hits["as asked"] == pytest.approx(0.4, abs=0.01)
    assert hits["one more node"] == pytest.approx(0.5, abs=0.01)
    for more in (
        "twice the nodes",
        "twice the memory",
        "plus SSD as large as the memory",
        "half the bytes per sample",
    ):
        assert hits[more] == pytest.approx(0.8, abs=0.01)
    assert all(row.time.binds == "storage" for row in rows)


def test_hits_grow_with_the_number_of_nodes_until_all_data_are_held():
    rows = by_nodes(job_of(memory=0.1), machine(), [1, 2, 5, 10, 20])
    hits = [1 - row.forecast.shares[3] for row in rows]
    assert hits == pytest.approx([0.1, 0.2, 0.5, 1, 1], abs=0.01)
    assert [row.num_nodes for row in rows] == [1, 2, 5, 10, 20]
    assert on_nodes(job_of(), 7).nodes.num_nodes == 7


def test_the_closed_form_for_a_thousand_nodes_comes_at_once():
    job = job_of(num_nodes=1024, ranks=8, memory=0.001, num_shards=4300, shard_samples=1000)
    start = time.process_time()
    for epoch in range(10):
        expect_epoch(job, epoch, levelled_shares(job))
    assert time.process_time() - start < 0.5


def test_an_epoch_of_four_million_samples_on_a_thousand_nodes_is_forecast_in_a_second():
    job = job_of(
        num_nodes=1024,
        ranks=8,
        memory=0.002,
        num_shards=8192,
        shard_samples=525,
        batch_per_rank=64,
    )
    ownership = own_job(job)
    seconds = []
    for epoch in (1, 2):
        start = time.process_time()
        forecast = forecast_epoch(job, ownership, epoch)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0
    # A batch is an eighth of the epoch: draws without replacement fluctuate 6 % less.
    expected = expect_epoch(job, 1, owned_shares(job, ownership))
    assert expected.shares[2] == pytest.approx(forecast.shares[2], rel=0.02)


def test_wrong_arguments_are_refused_with_their_values():
    job = job_of()
    with pytest.raises(UsageError, match="3 nodes have capacities, the job runs on 4"):
        replace(job, nodes=equal_nodes(3, memory_bytes=1))
    with pytest.raises(UsageError, match="batch_per_rank must be at least 1, got 0 and 16"):
        replace(job, sample_bytes=0)
    with pytest.raises(UsageError, match="network must be > 0, got 0"):
        Machine(network=0)
    with pytest.raises(UsageError, match=r"not \(nodes, 4\)"):
        forecast_of([[1, 2]], [0])


@pytest.mark.parametrize(
    ("memory_bytes", "local"),
    [((1000, 1000), 1.0), ((1000, 0), 0.5), ((3, 0), 0.015), ((5, 1), 0.04)],
)
def test_data_that_do_not_fill_a_batch_are_expected_without_scatter(memory_bytes, local):
    job = Job(
        topology=Topology(num_nodes=2),
        nodes=replace(equal_nodes(2, memory_bytes=0), memory_bytes=np.array(memory_bytes)),
        shard_sizes=np.array([5]),
        sample_bytes=20,
        batch_per_rank=128,
        policy="locality",
    )
    # By hand: 256 draws, misses dealt evenly, each node keeps its own as far as it has room.
    expected = expect_epoch(job, 1, levelled_shares(job))
    assert expected.shares[0] == pytest.approx(local, abs=1e-9)
    # Whole shards: neither node has room for the one.
    fits = max(memory_bytes) >= 100
    shares = expect_epoch(job, 1, owned_shares(job, own_job(job))).shares
    assert shares[3] == pytest.approx(0.0 if fits else 1.0)


def test_hits_of_a_node_are_its_reads_that_storage_does_not_serve():
    forecast = forecast_of([[10, 20, 30, 40], [0, 0, 0, 0]], [0, 0])
    assert forecast.hit_share(0) == pytest.approx(0.6)
    assert forecast.hit_share(0, has_peers=False) == pytest.approx(0.3)
    assert forecast.hit_share(1) is None


def test_a_resumed_epoch_forecasts_what_is_left_of_it():
    job = job_of(policy="shuffle")
    ownership = own_job(job)
    whole = forecast_epoch(job, ownership, 3).tier_samples.sum()
    rest = forecast_epoch(job, ownership, 3, first_position=4096).tier_samples
    assert rest.sum() == whole - 4096
    wanted = assign_job(job, ownership, 3, first_position=4096)
    np.testing.assert_array_equal(rest, count_tiers(wanted.samples, job, ownership)[0])


def coded_job(**options):
    """A job over records a sixth as large as the samples, on average."""
    job = job_of(**options)
    coded = np.random.default_rng(3).integers(12, 22, job.num_samples)
    return replace(job, sample_bytes=coded, decoded_bytes=SAMPLE_BYTES)


def test_records_of_one_length_are_planned_as_one_number():
    for nbytes in (np.broadcast_to(np.int64(SAMPLE_BYTES), 256 * 64), np.full(256 * 64, 100)):
        job = replace(job_of(), sample_bytes=nbytes)
        assert job.sample_bytes == SAMPLE_BYTES
        assert job.mean_bytes == SAMPLE_BYTES
    with pytest.raises(UsageError, match=r"one entry per sample \(16384\), got shape \(7,\)"):
        replace(job, sample_bytes=np.ones(7, np.int64))
    with pytest.raises(UsageError, match="must be at least 1, got 0 and 16"):
        replace(job, sample_bytes=np.arange(256 * 64))


def test_memory_for_a_fifth_of_the_samples_holds_all_of_their_records():
    plain, coded = job_of(memory=0.05), coded_job(memory=0.05)
    ownership = own_job(coded)
    assert forecast_epoch(plain, own_job(plain), 1).shares[3] == pytest.approx(0.8, abs=0.02)
    warm, cold = (forecast_epoch(coded, ownership, epoch) for epoch in (1, 0))
    assert warm.shares[3] == 0
    assert cold.storage_bytes.sum() == coded.cached_bytes.sum() == coded.sample_bytes.sum()
    moved = forecast_epoch(plain, own_job(job_of(memory=1.0)), 1).tier_bytes[:, 2].sum()
    assert moved / warm.tier_bytes[:, 2].sum() == pytest.approx(100 / 16.5, rel=0.05)


def test_the_closed_form_of_coded_records_is_the_mean_of_the_forecasts():
    job = coded_job(memory=0.02)
    ownership = own_job(job)
    replayed = np.mean([forecast_epoch(job, ownership, e).tier_bytes for e in range(1, 9)], axis=0)
    expected = expect_epoch(job, 1, owned_shares(job, ownership)).tier_bytes
    np.testing.assert_allclose(expected.sum(axis=0), replayed.sum(axis=0), rtol=0.03)
    assert expect_epoch(job, 0, owned_shares(job, ownership)).decoded_bytes == SAMPLE_BYTES


def test_decoding_binds_where_cores_are_few_and_the_cores_that_lift_it_are_said():
    job = coded_job(num_nodes=2, memory=1.0)
    forecast = forecast_epoch(job, own_job(job), 1)
    node_samples = 256 * 64 / 2
    rates = {"decode": 1000.0, "cores": 3, "memory": 1e6, "samples_per_s": 250.0}
    time = time_epoch(forecast, Machine(**rates), job.topology)
    # By hand: a core makes 10 samples/s; a rank's GPU takes 250/s, two of them 500.
    assert time.binds == "decode"
    assert time.busy_s["decode"] == pytest.approx(node_samples / 30)
    assert time.busy_s["gpu"] == pytest.approx(node_samples / 500)
    assert time.decode_cores == 50
    copied = (forecast.tier_bytes.sum(axis=1) + node_samples * SAMPLE_BYTES) / 2
    assert time.busy_s["memory"] == pytest.approx(copied.max() / 1e6)
    lifted = time_epoch(forecast, Machine(**{**rates, "cores": 50}), job.topology)
    assert (lifted.epoch_s, lifted.decode_cores) == (pytest.approx(time.busy_s["gpu"]), None)
    plain = job_of(num_nodes=2, memory=1.0)
    of_plain = time_epoch(forecast_epoch(plain, own_job(plain), 1), Machine(**rates), job.topology)
    assert "decode" not in of_plain.busy_s
