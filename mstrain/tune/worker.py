"""A worker of a study: takes trials until none is left, each an ordinary run in its own folder."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import msdata
from msdata.core.terminal import shown_line
from msdata.errors import MissingPackageError, MsdataError, StorageError, UsageError
from mstrain.config import TrainConfig, batch_per_rank
from mstrain.distributed import Ranks, Stopped, StopRequest
from mstrain.overrides import apply_overrides
from mstrain.training.checkpoint import check_run_folder
from mstrain.training.run import train_on_ranks
from mstrain.training.trainer import Watch
from mstrain.tune.space import CRPS, setting_words
from mstrain.tune.study import Claim, Study

# Folder, settings, what to call after each epoch.
Train = Callable[[Path, TrainConfig, Watch], None]


class Pruned(Exception):  # noqa: N818 - not an error: the pruner asked for it
    """The trial is not worth more epochs; its state is saved."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker works with; `run` works.

    Attributes:
        study: what it shares with other workers.
        base: settings of its trials; they may differ from the study's where results do not.
        train: trains a trial, to its end or from where it stands.
        stop: looked at between trials.
        say: shows a line of progress.
    """

    study: Study
    base: TrainConfig
    train: Train
    stop: StopRequest
    say: Callable[[str], None]

    def run(self, num_trials: int) -> None:
        """Trains trials until the study has as many.

        Args:
            num_trials: of the study, whoever trains them.

        Raises:
            Stopped: it was asked to stop; the trial that it trained is saved.
            DataError: all trials fail in the same way.
            StorageError: the file system refused; the trial can be resumed.
        """
        while (claim := self._next(num_trials)) is not None:
            with claim.lock:
                self._train(claim)

    def _next(self, num_trials: int) -> Claim | None:
        if self.stop.is_requested:
            raise Stopped
        return self.study.claim(num_trials)

    def _train(self, claim: Claim) -> None:
        number, study = claim.number, self.study
        begun = "resumed" if claim.is_resumed else "started"
        words = setting_words(claim.settings)
        self.say(f"trial {number} {begun}: {' '.join(words)}")

        def after_epoch() -> None:
            if study.report(number):
                raise Pruned

        try:
            config = apply_overrides(self.base, words)
            batch_per_rank(config, 1)
            # A worker may have been killed between an epoch and its report.
            after_epoch()
            watch = Watch(after_epoch=after_epoch, has_crps=study.config.objective == CRPS)
            self.train(study.trial_folder(number), config, watch)
            value = study.complete(number)
        except Pruned:
            study.prune(number)
            self.say(f"trial {number} pruned")
        except Stopped:
            study.put_back(number)
            raise
        except (StorageError, MissingPackageError):
            # Of the machine, not of the trial.
            raise
        except Exception as error:
            note = str(error) if isinstance(error, MsdataError) else _worded(error)
            self.say(f"trial {number} failed: {shown_line(note)}")
            study.fail(number, note)
        else:
            self.say(f"trial {number} complete: {study.config.objective} {value:.6g}")


def _worded(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def trial_training(data: msdata.Dataset, ranks: Ranks, stop: StopRequest) -> Train:
    """What trains the trials of this process.

    Args:
        data: the data set, with split "val".
        ranks: this process alone.
        stop: looked at after every step.

    Raises:
        UsageError: there is nothing to validate on.
    """
    if "val" not in data.splits or not len(data.split("val")):
        raise UsageError(
            f"{data.path} has no samples in split 'val' to compare trials on; pack it with "
            "--split 0.7,0.1,0.2"
        )

    def train(folder: Path, config: TrainConfig, watch: Watch) -> None:
        check_run_folder(folder)
        try:
            train_on_ranks(folder, config, data, ranks, stop, is_quiet=True, watch=watch)
        finally:
            # Trials of one process share its GPU.
            gc.collect()
            if ranks.device.type == "cuda":
                torch.cuda.empty_cache()

    return train


def say_to_stderr(line: str) -> None:
    """Shows a line of progress."""
    print(shown_line(line), file=sys.stderr, flush=True)
