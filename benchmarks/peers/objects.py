"""The pickled objects that contestants convert, and those that read them as they are."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.protocol import Reading
from benchmarks.workloads import object_path


def read_object(objects: Path, number: int) -> dict[str, NDArray[Any]]:
    """The arrays of an object."""
    arrays: dict[str, NDArray[Any]] = pickle.loads(object_path(objects, number).read_bytes())
    return arrays


def read_objects(objects: Path, reading: Reading) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """All objects with their numbers, which are the samples' ids."""
    for number in range(reading.num_samples):
        yield number, read_object(objects, number)


def record_of(arrays: dict[str, NDArray[Any]], reading: Reading) -> NDArray[Any]:
    """The arrays of an object as one record of `Reading.dtype`."""
    record = np.empty(1, reading.dtype())
    for name, array in arrays.items():
        record[name] = array
    return record
