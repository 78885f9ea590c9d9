"""Batches for the network: loader, then augmenter, then tensors, one step ahead in a thread.

The thread continues over the ends of epochs, so that the first batch of an epoch is ready when
validation of the last one is done. Each batch carries the loader's state after it: what the thread
has done ahead is done again after a resume.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import msdata
from msdata.augment import Statistics, open_augmenter, stream
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.config import TrainConfig, batch_per_rank
from mstrain.data.columns import index_columns, split_weights
from mstrain.data.transfer import DeviceTransfer, use_device
from mstrain.distributed import Ranks
from mstrain.models.target import Target

Item = TypeVar("Item")
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A batch on the device.

    Attributes:
        images: float32, or bfloat16 of torch, (B, C, H, W) by name, as the augmenter names them.
        ebv: float32 (B,), magnitudes, or (B, columns) where the network takes several; None where
            it takes none.
        redshift: float64 (B,), the label, whatever the target is: a redshift, another number, or
            the number of a class; NaN where unknown.
        sample_id: text (B,), on the host.
        ends_step: an optimizer step ends with this batch.
        loader_state: state after this batch, for a resume; None in evaluation.
    """

    images: dict[str, Tensor]
    ebv: Tensor | None
    redshift: Tensor
    sample_id: NDArray[np.str_]
    ends_step: bool = True
    loader_state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.sample_id)

    @classmethod
    def joined(cls, batches: Sequence[TensorBatch]) -> TensorBatch:
        """Copies batches into one, which is marked as the first of them is."""
        first = batches[0]
        ebv = [batch.ebv for batch in batches if batch.ebv is not None]
        return replace(
            first,
            images={name: torch.cat([b.images[name] for b in batches]) for name in first.images},
            ebv=torch.cat(ebv) if ebv else None,
            redshift=torch.cat([b.redshift for b in batches]),
            sample_id=np.concatenate([b.sample_id for b in batches]),
        )


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """Stands after the last batch of an epoch.

    Attributes:
        epoch: number of the epoch that has ended.
        stats: the loader's, of this epoch.
    """

    epoch: int
    stats: dict[str, Any]


class Prefetcher(Generic[Item]):
    """Runs an iterator in a thread, one item ahead, and measures how long items are waited for.

    Args:
        items: what the thread runs; it must not be touched meanwhile.

    Attributes:
        wait_s: seconds waited so far; whoever reads it may set it back.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mstrain-data", daemon=True)
        self.wait_s = 0.0

    def __enter__(self) -> Prefetcher[Item]:
        self._thread.start()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        started_s = time.perf_counter()
        kind, value = self._queue.get()
        self.wait_s += time.perf_counter() - started_s
        if kind == "item":
            return value  # type: ignore[no-any-return]
        self._queue.put((kind, value))
        if kind == "error":
            raise value
        raise StopIteration

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)
        finally:
            # Now, while what it works with is open; not when somebody collects it.
            if (close := getattr(self._items, "close", None)) is not None:
                close()

    def _put(self, kind: str, value: Any) -> bool:
        while not self._is_over.is_set():
            try:
                self._queue.put((kind, value), timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False


def steps_per_epoch(num_samples: int, config: TrainConfig) -> int:
    """Optimizer steps of an epoch, on any number of ranks."""
    return math.ceil(num_samples / config.batch_size)


def make_loader(
    split: Split,
    config: TrainConfig,
    ranks: Ranks,
    *,
    is_training: bool = True,
    cache: msdata.CacheConfig | None = None,
) -> msdata.Loader:
    """The loader of this rank.

    Args:
        split: what to load.
        config: settings of the run.
        ranks: this rank's place.
        is_training: with the run's policy; else plain, in any order.
        cache: None takes the run's for training, and none else.

    Raises:
        UsageError: policy "locality" without a cache, or a column that the data set lacks.
    """
    data = config.data
    # A validation starts with the same epoch each time: none is filled ahead.
    options: dict[str, Any] = {"across_epochs": False}
    if is_training:
        cache = cache or data.cache()
        if cache is None and data.policy == "locality":
            raise UsageError(
                "data.policy=locality needs a cache, as it deals samples to the nodes that cache "
                "them; give data.cache_gib=auto, or data.policy=shuffle"
            )
        options = {
            "policy": data.policy,
            "buffer_samples": data.buffer_samples,
            "weights": split_weights(split, config),
        }
    # Codes are half of the bytes on the way to a GPU, where torch decodes them.
    is_quantized = any(coding.quantize is not None for coding in split.codings)
    is_torch_on_gpu = data.backend == "torch" and ranks.device.type == "cuda"
    return msdata.Loader(
        split,
        batch_per_rank(config, ranks.count),
        seed=config.seed,
        topology=ranks.topology,
        threads=data.threads,
        prefetch=data.prefetch,
        columns=index_columns(split, config, needs_label=is_training),
        cache=cache,
        decode=not (is_quantized and is_torch_on_gpu),
        **options,
    )


def make_augmenter(
    split: Split, config: TrainConfig, ranks: Ranks, statistics: Any = None
) -> AbstractContextManager[Any]:
    """The augmenter of this rank, on the network's device where DALI or torch runs it.

    On a GPU torch writes bf16 images where autocast would make them, with the same rounding.
    `statistics` are those of the bands, from `msdata.augment.read_statistics`.
    """
    is_on_gpu = ranks.device.type == "cuda"
    backend = config.data.backend_on(ranks.device.type)
    options: dict[str, Any] = {}
    if backend == "torch":
        is_half = is_on_gpu and config.compute.precision == "bf16"
        options = {"dtype": "bfloat16" if is_half else "float32"}
        options["channels_last"] = config.compute.channels_last
        options["compiled"] = config.compute.compile
    augmenter: AbstractContextManager[Any] = open_augmenter(
        split.schema,
        config.augment,
        seed=config.seed,
        batch_size=batch_per_rank(config, ranks.count),
        statistics=statistics,
        backend=backend,
        device_id=ranks.device.index if is_on_gpu and backend != "reference" else None,
        # On a GPU they only copy; the lanes of all ranks would share out hundreds otherwise.
        threads=2 if is_on_gpu and backend == "dali" else None,
        **options,
    )
    return augmenter


def training_stream(
    loader: msdata.Loader, augmenter: Any, config: TrainConfig, device: torch.device
) -> Iterator[TensorBatch | EpochEnd]:
    """All that is left of a training: batches from where the loader is, a mark after each epoch."""
    with make_transfer(config, device) as transfer:
        while (epoch := loader.state_dict()["epoch"]) < config.epochs:
            states: deque[dict[str, Any]] = deque()
            images = stream(_noted(loader, states), augmenter, epoch)
            for number, (batch, image) in enumerate(images, start=1):
                state = states.popleft()
                # The last batch leaves the loader at the beginning of the next epoch.
                is_last = state["epoch"] != epoch
                yield to_tensors(
                    batch,
                    image,
                    config,
                    transfer,
                    ends_step=is_last or number % config.compute.accumulate == 0,
                    loader_state=state,
                )
            yield EpochEnd(epoch=epoch, stats=loader.stats())


def _noted(loader: msdata.Loader, states: deque[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The loader's batches; its state after each is put into `states`."""
    for batch in loader:
        states.append(loader.state_dict())
        yield batch


