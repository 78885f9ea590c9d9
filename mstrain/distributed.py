"""The ranks of a training: joined, asked for sums, and stopped together.

Sums of network values run on the devices' own backend (NCCL on GPUs). What controls the run, such
as the stop flag, goes over a gloo group of its own, so that no GPU is waited for.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from msdata.core.signals import exit_code_of
from msdata.core.terminal import shown_line
from msdata.errors import MsdataError, UsageError
from msdata.topology import Topology, check_agreement, from_env, thread_limit

Result = TypeVar("Result")
# Results of the first rank that the others get, too.
_SENT = (str, int, float, dict, list, Path)
_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# Longer than any honest wait: first compilation, staging of a cache, a checkpoint on slow storage.
_TIMEOUT = timedelta(minutes=30)
_GPU_RANK_THREADS = 4


class LostRankError(MsdataError):
    """Another rank ended unexpectedly, so this one cannot continue. Exit code 1."""


class SharedError(MsdataError):
    """Every rank raises it at the same place; the first one says it for all.

    Attributes:
        code: exit code of a rank that stays silent.
    """

    code = 1


class Stopped(Exception):  # noqa: N818 - not an error: the caller asked for it
    """All ranks have agreed to stop; the state was saved."""


class FirstRankError(SharedError):
    """The first rank failed at what it does for all; it says so, the others end in silence.

    Args:
        message: what the first rank says.
        code: its exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This rank among the others.

    Attributes:
        topology: nodes and ranks.
        device: this rank's device.
        control: gloo group of all ranks; None where there is one rank.
    """

    topology: Topology
    device: torch.device
    control: Any = None

    @property
    def count(self) -> int:
        """Ranks of the job."""
        return self.topology.num_ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.topology.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place; it stays on its device."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def sum_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums of host numbers over the ranks."""
        if self.count == 1:
            return counts
        total = torch.from_numpy(counts.copy())
        dist.all_reduce(total, group=self.control)
        summed: NDArray[np.int64] = total.numpy()
        return summed

    def gather(self, value: Any) -> list[Any] | None:
        """What all ranks pass, in their order, on the first rank; None on the others.

        Args:
            value: must be picklable.
        """
        if self.count == 1:
            return [value]
        box = [None] * self.count if self.is_first else None
        dist.gather_object(value, box, dst=0, group=self.control)
        return box

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Has the first rank do something, for which the others wait.

        Args:
            work: what only the first rank runs; its result must be picklable if it is used.

        Returns:
            The result, on the first rank; on the others None where it cannot be sent.

        Raises:
            FirstRankError: on the other ranks, where it failed.
        """
        if self.count == 1:
            return work()
        failure: MsdataError | None = None
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                result = work()
                box[0] = result if isinstance(result, _SENT) else None
            except MsdataError as error:
                failure, box[1] = error, (str(error), exit_code_of(error))
        dist.broadcast_object_list(box, src=0, group=self.control)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise FirstRankError(*box[1])
        return result if self.is_first else cast(Result, box[0])


def choose_device(wanted: str, topology: Topology) -> torch.device:
    """The device of this rank.

    Args:
        wanted: "auto", "cpu" or "cuda".
        topology: its local rank is the number of the GPU.

    Raises:
        UsageError: a GPU is wanted and there is none for this rank.
    """
    num_gpus = 0 if wanted == "cpu" else torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not num_gpus):
        return torch.device("cpu")
    if not num_gpus:
        raise UsageError(
            "compute.device=cuda, and torch sees no GPU here; look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, whether this torch was built for CUDA, or give "
            "compute.device=cpu"
        )
    # Some launchers show each rank its own GPU only.
    number = topology.local_rank if num_gpus > 1 else 0
    if number >= num_gpus or (num_gpus == 1 and topology.ranks_per_node > 1 and wanted == "auto"):
        raise UsageError(
            f"{topology.ranks_per_node} ranks on a node with {num_gpus} GPU(s): give each rank a "
            "GPU of its own (--nproc-per-node), or give compute.device=cpu, or =cuda where each "
            "rank is shown its own GPU only"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def joined_ranks(topology: Topology, device: torch.device) -> Iterator[Ranks]:
    """Joins the ranks that the launcher started; alone where it started none.

    Args:
        topology: this rank's place.
        device: NCCL for GPUs, gloo for CPUs.

    Raises:
        UsageError: the launcher left no rendezvous, or the ranks see different nodes.
        LostRankError: a rank is lost inside.
    """
    if topology.num_ranks == 1:
        yield Ranks(topology=topology, device=device)
        return
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=topology.rank,
            world_size=topology.num_ranks,
            timeout=_TIMEOUT,
        )
    except ValueError as error:
        raise UsageError(
            f"the launcher started {topology.num_ranks} ranks but named no meeting point "
            f"({error}); start with torchrun, or set MASTER_ADDR and MASTER_PORT"
        ) from error
    except RuntimeError as error:
        raise _unreachable(error, topology) from error
    try:
        with failing_at_once(topology):
            try:
                control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
            except RuntimeError as error:
                raise _unreachable(error, topology) from error
            told: list[Any] = [None] * topology.num_ranks
            dist.all_gather_object(told, topology, group=control)
            check_agreement(told)
            yield Ranks(topology=topology, device=device, control=control)
    finally:
        dist.destroy_process_group()


def run_joined(
    device: str, work: Callable[[Ranks], Result | None], show: Callable[[Result], None]
) -> int:
    """Runs a command's work on all ranks; returns its exit code.

    Args:
        device: "auto", "cpu" or "cuda".
        work: called on every rank; what it returns is shown, unless it is None.
        show: prints the result.
    """
    topology = from_env()
    chosen = choose_device(device, topology)
    set_threads(None, topology)
    try:
        with joined_ranks(topology, chosen) as ranks:
            found = work(ranks)
    except FirstRankError as error:
        # The first rank says it for all.
        return error.code
    if found is not None:
        show(found)
    return 0


@contextmanager
def one_rank(name: str, device: str, threads: int | None = None) -> Iterator[Ranks]:
    """This process as the only rank; puts torch's settings back at the end.

    Args:
        name: the function of `mstrain` that is called, for the message.
        device: "auto", "cpu" or "cuda".
        threads: of torch; None chooses.

    Raises:
        UsageError: a launcher started several ranks, or the device does not exist.
    """
    topology = from_env()
    if topology.num_ranks > 1:
        raise UsageError(
            f"mstrain.{name}() runs in one process, got rank {topology.rank} of "
            f"{topology.num_ranks}; start ranks with torchrun -m mstrain.{name}"
        )
    chosen = choose_device(device, topology)
    num_threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng([chosen] if chosen.type == "cuda" else []):
            set_threads(threads, topology, chosen)
            yield Ranks(topology=topology, device=chosen)
    finally:
        torch.set_num_threads(num_threads)


def _unreachable(error: RuntimeError, topology: Topology) -> LostRankError:
    """What it means that the ranks do not find each other."""
    return LostRankError(
        f"rank {topology.rank} cannot reach the other ranks ({str(error).splitlines()[0][:160]}); "
        "look at their logs; where a host's own name means 127.0.1.1 (Debian), name the network's "
        "interface: GLOO_SOCKET_IFNAME=eth0"
    )


@contextmanager
def failing_at_once(topology: Topology) -> Iterator[None]:
    """Ends a rank that fails under NCCL before anything is closed.

    Closing would wait for collectives that its peers never end: NCCL's shutdown does, and all that
    waits for the GPU. The message would stay unprinted, and torchrun would wait for half an hour.

    Args:
        topology: this rank's place.

    Raises:
        LostRankError: a rank is lost inside; not under NCCL.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException as raised:
        error = raised if (lost := _lost_rank(raised, topology)) is None else lost
        if topology.num_ranks > 1 and _is_nccl():
            _say(error, topology)
            os._exit(error.code if isinstance(error, SharedError) else exit_code_of(error))
        if lost is not None:
            raise lost from raised
        raise


