"""Epochs drawn with replacement: by the weights, the same everywhere, forecast to the sample."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import caching
import loading
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import msdata
from msdata.augment import AugmentConfig
from msdata.augment.draws import draw
from msdata.errors import UsageError
from msdata.plan.closed_form import expect_epoch, owned_shares
from msdata.plan.forecast import Job, assign_job, forecast_epoch, own_job
from msdata.plan.order import epoch_order
from msdata.plan.ownership import SSD, Nodes, equal_nodes
from msdata.plan.weighted import repeats_of
from msdata.topology import Topology

PINNED = [2, 5, 5, 6, 7, 1, 7, 3, 8, 9]

numbers = st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(0.5, 2.0))
some_weights = st.lists(numbers, min_size=1, max_size=60).filter(any).map(np.array)
seeds = st.integers(0, 2**70)


def drawn(weights: Any, seed: int = 0, epoch: int = 0) -> Any:
    return epoch_order(
        "shuffle", seed=seed, epoch=epoch, num_samples=len(weights), weights=np.asarray(weights)
    )


@given(weights=some_weights, seed=seeds, epoch=seeds)
def test_as_many_draws_as_samples_and_none_of_weight_zero(weights, seed, epoch):
    order = drawn(weights, seed, epoch)
    assert order.dtype == np.int64
    assert order.shape == weights.shape
    assert (weights[order] > 0).all()
    np.testing.assert_array_equal(order, drawn(weights, seed, epoch))


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60).map(np.array),
    scale=st.integers(-300, 300),
    seed=seeds,
)
def test_only_ratios_of_weights_count(weights, scale, seed):
    # Powers of two are exact.
    np.testing.assert_array_equal(drawn(weights, seed), drawn(weights * 2.0**scale, seed))


def test_the_draws_are_pinned_for_all_time():
    assert drawn(np.arange(10.0), 7, 3).tolist() == PINNED


def test_samples_come_in_proportion_to_their_weights():
    weights = np.array([1.0, 2.0, 0.0, 3.5, 0.5, 9.0])
    orders = np.stack([drawn(weights, epoch=e) for e in range(3000)])
    wanted = orders.size * weights / weights.sum()
    counts = np.bincount(orders.ravel(), minlength=6)
    assert counts[2] == 0
    chi2 = ((counts - wanted)[weights > 0] ** 2 / wanted[weights > 0]).sum()
    assert chi2 < 24  # 4 degrees of freedom: p = 1e-4
    # At each place alike, and no place knows of another.
    first, last = orders[:, 0], orders[:, -1]
    assert abs(np.mean(first == 5) - 9 / 16) < 0.04
    assert abs(np.mean((first == 5) & (last == 5)) - (9 / 16) ** 2) < 0.04


def test_the_rarest_sample_of_millions_is_drawn_as_often_as_it_should_be():
    weights = np.ones(1 << 20)
    weights[12_345] = 1000.0
    counts = np.bincount(drawn(weights), minlength=len(weights))
    assert abs(counts[12_345] - 1000) < 5 * 1000**0.5
    # Even weights with replacement: a share 1/e of the samples is left out.
    assert np.mean(counts == 0) == pytest.approx(np.exp(-1), abs=0.003)


@given(st.lists(st.integers(0, 9), max_size=50).map(lambda x: np.array(x, np.int64)))
def test_repeats_count_what_came_before(order):
    wanted = [order[:i].tolist().count(s) for i, s in enumerate(order.tolist())]
    assert repeats_of(order).tolist() == wanted


@settings(max_examples=40)
@given(
    policy=st.sampled_from(["shuffle", "locality"]),
    last=st.sampled_from(["drop", "pad", "short"]),
    capacity=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
def test_the_forecast_counts_every_draw(policy, last, capacity, seed):
    shard_sizes = np.arange(1, 21)
    memory, ssd = (np.array(c) * 10 for c in zip(*capacity, strict=True))
    job = Job(
        topology=Topology(num_nodes=len(memory), ranks_per_node=2),
        nodes=Nodes(memory_bytes=memory, ssd_bytes=ssd, keys=np.arange(len(memory), dtype="u8")),
        shard_sizes=shard_sizes,
        sample_bytes=1,
        batch_per_rank=3,
        policy=policy,
        last=last,
        seed=seed,
        weights=np.random.default_rng(seed).pareto(1.0, int(shard_sizes.sum())),
    )
    ownership = own_job(job)
    shard_of = np.repeat(np.arange(20), shard_sizes)
    counts = np.zeros((len(memory), 4), int)
    for rank, samples in enumerate(np.moveaxis(assign_job(job, ownership, 1).samples, 1, 0)):
        for shard in shard_of[samples[samples >= 0]]:
            owner, tier = ownership.owner_of_shard[shard], ownership.tier_of_shard[shard]
            place = 3 if owner < 0 else 2 if owner != rank // 2 else int(tier == SSD)
            counts[rank // 2, place] += 1
    np.testing.assert_array_equal(forecast_epoch(job, ownership, 1).tier_samples, counts)


@pytest.mark.parametrize("policy", ["shuffle", "locality"])
def test_hits_are_the_cached_share_of_the_weights_not_of_the_samples(policy):
    sizes = np.full(64, 64)
    job = Job(
        topology=Topology(num_nodes=4, ranks_per_node=1),
        nodes=equal_nodes(4, memory_bytes=int(sizes.sum()) // 8),
        shard_sizes=sizes,
        sample_bytes=1,
        batch_per_rank=16,
        policy=policy,
    )
    ownership = own_job(job)
    owned = np.repeat(ownership.owner_of_shard >= 0, sizes)
    assert owned.mean() == 0.5
    job = replace(job, weights=np.where(owned, 3.0, 1.0))
    share = 3 / 4
    replayed = np.mean([forecast_epoch(job, ownership, e).shares for e in range(1, 21)], axis=0)
    assert 1 - replayed[3] == pytest.approx(share, abs=0.005)
    expected = expect_epoch(job, 1, owned_shares(job, ownership)).shares
    assert expected == pytest.approx(replayed, abs=0.01)


def test_a_sample_that_comes_again_is_turned_anew_and_the_first_time_as_ever():
    config = AugmentConfig(noise=1.0, band_dropout=0.3)
    once = draw(3, 5, ["7"], config, num_channels=9)
    again = draw(3, 5, ["7"] * 4, config, num_channels=9, repeats=np.arange(4))
    assert again.angle_rad[0] == once.angle_rad[0]
    np.testing.assert_array_equal(again.is_dropped[0], once.is_dropped[0])
    assert len(set(again.angle_rad.tolist())) == 4
    assert len(set(again.noise_place.tolist())) == 4


@pytest.fixture
def split(tiny_source: Path, packed: Callable[..., Path]) -> Any:
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


@pytest.fixture
def weights(split: Any) -> Any:
    values = np.random.default_rng(1).pareto(1.0, len(split))
    values[::7] = 0
    return values


def test_the_loader_hands_out_the_planned_draws_with_their_labels(split, weights) -> None:
    ids = np.array([split.sample_id(i) for i in range(len(split))])
    with msdata.Loader(split, 32, seed=4, weights=weights, threads=2) as loader:
        for epoch in range(2):
            batch = loading.joined(loading.run_epoch(loader))
            order = epoch_order(
                "shuffle", seed=4, epoch=epoch, num_samples=len(split), weights=weights
            )
            assert batch["sample_id"].tolist() == ids[order].tolist()
            assert batch["repeat"].tolist() == repeats_of(order).tolist()
            assert batch["repeat"].max() > 3
            loading.assert_true_to_source(batch)


@pytest.mark.parametrize("last", ["drop", "pad", "short"])
def test_any_number_of_ranks_sees_the_same_global_batches(split, weights, last) -> None:
    options = {"weights": weights, "remainder": last, "seed": 2}
    one = loading.global_epoch(split, 1, 24, **options)
    for num_ranks in (2, 4):
        found = loading.global_epoch(split, num_ranks, 24, **options)
        loading.assert_equal_batches(found, one)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_run_resumes_at_any_step_on_any_number_of_ranks(split, weights, num_ranks) -> None:
    options = {"weights": weights, "seed": 2}
    whole = loading.global_epoch(split, 1, 24, **options)
    with msdata.Loader(split, 24, threads=1, **options) as loader:
        states = [loader.state_dict() for _ in itertools.islice(loader, 12)]
    for step in (1, 5, 12):
        state = states[step - 1]
        found = loading.global_epoch(split, num_ranks, 24, state=state, **options)
        loading.assert_equal_batches(found, whole[step:])


def test_under_locality_batches_and_repeats_are_those_of_shuffle(
    split, weights, tmp_path: Path
) -> None:
    def epoch_of(policy: str) -> list[list[Counter[tuple[str, int]]]]:
        by_rank = []
        for rank in range(4):
            topology = Topology(num_nodes=2, ranks_per_node=2, rank=rank)
            config = caching.config(tmp_path, memory_gib=caching.gib_of(split, 1 / 3))
            cache = config if policy == "locality" else None
            with msdata.Loader(
                split, 6, policy=policy, topology=topology, cache=cache, weights=weights, threads=1
            ) as loader:
                by_rank.append(
                    [
                        Counter(zip(b["sample_id"].tolist(), b["repeat"].tolist(), strict=True))
                        for b in loading.run_epoch(loader)
                    ]
                )
        return by_rank

    shuffled, local = epoch_of("shuffle"), epoch_of("locality")
    assert shuffled != local
    for step in range(len(shuffled[0])):
        one, other = (sum((r[step] for r in ranks), Counter()) for ranks in (shuffled, local))
        assert one == other


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_a_cache_hits_as_often_as_was_forecast_to_the_sample(
    split, weights, tmp_path: Path, share: float
) -> None:
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, share), warmup="blocking")
    memory_nbytes = config.memory_nbytes
    assert memory_nbytes is not None
    job = Job(
        topology=Topology(),
        nodes=equal_nodes(1, memory_bytes=memory_nbytes),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.record_nbytes,
        batch_per_rank=8,
        policy="shuffle",
        last="short",
        weights=weights,
    )
    plain = loading.global_epoch(split, 1, 8, weights=weights)
    with msdata.Loader(split, 8, cache=config, weights=weights, threads=2) as loader:
        for epoch in range(3):
            batches = loading.run_epoch(loader)
            if epoch == 0:
                loading.assert_equal_batches(batches, plain)
                continue
            tiers = loader.stats()["tiers"]
            found = [tiers[t]["samples"] for t in ("local", "ssd", "peer", "storage")]
            assert found == forecast_epoch(job, own_job(job), epoch).tier_samples[0].tolist()


REFUSED = {
    "policy 'block' reads whole shards": {"policy": "block"},
    "weights must be 300 numbers, one per sample": {"weights": np.ones(3)},
    "at least 0, got 2 others, the first nan for sample 1": {"at": {1: np.nan, 4: -1}},
    "all weights are 0": {"at": {...: 0.0}},
    "weights must be numbers, one per sample": {"weights": ["a", "b"]},
}


@pytest.mark.parametrize("says", REFUSED)
def test_weights_of_another_split_or_kind_are_refused_with_a_sentence(split, says: str) -> None:
    options = dict(REFUSED[says])
    weights = options.pop("weights", np.ones(len(split)))
    for place, value in options.pop("at", {}).items():
        weights[place] = value
    with pytest.raises(UsageError, match=says) as caught:
        msdata.Loader(split, 8, weights=weights, **options)
    assert "\n" not in str(caught.value)


def test_a_state_of_other_weights_is_refused(split, weights) -> None:
    with msdata.Loader(split, 8, weights=weights) as loader:
        state = loader.state_dict()
    with (
        msdata.Loader(split, 8) as other,
        pytest.raises(UsageError, match="make the loader with the weights it was saved with"),
    ):
        other.load_state_dict(state)


def test_weights_that_the_caller_changes_later_change_nothing(split, weights) -> None:
    given_away = weights.copy()
    with msdata.Loader(split, 8, weights=given_away) as loader:
        given_away[:] = 0
        ids = loading.ids_of(loading.run_epoch(loader))
    with msdata.Loader(split, 8, weights=weights) as loader:
        assert ids == loading.ids_of(loading.run_epoch(loader))


def test_drawing_a_million_samples_costs_no_more_than_some_shuffles() -> None:
    def seconds(**options: Any) -> float:
        started_s = time.process_time()
        epoch_order("shuffle", seed=0, epoch=0, num_samples=1 << 20, **options)
        return time.process_time() - started_s

    shuffle, weighted = seconds(), seconds(weights=np.random.default_rng(0).random(1 << 20))
    assert weighted < 30 * shuffle + 0.5
