"""A run that stops at any step resumes, sample by sample, on any number of ranks."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import loading
import numpy as np
import pytest

import msdata
from msdata.errors import UsageError

Packed = Callable[..., Path]
NUMS_RANKS = (1, 2, 3, 4)
GLOBAL_BATCH = 24
OTHER_GLOBAL_BATCH = 36


@pytest.fixture
def split(tiny_source: Path, packed: Packed, request: pytest.FixtureRequest):
    layout = getattr(request, "param", "tar")
    return loading.open_train(packed(tiny_source, *loading.options_of(layout)))


@pytest.fixture
def teams(split) -> Iterator[Callable[..., list[msdata.Loader]]]:
    """Makes the loaders of all ranks of a job, each job's once."""
    with ExitStack() as stack:
        made: dict[Any, list[msdata.Loader]] = {}

        def team(num_ranks: int, global_batch: int, **options: Any) -> list[msdata.Loader]:
            key = (num_ranks, global_batch, *sorted(options.items()))
            if key not in made:
                made[key] = [
                    stack.enter_context(
                        msdata.Loader(
                            split,
                            global_batch // num_ranks,
                            topology=loading.topology(num_ranks, rank),
                            threads=1,
                            prefetch=1,
                            **options,
                        )
                    )
                    for rank in range(num_ranks)
                ]
            return made[key]

        yield team


def go_on(team: list[msdata.Loader], state: dict, num_epochs: int = 1) -> list[dict]:
    """The global batches from a state on, to the end of so many epochs."""
    by_rank = []
    for loader in team:
        loader.load_state_dict(state)
        by_rank.append([b for _ in range(num_epochs) for b in loading.run_epoch(loader)])
    return [loading.joined(step) for step in zip(*by_rank, strict=True)]


def states_at_every_step(team: list[msdata.Loader]) -> list[dict]:
    """What state_dict says before the first batch and after each; the same on every rank."""
    by_rank = []
    for loader in team:
        start = {**loader.state_dict(), "epoch": 0, "position": 0}
        loader.load_state_dict(start)
        by_rank.append([start, *(loader.state_dict() for _ in loader)])
    for step in zip(*by_rank, strict=True):
        assert all(state == step[0] for state in step)
    return by_rank[0]


@pytest.mark.parametrize(
    ("split", "policy"),
    [
        *(("tar", policy) for policy in ("shuffle", "block")),
        *((layout, "shuffle") for layout in ("codes", "coded", "coded chunks")),
    ],
    indirect=["split"],
)
@pytest.mark.parametrize("last", ["short", "pad", "drop"])
def test_a_state_of_any_step_resumes_alike_on_any_number_of_ranks(teams, policy, last) -> None:
    options = {"policy": policy, "remainder": last, "buffer_samples": 50}
    wanted = loading.global_epoch(
        teams(1, GLOBAL_BATCH, **options)[0]._split, 1, GLOBAL_BATCH, **options
    )
    states = states_at_every_step(teams(1, GLOBAL_BATCH, **options))
    assert len(states) == len(wanted) + 1
    for num_ranks in NUMS_RANKS:
        team = teams(num_ranks, GLOBAL_BATCH, **options)
        assert states_at_every_step(team) == states
        for step, state in enumerate(states[:-1]):
            through_json = json.loads(json.dumps(state))
            found = go_on(team, through_json)
            if last == "pad":
                # The padding is drawn from the order's start: equal too.
                assert found[-1]["is_real"].sum() == loading.NUM_SAMPLES % GLOBAL_BATCH
            loading.assert_equal_batches(found, wanted[step:])


@pytest.mark.parametrize("num_ranks", NUMS_RANKS)
def test_another_global_batch_resumes_at_the_same_sample(teams, num_ranks) -> None:
    order = loading.ids_of(go_on(teams(1, GLOBAL_BATCH), _start(teams)))
    other = teams(num_ranks, OTHER_GLOBAL_BATCH)
    for step, state in enumerate(states_at_every_step(teams(2, GLOBAL_BATCH))[:-1]):
        assert loading.ids_of(go_on(other, state)) == order[step * GLOBAL_BATCH :]


def _start(teams) -> dict:
    return {**teams(1, GLOBAL_BATCH)[0].state_dict(), "epoch": 0, "position": 0}


@pytest.mark.parametrize("num_ranks", NUMS_RANKS)
def test_a_run_resumes_over_the_end_of_its_epoch(teams, num_ranks) -> None:
    wanted = go_on(teams(1, GLOBAL_BATCH), _start(teams), num_epochs=3)
    states = states_at_every_step(teams(3, GLOBAL_BATCH))
    # After the last batch, the state is the next epoch's beginning.
    assert (states[-1]["epoch"], states[-1]["position"]) == (1, 0)
    for step in (0, 5, 12, 13):
        epochs_left = 3 if step < 13 else 2
        found = go_on(teams(num_ranks, GLOBAL_BATCH), states[step], num_epochs=epochs_left)
        loading.assert_equal_batches(found, wanted[step:])


