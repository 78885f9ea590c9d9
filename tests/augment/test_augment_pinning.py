"""Page locks on the loader's ring, with a driver that writes down what it is asked for."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from msdata.augment.pinning import PinnedBuffers, mapped_buffer
from msdata.loader.ring import BatchBuffer
from msdata.schema import MANTIS_SHRIMP


class Driver:
    """CUDA's driver as far as page locks go: refuses what a real one would."""

    def __init__(self, register_code: int = 0, init_code: int = 0) -> None:
        self.locked: dict[int, int] = {}
        self.num_registered = 0
        self.depth = 0
        self.is_retained = False
        self._register_code = register_code
        self._init_code = init_code

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._init_code

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = 77
        self.is_retained = True
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        self.is_retained = False
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        assert context.value == 77
        self.depth += 1
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.depth -= 1
        return 0

    def cuMemHostRegister_v2(self, address: Any, nbytes: Any, flags: int) -> int:  # noqa: N802
        assert self.depth == 1
        assert address.value not in self.locked
        self.num_registered += 1
        if self._register_code == 0:
            self.locked[address.value] = nbytes.value
        return self._register_code

    def cuMemHostUnregister(self, address: Any) -> int:  # noqa: N802
        assert self.depth == 1
        del self.locked[address.value]
        return 0


def test_each_buffer_of_the_ring_is_locked_once_and_unlocked_at_the_end() -> None:
    driver = Driver()
    ring = [BatchBuffer(MANTIS_SHRIMP, 3) for _ in range(2)]
    with PinnedBuffers(1, driver) as pinned:
        for num_samples in (3, 2, 3):
            for buffer in ring:
                for array in buffer.lend(num_samples).values():
                    assert pinned.pin(array)
        assert driver.num_registered == 2
        assert sorted(driver.locked.values()) == [buffer.nbytes for buffer in ring]
        assert driver.is_retained
    assert not driver.locked
    assert not driver.is_retained
    assert driver.depth == 0


def test_a_locked_buffer_outlives_its_loader() -> None:
    driver = Driver()
    pinned = PinnedBuffers(0, driver)
    buffer = BatchBuffer(MANTIS_SHRIMP, 2)
    address = mapped_buffer(buffer.arrays["galex"])
    assert address is not None
    assert pinned.pin(buffer.arrays["galex"])
    del buffer
    # Its pages are still ours: a store into memory that was unmapped would end the process.
    address[:] = 1
    pinned.close()
    pinned.close()
    assert not driver.locked


def test_arrays_that_are_not_of_the_ring_are_left_alone() -> None:
    driver = Driver()
    with PinnedBuffers(0, driver) as pinned:
        assert not pinned.pin(np.zeros((4, 5)))
        assert not pinned.pin(np.zeros((4, 5))[::2].reshape(-1))
        assert not pinned.pin(np.frombuffer(bytearray(80)))
    assert driver.num_registered == 0


def test_a_refused_lock_is_said_once_and_not_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = Driver(register_code=2)
    array = BatchBuffer(MANTIS_SHRIMP, 2).arrays["galex"]
    with caplog.at_level(logging.WARNING), PinnedBuffers(0, driver) as pinned:
        assert not pinned.pin(array)
        assert not pinned.pin(array)
    assert driver.num_registered == 1
    assert [
        r.message for r in caplog.records if "cannot be page-locked (CUDA error 2)" in r.message
    ]
    assert len(caplog.records) == 1


def test_what_somebody_else_has_locked_is_used_and_left_locked() -> None:
    driver = Driver(register_code=712)
    with PinnedBuffers(0, driver) as pinned:
        assert pinned.pin(BatchBuffer(MANTIS_SHRIMP, 2).arrays["galex"])
    assert driver.num_registered == 1


def test_a_driver_that_fails_is_named() -> None:
    with pytest.raises(OSError, match="cuInit failed with CUDA error 100"):
        PinnedBuffers(0, Driver(init_code=100))
