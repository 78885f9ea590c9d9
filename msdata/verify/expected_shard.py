"""The promise of manifest and index for one shard: what check and repair hold it to.

A module of its own because the four other modules of this room import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.manifest import ShardInfo
from msdata.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ExpectedShard:
    """Manifest and index of one shard.

    Attributes:
        path: the file.
        info: its entry in the manifest.
        container: "tar" or "hdf5".
        schema: the arrays of every sample.
        offsets: int64 (samples, arrays), where each array begins.
        crc32c: uint32 (samples,), checksum of each sample's arrays.
        first_row: row of its first sample in the whole index.
        read_rows: reads this shard's rows of the index; takes names of columns, None for all.
    """

    path: Path
    info: ShardInfo
    container: str
    schema: Schema
    offsets: NDArray[np.int64]
    crc32c: NDArray[np.uint32]
    first_row: int
    read_rows: Callable[[Sequence[str] | None], pa.Table] = field(repr=False)

    @property
    def array_nbytes(self) -> list[int]:
        """Bytes of each array."""
        return [a.nbytes for a in self.schema.arrays]

    def sample_ids(self) -> list[str]:
        """Returns the ids of its samples, in order."""
        return self._sample_ids

    @cached_property
    def _sample_ids(self) -> list[str]:
        ids: list[str] = self.read_rows(["sample_id"])["sample_id"].to_pylist()
        return ids
