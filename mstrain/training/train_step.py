"""Network, optimizer and averaged weights: what learns, and what a checkpoint has to hold of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mstrain.config import TrainConfig
from mstrain.data.batches import TensorBatch
from mstrain.distributed import Ranks, SharedError
from mstrain.models.heads import bin_of, crps
from mstrain.models.loss import BinLoss
from mstrain.models.norms import synchronize_norms
from mstrain.models.redshift_net import RedshiftNet
from mstrain.training.optim import (
    AveragedModel,
    learning_rate,
    load_optimizer,
    make_optimizer,
    set_learning_rate,
)

# Of an object in a bin without training samples, in the validation loss.
_EMPTY_BIN_NATS = 30.0
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass with `compute.precision`; nothing for "float32"."""
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class DivergedError(SharedError):
    """The loss is NaN or infinite. Exit code 1."""


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """What an optimizer step did, over all ranks; tensors, so that no GPU is waited for.

    Attributes:
        loss_sum: sum of weight times loss.
        weight_sum: sum of weights.
        num_samples: samples in the batch.
        gradient_norm: before clipping.
        learning_rate: rate of the step.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    num_samples: Tensor
    gradient_norm: Tensor
    learning_rate: float

    @property
    def loss(self) -> float:
        """Weighted mean; NaN for a batch without labels."""
        return float(self.loss_sum / self.weight_sum)


class TrainStep:
    """Takes batches, learns.

    Args:
        config: settings of the run.
        shapes: (channels, height, width) of each image, by name.
        ranks: this rank's place and device.
        weights: weights of redshift bins, see `mstrain.models.loss.redshift_weights`.
        num_steps: optimizer steps of the whole training.
        initialize: changes the fresh network; None leaves it.
        log_factor: (num_bins,), what undoes the weights in validation, see
            `mstrain.models.prior.TrainedPrior.natural_factor`; None for nothing.
        has_crps: validation also sums the CRPS.
    """

    def __init__(
        self,
        config: TrainConfig,
        shapes: Mapping[str, tuple[int, ...]],
        ranks: Ranks,
        weights: Tensor | None,
        *,
        num_steps: int,
        initialize: Callable[[RedshiftNet], None] | None = None,
        log_factor: Tensor | None = None,
        has_crps: bool = False,
    ) -> None:
        self._config, self._ranks, self.num_steps = config, ranks, num_steps
        self._has_crps = has_crps
        torch.manual_seed(config.seed)
        model = RedshiftNet(shapes, config.model).to(ranks.device)
        if config.compute.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if initialize is not None:
            initialize(model)
        is_synced = ranks.count > 1 and config.model.sync_batch_norm
        self.model = synchronize_norms(model) if is_synced else model
        decay = config.optim.ema_decay
        self.average = AveragedModel(self.model, decay) if decay else None
        self.loss = BinLoss(config.loss, config.model, weights).to(ranks.device)
        self._plain_loss = BinLoss(type(config.loss)(), config.model).to(ranks.device)
        self._log_factor = None if log_factor is None else log_factor.to(ranks.device)
        self._optimizer = make_optimizer(self.model, config.optim)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._scaler = torch.amp.GradScaler(
            ranks.device.type, enabled=config.compute.precision == "fp16"
        )
        self._joined = _joined(self.model, ranks, is_synced=is_synced) if ranks.count > 1 else None
        net = self.model if self._joined is None else self._joined
        # DDP inside: it cuts the graph, so that gradients are summed while others are computed.
        # The other way round all gradients would come at the end.
        self._net: Any = torch.compile(net) if config.compute.compile else net
        self._sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        self._num_frozen_steps = config.optim.freeze_epochs * num_steps // max(config.epochs, 1)
        self._is_frozen, self._encoders = False, model.encoders
        self.start_at(0)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self._config.compute.precision, self._ranks.device)

    def start_at(self, step: int) -> None:
        """Freezes all but the head, or frees it, as `optim.freeze_epochs` has it for a step."""
        if self._is_frozen == (step < self._num_frozen_steps):
            return
        self._is_frozen = not self._is_frozen
        self._encoders.requires_grad_(not self._is_frozen)
        # The next batch sets the modes of the layers.
        self.model.eval()

    def _alone(self) -> AbstractContextManager[Any]:
        """Keeps gradients from being summed over ranks: of a step's parts but the last."""
        return nullcontext() if self._joined is None else self._joined.no_sync()

    def add(self, batch: TensorBatch) -> None:
        """Adds a batch's gradients to those of the current step.

        Gradients are those of the sum of losses over a constant, the batch's nominal size: what
        they really have to be divided by is known once all ranks and parts are through.
        """
        # Walking through all modules takes the time of a hundred kernels.
        if not self.model.training:
            self._net.train()
            if self._is_frozen:
                # Batch norm keeps its statistics, too.
                self._encoders.eval()
        # DDP would wait for the gradients of frozen layers, which never come.
        with self._alone() if self._is_frozen or not batch.ends_step else nullcontext():
            with self._autocast():
                logits = self._net(batch.images, batch.ebv)
            loss_sum, weight_sum = self.loss(logits, batch.redshift)
            nominal = self._config.batch_size / self._ranks.count
            self._scaler.scale(loss_sum / nominal).backward()
        # new_tensor would copy a number to the GPU, and wait there for the whole step.
        count = weight_sum.new_full((), len(batch))
        self._sums += torch.stack([loss_sum.detach(), weight_sum, count])

    def step(self, number: int) -> StepSums:
        """Makes the step that the added batches belong to; steps count from 0."""
        sums = self._ranks.sum(self._sums.clone())
        self._sums.zero_()
        if self._is_frozen and self._joined is not None:
            self._average_gradients()
        self._scaler.unscale_(self._optimizer)
        norm = self._scale_gradients(sums[1])
        rate = learning_rate(number, self.num_steps, self._config.optim)
        set_learning_rate(self._optimizer, rate)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(number)
        self.start_at(number + 1)
        return StepSums(
            loss_sum=sums[0],
            weight_sum=sums[1],
            num_samples=sums[2],
            gradient_norm=norm,
            learning_rate=rate,
        )

    @torch.no_grad()
    def _average_gradients(self) -> None:
        """Makes gradients their mean over ranks, as DDP does where no layer is frozen."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                self._ranks.sum(parameter.grad).div_(self._ranks.count)

    @torch.no_grad()
    def _scale_gradients(self, weight_sum: Tensor) -> Tensor:
        """Makes gradients those of the mean loss, and clips them; their norm before clipping."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # DDP has taken the mean over ranks; a batch without any label has no gradient at all.
        factor = torch.where(weight_sum > 0, self._config.batch_size / weight_sum, 0.0).float()
        norm: Tensor = (
            torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) * factor
        )
        limit = self._config.optim.clip_norm
        if limit:
            factor = factor * (limit / (norm + 1e-6)).clamp_max(1.0)
        torch._foreach_mul_(gradients, factor)
        return norm

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are validated and kept: the average where there is one."""
        return self.model if self.average is None else self.average.model

    @torch.no_grad()
    def validation_sums(self, batch: TensorBatch) -> Tensor:
        """Plain cross-entropy on this rank's part of a batch, with the natural prior put back.

        Where no training sample weighed anything the density is taken as exp(-30), not 0: the
        checkpoint is chosen by the other samples.

        Returns:
            float64 (2,): sum of losses, and samples that have a redshift; where CRPS is asked for
            (3,): its sum over the same samples, too.
        """
        model = self.evaluated
        if model.training:
            model.eval()
        with self._autocast():
            logits = model(batch.images, batch.ebv)
        if self._log_factor is not None:
            logits = logits.double() + self._log_factor
            floor = logits.logsumexp(dim=1, keepdim=True) - _EMPTY_BIN_NATS
            logits = torch.where(torch.isneginf(self._log_factor), floor, logits)
        sums = torch.stack(self._plain_loss(logits, batch.redshift)).double()
        if not self._has_crps:
            return sums
        model_config, label = self._config.model, batch.redshift
        is_known = bin_of(label, model_config) >= 0
        each = crps(logits, torch.where(is_known, label, 0.0), model_config)
        return torch.cat([sums, torch.where(is_known, each, 0.0).sum()[None]])

    def state_dict(self) -> dict[str, Any]:
        """All that has been learned, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "schedule": {"num_steps": self.num_steps},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def _joined(model: nn.Module, ranks: Ranks, *, is_synced: bool) -> DistributedDataParallel:
    """The network joined to the other ranks'."""
    options: dict[str, Any] = {}
    if is_synced:
        # Synchronized statistics are equal on all ranks already. Older torches know the other name.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers"
        options[name if name in known else "broadcast_buffers"] = False
    return DistributedDataParallel(
        model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )


def check_finite(loss_sum: Tensor, step: int) -> None:
    """Raises DivergedError if the loss is NaN or infinite; on a GPU this waits for it.

    Args:
        loss_sum: sum over one step, or over all since the last check.
        step: the newest of them.
    """
    if not bool(torch.isfinite(loss_sum)):
        raise DivergedError(
            f"the loss is {float(loss_sum)} at step {step}: the training has diverged and was "
            "stopped, its earlier checkpoints are kept; give a lower optim.learning_rate, or "
            "compute.precision=float32 or bf16, in a new run"
        )
