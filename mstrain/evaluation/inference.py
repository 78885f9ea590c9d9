"""A trained network over whole splits: from a run and a data set to the table of predictions.

Each rank takes its share of every batch, scores its densities, and spools them; the first rank
gathers all that is not a density and writes the table, in the order of the index. So the table, and
every metric that is computed from it, is the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import msdata
from msdata.core.progress import ProgressLine
from msdata.dataset.added import added_fingerprint
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from mstrain.config import TrainConfig
from mstrain.data.batches import (
    Prefetcher,
    TensorBatch,
    evaluation_stream,
    make_augmenter,
    make_loader,
)
from mstrain.data.pixels import statistics_of_run
from mstrain.distributed import Ranks
from mstrain.evaluation.list_table import (
    Spool,
    Spooled,
    SpooledRows,
    index_column,
    joined_pieces,
    opened_spool,
    with_rows,
)
from mstrain.evaluation.metrics.classes import (
    CLASS_SCORES,
    PREDICTED,
    PROBABILITY,
    class_estimates,
    class_scores,
)
from mstrain.evaluation.metrics.densities import Densities, make_densities
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.scores import (
    PLACES,
    POINT_ESTIMATES,
    SCORES,
    SPREADS,
    point_estimates,
    scores,
)
from mstrain.evaluation.predictions import (
    DENSITY,
    PROBABILITIES,
    write_predictions,
)
from mstrain.evaluation.run_info import TrainedRun
from mstrain.evaluation.variants import Features, Variant, brightness, check_cutouts
from mstrain.models.heads import bin_edges, density
from mstrain.models.redshift_net import RedshiftNet
from mstrain.models.target import Target
from mstrain.training.checkpoint import load_model
from mstrain.training.train_step import autocast

# Gives further columns of a batch, from the network, its pooled features (B, F) and the batch.
Further = Callable[[RedshiftNet, Tensor, TensorBatch], dict[str, NDArray[Any]]]
# Mark columns of the index, and of variants beside the table's; no name in an index begins so.
_COPIED, _BESIDE = "\0copied\0", "\0{}\0"
# Of a rank; activations are not kept, so that far more fit than in training.
DEFAULT_BATCH = 256


def predict_to(
    path: Path,
    run: TrainedRun,
    splits: Sequence[Split],
    ranks: Ranks,
    *,
    variants: Sequence[Variant],
    columns: Sequence[str] = (),
    pixel_differences: Sequence[str] = (),
    data_name: str | None = None,
    batch_size: int = DEFAULT_BATCH,
    has_brightness: bool = False,
    further: Further | None = None,
    is_quiet: bool = False,
) -> list[Columns]:
    """Writes the table of predictions for splits of a data set; all ranks call it.

    Args:
        path: the table's file.
        run: see `open_run`.
        splits: splits of one data set, see `check_data`; the table has them in this order.
        ranks: this rank among the others.
        variants: the table's densities, then others to score samples by.
        columns: further columns of the index to take over.
        pixel_differences: from the training's, see `mstrain.data.pixels`.
        data_name: what the metadata call the data; None means the data set's folder.
        batch_size: samples of this rank at a time.
        has_brightness: the table also has the channels' `brightness`.
        further: gives more columns of the table.
        is_quiet: show no progress.

    Returns:
        Points and scores by each of the other variants, float64 (N,) in the table's order, with
        the label ("redshift", of classes "truth").

    Raises:
        DataError: the network gives no densities, or a sample is damaged.
        StorageError: the file system refused.
    """
    config = plain_config(run.config, batch_size, ranks)
    with opened_spool(path, ranks, config.model.num_bins) as spool:
        share = _Share(
            run=run,
            config=config,
            model=network_of(run, ranks.device),
            variants=variants,
            features={split.name: Features(split, variants, run.target) for split in splits},
            has_truth=run.target.column in splits[0].dataset.columns,
            has_brightness=has_brightness,
            further=further,
            spool=spool,
        )
        of_share = columns_of_share(
            *(run, splits, config, ranks), share.of_batch, what="predict", is_quiet=is_quiet
        )
        given = ranks.gather((of_share, spool.finish(of_share.pop("row")))) or []
        origin = origin_of(run, splits, variants[0], pixel_differences, data_name)
        more = len(variants)
        return ranks.on_first(lambda: _write(path, run, given, splits, columns, more, origin))


def _write(
    path: Path,
    run: TrainedRun,
    given: Sequence[tuple[Mapping[str, NDArray[Any]], Spooled]],
    splits: Sequence[Split],
    columns: Sequence[str],
    num_variants: int,
    origin: Mapping[str, Any],
) -> list[Columns]:
    """Writes the table from what all ranks gave; returns what `predict_to` does."""
    table = _table_columns(given, splits, columns, run.target)
    others = [_taken_out(table, n, run.target) for n in range(1, num_variants)]
    model, num_rows = run.config.model, sum(map(len, splits))
    densities = SpooledRows([s for _, s in given], num_rows, model.num_bins)
    edges = bin_edges(model).numpy()
    write_predictions(path, _as_public(table, splits, run.target), densities, edges, origin)
    return others


def columns_of_share(
    run: TrainedRun,
    splits: Sequence[Split],
    config: TrainConfig,
    ranks: Ranks,
    of_batch: Callable[[Split, TensorBatch], Mapping[str, NDArray[Any]]],
    *,
    what: str,
    is_quiet: bool,
) -> dict[str, NDArray[Any]]:
    """This rank's columns of splits, (n,) each: "row" in the table int64, and those of batches.

    Args:
        run: the network's.
        splits: of one data set, in the table's order.
        config: see `plain_config`.
        ranks: all of them call it.
        of_batch: gives columns of a batch of a split.
        what: the progress line's name.
        is_quiet: show no progress.

    Raises:
        DataError: a sample is damaged.
    """
    num_rows = sum(map(len, splits))
    progress = ProgressLine(what, num_rows, is_quiet=is_quiet or not ranks.is_first)
    parts, first = [], 0
    for split in splits:
        pieces: list[dict[str, NDArray[Any]]] = []
        done = 0
        for batch in batches_of(run, split, config, ranks):
            ids = {"sample_id": np.asarray(batch.sample_id, object)}
            pieces.append({**ids, **of_batch(split, batch)})
            # All ranks go at the same pace.
            done = min(done + len(batch) * ranks.count, len(split))
            progress.update(first + done, (first + done) * split.sample_nbytes)
        parts.append(with_rows(pieces, split, first))
        first += len(split)
    progress.close(num_rows, num_rows * splits[0].sample_nbytes)
    return {"row": np.zeros(0, np.int64), **joined_pieces(parts)}


def check_columns(columns: Sequence[str], target: Target) -> None:
    """Raises UsageError where a column of the index would take the place of one of the table's."""
    computed = {*map(target.public, (*POINT_ESTIMATES, *SPREADS)), *SCORES, *PLACES, DENSITY}
    if target.classes:
        own = (f"{target.column}_{name}" for name in (PREDICTED, PROBABILITY))
        computed = {*own, *CLASS_SCORES, PROBABILITIES}
    check_taken_over((*columns, target.column), computed)


