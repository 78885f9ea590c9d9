"""The promise of manifest and index for one shard: what check and repair hold it to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.manifest import ShardInfo
from msdata.dataset.shard_files import ShardFile
from msdata.dataset.tar import (
    dali_index_path,
    dali_index_text,
    dali_line,
    dali_members,
    json_distance,
    member_key,
    member_nbytes,
)
from msdata.errors import DataError
from msdata.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 512


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


def check_dali_index(file: ShardFile, expected: ExpectedShard) -> str:
    """Compares the DALI index beside a tar shard with a rebuilt one.

    Args:
        file: the open shard, whose headers are intact.
        expected: what manifest and index promise.

    Returns:
        A message; empty if they agree.
    """
    path = dali_index_path(expected.path)
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return "the index that DALI reads is missing; --repair rebuilds it"
    if found == dali_index_of(file, expected):
        return ""
    return "the index that DALI reads is corrupt; --repair rebuilds it"


def dali_index_of(file: ShardFile, expected: ExpectedShard) -> bytes:
    """Rebuilds the DALI index of a tar shard from the index and the shard's headers.

    Raises:
        DataError: a header of the shard is damaged.
    """
    members, distance = dali_members(expected.schema), json_distance(expected.schema)
    lines = []
    header = bytearray(_BLOCK)
    for sample_id, offsets in zip(expected.sample_ids(), expected.offsets.tolist(), strict=True):
        at = offsets[-1] + distance
        file.read_into([header], at)
        nbytes = member_nbytes(header)
        if nbytes is None:
            raise DataError(f"sample {sample_id}: the header of its JSON is damaged")
        lines.append(dali_line(member_key(sample_id), members, offsets, (at + _BLOCK, nbytes)))
    return dali_index_text(lines)
