"""For PyTorch's `DataLoader`: a split by batches (IterableDataset) and by number (TorchDataset).

`Loader(as_torch=True)` needs no DataLoader and is the fastest. Take `IterableDataset` where a
framework insists on one, and `TorchDataset` for a sampler of your own. It stands alone, so that the
data sets have the module that users look for, and msdata itself starts without torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from msdata.dataset.dataset import Split
from msdata.errors import MissingPackageError, UsageError
from msdata.loader.loader import Loader
from msdata.loader.torch_dataset import TorchDataset, collate
from msdata.plan.order import DEFAULT_BATCH_SIZE, DEFAULT_LAST, num_steps
from msdata.topology import from_env

try:
    import torch
    from torch.utils import data
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError as error:
    raise MissingPackageError(
        "msdata.torch needs torch: run pip install 'msdata[train]'"
    ) from error

__all__ = ["IterableDataset", "TorchBatch", "TorchDataset", "collate"]


class TorchBatch(dict[str, Any]):
    """A batch by name, of which PyTorch's collation makes no batch of batches."""


def _refuse(batch: Any, **_: Any) -> Any:
    raise UsageError(
        "an IterableDataset of msdata makes batches itself; give DataLoader(dataset, "
        "batch_size=None), and the batch size to the data set"
    )


default_collate_fn_map[TorchBatch] = _refuse


class IterableDataset(data.IterableDataset[TorchBatch]):
    """A split as batches of tensors, for `DataLoader(dataset, batch_size=None)`.

    The batches, their order and their ranks are those of a `Loader`, which is made in the process
    that iterates: here, or in the one worker of a DataLoader, whatever starts it (fork, spawn,
    forkserver). It has the `state_dict` that torchdata's `StatefulDataLoader` saves and loads.

        dataset = msdata.torch.IterableDataset(data.split("train"), 128, seed=0)
        for batch in DataLoader(dataset, batch_size=None, num_workers=1): ...

    Args:
        split: the samples; `msdata.open(path).split("train")`.
        batch_size: samples per step on this rank.
        **options: those of `Loader`; by default `copy=True`, since DataLoaders keep batches.

    Raises:
        UsageError: an option is out of range, or `torch.distributed` runs with other ranks than
            the launcher's environment tells.
    """

    def __init__(self, split: Split, batch_size: int = DEFAULT_BATCH_SIZE, **options: Any) -> None:
        super().__init__()
        # Here, since a worker's process knows of no process group.
        fixed = {"topology": options.get("topology") or from_env(), "as_torch": True}
        self._arguments: dict[str, Any] = {"copy": True, **options, **fixed}
        self._split, self._batch_size = split, batch_size
        self._loader: Loader | None = None
        self._pid = 0
        self._state: dict[str, Any] | None = None
        # Shared with workers: those that are not persistent start where the last one ended.
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        """Steps per epoch, equal on every rank."""
        topology, last = self._arguments["topology"], self._arguments.get("remainder", DEFAULT_LAST)
        return num_steps(len(self._split), self._batch_size * topology.num_ranks, last)

    def __iter__(self) -> Iterator[TorchBatch]:
        """One epoch, or what is left of it after `load_state_dict`."""
        loader = self._open()
        loader.set_epoch(int(self._epoch[0]))
        for batch in loader:
            yield TorchBatch(batch)
        self._epoch[0] = loader.state_dict()["epoch"]

    def _open(self) -> Loader:
        worker = data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UsageError(
                f"num_workers must be 0 or 1, got {worker.num_workers}: threads fill the batches; "
                "give IterableDataset(threads=...), or use TorchDataset with several workers"
            )
        if self._loader is not None and self._pid != os.getpid():
            # Forked: its threads stayed behind.
            self._state, self._loader = self._loader.state_dict(), None
        if self._loader is None:
            self._pid = os.getpid()
            self._loader = Loader(self._split, self._batch_size, **self._arguments)
            if self._state is not None:
                self._loader.load_state_dict(self._state)
                self._state = None
        return self._loader

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; by default epochs count up from 0."""
        self._epoch[0] = epoch

    def state_dict(self) -> dict[str, Any]:
        """The state after the batches handed out so far, in the process that iterates."""
        return self._open().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration resume where the state was saved.

        Raises:
            UsageError: the state belongs to another data set, split, seed or policy.
        """
        self._open().load_state_dict(state)
        self._epoch[0] = state["epoch"]

    def close(self) -> None:
        """Ends the threads of this process; the next iteration starts others."""
        if self._loader is not None:
            self._state = self._loader.state_dict()
            self._loader.close()
            self._loader = None

    def __getstate__(self) -> dict[str, Any]:
        state = None if self._loader is None else self._loader.state_dict()
        return {**self.__dict__, "_loader": None, "_state": state or self._state}
