"""Fits the maps of `mstrain.evaluation.calibration`; the only file with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import DataError, needing
from mstrain.evaluation.calibration import GlobalMap, LocalMap, Tree
from mstrain.evaluation.metrics.densities import Floats

# Objects between two corners of G, so that its slope, which multiplies densities, is smooth.
_OBJECTS_PER_CORNER = 50
_MAX_CORNERS = 200
MIN_SAMPLES = 20
# Levels that each object is asked for, closer to each other in the tails. Few, and the same in fit
# and use: trees are steps, and between 41 levels of their own choice the slopes of the map, which
# multiply densities, cost a calibrated toy a fifth of its CDE loss.
_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
# Part of the identity in the local map: bins keep at least this share of their density.
_IDENTITY = 0.02
_MAX_TREES = 200
_LEAVES = 8
_ROWS_FOR_THREADS = 1_000_000
# Of all objects, those that say when to stop.
_HELD_OUT = 0.2


def fit_global(pit_N: Floats) -> GlobalMap:
    """The distribution function of PITs, by corners of equally many objects.

    Args:
        pit_N: float64 (N,), from 0 to 1.

    Raises:
        DataError: there are too few to say anything.
    """
    count = len(pit_N)
    if count < MIN_SAMPLES:
        raise DataError(
            f"a calibration needs at least {MIN_SAMPLES} objects with a known label, got {count}"
        )
    ordered = np.sort(np.clip(pit_N, 0.0, 1.0))
    num_corners = int(np.clip(count // _OBJECTS_PER_CORNER, 4, _MAX_CORNERS))
    rank = np.linspace(0, 1, num_corners + 1)[1:-1]
    pit = np.quantile(ordered, rank)
    # Of equal PITs, such as those of truths below the first bin, the corner is their mean rank.
    pit, place = np.unique(pit, return_inverse=True)
    share = np.bincount(place, rank) / np.bincount(place)
    is_inside = (pit > 0) & (pit < 1)
    return GlobalMap(
        pit=(0.0, *pit[is_inside].tolist(), 1.0), share=(0.0, *share[is_inside].tolist(), 1.0)
    )


def fit_local(
    pit_N: Floats,
    feature_NV: Floats,
    names: Sequence[str],
    first: GlobalMap,
    seed: int = 0,
) -> LocalMap:
    """The probability that G(PIT) <= a, given the features, by boosted trees that rise in a.

    Args:
        pit_N: float64 (N,), from 0 to 1.
        feature_NV: float64 (N, V), NaN where unknown.
        names: the V features.
        first: G, from `fit_global`.
        seed: of the objects that are held out.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    random = np.random.default_rng(seed)
    count, num_features = feature_NV.shape
    level_N = first.levels(np.clip(pit_N, 0, 1), feature_NV)
    asked_NL = np.tile(_LEVELS, (count, 1))
    is_below_NL = level_N[:, None] <= asked_NL
    is_held_out = np.zeros(count, bool)
    is_held_out[random.permutation(count)[: int(_HELD_OUT * count)]] = True
    input_NLF = np.concatenate(
        [np.repeat(feature_NV[:, None, :], len(_LEVELS), axis=1), asked_NL[:, :, None]], axis=2
    )

    def rows(chosen: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
        return input_NLF[chosen].reshape(-1, num_features + 1), is_below_NL[chosen].ravel()

    model = _classifier(num_features, count, seed)
    held_out = rows(is_held_out)
    with _few_threads(count * len(_LEVELS)):
        model.fit(*rows(~is_held_out), X_val=held_out[0], y_val=held_out[1])
    return LocalMap(
        first=first,
        feature_names=tuple(names),
        asked=_LEVELS,
        identity=_IDENTITY,
        baseline=float(np.ravel(model._baseline_prediction)[0]),
        trees=tuple(_tree(predictor.nodes) for (predictor,) in model._predictors),
    )


def check_installed() -> None:
    """Raises MissingPackageError unless scikit-learn is installed."""
    _import_classifier()


def _import_classifier() -> Any:
    with needing("a local calibration needs scikit-learn", "calibrate", ", or give --only-global"):
        from sklearn.ensemble import HistGradientBoostingClassifier
    return HistGradientBoostingClassifier


def _classifier(num_features: int, count: int, seed: int) -> Any:
    return _import_classifier()(
        learning_rate=0.1,
        max_iter=_MAX_TREES,
        max_leaf_nodes=_LEAVES,
        # A leaf holds the levels of 50 objects, of few less: but 10, not to learn them by heart.
        min_samples_leaf=int(np.clip(count // 20, 10, 50)) * len(_LEVELS),
        monotonic_cst=[0] * num_features + [1],
        early_stopping=True,
        n_iter_no_change=10,
        random_state=seed,
    )


def _few_threads(num_rows: int) -> AbstractContextManager[Any]:
    """One thread where there is little to do: more wait for each other longer than they work."""
    from threadpoolctl import threadpool_limits

    limit = 1 if num_rows < _ROWS_FOR_THREADS else None
    limits: AbstractContextManager[Any] = threadpool_limits(limit, user_api="openmp")
    return limits


def _tree(nodes: Any) -> Tree:
    """A tree of scikit-learn's as plain numbers; thresholds of infinity are the largest double."""
    is_leaf = nodes["is_leaf"].astype(bool)
    largest = np.finfo(np.float64).max
    threshold = np.where(is_leaf, 0.0, np.clip(nodes["num_threshold"], -largest, largest))
    return Tree(
        feature=tuple(np.where(is_leaf, -1, nodes["feature_idx"].astype(np.int64)).tolist()),
        threshold=tuple(threshold.tolist()),
        left=tuple(np.where(is_leaf, 0, nodes["left"].astype(np.int64)).tolist()),
        right=tuple(np.where(is_leaf, 0, nodes["right"].astype(np.int64)).tolist()),
        missing_left=tuple(nodes["missing_go_to_left"].astype(bool).tolist()),
        value=tuple(nodes["value"].astype(np.float64).tolist()),
    )
