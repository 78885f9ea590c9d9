"""Cells of the sky, which `--split-by sky` puts into splits as a whole.

It stands alone, so that what decides a split by position is in one place. Neighbors on the sky
share pixels, dust and the depth of a field: by cells, a test object is far from nearly all training
ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# Height of a cell in degrees, and about its width: a hundred cutouts of 42 arcsec side by side, so
# that few objects lie at a border, and 41,000 cells on the sphere.
CELL_DEG = 1.0


def cell_names(table: pa.Table) -> list[str]:
    """The cell of each object, by columns `ra` and `dec` in degrees.

    Args:
        table: of the objects to pack, with their labels.

    Raises:
        UsageError: a column is missing or holds no numbers, or a position is impossible.
    """
    import pyarrow as pa

    columns = []
    for name in ("ra", "dec"):
        if name not in table.column_names:
            raise UsageError(
                f"--split-by sky needs columns ra and dec (degrees), and {name!r} is missing; the "
                f"objects have {', '.join(table.column_names)}"
            )
        kind = table[name].type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise UsageError(f"--split-by sky needs numbers in column {name!r}, got {kind}")
        columns.append(np.asarray(table[name].to_numpy(), np.float64))
    ra_N, dec_N = columns
    is_possible_N = (ra_N >= 0) & (ra_N <= 360) & (np.abs(dec_N) <= 90)
    if not is_possible_N.all():
        row = int(np.argmin(is_possible_N))
        raise UsageError(
            f"--split-by sky: {int((~is_possible_N).sum()):,} of {len(ra_N):,} objects have no "
            f"possible position, the first is {table['sample_id'][row].as_py()!r} with ra "
            f"{ra_N[row]:g}, dec {dec_N[row]:g}; correct the catalog, or leave them out of it"
        )
    return [f"{row}:{column}" for row, column in zip(*_cells(ra_N, dec_N), strict=True)]


def _cells(ra_N: NDArray[np.float64], dec_N: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Row and column of the cell of each position; a row has fewer cells near a pole."""
    num_rows = round(180 / CELL_DEG)
    row_N = np.minimum(((dec_N + 90) / CELL_DEG).astype(np.int64), num_rows - 1)
    middle_N = np.radians((row_N + 0.5) * CELL_DEG - 90)
    num_N = np.maximum(1, np.round(360 / CELL_DEG * np.cos(middle_N))).astype(np.int64)
    # Right ascension 360 is 0.
    column_N = (ra_N / 360 * num_N).astype(np.int64) % num_N
    return row_N.tolist(), column_N.tolist()