def check_taken_over(columns: Sequence[str], own: Collection[str]) -> None:
    """Raises UsageError where columns of the index are called as the table's own."""
    for name in columns:
        if name in own:
            raise UsageError(
                f"cannot take over the column {name!r} of the index: the table has one of that "
                "name of its own; rename it in the catalog and pack again"
            )


def _taken_out(table: dict[str, Any], number: int, target: Target) -> Columns:
    """The columns of a variant beside the table's, without its prefix; no longer in the table."""
    prefix = _BESIDE.format(number)
    names = [name for name in table if name.startswith(prefix)]
    found = {name.removeprefix(prefix): table.pop(name) for name in names}
    label = "truth" if target.classes else "redshift"
    return {label: table[label], **found} if label in table else found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Share:
    """What a rank predicts with."""

    run: TrainedRun
    config: TrainConfig
    model: RedshiftNet
    variants: Sequence[Variant]
    features: Mapping[str, Features]
    has_truth: bool
    has_brightness: bool
    further: Further | None
    spool: Spool

    def of_batch(self, split: Split, batch: TensorBatch) -> dict[str, NDArray[Any]]:
        """Spools the densities of a batch by the first variant; gives the columns of all."""
        check_cutouts(self.variants, batch.images)
        density_PNK, more = self._computed(batch)
        edges = bin_edges(self.config.model).numpy()
        made = [_made(batch, density_NK, edges) for density_NK in density_PNK]
        # Calibrations are of the first prior.
        wanted = self.features[split.name].of(batch, made[0])
        first_NK = density_PNK[0]
        piece: dict[str, NDArray[Any]] = {}
        for number, variant in enumerate(self.variants):
            changed_NK = variant.apply(made[number], wanted)
            if changed_NK is not None:
                made[number] = _made(batch, changed_NK, edges)
                first_NK = first_NK if number else changed_NK
            prefix = _BESIDE.format(number) if number else ""
            scored = self._scored(batch, made[number])
            piece |= {prefix + name: values for name, values in scored.items()}
        self.spool.add(first_NK)
        return piece | more | (brightness(batch.images) if self.has_brightness else {})

    @torch.inference_mode()
    def _computed(
        self, batch: TensorBatch
    ) -> tuple[list[NDArray[np.float32]], dict[str, NDArray[Any]]]:
        """Densities under the prior of each variant, float32 (N, num_bins), and further columns."""
        with precision_of(self.config, batch.redshift.device):
            pooled = self.model.pooled(batch.images)
            logits = self.model.head(pooled, batch.ebv)
        found = [density(logits, self.config.model, v.prior.log_factor) for v in self.variants]
        more = {} if self.further is None else self.further(self.model, pooled, batch)
        return [values.float().cpu().numpy() for values in found], more

    def _scored(self, batch: TensorBatch, densities: Densities) -> dict[str, NDArray[Any]]:
        """All columns of a batch that come from its densities; bins of classes have width 1."""
        truth = batch.redshift.cpu().numpy()
        if self.run.target.classes:
            found, values = class_estimates(densities.values), densities.values
            return found | (class_scores(values, truth) if self.has_truth else {})
        return point_estimates(densities) | (scores(densities, truth) if self.has_truth else {})