def _is_nccl() -> bool:
    return dist.get_backend() == "nccl"


def _say(error: BaseException, topology: Topology) -> None:
    if not isinstance(error, MsdataError):
        traceback.print_exception(error)
    elif topology.rank == 0 or not isinstance(error, SharedError):
        print(f"mstrain: rank {topology.rank}: {shown_line(str(error))}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _lost_rank(error: BaseException, topology: Topology) -> LostRankError | None:
    """What an error says of other ranks; None where it is of this one."""
    text = str(error)
    is_lost = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text
    if not (is_lost and isinstance(error, RuntimeError)):
        return None
    return LostRankError(
        f"rank {topology.rank} lost another rank ({text.splitlines()[0][:160]}); look at that "
        "rank's log; the same command resumes from the last checkpoint"
    )


def set_threads(wanted: int | None, topology: Topology, device: torch.device | None = None) -> None:
    """Sets torch's threads on the CPU.

    Args:
        wanted: None shares the cores out among the node's ranks, at most OMP_NUM_THREADS each; the
            1 of torchrun does not count, which sets it where there are many cores, too.
        topology: the job's nodes and ranks.
        device: the network's; beside a GPU torch only copies, and the loader wants the cores.
    """
    share = max(1, len(os.sched_getaffinity(0)) // topology.ranks_per_node)
    if (limit := thread_limit()) is not None:
        share = min(share, limit)
    is_on_gpu = device is not None and device.type == "cuda"
    torch.set_num_threads(wanted or (min(share, _GPU_RANK_THREADS) if is_on_gpu else share))


class StopRequest:
    """A stop flag that SIGUSR1 or SIGTERM sets on any rank, and all ranks see at the same step.

    The flag is all-reduced during the next step, so polling never blocks.
    """

    def __init__(self) -> None:
        self._is_requested = False
        self._is_agreed = False
        self._in_flight: tuple[Any, Tensor] | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _STOP_SIGNALS:
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *of_error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self._is_requested = True

    @property
    def is_requested(self) -> bool:
        """Whether a signal came to this rank."""
        return self._is_requested

    def poll(self, ranks: Ranks) -> bool:
        """Whether to stop now; every rank asks at the same steps and gets the same answer."""
        if ranks.count == 1:
            return self._is_requested
        self.settle()
        flag = torch.tensor([int(self._is_requested)])
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=ranks.control, async_op=True)
        self._in_flight = work, flag
        return self._is_agreed

    def settle(self) -> None:
        """Waits for the all-reduce in flight; all ranks call it before they part."""
        if self._in_flight is not None:
            work, flag = self._in_flight
            self._in_flight = None
            work.wait()
            self._is_agreed |= bool(flag.item())
