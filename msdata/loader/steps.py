"""The samples of each step on this rank, from an epoch's order."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c_of_parts
from msdata.errors import UsageError
from msdata.plan.assign import assign_epoch
from msdata.plan.order import (
    POLICIES,
    BatchPositions,
    batch_bounds,
    epoch_order,
    global_positions,
    num_steps,
    rank_positions,
    rank_slice,
)
from msdata.plan.weighted import repeats_of
from msdata.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step on this rank.

    Attributes:
        samples: int64 (n,), numbers within the split, in the order of the batch.
        repeats: int64 (n,), how often each came before in this epoch; None if each comes once.
        is_real: bool (n,), False for padding.
        end: position in the epoch's order after this global step.
    """

    samples: NDArray[np.int64]
    repeats: NDArray[np.int64] | None
    is_real: NDArray[np.bool_]
    end: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """An epoch's order.

    Attributes:
        samples: uint32 (samples,), numbers within the split.
        repeats: uint32 (samples,), how often each came before; None if each comes once.
    """

    samples: NDArray[np.uint32]
    repeats: NDArray[np.uint32] | None

    def step(
        self, positions: NDArray[np.int64] | slice, is_real: NDArray[np.bool_], end: int
    ) -> Step:
        """The step at some positions of the order."""
        return Step(
            samples=self.samples[positions].astype(np.int64),
            repeats=None if self.repeats is None else self.repeats[positions].astype(np.int64),
            is_real=is_real,
            end=end,
        )


