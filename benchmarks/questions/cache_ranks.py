"""The parent's side of the ranks of `benchmarks.questions.cache`: starts, tells and checks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.questions.node_steps import Nodes
from msdata.errors import DataError, StorageError

ROOT = Path(__file__).parents[2]
ANSWER_S, END_S = 600.0, 20.0


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of all ranks, every sample of which came once.

    Attributes:
        number: of the epoch.
        seconds: of the slowest rank.
        tier_samples: int64 (nodes, 4), by reading node and tier.
        tier_bytes: int64 (nodes, 4), likewise.
    """

    number: int
    seconds: float
    tier_samples: NDArray[np.int64]
    tier_bytes: NDArray[np.int64]


def joined(name: str, answers: Sequence[Mapping[str, Any]], num_samples: int) -> Epoch:
    """What all ranks say of an epoch.

    Args:
        name: of the contestant.
        answers: rank by rank.
        num_samples: of the split.

    Raises:
        DataError: not every sample came exactly once.
    """
    times = np.zeros(num_samples, np.int64)
    for answer in answers:
        bits = np.frombuffer(bytes.fromhex(answer["seen"]), np.uint8)
        times += np.unpackbits(bits, count=num_samples)
    came = sum(answer["num_samples"] for answer in answers)
    if came != num_samples or (times != 1).any():
        raise DataError(
            f"{name}, epoch {answers[0]['epoch']}: of {num_samples} samples "
            f"{int((times == 0).sum())} did not come, and {came} came in all; its figures are void"
        )
    return Epoch(
        number=answers[0]["epoch"],
        seconds=max(answer["seconds"] for answer in answers),
        tier_samples=np.array([answer["tiers"] for answer in answers]),
        tier_bytes=np.array([answer["tier_bytes"] for answer in answers]),
    )


class CacheRanks:
    """One rank a node, told and heard together; a context manager.

    Args:
        nodes: where; an `srun` on real ones, processes of this machine on pretended ones.
        num_nodes: how many.
        order: what `benchmarks.questions.cache_rank` is told beside that.
        log: file for what they say on stderr.
    """

    def __init__(self, nodes: Nodes, num_nodes: int, order: Mapping[str, Any], log: Path) -> None:
        self._num_nodes, self._log = num_nodes, log
        self._processes: list[subprocess.Popen[bytes]] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        path = f"{ROOT}{os.pathsep}{nodes.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        shared = nodes.per_machine(num_nodes) > 1
        order = {**order, "num_nodes": num_nodes, "share_a_machine": shared}
        with log.open("ab") as errors:
            for command in _commands(nodes, num_nodes, order):
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**nodes.environ, "PYTHONPATH": path},
                )
                self._processes.append(process)

    def __enter__(self) -> CacheRanks:
        try:
            self._hear()
        except BaseException:
            self.__exit__()
            raise
        return self

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Gives all ranks a command; their answers, rank by rank.

        Raises:
            StorageError: a rank has ended, or failed.
        """
        line = (json.dumps({"do": do, **arguments}) + "\n").encode()
        for process in self._processes:
            assert process.stdin is not None
            # Whoever has ended is found when it does not answer.
            with suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
        return self._hear()

    def _hear(self) -> list[dict[str, Any]]:
        found = [answer for process in self._processes for answer in self._answers(process)]
        for answer in found:
            if "error" in answer:
                raise StorageError(f"rank {answer['rank']}: {answer['error']}")
        return sorted(found, key=lambda answer: int(answer["rank"]))

    def _answers(self, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        assert process.stdout is not None
        # One that hangs is ended, and is then one that has ended.
        watch = threading.Timer(ANSWER_S, process.kill)
        watch.start()
        try:
            for _ in range(self._num_nodes // len(self._processes)):
                line = b"-"
                # Launchers may have a word of their own to say.
                while line and not line.startswith(b"{"):
                    line = process.stdout.readline()
                if not line:
                    raise StorageError(f"a rank has ended; its last words are in {self._log}")
                yield json.loads(line)
        finally:
            watch.cancel()

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _commands(nodes: Nodes, num_nodes: int, order: Mapping[str, Any]) -> list[list[str]]:
    """One step for all ranks of real nodes, a process for each of pretended ones."""
    run = [sys.executable, "-m", "benchmarks.questions.cache_rank"]
    if nodes.is_slurm:
        step = [*nodes.srun(num_nodes, 1), "--mpi=none"]
        return [[*step, *run, json.dumps({**order, "rank": None})]]
    return [[*run, json.dumps({**order, "rank": rank})] for rank in range(num_nodes)]
