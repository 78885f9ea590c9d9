"""Everything that is said of the predictions for a split, as one value that goes into JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from msdata.errors import DataError, needing
from mstrain.evaluation.metrics.binning import Binning, metrics_in_bins
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import LIKELIHOOD_FLOOR, Floats
from mstrain.evaluation.metrics.estimates import Columns, Estimate, metrics_of, point_metrics
from mstrain.evaluation.metrics.scores import POINT_ESTIMATES
from mstrain.models.target import REDSHIFT_TARGET, Target


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that is said of many objects.

    Attributes:
        num_samples: objects with a known label.
        num_unlabelled: objects without, which count for nothing.
        num_floored: objects whose truth got a density below 1e-10, which is taken instead.
        points: bias, nmad, eta_0.05, eta_0.15 for each point estimate; rmse in place of eta for
            other numbers than redshifts.
        density: crps, cde_loss, log_likelihood, coverage_0.68, coverage_0.9, coverage_0.95.
        pit_ks: Kolmogorov-Smirnov statistic of the PITs against uniform.
        pit_ks_p: its probability if the densities were right.
        binnings: metrics in bins, for the mean of the density.
        bootstrap: how the intervals were made.
    """

    num_samples: int
    num_unlabelled: int
    num_floored: int
    points: Mapping[str, Mapping[str, Estimate]]
    density: Mapping[str, Estimate]
    pit_ks: float
    pit_ks_p: float
    binnings: tuple[Binning, ...]
    bootstrap: BootstrapConfig

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def summarize(
    columns: Columns,
    config: BootstrapConfig,
    *,
    binned_by: Mapping[str, tuple[str, Floats]],
    skipped: Mapping[str, str] | None = None,
    target: Target = REDSHIFT_TARGET,
) -> Summary:
    """Metrics of a table of predictions.

    Args:
        columns: (N,) each: "redshift" (NaN where unknown), the point estimates and the scores.
        config: how intervals are made.
        binned_by: for each quantity to bin by, the name of its column and the bins' edges.
        skipped: quantities that cannot be binned by, and why.
        target: what the network tells.

    Raises:
        DataError: no object has a known label.
    """
    truth_N = np.asarray(columns["redshift"], np.float64)
    is_known_N = np.isfinite(truth_N)
    num_known = int(is_known_N.sum())
    if not num_known:
        raise DataError(
            f"none of the {len(truth_N)} samples has a known {target.noun}, so there is nothing to "
            "compare with; 'mstrain predict' needs none"
        )
    known = {name: np.asarray(values)[is_known_N] for name, values in columns.items()}
    first = POINT_ESTIMATES[0]
    metrics = {
        name: metrics_of(known, config, estimate=name, has_densities=name == first, target=target)
        for name in POINT_ESTIMATES
    }
    names = point_metrics(target)
    pit_ks, pit_ks_p = uniformity(known["pit"])
    floor = np.log(LIKELIHOOD_FLOOR)
    return Summary(
        num_samples=num_known,
        num_unlabelled=len(truth_N) - num_known,
        num_floored=int((known["log_likelihood"] <= floor).sum()),
        points={target.public(name): {n: m[n] for n in names} for name, m in metrics.items()},
        density={n: e for n, e in metrics[first].items() if n not in names},
        pit_ks=pit_ks,
        pit_ks_p=pit_ks_p,
        binnings=(
            *(metrics_in_bins(known, n, *how, config, target) for n, how in binned_by.items()),
            *(Binning(name=n, column=None, skipped=why) for n, why in (skipped or {}).items()),
        ),
        bootstrap=config,
    )


def uniformity(pit_N: Floats) -> tuple[float, float]:
    """Kolmogorov-Smirnov statistic of PITs, float64 (N,), against uniform; its probability."""
    found = import_stats().kstest(pit_N, "uniform")
    return float(found.statistic), float(found.pvalue)


def check_scipy() -> None:
    """Raises MissingPackageError unless SciPy is installed."""
    import_stats()


def import_stats() -> Any:
    """SciPy's statistics.

    Raises:
        MissingPackageError: SciPy is not installed.
    """
    with needing("tests and exact intervals need SciPy", "train"):
        from scipy import stats
    return stats


def import_special() -> Any:
    """SciPy's special functions.

    Raises:
        MissingPackageError: SciPy is not installed.
    """
    with needing("the normal distribution needs SciPy", "train"):
        from scipy import special
    return special
