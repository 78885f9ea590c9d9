"""The loader: index and plan in, batches out, at the speed of memory.

A batch is filled by threads, in place, into one of a few buffers; nothing is collated, pickled or
sent between processes. The order is a function of (seed, epoch), so the state of a run is three
numbers, and a run goes on where it stopped on any number of ranks.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CacheConfig, Owners
from msdata.dataset.dataset import Split
from msdata.errors import MsdataError, UsageError
from msdata.loader.columns import BatchColumns
from msdata.loader.node_cache import open_node_cache
from msdata.loader.options import (
    allocate_ring,
    check_steps,
    checked_epoch,
    checked_sizes,
    default_threads,
    ring_size,
)
from msdata.loader.read import Filling, FillPool, SampleReader
from msdata.loader.state import LoaderState
from msdata.loader.stats import EpochCounters
from msdata.loader.steps import Step, StepPlanner, checked_weights
from msdata.plan import order
from msdata.topology import Topology, from_env

Batch = dict[str, Any]


class Loader:
    """Hands out shuffled batches of a split, one epoch per iteration, in memory that is used again.

    A batch's arrays live in a ring of buffers: the last `hold` batches are valid, by default
    `prefetch` + 1, then they are overwritten. To keep batches, as `list(loader)` does, ask for
    `copy=True`; a warning says so, once, where an overwritten batch is still in use. Every sample
    comes exactly once per epoch over all ranks, unless `weights` are given, and every rank makes
    equally many steps. A pickled loader resumes where it stood, in the process that unpickles it.

    Args:
        split: what to load; `msdata.open(path).split("train")`.
        batch_size: samples per step on this rank; mstrain's `batch_size` counts those of all ranks.
        seed: what the orders are drawn with; the same on every rank.
        policy: "shuffle" (uniform), "locality" (the same global batches, dealt to the ranks by who
            caches what; needs a cache) or "block" (shards in random order, shuffled in a buffer).
        topology: this rank's place; None takes it from the launcher's environment.
        cache: None; "auto", the node's shared memory as far as it is free; or a `CacheConfig`.
        threads: threads that fill batches; None means the cores this process may use, but 4
            to 8.
        prefetch: batches filled ahead, at least 1. From memory two give what three give, at less
            memory; from a disk three gave a tenth more.
        hold: how many batches stay valid, the newest included; None means prefetch + 1. The ring
            has prefetch + hold buffers: 1, where each batch is done with before the next is asked
            for, takes least memory.
        copy: give each batch memory of its own, at the price of one more copy.
        across_epochs: while an epoch's last batches are used, fill the first of the next one, so
            that no epoch begins with a wait; without a cache only, whose counts by tier are exact
            to the epoch. False for a loader that runs one epoch, or the same one again.
        columns: columns of the index to hand out as well; None means `redshift` if there is one.
            Integers, truth values and text of which some are null come as `numpy.ma.MaskedArray`,
            as exact as they are; the null of floats is NaN.
        last: what becomes of an incomplete last global batch. "short": it is dealt out as evenly
            as can be, so ranks differ by one sample and a rank may get none; "drop": left out;
            "pad": filled from the start of the order, with `batch["is_real"]` telling which
            samples are real.
        buffer_samples: policy "block": a sample moves by less than this many places.
        verify: check every sample against its checksum; costs about 20 us a sample and thread.
        weights: float64 (len(split),), in the order of the index: the samples of an epoch are drawn
            with replacement in proportion to them, as many as the split has. Some then come
            several times an epoch and others not at all; `batch["repeat"]` tells how often each
            has come before, and augmentation draws anew. None takes each exactly once.

    Raises:
        UsageError: an option makes no sense.
        DataError: a shard is missing or truncated.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int = order.DEFAULT_BATCH_SIZE,
        *,
        seed: int = 0,
        policy: str = order.DEFAULT_POLICY,
        topology: Topology | None = None,
        cache: str | CacheConfig | None = None,
        threads: int | None = None,
        prefetch: int = 3,
        hold: int | None = None,
        copy: bool = False,
        across_epochs: bool = True,
        columns: Sequence[str] | None = None,
        last: str = order.DEFAULT_LAST,
        buffer_samples: int = order.DEFAULT_BUFFER_SAMPLES,
        verify: bool = False,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        batch_size, prefetch, hold = checked_sizes(self._arguments)
        weights = checked_weights(weights, policy, len(split))
        split.files.check_all()
        self._split, self._sample_nbytes = split, split.schema.sample_nbytes
        # A hash over all shards' entries: milliseconds, which a state is not worth at every step.
        self._fingerprint = split.dataset.manifest.fingerprint
        topology = from_env() if topology is None else topology
        self._arguments |= {"topology": topology, "weights": weights}
        check_steps(split, batch_size, last, topology.num_ranks)
        self._columns = BatchColumns(split, columns)
        ring = ring_size(split, batch_size, last, prefetch + hold)
        self._cache = open_node_cache(split, cache, topology, ring, policy=policy)
        self._planner = StepPlanner(
            policy=policy,
            seed=int(seed),
            shard_sizes=split.shard_sizes,
            buffer_samples=int(buffer_samples),
            batch_size=batch_size,
            topology=topology,
            last=last,
            owner_of_shard=self._cache.owner_of_shard,
            weights=weights,
        )
        self._storage = SampleReader(split, split.numbers("crc32c", np.uint32) if verify else None)
        self._reader = self._cache.reader(self._storage, split, is_checked=verify)
        self._ring = allocate_ring(split, ring, hold, self._storage.gaps)
        self._in_flight: deque[tuple[Step, Filling]] = deque()
        # The epoch of the last batches in flight, if it is not the one under way, and how many.
        self._crosses_epochs, self._copies = across_epochs and cache is None, copy
        self._ahead_epoch, self._num_ahead = -1, 0
        self._epoch = self._position = self._resume_at = 0
        # Counts iterations: an older one must not take the batches of the newest.
        self._iteration, self._pid = 0, os.getpid()
        self._stats = EpochCounters()
        # Last of all: whatever fails above leaves no threads behind.
        self._pool = FillPool(threads or default_threads(), self._reader)
        self._cache.start(weakref.WeakMethod(self._report), split, weights)
        stops = (self._pool.stop, self._planner.close, self._cache.stop)
        self._end = weakref.finalize(self, _end_threads, stops, self._in_flight, self._pid)

    def __len__(self) -> int:
        """Steps of a whole epoch, the same on every rank."""
        return self._planner.num_steps

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, or what is left of it after `load_state_dict`.

        An epoch that was left early begins anew; after its last batch comes the next one.

        Raises:
            UsageError: the loader was closed, or made in another process.
        """
        self._check_usable()
        position = self._resume_at
        if self._is_over(position or self._position):
            self._epoch, position = self._epoch + 1, 0
        self._position, self._resume_at = position, 0
        if position or not self._is_begun(self._epoch):
            self._cancel()
        self._iteration += 1
        return self._run_epoch(self._iteration, self._epoch, position)

    def _run_epoch(self, iteration: int, epoch: int, first_position: int) -> Iterator[Batch]:
        self._check_newest(iteration)
        order = self._planner.order(epoch)
        num_steps = self._planner.steps_left(first_position)
        self._cache.start_epoch()
        self._stats = EpochCounters(
            epoch=epoch,
            first_position=first_position,
            num_steps=num_steps,
            earlier_wait_s=self._stats.earlier_wait_s + self._stats.wait_s,
        )
        # What was begun while the epoch before ended, or nothing.
        submitted = len(self._in_flight)
        self._ahead_epoch, self._num_ahead = -1, 0
        for _ in range(num_steps):
            self._check_newest(iteration)
            self._ring.release()
            while self._ring and submitted < num_steps:
                self._submit(self._planner.step(order, first_position, submitted))
                submitted += 1
            if submitted == num_steps and self._crosses_epochs:
                self._begin_ahead(epoch + 1)
            yield self._next_batch()
        if iteration == self._iteration:
            self._epoch, self._position = epoch + 1, 0
            self._cache.end_epoch()

    def _begin_ahead(self, epoch: int) -> None:
        """Has what buffers are left filled with the first batches of the next epoch."""
        order = self._planner.order_at_hand(epoch)
        # A fault of that epoch is raised by that epoch.
        with suppress(MsdataError):
            while order is not None and self._ring and self._num_ahead < len(self):
                self._submit(self._planner.step(order, 0, self._num_ahead))
                self._ahead_epoch, self._num_ahead = epoch, self._num_ahead + 1

    def _is_begun(self, epoch: int) -> bool:
        """Whether the first batches of an epoch, and no others, are in flight."""
        return epoch == self._ahead_epoch and len(self._in_flight) == self._num_ahead

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                "this loader was made before a fork, which its threads do not survive; make the "
                "loader in the process that iterates it"
            )
        if not self._end.alive:
            raise UsageError("the loader was closed; make a new one")

    def _check_newest(self, iteration: int) -> None:
        self._check_usable()
        if iteration != self._iteration:
            raise UsageError(
                "another iteration of this loader was begun, or a state loaded: this one cannot "
                "go on; make a loader for each iteration that runs beside others"
            )

    def _is_over(self, position: int) -> bool:
        """Whether nothing of the epoch is left at a position."""
        return position > 0 and self._planner.steps_left(position) == 0

    def _submit(self, step: Step) -> None:
        filling = self._reader.plan(step.samples, self._ring.next_free)
        self._ring.take()
        self._in_flight.append((step, filling))
        self._pool.submit(filling)

    def _next_batch(self) -> Batch:
        step, filling = self._in_flight[0]
        if not filling.done.is_set():
            started_s = time.perf_counter()
            filling.done.wait()
            self._stats.wait_s += time.perf_counter() - started_s
        if filling.error is not None:
            self._cancel()
            filling.raise_error()
        self._in_flight.popleft()
        self._ring.hold(filling.buffer)
        self._position = step.end
        self._stats.count(len(step.samples), len(step.samples) * self._sample_nbytes)
        count = len(step.samples)
        batch: Batch = filling.buffer.copied(count) if self._copies else filling.buffer.lend(count)
        batch.update(self._columns.take(step.samples))
        if self._planner.last == "pad":
            batch["is_real"] = step.is_real
        if step.repeats is not None:
            batch["repeat"] = step.repeats
        return batch

    def _cancel(self) -> None:
        """Ends the iteration under way; batches handed out stay valid for as long as promised."""
        self._iteration += 1
        for _, filling in self._in_flight:
            filling.is_cancelled = True
        for _, filling in self._in_flight:
            filling.done.wait()
            self._ring.give_back(filling.buffer)
        self._in_flight.clear()
        self._ahead_epoch, self._num_ahead = -1, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration runs; without it they count up from 0.

        A position that `load_state_dict` set stays if it is of this epoch.
        """
        epoch = checked_epoch(epoch)
        if epoch != self._epoch or (self._is_over(self._position) and not self._resume_at):
            self._epoch, self._position, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, after the batches handed out so far; cheap enough for every step."""
        epoch, position = self._epoch, self._position
        if self._is_over(position):
            epoch, position = epoch + 1, 0
        return self._state(epoch, position).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next iteration go on where the state was saved, on any number of ranks.

        Raises:
            UsageError: the state is of another data set, split, seed or policy.
        """
        loaded = LoaderState.from_dict(state)
        loaded.check_fits(self._state(0, 0))
        if loaded.position > self._planner.num_samples:
            raise UsageError(f"the state's position {loaded.position} is past the split's end")
        self._check_usable()
        self._cancel()
        self._epoch = loaded.epoch
        self._position = self._resume_at = loaded.position

    def _state(self, epoch: int, position: int) -> LoaderState:
        return LoaderState(
            seed=self._planner.seed,
            epoch=epoch,
            position=position,
            policy=self._planner.policy,
            buffer_samples=self._planner.buffer_samples if self._planner.policy == "block" else 0,
            split=self._split.name,
            fingerprint=self._fingerprint,
            weights=self._planner.weights_digest,
        )

    def stats(self) -> dict[str, Any]:
        """Counters of the epoch under way, or of the last one, on this rank.

        Returns:
            `epoch`, `first_position` in its order, `num_steps` from there, `steps` done, `samples`,
            `bytes`, `seconds` since its start, `wait_s` (the caller waited for batches),
            `wait_fraction` of the seconds, `samples_per_s`, `bytes_per_s`; over all epochs
            `total_wait_s` and `cold_samples`, which were not in memory when they were read;
            `overwritten_batches` were still in use when their memory was taken for others;
            `is_streaming`: whether samples in memory are copied by the C module. With a cache also
            `tiers`, `totals` and `cache`, see `msdata.cache.client.CacheClient.stats`.
        """
        return {
            **self._stats.to_dict(),
            "cold_samples": self._storage.num_cold,
            "is_streaming": self._storage.is_streaming,
            "overwritten_batches": self._ring.num_overwritten,
            **self._cache.stats(),
        }

    @property
    def cache_owners(self) -> Owners | None:
        """Owner (int32) and tier (int8) of every shard, by which a forecast is made; or None."""
        return self._cache.owners

    def _report(self) -> dict[str, Any]:
        """The counters and what they are of, for those who watch the run."""
        return {**self.stats(), **self._planner.describe()}

    @property
    def ring_nbytes(self) -> int:
        """Memory of the batch buffers."""
        return self._ring.nbytes

    def close(self) -> None:
        """Ends the threads; batches stay readable. A loader that nobody holds does the same."""
        if os.getpid() != self._pid or not self._end.alive:
            return
        self._cancel()
        self._end()
        self._pool.close()
        self._cache.close()

    def __getitem__(self, number: Any) -> Batch:
        raise TypeError(
            "a Loader is iterated, not indexed, and makes batches itself: DataLoader cannot take "
            "it; iterate it as it is, or give DataLoader a TorchDataset of the split"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._arguments, self.state_dict())

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _reopened(arguments: dict[str, Any], state: dict[str, Any]) -> Loader:
    loader = Loader(**arguments)
    loader.load_state_dict(state)
    return loader


def _end_threads(
    stops: Iterable[Callable[[], None]], in_flight: deque[tuple[Step, Filling]], pid: int
) -> None:
    """Has a loader's threads end soon, without waiting: the garbage collector may call from one."""
    if os.getpid() != pid:
        return
    for _, filling in in_flight:
        filling.is_cancelled = True
    for stop in stops:
        stop()
