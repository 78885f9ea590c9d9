"""Flags objects that are unlike a network's training: from tables of embeddings to a table.

ood_distance     float64, distance to the k-th nearest training object
ood_log_density  float64, in its place where a flow tells the density
ood_sigma        float64, how unusual that is among validation objects, one-sided
is_flagged       bool, where a flag was put
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import msdata
from msdata.core.files import whole_file
from msdata.core.output_file import check_output, make_folder
from msdata.errors import DataError, UsageError
from mstrain.checks import check_choice, check_range
from mstrain.embedding.embeddings import LAYER_KEY, Embeddings, read_embeddings
from mstrain.embedding.flow import check_zuko, fit_flow
from mstrain.embedding.ood_fit import SIGMA, FittedOn, OodFit, check_keeping, write_fit
from mstrain.embedding.outlying import fit_space, largest_sigma
from mstrain.embedding.risk import Cut, auroc, place_flag, risk_coverage
from mstrain.evaluation.list_table import METADATA_KEY, as_floats
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.metrics.summary import check_scipy
from mstrain.evaluation.predictions import read_predictions

MARK = b'"ood_of"'
TRAIN, VALIDATION = "train", "val"
DENSITIES = NEIGHBORS, FLOW = ("neighbors", "flow")
# As mock objects without a fault are called.
NORMAL = "none"
_MIN_VALIDATION = 20
# Queries at a time, so that memory holds one distance of each object only.
_GROUP_ROWS = 32_768


@dataclass(frozen=True, kw_only=True)
class FlagConfig:
    """How objects are flagged.

    Attributes:
        density: "neighbors": distance to the training's; "flow": the training's density.
        k: number of the neighbor whose distance counts.
        num_axes: principal components of the space.
        is_white: scale the components to equal variance.
        num_references: training objects, drawn at random, to measure distances to; None for all.
        threshold: outliers are off by at least that in (z_mean - z) / (1 + z).
        kinds: text column of the objects' table that names planted or known kinds of objects.
        seed: of the draw, and of the flow.
        device: where products are computed.
    """

    density: str = NEIGHBORS
    k: int = 10
    num_axes: int = 64
    is_white: bool = True
    num_references: int | None = None
    threshold: float = 0.05
    kinds: str | None = None
    seed: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_choice("--density", self.density, DENSITIES)
        check_range("--k", self.k, 1)
        check_range("--components", self.num_axes, 1)
        check_range("--seed", self.seed, 0)
        if self.num_references is not None:
            check_range("--references", self.num_references, 2)
        if not 0 < self.threshold < np.inf:
            raise UsageError(f"--threshold must be > 0, got {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """What was found.

    Attributes:
        path: the table.
        num_samples: its rows.
        num_references: training objects that distances were measured to, or a flow was fitted to.
        num_validation: validation objects that say how unusual a distance is.
        largest_sigma: the largest sigma that so many can tell.
        variance_share: of the scaled embeddings, in the principal components.
        num_measured: objects with a known redshift of the curve; 0 without predictions.
        curve: risk and coverage, fewest flagged first.
        flag: where the flag is put; None where no cut pays, or without predictions.
        num_flagged: rows at or above it.
        auroc: of each kind against objects without one, with the number of its objects.
        kept: the file of the run that keeps the fit.
    """

    path: Path
    num_samples: int
    num_references: int
    num_validation: int
    largest_sigma: float
    variance_share: float
    num_measured: int = 0
    curve: tuple[Cut, ...] = ()
    flag: Cut | None = None
    num_flagged: int = 0
    auroc: dict[str, tuple[float, int]] = field(default_factory=dict)
    kept: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        curve = [_plain(cut) for cut in self.curve]
        placed = None if self.flag is None else _plain(self.flag)
        kept = None if self.kept is None else str(self.kept)
        own = {"path": str(self.path), "curve": curve, "flag": placed, "kept": kept}
        return {**asdict(self), **own}


def _plain(cut: Cut) -> dict[str, Any]:
    """A cut for JSON, which has no infinity: null there."""
    ratio = {n: v if np.isfinite(v) else None for n, v in vars(cut.ratio).items()}
    return {**asdict(cut), "ratio": ratio}


def flag(
    trained: Path | str,
    out: Path | str,
    *,
    of: Path | str | None = None,
    predictions: Path | str | None = None,
    keep: Path | str | None = None,
    config: FlagConfig = FlagConfig(),
) -> Flagged:
    """Measures how unlike a training's objects are, and where a flag would pay.

        found = mstrain.flag("embeddings.parquet", "ood.parquet", predictions="RUN/....parquet")

    Args:
        trained: embeddings of the splits "train" and "val".
        out: the table to write, *.parquet, for `msdata index add`; replaced if it is one of these.
        of: embeddings of other objects by the same network; None takes those of `trained`.
        predictions: of some of the objects, with redshifts, for the risk-coverage curve.
        keep: the run's folder, to keep the fit in: `predict` and `export` then take it along.
        config: how.

    Returns:
        What was found.

    Raises:
        UsageError: the tables do not go together.
        DataError: a table is damaged, or its embeddings are all the same.
        StorageError: the file system refused.
    """
    out = Path(out)
    if out.suffix != ".parquet":
        raise UsageError(f"the table's name must end in .parquet, got {out}")
    check_output(out, MARK)
    known = read_embeddings(trained)
    asked = known if of is None else read_embeddings(of)
    _check_same_network(known, asked)
    residual_N = None if predictions is None else _residuals(Path(predictions), asked)
    kind_N = None if config.kinds is None else _kinds(asked, config.kinds)
    if keep is not None:
        check_keeping(Path(keep), _fitted_on(known))
    fit, number_N = _fit(known, config)
    own_N = number_N if asked is known else np.full(len(asked), -1, np.int64)
    oddness_N = _oddness(asked, np.ones(len(asked), bool), fit, own_N, config)
    found = Flagged(
        path=out,
        num_samples=len(asked),
        num_references=int((number_N >= 0).sum()),
        num_validation=len(fit.validation),
        largest_sigma=largest_sigma(len(fit.validation)),
        variance_share=fit.space.share,
    )
    if kind_N is not None:
        found = replace(found, auroc=_aurocs(oddness_N, kind_N))
    if residual_N is not None:
        found = _with_flag(found, fit.columns(oddness_N)[SIGMA], residual_N, config)
        fit = replace(fit, flag_sigma=None if found.flag is None else found.flag.sigma)
    if keep is not None:
        found = replace(found, kept=write_fit(Path(keep), fit))
    _write(out, asked, fit.columns(oddness_N), found, known, config)
    return found


def _fitted_on(known: Embeddings) -> FittedOn:
    origin = known.origin
    return FittedOn(
        checkpoint_sha256=origin["checkpoint_sha256"],
        checkpoint=str(origin.get("checkpoint")),
        layer=origin[LAYER_KEY],
        data=str(origin.get("data")),
        fingerprint=origin["fingerprint"],
    )


def _fit(known: Embeddings, config: FlagConfig) -> tuple[OodFit, NDArray[np.int64]]:
    """The fit, and the number of each object among the references; -1 for the others."""
    if config.density == FLOW:
        check_zuko()
    reference_R, is_validation = _check_splits(known, config)
    train = _rows_in(known, known.columns["split"] == TRAIN)
    space = fit_space(train, config.num_axes, is_white=config.is_white or config.density == FLOW)
    number_N = np.full(len(known), -1, np.int64)
    number_N[reference_R] = np.arange(len(reference_R))
    reference_RC = np.concatenate([space.of(p) for p in _rows_in(known, number_N >= 0)])
    flow = None
    if config.density == FLOW:
        held_VC = np.concatenate([space.of(p) for p in _rows_in(known, is_validation)])
        flow = fit_flow(reference_RC, held_VC, seed=config.seed, device=config.device)
        reference_RC = reference_RC[:0]
    fit = OodFit(
        space=space,
        k=config.k,
        reference=reference_RC,
        flow=flow,
        validation=np.zeros(0),
        flag_sigma=None,
        fitted_on=_fitted_on(known),
    )
    return replace(fit, validation=_oddness(known, is_validation, fit, number_N, config)), number_N


def _with_flag(found: Flagged, sigma_N: Floats, residual_N: Floats, config: FlagConfig) -> Flagged:
    is_measured = np.isfinite(residual_N)
    cuts = risk_coverage(sigma_N[is_measured], residual_N[is_measured], config.threshold)
    placed = place_flag(cuts)
    return replace(
        found,
        num_measured=int(is_measured.sum()),
        curve=tuple(cuts),
        flag=placed,
        num_flagged=0 if placed is None else int((sigma_N >= placed.sigma).sum()),
    )


def _check_same_network(known: Embeddings, asked: Embeddings) -> None:
    for name in ("checkpoint_sha256", LAYER_KEY):
        if known.origin[name] != asked.origin[name]:
            raise UsageError(
                f"{asked.path} and {known.path} must be embeddings of one layer of one network, "
                f"their {name} differ: {asked.origin[name]} and {known.origin[name]}; run 'mstrain "
                "embed' with the same RUN, --checkpoint and --layer"
            )
    if known.num_values != asked.num_values:
        raise DataError(
            f"{asked.path} has {asked.num_values} values, {known.path} {known.num_values}"
        )


def _check_splits(
    known: Embeddings, config: FlagConfig
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of the training objects to measure distances to, and which are validation objects."""
    split_N = known.columns["split"]
    train, is_validation = np.flatnonzero(split_N == TRAIN), split_N == VALIDATION
    if len(train) < 2 or is_validation.sum() < _MIN_VALIDATION:
        raise UsageError(
            f"{known.path} must have rows of split {TRAIN!r}, and {_MIN_VALIDATION} or more of "
            f"{VALIDATION!r}, got {len(train):,} and {is_validation.sum():,}; run 'mstrain embed' "
            "on the training's data without --split"
        )
    if config.num_references is not None and config.num_references < len(train):
        random = np.random.default_rng(config.seed)
        train = np.sort(random.choice(train, config.num_references, replace=False))
    if config.density == NEIGHBORS and config.k >= len(train):
        raise UsageError(f"--k must be below the {len(train):,} training objects, got {config.k}")
    return train, is_validation


