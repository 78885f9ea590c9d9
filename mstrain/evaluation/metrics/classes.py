"""Metrics of class probabilities: accuracy, confusion, and whether a probability is what it says.

Scores of a sample: log_loss is -ln of the probability of its class, brier the sum over classes of
(probability - truth)^2. Axes: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import DataError
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig, bootstrap
from mstrain.evaluation.metrics.densities import LIKELIHOOD_FLOOR, Floats
from mstrain.evaluation.metrics.estimates import (
    Columns,
    Estimate,
    estimate_of,
    share_estimate,
)
from mstrain.evaluation.metrics.uncertainty import Grouping

# Columns of a table of classes beside the truth, after "NAME_" where they are its own.
PREDICTED, PROBABILITY = "predicted", "probability"
CLASS_SCORES = ("log_loss", "brier")
NUM_RELIABILITY_BINS = 10
_MEANS = ("log_loss", PROBABILITY)


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """One class.

    Attributes:
        name: its name.
        num_samples: samples of it.
        num_predicted: samples that are taken for it.
        recall: share of its samples that are taken for it; None without any.
        precision: share of those taken for it that are of it; None without any.
        f1: harmonic mean of both; None where one is.
    """

    name: str
    num_samples: int
    num_predicted: int
    recall: Estimate | None
    precision: Estimate | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Samples whose largest probability lies in a range.

    Attributes:
        low: lower end.
        high: upper end.
        num_samples: samples in it.
        confidence: mean of their largest probability.
        accuracy: share of them that are right.
    """

    low: float
    high: float
    num_samples: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class ClassBin:
    """Samples of a bin or value of a quantity.

    Attributes:
        label: the bin or the value.
        num_samples: samples in it.
        accuracy: share of them that are right; None without any.
        log_loss: mean of their log-loss; None likewise.
        confidence: mean of their largest probability; None likewise.
    """

    label: str
    num_samples: int
    accuracy: Estimate | None
    log_loss: float | None
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class ClassesBy:
    """Accuracy by one quantity.

    Attributes:
        name: what was asked for, such as "magnitude".
        column: the column that holds it.
        num_without: samples in no bin.
        bins: in the order of the bins.
    """

    name: str
    column: str
    num_without: int
    bins: tuple[ClassBin, ...]


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """Everything that is said of many samples.

    Attributes:
        num_samples: samples of a class that the network knows.
        num_unlabelled: samples without, which count for nothing.
        num_floored: samples whose class got a probability below 1e-10, which is taken instead.
        overall: accuracy, balanced_accuracy (mean recall), log_loss, brier, ece.
        majority: share of the most frequent class: the accuracy of always naming it.
        classes: metrics of each class.
        confusion: samples by class (rows) and by the class they are taken for (columns).
        reliability: bins of the largest probability that hold a sample.
        binned: accuracy by quantities that were asked for.
        bootstrap: how the intervals were made.
    """

    num_samples: int
    num_unlabelled: int
    num_floored: int
    overall: Mapping[str, Estimate]
    majority: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]
    binned: tuple[ClassesBy, ...] = ()
    bootstrap: BootstrapConfig

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def class_estimates(probability_NK: NDArray[Any]) -> dict[str, Floats]:
    """The class of largest probability, the first of equals, and that probability; (N,) each."""
    best_N = probability_NK.argmax(axis=1)
    rows = np.arange(len(best_N))
    return {
        PREDICTED: best_N.astype(np.float64),
        PROBABILITY: np.asarray(probability_NK[rows, best_N], np.float64),
    }


def class_scores(probability_NK: NDArray[Any], truth_N: Floats) -> dict[str, Floats]:
    """Scores against the truth, float64 (N,) for each of `CLASS_SCORES`.

    Args:
        probability_NK: (N, K), rows of sum 1.
        truth_N: float64 (N,), number of the class; NaN where it is not known, as are the scores.
    """
    is_known_N = np.isfinite(truth_N)
    probability_NK = np.asarray(probability_NK, np.float64)
    rows, class_N = np.arange(len(truth_N)), np.where(is_known_N, truth_N, 0).astype(np.int64)
    own_N = probability_NK[rows, class_N]
    found = {
        "log_loss": -np.log(np.maximum(own_N, LIKELIHOOD_FLOOR)),
        "brier": (probability_NK**2).sum(axis=1) - 2 * own_N + 1,
    }
    return {name: np.where(is_known_N, values, np.nan) for name, values in found.items()}


def summarize_classes(
    columns: Columns,
    names: Sequence[str],
    config: BootstrapConfig,
    groupings: Sequence[Grouping] = (),
) -> ClassSummary:
    """Metrics of a table of class probabilities.

    Args:
        columns: (N,) each: "truth" and "predicted" (numbers of classes; NaN where unknown),
            "probability", and the scores.
        names: names of the classes.
        config: how intervals are made.
        groupings: groups of the N samples by quantities.

    Raises:
        DataError: no sample has a class that the network knows.
    """
    is_known_N = np.isfinite(columns["truth"])
    num_known, num_classes = int(is_known_N.sum()), len(names)
    if not num_known:
        raise DataError(
            f"none of the {len(is_known_N)} samples has a class that the network knows, so there "
            "is nothing to compare with; 'mstrain predict' needs none"
        )
    known = {name: np.asarray(columns[name], np.float64)[is_known_N] for name in columns}
    truth_N, predicted_N = known["truth"].astype(np.int64), known["predicted"].astype(np.int64)
    confusion_KK = np.bincount(truth_N * num_classes + predicted_N, minlength=num_classes**2)
    confusion_KK = confusion_KK.reshape(num_classes, num_classes)
    is_right_N = (truth_N == predicted_N).astype(np.float64)
    classes = tuple(_class(confusion_KK, k, name, config) for k, name in enumerate(names))
    bins, ece = _reliability(known[PROBABILITY], is_right_N, config)
    return ClassSummary(
        num_samples=num_known,
        num_unlabelled=len(is_known_N) - num_known,
        num_floored=int((known["log_loss"] >= -np.log(LIKELIHOOD_FLOOR)).sum()),
        overall={**_overall(known, truth_N, is_right_N, config), "ece": ece},
        majority=float(confusion_KK.sum(axis=1).max() / num_known),
        classes=classes,
        confusion=tuple(map(tuple, confusion_KK.tolist())),
        reliability=bins,
        binned=tuple(_by_group(g, is_known_N, known, is_right_N, config) for g in groupings),
        bootstrap=config,
    )


