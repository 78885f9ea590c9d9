"""What the tests of loading share: data sets of tiny objects, and ranks run one after the other."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import packing

import msdata
from msdata.dataset import quantize
from msdata.dataset.dataset import Split

LAYOUTS = {
    "tar": ("--format", "tar"),
    "contiguous": ("--format", "hdf5"),
    "chunked": ("--format", "hdf5", "--chunked"),
    "codes": ("--format", "hdf5", "--quantize", "4"),
    "coded": ("--format", "tar", "--quantize", "4", "--compress", "lz4"),
    "coded chunks": ("--format", "hdf5", "--quantize", "4", "--compress", "zstd"),
}
ALL_IN_TRAIN = ("--split", "1,0,0")
NUM_SAMPLES = 300
ARRAYS = {"image": ((3, 8, 8), "<f4"), "spectrum": ((40,), "<i2")}


def options_of(layout: str) -> tuple[str, ...]:
    """Options that pack the tiny source into a dozen shards of one split."""
    return (*LAYOUTS[layout], *packing.TINY_SHARDS, *ALL_IN_TRAIN)


def open_train(path: Path) -> Split:
    """The split "train", opened anew: no file of it is open."""
    return msdata.open(path).split("train")


def topology(num_ranks: int, rank: int) -> msdata.Topology:
    """One node with so many ranks."""
    return msdata.Topology(num_nodes=1, ranks_per_node=num_ranks, rank=rank)


def kept(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch copied out of the ring."""
    return {name: np.array(values) for name, values in batch.items()}


def drain(loader: msdata.Loader) -> None:
    """Runs an epoch and keeps none of its batches."""
    collections.deque(loader, maxlen=0)


def run_epoch(loader: msdata.Loader, num_steps: int | None = None) -> list[dict[str, Any]]:
    """The next batches of an epoch, all that are left for None."""
    return [kept(batch) for batch in itertools.islice(loader, num_steps)]


def joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batches one after the other."""
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def ids_of(batches: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of all samples in order."""
    return [str(i) for batch in batches for i in batch["sample_id"]]


def global_epoch(split: Split, num_ranks: int, global_batch: int, **options: Any) -> Any:
    """The global batches of an epoch: at each step, what all ranks got, in rank order."""
    state = options.pop("state", None)
    by_rank = []
    for rank in range(num_ranks):
        with msdata.Loader(
            split,
            global_batch // num_ranks,
            topology=topology(num_ranks, rank),
            threads=1,
            **options,
        ) as loader:
            if state is not None:
                loader.load_state_dict(state)
            by_rank.append(run_epoch(loader))
    return [joined(step) for step in zip(*by_rank, strict=True)]


def assert_equal_batches(
    found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]
) -> None:
    """Equal batches: the same names, and bit for bit the same values."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert np.asarray(values).tobytes() == np.asarray(other[name]).tobytes(), name


def quantized(image: Any) -> Any:
    """What a layout of codes leaves of an image, computed by NumPy alone."""
    planes, steps = image.reshape(len(image), -1), np.zeros(len(image), np.float32)
    kind = quantize.measure(planes, steps, 4.0)
    codes = quantize.quantize(planes, steps, is_short=kind == quantize.SHORT)
    return quantize.dequantize(codes, steps).reshape(image.shape)


def assert_true_to_source(batch: Mapping[str, Any]) -> None:
    """Every sample of a batch is what its pickle holds, or its codes, with its own label."""
    for i, sample_id in enumerate(batch["sample_id"]):
        wanted = packing.tiny_object(int(sample_id))
        found = np.asarray(batch["image"][i])
        image = wanted["image"] if (found == wanted["image"]).any() else quantized(wanted["image"])
        assert found.tobytes() == image.tobytes(), sample_id
        assert batch["spectrum"][i].tobytes() == wanted["spectrum"].tobytes(), sample_id
        assert batch["redshift"][i] == float(f"{0.01 + int(sample_id) % 97 / 100:.3f}")
