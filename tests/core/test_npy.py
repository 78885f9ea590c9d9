"""Headers of `.npy` content."""

from __future__ import annotations

import gc
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from msdata.core.npy import read_npy_header


def test_many_threads_read_headers_at_once() -> None:
    # CPython 3.11's parser raises SystemError if another thread parses during its garbage
    # collection, which the callback provokes.
    shape = (1,) * 30
    file = io.BytesIO()
    np.save(file, np.zeros(shape, np.float32))

    def give_way(phase: str, _info: dict[str, int]) -> None:
        time.sleep(0)

    def read(_number: int) -> bool:
        found = [read_npy_header(io.BytesIO(file.getvalue())) for _ in range(100)]
        return found == [(shape, False, np.dtype(np.float32))] * 100

    thresholds = gc.get_threshold()
    gc.callbacks.append(give_way)
    gc.set_threshold(5, 1, 1)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(8)))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(give_way)
