"""Cache services and ranks on 1, 2, ... nodes: a Slurm job's, or processes that stand for them.

In a Slurm job a step is an `srun`; elsewhere services are processes of one `mpiexec` on this
machine, each taking itself for a node of its own. Whatever starts them, ranks are told by lines of
JSON, and services write logs.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, child_environ
from benchmarks.told import ToldProcess
from msdata.cache.arena import own_arenas
from msdata.cache.shared_file import remove_if_unused
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cluster.nodes import step_environ
from msdata.errors import StorageError, UsageError
from msdata.topology import job_name, slurm_job

SHM = Path("/dev/shm")
NODE_SCRIPT = ROOT / "slurm" / "node.sh"
START_S, END_S, EPOCH_S = 90.0, 30.0, 600.0
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes that there are.

    Attributes:
        hosts: their names in a Slurm job; empty where they are pretended.
        machines: for each node what tells the machine, or rather the kernel, that it runs on.
        job: what names the caches.
        mpi: flavor of srun's --mpi.
        environ: of what is started.
    """

    hosts: tuple[str, ...]
    machines: tuple[str, ...]
    job: str = ""
    mpi: str = "pmi2"
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """How many there are, or are pretended."""
        return len(self.machines)

    def per_machine(self, num_nodes: int) -> int:
        """How many of the first nodes are one machine in truth; 1 for a cluster."""
        return max(Counter(self.machines[:num_nodes]).values())

    @property
    def is_slurm(self) -> bool:
        """Whether they are nodes of a Slurm job."""
        return bool(self.hosts)

    @property
    def numbers(self) -> list[int]:
        """1, 2, 4, ... and all."""
        powers = [1 << k for k in range(self.most.bit_length())]
        return sorted({self.most, *powers})

    def per_node(self, num_nodes: int, words: Sequence[str], *, is_mpi: bool) -> list[str]:
        """The command that runs another once on each of the first nodes."""
        if not self.is_slurm:
            return [mpiexec(), "-n", str(num_nodes), *words]
        return [*self.srun(num_nodes, 1), f"--mpi={self.mpi if is_mpi else 'none'}", *words]

    def srun(self, num_nodes: int, per_node: int) -> list[str]:
        """A step beside others on the first nodes, as slurm/job.sh makes them."""
        command = ["srun", "--overlap", "--wait=0", f"--nodes={num_nodes}"]
        command += [f"--nodelist={','.join(self.hosts[:num_nodes])}"]
        command += [f"--ntasks={num_nodes * per_node}", f"--ntasks-per-node={per_node}"]
        # One task with all the cores: Slurm would bind it to one.
        has_binding = "affinity" in _ask(["scontrol", "show", "config"], "TaskPlugin ")
        return [*command, "--cpu-bind=none"] if has_binding else command


def find_nodes(environ: Mapping[str, str], num_pretended: int) -> Nodes:
    """The nodes of the Slurm job that this process belongs to, or pretended ones.

    Args:
        environ: variables of this process. `SRUN_MPI` names a flavor of srun's --mpi.
        num_pretended: how many to pretend outside of a job.

    Raises:
        StorageError: Slurm does not answer.
    """
    job, environ = slurm_job(environ), child_environ(environ)
    if job is None:
        name = f"bench{os.getpid()}"
        machines = ("here",) * num_pretended
        return Nodes(hosts=(), machines=machines, job=name, environ={**environ, "MSDATA_JOB": name})
    hosts = _ask(["scontrol", "show", "hostnames", environ["SLURM_JOB_NODELIST"]]).split()
    nodes = Nodes(
        hosts=tuple(hosts),
        machines=tuple(hosts),
        job=job_name(environ),
        mpi=environ.get("SRUN_MPI", "pmi2"),
        environ={**step_environ(environ), "PYTHON": sys.executable},
    )
    # Nodes of a test may share a machine, whose name says nothing of that.
    step = [*nodes.srun(nodes.most, 1), "--label", "--mpi=none", "cat", str(_BOOT_ID)]
    answers = [line.split(": ", 1) for line in _ask(step, environ=nodes.environ).split("\n")]
    told_by_task = sorted((int(answer[0]), answer[1]) for answer in answers if len(answer) == 2)
    return replace(nodes, machines=tuple(machine for _, machine in told_by_task))


def _ask(command: Sequence[str], line: str = "", environ: Mapping[str, str] | None = None) -> str:
    """What a command prints, or the line of it that begins in some way."""
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=environ
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"{command[0]} failed: {error}") from error
    return "\n".join(text for text in found.stdout.splitlines() if text.startswith(line))


def mpiexec() -> str:
    """The launcher beside Python, or in the path.

    Raises:
        UsageError: there is none.
    """
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise UsageError(
            "mpiexec not found, which the caches' services need: pip install 'msdata[mpi]'"
        )
    return found


