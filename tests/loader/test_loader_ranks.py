"""Loaders on many ranks: together they make the epoch of one, in equally many steps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import loading
import numpy as np
import packing
import pytest

import msdata
from msdata.errors import UsageError
from msdata.plan.order import LAST, epoch_order

Packed = Callable[..., Path]

# Prints the ids of an epoch's batches on one rank, whose place a launcher's variables say.
RANK_PROGRAM = """
import json, sys, msdata
with msdata.Loader(msdata.open(sys.argv[1]).split("train"), 32, seed=3, threads=1) as loader:
    print(json.dumps([batch["sample_id"].tolist() for batch in loader]))
"""


@pytest.fixture
def split(tiny_source: Path, packed: Packed):
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


def rank_epochs(split, num_ranks: int, batch_size: int, **options) -> list[list[dict]]:
    """The batches of an epoch on each rank."""
    found = []
    for rank in range(num_ranks):
        place = loading.topology(num_ranks, rank)
        with msdata.Loader(split, batch_size, topology=place, threads=1, **options) as loader:
            found.append(loading.run_epoch(loader))
            assert len(found[-1]) == len(loader)
    return found


@pytest.mark.parametrize("policy", ["shuffle", "block"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ranks_share_nothing_and_leave_out_nothing(split, num_ranks, policy) -> None:
    ranks = rank_epochs(split, num_ranks, 16, policy=policy)
    assert len({len(batches) for batches in ranks}) == 1
    ids = [loading.ids_of(batches) for batches in ranks]
    together = sorted(i for of_rank in ids for i in of_rank)
    assert together == [f"{n:07d}" for n in range(loading.NUM_SAMPLES)]
    for batches in ranks:
        for batch in batches:
            loading.assert_true_to_source(batch)


@pytest.mark.parametrize(
    ("global_batch", "last"),
    # A batch larger than the split, which "drop" would leave without a step.
    [case for case in itertools.product((12, 48, 420), LAST) if case != (420, "drop")],
)
def test_a_global_batch_is_the_same_on_any_number_of_ranks(split, global_batch, last) -> None:
    wanted = loading.global_epoch(split, 1, global_batch, remainder=last)
    for num_ranks in (2, 3, 4):
        found = loading.global_epoch(split, num_ranks, global_batch, remainder=last)
        loading.assert_equal_batches(found, wanted)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_an_incomplete_last_batch_is_left_out_where_asked(split, num_ranks) -> None:
    ranks = rank_epochs(split, num_ranks, 32, remainder="drop")
    wanted = loading.NUM_SAMPLES // (32 * num_ranks)
    for batches in ranks:
        assert [len(batch["image"]) for batch in batches] == [32] * wanted
        assert all("is_real" not in batch for batch in batches)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_an_incomplete_last_batch_is_padded_and_says_so_where_asked(split, num_ranks) -> None:
    ranks = rank_epochs(split, num_ranks, 32, remainder="pad")
    assert {len(batch["image"]) for batches in ranks for batch in batches} == {32}
    real = [i for b in ranks for batch in b for i in batch["sample_id"][batch["is_real"]]]
    assert sorted(real) == [f"{n:07d}" for n in range(loading.NUM_SAMPLES)]
    last = [batches[-1] for batches in ranks]
    padding = loading.joined([{"id": b["sample_id"][~b["is_real"]]} for b in last])["id"]
    first = [i for batches in ranks for i in batches[0]["sample_id"]]
    assert padding.tolist() == first[: len(padding)]
    assert all(batch["is_real"].all() for batches in ranks for batch in batches[:-1])


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_an_incomplete_last_batch_is_dealt_out_evenly(split, num_ranks) -> None:
    ranks = rank_epochs(split, num_ranks, 32)
    sizes = [len(batches[-1]["image"]) for batches in ranks]
    assert sum(sizes) == loading.NUM_SAMPLES % (32 * num_ranks)
    assert max(sizes) - min(sizes) <= 1


def test_a_rank_may_get_none_of_a_short_batch_and_still_makes_the_step(split) -> None:
    # 300 = 7 x 42 + 6: in the last step one rank of seven has nothing.
    ranks = rank_epochs(split, 7, 42)
    assert [[len(batch["image"]) for batch in batches] for batches in ranks] == [[42, 0]] + [
        [42, 1]
    ] * 6
    empty = ranks[0][-1]
    assert empty["image"].shape == (0, 3, 8, 8)
    assert empty["sample_id"].shape == empty["redshift"].shape == (0,)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_split_smaller_than_the_global_batch_is_one_step_or_refused(split, num_ranks) -> None:
    counts = {}
    says = rf"split 'train' has 300 samples, a global batch {400 * num_ranks:,} \(batch_size 400 on"
    with pytest.raises(UsageError, match=f"remainder='drop' leaves no step: {says}"):
        rank_epochs(split, num_ranks, 400, remainder="drop")
    for last in ("pad", "short"):
        ranks = rank_epochs(split, num_ranks, 400, remainder=last)
        counts[last] = [[len(batch["image"]) for batch in batches] for batches in ranks]
    assert counts["pad"] == [[400]] * num_ranks
    assert counts["short"] == [[300 // num_ranks]] * num_ranks


@pytest.mark.parametrize("last", LAST)
def test_an_empty_split_has_epochs_of_no_steps(split, last) -> None:
    empty = type(split)(split.dataset, "train", split._index)
    empty.shards = ()
    empty.column_parts = lambda column: iter(())  # type: ignore[method-assign]
    empty.numbers = lambda column, dtype=float: np.zeros(0, dtype)  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="split 'train' has no samples: its epochs have no"):
        made = msdata.Loader(empty, 8, remainder=last)
    with made as loader:
        assert len(loader) == 0
        assert list(loader) == list(loader) == []
        assert loader.state_dict()["epoch"] == 2


def test_launchers_variables_place_the_rank(split, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(3):
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        with msdata.Loader(split, 20) as loader:
            found = loading.run_epoch(loader)
        loading.assert_equal_batches(found, rank_epochs(split, 3, 20)[rank])


def test_three_processes_under_a_launcher_share_an_epoch(split) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, str(split.dataset.path)],
            env=packing.environment(RANK=str(r), WORLD_SIZE="3", LOCAL_WORLD_SIZE="3"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(3)
    ]
    ranks = [json.loads(p.communicate(timeout=60)[0]) for p in processes]
    assert [p.returncode for p in processes] == [0] * 3
    found = [i for step in zip(*ranks, strict=True) for batch in step for i in batch]
    ids = np.array(split.table(["sample_id"]).column(0).to_pylist())
    assert found == ids[epoch_order("shuffle", seed=3, epoch=0, num_samples=300)].tolist()
