"""Which rank reads which sample of each global batch.

`shuffle` and `block` deal a global batch by position. `locality` deals the very same batch by
owner: a node keeps what it owns, up to its equal share, and only the surplus crosses the network.
Samples without an owner are spread evenly over the nodes first, since such a run waits for storage;
the network traffic that this costs is small (see docs/design/plan.md).

Array suffixes: S steps, G samples of a global batch, P nodes, R ranks, Q samples per node and
step, B samples per rank and step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan.order import POLICIES, BatchPositions
from msdata.topology import Topology

_CHUNK_SAMPLES = 1 << 20  # dealt at a time: keeps the working memory at some 50 MB


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The samples of every rank in every step.

    Attributes:
        samples: int64 (num_steps, num_ranks, batch_per_rank); -1 where a short batch has none.
        is_real: bool, the same shape; False for padding and for absent samples.
    """

    samples: NDArray[np.int64]
    is_real: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.samples.shape != self.is_real.shape or self.samples.ndim != 3:
            raise UsageError(
                f"samples {self.samples.shape} and their mask {self.is_real.shape} are not "
                "both (steps, ranks, batch)"
            )


def assign_epoch(
    policy: str,
    *,
    order: NDArray[np.int64],
    batches: BatchPositions,
    topology: Topology,
    owner_of_sample: NDArray[np.int32] | None = None,
    first_step: int = 0,
) -> Assignment:
    """Deal an epoch's global batches to the ranks.

    Args:
        policy: one of `POLICIES`.
        order: int64 (num_samples,), the epoch's order.
        batches: what `global_positions` gives: (num_steps, num_ranks, batch_per_rank).
        topology: nodes and ranks; its own rank does not matter.
        owner_of_sample: int32 (num_samples,), node that keeps each sample, -1 for none;
            `locality` needs it.
        first_step: number of the first step, where `batches` are a part of the epoch's.

    Returns:
        The assignment. Each step has the same samples as the batch by position, each rank as
        many; an incomplete `short` batch stays dealt by position.

    Raises:
        UsageError: the policy is unknown, or the arguments belong to different jobs.
    """
    if policy not in POLICIES:
        raise UsageError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if batches.positions.ndim != 3 or batches.positions.shape[1] != topology.num_ranks:
        raise UsageError(
            f"batches must have shape (steps, {topology.num_ranks}, batch), got "
            f"{batches.positions.shape}"
        )
    sample_SRB = np.where(batches.positions < 0, -1, order[batches.positions])
    is_real_SRB = batches.is_real
    if policy == "locality":
        if owner_of_sample is None:
            raise UsageError("policy 'locality' needs owner_of_sample: it deals by owner")
        sample_SRB, is_real_SRB = _dealt_by_owner(
            sample_SRB, is_real_SRB, owner_of_sample, (topology, first_step)
        )
    return Assignment(samples=sample_SRB, is_real=is_real_SRB)