def origin_of(
    run: TrainedRun,
    splits: Sequence[Split],
    variant: Variant | None,
    pixel_differences: Sequence[str] = (),
    data_name: str | None = None,
) -> dict[str, Any]:
    """Where a table came from, and which densities it holds if any, for its metadata."""
    data = splits[0].dataset
    of_densities: dict[str, str] = {}
    if variant is not None:
        of_densities = {"prior": variant.prior.name, "calibration": variant.calibration_name}
        of_densities["weighting"] = run.config.loss.weighting
    return {
        "run": str(run.path.absolute()),
        "recipe": run.config.recipe,
        "checkpoint": run.which,
        "step": run.step,
        "epochs": run.epochs,
        "data": data_name or str(data.path.absolute()),
        "fingerprint": data.manifest.fingerprint,
        "added_fingerprint": added_fingerprint(data.added),
        "splits": [split.name for split in splits],
        **of_densities,
        **run.target.as_dict(),
        "pixel_differences": list(pixel_differences),
        "version": msdata.__version__,
    }


def plain_config(config: TrainConfig, batch_size: int, ranks: Ranks) -> TrainConfig:
    """The run's configuration for samples that are taken once, in order of no account."""
    compute = replace(config.compute, accumulate=1)
    return replace(config, batch_size=batch_size * ranks.count, compute=compute)


def network_of(run: TrainedRun, device: torch.device) -> RedshiftNet:
    """A run's network on a device, in the memory format of its training."""
    model, config = load_model(run.path, run.which, device)
    if config.compute.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def precision_of(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """The training's precision; CPUs are quicker and better in float32."""
    return autocast("float32" if device.type == "cpu" else config.compute.precision, device)


def batches_of(
    run: TrainedRun, split: Split, config: TrainConfig, ranks: Ranks, position: int = 0
) -> Iterator[TensorBatch]:
    """This rank's batches of a split, from a position of its order on; empty ones are left out."""
    statistics = statistics_of_run(run.path) if config.augment.needs_statistics else None
    with ExitStack() as stack:
        loader = stack.enter_context(make_loader(split, config, ranks, is_training=False))
        loader.load_state_dict({**loader.state_dict(), "epoch": 0, "position": position})
        augmenter = stack.enter_context(make_augmenter(split, config, ranks, statistics))
        stream = evaluation_stream(loader, augmenter, config, ranks.device)
        for batch in stack.enter_context(Prefetcher(stream)):
            if len(batch):
                yield batch


def _made(
    batch: TensorBatch, density_NK: NDArray[np.float32], edges: NDArray[np.float64]
) -> Densities:
    """Densities as they are written: whoever reads the table gets the same scores from it."""
    try:
        return make_densities(density_NK, edges)
    except DataError as error:
        raise DataError(
            f"samples {batch.sample_id[0]} to {batch.sample_id[-1]}: {error}"
        ) from error


def _table_columns(
    given: Sequence[tuple[Mapping[str, NDArray[Any]], Any]],
    splits: Sequence[Split],
    columns: Sequence[str],
    target: Target,
) -> dict[str, Any]:
    """All columns in the table's order, from what all ranks gave; those of the index besides."""
    num_rows = sum(len(split) for split in splits)
    # What is computed with is float64; all else stays as the index has it.
    table: dict[str, Any] = {n: index_column(splits, n) for n in ("sample_id", "split")}
    if target.column in splits[0].dataset.columns:
        label = "truth" if target.classes else "redshift"
        table[label] = np.concatenate([target.values(split) for split in splits])
    # Columns of other names than those that are renamed below.
    table |= {_COPIED + n: index_column(splits, n) for n in columns if n != target.column}
    for part, spooled in given:
        for name, values in part.items():
            empty = np.zeros(num_rows, bool) if values.dtype == bool else np.full(num_rows, np.nan)
            column = table.setdefault(name, empty)
            column[spooled.rows] = values
    return table


def _as_public(table: dict[str, Any], splits: Sequence[Split], target: Target) -> dict[str, Any]:
    """Columns under the names of the file, classes under their own."""
    found: dict[str, Any] = {}
    for name, values in table.items():
        if name == "truth":
            found[target.column] = index_column(splits, target.column)
        elif name == PREDICTED:
            found[f"{target.column}_{name}"] = target.names_of(values, splits[0])
        elif name == PROBABILITY:
            found[f"{target.column}_{name}"] = values
        else:
            found[name.removeprefix(_COPIED) if _COPIED in name else target.public(name)] = values
    return found
