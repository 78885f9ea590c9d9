"""Opens all that a training needs, in the run's folder, and takes up where the run stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import msdata
from msdata.augment import Statistics, read_statistics
from msdata.augment.statistics import FILE_NAME
from msdata.core.terminal import shown_line
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from mstrain.config import TrainConfig, batch_per_rank
from mstrain.data.batches import (
    Prefetcher,
    TensorBatch,
    evaluation_stream,
    make_augmenter,
    make_loader,
    steps_per_epoch,
    training_stream,
)
from mstrain.data.columns import added_digests, index_columns
from mstrain.data.left_out import check_left_out, left_out
from mstrain.data.pixels import statistics_for_run
from mstrain.data.share import training_split
from mstrain.distributed import Ranks, StopRequest, failing_at_once
from mstrain.models.labels import resolve
from mstrain.models.loss import redshift_weights
from mstrain.models.prior import TrainedPrior, measure_prior
from mstrain.models.redshift_net import RedshiftNet
from mstrain.models.target import Target
from mstrain.overrides import changed_settings
from mstrain.recipes import for_ranks
from mstrain.training.cache_hits import HitCounter
from mstrain.training.checkpoint import (
    find_last,
    has_config,
    read_checkpoint,
    read_config,
    restoring,
    versions,
    write_config,
)
from mstrain.training.checkpoint_writer import CheckpointWriter
from mstrain.training.initial_weights import find_start, recorded_init
from mstrain.training.metrics_log import Journal, write_placement
from mstrain.training.train_step import TrainStep
from mstrain.training.trainer import Progress, Trainer, Watch

# Launching a step's kernels takes the host as long as a GPU takes for about so many samples.
_FEW_SAMPLES = 64


def train_on_ranks(
    out: Path,
    config: TrainConfig,
    data: msdata.Dataset,
    ranks: Ranks,
    stop: StopRequest,
    *,
    init: Path | None = None,
    is_quiet: bool = False,
    watch: Watch | None = None,
) -> Progress:
    """Trains to the end, from the last checkpoint in `out` if there is one.

    Args:
        out: the run's folder.
        config: settings of the run.
        data: with split "train", and "val" to validate on.
        ranks: all of them call it.
        stop: looked at after every step.
        init: weights to start from, see `mstrain.training.initial_weights`.
        is_quiet: show no progress.
        watch: what the caller wants of each epoch; None for nothing.

    Returns:
        The end.

    Raises:
        Stopped: it was asked to stop, and has saved its state.
        UsageError: the folder holds another run, or the data lack what the settings ask for.
    """
    split, config = training_split(data, config), resolve(for_ranks(config, ranks.count), data)
    journal = _journal(out, data, config, is_writer=ranks.is_first, is_quiet=is_quiet)
    start = find_start(out, init, config, split, ranks, journal.say)
    statistics = find_statistics(out, config, split, journal)
    saved = ranks.on_first(lambda: prepare_run(out, config, split, statistics))
    with ExitStack() as stack, failing_at_once(ranks.topology):
        write_placement(out, config, ranks)
        loader = stack.enter_context(make_loader(split, config, ranks))
        augmenter = stack.enter_context(make_augmenter(split, config, ranks, statistics))
        shapes, weights = dict(augmenter.shapes), loss_weights(split, config, journal)
        train_step, prior = make_train_step(split, config, shapes, ranks, weights, start, watch)
        progress = _resume(saved, train_step, loader, prior)
        batches = training_stream(loader, augmenter, config, ranks.device)
        stream = stack.enter_context(Prefetcher(batches))  # It makes the first one meanwhile.
        stack.enter_context(journal.open(progress.step))
        journal.say(_opening(out, config, ranks, progress, train_step.num_steps))
        hits = HitCounter(split=split, config=config, ranks=ranks, owners=loader.cache_owners)
        extras = extras_of(config, data, shapes, prior)
        Trainer(
            config=config,
            ranks=ranks,
            train_step=train_step,
            journal=journal,
            validate=_validation(stack, data, config, ranks, statistics, journal),
            count_hits=hits.count,
            writer=CheckpointWriter(out, ranks, extras, keep=config.checkpoint.keep),
            stop=stop,
            watch=watch,
        ).fit(stream, progress)
    return progress


def _journal(
    out: Path, data: msdata.Dataset, config: TrainConfig, *, is_writer: bool, is_quiet: bool
) -> Journal:
    """The run's journal, which says first what is not trained on."""
    journal = Journal(out, config.log, is_writer=is_writer, is_quiet=is_quiet)
    for note in left_out(data.split("train"), config.data).notes:
        journal.say(shown_line(note))
    return journal


