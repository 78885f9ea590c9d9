"""The cache's question: private caches by hand, forecast = measured in a run of all contestants."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import caching
import numpy as np
import packing
import pytest
from hypothesis import given
from hypothesis import strategies as st

import msdata
import msdata.loader.loader
from benchmarks.__main__ import main
from benchmarks.questions.cache import joined
from benchmarks.questions.cache_plan import (
    CONTESTANTS,
    add_forecast_times,
    make_setup,
    predict,
    ratios_of,
)
from benchmarks.questions.private_cache import LRU, NEVER_EVICTS, PrivateCache, PrivateTable
from benchmarks.questions.rank import SEED, SlowedReader, Throttle
from benchmarks.report import read_results
from msdata.dataset.dataset import Split
from msdata.errors import DataError
from msdata.plan.order import epoch_order
from msdata.topology import Topology

NUM_SAMPLES = 128


@pytest.fixture(scope="module")
def split(packed: Callable[..., Path], tiny_source: Path) -> Split:
    data = packed(tiny_source, *packing.TINY_SHARDS, "--format", "tar", "--split", "1,0,0")
    return msdata.open(data).split("train")


def hits(table: PrivateTable, *batches: list[int]) -> list[list[int]]:
    """Which samples of each batch are hits."""
    found = []
    for batch in batches:
        slots, _ = table.take(batch)
        found.append([s for s, slot in zip(batch, slots, strict=True) if slot >= 0])
    return found


def test_an_lru_cache_by_hand() -> None:
    # Three places: 0 1 2 | 3 takes 0's | 1 stays as it was asked for again, 4 takes 2's | ...
    table = PrivateTable(3, LRU)
    batches = [0, 1, 2], [3], [1], [4], [2, 1, 3]
    assert hits(table, *batches) == [[], [], [1], [], [1]]


def test_a_cache_that_never_evicts_keeps_what_came_first() -> None:
    table = PrivateTable(3, NEVER_EVICTS)
    assert hits(table, [0, 1, 2, 3], [3, 2, 1, 0], [4, 0]) == [[], [2, 1, 0], [0]]


def test_a_cache_without_room_has_no_hits() -> None:
    assert hits(PrivateTable(0, LRU), [0, 1], [1, 0]) == [[], []]
    assert hits(PrivateTable(0, NEVER_EVICTS), [0], [0]) == [[], []]


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), max_size=30), st.integers(1, 8)
)
def test_a_slot_holds_the_sample_that_was_put_there_last(
    batches: list[list[int]], capacity: int
) -> None:
    table, recent, held = PrivateTable(capacity, LRU, num_spare=6), [], {}
    for batch in batches:
        found, kept = table.take(batch)
        for sample, slot, new in zip(batch, found, kept, strict=True):
            assert (slot >= 0) == (sample in recent)
            if slot >= 0:
                assert held[slot] == sample
                recent.remove(sample)
            else:
                # What the batch itself still reads is not given away yet.
                assert new not in found
                held[new] = sample
            recent.append(sample)
            del recent[:-capacity]
        assert len({s for s in held.values() if s in recent}) == len(recent)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_over_fresh_permutations_lru_has_the_hits_of_its_formula(share: float) -> None:
    num_samples = 20_000
    capacity = int(share * num_samples)
    found: dict[str, list[int]] = {LRU: [], NEVER_EVICTS: []}
    for policy, counts in found.items():
        table = PrivateTable(capacity, policy)
        for epoch in range(3):
            order = epoch_order("shuffle", seed=0, epoch=epoch, num_samples=num_samples).tolist()
            counts.append(len(hits(table, order)[0]))
    assert found[NEVER_EVICTS] == [0, capacity, capacity]
    # Of distance d into the epoch a sample is still there if fewer than `capacity` others came
    # since: the mean over d is c + (1 - c) ln(1 - c).
    expected = share + (1 - share) * math.log(1 - share)
    assert found[LRU][2] / num_samples == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("policy", [LRU, NEVER_EVICTS])
@pytest.mark.parametrize("capacity", [0, 3, 100, 1000])
@pytest.mark.parametrize("is_streaming", [True, False])
def test_batches_through_a_private_cache_are_those_without_one(
    split: Split,
    policy: str,
    capacity: int,
    is_streaming: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_streaming:
        monkeypatch.setattr("benchmarks.questions.private_cache.stream_fill", None)
    options = {"seed": SEED, "topology": Topology(), "prefetch": 2, "across_epochs": False}
    cache = PrivateCache(table=PrivateTable(capacity, policy, 5 * caching.BATCH))
    with msdata.Loader(split, caching.BATCH, **options) as plain:
        monkeypatch.setattr(msdata.loader.loader, "open_node_cache", lambda *_, **__: cache)
        with msdata.Loader(split, caching.BATCH, **options) as cached:
            for epoch in range(3):
                caching.assert_same_batches(caching.copies(cached), caching.copies(plain))
                tiers = cached.stats()["tiers"]
                if policy == NEVER_EVICTS and epoch:
                    assert tiers["local"]["samples"] == min(capacity, len(split))
                total = tiers["local"]["samples"] + tiers["storage"]["samples"]
                assert total == len(split)


def test_a_throttle_gives_no_more_than_its_rate(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttle = Throttle()
    nbytes = caching.split_nbytes(split)
    throttle.bytes_per_s = nbytes / 0.4
    monkeypatch.setattr(
        msdata.loader.loader, "SampleReader", lambda *args: SlowedReader(throttle, *args)
    )
    with msdata.Loader(split, caching.BATCH, topology=Topology(), across_epochs=False) as loader:
        started_s = time.perf_counter()
        assert sum(len(batch["sample_id"]) for batch in loader) == len(split)
        assert time.perf_counter() - started_s > 0.39


def said(num_samples: int, *ranks: list[int]) -> list[dict[str, Any]]:
    """What ranks say that saw these samples."""
    answers = []
    for samples in ranks:
        seen = np.zeros(num_samples, bool)
        seen[samples] = True
        answers.append(
            {
                "epoch": 3,
                "seconds": 1.0 + len(answers),
                "num_samples": len(samples),
                "seen": np.packbits(seen).tobytes().hex(),
                "tiers": [0, 0, 0, len(samples)],
                "tier_bytes": [0, 0, 0, 7 * len(samples)],
            }
        )
    return answers


def test_an_epoch_counts_only_if_every_sample_came_once() -> None:
    epoch = joined("x", said(11, [0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]), 11)
    assert (epoch.number, epoch.seconds) == (3, 2.0)
    assert epoch.tier_bytes.tolist() == [[0, 0, 0, 42], [0, 0, 0, 35]]
    for ranks in (([0, 1], [3]), ([0, 1, 2], [2, 3]), ([0, 1, 2], [3, 3]), ([0, 1], [2, 2])):
        with pytest.raises(DataError, match=r"x, epoch 3: of 4 samples \d did not come"):
            joined("x", said(4, *ranks), 4)


def point(contestant: str, seconds: list[float], tiers: list[int], **more: Any) -> dict[str, Any]:
    """A point of one node and samples of 10 bytes, as `benchmarks.questions.cache` writes it."""
    epochs = [
        {
            "epoch": 2 + number,
            "seconds": s,
            "tier_samples": [tiers],
            "forecast_tier_samples": [tiers],
            "tier_bytes": [[10 * t for t in tiers]],
        }
        for number, s in enumerate(seconds)
    ]
    rates = [sum(tiers) / s for s in seconds]
    fields = {"num_nodes": 1, "share": 1.1, "storage_bytes_per_s": None, **more}
    return {"contestant": contestant, "epochs": epochs, "rates": rates, **fields}


def test_times_are_predicted_from_the_rates_of_the_same_run() -> None:
    slow = {"storage_bytes_per_s": 25.0, "share": 0.55}
    points = [
        point("locality", [1.0, 3.0, 2.0], [100, 0, 0, 0]),
        point("none", [10.0], [0, 0, 0, 100], share=0.55),
        point("lru", [9.0], [20, 0, 0, 80], share=0.55),
        point("locality", [22.0, 20.0], [50, 0, 0, 50], **slow),
        point("none", [44.0, 40.0], [0, 0, 0, 100], **slow),
    ]
    rates = add_forecast_times(points, 10)
    assert rates == {1: {"memory": 500.0, "network": None, "storage": 100.0}}
    assert [p["is_calibration"] for p in points] == [True, True, False, False, False]
    # 80 samples of 10 bytes at 100 bytes/s; half of the samples at 25 bytes/s; all of them.
    assert [p["forecast_s"] for p in points[2:]] == [8.0, 20.0, 40.0]
    assert points[3]["time_over_forecast"] == {"median": 1.05, "least": 1.0, "greatest": 1.1}
    assert points[3]["bound_by"] == "storage"
    (ratio,) = ratios_of(points).values()
    assert ratio["median"] == 2.0


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A run of all contestants on one and two pretended nodes, 6 MB of stamps."""
    if not packing.mpiexec().exists():
        pytest.skip("pip install mpich mpi4py")
    out = tmp_path_factory.mktemp("cache")
    words = ["cache", "--mock", str(NUM_SAMPLES), "--workload", "stamps", "--quick"]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main([*words, "--out", str(out)]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert not [p for p in Path("/dev/shm").glob("msdata-*") if str(os.getpid()) in p.name]
    (found,) = read_results(out)
    assert "points" not in found
    (whole,) = read_results(out / "raw")
    yield whole


def epochs_of(result: dict[str, Any], name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All points of a contestant, each with each of its epochs."""
    points = [p for p in result["points"] if p["contestant"] == name]
    return [(p, epoch) for p in points for epoch in p["epochs"]]


@pytest.mark.mpi
def test_every_contestant_reads_from_each_tier_what_was_predicted(result: dict[str, Any]) -> None:
    seen = Counter()
    for name in CONTESTANTS:
        for place, epoch in epochs_of(result, name):
            assert epoch["tier_samples"] == epoch["forecast_tier_samples"]
            assert epoch["tier_bytes"] == epoch["forecast_tier_bytes"]
            nbytes = result["sample_nbytes"] * np.array(epoch["tier_samples"])
            assert epoch["tier_bytes"] == nbytes.tolist()
            assert place["is_as_forecast"]
            seen[name, place["num_nodes"], place["share"]] += 1
    assert len(seen) == len(CONTESTANTS) * 4


@pytest.mark.mpi
def test_hits_are_those_that_the_memory_allows(result: dict[str, Any]) -> None:
    for name in ("locality", "shuffle", "block"):
        for place, epoch in epochs_of(result, name):
            local, _, peer, storage = np.array(epoch["tier_samples"]).sum(axis=0).tolist()
            room = place["num_nodes"] * place["memory_nbytes"] // result["sample_nbytes"]
            most = min(room, NUM_SAMPLES)
            # Whole shards, of two samples, on each node.
            assert most - 2 * place["num_nodes"] <= local + peer <= most
            assert local + peer + storage == NUM_SAMPLES
            assert (peer == 0) == (place["num_nodes"] == 1)
    for _, epoch in epochs_of(result, "none"):
        assert np.array(epoch["tier_samples"]).sum(axis=0).tolist() == [0, 0, 0, NUM_SAMPLES]


@pytest.mark.mpi
def test_private_caches_on_one_node_have_the_hits_of_the_order_reckoned_by_hand(
    result: dict[str, Any],
) -> None:
    for name in ("lru", "never-evict"):
        for place, epoch in epochs_of(result, name):
            if place["num_nodes"] > 1:
                continue
            capacity = place["memory_nbytes"] // result["sample_nbytes"]
            held: list[int] = []
            for number in range(epoch["epoch"] + 1):
                order = epoch_order("shuffle", seed=SEED, epoch=number, num_samples=NUM_SAMPLES)
                found = 0
                for sample in order.tolist():
                    found += sample in held
                    if name == "lru":
                        held = [*(s for s in held if s != sample), sample][-capacity:]
                    elif sample not in held and len(held) < capacity:
                        held.append(sample)
            assert epoch["tier_samples"] == [[found, 0, 0, NUM_SAMPLES - found]]


@pytest.mark.mpi
def test_the_report_has_the_tables_and_says_whether_the_forecast_held(
    result: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "cache.json").write_text(json.dumps(result))
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for contestant in CONTESTANTS.values():
        assert page.count(f"<td>{contestant.title}</td>") > 8
    for words in ("Every point", "Bytes by tier", "this benchmark, after MinIO", "bound by"):
        assert words in page
    assert page.count('<svg class="chart"') == len(result["shown"]["charts"]) >= 5
    assert "were exactly as forecast in all of them" in page
    assert "were exactly as forecast in all of them" in (tmp_path / "report.md").read_text()
    assert main(["compare", str(tmp_path / "cache.json"), str(tmp_path / "cache.json")]) == 0


def test_the_forecast_of_private_caches_replays_each_rank_by_itself(split: Split) -> None:
    setup = make_setup(split, 2, 0.55, caching.BATCH)
    capacity = setup.memory_nbytes // split.schema.sample_nbytes
    forecasts = predict(split, setup, "never-evict")
    assert next(forecasts).tier_samples[:, 0].tolist() == [0, 0]
    # Whoever keeps c of the data finds c of its own half of an epoch.
    later = np.array([next(forecasts).tier_samples for _ in range(20)])
    assert (later.sum(axis=2) == later[0].sum(axis=1)).all()
    share = later[:, :, 0].sum() / later.sum()
    assert share == pytest.approx(capacity / len(split), abs=0.03)


@pytest.mark.mpi
@pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py")
@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("3", "3 samples are too few to cache a part of; give at least 16"),
        ("999999999", "iB of memory, which this machine does not have free"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence_before_anything_is_made(
    number: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "--mock", number, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.pkl"))
