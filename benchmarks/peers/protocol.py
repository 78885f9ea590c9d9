"""What a contestant of the benchmark `loaders` is: how it converts, how it reads, what it promises.

A contestant imports its own package only when it is asked for something, so that the list of
contestants can be read where hardly any of them is installed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import object_path

Arrays = dict[str, NDArray[Any]]
# Ids of the samples, int64 (rows,), and each array of them, C-contiguous (rows, *shape). A batch
# may be overwritten once the next is asked for.
Batch = tuple[NDArray[np.int64], Mapping[str, NDArray[Any]]]
# Gives the batches of an epoch, by its number.
Epochs = Callable[[int], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How batches are asked for, the same for every contestant.

    Attributes:
        arrays: for each array of a sample its shape and dtype, in order.
        num_samples: samples of an epoch.
        batch_size: rows of a batch; the last one may be shorter.
        num_workers: threads or processes that may work.
        seed: of the shuffle.
    """

    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    num_samples: int
    batch_size: int
    num_workers: int
    seed: int = 0

    def dtype(self) -> np.dtype[Any]:
        """A record of one sample: its arrays one after the other, without padding."""
        return np.dtype([(name, dtype, shape) for name, (shape, dtype) in self.arrays.items()])

    def empty_batch(self) -> Arrays:
        """Uninitialized arrays of a whole batch."""
        return {
            name: np.empty((self.batch_size, *shape), dtype)
            for name, (shape, dtype) in self.arrays.items()
        }

    def order(self, epoch: int) -> NDArray[np.int64]:
        """A uniform shuffle for the contestants that leave the order to their user."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)

    def batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """The shuffle in batches of ids."""
        order = self.order(epoch)
        for first in range(0, len(order), self.batch_size):
            yield order[first : first + self.batch_size]


@dataclass(frozen=True)
class Peer:
    """A contestant.

    Attributes:
        title: its name in tables.
        packages: distributions whose versions are printed.
        open: what has to be set up before the first epoch, and closed after the last: from the
            converted data and the reading to `Epochs`.
        convert: writes the objects of a folder (`Source.objects`) in its own format; None where it
            reads the objects as they are.
        shuffle: what its shuffle promises.
        resume: "exact", "approximate" or "none", and why, as its documentation says.
        advice: which advice of its documentation was followed.
        is_limit: no product but what the machine allows.
        is_ours: of this project.
        reads_ahead: whether it reads while the training computes.
        holds_all: whether it has read all samples before its first epoch, so that none is cold.
        decoded: for those that keep fewer bytes than they were given: from the converted data, each
            sample by its number as it is decoded outside of the loader, and the largest error that
            is allowed for each value; None for those that keep all.
    """

    title: str
    packages: tuple[str, ...]
    open: Callable[[Path, Reading], AbstractContextManager[Epochs]]
    convert: Callable[[Path, Path, Reading], None] | None
    shuffle: str
    resume: str
    advice: str
    is_limit: bool = False
    is_ours: bool = False
    reads_ahead: bool = True
    holds_all: bool = False
    decoded: Callable[[Path, Reading], Iterator[tuple[Arrays, Arrays]]] | None = None


def read_object(objects: Path, number: int) -> Arrays:
    """The arrays of a pickled object."""
    arrays: Arrays = pickle.loads(object_path(objects, number).read_bytes())
    return arrays


def read_objects(objects: Path, reading: Reading) -> Iterator[tuple[int, Arrays]]:
    """All objects with their numbers, which are the samples' ids."""
    for number in range(reading.num_samples):
        yield number, read_object(objects, number)


class Samples:
    """A map-style data set of a `Reading`: what a function gives for each number."""

    def __init__(self, give: Callable[[int], Any], reading: Reading) -> None:
        self._give, self._num_samples = give, reading.num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, number: int) -> Any:
        return self._give(number)


def fill_arrays(targets: Mapping[str, Any], objects: Path, reading: Reading) -> None:
    """Copies all objects into arrays of all samples, by name."""
    for number, arrays in read_objects(objects, reading):
        for name, target in targets.items():
            target[number] = arrays[name]


def record_of(arrays: Arrays, reading: Reading) -> NDArray[Any]:
    """The arrays of an object as one record of `Reading.dtype`."""
    record = np.empty(1, reading.dtype())
    for name, array in arrays.items():
        record[name] = array
    return record
