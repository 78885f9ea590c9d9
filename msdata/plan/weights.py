"""The weights of `msdata plan --weights`, with which a loader would draw its samples."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from msdata.plan.order import check_weighted_policy
from msdata.plan.weighted import check_weights, inverse_count_weights

INVERSE_COUNT = "inverse_count"
# What the recipes of mstrain have; a test compares.
DEFAULT_NUM_BINS = 50
DEFAULT_Z_MAX = 1.6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --weights and its options."""
    parser.add_argument(
        "--weights",
        metavar="FILE.npy|COLUMN|inverse_count",
        help="plan a loader that draws with replacement by these weights: a file with one number "
        "per sample of the split, a column of the index, or 1/count of the redshift as in mstrain "
        "with loss.weights_in=sampler",
    )
    parser.add_argument(
        "--weight-bins", type=int, help=f"even bins of redshift (default: {DEFAULT_NUM_BINS})"
    )
    parser.add_argument(
        "--z-max", type=float, help=f"end of the last bin (default: {DEFAULT_Z_MAX})"
    )


def plan_weights(
    args: argparse.Namespace, split: Split | None, num_samples: int
) -> NDArray[np.float64] | None:
    """Read or compute the weights that the options name.

    Args:
        args: of `add_arguments`, and `policy`.
        split: the data; None if they are assumed.
        num_samples: samples of the split.

    Returns:
        float64 (num_samples,) as the loader takes them; None without --weights.

    Raises:
        UsageError: the weights cannot be read, belong to another split, or contradict the policy.
    """
    if args.weights != INVERSE_COUNT and (args.weight_bins, args.z_max) != (None, None):
        raise UsageError(f"--weight-bins and --z-max belong to --weights {INVERSE_COUNT}")
    if args.weights is None:
        return None
    check_weighted_policy(args.policy)
    if args.weights.endswith(".npy"):
        found = _read(Path(args.weights))
    elif split is None:
        raise UsageError(
            f"--weights {args.weights}: assumed data have no columns; give a .npy file with "
            f"{num_samples:,} weights"
        )
    elif args.weights == INVERSE_COUNT:
        found = inverse_count_weights(
            split.numbers("redshift"),
            num_bins=DEFAULT_NUM_BINS if args.weight_bins is None else args.weight_bins,
            upper=DEFAULT_Z_MAX if args.z_max is None else args.z_max,
        )
    else:
        found = split.numbers(args.weights)
    try:
        return check_weights(found, num_samples)
    except UsageError as error:
        raise UsageError(f"--weights {args.weights}: {error}") from None


def describe_weights(weights: NDArray[np.float64] | None) -> dict[str, float] | None:
    """How uneven weights are.

    Args:
        weights: from `plan_weights`.

    Returns:
        `never_drawn`: samples of weight 0; `largest_over_mean`; `effective_samples`: the number of
        samples of equal weight whose mean would scatter as much. None without weights.

    Source: effective sample size, Kish 1965, "Survey Sampling", section 11.2.
    """
    if weights is None:
        return None
    # Relative to the largest: sums of huge ones would overflow.
    relative = weights / weights.max()
    total = math.fsum(relative)
    return {
        "never_drawn": int(np.count_nonzero(weights == 0)),
        "largest_over_mean": len(weights) / total,
        "effective_samples": total**2 / math.fsum(relative**2),
    }


def _read(path: Path) -> NDArray[np.float64]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"cannot read weights of {path}: {error}; write the file with numpy.save"
        ) from None
    return np.asarray(found)
