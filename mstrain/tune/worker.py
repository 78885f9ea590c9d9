"""A worker of a study: takes trials until none is left, each an ordinary run in its own folder.

All trials of a node share a cache. An arena's name carries user, job, data set and split, and its
table the node's capacity: nothing of batches, seeds or orders. So trials that give the same job map
the same arena. A worker keeps it from its first trial to its last, and fills it before, so that k
trials cost storage one reading.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import msdata
from msdata.core.terminal import shown_line
from msdata.core.text import bytes_text
from msdata.dataset.dataset import Split
from msdata.errors import MissingPackageError, MsdataError, StorageError, UsageError
from mstrain.config import DataConfig, TrainConfig, batch_per_rank
from mstrain.distributed import Ranks, Stopped, StopRequest
from mstrain.overrides import apply_overrides
from mstrain.training.checkpoint import check_run_folder
from mstrain.training.run import train_on_ranks
from mstrain.training.trainer import Watch
from mstrain.tune.space import CRPS, Dimension, setting_words
from mstrain.tune.study import Claim, Study

_POLL_S = 0.1
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
    """What trains the trials of this process, which is alone.

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


def with_shared_cache(config: DataConfig, given: Sequence[str], token: str) -> DataConfig:
    """Settings of the loader with a cache that trials share, as far as the caller gave none.

    `given` are full names of the caller's settings; `token` names the study.
    """
    usual: dict[str, Any] = {
        "cache_gib": None,
        "cache_job": f"tune-{token}",
        "cache_warmup": "blocking",
        "cache_val": True,
    }
    return replace(config, **{n: v for n, v in usual.items() if f"data.{n}" not in given})


def reserved_samples(base: TrainConfig, space: Sequence[Dimension], workers: int) -> int:
    """Samples in the largest batches that the workers of a node may draw."""
    ends = [end for d in space if d.name in ("batch_size", "batch_per_gpu") for end in d.ends()]
    sizes = (base.batch_size, base.batch_per_gpu, *ends)
    return workers * max(int(n) for n in sizes if n is not None)


@contextmanager
def shared_arena(
    splits: Sequence[Split],
    config: DataConfig,
    num_reserved: int,
    stop: StopRequest,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Keeps this node's cache of a study, full if it is to be filled first.

    `splits` are trained and validated on; the memory of `num_reserved` samples, see
    `reserved_samples`, is left to the trials.

    Raises:
        Stopped: it was asked to stop.
    """
    cache = config.cache()
    with ExitStack() as stack:
        for split in splits[: 1 + config.cache_val] if cache is not None else ():
            assert cache is not None
            nbytes = num_reserved * (config.prefetch + 2) * split.sample_nbytes
            kept = replace(cache, reserved_nbytes=nbytes)
            # A loader that hands out nothing: it joins, fills and keeps the arena.
            loader = stack.enter_context(
                msdata.Loader(
                    *(split, 1),
                    topology=msdata.Topology(),
                    cache=kept,
                    threads=1,
                    prefetch=1,
                    columns=(),
                )
            )
            if config.cache_warmup == "blocking":
                _await_full(loader, stop)
                _tell(loader.stats(), split.name, len(split), say)
        yield


def _await_full(loader: msdata.Loader, stop: StopRequest) -> None:
    while not loader.stats().get("cache", {"filler": {"is_done": True}})["filler"]["is_done"]:
        if stop.is_requested:
            raise Stopped
        time.sleep(_POLL_S)


def _tell(stats: dict[str, Any], name: str, num_samples: int, say: Callable[[str], None]) -> None:
    if "cache" not in stats:
        return
    tiers = [stats["cache"][tier] for tier in ("local", "ssd") if tier in stats["cache"]]
    num_held, nbytes = sum(tier["filled"] for tier in tiers), stats["cache"]["filler"]["bytes"]
    rest = "" if num_held == num_samples else "; every epoch of every trial reads the rest"
    say(
        f"this node's cache holds {num_held:,} of {num_samples:,} samples of split {name!r}, for "
        f"which this worker read {bytes_text(nbytes)}{rest}"
    )
