"""What the `dali` backend has beyond the contract of test_augment_backends.py."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import augmenting
import numpy as np
import pytest
from augmenting import REFERENCE

import msdata
from msdata.augment import AugmentConfig, open_augmenter, stream
from msdata.augment.dali import make_pipeline
from msdata.augment.spec import make_spec
from msdata.errors import MissingPackageError, UsageError
from msdata.schema import MANTIS_SHRIMP

pytest.importorskip("nvidia.dali", reason="DALI is absent: pip install 'msdata[dali]'")
# DALI itself warns of deprecated modules and a missing GPU.
pytestmark = pytest.mark.filterwarnings("ignore")


def opened(device_id: int | None = None, **options: Any) -> Any:
    config = AugmentConfig(**{"scaling": "none", **options})
    statistics = augmenting.make_statistics()
    return augmenting.opened_at(("dali", device_id), config, statistics=statistics, threads=1)


def test_torch_takes_the_images_without_a_copy_and_may_keep_them() -> None:
    torch = pytest.importorskip("torch")
    batches = [augmenting.noise_batch(n, seed=n) for n in (4, 4, 3, 4, 2)]
    with opened() as dali:
        kept, wanted = [], []
        for _, images in stream(batches, dali, 0):
            tensor = torch.from_dlpack(images["image"])
            assert tensor.data_ptr() == images["image"].data_ptr()
            assert tensor.is_contiguous()
            kept.append(tensor)
            wanted.append(tensor.clone())
        assert [len(t) for t in kept] == [4, 4, 3, 4, 2]
    for tensor, values in zip(kept, wanted, strict=True):
        assert torch.equal(tensor, values)


def test_the_pipeline_of_a_gpu_can_be_laid_out_without_one() -> None:
    for options in augmenting.CONFIGS.values():
        config = AugmentConfig(**{"scaling": "asinh", **options})
        spec = make_spec(MANTIS_SHRIMP, config, 0, augmenting.make_statistics())
        for is_interpolated in (True, False):
            make_pipeline(spec, 8, is_interpolated=is_interpolated, device_id=0, num_threads=1)


def operators(**options: Any) -> Counter[tuple[str, str]]:
    """Operators of the pipeline for a GPU, by kind and device."""
    config = AugmentConfig(**{"scaling": "mantis", **options})
    spec = make_spec(MANTIS_SHRIMP, config, 0, augmenting.make_statistics())
    pipeline = make_pipeline(spec, 8, is_interpolated=True, device_id=0, num_threads=1)
    found: dict[int, Any] = {}
    waiting = [edge.source for edge in pipeline._graph_out]
    while waiting:
        operator = waiting.pop()
        if operator is not None and id(operator) not in found:
            found[id(operator)] = operator
            waiting += [edge.source for edge in operator.inputs]
    return Counter((o.name.strip("_0123456789"), o.outputs[0].device) for o in found.values())


def test_a_batch_takes_few_kernels() -> None:
    # Neither of these is a kernel.
    free = {"Reshape", "Reinterpret", "Constant", "image", "matrix"}
    early = operators()
    kernels = {name: num for (name, _), num in early.items() if name not in free}
    # Three per survey keep NaN out, four scale all nine bands at once.
    assert kernels == {"ArithmeticGenericOp": 3 * 3 + 4, "WarpAffine": 3, "Cat": 1}
    # What is added to images is added on the GPU, from a bank that lies there.
    everything = operators(**augmenting.CONFIGS["everything"])
    assert everything["ArithmeticGenericOp", "gpu"] == 3 * 3 + 3 + 3
    assert everything["bank", "gpu"] == everything["Slice", "gpu"] == 1
    on_host = {name for name, device in everything if device == "cpu"}
    assert on_host == {"image", "matrix", "blur", "place", "noise", "kept"}


def test_memory_that_dali_reads_is_held_until_it_has() -> None:
    from nvidia.dali import tensors

    with opened(**augmenting.CONFIGS["everything"]) as dali:
        dali.submit(augmenting.noise_batch(2), 0)
        inputs = dali._in_flight[0].inputs
        assert len(inputs) == 13
        # Of bare arrays a thread of DALI would drop the last reference, and wait for Python's lock.
        assert {type(values) for values in inputs.values()} == {tensors.TensorListCPU}
        dali.result()


@pytest.mark.skipif(augmenting.num_gpus() > 0, reason="there is a GPU")
def test_an_absent_gpu_is_said_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"DALI cannot use GPU 0 .*device_id=None for the CPU"):
        opened(0)


def test_without_dali_the_extra_and_torch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    cures = r"pip install 'msdata\[dali\]'.* or use backend='torch' \(data.backend=torch"
    with pytest.raises(MissingPackageError, match=cures):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1, backend="dali")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"for CUDA 13$"):
        open_augmenter(MANTIS_SHRIMP, AugmentConfig(), seed=0, batch_size=1, backend="dali")


@augmenting.NEEDS_GPU
def test_images_on_the_gpu_become_tensors_there_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")
    batches = [augmenting.noise_batch(4, seed=n) for n in range(6)]
    config = AugmentConfig(scaling="none")
    with opened(0) as dali, augmenting.opened_at(REFERENCE, config) as reference:
        for batch, images in stream(batches, dali, 0):
            tensor = torch.from_dlpack(images["image"])
            assert tensor.is_cuda
            assert tensor.data_ptr() == images["image"].data_ptr()
            wanted = reference.run(batch, 0)["image"]
            assert np.abs(tensor.cpu().numpy() - wanted).max() < 0.2


@augmenting.NEEDS_GPU
def test_the_ring_is_page_locked_once_and_unlocked_at_the_end(
    packed: Callable[..., Path], mantis_source: Path
) -> None:
    split = msdata.open(packed(mantis_source, "--split", "0.9,0,0.1")).split("train")
    config = AugmentConfig(scaling="none")
    with (
        opened(0) as dali,
        augmenting.opened_at(REFERENCE, config) as reference,
        msdata.Loader(split, 5, seed=0, prefetch=2, threads=2) as loader,
    ):
        for _ in range(2):
            for batch, images in stream(loader, dali, 0):
                wanted = reference.run(batch, 0)["image"]
                assert np.abs(augmenting.on_host(images)["image"] - wanted).max() < 0.2
        pinned = dali._pinned
        assert 1 <= len(pinned._ours) <= 5
    assert not pinned._ours
