"""Processes that are told what to do by lines of JSON, and answer in kind: both ends.

Contestants of the race and ranks of a job are such processes. What they print themselves goes to a
log, so that nothing they say can be taken for an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.harness import child_environ
from msdata.errors import StorageError

_END_S = 20.0


class ToldError(StorageError):
    """A process could not do what it was told."""


class WrongDataError(ToldError):
    """A process found, or delivered, other samples than it should."""


class ToldProcess:
    """A process in a group of its own; a context manager.

    Args:
        name: for messages.
        command: starts it, or a launcher of several that answer one line each.
        log: where what it prints goes.
        timeout_s: seconds for a command.
        num_answers: how many answer.
        environ: its variables; None for those of this process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        timeout_s: float = 300.0,
        num_answers: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._name, self._log = name, log
        self._timeout_s, self._num_answers = timeout_s, num_answers
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                env=child_environ(os.environ if environ is None else environ),
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout

    def __enter__(self) -> ToldProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_input()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=_END_S)
        # Its workers too, should any have outlived it.
        self._kill()
        self.process.wait()
        self._out.close()

    def end_input(self) -> None:
        """Tells it that no command will come."""
        with contextlib.suppress(OSError):
            self._in.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def tell(self, do: str, **arguments: Any) -> None:
        """Gives a command."""
        # Whoever has ended is found when it does not answer.
        with contextlib.suppress(BrokenPipeError):
            self._in.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self._in.flush()

    def hear(self) -> list[dict[str, Any]]:
        """Waits for the answers.

        Raises:
            ToldError: one failed, ended or took too long.
            WrongDataError: samples were wrong.
        """
        # One that hangs is ended, so that a late answer is not taken for that of the next command.
        watch = threading.Timer(self._timeout_s, self._kill)
        watch.start()
        try:
            found = [self._answer() for _ in range(self._num_answers)]
        finally:
            watch.cancel()
        for answer in found:
            if "error" in answer:
                who = f"rank {answer['rank']}" if "rank" in answer else self._name
                kind = WrongDataError if answer["is_wrong"] else ToldError
                raise kind(f"{who}: {answer['error']}")
        return found

    def _answer(self) -> dict[str, Any]:
        # Launchers may have a word of their own to say.
        for line in iter(self._out.readline, b""):
            if line.startswith(b"{"):
                return dict(json.loads(line))
        raise ToldError(
            f"{self._name}: its process ended, or was ended after {self._timeout_s:.0f} s; its "
            f"last words are in {self._log}"
        )

    def command(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Gives a command and waits for the answer of the only one; see `hear`."""
        self.tell(do, **arguments)
        return self.hear()[0]


def claim_stdout() -> TextIO:
    """The stream for answers; whatever is printed from now on goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def obey(
    answers: TextIO, target: Any, *, wrong: type[Exception], about: Mapping[str, Any] | None = None
) -> None:
    """Answers every line of stdin by the method of `target` that it names, until stdin ends.

    `wrong` is what methods raise where samples are wrong; `about` are fields of every answer.
    """
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(target, command.pop("do"))(**command)
        except (Exception, SystemExit) as error:  # the parent says it beside a name
            traceback.print_exc()
            text = str(error).strip().splitlines() or [""]
            answer = {
                "error": f"{type(error).__name__}: {text[0]}",
                "is_wrong": isinstance(error, wrong),
            }
        print(json.dumps({**(about or {}), **answer}), file=answers)
