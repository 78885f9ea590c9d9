"""Page-lock the loader's ring, so that the GPU copies from it asynchronously.

The driver stages memory that is not locked, while the caller waits. The ring is one mapping per
buffer, used over and over: each is locked at its first use. CUDA's driver is called through ctypes,
so that three functions need neither torch nor CuPy.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)

_SUCCESS = 0
# Other code has locked it, and unlocks it.
_ALREADY_REGISTERED = 712
# For all contexts of the process, not the one of the moment.
_PORTABLE = 1


class PinnedBuffers:
    """The buffers that are page-locked for a GPU; `close` unlocks them.

    Args:
        device_id: number of the GPU.
        driver: CUDA's driver library; None loads it.
    """

    def __init__(self, device_id: int, driver: Any = None) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1") if driver is None else driver
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        # Address -> the mapping, held so that it is not unmapped while it is locked, and whether it
        # is locked; refused ones are not tried again. No array is held: the loader would
        # count its batch as in use.
        self._buffers: dict[int, tuple[Any, bool]] = {}
        self._ours: list[int] = []
        self._check("cuInit", self._driver.cuInit(0))
        self._check("cuDeviceGet", self._driver.cuDeviceGet(ctypes.byref(self._device), device_id))
        retained = self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), self._device)
        self._check("cuDevicePrimaryCtxRetain", retained)

    def pin(self, array: NDArray[Any]) -> bool:
        """Locks the buffer that an array lies in, once.

        Args:
            array: an array of a loader's batch. Other arrays are left alone: locking new memory per
                batch would cost more than staging.

        Returns:
            Whether it lies in locked memory.
        """
        buffer = mapped_buffer(array)
        if buffer is None:
            return False
        address = buffer.ctypes.data
        if address not in self._buffers:
            self._buffers[address] = (buffer.base, self._register(address, buffer.nbytes))
        return self._buffers[address][1]

    def _register(self, address: int, nbytes: int) -> bool:
        place, size = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
        with self.current():
            code = int(self._driver.cuMemHostRegister_v2(place, size, _PORTABLE))
        if code == _SUCCESS:
            self._ours.append(address)
        elif code != _ALREADY_REGISTERED:
            _LOG.warning(
                "a batch buffer of %d MiB cannot be page-locked (CUDA error %d): copies to the GPU "
                "are staged, which is slower",
                nbytes >> 20,
                code,
            )
        return code in (_SUCCESS, _ALREADY_REGISTERED)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the GPU the calling thread's current one within the context.

        A thread starts on the first GPU; DALI assumes that page-locked memory is the current GPU's.
        """
        self._check("cuCtxPushCurrent", self._driver.cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _check(self, name: str, code: int) -> None:
        if code != _SUCCESS:
            raise OSError(f"{name} failed with CUDA error {code}")

    def close(self) -> None:
        """Unlocks what was locked here."""
        while self._ours:
            with self.current():
                self._driver.cuMemHostUnregister(ctypes.c_void_p(self._ours.pop()))
        if self._context:
            self._driver.cuDevicePrimaryCtxRelease_v2(self._device)
            self._context = ctypes.c_void_p()
        self._buffers.clear()

    def __enter__(self) -> PinnedBuffers:
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()


def mapped_buffer(array: NDArray[Any]) -> NDArray[Any] | None:
    """The whole mapping that an array is a part of, as the ring's buffers are; else None."""
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    memory = owner.base
    if isinstance(memory, memoryview):
        memory = memory.obj
    return owner if isinstance(memory, mmap.mmap) else None
