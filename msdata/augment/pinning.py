"""Page-locks the loader's ring, so that the GPU copies from it by itself while the CPU goes on.

Memory that is not locked is staged by the driver, and the caller waits meanwhile. The ring is one
mapping a buffer, used over and over: each is locked when it is first met. CUDA's driver interface
is called as it is (ctypes), so that neither torch nor CuPy is needed for three functions.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)

_SUCCESS = 0
# Somebody else has locked it: as good for us, and not ours to unlock.
_ALREADY_REGISTERED = 712
# For all contexts of the process, not the one of the moment.
_PORTABLE = 1


class PinnedBuffers:
    """The buffers that were page-locked for a GPU; `close` unlocks them.

    Args:
        device_id: number of the GPU.
        driver: CUDA's driver library; None loads it.
    """

    def __init__(self, device_id: int, driver: Any = None) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1") if driver is None else driver
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        # Address -> the mapping, held so that it is not unmapped while it is locked, and whether it
        # is locked; those that were refused are not tried again. No array is held: the loader would
        # take its batch for one in use.
        self._buffers: dict[int, tuple[Any, bool]] = {}
        self._ours: list[int] = []
        self._check("cuInit", self._driver.cuInit(0))
        self._check("cuDeviceGet", self._driver.cuDeviceGet(ctypes.byref(self._device), device_id))
        retained = self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), self._device)
        self._check("cuDevicePrimaryCtxRetain", retained)

    def pin(self, array: NDArray[Any]) -> bool:
        """Locks the buffer that an array lies in, once.

        Args:
            array: of a batch of the loader. Any other array is left as it is: a new one a batch
                would cost more to lock than to stage.

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
        code = self._within_context(
            lambda: self._driver.cuMemHostRegister_v2(
                ctypes.c_void_p(address), ctypes.c_size_t(nbytes), _PORTABLE
            )
        )
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
        """Makes the GPU the calling thread's current one for a while, whatever it was before.

        A thread begins with the first GPU; DALI takes page-locked memory for the current one's.
        """
        self._check("cuCtxPushCurrent", self._driver.cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _within_context(self, call: Any) -> int:
        with self.current():
            return int(call())

    def _check(self, name: str, code: int) -> None:
        if code != _SUCCESS:
            raise OSError(f"{name} failed with CUDA error {code}")

    def close(self) -> None:
        """Unlocks what was locked here."""
        while self._ours:
            address = ctypes.c_void_p(self._ours.pop())
            self._within_context(lambda place=address: self._driver.cuMemHostUnregister(place))
        if self._context:
            self._driver.cuDevicePrimaryCtxRelease_v2(self._device)
            self._context = ctypes.c_void_p()
        self._buffers.clear()

    def __enter__(self) -> PinnedBuffers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
