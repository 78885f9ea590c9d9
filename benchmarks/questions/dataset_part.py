"""The first shards of a data set as a data set of their own, without copying a sample.

Shards are fair draws of their split, so the first of them are a smaller data set of the same kind;
weak scaling needs one for each number of nodes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msdata
from msdata.dataset.index import write_index
from msdata.dataset.manifest import Manifest
from msdata.errors import UsageError


def make_part(data: Path, num_shards: int, out: Path, *, split: str = "train") -> Path:
    """Writes an index of the first shards of a split, and links to them.

    Args:
        data: a packed data set; it has to stay where it is.
        num_shards: how many shards.
        out: folder of the part; what stands there is replaced.
        split: of which split; the only one of the part.

    Returns:
        `out`.

    Raises:
        UsageError: the split has fewer shards.
    """
    whole = msdata.open(data).split(split)
    if not 1 <= num_shards <= len(whole.shards):
        raise UsageError(f"{data}, split {split}, has {len(whole.shards)} shards, not {num_shards}")
    shards = whole.shards[:num_shards]
    shutil.rmtree(out, ignore_errors=True)
    (out / split).mkdir(parents=True)
    for path in whole.shard_paths[:num_shards]:
        # Beside a tar shard lies DALI's index of it.
        for file in path.parent.glob(f"{path.stem}.*"):
            (out / split / file.name).symlink_to(file.resolve())
    rows = whole.table(None).slice(0, sum(shard.num_samples for shard in shards))
    source = whole.dataset.manifest
    Manifest(
        container=source.container,
        schema=source.schema,
        shards=shards,
        seed=source.seed,
        index_sha256=write_index(out, rows, source.schema),
        provenance={"part_of": source.fingerprint, "shards": num_shards},
    ).write(out)
    return out
