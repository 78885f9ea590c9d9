"""What a trained network makes of samples, before it says anything of redshift: the embeddings.

Each rank takes its share of every batch and spools it, as predictions are made: the table does not
depend on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import msdata
from msdata.core.output_file import check_output, make_folder
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from mstrain.checks import check_batch_size
from mstrain.config import TrainConfig
from mstrain.data.batches import TensorBatch
from mstrain.data.pixels import check_pixels
from mstrain.distributed import Ranks
from mstrain.embedding.embeddings import EMBEDDING, LAYER_KEY, MARK
from mstrain.evaluation.inference import (
    DEFAULT_BATCH,
    check_taken_over,
    columns_of_share,
    network_of,
    origin_of,
    plain_config,
    precision_of,
)
from mstrain.evaluation.list_table import (
    SpooledRows,
    index_column,
    opened_spool,
    write_list_table,
)
from mstrain.evaluation.prediction import splits_of
from mstrain.evaluation.run_info import check_data, open_run
from mstrain.models.redshift_net import FEATURES, RedshiftNet, check_layer
from mstrain.training.checkpoint import checkpoint_sha256

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """What is embedded, and how.

    Attributes:
        layer: "features", pooled, of all encoders; "hidden", the layer before the logits; or
            "pixels", statistics of the images.
        split: name of the split; None takes all that have samples, in order.
        columns: columns of the index to copy.
        checkpoint: "best" or "last".
        has_any_pixels: take pixels of another kind than the training's.
        batch_size: samples per rank at a time.
        is_quiet: show no progress.
    """

    layer: str = FEATURES
    split: str | None = None
    columns: tuple[str, ...] = ()
    checkpoint: str = "best"
    has_any_pixels: bool = False
    batch_size: int = DEFAULT_BATCH
    is_quiet: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What was written.

    Attributes:
        num_samples: rows of the table.
        num_values: values of an embedding.
        path: the table.
    """

    num_samples: int
    num_values: int
    path: Path


def embed_on_ranks(
    run: Path, data: Path, out: Path, config: EmbeddingConfig, ranks: Ranks
) -> Embedded | None:
    """Writes a table of embeddings; all ranks call it.

    Args:
        run: the run's folder, or a model file.
        data: the data set's folder.
        out: the table's file.
        config: what and how.
        ranks: this rank among the others.

    Returns:
        What was written, on the first rank; None on the others.

    Raises:
        UsageError: the run, the data or the options do not go together.
        DataError: something is damaged, or an embedding does not fit float16.
        StorageError: the file system refused.
    """
    differences = ranks.on_first(lambda: _check(run, data, out, config))
    opened, trained = msdata.open(data), open_run(run, config.checkpoint)
    splits = [opened.split(name) for name in splits_of(opened, config.split)]
    origin = {
        "format_version": FORMAT_VERSION,
        **origin_of(trained, splits, None, differences or ()),
        "checkpoint_sha256": checkpoint_sha256(run, config.checkpoint),
        LAYER_KEY: config.layer,
    }
    model = network_of(trained, ranks.device)
    num_values, num_rows = model.embedding_size(config.layer), sum(map(len, splits))
    plain = plain_config(trained.config, config.batch_size, ranks)
    with opened_spool(out, ranks, num_values, np.float16) as spool:

        def of_batch(_: Split, batch: TensorBatch) -> dict[str, NDArray[Any]]:
            spool.add(_embedded(model, batch, config.layer, plain, ranks.device))
            return {}

        found = columns_of_share(
            *(trained, splits, plain, ranks), of_batch, what="embed", is_quiet=config.is_quiet
        )
        given = ranks.gather(spool.finish(found["row"])) or []

        def write() -> Embedded:
            names = ("sample_id", "split", *config.columns)
            columns = {name: index_column(splits, name) for name in names}
            lists = SpooledRows(given, num_rows, num_values, np.float16)
            write_list_table(out, columns, EMBEDDING, lists, origin)
            return Embedded(num_samples=num_rows, num_values=num_values, path=out)

        return ranks.on_first(write)


def _check(run: Path, data: Path, out: Path, config: EmbeddingConfig) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    if out.suffix != ".parquet":
        raise UsageError(f"the table's name must end in .parquet, got {out}")
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    check_layer(config.layer, trained.config.model)
    splits = splits_of(opened, config.split)
    check_data(trained, opened, splits)
    check_output(out, MARK)
    opened.split(splits[0]).check_columns(config.columns)
    check_taken_over(config.columns, {EMBEDDING})
    differences = check_pixels(trained, opened, splits, is_told=config.has_any_pixels)
    make_folder(out.absolute().parent)
    return differences


@torch.inference_mode()
def _embedded(
    model: RedshiftNet,
    batch: TensorBatch,
    layer: str,
    config: TrainConfig,
    device: torch.device,
) -> NDArray[np.float16]:
    """The embeddings of a batch, float16 (N, D)."""
    with precision_of(config, device):
        values = model.embed(batch.images, batch.ebv, layer)
    found: NDArray[np.float16] = values.half().cpu().numpy()
    is_good_N = np.isfinite(found).all(axis=1)
    if not is_good_N.all():
        worst = int(np.argmin(is_good_N))
        raise DataError(
            f"{(~is_good_N).sum()} embeddings of a batch, sample {batch.sample_id[worst]}'s among "
            "them, are not finite in float16 (largest value 65,504); look at its pixels with "
            "'msdata sheet'"
        )
    return found
