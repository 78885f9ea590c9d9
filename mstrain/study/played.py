"""A training whose ranks one process plays: what an order does to ranks, without a cluster.

The loaders, plans, augmentation, network, loss and optimizer are the product's own. Each rank has
its own loader and so gets what it would get in the job. Of a step's parts the gradients are summed,
as ranks sum theirs. Synchronized batch norm is that of the parts put together; batch norm of each
rank is that of each part, with the running statistics of the first rank, since that is whose
buffers `DistributedDataParallel` hands to all. Tests compare both with real ranks, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import msdata
from msdata.augment import Statistics, open_augmenter
from msdata.dataset.dataset import Split
from msdata.topology import Topology
from mstrain.config import TrainConfig, batch_per_rank
from mstrain.data.batches import EpochEnd, TensorBatch, make_loader, training_stream
from mstrain.data.share import training_split
from mstrain.distributed import Ranks
from mstrain.models.labels import resolve
from mstrain.recipes import for_ranks
from mstrain.training.checkpoint_writer import CheckpointWriter
from mstrain.training.metrics_log import Journal
from mstrain.training.run import (
    extras_of,
    find_statistics,
    loss_weights,
    make_train_step,
    prepare_run,
)
from mstrain.training.trainer import Progress

_ALONE = Ranks(topology=Topology(), device=torch.device("cpu"))


@dataclass(kw_only=True)
class PlayedRanks:
    """The ranks of a job in this process; a context manager.

    Args:
        split: what is trained on.
        config: of the run; `model.sync_batch_norm` and `data` count.
        topology: nodes, and ranks on each.
        scratch: folder for the nodes' caches, which policy "locality" needs.
        statistics: what pixels are scaled by; None where nothing is.
        weights: of the loss; None where all samples count alike.
    """

    split: Split
    config: TrainConfig
    topology: Topology
    scratch: Path
    statistics: Statistics | None = None
    weights: Tensor | None = None

    def __enter__(self) -> PlayedRanks:
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._streams = []
            for rank in range(self.topology.num_ranks):
                loader = stack.enter_context(self._loader(rank))
                augmenter = stack.enter_context(
                    open_augmenter(
                        self.split.schema,
                        self.config.augment,
                        seed=self.config.seed,
                        batch_size=batch_per_rank(self.config, self.topology.num_ranks),
                        statistics=self.statistics,
                        threads=1,
                    )
                )
                stream = training_stream(loader, augmenter, self.config, _ALONE.device)
                # Closed before its augmenter, which still reads the loader's buffers.
                stack.callback(stream.close)  # type: ignore[attr-defined]
                self._streams.append(stream)
            self.shapes = dict(augmenter.shapes)
            self.train_step, self.prior = make_train_step(
                self.split, self.config, self.shapes, _ALONE, self.weights, None
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._stack.close()

    def _loader(self, rank: int) -> msdata.Loader:
        data = self.config.data
        cache = data.cache()
        if cache is not None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            cache = replace(cache, shm_dir=self.scratch, job=self.scratch.name)
        config = replace(self.config, data=replace(data, threads=1))
        ranks = Ranks(topology=replace(self.topology, rank=rank), device=_ALONE.device)
        return make_loader(self.split, config, ranks, cache=cache)

    def global_batches(self) -> Iterator[list[TensorBatch]]:
        """What each rank takes in each step of the training."""
        for items in zip(*self._streams, strict=True):
            if not isinstance(items[0], EpochEnd):
                yield list(items)

    def train(self) -> Iterator[float]:
        """Trains to the end; gives the loss of each step."""
        for number, parts in enumerate(self.global_batches()):
            if self.config.model.sync_batch_norm:
                self.train_step.add(TensorBatch.joined(parts))
            else:
                for rank, part in enumerate(parts):
                    # The last batch of an epoch may leave a rank without samples.
                    if len(part):
                        with _kept_statistics(self.train_step.model) if rank else nullcontext():
                            self.train_step.add(part)
            yield self.train_step.step(number).loss


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


def train_played(config: TrainConfig, data: msdata.Dataset, run: Path, num_ranks: int) -> None:
    """Trains as a job of one rank per node would, from the start, and leaves a run.

    Nothing is validated: the last weights are the best ones.

    Args:
        config: settings of the run.
        data: with split "train".
        run: the run's folder, which the caller has locked.
        num_ranks: ranks to play.

    Raises:
        UsageError: the folder holds another run, or the data lack what the settings ask for.
    """
    split = training_split(data, config)
    config = resolve(for_ranks(config, num_ranks), data)
    journal = Journal(run, config.log, is_writer=False, is_quiet=True)
    statistics = find_statistics(run, config, split, journal)
    prepare_run(run, config, split, statistics)
    scratch = run / "cache"
    with PlayedRanks(
        split=split,
        config=config,
        topology=Topology(num_nodes=num_ranks, ranks_per_node=1, rank=0),
        scratch=scratch,
        statistics=statistics,
        weights=loss_weights(split, config, journal),
    ) as played:
        num_steps = sum(1 for _ in played.train())
        extras = extras_of(config, data, played.shapes, played.prior)
        progress = Progress(step=num_steps, trained=config.epochs, validated=config.epochs)
        state = {**played.train_step.state_dict(), "progress": progress.to_dict()}
        with CheckpointWriter(run, _ALONE, extras, keep=1) as writer:
            writer.save(state, is_best=True)
            writer.settle()
