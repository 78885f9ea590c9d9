"""A real Slurm of two nodes on this machine, started and stopped by the tests.

Daemons keep all state in one temporary folder, listen on free ports, and are ended by their process
ids. No file of the system is touched: Slurm reaches both nodes at 127.0.0.1, so that their names
need not resolve.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n0", "n1")
CPUS_PER_NODE = 4
# Ends of jobs wait for processes that save; Slurm kills them after so many seconds.
KILL_WAIT_S = 30
_BINARY_FOLDERS = ("/usr/sbin", "/usr/local/sbin")
_SYSTEM_PATH = ":".join((*_BINARY_FOLDERS, "/usr/bin", "/bin"))
_T = TypeVar("_T")


def why_not() -> str | None:
    """Why there can be no Slurm on this machine; None where there can."""
    missing = [name for name in (*DAEMONS, "sbatch", "setpriv") if not find(name)]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd runs as root, and this user is not"
    return None


def find(name: str) -> str | None:
    """A program of Slurm; daemons stand in folders that PATH seldom has."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)


def wait_until(
    what: str, look: Callable[[], _T], timeout_s: float = 60, pause_s: float = 0.1
) -> _T:
    """Looks until it finds something true, and returns that."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(pause_s)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def configuration(folder: Path, ports: Sequence[int]) -> str:
    """The slurm.conf.

    Args:
        folder: of all state.
        ports: of the controller and of each node.
    """
    nodes = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
        f"CPUs={CPUS_PER_NODE} RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    return "\n".join(
        [
            "ClusterName=msdata",
            # Clusters of several tests at once: shared memory goes by the number of the job.
            f"FirstJobId={1 + 10 * os.getpid()}",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            "SlurmUser=root",
            "AuthType=auth/munge",
            # A requeued job waits until the credentials of its last start have run out.
            f"AuthInfo=socket={folder}/munge.socket,cred_expire=5",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool-%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            f"SlurmctldLogFile={folder}/slurmctld.log",
            f"SlurmdLogFile={folder}/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            # As sites have it: steps must share memory and GPUs, or the second one waits for ever.
            "SelectTypeParameters=CR_Core_Memory",
            "GresTypes=gpu",
            "DefMemPerNode=4000",
            # A requeued job is looked at when its time has come, not half a minute later.
            "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1",
            "SchedulerType=sched/builtin",
            # The machine may have fewer cores than its nodes claim.
            "SlurmdParameters=config_overrides",
            f"KillWait={KILL_WAIT_S}",
            "ReturnToService=2",
            *nodes,
            f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
            "",
        ]
    )


class SlurmCluster:
    """Two nodes and a controller; a context manager.

    Attributes:
        folder: of all state and logs.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmCluster:
        # munged refuses a socket in a folder that others cannot enter, which pytest's are.
        self.folder = Path(tempfile.mkdtemp(prefix="msdata-slurm-"))
        self.folder.chmod(0o755)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        ports = free_ports(1 + len(NODES))
        (self.folder / "slurm.conf").write_text(configuration(self.folder, ports))
        # Counted, not real: Slurm wants a device file for each.
        gpus = "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero"))
        (self.folder / "gres.conf").write_text(gpus)
        files = {"key": "key", "socket": "socket", "pid": "pid", "log": "log", "seed": "seed"}
        options = [
            f"--{name}{'' if name == 'socket' else '-file'}={self.folder}/munge.{end}"
            for name, end in files.items()
        ]
        self._daemon("munged", "--foreground", *options)
        wait_until("munged", (self.folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        try:
            wait_until("both nodes idle", self._is_up, 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def _daemon(self, name: str, *options: str) -> None:
        program = find(name)
        assert program
        # If pytest is killed, its daemons die with it.
        command = ["setpriv", "--pdeathsig", "KILL", program, *options]
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environ()
                )
            )

    def _is_up(self) -> bool:
        ended = [d.args for d in self._daemons if d.poll() is not None]
        assert not ended, f"{ended} ended: {self.logs()}"
        with suppress(subprocess.SubprocessError):
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T").split()
            return states == ["idle"] * len(NODES)
        return False

    def environ(self, **more: str) -> dict[str, str]:
        """This process's environment, without other launchers' variables, with this cluster's."""
        launchers = ("SLURM", "SBATCH", "SRUN", "PMI", "OMPI", "MPI", "TORCHELASTIC")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
        path = f"{kept.get('PATH', '')}:{_SYSTEM_PATH}"
        return {**kept, "PATH": path, "SLURM_CONF": f"{self.folder}/slurm.conf", **more}

    def run(self, *command: str, timeout_s: float = 60, **environ: str) -> str:
        """A command of Slurm; its standard output."""
        found = subprocess.run(
            command,
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if found.returncode:
            raise subprocess.SubprocessError(f"{command}: {found.stderr}{found.stdout}")
        return found.stdout

    def submit(self, *words: str, **environ: str) -> str:
        """Hands a job in; its number."""
        return self.run("sbatch", "--parsable", *words, **environ).strip().partition(";")[0]

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, ..."""
        return self.fields(job).get("JobState", "")

    def fields(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    def wait(self, job: str, timeout_s: float = 120) -> dict[str, str]:
        """Waits until a job has ended, processes and all; its fields."""

        def ended() -> dict[str, str] | None:
            fields = self.fields(job)
            busy = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")
            return None if fields["JobState"] in busy else fields

        try:
            return wait_until(f"end of job {job}", ended, timeout_s)
        except AssertionError as error:
            nodes = self.run("scontrol", "--oneliner", "show", "nodes")
            error.add_note(f"{self.fields(job)}\n{nodes}")
            raise

    def processes(self, job: str | None = None) -> dict[int, str]:
        """Processes of a job, or of all jobs, by the environment that Slurm gave them."""
        wanted = [f"SLURM_CONF={self.folder}/slurm.conf"]
        wanted.append(f"SLURM_JOB_ID={job}" if job else "SLURM_JOB_ID=")
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                environ = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if wanted[0] in environ and any(
                    variable == wanted[1] if job else variable.startswith(wanted[1])
                    for variable in environ
                ):
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found[int(entry.name)] = " ".join(words).strip()
        return {pid: command for pid, command in found.items() if command}

    def logs(self) -> str:
        """The ends of all logs, for messages of failed tests."""
        texts = (*self.folder.glob("*.log"), *self.folder.glob("*.out"))
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-2000:]}" for p in texts)

    def __exit__(self, *_: Any) -> None:
        with suppress(subprocess.SubprocessError, AssertionError):
            self.run("scancel", "--user=root")
            wait_until("the end of all jobs", lambda: not self.run("squeue", "--noheader"), 45)
        left = self.processes()
        # slurmds before the controller, munged last: each says goodbye to the next.
        for daemon in reversed(self._daemons[1:]):
            _end(daemon)
        for daemon in self._daemons[:1]:
            _end(daemon)
        for pid in left:
            with suppress(OSError):
                os.kill(pid, 9)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left, f"jobs left processes: {left}"


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
