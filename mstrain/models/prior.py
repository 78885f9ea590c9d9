"""The prior of a training, and the factor per bin that puts another one in its place.

A network trained with weights w(z), in the loss or in the sampler, learns w(z) p(z|x), normalized.
So its densities are divided by w: a term added to the logits. The divisor of a bin is the weighted
number of labels in it over their number: w itself where a bin lies within one bin of weights, and
where labels are spread, what keeps the mean density that of the training split.

Source: Saerens, Latinne and Decaestecker 2002, Neural Computation 14, 21, equation 4; Menon et al.
2021, arXiv:2007.07314 (in logits).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msdata.core.files import storage_error
from msdata.errors import DataError, UsageError
from mstrain.config import LossConfig
from mstrain.models.heads import bin_edges, bin_of
from mstrain.models.loss import BinLoss, place_of, weights_of_bins
from mstrain.models.target import Target
from mstrain.network_config import ModelConfig

NATURAL, AS_TRAINED = "natural", "as-trained"
_FILE_COLUMNS = ("z_low", "z_high", "count")
# Parts of a bin that redshifts are rounded to where labels are spread, and parts at a time.
_CELLS_PER_BIN = 16
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedPrior:
    """What the bins of a network held in its training; a checkpoint keeps it.

    Attributes:
        counts: int64 (num_bins,), samples of split "train" in each bin.
        log_weights: float64 (num_bins,), logarithm of each bin's weight, -inf where no sample
            weighs anything; None where all samples counted alike.
    """

    counts: Tensor
    log_weights: Tensor | None

    def to_state(self) -> dict[str, Tensor | None]:
        """Tensors for a checkpoint."""
        return {"counts": self.counts, "log_weights": self.log_weights}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], config: ModelConfig) -> TrainedPrior:
        """The inverse of `to_state`.

        Raises:
            DataError: the tensors do not belong to the network's bins.
        """
        known = state if isinstance(state, Mapping) else {}
        counts, weights = known.get("counts"), known.get("log_weights")
        for found, dtype in ((counts, torch.int64), (weights, torch.float64)):
            if found is None and dtype == torch.float64:
                continue
            if (
                not isinstance(found, Tensor)
                or found.dtype != dtype
                or found.shape != (config.num_bins,)
                or bool(torch.isnan(found).any())
            ):
                raise DataError(
                    f"the checkpoint's prior must have one number for each of {config.num_bins} "
                    "bins; it is damaged, use another checkpoint"
                )
        assert counts is not None
        return cls(counts=counts.cpu(), log_weights=None if weights is None else weights.cpu())

    def natural_factor(self) -> Tensor | None:
        """What is added to logits to undo the weights, float64 (num_bins,); None for nothing.

        Bins that no sample weighed in get -inf: a density of 0, since nothing was learned there.
        """
        if self.log_weights is None:
            return None
        is_known = torch.isfinite(self.log_weights)
        return torch.where(is_known, -self.log_weights, -math.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetPrior:
    """A prior that densities are wanted under.

    Attributes:
        name: "natural", "as-trained", or the file that it came from.
        log_factor: added to the logits, float64 (num_bins,); None adds nothing.
    """

    name: str
    log_factor: Tensor | None


def measure_prior(label: NDArray[np.float64], loss: LossConfig, model: ModelConfig) -> TrainedPrior:
    """What a training's bins hold, and what they weigh.

    Args:
        label: float64 (samples,), of split "train"; outside the bins, or NaN, it counts not.
        loss: `weighting`, `weights_in`, `weight_bins` and how labels are spread count.
        model: the bins.
    """
    target = Target.of(model)
    z = torch.as_tensor(label[target.is_usable(label)], dtype=torch.float64)
    number = bin_of(z, model)
    counts = torch.bincount(number, minlength=model.num_bins)
    if loss.weighting == "none":
        return TrainedPrior(counts=counts, log_weights=None)
    weights = weights_of_bins(label, loss, target.high, target.low)
    if loss.weights_in == "loss":
        # As the loss has them.
        weights = weights.float().double()
    weight = weights[place_of(z, loss.weight_bins, target.high, target.low)]
    if loss.label_width:
        labels, weighed = _spread_labels(z, weight, loss, model)
    else:
        labels = counts.double()
        weighed = torch.bincount(number, weight, minlength=model.num_bins)
    share = loss.label_smoothing
    labels = (1 - share) * labels + share * len(z) / model.num_bins
    weighed = (1 - share) * weighed + share * weight.sum() / model.num_bins
    # Without a label the weight is what it would have been.
    found = torch.where(labels > 0, weighed / labels, _mean_in_bins(weights, model))
    return TrainedPrior(counts=counts, log_weights=found.log())


def _spread_labels(
    z: Tensor, weight: Tensor, loss: LossConfig, model: ModelConfig
) -> tuple[Tensor, Tensor]:
    """Sum of spread labels in each bin, plain and weighted; float64 (num_bins,) each."""
    num_cells, target = _CELLS_PER_BIN * model.num_bins, Target.of(model)
    cell = place_of(z, num_cells, target.high, target.low)
    width = (target.high - target.low) / num_cells
    sums = torch.stack(
        [
            torch.bincount(cell, minlength=num_cells).double(),
            torch.bincount(cell, weight, minlength=num_cells),
        ]
    )
    spread = BinLoss(loss, model)
    total = torch.zeros(2, model.num_bins, dtype=torch.float64)
    for chosen in torch.split(torch.nonzero(sums[0])[:, 0], _CHUNK):
        centers = target.low + (chosen.double() + 0.5) * width
        total += sums[:, chosen] @ spread.labels(centers).double()
    return total[0], total[1]


def _mean_in_bins(weights: Tensor, model: ModelConfig) -> Tensor:
    """Mean over each bin of a function given on other even bins of the same range."""
    target = Target.of(model)
    ends = np.linspace(target.low, target.high, len(weights) + 1)
    integral = np.append(0, np.cumsum(weights.numpy())) * (
        (target.high - target.low) / len(weights)
    )
    edges = bin_edges(model).numpy()
    return torch.from_numpy(np.diff(np.interp(edges, ends, integral)) / np.diff(edges))


def target_prior(asked: str, trained: TrainedPrior, model: ModelConfig) -> TargetPrior:
    """The prior that was asked for.

    Args:
        asked: "natural", "as-trained", or a CSV file with columns z_low, z_high, count: how many
            objects of the target sample lie in each range of redshift, in any unit.
        trained: what the network was trained under.
        model: its bins.

    Raises:
        UsageError: the file is not such a table, or asks for redshifts without a training sample.
        StorageError: the file system refused.
    """
    if asked == AS_TRAINED:
        return TargetPrior(name=asked, log_factor=None)
    natural = trained.natural_factor()
    if asked == NATURAL:
        return TargetPrior(name=asked, log_factor=natural)
    path = Path(asked)
    if (target := Target.of(model)).classes:
        raise UsageError(
            f"--prior must be {NATURAL} or {AS_TRAINED} for the classes of {target.column}, got "
            f"{asked}"
        )
    ratio = _ratio_to_training(path, *_read_target(path), trained, bin_edges(model).numpy())
    factor = torch.from_numpy(ratio).log()
    if natural is not None:
        # -inf stays -inf, whatever is added.
        factor = factor + natural
    if not bool(torch.isfinite(factor).any()):
        raise UsageError(f"{path} has no object at a redshift the network was trained on")
    return TargetPrior(name=str(path.absolute()), log_factor=factor)


def _read_target(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges and counts of the file's bins, gaps between them as bins of 0."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = np.array([[float(row[name]) for name in _FILE_COLUMNS] for row in rows])
    except FileNotFoundError:
        raise UsageError(
            f"--prior must be {NATURAL}, {AS_TRAINED} or a CSV file, got {path}: file not found"
        ) from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(
            f"cannot read the prior {path}: it needs columns {', '.join(_FILE_COLUMNS)} with a "
            f"number in every row ({type(error).__name__}: {error})"
        ) from error
    if not len(found):
        raise UsageError(f"cannot read the prior {path}: it has no rows")
    low, high, count = found.T
    is_right = np.isfinite(found).all() and (low < high).all() and (low[1:] >= high[:-1]).all()
    if not is_right or (count < 0).any() or not count.any():
        raise UsageError(
            f"the bins of {path} must ascend without overlap, with counts >= 0 and one above 0"
        )
    edges, place = np.unique(np.concatenate([low, high]), return_inverse=True)
    counts = np.zeros(len(edges) - 1)
    counts[place[: len(low)]] = count
    return edges, counts


def _ratio_to_training(
    path: Path,
    ends: NDArray[np.float64],
    target: NDArray[np.float64],
    trained: TrainedPrior,
    edges: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Target over training sample in each redshift bin, both first put into the file's bins.

    So a file as coarse as its sample allows gives a factor as smooth, and the training's own
    counts give 1.
    """

    def between(new: NDArray[np.float64], old: NDArray[np.float64], values: Any) -> Any:
        return np.diff(np.interp(new, old, np.append(0, np.cumsum(values))))

    known = between(ends, edges, trained.counts.numpy())
    is_inside = (ends[1:] > edges[0]) & (ends[:-1] < edges[-1])
    without = (target > 0) & ((known == 0) | ~is_inside)
    if without.any():
        first = int(np.flatnonzero(without)[0])
        raise UsageError(
            f"{path} puts {target[without].sum() / target.sum():.2%} of its objects at redshifts "
            f"without a training sample, first in [{ends[first]:g}, {ends[first + 1]:g}]: no "
            "factor can be found for them; use wider bins, or leave those out"
        )
    wanted, had = between(edges, ends, target), between(edges, ends, known)
    # A bin within one bin of the file gets the same ratio as its neighbors there, to rounding.
    return np.asarray(np.divide(wanted, had, out=np.zeros_like(had), where=had > 0), np.float64)
