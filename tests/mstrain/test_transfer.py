"""Batches on their way to a device: nothing is given back before it has been read."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import augmenting
import numpy as np
import pytest
import torch
import training

import msdata
from msdata.augment import AugmentConfig, open_augmenter, stream
from mstrain import cli
from mstrain.config import ComputeConfig, DataConfig, TrainConfig
from mstrain.data import batches
from mstrain.data.transfer import DeviceTransfer, use_device
from mstrain.distributed import Ranks

CPU = torch.device("cpu")


class Event:
    """A moment on a GPU that has not come yet."""

    def __init__(self) -> None:
        self.is_over = False
        self.was_waited_for = False

    def query(self) -> bool:
        return self.is_over

    def synchronize(self) -> None:
        self.was_waited_for = self.is_over = True


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def transfer(events: list[Event]) -> DeviceTransfer:
    def record() -> Event:
        events.append(Event())
        return events[-1]

    return DeviceTransfer(CPU, torch.channels_last, record)


def a_source(sources: list[Any], value: float) -> torch.Tensor:
    source = torch.full((2, 3, 4, 5), value)
    sources.append(weakref.ref(source))
    return source


def test_an_image_is_held_until_the_copy_of_it_has_been_made(
    transfer: DeviceTransfer, events: list[Event]
) -> None:
    sources: list[Any] = []
    for number in range(3):
        copy = transfer.copied(a_source(sources, number))
        assert copy.is_contiguous(memory_format=torch.channels_last)
        assert (copy == number).all()
    gc.collect()
    assert [source() is None for source in sources] == [False, False, False]
    # The first two copies are made; the next batch gives back what they have read.
    events[0].is_over = events[1].is_over = True
    transfer.copied(a_source(sources, 3))
    gc.collect()
    assert [source() is None for source in sources] == [True, True, False, False]
    assert not any(event.was_waited_for for event in events)


def test_at_the_end_the_last_copies_are_waited_for(
    transfer: DeviceTransfer, events: list[Event]
) -> None:
    with transfer:
        for number in range(2):
            transfer.copied(torch.full((1, 1, 2, 2), float(number)))
    assert transfer.num_held == 0
    assert all(event.was_waited_for for event in events)


def test_on_the_cpu_images_are_taken_as_they_are_and_numbers_are_copied() -> None:
    transfer = DeviceTransfer(CPU, torch.contiguous_format)
    image, numbers = np.ones((2, 3, 4, 5), np.float32), np.arange(3.0)
    assert transfer.image(image).data_ptr() == image.ctypes.data
    taken = transfer.numbers(numbers)
    numbers[:] = 7
    assert taken.tolist() == [0, 1, 2]
    use_device(CPU)


class Pinned:
    """Page locks that only note whether the GPU was the thread's own."""

    def __init__(self) -> None:
        self.depth = 0
        self.num_pinned = 0

    @contextmanager
    def current(self) -> Any:
        self.depth += 1
        yield
        self.depth -= 1

    def pin(self, array: Any) -> bool:
        assert self.depth == 1, "DALI takes page-locked memory for that of the current GPU"
        self.num_pinned += 1
        return False

    def close(self) -> None:
        assert self.depth == 0


class LazyLane:
    """A pipeline that reads its inputs at the last moment, as a copy to a busy GPU may."""

    def __init__(self, spec: Any, batch_size: int, **options: Any) -> None:
        self.geometries = spec.geometries_of(is_interpolated=options["is_interpolated"])
        self._inputs: dict[str, Any] | None = None

    def start(self, inputs: dict[str, Any]) -> None:
        assert self._inputs is None, "a pipeline has one batch at a time"
        self._inputs = inputs

    def outputs(self) -> list[Any]:
        assert self._inputs is not None
        inputs, self._inputs = self._inputs, None
        return [np.array(inputs[f"image_{k}"].as_array())[..., 0] for k in range(3)]


@pytest.mark.parametrize("prefetch", [1, 2])
def test_the_ring_is_not_filled_again_before_the_last_moment_at_which_it_may_be_read(
    packed: Callable[..., Path],
    mantis_source: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefetch: int,
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is absent: pip install 'msdata[dali]'")
    monkeypatch.setattr("msdata.augment.dali_augmenter.Lane", LazyLane)
    split = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1")).split("train")
    config = AugmentConfig(fusion="late", scaling="none")
    augmenter: Any = open_augmenter(split.schema, config, seed=0, batch_size=3, backend="dali")
    augmenter._pinned = pinned = Pinned()
    wanted = {split.sample_id(i): split[i] for i in range(len(split))}
    seen = 0
    with augmenter, msdata.Loader(split, 3, prefetch=prefetch, threads=2) as loader:
        for epoch in range(3):
            # The ids are a batch's own; its arrays are the ring's.
            for batch, images in stream(loader, augmenter, epoch):
                for i, sample_id in enumerate(batch["sample_id"].tolist()):
                    for name in augmenting.SURVEYS:
                        assert np.array_equal(images[name][i], wanted[sample_id][name]), name
                        seen += 1
    assert seen == 3 * len(split) * 3
    assert pinned.num_pinned == 9 * -(-len(split) // 3)


def test_a_training_on_images_of_torch_has_the_losses_of_the_reference(
    galaxies: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # The command sets torch's threads for the whole process.
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    losses = {}
    for backend in ("reference", "torch"):
        words = training.words_of(galaxies, tmp_path / backend, epochs=1, backend=backend)
        assert cli.main(words) == 0
        losses[backend] = training.losses(tmp_path / backend)
    np.testing.assert_allclose(losses["torch"], losses["reference"], rtol=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float32")])
def test_on_a_gpu_torch_writes_images_as_the_network_takes_them(
    galaxies: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: str
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(batches, "open_augmenter", lambda *_, **options: asked.update(options))
    compute = ComputeConfig(precision=precision, compile=True)
    config = TrainConfig(data=DataConfig(backend="torch"), compute=compute)
    ranks = Ranks(topology=msdata.Topology(), device=torch.device("cuda", 1))
    batches.make_augmenter(msdata.open(galaxies).split("train"), config, ranks)
    form = {"device_id": 1, "dtype": dtype, "channels_last": True, "compiled": True}
    assert asked.items() >= form.items()


def test_codes_go_to_a_gpu_where_torch_decodes_them(
    packed: Callable[..., Path], mantis_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1", "--quantize", "4"))
    plain = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1"))
    asked: list[bool] = []
    monkeypatch.setattr(msdata, "Loader", lambda *_, **options: asked.append(options["decode"]))
    monkeypatch.setattr(batches, "index_columns", lambda *_, **options: [])
    for data, backend, device in [
        (coded, "torch", torch.device("cuda", 0)),
        (plain, "torch", torch.device("cuda", 0)),
        (coded, "dali", torch.device("cuda", 0)),
        (coded, "torch", CPU),
    ]:
        config = TrainConfig(data=DataConfig(backend=backend))
        ranks = Ranks(topology=msdata.Topology(), device=device)
        batches.make_loader(data.split("train"), config, ranks)
    assert asked == [False, True, True, True]


def test_tensors_in_the_networks_layout_are_taken_as_they_are(transfer: DeviceTransfer) -> None:
    image = torch.rand(2, 3, 4, 5).to(torch.bfloat16, memory_format=torch.channels_last)
    assert transfer.image(image) is image
    assert transfer.num_held == 0