class StepPlanner:
    """Knows every step of every epoch; computes the next epoch's order while this one runs.

    Args:
        policy: one of `msdata.plan.order.POLICIES`.
        seed: seed of the orders.
        shard_sizes: int64 (shards,), samples of each shard.
        buffer_samples: buffer of policy "block".
        batch_size: samples per step on each rank.
        topology: this rank's place.
        last: one of `msdata.plan.order.LAST`.
        owner_of_shard: int32 (shards,), the node that caches each shard, -1 for none; equal on
            all ranks. Policy "locality" needs it.
        weights: float64 (samples,), valid, to draw samples with replacement; None takes each once.

    Raises:
        UsageError: an option is out of range, or options contradict each other.
    """

    def __init__(
        self,
        *,
        policy: str,
        seed: int,
        shard_sizes: NDArray[np.int64],
        buffer_samples: int,
        batch_size: int,
        topology: Topology,
        last: str,
        owner_of_shard: NDArray[np.int32] | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise UsageError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        if policy == "locality" and owner_of_shard is None:
            raise UsageError(
                "policy 'locality' deals samples to the nodes that cache them, so it needs a "
                "cache; give the loader one, such as cache='auto', or choose 'shuffle'"
            )
        if policy == "partition" and last == "pad":
            raise UsageError(
                "policy 'partition' cannot fill the last batch with samples of other ranks; choose "
                "remainder='short' or 'drop'"
            )
        # An order of 0 samples checks the options now, not in the middle of the first epoch.
        none = np.zeros(0, np.int64)
        epoch_order(
            policy,
            seed=seed,
            epoch=0,
            num_samples=0,
            shard_sizes=none,
            buffer_samples=buffer_samples,
        )
        self.weights = weights
        # Distinguishes the weights of runs in their states.
        self.weights_digest = (
            "" if weights is None else f"{crc32c_of_parts([weights.view(np.uint8)]):08x}"
        )
        self.policy = policy
        self.seed = seed
        self.batch_size = batch_size
        self.topology = topology
        self.last = last
        self.num_samples = int(shard_sizes.sum())
        self._shard_sizes = shard_sizes
        self._owner_of_sample = (
            None if owner_of_shard is None else np.repeat(owner_of_shard, shard_sizes)
        )
        self.buffer_samples = buffer_samples
        self._orders: dict[int, Future[Order]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="msdata-order")
        self.num_steps = num_steps(self.num_samples, self.global_batch, last)

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self.batch_size * self.topology.num_ranks

    @property
    def partition(self) -> str:
        """What the order of policy "partition" depends on beside seed and epoch; else ""."""
        if self.policy != "partition":
            return ""
        return f"{self.topology.num_ranks} rank(s) of {self.batch_size}"

    def describe(self) -> dict[str, Any]:
        """The values that decide which rank reads which sample in which step."""
        topology = self.topology
        return {
            "rank": topology.rank,
            "node": topology.node,
            "is_first_of_node": topology.local_rank == 0,
            "num_nodes": topology.num_nodes,
            "ranks_per_node": topology.ranks_per_node,
            "batch_size": self.batch_size,
            "policy": self.policy,
            "seed": self.seed,
            "last": self.last,
            "buffer_samples": self.buffer_samples,
            "is_weighted": self.weights is not None,
        }

    def order(self, epoch: int) -> Order:
        """The epoch's order; starts to compute the next one."""
        order = self._future(epoch).result()
        for other in [e for e in self._orders if e not in (epoch, epoch + 1)]:
            del self._orders[other]
        self._future(epoch + 1)
        return order

    def order_if_ready(self, epoch: int) -> Order | None:
        """The epoch's order, or None while it is being computed."""
        future = self._orders.get(epoch)
        return future.result() if future is not None and future.done() else None

    def _future(self, epoch: int) -> Future[Order]:
        if epoch not in self._orders:
            self._orders[epoch] = self._executor.submit(self._compute_order, epoch)
        return self._orders[epoch]

    def _compute_order(self, epoch: int) -> Order:
        order = epoch_order(
            self.policy,
            seed=self.seed,
            epoch=epoch,
            num_samples=self.num_samples,
            shard_sizes=self._shard_sizes,
            buffer_samples=self.buffer_samples,
            weights=self.weights,
            layout=(self.topology.num_ranks, self.batch_size),
        )
        repeats = None if self.weights is None else repeats_of(order)
        return Order(samples=order.astype(np.uint32), repeats=repeats)

    def steps_left(self, position: int) -> int:
        """Steps from a position of the order to the end of the epoch."""
        return num_steps(self.num_samples - position, self.global_batch, self.last)

    def step(self, order: Order, first_position: int, number: int) -> Step:
        """Step `number` counted from `first_position`."""
        low, high = batch_bounds(
            number,
            num_samples=self.num_samples,
            global_batch=self.global_batch,
            first_position=first_position,
        )
        if self.policy == "locality":
            return self._step_by_owner(order, (low, high), number)
        if high - low == self.global_batch:
            mine = rank_slice(self.topology.rank, self.batch_size)
            within = slice(low + mine.start, low + mine.stop)
            return order.step(within, np.ones(mine.stop - mine.start, bool), high)
        tail = rank_positions(
            num_samples=self.num_samples,
            batch_per_rank=self.batch_size,
            num_ranks=self.topology.num_ranks,
            rank=self.topology.rank,
            last=self.last,
            first_position=low,
        )
        positions, is_real = tail.positions[0], tail.is_real[0]
        present = positions >= 0
        return order.step(positions[present], is_real[present], high)

    def _step_by_owner(self, order: Order, bounds: tuple[int, int], number: int) -> Step:
        """The step by the function that the forecast replays; all ranks compute it alike."""
        low, high = bounds
        num_ranks = self.topology.num_ranks
        if high - low == self.global_batch:
            positions = np.arange(self.global_batch).reshape(1, num_ranks, -1)
            batch = BatchPositions(positions=positions, is_real=np.ones(positions.shape, bool))
            within = np.arange(low, high)
        else:
            batch = global_positions(
                num_samples=self.num_samples,
                batch_per_rank=self.batch_size,
                num_ranks=num_ranks,
                last=self.last,
                first_position=low,
            )
            within = np.arange(self.num_samples)
        assert self._owner_of_sample is not None
        # Deal positions, not samples: a sample that comes twice keeps its repeats apart.
        dealt = assign_epoch(
            self.policy,
            order=np.arange(len(within)),
            batches=batch,
            topology=self.topology,
            owner_of_sample=self._owner_of_sample[order.samples[within]],
            first_step=number,
        )
        mine, is_real = dealt.samples[0, self.topology.rank], dealt.is_real[0, self.topology.rank]
        return order.step(within[mine[mine >= 0]], is_real[mine >= 0], high)

    def stop(self) -> None:
        """Tells the thread that computes orders to end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Ends the thread that computes orders, and waits for it."""
        self._executor.shutdown(cancel_futures=True)
