"""Data sets of any size in no time: shards of a repeated pattern, and their index."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from msdata.core.checksum import crc32c
from msdata.dataset.index import fixed_columns, write_index
from msdata.dataset.manifest import Manifest, ShardInfo
from msdata.schema import Schema

# Prime, so that no two samples of a shard begin at the same place of the pattern.
PATTERN_NBYTES = 1_000_003
_WRITTEN_AT_ONCE = 64


@functools.cache
def pattern() -> np.ndarray:
    """What every shard repeats, from its number on."""
    return np.random.default_rng(0).integers(0, 256, PATTERN_NBYTES, dtype=np.uint8)


def pattern_at(shard: int, offset: int, nbytes: int) -> bytes:
    """The bytes of a shard from an offset on."""
    places = (shard + offset + np.arange(nbytes)) % PATTERN_NBYTES
    return pattern()[places].tobytes()


def write_raw(
    folder: Path,
    schema: Schema,
    shard_sizes: Sequence[int],
    *,
    has_checksums: bool = False,
    columns_besides: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a data set of one split, "train", whose shards have no headers; returns its folder."""
    (folder / "train").mkdir(parents=True)
    shards, offsets = [], []
    sizes = [a.nbytes for a in schema.arrays]
    starts = np.cumsum([0, *sizes[:-1]])
    for number, count in enumerate(shard_sizes):
        name, nbytes = f"shard-{number:06}.tar", count * schema.sample_nbytes
        _write_shard(folder / "train" / name, number, nbytes)
        offsets.append(np.arange(count)[:, None] * schema.sample_nbytes + starts)
        shards.append(
            ShardInfo(split="train", name=name, num_samples=count, nbytes=nbytes, frame_crc32c=0)
        )
    columns = _columns(schema, shard_sizes, np.concatenate(offsets))
    if has_checksums:
        columns["crc32c"] = _checksums(schema, shard_sizes)
    columns |= columns_besides or {}
    sha256 = write_index(folder, pa.table(columns), schema)
    Manifest(
        container="tar", schema=schema, shards=tuple(shards), seed=0, index_sha256=sha256
    ).write(folder)
    return folder


def _write_shard(path: Path, number: int, nbytes: int) -> None:
    piece = np.tile(np.roll(pattern(), -number), _WRITTEN_AT_ONCE)
    with path.open("wb", buffering=0) as file:
        # Large writes: the page cache then holds the shard in large folios, as msdata pack's do.
        while nbytes > 0:
            nbytes -= file.write(piece[:nbytes].data)


def _checksums(schema: Schema, shard_sizes: Sequence[int]) -> np.ndarray:
    found = []
    for number, count in enumerate(shard_sizes):
        shard = pattern_at(number, 0, count * schema.sample_nbytes)
        records = np.frombuffer(shard, np.uint8).reshape(count, -1)
        found += [crc32c(record) for record in records]
    return np.array(found, np.uint32)


def _columns(schema: Schema, shard_sizes: Sequence[int], offsets: np.ndarray) -> dict:
    count = len(offsets)
    columns = {
        "sample_id": [f"{n:07d}" for n in range(count)],
        "split": ["train"] * count,
        "shard": np.repeat(np.arange(len(shard_sizes), dtype=np.int32), shard_sizes),
    }
    columns |= {f"offset_{a.name}": offsets[:, i] for i, a in enumerate(schema.arrays)}
    columns["nbytes"] = np.full(count, schema.sample_nbytes)
    columns["missing_bands"] = [""] * count
    for name in fixed_columns(schema):
        columns.setdefault(name, np.zeros(count, np.int32))
    columns["redshift"] = np.arange(count) / 1000
    return columns