def find_statistics(
    out: Path, config: TrainConfig, split: Split, journal: Journal
) -> Statistics | None:
    """What pixels are scaled by: the run's own when it resumes, the data set's, or measured now.

    Every rank measures the same samples.

    Raises:
        DataError: the file is damaged, or was measured on another data set.
    """
    if not config.augment.needs_statistics:
        return None
    if find_last(out) is not None and (out / FILE_NAME).exists():
        return read_statistics(out)
    folder = split.dataset.path
    if (folder / FILE_NAME).exists():
        return read_statistics(folder)
    found = statistics_for_run(split)
    journal.say(
        f"pixels are scaled by statistics of {found.num_samples:,} samples, kept in "
        f"{out / FILE_NAME}; 'msdata stats {folder}' measures more"
    )
    return found


def loss_weights(split: Split, config: TrainConfig, journal: Journal) -> Tensor | None:
    """Weights of the loss, None where all count alike; says how many samples count nothing.

    Raises:
        UsageError: the data set has no such labels.
        DataError: no sample has a label within the bins.
    """
    index_columns(split, config, needs_label=True)
    target = Target.of(config.model)
    label = target.values(split)
    is_drawn = config.loss.weights_in == "sampler"
    num_known = int(np.count_nonzero(target.is_usable(label)))
    if not num_known:
        raise DataError(
            f"no sample of split {split.name!r} has a {target.known}: there is nothing to learn; "
            f"correct the catalog and pack again, or give another {target.range_settings}"
        )
    if num_known < len(label):
        journal.say(
            f"{len(label) - num_known:,} of {len(label):,} samples have no {target.known}: they "
            f"{'are never drawn' if is_drawn else 'count nothing in the loss'}"
        )
    if is_drawn or config.loss.weighting == "none":
        return None
    return redshift_weights(label, config.loss, target.high, target.low)


def make_train_step(
    split: Split,
    config: TrainConfig,
    shapes: Mapping[str, tuple[int, ...]],
    ranks: Ranks,
    weights: Tensor | None,
    start: Callable[[RedshiftNet], None] | None,
    watch: Watch | None = None,
) -> tuple[TrainStep, TrainedPrior]:
    """What learns, and the prior that it learns under."""
    num_steps = config.epochs * steps_per_epoch(len(split), config)
    label = Target.of(config.model).values(split)
    prior = measure_prior(label, config.loss, config.model)
    undo = prior.natural_factor()
    made = TrainStep(
        *(config, shapes, ranks, weights),
        num_steps=num_steps,
        initialize=start,
        log_factor=undo,
        has_crps=watch is not None and watch.has_crps,
    )
    return made, prior


def _opening(
    out: Path, config: TrainConfig, ranks: Ranks, progress: Progress, num_steps: int
) -> str:
    place = (
        f"{ranks.count} rank(s) on {ranks.device.type}, {config.batch_size:,} samples per step at "
        f"rate {config.optim.learning_rate:.2g}, {out}"
    )
    if progress.validated == max(config.epochs, 1):
        return f"{config.recipe}: {out} is finished, all {config.epochs} epochs of it"
    steps = f"{num_steps:,} steps"
    if progress.step:
        steps = f"resuming after step {progress.step:,} of {num_steps:,}"
    advice, told = _advice(config, ranks), Target.of(config.model).told()
    first = f"{config.recipe}: {steps}, {place}" + (f"\n{shown_line(told)}" if told else "")
    return first + ("" if advice is None else f"\n{advice}")


def _advice(config: TrainConfig, ranks: Ranks) -> str | None:
    """What to change where a GPU gets too little to do; None where it does not."""
    num_samples = batch_per_rank(config, ranks.count)
    if ranks.device.type != "cuda" or num_samples >= _FEW_SAMPLES:
        return None
    return (
        f"each GPU gets {num_samples} samples at a time, fewer than {_FEW_SAMPLES}: it will wait "
        "for its host; give batch_per_gpu=256, less compute.accumulate, or fewer GPUs"
    )


