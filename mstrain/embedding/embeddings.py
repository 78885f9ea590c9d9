"""The table of embeddings: one Parquet file, a row per sample in the order of the index.

sample_id, split    string
further columns     of the index, as asked for, in the index's own types
embedding           fixed-size list of float16, the network's layer

The metadata are those of a table of predictions without the densities' own; `embedding_layer` names
the layer. float16 has 11 bits: a value is off by at most 1 part in 2,048.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checked_json import JsonValue
from msdata.errors import DataError
from mstrain.evaluation.list_table import list_parts, lists_of_rows, read_list_table

EMBEDDING = "embedding"
LAYER_KEY = "embedding_layer"
# In the metadata of every such table, so that only our own files are replaced.
MARK = f'"{LAYER_KEY}"'.encode()
_CURE = "give a table that 'mstrain embed' wrote"


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """An open table of embeddings.

    Attributes:
        path: its file.
        origin: the metadata: run, checkpoint and its SHA-256, data, fingerprint, splits,
            `embedding_layer`.
        columns: (N,) each, without the embeddings; null as NaN, in integers and booleans masked
            (`numpy.ma`).
        num_values: length D of an embedding.
    """

    path: Path
    origin: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]]
    num_values: int

    def __len__(self) -> int:
        return len(self.columns["sample_id"])

    def parts(self) -> Iterator[NDArray[np.float16]]:
        """The embeddings, float16 (n, D), one part of the rows after the other.

        Raises:
            DataError: the file is damaged, or holds values that are not finite.
        """
        for part in list_parts(self.path, EMBEDDING, len(self), np.float16, _CURE):
            if not np.isfinite(part).all():
                raise DataError(f"{self.path} is damaged: embeddings must be finite; {_CURE}")
            yield part

    def of_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The embeddings of some rows, float16 (n, D); reads the table once."""
        return lists_of_rows(self.parts(), rows, self.num_values, np.float16)


def read_embeddings(path: Path | str) -> Embeddings:
    """Opens a table that `mstrain embed` wrote.

        table = mstrain.read_embeddings("embeddings.parquet")
        for part in table.parts():  # float16 (n, D)
            ...

    Args:
        path: the .parquet file.

    Returns:
        Its columns, (N,) each; embeddings are read when they are asked for.

    Raises:
        UsageError: the file does not exist, or is another kind of table.
        StorageError: the file system refused.
    """

    def check(found: JsonValue, size: int) -> None:
        for name in (LAYER_KEY, "fingerprint", "checkpoint_sha256"):
            found[name].read_as(str)
        if not size:
            found[LAYER_KEY].refuse(f"the layer of a column {EMBEDDING!r} of lists of float16")

    path, kinds = Path(path), {"sample_id": "text", "split": "text"}
    origin, columns, _, size = read_list_table(
        *(path, kinds, (EMBEDDING,), np.float16, check),
        what="embeddings",
        command="mstrain embed",
        cure=_CURE,
    )
    return Embeddings(path=path, origin=origin, columns=columns, num_values=size)
