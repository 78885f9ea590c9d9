"""4.3 million samples without their pixels: an index, and shards that are one hole each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msdata.dataset.index import FILE_NAME, file_sha256, fixed_columns
from msdata.dataset.manifest import Manifest, ShardInfo
from msdata.schema import MANTIS_SHRIMP

NUM_SAMPLES = 4_300_000
SAMPLES_PER_SHARD = 1_700
ROWS_AT_ONCE = 1 << 17
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
# Headers of a tar: what stands before each array, and a record's length.
RECORD_NBYTES = 598_016
DISTANCES = (640, 579_200, 588_032)


def make_big(folder: Path) -> None:
    """Writes the data set; in a process of its own, to leave no mark on the caller's memory."""
    schema = MANTIS_SHRIMP
    shards = []
    path = folder / FILE_NAME
    writer = None
    for split, share in SHARES.items():
        rows = np.arange(int(NUM_SAMPLES * share))
        shards += _shards(folder, split, len(rows))
        for first in range(0, len(rows), ROWS_AT_ONCE):
            table = _rows(split, rows[first : first + ROWS_AT_ONCE])
            writer = writer or pq.ParquetWriter(
                path, table.schema, compression="zstd", use_dictionary=["split", "missing_bands"]
            )
            writer.write_table(table, row_group_size=ROWS_AT_ONCE)
    writer.close()
    manifest = Manifest(
        container="tar",
        schema=schema,
        shards=tuple(shards),
        seed=0,
        index_sha256=file_sha256(path),
    )
    manifest.write(folder)


def _shards(folder: Path, split: str, num_rows: int) -> list[ShardInfo]:
    (folder / split).mkdir()
    found = []
    for number, first in enumerate(range(0, num_rows, SAMPLES_PER_SHARD)):
        count = min(SAMPLES_PER_SHARD, num_rows - first)
        name, nbytes = f"shard-{number:06}.tar", count * RECORD_NBYTES + 1024
        with (folder / split / name).open("wb") as file:
            os.truncate(file.fileno(), nbytes)
        found.append(
            ShardInfo(split=split, name=name, num_samples=count, nbytes=nbytes, frame_crc32c=0)
        )
    return found


def _rows(split: str, rows: np.ndarray) -> pa.Table:
    random = np.random.default_rng(int(rows[0]))
    count = len(rows)
    ids = 10**17 + random.integers(0, 10**17, count)
    columns = {
        "sample_id": pa.array(ids.astype("U18").tolist()),
        "split": pa.array([split]).take(pa.array(np.zeros(count, np.int8))),
        "shard": (rows // SAMPLES_PER_SHARD).astype(np.int32),
    }
    starts = rows % SAMPLES_PER_SHARD * RECORD_NBYTES
    for array, distance in zip(MANTIS_SHRIMP.arrays, DISTANCES, strict=True):
        columns[f"offset_{array.name}"] = starts + distance
    columns["nbytes"] = np.full(count, MANTIS_SHRIMP.sample_nbytes, np.int64)
    columns["crc32c"] = random.integers(0, 1 << 32, count, dtype=np.uint32)
    columns["missing_bands"] = pa.array([""]).take(pa.array(np.zeros(count, np.int8)))
    for name in fixed_columns(MANTIS_SHRIMP):
        columns.setdefault(name, np.zeros(count, np.int32))
    for name in ("redshift", "ra", "dec", "ebv"):
        columns[name] = random.random(count)
    return pa.table(columns)


if __name__ == "__main__":
    make_big(Path(sys.argv[1]))
