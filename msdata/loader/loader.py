"""The loader: turns index and plan into batches, at the speed of memory.

Threads fill a batch in place, in one of a few buffers; nothing is collated, pickled or sent between
processes. The order is a function of (seed, epoch), so the state of a run is three numbers, and a
run resumes on any number of ranks.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CacheConfig, Owners
from msdata.dataset.dataset import Split
from msdata.errors import MsdataError, UsageError
from msdata.loader.coded_read import batch_steps, coded_reader
from msdata.loader.columns import BatchColumns
from msdata.loader.node_cache import open_node_cache
from msdata.loader.options import (
    allocate_ring,
    check_steps,
    checked_epoch,
    checked_sizes,
    default_threads,
    ring_size,
    tensor_maker,
)
from msdata.loader.read import Filling, FillPool, SampleReader, end_threads
from msdata.loader.state import EpochCounters, LoaderState
from msdata.loader.steps import Step, StepPlanner
from msdata.plan import order
from msdata.topology import Topology, from_env

Batch = dict[str, Any]


class Loader:
    """Hands out shuffled batches, which are overwritten; to keep them, give `copy=True`.

    A batch's arrays live in a ring of buffers, in which the last `num_valid_batches` batches are
    valid, by default `prefetch` + 1; `list(loader)` needs `copy=True`. The loader warns, once, if
    an overwritten batch is still in use. Every sample of the split comes exactly once per epoch
    over all ranks, unless `weights` are given, and every rank makes equally many steps. A pickled
    loader resumes where it stood, in the process that unpickles it.

    Args:
        split: what to load; `msdata.open(path).split("train")`.
        batch_size: samples per step on this rank; mstrain's `batch_size` counts those of all ranks.
        seed: seed of the orders; equal on every rank.
        policy: "shuffle" (uniform), "locality" (the global batches of "shuffle", dealt to
            the ranks that cache the samples; needs a cache), "block" (shards in random order,
            shuffled in a buffer), "sequential" (the order of the index in every epoch: each
            global batch is its next stretch, of which each rank takes one contiguous part) or
            "partition" (each rank has its own stretch of the index in all epochs, shuffled per
            epoch; resumes on as many ranks with the same batch only).
        topology: this rank's place; None takes it from the launcher's environment.
        cache: None; "auto" (the node's free shared memory); or a `CacheConfig`.
        threads: threads that fill batches; None uses the cores of this process, from 4 to 8.
        prefetch: batches filled ahead, at least 1. From memory two are as fast as three; from a
            disk three were a tenth faster.
        num_valid_batches: how many batches stay valid, the newest included; None means
            prefetch + 1. The ring has prefetch + num_valid_batches buffers. 1 takes least memory,
            for loops that use each batch before the next.
        copy: give each batch its own memory, at the cost of one more copy.
        across_epochs: while an epoch's last batches are used, fill the first of the next one, so
            that epochs start without a wait; ignored with a cache, whose counts by tier are exact
            per epoch. Use False for a loader that runs one epoch, or repeats one.
        columns: columns of the index to include in batches; None means `redshift` if it exists.
            Integers, booleans and text with nulls come as exact `numpy.ma.MaskedArray`; the null of
            floats is NaN.
        remainder: what happens to an incomplete last global batch. "short": deal it as evenly as
            possible, so ranks differ by one sample and a rank may get none; "drop": leave it out;
            "pad": fill it from the start of the order; `batch["is_real"]` marks the real samples.
        buffer_samples: policy "block": a sample moves by less than this many places.
        verify: check every sample against its checksum; costs about 20 us per sample and thread.
        weights: float64 (len(split),), in the order of the index: an epoch draws samples with
            replacement in proportion to them, as many as the split has. Some then come several
            times per epoch and others not at all; `batch["repeat"]` counts earlier draws of each,
            and augmentation draws differently for them. None takes each exactly once.
        decode: make pixels of quantized arrays. False hands out codes (int16 or int32) and, as
            `batch["NAME_step"]`, steps, for `msdata.dataset.coding.decode_codes` or a GPU.
        as_torch: tensors instead of arrays, which share the ring's memory; text as lists. Columns
            with nulls other than floats' are refused.
        poison: for debugging: fill a batch with NaN once its validity ends, so that late
            uses show; None does so if `MSDATA_DEBUG=1` is set in the environment.

    Raises:
        UsageError: an option is out of range, or options contradict each other.
        DataError: a shard is missing or truncated.
    """

    _epoch = _position = _resume_at = 0
    # Counts iterations: an older one must not take the batches of the newest.
    _iteration = 0
    # The epoch of the newest batches in flight, if it is the next one, and their number.
    _ahead_epoch, _num_ahead = -1, 0

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
        num_valid_batches: int | None = None,
        copy: bool = False,
        across_epochs: bool = True,
        columns: Sequence[str] | None = None,
        remainder: str = order.DEFAULT_LAST,
        buffer_samples: int = order.DEFAULT_BUFFER_SAMPLES,
        verify: bool = False,
        weights: NDArray[np.float64] | None = None,
        decode: bool = True,
        as_torch: bool = False,
        poison: bool | None = None,
        **former: Any,
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "former")}
        batch_size, prefetch, hold, last = checked_sizes(self._arguments, former)
        weights = self._arguments["weights"]
        split.files.check_all()
        self._split, self._sample_nbytes = split, split.schema.sample_nbytes
        # A hash over all shards' entries takes milliseconds: too long for a state per step.
        self._fingerprint = split.dataset.manifest.fingerprint
        topology = self._arguments["topology"] = from_env() if topology is None else topology
        check_steps(split, batch_size, last, topology.num_ranks)
        self._columns = BatchColumns(split, columns, extra=None if decode else batch_steps(split))
        self._finished = tensor_maker(split, self._columns) if as_torch else dict
        ring = ring_size(split, batch_size, last, prefetch + hold, decode=decode)
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
        reader = self._cache.reader(self._storage, split, is_checked=verify)
        self._reader = coded_reader(split, reader, ring.schema)
        self._ring = allocate_ring(ring, hold, self._storage.gaps, poisons=poison)
        self._in_flight: deque[tuple[Step, Filling]] = deque()
        self._crosses_epochs, self._copies = across_epochs and cache is None, copy
        self._pid, self._stats = os.getpid(), EpochCounters()
        # Start threads last, so that a failure above leaves none behind.
        self._pool = FillPool(threads or default_threads(), self._reader)
        self._cache.start(weakref.WeakMethod(self._report), split, weights)
        stops = (self._pool.stop, self._planner.stop, self._cache.stop)
        self._end = weakref.finalize(self, end_threads, stops, self._in_flight, self._pid)

    def __len__(self) -> int:
        """Steps per epoch, equal on every rank."""
        return self._planner.num_steps

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, or what is left of it after `load_state_dict`.

        An epoch that was left early starts again; after its last batch the next one follows.

        Raises:
            UsageError: the loader was closed, or made in another process.
        """
        self._check_usable()
        position = self._resume_at
        if self._is_over(position or self._position):
            self._epoch, position = self._epoch + 1, 0
        self._position, self._resume_at = position, 0
        if position or not self._is_started(self._epoch):
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
        # Batches that were started while the previous epoch ended.
        submitted = len(self._in_flight)
        self._ahead_epoch, self._num_ahead = -1, 0
        for _ in range(num_steps):
            self._check_newest(iteration)
            self._ring.release()
            while self._ring and submitted < num_steps:
                self._submit(self._planner.step(order, first_position, submitted))
                submitted += 1
            if submitted == num_steps and self._crosses_epochs:
                self._prefill(epoch + 1)
            yield self._next_batch()
        if iteration == self._iteration:
            self._epoch, self._position = epoch + 1, 0
            self._cache.end_epoch()

    def _prefill(self, epoch: int) -> None:
        """Fills free buffers with the first batches of the next epoch."""
        order = self._planner.order_if_ready(epoch)
        # That epoch raises its own errors.
        with suppress(MsdataError):
            while order is not None and self._ring and self._num_ahead < len(self):
                self._submit(self._planner.step(order, 0, self._num_ahead))
                self._ahead_epoch, self._num_ahead = epoch, self._num_ahead + 1

    def _is_started(self, epoch: int) -> bool:
        """Whether the batches in flight are the first of this epoch."""
        return epoch == self._ahead_epoch and len(self._in_flight) == self._num_ahead

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                "cannot use a loader after a fork, which ends its threads; make the loader in the "
                "process that iterates it"
            )
        if not self._end.alive:
            raise UsageError("the loader was closed; make a new one")

    def _check_newest(self, iteration: int) -> None:
        self._check_usable()
        if iteration != self._iteration:
            raise UsageError(
                "cannot continue this iteration: another one of this loader was started, or a "
                "state loaded; make a loader for each concurrent iteration"
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
        return self._finished(batch)

    def _cancel(self) -> None:
        """Ends the current iteration; batches handed out stay valid as promised."""
        self._iteration += 1
        for _, filling in self._in_flight:
            filling.is_canceled = True
        for _, filling in self._in_flight:
            filling.done.wait()
            self._ring.give_back(filling.buffer)
        self._in_flight.clear()
        self._ahead_epoch, self._num_ahead = -1, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; by default epochs count up from 0.

        A position from `load_state_dict` stays if it belongs to this epoch.
        """
        epoch = checked_epoch(epoch)
        if epoch != self._epoch or (self._is_over(self._position) and not self._resume_at):
            self._epoch, self._position, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The state after the batches handed out so far; cheap enough for every step."""
        epoch, position = self._epoch, self._position
        if self._is_over(position):
            epoch, position = epoch + 1, 0
        return self._state(epoch, position).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration resume where the state was saved, on any number of ranks.

        Raises:
            UsageError: the state belongs to another data set, split, seed or policy.
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
            partition=self._planner.partition,
        )

    def stats(self) -> dict[str, Any]:
        """Counters of the current epoch, or of the last one, on this rank.

        Returns:
            `epoch`, `first_position` in its order, `num_steps` from there, `steps` done, `samples`,
            decoded `bytes`, `seconds` since its start, `wait_s` (the caller waited for batches),
            `wait_fraction` of the seconds, `samples_per_s`, `bytes_per_s`; over all epochs
            `total_wait_s` and `cold_samples`, which were not in memory when they were read;
            `overwritten_batches` were still in use when their memory was reused;
            `is_streaming`: whether the C modules copy or decode samples. With a cache also
            `tiers`, `totals` and `cache`, see `msdata.cache.client.CacheClient.stats`.
        """
        return {
            **self._stats.to_dict(),
            "cold_samples": self._storage.num_cold,
            "is_streaming": getattr(self._reader, "is_streaming", self._storage.is_streaming),
            "overwritten_batches": self._ring.num_overwritten,
            **self._cache.stats(),
        }

    @property
    def cache_owners(self) -> Owners | None:
        """Owner (int32) and tier (int8) of every shard, for a forecast; None without a cache."""
        return self._cache.owners

    def _report(self) -> dict[str, Any]:
        """The counters and the job that they describe, for monitoring."""
        return {**self.stats(), **self._planner.describe()}

    @property
    def ring_nbytes(self) -> int:
        """Memory of the batch buffers."""
        return self._ring.nbytes

    def close(self) -> None:
        """Ends the threads; batches stay readable. An unreferenced loader closes itself."""
        if os.getpid() != self._pid or not self._end.alive:
            return
        self._cancel()
        self._end()
        self._pool.close()
        self._planner.close()
        self._cache.close()

    def __getitem__(self, number: Any) -> Batch:
        raise TypeError(
            "cannot index a Loader: it makes batches itself, so DataLoader cannot take it; "
            "iterate it as it is, with as_torch=True for tensors, or give DataLoader "
            "an msdata.torch.IterableDataset or a TorchDataset of the split"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._arguments, self.state_dict())

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()


def _reopened(arguments: dict[str, Any], state: dict[str, Any]) -> Loader:
    loader = Loader(**arguments)
    loader.load_state_dict(state)
    return loader
