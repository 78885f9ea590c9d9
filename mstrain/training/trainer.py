"""The loop: steps, validation, checkpoints, and the end when it is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from msdata.core.checked_json import Count, JsonValue
from mstrain.config import TrainConfig
from mstrain.data.batches import EpochEnd, Prefetcher, TensorBatch
from mstrain.distributed import Ranks, Stopped, StopRequest
from mstrain.training.checkpoint_writer import CheckpointWriter
from mstrain.training.metrics_log import Journal, hit_values
from mstrain.training.train_step import StepSums, TrainStep, check_finite

Stream = Prefetcher[TensorBatch | EpochEnd]
# (loader's stats, epoch) -> hits and forecast hits by tier; all ranks call it.
CountHits = Callable[[dict[str, Any], int], tuple[dict[str, int] | None, dict[str, int] | None]]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the caller wants of a training's epochs.

    Attributes:
        after_epoch: called on every rank after an epoch's validation, when the journal has it and
            its checkpoint is being written; an exception ends the training, which can be resumed.
        has_crps: the journal also has the mean CRPS of the validation split.
    """

    after_epoch: Callable[[], None]
    has_crps: bool = False


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: optimizer steps made.
        trained: epochs trained to their end.
        validated: epochs validated.
        best_loss: the least validation loss.
        loss_sum: sum of weight times loss in the current epoch.
        weight_sum: sum of weights in the current epoch.
        loader: the loader's state after the last step; None before the first.
    """

    step: int = 0
    trained: int = 0
    validated: int = 0
    best_loss: float = math.inf
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    loader: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Progress:
        """The inverse of `to_dict`."""
        found = JsonValue(saved, "the checkpoint", "resume from another one")
        for name in ("step", "trained", "validated"):
            found[name].read_as(Count)
        return cls(**{f.name: saved[f.name] for f in fields(cls)})


@dataclass
class _Span:
    """The steps since the last line of the journal; sums stay on the device until it is written."""

    started_s: float
    num_steps: int = 0
    num_samples: Tensor | float = 0.0
    loss_sum: Tensor | float = 0.0
    weight_sum: Tensor | float = 0.0
    wait_s: float = 0.0

    def add(self, sums: StepSums, wait_s: float) -> None:
        self.num_steps += 1
        self.num_samples = self.num_samples + sums.num_samples
        self.loss_sum = self.loss_sum + sums.loss_sum
        self.weight_sum = self.weight_sum + sums.weight_sum
        self.wait_s += wait_s

    def values(self) -> dict[str, Any]:
        seconds = max(time.perf_counter() - self.started_s, 1e-9)
        return {
            "loss": float(self.loss_sum) / max(float(self.weight_sum), 1e-30),
            "samples_per_s": float(self.num_samples) / seconds,
            "data_wait_fraction": self.wait_s / seconds,
            "seconds": seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What the loop works with; `fit` runs it.

    Attributes:
        config: settings of the run.
        ranks: all of them run the same loop.
        train_step: what learns.
        journal: what is written down.
        validate: gives this rank's batches of the validation split; None where there is none.
        count_hits: where an epoch's samples came from.
        writer: keeps states; what it could not keep, it raises later.
        stop: looked at after every step.
        watch: what the caller wants of each epoch; None for nothing.
    """

    config: TrainConfig
    ranks: Ranks
    train_step: TrainStep
    journal: Journal
    validate: Callable[[], Iterator[TensorBatch]] | None
    count_hits: CountHits
    writer: CheckpointWriter
    stop: StopRequest
    watch: Watch | None = None

    def fit(self, stream: Stream, progress: Progress) -> None:
        """Trains to the end.

        Args:
            stream: batches from where `progress` stands.
            progress: is kept up to date.

        Raises:
            Stopped: SIGUSR1 or SIGTERM came to any rank; the state is saved.
            DivergedError: the loss is NaN or infinite.
        """
        with self.writer:
            # A network that is only taken over is measured and kept like an epoch's.
            while progress.validated < max(self.config.epochs, 1):
                values: dict[str, Any] = dict.fromkeys(
                    ("samples_per_s", "data_wait_fraction", "seconds"), 0.0
                )
                values |= hit_values(None, None)
                # A run that was stopped during validation has the epoch's steps behind it.
                if progress.trained == progress.validated < self.config.epochs:
                    values = self._train_epoch(stream, progress)
                self._end_epoch(values, progress)
            self.stop.settle()
            self.writer.settle()

    def _train_epoch(self, stream: Stream, progress: Progress) -> dict[str, Any]:
        """What is left of an epoch; returns what the journal is to say of it."""
        stream.wait_s = 0.0
        epoch = _Span(started_s=time.perf_counter())
        line = _Span(started_s=time.perf_counter())
        for item in stream:
            if isinstance(item, EpochEnd):
                hits = hit_values(*self.count_hits(item.stats, item.epoch))
                return {**epoch.values(), **hits}
            self.train_step.add(item)
            if not item.ends_step:
                continue
            sums = self.train_step.step(progress.step)
            wait_s, stream.wait_s = stream.wait_s, 0.0
            for span in (epoch, line):
                span.add(sums, wait_s)
            self._note(sums, item, progress)
            if line.num_steps >= self.config.log.every_steps:
                check_finite(torch.as_tensor(line.loss_sum), progress.step)
                rates = {"learning_rate": sums.learning_rate}
                rates["gradient_norm"] = float(sums.gradient_norm)
                self.journal.write("step", {**self._place(progress), **rates, **line.values()})
                line = _Span(started_s=time.perf_counter())
            self._maybe_save(progress)
        raise AssertionError("the stream ended within an epoch")

    def _note(self, sums: StepSums, batch: TensorBatch, progress: Progress) -> None:
        assert batch.loader_state is not None
        progress.step += 1
        progress.loader = batch.loader_state
        # After its last step an epoch is trained, though its end has not come out of the stream.
        progress.trained = batch.loader_state["epoch"]
        progress.loss_sum = progress.loss_sum + sums.loss_sum  # type: ignore[assignment]
        progress.weight_sum = progress.weight_sum + sums.weight_sum  # type: ignore[assignment]
        if self.ranks.device.type == "cpu":
            check_finite(sums.loss_sum, progress.step)

    def _place(self, progress: Progress) -> dict[str, Any]:
        return {
            "epoch": progress.validated,
            "num_epochs": self.config.epochs,
            "step": progress.step,
            "num_steps": self.train_step.num_steps,
        }

    def _maybe_save(self, progress: Progress) -> None:
        every = self.config.checkpoint.every_steps
        if self.stop.poll(self.ranks):
            self._save_and_stop(progress)
        if every and progress.step % every == 0:
            self._save(progress)

    def _save_and_stop(self, progress: Progress) -> None:
        self.stop.settle()
        self._save(progress)
        self.writer.settle()
        raise Stopped

    def _save(self, progress: Progress, *, is_best: bool = False) -> None:
        progress.loss_sum = float(progress.loss_sum)
        progress.weight_sum = float(progress.weight_sum)
        check_finite(torch.tensor(progress.loss_sum), progress.step)
        state = {**self.train_step.state_dict(), "progress": progress.to_dict()}
        self.writer.save(state, is_best=is_best)

    def _end_epoch(self, values: dict[str, Any], progress: Progress) -> None:
        """Validates, writes it down, keeps a checkpoint."""
        values["loss"] = float(progress.loss_sum) / max(float(progress.weight_sum), 1e-30)
        means = self._validation_means(progress)
        loss = means.get("validation_loss")
        # Without a validation split the newest weights are the best there are.
        is_best = loss is None or loss < progress.best_loss
        if loss is not None:
            progress.best_loss = min(loss, progress.best_loss)
        place = self._place(progress)
        progress.validated += 1
        progress.loss_sum = progress.weight_sum = 0.0
        values |= {"validation_loss": None, **means, "is_best": is_best}
        if self.config.epochs:
            self.journal.write("epoch", {**place, **values})
        elif loss is not None:
            self.journal.say(f"the network is kept as it is: validation loss {loss:.4f}")
        self._save(progress, is_best=is_best)
        if self.watch is not None:
            self.watch.after_epoch()

    def _validation_means(self, progress: Progress) -> dict[str, float]:
        """Loss, and CRPS if it is asked for; nothing without a label to validate on."""
        if self.validate is None:
            return {}
        names = ["validation_loss"]
        if self.watch is not None and self.watch.has_crps:
            names.append("validation_crps")
        sums = torch.zeros(1 + len(names), dtype=torch.float64, device=self.ranks.device)
        with Prefetcher(self.validate()) as batches:
            for batch in batches:
                sums += self.train_step.validation_sums(batch)
                if self.stop.poll(self.ranks):
                    self._save_and_stop(progress)
        loss, count, *crps = self.ranks.sum(sums).tolist()
        return {n: s / count for n, s in zip(names, (loss, *crps), strict=True)} if count else {}
