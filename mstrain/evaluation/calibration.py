"""Maps that recalibrate densities, and the files of a run that hold them.

The global map is G, the distribution function of the PITs of a validation split: F' = G(F). The
local map starts from it: F' = r(G(F) | v), with r(a | v) the probability that an object with
the features v has G(PIT) <= a, from boosted trees that rise in a. Both are monotone, keep 0 and 1,
and are evaluated at the bins' edges. A run holds them as JSON: numbers alone, read without pickles.

Source: Bordoloi, Lilly and Amara 2010, MNRAS 406, 881 (global); Dey et al. 2022, arXiv:2205.14568
(local).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.core.checked_json import Count
from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.errors import DataError, UsageError
from mstrain.evaluation.metrics.densities import Densities, Floats
from mstrain.models.model_file import ModelFile, companion

NONE, GLOBAL, LOCAL = "none", "global", "local"
CALIBRATIONS = (NONE, GLOBAL, LOCAL)
FORMAT = "mstrain calibration"
MARK = b'"format": "mstrain calibration"'
_CURE = "run 'mstrain calibrate' again"
# Rows of objects times levels that trees see at a time.
_CHUNK_ROWS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class FittedOn:
    """What a calibration was fitted on; densities of anything else are not what it corrects.

    Attributes:
        checkpoint_sha256: SHA-256 of the checkpoint's file.
        checkpoint: "best" or "last".
        step: optimizer steps before it.
        prior: name of the prior.
        prior_digest: of the factors that the prior puts on the bins.
        data: the data set.
        fingerprint: its fingerprint.
        split: the split.
        num_samples: objects with a known redshift.
    """

    checkpoint_sha256: str
    checkpoint: str
    step: Count
    prior: str
    prior_digest: str
    data: str
    fingerprint: str
    split: str
    num_samples: Count


class Calibration(Protocol):
    """A map of distribution functions."""

    @property
    def name(self) -> str:
        """Which one it is: "global" or "local"."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it needs of each object."""

    def levels(self, cdf_NE: Floats, feature_NV: Floats) -> Floats:
        """The new probabilities below each edge.

        Args:
            cdf_NE: float64 (N, E), probabilities, ascending in each row.
            feature_NV: float64 (N, V), NaN where unknown.
        """


