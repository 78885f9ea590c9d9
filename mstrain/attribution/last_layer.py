"""One pass of a network over samples: losses of their labels, and gradients of its last layer.

Each rank takes its share of every batch, as predictions are made: nothing depends on the number of
ranks, but for the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from msdata.core.progress import ProgressLine
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from mstrain.attribution.kernel import residuals, self_influence
from mstrain.config import TrainConfig
from mstrain.data.batches import TensorBatch
from mstrain.distributed import Ranks
from mstrain.evaluation.inference import batches_of, network_of, plain_config, precision_of
from mstrain.evaluation.list_table import joined_pieces, with_rows
from mstrain.evaluation.metrics import densities as piecewise
from mstrain.evaluation.metrics.densities import make_densities
from mstrain.evaluation.run_info import TrainedRun
from mstrain.models.heads import bin_edges, bin_of, density
from mstrain.models.loss import BinLoss
from mstrain.models.redshift_net import BinHead, RedshiftNet

Columns = dict[str, NDArray[Any]]
# Gets residuals float16 (N, K) and inputs of the last layer float32 (N, D) of each batch.
Sink = Callable[[NDArray[np.float16], NDArray[np.float32]], None]
LOSS, MARGIN, CRPS, PIT, SELF = "loss", "margin", "crps", "pit", "self_influence"


def check_head(model: nn.Module, run: TrainedRun) -> int:
    """The number of values that enter the last layer.

    Raises:
        UsageError: the network does not end in a linear layer and a softmax over bins.
    """
    head = getattr(model, "head", None)
    last = head.layers[-1] if isinstance(head, BinHead) else None
    if not isinstance(last, nn.Linear) or last.bias is None:
        raise UsageError(
            f"cannot attribute densities of {run.path}: the gradient is known in closed form for a "
            f"linear layer and a softmax over bins, got {type(head).__name__}; train a recipe's "
            "network"
        )
    return last.in_features


def run_pass(
    run: TrainedRun,
    split: Split,
    ranks: Ranks,
    *,
    batch_size: int,
    is_quiet: bool = False,
    what: str = "attribute",
    sink: Sink | None = None,
    has_stand_in: bool = False,
) -> Columns:
    """Scores this rank's samples of a split against their labels.

    Args:
        run: the network.
        split: the samples, such as a part of a split.
        ranks: all of them call it.
        batch_size: samples of this rank at a time.
        is_quiet: show no progress.
        what: the progress line's name.
        sink: gets residuals and inputs of the last layer.
        has_stand_in: see `residuals`.

    Returns:
        "row" of the split int64 (n,), and float64 (n,): "loss", the cross-entropy in nats of the
        label's bin; "margin", by how much that is above the most probable bin's, so that wide
        densities are not suspect for their width; "self_influence"; and, unless the target is
        classes, "estimate" (the mean), "crps" and "pit". NaN where the label is unknown. Of
        densities under the prior that the network was trained with.

    Raises:
        UsageError: the network has another head.
        DataError: a residual or an input of the last layer is not finite.
    """
    plain = plain_config(run.config, batch_size, ranks)
    model = network_of(run, ranks.device)
    check_head(model, run)
    loss = BinLoss(run.config.loss, run.config.model).to(ranks.device)
    progress = ProgressLine(what, len(split), is_quiet=is_quiet or not ranks.is_first)
    pieces: list[Columns] = []
    done = 0
    for batch in batches_of(run, split, plain, ranks):
        pieces.append(_scored(model, batch, loss, plain, ranks.device, sink, has_stand_in))
        done = min(done + len(batch) * ranks.count, len(split))
        progress.update(done, done * split.sample_nbytes)
    progress.close(len(split), len(split) * split.sample_nbytes)
    empty: Columns = {"row": np.zeros(0, np.int64)}
    return empty | joined_pieces([with_rows(pieces, split, 0)])


@torch.inference_mode()
def _scored(
    model: RedshiftNet,
    batch: TensorBatch,
    loss: BinLoss,
    config: TrainConfig,
    device: torch.device,
    sink: Sink | None,
    has_stand_in: bool,
) -> Columns:
    with precision_of(config, device):
        h_ND, logits = model.last_layer(batch.images, batch.ebv)
    r_NK = residuals(logits, batch.redshift, loss, config.model, has_stand_in=has_stand_in)
    if sink is not None:
        r, h = r_NK.half().cpu().numpy(), h_ND.float().cpu().numpy()
        is_good = np.isfinite(r).all(axis=1) & np.isfinite(h).all(axis=1)
        if not is_good.all():
            raise DataError(
                f"the last layer's gradient of sample {batch.sample_id[int(np.argmin(is_good))]} "
                "is not finite; look at its pixels with 'msdata sheet'"
            )
        sink(r, h)
    number = bin_of(batch.redshift, config.model)
    is_known = (number >= 0).cpu().numpy()
    log_p = torch.log_softmax(logits.double(), dim=1)
    nats = -log_p.gather(1, number.clamp_min(0)[:, None])[:, 0]
    found: Columns = {
        LOSS: nats.cpu().numpy(),
        MARGIN: (nats + log_p.max(dim=1).values).cpu().numpy(),
        SELF: self_influence(r_NK.double(), h_ND.double()).cpu().numpy(),
    }
    estimate: Columns = {}
    if not config.model.classes:
        made = make_densities(
            density(logits, config.model).float().cpu().numpy(), bin_edges(config.model).numpy()
        )
        truth = np.where(is_known, batch.redshift.cpu().numpy(), made.edges[0])
        found |= {CRPS: piecewise.crps(made, truth), PIT: piecewise.cdf_at(made, truth)}
        estimate = {"estimate": piecewise.mean(made)}
    known = {name: np.where(is_known, values, np.nan) for name, values in found.items()}
    return {"sample_id": np.asarray(batch.sample_id, object), **estimate, **known}


def gathered(mine: Columns, num_rows: int, ranks: Ranks) -> Columns:
    """The columns of all ranks in the order of the split, on the first rank; empty on others."""
    table: Columns = {}
    for part in ranks.gather(mine) or []:
        for name, values in part.items():
            if name != "row":
                table.setdefault(name, np.full(num_rows, np.nan))[part["row"]] = values
    return table
