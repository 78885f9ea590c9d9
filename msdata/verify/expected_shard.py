"""The promise of manifest and index for one shard: what check and repair hold it to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.coding import ArrayCoding
from msdata.dataset.manifest import ShardInfo
from msdata.dataset.shard_files import ShardFile
from msdata.dataset.tar import (
    Member,
    dali_index_text,
    dali_line,
    json_distance,
    member_key,
    member_nbytes,
    members_of,
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
        array_nbytes: int64 (samples, arrays), stored bytes of each array.
        crc32c: uint32 (samples,), checksum of each sample's arrays.
        codings: how the arrays are stored; empty for a data set that is not coded.
        first_row: row of its first sample in the whole index.
        read_rows: reads this shard's rows of the index; takes names of columns, None for all.
    """

    path: Path
    info: ShardInfo
    container: str
    schema: Schema
    offsets: NDArray[np.int64]
    array_nbytes: NDArray[np.int64]
    crc32c: NDArray[np.uint32]
    codings: tuple[ArrayCoding, ...]
    first_row: int
    read_rows: Callable[[Sequence[str] | None], pa.Table] = field(repr=False)

    @cached_property
    def codes(self) -> list[tuple[str, ...]]:
        """The dtypes that each sample's arrays are stored as; empty if they are not coded."""
        if not self.codings:
            return [()] * len(self.offsets)
        rows = self.read_rows([f"dtype_{name}" for name in self.quantized])
        columns = [
            [c.dtype] * len(self.offsets)
            if c.quantize is None
            else rows[f"dtype_{c.name}"].to_pylist()
            for c in self.codings
        ]
        return list(zip(*columns, strict=True))

    @cached_property
    def members(self) -> list[list[Member]]:
        """The tar members of each sample's arrays."""
        return [members_of(self.schema, self.codings, codes) for codes in self.codes]

    @property
    def quantized(self) -> list[str]:
        """Names of the quantized arrays."""
        return [c.name for c in self.codings if c.quantize is not None]

    def steps(self) -> dict[str, NDArray[np.float32]]:
        """Reads the float32 (samples, bands) steps of each quantized array, by name."""
        rows = self.read_rows([f"step_{name}" for name in self.quantized])
        return {n: np.array(rows[f"step_{n}"].to_pylist(), np.float32) for n in self.quantized}

    def sample_ids(self) -> list[str]:
        """Returns the ids of its samples, in order."""
        return self._sample_ids

    @cached_property
    def _sample_ids(self) -> list[str]:
        ids: list[str] = self.read_rows(["sample_id"])["sample_id"].to_pylist()
        return ids


def dali_index_of(file: ShardFile, expected: ExpectedShard) -> bytes:
    """Rebuilds the DALI index of a tar shard from the index and the shard's headers.

    Raises:
        DataError: a header of the shard is damaged.
    """
    lines = []
    header = bytearray(_BLOCK)
    rows = zip(
        expected.sample_ids(),
        expected.members,
        expected.offsets.tolist(),
        expected.array_nbytes.tolist(),
        strict=True,
    )
    for sample_id, members, offsets, nbytes in rows:
        at = offsets[-1] + json_distance(members[-1], nbytes[-1])
        file.read_into([header], at)
        json_nbytes = member_nbytes(header)
        if json_nbytes is None:
            raise DataError(f"sample {sample_id}: the header of its JSON is damaged")
        spans = zip(offsets, nbytes, strict=True)
        lines.append(dali_line(member_key(sample_id), members, spans, (at + _BLOCK, json_nbytes)))
    return dali_index_text(lines)