@dataclass(frozen=True, kw_only=True)
class GlobalMap:
    """G by its corners, linear between them.

    Attributes:
        pit: PITs, from 0 to 1, ascending.
        share: share of validation objects with a smaller one, from 0 to 1, ascending.
    """

    pit: tuple[float, ...]
    share: tuple[float, ...]

    name = GLOBAL

    @property
    def features(self) -> tuple[str, ...]:
        """See `Calibration`."""
        return ()

    def levels(self, cdf_NE: Floats, feature_NV: Floats) -> Floats:
        """See `Calibration`; the features count for nothing."""
        return np.interp(cdf_NE, self.pit, self.share)

    def check(self) -> str:
        """What is wrong with it; empty for nothing."""
        pit, share = np.array(self.pit), np.array(self.share)
        is_right = len(pit) == len(share) >= 2 and all(
            bool(np.isfinite(v).all() and (np.diff(v) > 0).all() and v[0] == 0 and v[-1] == 1)
            for v in (pit, share)
        )
        return "" if is_right else "pit and share must ascend from 0 to 1 together"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A decision tree over features and, last, the level a.

    Attributes:
        feature: number of the feature that each node asks for; -1 in a leaf.
        threshold: values up to it go left.
        left: node to go to.
        right: node to go to.
        missing_left: whether unknown values go left.
        value: a leaf's term of the logit.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    missing_left: tuple[bool, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LocalMap:
    """r(a | v) after G.

    Attributes:
        first: G.
        feature_names: names of the features.
        asked: levels of a at which the trees are asked, ascending; r is linear between.
        identity: share of the identity that is mixed in, so that r rises everywhere.
        baseline: constant term of the logit.
        trees: the other terms.
    """

    first: GlobalMap
    feature_names: tuple[str, ...]
    asked: tuple[float, ...]
    identity: float
    baseline: float
    trees: tuple[Tree, ...]

    name = LOCAL

    @property
    def features(self) -> tuple[str, ...]:
        """See `Calibration`."""
        return self.feature_names

    def levels(self, cdf_NE: Floats, feature_NV: Floats) -> Floats:
        """See `Calibration`."""
        level_NE = self.first.levels(cdf_NE, feature_NV)
        corner_A, table_NA = np.array([0.0, *self.asked, 1.0]), self.at_corners(feature_NV)
        place_NE = np.searchsorted(corner_A[1:-1], level_NE, side="right")
        share_NE = (level_NE - corner_A[place_NE]) / np.diff(corner_A)[place_NE]
        low_NE = np.take_along_axis(table_NA, place_NE, axis=1)
        high_NE = np.take_along_axis(table_NA, place_NE + 1, axis=1)
        return np.asarray(low_NE + share_NE * (high_NE - low_NE), np.float64)

    def at_corners(self, feature_NV: Floats) -> Floats:
        """The map at 0, the levels that trees are asked for, and 1; float64 (N, levels + 2)."""
        rows = max(1, _CHUNK_ROWS // len(self.asked))
        found_NA = np.zeros((len(feature_NV), len(self.asked) + 2))
        found_NA[:, -1] = 1.0
        for start in range(0, len(feature_NV), rows):
            chosen = slice(start, start + rows)
            found_NA[chosen, 1:-1] = self._probability(feature_NV[chosen])
        corner_A = np.array([0.0, *self.asked, 1.0])
        return (1 - self.identity) * found_NA + self.identity * corner_A

    def _probability(self, feature_NV: Floats) -> Floats:
        num, count = len(feature_NV), len(self.asked)
        row_M = np.repeat(np.arange(num), count)
        input_MF = np.concatenate(
            [feature_NV[row_M], np.tile(self.asked, num)[:, None]], axis=1, dtype=np.float64
        )
        logit_M = np.full(num * count, self.baseline)
        for tree in self.trees:
            logit_M += leaf_values(tree, input_MF)
        return np.asarray(1 / (1 + np.exp(-logit_M)), np.float64).reshape(num, count)

    def check(self) -> str:
        """What is wrong with it; empty for nothing."""
        if found := self.first.check():
            return found
        corner = np.array([0.0, *self.asked, 1.0])
        if not (np.diff(corner) > 0).all() or not 0 < self.identity <= 1 or not self.asked:
            return "asked must ascend between 0 and 1, identity be above 0 and at most 1"
        if len({*self.feature_names}) != len(self.feature_names):
            return "features must be distinct"
        for tree in self.trees:
            size, number = len(tree.feature), np.arange(len(tree.feature))
            if any(len(v) != size for v in asdict(tree).values()) or not size:
                return "the lists of a tree must be as long as each other"
            feature, left, right = (np.array(v) for v in (tree.feature, tree.left, tree.right))
            inner = feature >= 0
            is_right = (
                (feature <= len(self.feature_names)).all()
                # Children come after their parent, so that no way leads in a circle.
                and (left[inner] > number[inner]).all()
                and (right[inner] > number[inner]).all()
                and max(left.max(), right.max()) < size
            )
            if not is_right:
                return "a tree must lead from its root to leaves"
        return ""


def leaf_values(tree: Tree, input_MF: Floats) -> Floats:
    """The leaf's value of each row, float64 (M,)."""
    feature, threshold = np.array(tree.feature), np.array(tree.threshold)
    left, right, value = np.array(tree.left), np.array(tree.right), np.array(tree.value)
    missing_left = np.array(tree.missing_left)
    node_M = np.zeros(len(input_MF), np.int64)
    open_M = np.flatnonzero(np.full(len(input_MF), feature[0] >= 0))
    while len(open_M):
        node = node_M[open_M]
        asked = input_MF[open_M, feature[node]]
        goes_left = (asked <= threshold[node]) | (np.isnan(asked) & missing_left[node])
        node_M[open_M] = np.where(goes_left, left[node], right[node])
        open_M = open_M[feature[node_M[open_M]] >= 0]
    return np.asarray(value[node_M], np.float64)


def calibrated(
    densities: Densities, calibration: Calibration, feature_NV: Floats
) -> NDArray[np.float32]:
    """Recalibrated densities on the same bins.

    Args:
        densities: of N objects.
        calibration: the map.
        feature_NV: float64 (N, V), its features of each object.

    Returns:
        float32 (N, K), per unit redshift; a bin without probability stays without.
    """
    level_NE = calibration.levels(densities.cdf, feature_NV)
    mass_NK = np.maximum(np.diff(level_NE, axis=1), 0.0)
    mass_NK /= mass_NK.sum(axis=1, keepdims=True)
    return (mass_NK / densities.widths).astype(np.float32)


def calibration_path(run: Path, name: str) -> Path:
    """The file of a run's calibration."""
    return run / f"calibration-{name}.json"


def write_calibration(run: Path, calibration: GlobalMap | LocalMap, origin: FittedOn) -> Path:
    """Writes a calibration into a run, whole or not at all.

    Raises:
        UsageError: a file of that name is there which no calibration made.
        StorageError: the file system refused.
    """
    path = calibration_path(run, calibration.name)
    check_output(path, MARK)
    content = {"format": FORMAT, "fitted_on": asdict(origin), "map": asdict(calibration)}
    write_whole(path, json.dumps(content, allow_nan=False).encode() + b"\n")
    return path


def find_calibration(
    run: Path, name: str, opened: Path | ModelFile
) -> tuple[GlobalMap | LocalMap, FittedOn] | None:
    """Reads a calibration of a run; None where it has none of that name.

    Args:
        run: the run's folder, or a model file.
        name: "global" or "local".
        opened: the run, from `opened_run`.

    Raises:
        DataError: its file is damaged.
        StorageError: the file system refused.
    """
    path = calibration_path(run, name)
    content = companion(opened, path.name)
    if content is None:
        return None
    fields: Any = content.read_as(_GlobalFile if name == GLOBAL else _LocalFile)
    if wrong := fields.map.check():
        raise DataError(f"{path} is damaged: {wrong}; {_CURE}")
    return fields.map, fields.fitted_on


def read_calibration(
    run: Path, name: str, opened: Path | ModelFile | None = None
) -> tuple[GlobalMap | LocalMap, FittedOn]:
    """The same for a calibration that the run must have.

    Raises:
        UsageError: the run has none.
        DataError: its file is damaged.
        StorageError: the file system refused.
    """
    found = find_calibration(run, name, run if opened is None else opened)
    if found is None:
        raise UsageError(
            f"{run} has no {name} calibration; fit one with 'mstrain calibrate RUN DATA', or give "
            "--calibration none"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _GlobalFile:
    format: Literal["mstrain calibration"]
    fitted_on: FittedOn
    map: GlobalMap


@dataclass(frozen=True, kw_only=True)
class _LocalFile:
    format: Literal["mstrain calibration"]
    fitted_on: FittedOn
    map: LocalMap


def check_fitted_on(path: Path, fitted: FittedOn, now: FittedOn) -> None:
    """Refuses a calibration of another checkpoint or prior.

    Args:
        path: its file, for the message.
        fitted: what it was fitted on.
        now: what is asked for; its data count for nothing.

    Raises:
        UsageError: they differ.
    """
    names = ("checkpoint_sha256", "prior_digest")
    if any(getattr(fitted, name) != getattr(now, name) for name in names):
        raise UsageError(
            f"{path} was fitted on the {fitted.checkpoint} checkpoint of step {fitted.step:,} "
            f"under prior {fitted.prior}, these are densities of the {now.checkpoint} checkpoint "
            f"of step {now.step:,} under prior {now.prior}; run 'mstrain calibrate' with the same "
            "options, or give --calibration none"
        )
