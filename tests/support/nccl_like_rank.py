"""A rank of a training whose group closes as NCCL does: it waits for peers that never come.

Arguments: the rank that fails, then those of `mstrain`. That rank's third step raises DataError,
and prints the time on stdout; what unwinds then finds a data thread that waits for its GPU.
"""

import os
import sys
import time

import torch.distributed as dist

from msdata.errors import DataError
from mstrain import distributed
from mstrain.cli import main
from mstrain.data.batches import Prefetcher
from mstrain.training.train_step import TrainStep


def hang(*_: object) -> None:
    """Longer than the test's patience."""
    time.sleep(600)


step = TrainStep.step


def failing_step(self: TrainStep, number: int) -> object:
    """The third one fails on one rank; the others learn of it from their control group alone."""
    if number == 2 and os.environ["RANK"] == sys.argv[1]:
        print(time.time(), flush=True)
        raise DataError("shard 3 is corrupt")
    return step(self, number)


distributed._is_nccl = lambda: True
dist.destroy_process_group = hang
Prefetcher.__exit__ = hang
TrainStep.step = failing_step
code = main(sys.argv[2:])
hang()
