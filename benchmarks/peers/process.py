"""The parent's side of a contestant's process: commands, answers, memory, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.errors import MsdataError

_SAMPLE_EVERY_S = 0.05


class PeerError(MsdataError):
    """A contestant could not do what was asked."""


class WrongDataError(PeerError):
    """A contestant delivered other samples than it should."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of memory of some processes.

    Attributes:
        own: anonymous and shared memory, which the kernel cannot drop.
        with_files: and mapped pages of files, programs among them, which it drops when it needs
            room and which others may map as well.
    """

    own: int
    with_files: int


class PeerProcess:
    """A contestant in a process group of its own; a context manager.

    Args:
        name: its module in `benchmarks.peers`.
        log: where what it prints goes.
        timeout_s: seconds for a command.
    """

    def __init__(self, name: str, log: Path, timeout_s: float = 300.0) -> None:
        self._name, self._timeout_s = name, timeout_s
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.child", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        self._log = log
        self.versions: dict[str, str] = {}

    def __enter__(self) -> PeerProcess:
        self.versions = self._answer()["versions"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        # Its workers too, should any have outlived it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def command(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Gives a command and waits for its answer.

        Raises:
            PeerError: it failed, ended or took too long.
            WrongDataError: it delivered wrong samples.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            kind = WrongDataError if answer["is_wrong"] else PeerError
            raise kind(f"{self._name}: {answer['error']}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout_s):
                # A late answer would be taken for that of the next command.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                raise PeerError(f"{self._name}: no answer within {self._timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self._name}: its process ended; its last words are in {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def command_with_memory(self, do: str, **arguments: Any) -> tuple[dict[str, Any], Memory]:
        """A command, and the most memory that the process and its children held meanwhile."""
        peaks: list[Memory] = []
        over = threading.Event()

        def watch() -> None:
            # Once more after the answer: the shortest command is seen too.
            is_over = False
            while not is_over:
                is_over = over.wait(_SAMPLE_EVERY_S)
                peaks.append(tree_memory(self._process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            answer = self.command(do, **arguments)
        finally:
            over.set()
            watcher.join()
        return answer, Memory(
            own=max(peak.own for peak in peaks), with_files=max(peak.with_files for peak in peaks)
        )


def tree_memory(pid: int) -> Memory:
    """Memory of a process and all below it, by PSS, so that shared pages count once."""
    import psutil

    try:
        root = psutil.Process(pid)
        members = [root, *root.children(recursive=True)]
    except psutil.Error:
        return Memory(own=0, with_files=0)
    held = [_held(member.pid) for member in members]
    return Memory(own=sum(h.own for h in held), with_files=sum(h.with_files for h in held))


def _held(pid: int) -> Memory:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return Memory(own=0, with_files=0)
    fields = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    own = int(fields.get("Pss_Anon", 0)) + int(fields.get("Pss_Shmem", 0))
    return Memory(own=1024 * own, with_files=1024 * int(fields.get("Pss", 0)))
