"""Asks all nodes of a Slurm job, through one step of `srun`.

A process on each node prints its facts in a line, and answers every line that it reads with its
clock; srun copies its input to all of them, and returns their output. So clocks are compared
without sockets, MPI or a common file system, by the answer that took the least time.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from msdata.cluster.checks import ClockReading
from msdata.cluster.facts import NodeFacts, output_of
from msdata.errors import MsdataError
from msdata.topology import SlurmJob

NUM_PINGS = 5
# Starting Python from a parallel file system on a thousand nodes is slow.
_START_S = 300.0
_ANSWER_S = 30.0
_MPI_PROGRAM = "from mpi4py import MPI; print('size', MPI.COMM_WORLD.Get_size(), flush=True)"
# sbatch's options for tasks would shrink a step of one task per node.
_FOR_TASKS = (
    *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_DISTRIBUTION"),
    *("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_CPU_BIND"),
    *("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND", "SLURM_GPU_BIND_TYPE"),
)


class StepError(MsdataError):
    """srun failed, or nodes did not answer."""


def step_command(job: SlurmJob, *options: str) -> list[str]:
    """A step of one task on every node of the job, beside other steps."""
    nodes = str(job.num_nodes)
    return [
        *("srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *options,
    ]


def step_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of such a step."""
    kept = {name: text for name, text in environ.items() if name not in _FOR_TASKS}
    per_task = {"SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"}
    if per_task & environ.keys() and "SLURM_GPUS_ON_NODE" in environ:
        # The one task gets all GPUs of its node.
        kept.setdefault("SLURM_GPUS_PER_NODE", environ["SLURM_GPUS_ON_NODE"])
    return {**kept, "SLURM_EXPORT_ENV": "ALL"}


def answer(facts: NodeFacts, lines: IO[str], say: Callable[[str], None]) -> None:
    """Answers for this node: its facts, then its clock for every line.

    Args:
        facts: facts of this node.
        lines: input, read until it ends.
        say: writes a line.
    """
    say(facts.as_json())
    for line in lines:
        say(json.dumps({"node": facts.node, "ping": int(line), "clock_s": time.time()}))


def ask_nodes(
    job: SlurmJob, data: Path | None, environ: Mapping[str, str]
) -> tuple[list[NodeFacts], list[ClockReading]]:
    """Collects the facts of all nodes, and readings of their clocks.

    Args:
        job: the job that this process belongs to.
        data: a data set, or any folder; None skips the file system.
        environ: environment of this process.

    Raises:
        StepError: srun failed, or nodes did not answer.
    """
    command = [
        *step_command(job, "--mpi=none"),
        *(sys.executable, "-m", "msdata", "doctor", "--answer"),
        *([] if data is None else [str(data.resolve())]),
    ]
    with tempfile.TemporaryFile("w+") as complaints:
        try:
            step = subprocess.Popen(
                command,
                env=step_environ(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        except OSError as error:
            raise StepError(f"srun cannot be started ({error})") from error
        with step:
            try:
                return _converse(step, job.num_nodes)
            except (queue.Empty, OSError, ValueError, subprocess.TimeoutExpired) as error:
                step.kill()
                step.wait(_ANSWER_S)
                complaints.seek(0)
                said = [line.strip() for line in complaints if line.strip()]
                why = "; ".join(said[-2:]) or type(error).__name__
                raise StepError(
                    f"{job.num_nodes} nodes did not all answer through srun: {why}"
                ) from error
            finally:
                step.kill()


def _converse(
    step: subprocess.Popen[str], num_nodes: int
) -> tuple[list[NodeFacts], list[ClockReading]]:
    assert step.stdin is not None
    assert step.stdout is not None
    said: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read_all, args=(step.stdout, said), daemon=True).start()
    facts = [NodeFacts.from_json(t) for t in _take(said, num_nodes, _START_S)]
    replies: list[tuple[float, float, dict[str, Any]]] = []
    for ping in range(NUM_PINGS):
        sent_s = time.time()
        step.stdin.write(f"{ping}\n")
        step.stdin.flush()
        replies += [
            (sent_s, time.time(), json.loads(text)) for text in _take(said, num_nodes, _ANSWER_S)
        ]
    step.stdin.close()
    step.wait(_ANSWER_S)
    return facts, clock_readings(replies)


def _read_all(lines: IO[str], into: queue.Queue[str | None]) -> None:
    for line in lines:
        if line.startswith("{"):
            into.put(line)
    into.put(None)


def _take(said: queue.Queue[str | None], count: int, timeout_s: float) -> Iterator[str]:
    deadline_s = time.monotonic() + timeout_s
    for _ in range(count):
        line = said.get(timeout=max(0.0, deadline_s - time.monotonic()))
        if line is None:
            raise ValueError("the step has ended")
        yield line


def clock_readings(
    replies: Sequence[tuple[float, float, Mapping[str, Any]]],
) -> list[ClockReading]:
    """Selects the best reading of each node's clock.

    Args:
        replies: times of question and answer by this node's clock, and the answer.

    Source: Cristian, "Probabilistic clock synchronization", Distributed Computing 3 (1989), Eq. 5.
    """
    best: dict[str, ClockReading] = {}
    for sent_s, came_s, reply in replies:
        node, error_s = str(reply["node"]), (came_s - sent_s) / 2
        ahead_s = float(reply["clock_s"]) - (sent_s + came_s) / 2
        if node not in best or error_s < best[node].error_s:
            best[node] = ClockReading(node=node, ahead_s=ahead_s, error_s=error_s)
    return list(best.values())


def try_mpi(job: SlurmJob, flavor: str, environ: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Starts MPI processes through srun on every node.

    Args:
        job: the job that this process belongs to.
        flavor: value of `srun --mpi`.
        environ: environment of this process.

    Returns:
        (flavors that this Slurm supports, size of MPI's world as seen on each node).
    """
    known = output_of(["srun", "--mpi=list"]) or ""
    flavors = [word for word in known.split() if word.islower() and word.isidentifier()]
    command = [*step_command(job, f"--mpi={flavor}"), sys.executable, "-c", _MPI_PROGRAM]
    text = output_of(command, step_environ(environ)) or ""
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith("size ")]
    return flavors, [int(size) for size in sizes]
