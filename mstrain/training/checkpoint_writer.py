"""Writes checkpoints beside the training, which waits only while they are copied to the host.

Stands alone because it owns a thread: `checkpoint` knows files, `trainer` knows when. One
checkpoint is written at a time, so at most one copy of the state is held.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mstrain.data.transfer import record
from mstrain.distributed import Ranks
from mstrain.training.checkpoint import save_best, save_checkpoint

# Of a state, what the best weights are kept with.
_OF_BEST = ("model", "average", "progress")


class CheckpointWriter:
    """Keeps states of a run, in a thread of the first rank; a context manager.

    A write that fails is raised by the next `save` or `settle`, on all ranks. At the end of the
    context the write in flight is finished.

    Args:
        run: the run's folder.
        ranks: all of them call `save` and `settle`.
        extras: what every checkpoint holds beside the state.
        keep: how many checkpoints stay.
    """

    def __init__(self, run: Path, ranks: Ranks, extras: Mapping[str, Any], *, keep: int) -> None:
        self._run, self._ranks, self._extras, self._keep = run, ranks, extras, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: Mapping[str, Any], *, is_best: bool) -> None:
        """Keeps a state, as it is now.

        Args:
            state: tensors and plain values; `progress` has the step.
            is_best: keep the weights as the best ones, too.

        Raises:
            StorageError: an earlier state could not be written.
        """
        self.settle()
        if self._ranks.is_first:
            arguments = (host_copy(state), is_best)
            # Not a daemon: Python waits for it where an exception ends the program.
            self._thread = threading.Thread(
                target=self._write, args=arguments, name="mstrain-checkpoint"
            )
            self._thread.start()

    def settle(self) -> None:
        """Waits until all is written.

        Raises:
            StorageError: it could not be.
        """
        self._ranks.on_first(self._finish)

    def _finish(self) -> None:
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict[str, Any], is_best: bool) -> None:
        try:
            if is_best:
                best = {name: state[name] for name in _OF_BEST}
                save_best(self._run, {**best, **self._extras})
            step = state["progress"]["step"]
            save_checkpoint(self._run, {**state, **self._extras}, step=step, keep=self._keep)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *of_error: object) -> None:
        self._join()


def host_copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested state on the host, all of its tensors at one moment."""
    is_on_gpu = [False]

    def copied(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: copied(v) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copied(v) for v in value)
        if not isinstance(value, Tensor):
            return value
        if value.device.type == "cpu":
            return value.detach().clone()
        is_on_gpu[0] = True
        # torch keeps page-locked memory for the next copy.
        target = torch.empty_like(value, device="cpu", pin_memory=True)
        return target.copy_(value.detach(), non_blocking=True)

    found: dict[str, Any] = copied(state)
    if is_on_gpu[0]:
        record().synchronize()
    return found