@contextmanager
def services(nodes: Nodes, data: Path, memory_nbytes: int, num_nodes: int, logs: Path) -> Any:
    """The cache's services of some nodes, full when this begins, gone when it ends.

    The folder for what they say, `logs`, is emptied.

    Raises:
        StorageError: they did not start.
    """
    serve = [sys.executable, "-m", "msdata", "cache", "serve", str(data), "--warmup", "blocking"]
    serve += ["--memory-gib", repr(memory_nbytes / (1 << 30))]
    # Twice, as slurm/train_ddp.sh: Slurm's pmi2 (22.05) at times loses part of a message.
    for attempt in (1, 2):
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        process = _start_services(nodes, serve, num_nodes, logs)
        try:
            if _have_started(process, logs):
                yield
                return
        finally:
            _end_services(nodes, process, logs)
        print(f"  services on {num_nodes} nodes have not started (attempt {attempt})", flush=True)
    raise StorageError(f"the cache's services on {num_nodes} nodes do not start: {said(logs)}")


def _start_services(
    nodes: Nodes, serve: list[str], num_nodes: int, logs: Path
) -> subprocess.Popen[bytes]:
    if nodes.is_slurm:
        words = [str(NODE_SCRIPT), "serve", str(logs), *serve]
        command = nodes.per_node(num_nodes, words, is_mpi=True)
        command[1:1] = ["--gres=none", "--kill-on-bad-exit=0", "--job-name=cache"]
    else:
        command = [mpiexec()]
        for node in range(num_nodes):
            # Each tells its number: to mpiexec itself a signal would be the end of all by SIGKILL.
            told = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(logs / f"{node}.pid"), *serve]
            command += [*([":"] if node else []), "-n", "1", *told]
    with (logs / "step.serve.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(nodes.environ),
            start_new_session=True,
            preexec_fn=None if nodes.is_slurm else _end_with_parent,
        )


def _end_with_parent() -> None:
    """Has a process get SIGTERM when the one that started it was killed; before it is another's."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def said(logs: Path) -> str:
    """The last words in a folder of logs, in one line."""
    texts = [path.read_text(errors="replace").split("\n") for path in sorted(logs.glob("*.log"))]
    lines = [line.strip() for text in texts for line in text if line.strip()]
    return " | ".join(lines[-3:]) or "they said nothing"


def _have_started(process: subprocess.Popen[bytes], logs: Path) -> bool:
    deadline_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        for path in logs.glob("*.log"):
            if any(line.startswith("serving") for line in path.read_text().splitlines()):
                return True
        time.sleep(_POLL_S)
    return False


def _end_services(nodes: Nodes, process: subprocess.Popen[bytes], logs: Path) -> None:
    """Asks for a good end, which removes the arenas; ends by force what does not follow."""
    if process.poll() is None:
        if nodes.is_slurm:
            # srun hands SIGUSR1 on; of SIGTERM it makes a SIGKILL.
            process.send_signal(signal.SIGUSR1)
        else:
            _tell(logs, signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        _tell(logs, signal.SIGKILL)
        process.kill()
        process.wait()
    # mpiexec kills the services that are slower to end than the first, and waits for none.
    deadline_s = time.monotonic() + END_S
    while _tell(logs, 0) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    for path in own_arenas(SHM):
        if nodes.job in path.name:
            remove_if_unused(path)
    remove_dead_shared_memory()


def _tell(logs: Path, number: int) -> int:
    """Sends a signal, or none for 0, to the services here that have not ended; how many."""
    told = 0
    for path in logs.glob("*.pid"):
        with suppress(ValueError, OSError):
            os.kill(int(path.read_text()), number)
            told += 1
    return told


class Ranks:
    """All ranks of a job, told and heard together; a context manager.

    Args:
        nodes: where; an `srun` on real ones, processes of this machine on pretended ones.
        num_nodes: how many.
        ranks_per_node: ranks.
        order: what `benchmarks.questions.rank` is told beside that.
        log: file for what they say on stderr.
    """

    def __init__(
        self,
        nodes: Nodes,
        num_nodes: int,
        order: Mapping[str, Any],
        log: Path,
        ranks_per_node: int = 1,
    ) -> None:
        count = num_nodes * ranks_per_node
        shared = nodes.per_machine(num_nodes) > 1
        order = {**order, "num_nodes": num_nodes, "ranks_per_node": ranks_per_node}
        texts = [
            json.dumps({**order, "share_a_machine": shared, "rank": rank})
            for rank in ([None] if nodes.is_slurm else range(count))
        ]
        step = [*nodes.srun(num_nodes, ranks_per_node), "--mpi=none"] if nodes.is_slurm else []
        run = [*step, sys.executable, "-m", "benchmarks.questions.rank"]
        path = f"{ROOT}{os.pathsep}{nodes.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        self._processes = [
            ToldProcess(
                *(f"ranks on {num_nodes} nodes", [*run, text], log),
                timeout_s=EPOCH_S,
                num_answers=count // len(texts),
                environ={**nodes.environ, "PYTHONPATH": path},
            )
            for text in texts
        ]

    def __enter__(self) -> Ranks:
        try:
            self.hear()
        except BaseException:
            self.__exit__()
            raise
        return self

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Gives all ranks a command; their answers, rank by rank.

        Raises:
            ToldError: a rank has ended, or failed.
        """
        for process in self._processes:
            process.tell(do, **arguments)
        return self.hear()

    def hear(self) -> list[dict[str, Any]]:
        """One answer of every rank."""
        found = [answer for process in self._processes for answer in process.hear()]
        return sorted(found, key=lambda answer: int(answer["rank"]))

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.end_input()
        for process in self._processes:
            process.__exit__()
