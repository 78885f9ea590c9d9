"""The command line: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import packing
import pytest

import msdata
from msdata.core.progress import ProgressLine, progress_text
from msdata.core.text import bytes_text, duration_text, rate_text
from msdata.errors import UsageError
from msdata.pack.options import parse_bytes, parse_fractions

Packed = Callable[..., Path]


@pytest.mark.parametrize("package", ["msdata", "mstrain"])
def test_a_sentence_and_the_end_of_its_line_are_written_at_once(package: str) -> None:
    # Each write is a message of its own here.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = "card" if package == "msdata" else "evaluate"
    with ours, theirs:
        subprocess.run([sys.executable, "-m", package, command, "nowhere"], stderr=theirs)
        theirs.close()
        written = list(iter(lambda: ours.recv(65536), b""))
    assert written
    assert all(text.endswith(b"\n") for text in written), written


def test_json_alone_is_on_stdout(tiny_source: Path, packed: Packed, tmp_path: Path) -> None:
    process = packing.pack(tiny_source, tmp_path / "out", "--json", "--jobs", "2")
    assert process.returncode == 0
    assert process.stderr == ""
    result = json.loads(process.stdout)
    data = msdata.open(packed(tiny_source))
    assert result["num_samples"] == result["num_packed"] == 300
    assert result["fingerprint"] == data.manifest.fingerprint
    assert result["num_rejected"] == 0


def test_a_short_run_without_a_terminal_prints_no_progress(
    tiny_source: Path, tmp_path: Path
) -> None:
    command = packing.pack_command(tiny_source, tmp_path / "out", "--jobs", "1", is_quiet=False)
    process = packing.run(command)
    # On a slow machine it may be a long run.
    taken = re.search(r"in ([0-9.]+) s", process.stdout)
    assert taken is not None
    assert process.stderr == "" or float(taken[1]) >= 10
    assert re.fullmatch(r"packed 300 samples in .*: 300 samples\n", process.stdout)


@pytest.mark.parametrize("options", [(), ("--quiet",)], ids=["shown", "quiet"])
def test_a_terminal_gets_one_line_that_is_redrawn(
    options: tuple[str, ...], tiny_source: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    words = ("--jobs", "1", *options)
    command = packing.pack_command(tiny_source, tmp_path / "out", *words, is_quiet=False)
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.1")
    with subprocess.Popen(command, env=env, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    if options:
        assert shown == b""
        return
    lines = shown.decode().rstrip("\r\n").split("\r\x1b[K")
    assert len(lines) > 2
    assert "\n" not in "".join(lines)
    assert re.search(r"\[#{24}\] 300/300 .* samples/s .*iB/s  0:00 left", lines[-1])


def test_a_log_gets_whole_lines_and_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("msdata.core.progress.time.monotonic", lambda: now[0])
    stream = StringIO()
    line = ProgressLine("pack", 1000, stream=stream)
    for done in range(1000):
        now[0] += 0.1
        line.update(done, done * 1000)
    line.close(1000, 1_000_000)
    lines = stream.getvalue().splitlines()
    assert 5 <= len(lines) <= 12
    assert all(text.startswith("pack [") for text in lines)
    assert "\r" not in stream.getvalue()


def test_progress_of_nothing_is_complete() -> None:
    assert "0/0" in progress_text("pack", (0, 0), 0, 0.0)
    assert progress_text("pack", (50, 100), 10**9, 10.0) == (
        "pack [############............] 50/100  5 samples/s  95.37 MiB/s  0:10 left"
    )
    assert duration_text(3725) == "1:02:05"
    assert bytes_text(1536) == "1.50 KiB"
    assert rate_text(3 * 2**29) == "1.50 GiB/s"


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1GiB", 1 << 30),
        ("500MB", 500_000_000),
        ("65536", 65536),
        ("1.5k", 1500),
        (" 2 ti ", 2 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 XB", "1e9", "1GiBs"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a size must be like"):
        parse_bytes(text)


def test_fractions_are_numbers() -> None:
    assert parse_fractions("0.7,0.1,0.2") == (0.7, 0.1, 0.2)
    with pytest.raises(UsageError, match="--split must be fractions such as"):
        parse_fractions("0.7;0.3")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "usage: msdata"),
        (("pakc",), 2, "invalid choice"),
        (("pack",), 2, "required: source, out"),
        (("pack", "a", "b", "--format", "zip"), 2, "invalid choice: 'zip'"),
        (("pack", "--help"), 0, ""),
        (("--version",), 0, ""),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], code: int, says: str) -> None:
    process = packing.run([*packing.MSDATA, *arguments])
    assert process.returncode == code
    assert says in process.stderr
    assert "Traceback" not in process.stderr


def test_a_reader_that_goes_away_is_no_error(tiny_source: Path, tmp_path: Path) -> None:
    command = packing.pack_command(tiny_source, tmp_path / "out", "--json", "--jobs", "1")
    process = packing.start(command)
    process.stdout.close()  # type: ignore[union-attr]
    assert process.wait(packing.TIMEOUT_S) in (0, 120)
    assert "Traceback" not in process.stderr.read()  # type: ignore[union-attr]
    process.stderr.close()  # type: ignore[union-attr]


# A command whose own import, or one that it makes when it runs, is interrupted; what is imported
# swallows exceptions, or turns them into ImportError as NumPy's C code does.
SIGNALLED_WHILE_IMPORTING = """
import os, signal, sys, time, types
from msdata.cli import Program

number, when, answer = int(sys.argv[1]), *sys.argv[2:]

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "colorsys":
            try:
                os.kill(os.getpid(), number)
                time.sleep(0.1)
            except BaseException as error:
                if answer == "fails":
                    raise ImportError("numpy.core.multiarray failed to import") from error
        return None

def run(args):
    import colorsys
    time.sleep(60)

sys.meta_path.insert(0, Importing())
command = types.ModuleType("command")
command.add_arguments, command.run = lambda parser: None, run
command.WHEN_INTERRUPTED = "all is kept"
sys.modules["command"] = command
name = {"early": "colorsys", "late": "command"}[when]
program = Program(name="tool", description="d", commands={"c": (name, "h")}, when_interrupted="x")
sys.exit(program.main(["c"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("answer", ["swallows", "fails"])
@pytest.mark.parametrize(
    ("when", "says"), [("early", "before any work started"), ("late", "all is kept")]
)
def test_a_signal_while_modules_are_imported_ends_the_program_whatever_they_catch(
    when: str, says: str, answer: str, number: int
) -> None:
    separator = " " if when == "early" else "; "
    process = packing.run(
        [sys.executable, "-c", SIGNALLED_WHILE_IMPORTING, str(int(number)), when, answer]
    )
    assert process.stderr == f"tool c: interrupted{separator}{says}\n"
    assert process.returncode == 128 + number


def test_ctrl_c_is_for_the_foreground_where_the_shell_ignores_it() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from msdata.core.signals import raise_on_signals; raise_on_signals()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    process = packing.run([sys.executable, "-c", code])
    assert process.returncode == 0, process.stderr