def _residuals(path: Path, asked: Embeddings) -> Floats:
    """(z_mean - z) / (1 + z) of each object, NaN where unknown; training objects do not count."""
    check_scipy()
    table = read_predictions(path)
    lacking = [name for name in ("redshift", "z_mean") if name not in table.columns]
    if lacking:
        raise UsageError(
            f"--predictions must be a table of redshifts with their truth, got {path}, which has "
            f"no column {lacking[0]}; give the table that 'mstrain evaluate' wrote"
        )
    for name in ("fingerprint", "step"):
        ours, theirs = asked.origin.get(name), table.origin.get(name)
        if theirs != ours:
            raise UsageError(
                f"{path} and {asked.path} must be of the same data and network, their {name} "
                f"differ: {theirs} and {ours}"
            )
    mean, truth = (as_floats(table.columns[name]) for name in ("z_mean", "redshift"))
    residual = scaled_residual(mean, truth)
    by_id = dict(zip(table.columns["sample_id"].tolist(), residual.tolist(), strict=True))
    ids, splits = asked.columns["sample_id"].tolist(), asked.columns["split"].tolist()
    found = np.array(
        [np.nan if s == TRAIN else by_id.get(i, np.nan) for i, s in zip(ids, splits, strict=True)]
    )
    if not np.isfinite(found).any():
        raise UsageError(
            f"{path} must have redshifts of objects of {asked.path} outside of split {TRAIN!r}, "
            "got none; evaluate split val or test"
        )
    return found


