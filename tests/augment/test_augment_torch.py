"""What the `torch` backend has beyond the contract: codes, bfloat16, one graph, one device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import augmenting
import numpy as np
import pytest
from augmenting import CONFIGS, REFERENCE, on_host

import msdata
from msdata.augment import AugmentConfig, open_augmenter, stream
from msdata.augment.spec import make_spec
from msdata.augment.torch_augmenter import TorchAugmenter, parameters
from msdata.errors import MissingPackageError, UsageError
from msdata.schema import MANTIS_SHRIMP

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'msdata[train]'")
images_module = pytest.importorskip("msdata.augment.torch_images")

# Codes that stand for values that are not finite, or -0, from the lowest code of a type on.
SPECIALS = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x7F800000], "<u4")


def opened(config: AugmentConfig, **options: Any) -> Any:
    options = {"statistics": augmenting.make_statistics(), "seed": 1, **options}
    return augmenting.opened_at(("torch", None), config, **options)


def coded(codes: Any, steps: Any) -> Any:
    """The pixels that codes stand for, in NumPy, as the format defines them."""
    step = steps[:, :, None, None]
    pixels = (codes.astype(np.float32) - np.float32(0.5) * np.sign(codes)) * step
    if codes.dtype == np.int32:
        pixels = np.where(step == 0, codes.view(np.float32), pixels)
    for i, bits in enumerate(SPECIALS):
        is_special = (codes == np.iinfo(codes.dtype).min + i) & (step != 0)
        pixels = np.where(is_special, bits[None].view(np.float32), pixels)
    return pixels.astype(np.float32)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_codes_become_the_images_of_their_pixels(dtype: Any) -> None:
    batch = augmenting.noise_batch(3)
    random = np.random.default_rng(0)
    codes = random.integers(-3000, 3000, batch["panstarrs"].shape).astype(dtype)
    low = np.iinfo(dtype).min
    codes[0, 0, 80, 80:86] = np.arange(low, low + 6)
    steps = random.uniform(0.1, 3, codes.shape[:2]).astype(np.float32)
    if dtype == np.int32:
        codes[1, 2] = batch["panstarrs"][1, 2].view(np.int32)
        codes[1, 2, 50, 50:52] = np.array([np.nan, -np.inf], np.float32).view(np.int32)
        steps[1, 2] = 0
    pixels = coded(codes, steps)
    assert np.isnan(pixels).any()
    given = {**batch, "panstarrs": codes, "panstarrs_step": steps}
    config = AugmentConfig(scaling="asinh")
    with opened(config) as augmenter:
        found = on_host(augmenter.run(given, 0))["image"]
        assert np.array_equal(
            found, on_host(augmenter.run({**batch, "panstarrs": pixels}, 0))["image"]
        )
    decoded = images_module.decode_finite(torch.from_numpy(codes), torch.from_numpy(steps))
    assert np.array_equal(decoded, np.where(np.isfinite(pixels), pixels, 0))
    with (
        augmenting.opened_at(REFERENCE, AugmentConfig()) as reference,
        pytest.raises(UsageError, match="holds codes of panstarrs, not pixels; open the loader"),
    ):
        reference.run(given, 0)


def test_codes_of_a_loader_become_the_images_of_its_pixels(
    packed: Callable[..., Path], mantis_source: Path
) -> None:
    data = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1", "--quantize", "4"))
    split, found = data.split("train"), {}
    for decode in (True, False):
        with (
            msdata.Loader(split, 5, seed=0, threads=1, decode=decode) as loader,
            opened(AugmentConfig(scaling="asinh"), batch_size=5) as augmenter,
        ):
            for batch, images in stream(loader, augmenter, 0):
                assert (batch["panstarrs"].dtype.kind == "f") == decode
                for sample_id, image in zip(batch["sample_id"], images["image"], strict=True):
                    found[str(sample_id), decode] = image.numpy().copy()
    assert len(found) == 2 * len(split)
    for (sample_id, decode), image in found.items():
        assert np.array_equal(image, found[sample_id, not decode])


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_images_come_in_the_layout_and_precision_of_the_network(fusion: str) -> None:
    config = AugmentConfig(fusion=fusion)
    batch = augmenting.noise_batch(3)
    with (
        opened(config) as plain,
        opened(config, dtype="bfloat16", channels_last=True) as augmenter,
    ):
        wanted = plain.run(batch, 0)
        for name, image in augmenter.run(batch, 0).items():
            assert image.is_contiguous(memory_format=torch.channels_last)
            # The same numbers that autocast would make of float32 ones.
            assert torch.equal(image, wanted[name].to(torch.bfloat16))


def test_compiled_it_is_one_graph_with_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compile_with = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile_with(f, backend=counter, **options)
    )
    torch._dynamo.reset()
    config = AugmentConfig(**CONFIGS["everything"])
    with opened(config) as plain, opened(config, compiled=True) as augmenter:
        for num_samples in (2, 3, 4, 1):
            batch = augmenting.noise_batch(num_samples)
            wanted, found = plain.run(batch, 0), augmenter.run(batch, 0)
            assert all(torch.equal(found[key], image) for key, image in wanted.items())
    # Of any number of samples.
    assert counter.frame_count == 1


class OneDevice(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[name-defined,misc]
    """Refuses operations with tensors of two devices, as a GPU would, and counts them all."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "meta", f"{func} with a tensor of {tensor.device}"
        return result