def evaluation_stream(
    loader: msdata.Loader, augmenter: Any, config: TrainConfig, device: torch.device
) -> Iterator[TensorBatch]:
    """Every sample of the loader's split once over all ranks, as it is: nothing is drawn.

    Every rank makes equally many steps; the last batch may be short, or empty. The loader is made
    with `is_training=False`.
    """
    loader.set_epoch(0)
    with make_transfer(config, device) as transfer:
        for batch, images in stream(loader, augmenter, 0, train=False):
            yield to_tensors(batch, images, config, transfer)


def evaluation_batches(
    data: msdata.Dataset,
    split: str,
    config: TrainConfig,
    *,
    ranks: Ranks | None = None,
    statistics: Statistics | None = None,
) -> Iterator[TensorBatch]:
    """Batches of a split for a trained network; opens what `evaluation_stream` needs.

    Args:
        data: the data set.
        split: name of the split.
        config: settings of the run.
        ranks: this rank's place and device; None means one rank on the CPU.
        statistics: the ones that the network was trained with, `read_statistics(run)`.

    Yields:
        Every sample once over all ranks; labels are NaN where the data set has none.

    Raises:
        UsageError: the split does not exist, or lacks a column that the network needs.
    """
    if ranks is None:
        ranks = Ranks(topology=msdata.Topology(), device=torch.device("cpu"))
    chosen = data.split(split)
    with (
        make_loader(chosen, config, ranks, is_training=False) as loader,
        make_augmenter(chosen, config, ranks, statistics) as augmenter,
        Prefetcher(evaluation_stream(loader, augmenter, config, ranks.device)) as batches,
    ):
        yield from batches


def make_transfer(config: TrainConfig, device: torch.device) -> DeviceTransfer:
    """What brings batches to a device; to be made in the thread that makes them."""
    use_device(device)
    is_last = config.compute.channels_last
    return DeviceTransfer(device, torch.channels_last if is_last else torch.contiguous_format)


def to_tensors(
    batch: Mapping[str, Any],
    images: Mapping[str, Any],
    config: TrainConfig,
    transfer: DeviceTransfer,
    **marks: Any,
) -> TensorBatch:
    """A loader's batch and its augmented images as tensors on the device.

    Args:
        batch: from the loader; its labels are taken.
        images: from the augmenter: NumPy arrays, tensors, or what speaks DLPack.
        config: settings of the run.
        transfer: to the network's device.
        **marks: further fields of `TensorBatch`.
    """
    columns = [np.asarray(batch[name], np.float32) for name in config.model.reddening]
    ebv = columns[0] if len(columns) == 1 else np.stack(columns, axis=1) if columns else None
    return TensorBatch(
        images={name: transfer.image(image) for name, image in images.items()},
        ebv=None if ebv is None else transfer.numbers(ebv),
        redshift=transfer.numbers(Target.of(config.model).of_batch(batch)),
        sample_id=np.array(batch["sample_id"]),
        **marks,
    )