def _by_group(
    grouping: Grouping,
    is_known_N: NDArray[np.bool_],
    known: Columns,
    is_right_N: Floats,
    config: BootstrapConfig,
) -> ClassesBy:
    """Accuracy of the known samples by one quantity."""
    group_N = grouping.group[is_known_N]
    bins = []
    for number, label in enumerate(grouping.labels):
        is_in_N = group_N == number
        count = int(is_in_N.sum())
        means = {name: float(np.mean(known[name][is_in_N])) for name in _MEANS} if count else {}
        bins.append(
            ClassBin(
                label=label,
                num_samples=count,
                accuracy=_share(is_right_N[is_in_N], config) if count else None,
                log_loss=means.get("log_loss"),
                confidence=means.get(PROBABILITY),
            )
        )
    return ClassesBy(
        name=grouping.name,
        column=grouping.column,
        num_without=int((group_N < 0).sum()),
        bins=tuple(bins),
    )


def _overall(
    known: Columns, truth_N: NDArray[np.int64], is_right_N: Floats, config: BootstrapConfig
) -> dict[str, Estimate]:
    """Accuracy, mean recall, log-loss and Brier score."""
    count_K = np.bincount(truth_N)
    # Each class that is there weighs alike.
    weight_N = len(truth_N) / (np.count_nonzero(count_K) * count_K[truth_N])
    averaged = {
        "accuracy": is_right_N,
        "balanced_accuracy": weight_N * is_right_N,
        **{name: np.asarray(known[name]) for name in CLASS_SCORES},
    }
    replicates = bootstrap(averaged, averaged["log_loss"], config)
    found = {
        name: estimate_of(float(values_N.mean()), means_R, config)
        for (name, values_N), means_R in zip(averaged.items(), replicates.means.T, strict=True)
    }
    return found | {"accuracy": _share(is_right_N, config)}


def _share(is_right_N: Floats, config: BootstrapConfig) -> Estimate:
    return share_estimate(float(is_right_N.sum()), len(is_right_N), config.level)


def _class(
    confusion_KK: NDArray[np.int64], number: int, name: str, config: BootstrapConfig
) -> ClassMetrics:
    right = int(confusion_KK[number, number])
    num_samples, num_predicted = (int(confusion_KK.sum(axis=a)[number]) for a in (1, 0))
    both = num_samples + num_predicted
    return ClassMetrics(
        name=name,
        num_samples=num_samples,
        num_predicted=num_predicted,
        recall=share_estimate(right, num_samples, config.level) if num_samples else None,
        precision=share_estimate(right, num_predicted, config.level) if num_predicted else None,
        f1=2 * right / both if num_samples and num_predicted else None,
    )


def _reliability(
    probability_N: Floats, is_right_N: Floats, config: BootstrapConfig
) -> tuple[tuple[ReliabilityBin, ...], Estimate]:
    """Bins of the largest probability, and the expected calibration error.

    The error is the mean over samples of |accuracy - confidence| of their bin. It cannot be below
    0, so percentiles of replicates would lie above it; its interval is the value and the distance
    between sums of the bins and those of resampled samples (normal, as sums of many are).

    Source: Guo, Pleiss, Sun and Weinberger 2017 (arXiv:1706.04599), equation 3.
    """
    bin_N = np.minimum(probability_N * NUM_RELIABILITY_BINS, NUM_RELIABILITY_BINS - 1).astype(int)
    excess_N, bins = is_right_N - probability_N, []
    for number in np.unique(bin_N).tolist():
        is_in_N = bin_N == number
        bins.append(
            ReliabilityBin(
                low=number / NUM_RELIABILITY_BINS,
                high=(number + 1) / NUM_RELIABILITY_BINS,
                num_samples=int(is_in_N.sum()),
                confidence=float(probability_N[is_in_N].mean()),
                accuracy=_share(is_right_N[is_in_N], config),
            )
        )
    sum_B = np.bincount(bin_N, excess_N, NUM_RELIABILITY_BINS)
    spread_B = np.sqrt(np.bincount(bin_N, excess_N**2, NUM_RELIABILITY_BINS))
    random = np.random.default_rng(config.seed)
    moved_RB = random.normal(size=(config.num_replicates, NUM_RELIABILITY_BINS)) * spread_B
    half = float(np.quantile(np.abs(moved_RB).sum(axis=1), config.level)) / len(bin_N)
    value = float(np.abs(sum_B).sum()) / len(bin_N)
    return tuple(bins), Estimate(value=value, low=max(value - half, 0.0), high=min(value + half, 1))
