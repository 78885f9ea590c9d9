"""A trained network to ask from a program: `mstrain.load("MODEL.msz").at([(ra, dec)])`.

It stands alone as the public face of `positions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from msdata.catalog.build.spec import DustTask
from msdata.catalog.positions import Positions, make_positions, with_reddening
from msdata.errors import UsageError
from msdata.fetch.service import SERVICES, Service
from mstrain.config import TrainConfig
from mstrain.distributed import one_rank
from mstrain.evaluation.prediction import PredictionConfig
from mstrain.evaluation.run_info import open_run
from mstrain.models.model_file import is_model_file, read_model_file
from mstrain.models.prior import NATURAL
from mstrain.serving.positions import PositionConfig, PredictedPositions, at_positions, table_with

Reddening = float | Sequence[float] | NDArray[Any] | Path | str | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network; make one with `mstrain.load`.

    Attributes:
        path: the run's folder, or the model file.
        config: settings of the training.
        checkpoint: "best" or "last".
        license: terms of use that the model file names; None for none.
        citation: how the model file asks to be cited; None where it does not.
    """

    path: Path
    config: TrainConfig
    checkpoint: str
    license: str | None = None
    citation: str | None = None

    def at(
        self,
        positions: Sequence[tuple[float, float]],
        *,
        ebv: Reddening | Mapping[str, Reddening] = None,
        services: Mapping[str, Service] | None = None,
        contact: str | None = None,
        prior: str = NATURAL,
        has_any_pixels: bool = False,
        device: str = "auto",
        is_quiet: bool = True,
    ) -> PredictedPositions:
        """Fetches cutouts of positions from the surveys' services and predicts redshifts.

        Eight requests per object, at the rates of `msdata fetch`: 1 to 5 objects/s at most.

            model = mstrain.load("MODEL.msz")
            found = model.at([(197.6144, 18.4381)], ebv=0.021)
            found.objects[0].estimates["z_mean"]

        Args:
            positions: right ascension and declination of each object, degrees, ICRS.
            ebv: E(B-V) of all or of each, magnitudes, or the FITS file of a HEALPix map; by column
                for a network that takes several; None for one that takes none.
            services: where to ask, see `msdata.fetch.service.read_services`; None means the
                surveys' own.
            contact: your address, for the services' operators.
            prior: "natural", "as-trained", or a CSV file with columns z_low, z_high, count.
            has_any_pixels: accept pixels unlike those of the training.
            device: "auto", "cpu" or "cuda".
            is_quiet: print no progress to stderr.

        Returns:
            `objects` in the order of the positions, and `failures` with their reasons.

        Raises:
            UsageError: positions, E(B-V) and network do not go together.
            DataError: no position could be predicted: outside of the survey, or a dead service.
            StorageError: the file system refused.
        """
        prediction = PredictionConfig(
            checkpoint=self.checkpoint,
            prior=prior,
            has_any_pixels=has_any_pixels,
            data_name="positions",
            is_quiet=is_quiet,
        )
        config = PositionConfig(
            prediction=prediction,
            services=SERVICES if services is None else services,
            contact=contact,
        )
        asked = _with_ebv(make_positions(positions), self.config.model.reddening, ebv)
        with one_rank("predict", device) as ranks:
            return at_positions(self.path, asked, config, ranks)


def load(run: Path | str, *, checkpoint: str = "best") -> Model:
    """Opens a trained network to predict positions with.

    Args:
        run: the run's folder, or a model file of `mstrain.export`.
        checkpoint: "best" by validation loss, or "last".

    Raises:
        UsageError: the run has no such checkpoint.
        DataError: it is damaged.
        StorageError: the file system refused.
    """
    path = Path(run)
    trained = open_run(path, checkpoint)
    said: Mapping[str, Any] = read_model_file(path).fields.value if is_model_file(path) else {}
    return Model(
        path=path,
        config=trained.config,
        checkpoint=trained.which,
        license=said.get("license"),
        citation=said.get("citation"),
    )


def map_of(path: Path | str) -> DustTask:
    """The HEALPix map of E(B-V) in a FITS file.

    Raises:
        UsageError: the file does not exist.
    """
    if not Path(path).is_file():
        raise UsageError(f"the map {path} of E(B-V) is not a file; check the path")
    return DustTask(name="map", kind="healpix", value=str(path))


def the_column(columns: Sequence[str]) -> str:
    """The only column of E(B-V) that a network takes.

    Raises:
        UsageError: it takes several, which one map or value cannot fill.
    """
    if len(columns) > 1:
        raise UsageError(
            f"the network takes {' and '.join(columns)}, got one E(B-V); give {table_with(columns)}"
            ", or ebv by column in Python"
        )
    return columns[0]


def _with_ebv(
    positions: Positions, columns: Sequence[str], ebv: Reddening | Mapping[str, Reddening]
) -> Positions:
    """The positions with the column of E(B-V) that the network takes."""
    if ebv is None:
        return positions
    if not columns:
        raise UsageError("the network takes no E(B-V), got ebv; leave it out")
    each = ebv if isinstance(ebv, Mapping) else {the_column(columns): ebv}
    unknown = [name for name in each if name not in columns]
    if unknown:
        raise UsageError(f"ebv must be of {' and '.join(columns)}, got {', '.join(unknown)}")
    for column, values in each.items():
        positions = _with_column(positions, column, values)
    return positions


def _with_column(positions: Positions, column: str, ebv: Reddening) -> Positions:
    if isinstance(ebv, str | Path):
        return with_reddening(positions, {column: map_of(ebv)})
    count = positions.table.num_rows
    values = np.asarray(ebv, np.float32)
    if values.shape not in ((), (count,)) or not all(map(math.isfinite, values.ravel())):
        raise UsageError(
            f"ebv must be one finite number, or {count} of them, got shape {values.shape}"
        )
    each = pa.array(np.broadcast_to(values, count).astype(np.float32))
    return Positions(table=positions.table.append_column(column, each), notes=positions.notes)
