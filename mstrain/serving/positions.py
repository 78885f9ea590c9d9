"""Positions in, densities out: cutouts are fetched, packed and predicted in a scratch folder.

The three steps are those of `msdata fetch`, `msdata pack` and `mstrain predict`, with their rates,
checks and bytes, so the densities are the same bit for bit. The folder goes with the call.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.catalog.positions import Positions
from msdata.errors import UsageError
from msdata.fetch.journal import Entry
from msdata.fetch.service import SERVICES, Service
from msdata.schema import Schema
from mstrain.distributed import Ranks
from mstrain.embedding.ood_fit import COLUMNS, flags_of
from mstrain.evaluation.inference import check_columns
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.scores import POINT_ESTIMATES, SPREADS
from mstrain.evaluation.prediction import PredictionConfig, predict_on_ranks
from mstrain.evaluation.predictions import read_predictions
from mstrain.evaluation.run_info import TrainedRun, find_prior, open_run
from mstrain.serving.cutouts import fetch_cutouts, without_scratch

# Of the index: what the cutouts lack, and where they are.
_CARRIED = ("ra", "dec", "missing_bands")


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """How cutouts of positions are fetched, and what is predicted of them.

    Attributes:
        prediction: what is predicted, and how; `columns` are those of the positions.
        services: where to ask and how often, by name.
        contact: address for the operators of the services.
    """

    prediction: PredictionConfig
    services: Mapping[str, Service] = field(default_factory=lambda: dict(SERVICES))
    contact: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedPosition:
    """What a network says of one position.

    Attributes:
        sample_id: its id.
        ra: right ascension, degrees.
        dec: declination, degrees.
        ebv: E(B-V) that the network took, magnitudes; a tuple, in the network's order, where it
            takes several; None where it takes none.
        estimates: z_mean, z_median, z_mode, z_std, z_q16 and z_q84.
        density: float32 (K,), per unit redshift in each bin.
        oddness: ood_sigma, ood_distance or ood_log_density, and is_flagged where the run has a
            flag; empty where it keeps no fit of `mstrain flag`.
        missing_bands: bands without coverage, such as "galex.FUV".
        num_filled: NaN pixels that were filled, by array.
        num_nan: NaN pixels that were left, by array.
        cutouts: the arrays that the network saw, before augmentation, by name.
    """

    sample_id: str
    ra: float
    dec: float
    ebv: float | tuple[float, ...] | None
    estimates: Mapping[str, float]
    density: NDArray[np.float32]
    oddness: Mapping[str, float | bool]
    missing_bands: tuple[str, ...]
    num_filled: Mapping[str, int]
    num_nan: Mapping[str, int]
    cutouts: Mapping[str, NDArray[Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the cutouts."""
        plain = {name: value for name, value in vars(self).items() if name != "cutouts"}
        estimates = plain.pop("estimates") | plain.pop("oddness")
        density = [float(value) for value in self.density]
        return {**plain, **estimates, "density": density, "missing_bands": list(self.missing_bands)}


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedPositions:
    """What a network says of some positions.

    Attributes:
        objects: in the order of the positions, without those that failed.
        failures: positions without a prediction, with the reason.
        edges: float64 (K + 1,), edges of the densities' bins.
        schema: bands and pixel scales of the cutouts.
        origin: network, checkpoint and prior.
    """

    objects: tuple[PredictedPosition, ...]
    failures: tuple[Entry, ...]
    edges: Floats
    schema: Schema
    origin: Mapping[str, Any]


def predict_positions(
    run: Path,
    positions: Positions,
    out: Path,
    config: PositionConfig,
    ranks: Ranks,
) -> tuple[int, tuple[Entry, ...]]:
    """Writes the table of predictions of positions.

    Args:
        run: the run's folder, or a model file.
        positions: where to look, with the E(B-V) that the network needs.
        out: the table's file.
        config: how to fetch, what to predict.
        ranks: this process alone.

    Returns:
        How many were predicted, and the others with their reasons.

    Raises:
        UsageError: network, positions and options do not go together, or there are several ranks.
        DataError: no position could be predicted.
        StorageError: the file system refused.
    """
    with _predicted(run, positions, config, ranks, out) as (data, _, failures):
        return len(data), failures