def test_set_epoch_after_load_state_dict_keeps_the_position_in_that_epoch(teams) -> None:
    loader = teams(1, GLOBAL_BATCH)[0]
    wanted = loading.run_epoch(loader)
    state = {**_start(teams), "position": 5 * GLOBAL_BATCH}
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    loader.set_epoch(0)
    assert loader.state_dict() == state
    loading.assert_equal_batches(loading.run_epoch(loader), wanted[5:])
    loader.load_state_dict(state)
    loader.set_epoch(4)
    assert loader.state_dict() == {**state, "epoch": 4, "position": 0}
    assert len(loading.run_epoch(loader)) == len(loader)


def test_a_position_is_taken_up_once(teams) -> None:
    loader = teams(1, GLOBAL_BATCH)[0]
    loader.load_state_dict({**_start(teams), "position": 240})
    assert len(loading.run_epoch(loader)) == 3
    assert len(loading.run_epoch(loader)) == len(loader)
    assert loader.state_dict()["epoch"] == 2


def test_a_position_that_leaves_nothing_resumes_with_the_next_epoch(teams) -> None:
    loader = teams(1, GLOBAL_BATCH, remainder="drop")[0]
    loader.load_state_dict({**_start(teams), "position": 288})
    assert loader.state_dict()["epoch"] == 1
    found = loading.run_epoch(loader)
    assert len(found) == 12
    loader.set_epoch(1)
    loading.assert_equal_batches(loading.run_epoch(loader), found)


def test_a_state_loaded_during_an_epoch_ends_it(teams) -> None:
    loader = teams(1, GLOBAL_BATCH)[0]
    wanted = loading.run_epoch(loader)
    running = iter(loader)
    next(running)
    loader.load_state_dict({**_start(teams), "position": 48})
    with pytest.raises(UsageError, match="or a state loaded"):
        next(running)
    loading.assert_equal_batches(loading.run_epoch(loader), wanted[2:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fingerprint": "0" * 16}, "saved with fingerprint '0000000000000000', this loader has"),
        ({"seed": 9}, "saved with seed 9, this loader has 0"),
        ({"policy": "block"}, "saved with policy 'block', this loader has 'shuffle'"),
        ({"buffer_samples": 7}, "saved with buffer_samples 7, this loader has 0"),
        ({"split": "val"}, "saved with split 'val', this loader has 'train'"),
        ({"position": 301}, "position 301 is past the split's end"),
        ({"position": -1}, "position of a loader state must be .*, got -1"),
        ({"epoch": -1}, "epoch of a loader state must be .*, got -1"),
        ({"position": 1.5}, "position of a loader state must be .*, got 1.5"),
        ({"version": 2}, "version 2, this msdata reads up to 1"),
        (
            {"partition": "2 rank(s) of 12"},
            r"saved with partition '2 rank\(s\) of 12', this loader",
        ),
        ({"color": "red"}, "cannot read the loader state: .*color"),
    ],
)
def test_a_state_of_another_run_is_refused_and_changes_nothing(teams, change, says) -> None:
    loader = teams(1, GLOBAL_BATCH)[0]
    before = loader.state_dict()
    with pytest.raises(UsageError, match=says) as caught:
        loader.load_state_dict({**before, **change})
    assert "\n" not in str(caught.value)
    assert loader.state_dict() == before


def test_a_state_costs_less_than_a_tenth_of_a_millisecond(teams) -> None:
    loader = teams(2, GLOBAL_BATCH)[1]
    times = []
    for _ in itertools.islice(loader, 10):
        for _ in range(20):
            started = time.thread_time()
            loader.state_dict()
            times.append(time.thread_time() - started)
    assert statistics.median(times) < 100e-6
    assert np.isfinite(times).all()


def test_a_partition_resumes_on_as_many_ranks_alone_and_hands_each_its_own_samples(teams) -> None:
    options = {"policy": "partition"}
    team = teams(2, GLOBAL_BATCH, **options)
    states = states_at_every_step(team)
    wanted = go_on(team, states[0], num_epochs=2)
    assert loading.ids_of(go_on(team, states[5], num_epochs=2)) == loading.ids_of(wanted[5:])
    for num_ranks, batch in ((1, GLOBAL_BATCH), (2, OTHER_GLOBAL_BATCH)):
        with pytest.raises(UsageError, match=r"partition '2 rank\(s\) of 12', this loader has"):
            teams(num_ranks, batch, **options)[0].load_state_dict(states[5])
    own = [set(loading.ids_of([b for _ in range(3) for b in loading.run_epoch(r)])) for r in team]
    assert not own[0] & own[1]
    assert len(own[0] | own[1]) == loading.NUM_SAMPLES


def test_a_partition_that_would_be_padded_with_samples_of_others_is_refused(teams) -> None:
    with pytest.raises(UsageError, match="cannot fill the last batch with samples of other ranks"):
        teams(2, GLOBAL_BATCH, policy="partition", remainder="pad")
