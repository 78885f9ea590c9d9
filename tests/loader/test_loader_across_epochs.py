"""An epoch's first batches are filled while the epoch before ends, and batches do not show it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import loading
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import msdata
from msdata.errors import DataError

Packed = Callable[..., Path]

BATCH_SIZE = 40
PREFETCH = 2

# What a user may do: run some steps or all, choose an epoch, go on from the state just saved.
ACTIONS = st.one_of(
    st.tuples(st.just("run"), st.integers(1, 7)),
    st.tuples(st.just("run"), st.none()),
    st.tuples(st.just("set_epoch"), st.integers(0, 3)),
    st.tuples(st.just("resume"), st.none()),
)


@pytest.fixture(scope="module")
def split(tiny_source: Path, packed: Packed):
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


def settle(loader: msdata.Loader) -> int:
    """Waits until all that is in flight has come; returns how many batches that are."""
    deadline = time.monotonic() + 60
    while not all(filling.done.is_set() for _, filling in loader._in_flight):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return len(loader._in_flight)


def replay(split, actions, **options):
    """The ids of all batches and the states after each action."""
    found = []
    with msdata.Loader(split, BATCH_SIZE, threads=2, prefetch=PREFETCH, **options) as loader:
        for name, number in actions:
            if name == "run":
                found += [b["sample_id"].tolist() for b in itertools.islice(loader, number)]
            elif name == "set_epoch":
                loader.set_epoch(number)
            else:
                loader.load_state_dict(loader.state_dict())
            found.append(loader.state_dict())
    return found


@settings(max_examples=40, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=8), last=st.sampled_from(["short", "drop", "pad"]))
def test_batches_and_states_are_the_same_with_and_without(split, actions, last) -> None:
    wanted = replay(split, actions, remainder=last, across_epochs=False)
    assert replay(split, actions, remainder=last, across_epochs=True) == wanted


def test_batches_begun_ahead_hold_the_right_bytes(split) -> None:
    with msdata.Loader(split, BATCH_SIZE, prefetch=PREFETCH) as loader:
        for batch in itertools.chain(loader, loader, loader):
            loading.assert_true_to_source(batch)


def test_the_second_epoch_begins_without_a_wait(split) -> None:
    with msdata.Loader(split, BATCH_SIZE, prefetch=PREFETCH) as loader:
        # An order that is not there yet is not waited for, and a busy machine may be late.
        loader._planner._future(1).result()
        loading.run_epoch(loader)
        assert settle(loader) == PREFETCH
        next(iter(loader))
        assert loader.stats()["wait_s"] == 0
        assert loader.stats()["epoch"] == 1


def test_a_loader_told_not_to_begins_nothing_ahead(split) -> None:
    with msdata.Loader(split, BATCH_SIZE, across_epochs=False) as loader:
        loading.run_epoch(loader)
        assert not loader._in_flight


def test_with_a_cache_nothing_is_read_ahead_so_that_counts_are_exact_per_epoch(split) -> None:
    config = msdata.CacheConfig(memory_gib=0.1)
    with msdata.Loader(split, BATCH_SIZE, cache=config) as loader:
        for _ in range(2):
            loading.run_epoch(loader)
            assert not loader._in_flight
            tiers = loader.stats()["tiers"]
            assert sum(count["samples"] for count in tiers.values()) == len(split)


def test_a_fault_of_the_next_epoch_is_raised_by_the_next_epoch(split, monkeypatch) -> None:
    with msdata.Loader(split, BATCH_SIZE, prefetch=PREFETCH) as loader:
        plan, num_planned = loader._reader.plan, itertools.count()

        def fail_late(samples, buffer):
            if next(num_planned) >= len(loader):
                raise DataError("a shard is missing")
            return plan(samples, buffer)

        monkeypatch.setattr(loader._reader, "plan", fail_late)
        assert len(loading.ids_of(loading.run_epoch(loader))) == len(split)
        with pytest.raises(DataError, match="a shard is missing"):
            loading.run_epoch(loader)


def test_a_process_that_ends_with_batches_begun_ahead_ends_well(split) -> None:
    code = (
        "import msdata\n"
        f"split = msdata.open({str(split.dataset.path)!r}).split('train')\n"
        f"loader = msdata.Loader(split, {BATCH_SIZE}, threads=4, prefetch={PREFETCH})\n"
        "loader._planner._future(1).result()\n"
        "print(sum(len(batch['image']) for batch in loader), len(loader._in_flight))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.split() == [str(len(split)), "2"]