def _dealt_by_owner(
    sample_SRB: NDArray[np.int64],
    is_real_SRB: NDArray[np.bool_],
    owner_of_sample: NDArray[np.int32],
    place: tuple[Topology, int],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    topology, first_step = place
    num_steps, num_ranks, batch = sample_SRB.shape
    full_steps = num_steps
    if num_steps and (sample_SRB[-1] < 0).any():
        full_steps -= 1
    dealt, real = sample_SRB.copy(), is_real_SRB.copy()
    rows = max(1, _CHUNK_SAMPLES // (num_ranks * batch))
    for low in range(0, full_steps, rows):
        some = slice(low, min(low + rows, full_steps))
        sample_SG = sample_SRB[some].reshape(-1, num_ranks * batch)
        column_SG = deal_columns(
            owner_of_sample[sample_SG], num_nodes=topology.num_nodes, first_step=first_step + low
        )
        # Like cards: neighbors among a node's slots go to different ranks, so that misses and
        # samples from peers are spread over the ranks of a node too.
        column_SPBR = column_SG.reshape(len(column_SG), topology.num_nodes, batch, -1)
        flat = column_SPBR.swapaxes(2, 3).reshape(column_SG.shape)
        dealt[some] = np.take_along_axis(sample_SG, flat, axis=1).reshape(dealt[some].shape)
        if not is_real_SRB[some].all():
            real_SG = is_real_SRB[some].reshape(sample_SG.shape)
            real[some] = np.take_along_axis(real_SG, flat, axis=1).reshape(real[some].shape)
    return dealt, real


def deal_columns(
    owner_SG: NDArray[np.int32], *, num_nodes: int, first_step: int = 0
) -> NDArray[np.int64]:
    """Deal each global batch to the nodes: own samples, then received ones, then misses.

    Args:
        owner_SG: int32 (num_steps, global_batch), node that keeps each sample, -1 for none.
        num_nodes: number of nodes; divides the global batch.
        first_step: number of the first row; nodes take turns at the odd miss.

    Returns:
        int64 (num_steps, global_batch): node p gets the columns at [p*Q, (p+1)*Q) of each row.

    Raises:
        UsageError: the nodes do not divide the batch, or an owner is outside them.
    """
    num_steps, global_batch = owner_SG.shape
    if global_batch % num_nodes:
        raise UsageError(
            f"a batch must be a multiple of {num_nodes} nodes, got a batch of {global_batch}"
        )
    if owner_SG.size and not -1 <= owner_SG.min() <= owner_SG.max() < num_nodes:
        raise UsageError(
            f"owners must be nodes 0 to {num_nodes - 1}, or -1; was the plan made for other nodes?"
        )
    share = global_batch // num_nodes
    column_SG, group_SG = _grouped_by_owner(owner_SG, num_nodes)
    count_SP = _count_owned(group_SG, num_nodes)
    kept_SP, miss_SP = keep_and_miss(count_SP, share=share, first_step=first_step)

    is_miss_SG = group_SG == num_nodes
    # Sorted by owner, the first `kept` of each owner's run are kept; the misses stand last.
    runs_SP2 = np.stack([kept_SP, count_SP - kept_SP], axis=2).reshape(num_steps, -1)
    lengths = np.concatenate([runs_SP2, is_miss_SG.sum(axis=1, keepdims=True)], axis=1)
    is_kept_run = np.arange(lengths.shape[1]) % 2 == 0
    is_kept_run[-1] = False
    is_kept_SG = np.repeat(np.tile(is_kept_run, num_steps), lengths.ravel()).reshape(owner_SG.shape)
    slot_SPQ = np.arange(share, dtype=np.int32)
    is_own_SPQ = slot_SPQ < kept_SP[:, :, None]
    takes_miss_SPQ = slot_SPQ >= share - miss_SP[:, :, None]

    dealt = np.empty((num_steps, num_nodes, share), dtype=np.int64)
    # Rows have as many slots of each kind as samples of it, so masks in row order pair them up.
    dealt[is_own_SPQ] = column_SG[is_kept_SG]
    dealt[takes_miss_SPQ] = column_SG[is_miss_SG]
    dealt[~(is_own_SPQ | takes_miss_SPQ)] = column_SG[~(is_kept_SG | is_miss_SG)]
    return dealt.reshape(num_steps, global_batch)


def keep_and_miss(
    count_SP: NDArray[np.int64], *, share: int, first_step: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of its own samples each node keeps, and how many misses it takes.

    Args:
        count_SP: int64 (num_steps, num_nodes), samples of each batch that each node owns.
        share: samples per node and step.
        first_step: number of the first row.

    Returns:
        (kept, misses), each int64 (num_steps, num_nodes). Misses of a step differ by at most one
        between nodes; what is left of a node's share, it receives from the surplus of others.
    """
    num_steps, num_nodes = count_SP.shape
    misses_S = share * num_nodes - count_SP.sum(axis=1)
    turn_SP = (np.arange(num_nodes) - np.arange(first_step, first_step + num_steps)[:, None]) % (
        num_nodes
    )
    miss_SP = (misses_S // num_nodes)[:, None] + (turn_SP < (misses_S % num_nodes)[:, None])
    return np.minimum(count_SP, share - miss_SP), miss_SP


def _grouped_by_owner(
    owner_SG: NDArray[np.int32], num_nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and owners of each row, sorted by owner, then column; misses last."""
    bits = max(1, (owner_SG.shape[1] - 1).bit_length())
    # Owner and column in one word: sorting values is several times faster than argsort.
    word = np.uint32 if (num_nodes + 1) << bits < 1 << 32 else np.uint64
    packed: NDArray[Any] = np.where(owner_SG < 0, num_nodes, owner_SG).astype(word)
    packed <<= word(bits)
    packed |= np.arange(owner_SG.shape[1], dtype=word)
    packed.sort(axis=1)
    owners = (packed >> word(bits)).astype(np.int64)
    packed &= word((1 << bits) - 1)
    return packed.astype(np.int64), owners


def _count_owned(owner_SG: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    rows = np.arange(len(owner_SG), dtype=np.int64)[:, None] * (num_nodes + 1)
    counts = np.bincount((owner_SG + rows).ravel(), minlength=len(owner_SG) * (num_nodes + 1))
    return counts.reshape(len(owner_SG), num_nodes + 1)[:, :num_nodes].astype(np.int64)
