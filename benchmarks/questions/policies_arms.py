"""The arms of the study of policies: what is trained, compared with what, and how shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.questions.policies_data import BY_REDSHIFT, RANDOM, SIZE
from msdata.augment import AugmentConfig
from msdata.cache.config import Owners
from msdata.dataset.dataset import Split
from msdata.plan import quality
from msdata.plan.assign import assign_epoch
from msdata.plan.order import epoch_order, global_positions
from msdata.topology import Topology
from mstrain.config import ComputeConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from mstrain.recipes import find_recipe

# As many samples per rank and step as upstream's runs had (16 ranks of 16).
BATCH_PER_RANK = 16
TOPOLOGY = Topology(num_nodes=4, ranks_per_node=1, rank=0)
_CROP = 16
_OUTPUT = 12
# Room for all stamps on each pretended node: who owns what is the question, not whether it fits.
_CACHE_GIB = 0.25


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name: for files.
        policy: of the loader.
        buffer: samples of the buffer of "block"; None for other policies.
        is_synced: batch statistics over all ranks, else of each rank.
        shards: how they were filled, `RANDOM` or `BY_REDSHIFT`.
        reference: name of the arm that it is compared with; None for those.
    """

    name: str
    policy: str
    buffer: int | None = None
    is_synced: bool = True
    shards: str = RANDOM
    reference: str | None = None

    @property
    def title(self) -> str:
        """For people."""
        policy = self.policy if self.buffer is None else f"block of {self.buffer:,}"
        norm = "" if self.is_synced else ", batch norm of each rank"
        shards = "" if self.shards == RANDOM else ", shards by redshift"
        return f"{policy}{norm}{shards}"


def make_arms(buffers: Sequence[int]) -> list[Arm]:
    """All arms, of policy "block" one per buffer; references come first."""
    whole, own = "shuffle", "shuffle-rank"
    arms = [
        Arm(name=whole, policy="shuffle"),
        Arm(name="locality", policy="locality", reference=whole),
        Arm(name=own, policy="shuffle", is_synced=False),
        Arm(name="locality-rank", policy="locality", is_synced=False, reference=own),
    ]
    block = Arm(name="block", policy="block", reference=whole)
    arms += [
        replace(block, name=f"block-{buffer}-{shards}", buffer=buffer, shards=shards)
        for shards in (RANDOM, BY_REDSHIFT)
        for buffer in buffers
    ]
    control = replace(arms[3], name=f"locality-rank-{BY_REDSHIFT}", shards=BY_REDSHIFT)
    return [*arms, control]


def config_of(arm: Arm, *, seed: int, epochs: int) -> TrainConfig:
    """The training of an arm: recipe `demo` on stamps, with a narrower network."""
    demo = find_recipe("demo")
    data = DataConfig(policy=arm.policy, cache_gib=0.0)
    if arm.buffer is not None:
        data = replace(data, buffer_samples=arm.buffer)
    if arm.policy == "locality":
        data = replace(data, cache_gib=_CACHE_GIB)
    return replace(
        demo,
        seed=seed,
        epochs=epochs,
        batch_size=BATCH_PER_RANK * TOPOLOGY.num_ranks,
        data=data,
        # The stamps have one pixel scale, which the schema need not know.
        augment=AugmentConfig(
            fusion="early",
            grid="crops",
            scaling="asinh",
            output_size=_OUTPUT,
            crops={"image": _CROP},
        ),
        model=ModelConfig(
            depth=10, width=12, num_bins=64, hidden=64, sync_batch_norm=arm.is_synced
        ),
        compute=ComputeConfig(threads=1),
        optim=OptimConfig(learning_rate=3e-3, weight_decay=1e-3, ema_decay=0.98),
    )


assert _CROP * 2**0.5 <= SIZE


def measure_quality(
    arm: Arm, split: Split, owners: Owners | None, *, seed: int, epochs: int
) -> dict[str, float]:
    """How the batches that are normalized together compare with a uniform shuffle's.

    Returns:
        Ratios to a uniform draw, 1 is as good: `displacement` and `repeated_pairs` of the order
        between epochs; `same_shard_pairs`, and `redshift_distance` (Kolmogorov-Smirnov) within the
        batches whose statistics are taken together (all ranks', or a rank's); `seen_by_rank` of
        the samples that the first rank has seen by the end.
    """
    num_samples, num_ranks = len(split), TOPOLOGY.num_ranks
    sizes = split.shard_sizes
    orders = [
        epoch_order(
            arm.policy,
            seed=seed,
            epoch=epoch,
            num_samples=num_samples,
            shard_sizes=sizes,
            buffer_samples=arm.buffer or 1,
        )
        for epoch in range(epochs)
    ]
    shard_of_sample = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    owner = None if owners is None else owners[0][shard_of_sample]
    dealt = [_dealt(arm, order, owner) for order in orders]
    batch = dealt[0].reshape(len(dealt[0]), -1)
    if not arm.is_synced:
        batch = dealt[0].reshape(-1, BATCH_PER_RANK)
    drift = quality.label_drift(batch, split.numbers("redshift"))
    other = orders[1 % len(orders)]
    seen = quality.seen_share((samples[:, 0] for samples in dealt), num_samples)[-1]
    return {
        "displacement": quality.displacement(orders[0], other).ratio,
        "repeated_pairs": quality.repeated_pairs(
            orders[0], other, BATCH_PER_RANK * num_ranks
        ).ratio,
        "same_shard_pairs": quality.same_shard_pairs(batch, shard_of_sample).ratio,
        "redshift_distance": drift.distribution.ratio,
        "seen_by_rank": float(seen) / quality.uniform_seen_share(num_ranks, epochs),
    }


def _dealt(
    arm: Arm, order: NDArray[np.int64], owner_of_sample: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """int64 (steps, ranks, samples), of the complete steps."""
    batches = global_positions(
        num_samples=len(order),
        batch_per_rank=BATCH_PER_RANK,
        num_ranks=TOPOLOGY.num_ranks,
        last="drop",
    )
    return assign_epoch(
        arm.policy,
        order=order,
        batches=batches,
        topology=TOPOLOGY,
        owner_of_sample=owner_of_sample,
    ).samples
