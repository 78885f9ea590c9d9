"""The protocol between `msdata pack` and whatever holds the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Sample, Schema

if TYPE_CHECKING:
    import pyarrow as pa


class PackedSample(dict[str, Any]):
    """An object's dict from a packed data set, with what its pixels do not say.

    Args:
        arrays: the decoded arrays.
        steps: steps per noise and float32 (bands,) steps of the arrays that were quantized.
        num_filled: pixels of each array that were filled when it was packed.
        missing_bands: bands that it lacked then.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        steps: Mapping[str, tuple[float | None, NDArray[np.float32]]],
        num_filled: Mapping[str, int],
        missing_bands: Sequence[str] = (),
    ) -> None:
        super().__init__(arrays)
        self.steps = steps
        self.num_filled = num_filled
        self.missing_bands = missing_bands


class Source(Protocol):
    """A place with objects: listed once by `scan`, then read in any order by many threads.

    Attributes:
        root: the folder; paths are relative to it.
        schema: what every object is, where the source knows; None where it is to be inferred.
    """

    root: Path
    schema: Schema | None

    def scan(self) -> pa.Table:
        """Lists the objects, sorted by `sample_id`, then `path`.

        Returns:
            Table with `sample_id` (string), `path` (string, relative to `root`), `row` (int64;
            -1 where the file holds one object only) and, where the source has splits of its own,
            `split` (string); where it knows the catalog's row of each object,
            `catalog_row` (int64).

        Raises:
            DataError: nothing usable is there.
        """

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one object; safe to call from many threads at once.

        Args:
            path: as `scan` lists it.
            row: as there.
            labels: the object's row of the catalog; images of the sky are cut around `ra`, `dec`.

        Returns:
            The object's dict: name -> array or number, as stored (dtype, byte order, layout).

        Raises:
            SampleError: this object is unusable; the message is the reason.
            StorageError: the file system refused.
        """