@pytest.mark.parametrize("name", CONFIGS)
def test_every_operation_runs_on_the_device_and_none_waits_for_it(name: str) -> None:
    config = AugmentConfig(**{"scaling": "asinh", **CONFIGS[name]})
    spec = make_spec(MANTIS_SHRIMP, config, 0, augmenting.make_statistics())
    # A device without values: whoever asks for one, and so would wait for a GPU, gets an error.
    device = torch.device("meta")
    function = images_module.ImageFunction(spec, device, dtype="bfloat16", channels_last=True)
    batch = augmenting.noise_batch(2)
    draws = spec.draws(batch, 0, True)
    steps = [np.ones((2, len(g.bands)), np.float32) for g in spec.geometries]
    given = parameters(spec, draws, steps)
    width = sum(values[0].size for values in given.values())
    with OneDevice() as mode:
        images = function(
            [torch.empty(a.shape, dtype=torch.int32, device=device) for a in spec.arrays(batch)],
            torch.empty((2, width), device=device),
            [(key, values.shape[1:]) for key, values in given.items()],
            is_interpolated=bool(draws.is_interpolated.any()),
        )
    assert mode.num_operations > 10
    assert {key: tuple(image.shape[1:]) for key, image in images.items()} == spec.shapes


class Gpu:
    """`torch.cuda` as far as a queue uses it, on the CPU: writes down what is asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        gpu = self

        class Stream:
            def __init__(self, device: Any, priority: int = 0) -> None:
                self.name = f"stream of {device}"

            def synchronize(self) -> None:
                gpu.log.append("wait for the stream")

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                assert blocking, "a waiting thread would take a core"

            def record(self, stream: Any) -> None:
                gpu.log.append("record")

            def synchronize(self) -> None:
                gpu.log.append("wait")

        self.Stream, self.Event = Stream, Event

    def device_count(self) -> int:
        return 2

    @contextmanager
    def stream(self, stream: Any) -> Any:
        self.log.append(f"enter {stream.name}")
        yield
        self.log.append("leave")

    def current_stream(self, device: Any) -> Any:
        return f"the caller's on {device}"


class Pinned:
    """Page locks of nothing but the arrays of a batch."""

    def __init__(self, device_id: int) -> None:
        assert device_id == 1
        self.is_closed = False

    def pin(self, array: Any) -> bool:
        return bool(array.ndim == 4)

    def close(self) -> None:
        self.is_closed = True


class Sent:
    """A tensor on its way: notes how it was sent, and stays on the CPU."""

    def __init__(self, gpu: Gpu, tensor: Any) -> None:
        self._gpu, self._tensor, self._is_copied = gpu, tensor, False

    def pin_memory(self) -> Sent:
        self._is_copied = True
        return self

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        assert non_blocking
        assert str(device) == "cuda:1"
        self._gpu.log.append("copy of page-locked copy" if self._is_copied else "copy of the ring")
        return self._tensor


def test_a_gpu_has_its_own_stream_and_images_are_lent_to_the_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch, "cuda", gpu)
    monkeypatch.setattr(images_module, "PinnedBuffers", Pinned)
    take = torch.from_numpy
    lent: list[str] = []
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda image, stream: lent.append(stream), raising=False
    )
    spec = make_spec(MANTIS_SHRIMP, AugmentConfig(fusion="late", scaling="none"), 0, None)
    # The function's own tensors stay here.
    function_type = images_module.ImageFunction

    def make_function(spec: Any, device: Any, **form: Any) -> Any:
        gpu.log.append("make constants")
        return function_type(spec, torch.device("cpu"), **form)

    monkeypatch.setattr(images_module, "ImageFunction", make_function)
    augmenter = TorchAugmenter(spec, 4, device_id=1)
    # Constants of the function are made on the stream that reads them.
    assert gpu.log == ["enter stream of cuda:1", "make constants", "leave"]
    gpu.log.clear()
    monkeypatch.setattr(torch, "from_numpy", lambda array: Sent(gpu, take(array)))
    batch = augmenting.noise_batch(2)
    copies = ["copy of the ring"] * 3 + ["copy of page-locked copy"]
    submitted = ["enter stream of cuda:1", *copies, "record", "leave"]
    with augmenter:
        augmenter.submit(batch, 0)
        augmenter.submit(batch, 1)
        # Nothing waited: the second batch is queued behind the first.
        assert gpu.log == submitted * 2
        images = augmenter.result()
        assert gpu.log[len(submitted) * 2 :] == ["wait"]
        assert lent == ["the caller's on cuda:1"] * len(images)
        # An empty batch needs no GPU.
        augmenter.result()
        augmenter.run(augmenting.noise_batch(0), 0)
        assert gpu.log.count("record") == 2
    assert gpu.log[-1] == "wait for the stream"
    assert augmenter._queue._pinned.is_closed
    with pytest.raises(UsageError, match=r"torch cannot use GPU 2 \(it sees 2\); .*device_id=None"):
        TorchAugmenter(spec, 4, device_id=2)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "msdata.augment.torch_images", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'msdata\[train\]'"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1, backend="torch")
