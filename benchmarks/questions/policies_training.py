"""One training of the study of policies: the ranks of a job, played by one process.

The loaders, plans, augmentation, network, loss and optimizer are the product's own. Each rank has
its own loader and so gets what it would get in the job. Of a step's parts the gradients are summed,
as ranks sum theirs. Synchronized batch norm is that of the parts put together; batch norm of each
rank is that of each part, with the running statistics of the first rank, since that is whose
buffers `DistributedDataParallel` hands to all. Tests compare both with real ranks, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import msdata
from msdata.augment import open_augmenter, read_statistics
from msdata.cache.config import Owners
from msdata.dataset.dataset import Split
from msdata.topology import Topology
from mstrain.config import TrainConfig, batch_per_rank
from mstrain.data.batches import (
    EpochEnd,
    TensorBatch,
    evaluation_batches,
    steps_per_epoch,
    training_stream,
)
from mstrain.data.columns import index_columns
from mstrain.distributed import Ranks
from mstrain.evaluation.metrics import densities as piecewise
from mstrain.evaluation.metrics.bootstrap import nmad
from mstrain.evaluation.metrics.densities import make_densities
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.models.heads import bin_edges, density
from mstrain.training.train_step import TrainStep

_ALONE = Ranks(topology=Topology(), device=torch.device("cpu"))


@dataclass(kw_only=True)
class PlayedRanks:
    """The ranks of a job in this process; a context manager.

    Args:
        split: what is trained on.
        config: of the run; `model.sync_batch_norm` and `data` count.
        topology: nodes, and ranks on each.
        scratch: folder for the nodes' caches, which policy "locality" needs.

    Attributes:
        owners: owner and tier of every shard; None without caches.
    """

    split: Split
    config: TrainConfig
    topology: Topology
    scratch: Path
    owners: Owners | None = None

    def __enter__(self) -> PlayedRanks:
        self._stack = ExitStack()
        with ExitStack() as stack:
            statistics = None
            if self.config.augment.needs_statistics:
                statistics = read_statistics(self.split.dataset.path)
            self._streams = []
            for rank in range(self.topology.num_ranks):
                loader = stack.enter_context(self._loader(rank))
                augmenter = stack.enter_context(
                    open_augmenter(
                        self.split.schema,
                        self.config.augment,
                        seed=self.config.seed,
                        batch_size=batch_per_rank(self.config, self.topology.num_ranks),
                        statistics=statistics,
                        threads=1,
                    )
                )
                stream = training_stream(loader, augmenter, self.config, _ALONE.device)
                # Closed before its augmenter, which still reads the loader's buffers.
                stack.callback(stream.close)  # type: ignore[attr-defined]
                self._streams.append(stream)
                self.owners = loader.cache_owners
            shapes = dict(augmenter.shapes)
            num_steps = self.config.epochs * steps_per_epoch(len(self.split), self.config)
            self.train_step = TrainStep(
                self.config, shapes, _ALONE, weights=None, num_steps=num_steps
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._stack.close()

    def _loader(self, rank: int) -> msdata.Loader:
        data = self.config.data
        cache = None
        if data.policy == "locality":
            self.scratch.mkdir(parents=True, exist_ok=True)
            cache = msdata.CacheConfig(
                memory_gib=data.cache_gib, shm_dir=self.scratch, job=self.scratch.name
            )
        return msdata.Loader(
            self.split,
            batch_per_rank(self.config, self.topology.num_ranks),
            seed=self.config.seed,
            policy=data.policy,
            buffer_samples=data.buffer_samples,
            topology=replace(self.topology, rank=rank),
            cache=cache,
            threads=1,
            prefetch=data.prefetch,
            columns=index_columns(self.split, self.config, needs_label=True),
        )

    def global_batches(self) -> Iterator[list[TensorBatch]]:
        """What each rank takes in each step of the training."""
        for items in zip(*self._streams, strict=True):
            if not isinstance(items[0], EpochEnd):
                yield list(items)

    def train(self) -> Iterator[float]:
        """Trains to the end; gives the loss of each step."""
        for number, parts in enumerate(self.global_batches()):
            if self.config.model.sync_batch_norm:
                self.train_step.add(_together(parts))
            else:
                for rank, part in enumerate(parts):
                    # The last batch of an epoch may leave a rank without samples.
                    if len(part):
                        with _kept_statistics(self.train_step.model) if rank else nullcontext():
                            self.train_step.add(part)
            yield self.train_step.step(number).loss


def _together(parts: Sequence[TensorBatch]) -> TensorBatch:
    first = parts[0]
    return replace(
        first,
        images={name: torch.cat([p.images[name] for p in parts]) for name in first.images},
        ebv=None if first.ebv is None else torch.cat([p.ebv for p in parts]),  # type: ignore[misc]
        redshift=torch.cat([p.redshift for p in parts]),
        sample_id=np.concatenate([p.sample_id for p in parts]),
    )


@contextmanager
def _kept_statistics(model: nn.Module) -> Iterator[None]:
    """Keeps batch norms' running statistics as they are while a batch passes."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def measure_network(
    train_step: TrainStep, data: msdata.Dataset, split: str, config: TrainConfig
) -> dict[str, float]:
    """A network's `nmad` and `bias` of the density's mean, `loss` (cross-entropy) and `crps`."""
    statistics = read_statistics(data.path) if config.augment.needs_statistics else None
    sums = torch.zeros(2, dtype=torch.float64)
    densities, redshifts = [], []
    model = train_step.evaluated.eval()
    evaluation = replace(config, batch_size=256)
    for batch in evaluation_batches(data, split, evaluation, statistics=statistics):
        sums += train_step.validation_sums(batch)
        densities.append(density(model(batch.images, batch.ebv), config.model).numpy())
        redshifts.append(batch.redshift.numpy())
    redshift = np.concatenate(redshifts)
    found = make_densities(np.concatenate(densities), bin_edges(config.model).numpy())
    residual = scaled_residual(piecewise.mean(found), redshift)
    return {
        "nmad": nmad(residual),
        "loss": float(sums[0] / sums[1]),
        "crps": float(piecewise.crps(found, redshift).mean()),
        "bias": float(residual.mean()),
    }
