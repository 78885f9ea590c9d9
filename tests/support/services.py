"""`msdata cache serve` under mpiexec, a process for each simulated node."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import packing

from msdata.cache.config import GIB
from msdata.cache.transport.link import link_address


def _mpi_memory(pid: int) -> set[str]:
    """What MPI keeps in shared memory for a process, as the kernel calls it."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    ours = ("/mpich_sh", "/ucx_shm_")
    return {line[line.index("/") :] for line in lines if any(name in line for name in ours)}


class Services:
    """Services of one job, started when made; `end` ends what is left of them.

    Args:
        data: the data set.
        shm_dir: for arenas.
        memory_nbytes: what each node gives.
        options: further ones of the command.
    """

    def __init__(
        self, data: Path, shm_dir: Path, memory_nbytes: Sequence[int], *options: str
    ) -> None:
        self.shm_dir = shm_dir
        self.num_nodes = len(memory_nbytes)
        serve = [sys.executable, "-m", "msdata", "cache", "serve", str(data), "--job", "test"]
        serve += ["--shm-dir", str(shm_dir), *options]
        command = [str(packing.mpiexec())]
        for nbytes in memory_nbytes:
            command += ["-n", "1", *serve, "--memory-gib", repr(nbytes / GIB), ":"]
        self.process = packing.start(command[:-1])
        try:
            self._wait()
        except BaseException:
            self.end()
            raise
        self.pids = [self._pid_of(arena) for arena in self.arenas]
        self.mpi_memory = set[str]().union(*map(_mpi_memory, self.pids))

    def _wait(self) -> None:
        assert self.process.stdout is not None
        line = ""
        while not line.startswith("serving"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]

    @property
    def arenas(self) -> list[Path]:
        """Arenas of all nodes."""
        found = sorted(self.shm_dir.glob("msdata-*-served*"))
        assert len(found) == self.num_nodes
        return found

    def _pid_of(self, arena: Path) -> int:
        """Who answers for an arena."""
        size = struct.calcsize("3i")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(link_address(arena))
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", raw)[0])

    def kill(self, *nodes: int) -> None:
        """`kill -9` of some."""
        for node in nodes:
            packing.kill(self.pids[node])

    def wait(self) -> tuple[int, str]:
        """Waits until all have ended; exit code and what they said."""
        _, errors = self.process.communicate(timeout=packing.TIMEOUT_S)
        return self.process.returncode, errors

    def terminate(self, *nodes: int) -> tuple[int, str]:
        """SIGTERM to some, on which all end; exit code and what they said."""
        for node in nodes:
            os.kill(self.pids[node], signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Ends what is left."""
        packing.kill_group(self.process)
        for pid in packing.msdata_processes(self.shm_dir):
            packing.kill(pid)
        self.process.communicate()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()
