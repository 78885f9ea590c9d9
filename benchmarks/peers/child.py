"""The process of one contestant: `python -m benchmarks.peers.child NAME`; see `benchmarks.told`."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import versions_of
from benchmarks.peers import PEERS
from benchmarks.peers.protocol import Arrays, Batch, Epochs, Peer, Reading, read_object
from benchmarks.told import claim_stdout, obey
from benchmarks.workloads import TRUTH, edge_bytes, write_truth
from msdata.core.checksum import crc32c

# A folder of packages that cannot be installed beside the others; see no-deps.txt.
EXTRA_PACKAGES = "MSDATA_BENCH_PEERS"


class WrongBatchError(Exception):
    """A batch is not what it should be."""


def check_batch(batch: Batch, reading: Reading, edges: NDArray[np.uint8]) -> None:
    """Refuses a batch of other shapes, or whose arrays begin or end with other bytes.

    Edges are uint8 (samples, arrays, 8); raises WrongBatchError.
    """
    ids, arrays = batch
    for name, (shape, dtype) in reading.arrays.items():
        array = arrays[name]
        if array.shape != (len(ids), *shape) or array.dtype != np.dtype(dtype):
            raise WrongBatchError(f"{name} came as {array.dtype}{array.shape}")
        if not array.flags.c_contiguous:
            raise WrongBatchError(f"{name} is not contiguous")
    if not np.array_equal(edge_bytes({n: arrays[n] for n in reading.arrays}), edges[ids]):
        raise WrongBatchError("a batch holds other values than its samples")


def check_every_byte(batch: Batch, reading: Reading, checksums: NDArray[np.uint32]) -> None:
    """Refuses a batch that differs in any byte; checksums are uint32 (samples, arrays), CRC32C."""
    ids, arrays = batch
    for a, name in enumerate(reading.arrays):
        for row, sample in enumerate(ids.tolist()):
            if crc32c(arrays[name][row]) != checksums[sample, a]:
                raise WrongBatchError(f"sample {sample}: {name} holds other bytes than its object")


def write_decoded(peer: Peer, objects: Path, out: Path, reading: Reading) -> float:
    """Writes what the samples of a peer that keeps fewer bytes must be, beside its data.

    They are decoded one by one, outside of what is raced.

    Returns:
        The largest error of a value over what is allowed for it.

    Raises:
        WrongBatchError: an error is larger than allowed, or samples are missing.
    """
    assert peer.decoded is not None
    worst = 0.0

    def within_bounds() -> Iterator[Arrays]:
        nonlocal worst
        for number, (arrays, bounds) in enumerate(peer.decoded(out, reading)):
            kept = read_object(objects, number)
            for name, array in arrays.items():
                error = np.abs(array.astype(np.float64) - kept[name])
                # Where nothing is allowed, nothing may differ.
                allowed, rest = bounds[name], np.where(error > 0, np.inf, 0)
                most = float(np.divide(error, allowed, out=rest, where=allowed > 0).max())
                if not most <= 1:
                    raise WrongBatchError(
                        f"sample {number}: {name} is {most:.3g} of the allowed error off"
                    )
                worst = max(worst, most)
            yield arrays

    count = write_truth(out, within_bounds())
    if count != reading.num_samples:
        raise WrongBatchError(f"{count} samples of {reading.num_samples} were kept")
    return worst


class Contestant:
    """Obeys the commands for one contestant."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._opened = ExitStack()
        self._epochs: Epochs | None = None
        self._number = 0

    def convert(self, objects: str, out: str, reading: Mapping[str, Any]) -> dict[str, Any]:
        """Converts, and waits until the disk has it."""
        if self._peer.convert is None:
            return {"seconds": None}
        started_s = time.perf_counter()
        self._peer.convert(Path(objects), Path(out), reading_of(reading))
        for path in Path(out).rglob("*"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
        seconds = time.perf_counter() - started_s
        if self._peer.decoded is None:
            return {"seconds": seconds}
        error = write_decoded(self._peer, Path(objects), Path(out), reading_of(reading))
        return {"seconds": seconds, "error_of_bound": error}

    def open(self, data: str, truth: str, reading: Mapping[str, Any]) -> dict[str, Any]:
        """Sets up what the epochs need, untimed."""
        decoded = Path(data) / TRUTH
        with np.load(decoded if decoded.is_file() else Path(truth) / TRUTH) as found:
            self._checksums, self._edges = found["checksums"], found["edges"]
        self._reading = reading_of(reading)
        self._opened = ExitStack()
        self._epochs = self._opened.enter_context(self._peer.open(Path(data), self._reading))
        return {}

    def close(self) -> dict[str, Any]:
        """Lets go of everything, so that no map holds a page in memory."""
        self._epochs = None
        self._opened.close()
        gc.collect()
        return {}

    def run(
        self,
        warm_ups: int,
        epochs: int,
        compute_rate: float | None,
        is_checked: bool,
        least_s: float = 0.0,
    ) -> dict[str, Any]:
        """Runs whole epochs without a pause between them.

        The clock runs from the first timed epoch to the end of the last, what is between them
        included: whoever reads ahead across that border ends with as much started as at first.

        Args:
            warm_ups: epochs before the timed ones.
            epochs: timed epochs, at least.
            compute_rate: samples per second that the stub of a training step takes; or None.
            is_checked: whether every byte is compared (then nothing is a rate).
            least_s: epochs are added until so many seconds have passed, so that a contestant whose
                epochs take milliseconds is timed for as long as the others.

        Returns:
            Seconds of the timed epochs, how many, samples, seconds of compute, waits for batches,
            and the order of samples in each checked epoch.
        """
        for _ in range(warm_ups):
            self._ordered(self._epoch(None, False))
        found = []
        started_s = time.perf_counter()
        while len(found) < epochs or time.perf_counter() - started_s < least_s:
            found.append(self._epoch(compute_rate, is_checked))
        seconds = time.perf_counter() - started_s
        orders = [self._ordered(epoch) for epoch in found]
        return {
            "seconds": seconds,
            "num_epochs": len(found),
            "compute_s": sum(f["compute_s"] for f in found),
            "num_samples": sum(map(len, orders)),
            "waits_s": [w for f in found for w in f["waits_s"]],
            "orders": [order.tolist() for order in orders] if is_checked else [],
        }

    def _epoch(self, compute_rate: float | None, is_checked: bool) -> dict[str, Any]:
        assert self._epochs is not None
        waits, ids, compute_s = [], [], 0.0
        asked_s = time.perf_counter()
        for batch in self._epochs(self._number):
            waits.append(time.perf_counter() - asked_s)
            check_batch(batch, self._reading, self._edges)
            if is_checked:
                check_every_byte(batch, self._reading, self._checksums)
            ids.append(np.array(batch[0]))
            if compute_rate is not None:
                before_s = time.perf_counter()
                time.sleep(len(batch[0]) / compute_rate)
                compute_s += time.perf_counter() - before_s
            asked_s = time.perf_counter()
        self._number += 1
        return {"compute_s": compute_s, "waits_s": waits, "ids": ids}

    def _ordered(self, epoch: dict[str, Any]) -> NDArray[np.int64]:
        """The order of an epoch's samples, which must be each once; looked at off the clock."""
        ids = epoch["ids"]
        order: NDArray[np.int64] = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        if not np.array_equal(np.sort(order), np.arange(self._reading.num_samples)):
            raise WrongBatchError(
                f"an epoch held {len(order)} samples, {len(np.unique(order))} different ones, not "
                f"each of {self._reading.num_samples} once"
            )
        return order


def reading_of(fields: Mapping[str, Any]) -> Reading:
    """A reading out of its JSON."""
    arrays = {name: (tuple(shape), dtype) for name, (shape, dtype) in fields["arrays"].items()}
    return Reading(**{**fields, "arrays": arrays})


def main(name: str) -> int:
    """Obeys until the standard input ends."""
    answers = claim_stdout()
    if os.environ.get(EXTRA_PACKAGES):
        sys.path.append(os.environ[EXTRA_PACKAGES])
    contestant = Contestant(PEERS[name])
    print(json.dumps({"versions": versions_of(PEERS[name].packages)}), file=answers)
    obey(answers, contestant, wrong=WrongBatchError)
    contestant.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