def at_positions(
    run: Path, positions: Positions, config: PositionConfig, ranks: Ranks
) -> PredictedPositions:
    """Predicts positions, with the cutouts that the network saw.

    Args:
        run: see `predict_positions`, as for all others.
        positions: see there.
        config: see there.
        ranks: see there.

    Raises:
        UsageError: see there.
        DataError: see there.
        StorageError: see there.
    """
    with _predicted(run, positions, config, ranks) as (data, table, failures):
        found = read_predictions(table)
        densities = np.concatenate(list(found.density_parts()))
        columns = open_run(run, config.prediction.checkpoint).config.model.reddening
        samples = [data[number] for number in range(len(data))]
        objects = {}
        for row, sample in enumerate(samples):
            ebv = tuple(float(sample[column]) for column in columns)
            estimates = {n: float(found.columns[n][row]) for n in (*POINT_ESTIMATES, *SPREADS)}
            objects[str(sample["sample_id"])] = PredictedPosition(
                sample_id=str(sample["sample_id"]),
                ra=float(sample["ra"]),
                dec=float(sample["dec"]),
                ebv=ebv if len(ebv) > 1 else next(iter(ebv), None),
                estimates=estimates,
                density=densities[row],
                oddness={n: found.columns[n][row].item() for n in COLUMNS if n in found.columns},
                missing_bands=tuple(filter(None, str(sample["missing_bands"] or "").split(","))),
                num_filled={n: int(sample[f"filled_{n}"]) for n in data.schema.names},
                num_nan={n: int(sample[f"nan_{n}"]) for n in data.schema.names},
                cutouts={name: sample[name] for name in data.schema.names},
            )
        ids = positions.table["sample_id"].to_pylist()
        return PredictedPositions(
            objects=tuple(objects[name] for name in ids if name in objects),
            failures=failures,
            edges=found.edges,
            schema=data.schema,
            origin=found.origin,
        )


@contextmanager
def _predicted(
    run: Path,
    positions: Positions,
    config: PositionConfig,
    ranks: Ranks,
    out: Path | None = None,
) -> Iterator[tuple[msdata.Dataset, Path, tuple[Entry, ...]]]:
    """The data set of positions, the table of its predictions, and the positions that failed."""
    ranks.on_first(lambda: _check_alone(ranks))
    asked = config.prediction
    unknown = [name for name in asked.columns if name not in positions.table.column_names]
    if unknown:
        raise UsageError(
            f"the positions have no column {', '.join(unknown)}; they have "
            f"{', '.join(positions.table.column_names)}"
        )
    trained = open_run(run, asked.checkpoint)
    if not trained.target.is_redshift:
        raise UsageError(
            f"positions are predicted by networks of redshifts, but that of {run} tells "
            f"{trained.target.column}; fetch and pack the positions, then give the data set"
        )
    check_columns(asked.columns, trained.target)
    find_prior(trained, asked.prior)
    further = flags_of(run, asked)
    _check_reddening(trained, positions)
    # A thread of the fetch may still be writing when an error ends it.
    with tempfile.TemporaryDirectory(prefix="mstrain-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        table = out or scratch / "predictions.parquet"
        with without_scratch(scratch):
            data, failures = fetch_cutouts(
                trained,
                positions,
                scratch,
                config.services,
                contact=config.contact,
                is_quiet=asked.is_quiet,
            )
            columns = _columns_of(data, asked.columns)
            asked = replace(asked, columns=columns)
            predict_on_ranks(run, data.path, table, asked, ranks, further)
        yield data, table, failures


def _check_alone(ranks: Ranks) -> None:
    if ranks.count > 1:
        raise UsageError(
            "positions are predicted by one process, as the services' rates ask for, got "
            f"{ranks.count} ranks; start without torchrun, or fetch and pack first"
        )


def table_with(columns: Sequence[str]) -> str:
    """What makes a table of positions with columns of E(B-V), for messages."""
    options = " ".join(f"--ebv {name.removeprefix('ebv_')}=MAP.fits" for name in columns)
    return f"a table of 'msdata catalog positions {options}'"


def _check_reddening(trained: TrainedRun, positions: Positions) -> None:
    """Refuses positions without the E(B-V) that the network takes, before anything is fetched."""
    columns = trained.config.model.reddening
    for column in columns:
        if column not in positions.table.column_names:
            one_map = "--ebv-map MAP.fits, or " if len(columns) == 1 else ""
            raise UsageError(
                f"the network of {trained.path} takes {column}, which the positions do not have; "
                f"give {one_map}{table_with(columns)}"
            )
        num_missing = positions.table[column].null_count
        if num_missing:
            raise UsageError(
                f"every position must have an {column}, got none for {num_missing:,} of "
                f"{positions.table.num_rows:,}; leave those out"
            )


def _columns_of(data: msdata.Dataset, asked: Sequence[str]) -> tuple[str, ...]:
    """Columns of the index that the table of predictions takes over."""
    pixels = [f"{kind}_{name}" for kind in ("filled", "nan") for name in data.schema.names]
    return tuple(dict.fromkeys([*_CARRIED, *pixels, *asked]))
