"""One pass of a network over samples: losses of their labels, and gradients of its last layer.

Each rank takes its share of every batch, as predictions are made: nothing depends on the number of
ranks, but for the last bits.

The last layer's tangent kernel, what a training object does to another's loss, has a closed form.

The gradient of an object's cross-entropy with respect to the last layer's weights and biases is
r x [h, 1], with r = p - y (the bins' probabilities minus the label's) and h what enters the layer.
So the product of the gradients of two objects is

    K_ij = (r_i . r_j) (h_i . h_j + 1),

and a step of gradient descent on j of rate e changes the loss of i by -e K_ij: j argues for the
label of i where K is positive, against it where it is negative.

Source: Pruthi et al. 2020, arXiv:2002.08484 (TracIn); Engel et al. 2023, arXiv:2305.14585.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msdata.core.progress import ProgressLine
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
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
from mstrain.network_config import ModelConfig

Columns = dict[str, NDArray[Any]]
# Gets residuals float16 (N, K) and inputs of the last layer float32 (N, D) of each batch.
Sink = Callable[[NDArray[np.float16], NDArray[np.float32]], None]
# Training objects at a time: 64 MB of kernel for a thousand queries.
_BLOCK = 16_384
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


def residuals(
    logits: Tensor, label: Tensor, loss: BinLoss, model: ModelConfig, *, has_stand_in: bool = False
) -> Tensor:
    """The gradient of each object's cross-entropy with respect to its logits.

    Args:
        logits: (B, num_bins).
        label: float64 (B,), NaN or outside of the bins where unknown.
        loss: the training's, which may spread or smooth labels; its weights do not count.
        model: the bins.
        has_stand_in: an unknown label is taken to be the density's mode; else its residual is 0.

    Returns:
        Probabilities minus those of the label, (B, num_bins) in the type of the logits.
    """
    probability = torch.softmax(logits, dim=1)
    is_known = (bin_of(label, model) >= 0)[:, None]
    wanted = loss.targets(label).to(probability)
    if not has_stand_in:
        return torch.where(is_known, probability - wanted, 0.0)
    mode = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(probability)
    return probability - torch.where(is_known, wanted, mode)


def kernel_block(r_QK: Tensor, h_QD: Tensor, r_NK: Tensor, h_ND: Tensor) -> Tensor:
    """The kernel between two groups of objects, (Q, N).

    Args:
        r_QK: residuals of the first.
        h_QD: inputs of the last layer of the first.
        r_NK: residuals of the second.
        h_ND: inputs of the second.
    """
    return (r_QK @ r_NK.T) * (h_QD @ h_ND.T + 1)


def self_influence(r_NK: Tensor, h_ND: Tensor) -> Tensor:
    """The kernel of each object with itself, (N,): the squared norm of its gradient."""
    return r_NK.square().sum(dim=1) * (h_ND.square().sum(dim=1) + 1)


def strongest(
    query: tuple[NDArray[Any], NDArray[Any]],
    parts: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    own_Q: NDArray[np.int64],
    count: int,
    device: torch.device | str = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The training objects that argue most for and most against each query.

    Args:
        query: residuals (Q, K) and inputs (Q, D).
        parts: residuals (n, K) and inputs (n, D), all training objects one part after the other;
            read once, in blocks.
        own_Q: int64 (Q,), row of the query itself among them, which does not count; -1 for none.
        count: objects wanted on each side.
        device: where products are computed.

    Returns:
        Kernel float32 and row int64, (2, Q, count') each: for, falling, then against, rising;
        count' is `count` or all training objects. NaN and -1 where there are fewer of that sign.
    """
    r_QK, h_QD = (torch.from_numpy(np.array(v, np.float32)).to(device) for v in query)
    own = torch.from_numpy(own_Q).to(device)[:, None]
    best = torch.zeros((2, len(r_QK), 0), device=device)
    row = torch.zeros((2, len(r_QK), 0), dtype=torch.int64, device=device)
    start = 0
    for r_part, h_part in parts:
        for first in range(0, len(r_part), _BLOCK):
            r_NK, h_ND = (
                torch.from_numpy(np.array(v[first : first + _BLOCK], np.float32))
                for v in (r_part, h_part)
            )
            kernel = kernel_block(r_QK, h_QD, r_NK.to(device), h_ND.to(device))
            here = torch.arange(start + first, start + first + len(r_NK), device=device)[None]
            signed = torch.stack([kernel, -kernel])
            signed = torch.where((here == own) | (signed <= 0), -torch.inf, signed)
            best = torch.cat([best, signed], dim=2)
            row = torch.cat([row, here.expand(signed.shape)], dim=2)
            best, place = torch.topk(best, min(count, best.shape[2]), dim=2)
            row = row.gather(2, place)
        start += len(r_part)
    best[1] *= -1
    is_found = torch.isfinite(best)
    value = torch.where(is_found, best, torch.nan).cpu().numpy()
    return value, torch.where(is_found, row, -1).cpu().numpy()
