"""The table of predictions: one Parquet file, a row per sample in the order of the index.

sample_id, split       string
redshift               float64, null where unknown; absent where the data set has no such column
z_mean ... z_q84       float64, point estimates and spreads of the density
pit ... log_likelihood float64, null or absent where the redshift is
hpd_level, lower_peak  float64, likewise: where in its density the truth lies, see `densities`
density                fixed-size list of float32, per unit redshift in each bin
further columns        of the index, as asked for, in the index's own types

Of another number than a redshift, `mass`, the columns are called mass, mass_mean, mass_std and so
on. Of classes they are NAME, NAME_predicted (in the type of NAME), NAME_probability (float64, of
the predicted class), log_loss, brier, and probabilities (fixed-size list of float32, in the order
of "classes" in the metadata).

The file's metadata hold the edges of the bins, and where the predictions came from. Densities are
spooled to disk by each rank and joined by the first, so that memory holds their other columns only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checked_json import JsonValue
from mstrain.evaluation.list_table import (
    SpooledRows,
    list_parts,
    lists_of_rows,
    read_list_table,
    write_list_table,
)
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.qp_file import SUFFIX as QP_SUFFIX
from mstrain.evaluation.qp_file import write_qp

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
MARK = b'"bin_edges"'
DENSITY, PROBABILITIES = "density", "probabilities"
_CURE = "give a table that 'mstrain evaluate' or 'mstrain predict' wrote"


def write_predictions(
    path: Path,
    columns: Mapping[str, NDArray[Any] | pa.Array | pa.ChunkedArray],
    densities: SpooledRows,
    edges: Floats,
    origin: Mapping[str, Any],
) -> None:
    """Writes the table, whole or not at all; as qp reads it if the name ends in ".hdf5".

    Args:
        path: the file; what was there before stays until the new one is whole.
        columns: (N,) each, in the order of the file; NaN in NumPy's is written as null, Arrow's
            are written as they are.
        densities: densities of the same rows.
        edges: float64 (K + 1,), edges of the bins.
        origin: where the predictions came from, for the metadata; plain values. With "classes", the
            densities are probabilities of these.

    Raises:
        StorageError: the file system refused.
    """
    metadata = {"format_version": FORMAT_VERSION, "bin_edges": edges.tolist(), **origin}
    if path.suffix == QP_SUFFIX:
        write_qp(path, columns, densities.__getitem__, edges, metadata)
        return
    name = PROBABILITIES if "classes" in origin else DENSITY
    write_list_table(path, columns, name, densities, metadata)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """An open table of predictions.

    Attributes:
        path: its file.
        edges: float64 (K + 1,), edges of the bins.
        origin: the metadata.
        columns: (N,) each, without the densities; null as NaN, in integers and booleans masked
            (`numpy.ma`).
        density: the column of the densities; of classes that of their probabilities.
    """

    path: Path
    edges: Floats
    origin: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]]
    density: str = DENSITY

    def __len__(self) -> int:
        return len(self.columns["sample_id"])

    def __repr__(self) -> str:
        return f"Predictions({self.path}: {len(self)} rows of {', '.join(self.columns)})"

    def density_parts(self) -> Iterator[NDArray[np.float32]]:
        """The densities, float32 (n, K), one part of the rows after the other.

        Raises:
            DataError: the file is damaged.
        """
        return list_parts(self.path, self.density, len(self), np.float32, _CURE)

    def densities_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """The densities of some rows, float32 (n, K); reads the parts that hold them."""
        wanted = np.asarray(rows, np.int64)
        return lists_of_rows(self.density_parts(), wanted, len(self.edges) - 1, np.float32)

    def mean_density(self, is_counted: NDArray[np.bool_]) -> Floats:
        """Mean of the densities of some samples.

        Args:
            is_counted: bool (N,).

        Returns:
            float64 (K,), per unit redshift; zero where no sample counts.
        """
        total, start = np.zeros(len(self.edges) - 1), 0
        for part in self.density_parts():
            total += part[is_counted[start : start + len(part)]].sum(axis=0, dtype=np.float64)
            start += len(part)
        return np.asarray(total / max(1, int(is_counted.sum())), np.float64)


def read_predictions(path: Path | str) -> Predictions:
    """Opens a table that `evaluate` or `predict` wrote.

    Args:
        path: the .parquet file.

    Returns:
        Its columns, (N,) each; densities are read when they are asked for.

    Raises:
        UsageError: the file does not exist, or is another kind of table.
        StorageError: the file system refused.
    """

    def check(found: JsonValue, size: int) -> None:
        edges = np.array(found["bin_edges"].read_as(tuple[float, ...]), np.float64)
        if len(edges) < 2 or size != len(edges) - 1 or not bool((np.diff(edges) > 0).all()):
            found["bin_edges"].refuse("rising edges, one more than densities")

    path = Path(path)
    origin, columns, column, _ = read_list_table(
        *(path, {"sample_id": "text"}, (PROBABILITIES, DENSITY), np.float32, check),
        what="predictions",
        command="mstrain evaluate",
        cure=_CURE,
    )
    edges = np.array(origin.pop("bin_edges"), np.float64)
    return Predictions(path=path, edges=edges, origin=origin, columns=columns, density=column)
