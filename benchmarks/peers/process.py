"""The parent's side of a contestant's process: its start, and the memory that it holds."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.told import ToldProcess

_SAMPLE_EVERY_S = 0.05


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


class PeerProcess(ToldProcess):
    """A contestant's process; see `ToldProcess`.

    Attributes:
        versions: of its packages, once entered.
    """

    def __init__(self, name: str, log: Path, timeout_s: float = 300.0) -> None:
        command = [sys.executable, "-m", "benchmarks.peers.child", name]
        super().__init__(name, command, log, timeout_s=timeout_s)
        self.versions: dict[str, str] = {}

    def __enter__(self) -> PeerProcess:
        self.versions = self.hear()[0]["versions"]
        return self

    def command_with_memory(self, do: str, **arguments: Any) -> tuple[dict[str, Any], Memory]:
        """A command, and the most memory that the process and its children held meanwhile."""
        peaks: list[Memory] = []
        over = threading.Event()

        def watch() -> None:
            # Once more after the answer: the shortest command is seen too.
            is_over = False
            while not is_over:
                is_over = over.wait(_SAMPLE_EVERY_S)
                peaks.append(_tree_memory(self.process.pid))

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


def _tree_memory(pid: int) -> Memory:
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