def _validation(
    stack: ExitStack,
    data: msdata.Dataset,
    config: TrainConfig,
    ranks: Ranks,
    statistics: Statistics | None,
    journal: Journal,
) -> Callable[[], Iterator[TensorBatch]] | None:
    """What gives this rank's validation batches; loader and augmenter stay open over all epochs."""
    if "val" not in data.splits or not len(data.split("val")):
        return None
    split = data.split("val")
    if told := Target.of(config.model).unseen_text(split):
        journal.say(shown_line(told))
    cache = config.data.cache() if config.data.cache_val else None
    loader = stack.enter_context(make_loader(split, config, ranks, is_training=False, cache=cache))
    augmenter = stack.enter_context(make_augmenter(split, config, ranks, statistics))
    return lambda: evaluation_stream(loader, augmenter, config, ranks.device)


def extras_of(
    config: TrainConfig,
    data: msdata.Dataset,
    shapes: Mapping[str, tuple[int, ...]],
    prior: TrainedPrior,
) -> dict[str, Any]:
    """What a checkpoint holds beside what was learned, so that it stands for itself."""
    return {
        "config": config.as_dict(),
        "fingerprint": data.manifest.fingerprint,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "prior": prior.to_state(),
    }


def _resume(
    saved: Path | None, train_step: TrainStep, loader: msdata.Loader, prior: TrainedPrior
) -> Progress:
    """Takes up a checkpoint; a fresh start where there is none."""
    if saved is None:
        return Progress()
    # On the host: what belongs on a GPU is copied into what is there already.
    content = read_checkpoint(saved)
    with restoring(saved):
        train_step.load_state_dict(content)
        progress = Progress.from_dict(content["progress"])
        train_step.start_at(progress.step)
        if "prior" not in content and prior.log_weights is not None:
            # Its losses are of densities under the weights, unlike those to come.
            progress.best_loss = math.inf
        if progress.loader is not None:
            loader.load_state_dict(progress.loader)
    return progress


def prepare_run(
    out: Path, config: TrainConfig, split: Split, statistics: Statistics | None
) -> Path | None:
    """Makes the folder this run's; returns the checkpoint to resume from.

    Raises:
        UsageError: it holds a run of other settings or other data.
    """
    saved, data = find_last(out), split.dataset
    added = added_digests(data, config)
    without = left_out(data.split("train"), config.data).record
    if saved is not None and has_config(out):
        _check_same_run(out, config, data, added)
        check_left_out(out, read_config(out), without)
    start = None if saved is None else recorded_init(out)
    write_config(
        out,
        {
            **({} if start is None else {"init": start}),
            "config": config.as_dict(),
            "data": str(data.path.absolute()),
            "fingerprint": data.manifest.fingerprint,
            "added_columns": added,
            **({"left_out": without} if without else {}),
            "schema": data.schema.to_json(),
            "versions": versions(),
            "prior": _prior_text(config),
        },
    )
    # Also where nothing is scaled by them: other pixels are held against them later.
    if statistics is not None or not (out / FILE_NAME).exists():
        (statistics or statistics_for_run(split)).write(out / FILE_NAME)
    return saved


def _prior_text(config: TrainConfig) -> dict[str, str]:
    """Which prior is meant by what of the run, for people."""
    loss = config.loss
    weights = f"natural times {loss.weighting} weights in the {loss.weights_in}"
    return {
        "network": "natural" if loss.weighting == "none" else weights,
        "validation_loss": "natural",
        "evaluate_and_predict": "natural, unless --prior says otherwise",
    }


def _check_same_run(
    out: Path, config: TrainConfig, data: msdata.Dataset, added: Mapping[str, str]
) -> None:
    content = read_config(out)
    if content["fingerprint"] != data.manifest.fingerprint:
        raise UsageError(
            f"{out} was trained on data set {content['fingerprint']} ({content['data']}), this one "
            f"is {data.manifest.fingerprint}; give that data set, or another --out"
        )
    # Runs of earlier versions did not keep what they had read.
    trained: dict[str, str] = content.get("added_columns", {})
    for column, digest in added.items():
        if trained.get(column, digest) != digest:
            raise UsageError(
                f"{out} was trained on other values of the added column {column!r} of {data.path}: "
                "it was replaced since, and the run cannot resume; add the former table again with "
                "'msdata index add', or give another --out"
            )
    before = TrainConfig.from_dict(content["config"])
    # A list may lie elsewhere: `check_left_out` compares its content.
    before = replace(before, data=replace(before.data, without=config.data.without))
    for name, former, value in changed_settings(before, config):
        raise UsageError(
            f"{out} holds a run with {name}={former}, now it is {value}: it cannot resume; give "
            "the former value, or another --out"
        )