def _kinds(asked: Embeddings, name: str) -> NDArray[Any]:
    """The kind of each object; empty for normal ones, which may also be called none."""
    if name not in asked.columns or asked.columns[name].dtype != object:
        raise UsageError(
            f"--kinds must name a column of text of {asked.path}, got {name!r}; copy it with "
            f"'mstrain embed ... --columns {name}'"
        )
    values = asked.columns[name]
    kind_N = np.array(["" if v is None or v == NORMAL else v for v in values], object)
    if len(set(kind_N)) < 2 or not (kind_N == "").any():
        raise UsageError(
            "--kinds must name a column with kinds, and empty or none for normal objects, got "
            f"{name!r} of {asked.path} with {len(set(kind_N))} different values"
        )
    return kind_N


def _aurocs(oddness_N: Floats, kind_N: NDArray[Any]) -> dict[str, tuple[float, int]]:
    none = oddness_N[kind_N == ""]
    parts = {kind: oddness_N[kind_N == kind] for kind in sorted(set(kind_N)) if kind}
    return {kind: (auroc(part, none), len(part)) for kind, part in parts.items()}


def _rows_in(table: Embeddings, is_in: NDArray[np.bool_]) -> Iterator[NDArray[np.float16]]:
    start = 0
    for part in table.parts():
        yield part[is_in[start : start + len(part)]]
        start += len(part)


def _oddness(
    table: Embeddings,
    is_in: NDArray[np.bool_],
    fit: OodFit,
    own_N: NDArray[np.int64],
    config: FlagConfig,
) -> Floats:
    """Oddness of some rows of a table, in their order."""
    own, found, start = own_N[is_in], [np.zeros(0)], 0
    for part in _rows_in(table, is_in):
        for first in range(0, len(part), _GROUP_ROWS):
            piece = part[first : first + _GROUP_ROWS]
            here = own[start : start + len(piece)]
            found.append(fit.oddness(piece, here, config.device))
            start += len(piece)
    return np.concatenate(found)


def _write(
    path: Path,
    asked: Embeddings,
    measured: dict[str, NDArray[Any]],
    found: Flagged,
    known: Embeddings,
    config: FlagConfig,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.array(asked.columns["sample_id"], pa.string())
    metadata = {
        "format_version": 1,
        **asked.origin,
        "ood_of": str(known.origin.get("data")),
        "density": config.density,
        "k": config.k,
        "components": config.num_axes,
        "is_white": config.is_white,
        "found": found.as_dict(),
        "version": msdata.__version__,
    }
    table = pa.table({"sample_id": ids, **measured})
    make_folder(path.absolute().parent)
    with whole_file(path) as file:
        pq.write_table(
            table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()}),
            file,
            compression="zstd",
        )
