"""What strangers name ids, bands, units, columns and files does nothing to a terminal or a card."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import packing
import pytest

from msdata.cli import main
from msdata.core.progress import ProgressLine
from msdata.core.terminal import PlainStream, plain_streams, shown, shown_line
from msdata.dataset.manifest import fingerprint_of

ESCAPES = (
    "\x1b]0;owned\x07",
    "\x9b31m",
    "\r\x1b[K",
    "\x7f",
    "a\u202eb",
    "\u2066",
    "\u2028",
    "\x00",
)


@pytest.mark.parametrize("text", ESCAPES)
def test_characters_that_act_are_shown_as_jsons_escapes(text):
    assert shown(text).isprintable()
    assert json.loads(f'"{shown(text)}"') == text


def test_what_only_looks_unusual_stays():
    text = "Größe β 星系 µJy ±½\tx\n"
    assert shown(text) == text
    assert shown_line("a\nb\tc") == "a\\u000ab\\u0009c"
    assert shown("\udc80.fits") == "\\udc80.fits"


def test_json_that_is_printed_means_what_it_meant(capsys):
    content = {"id": "".join(ESCAPES) + "\udc80"}
    with plain_streams():
        print(json.dumps(content))
        print(json.dumps({"id": "".join(ESCAPES)}, ensure_ascii=False))
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == content
    assert json.loads(second) == {"id": "".join(ESCAPES)}


def test_streams_are_as_before_afterwards_and_all_else_is_theirs():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), plain_streams():
        assert sys.stdout.encoding == before[0].encoding
        assert isinstance(sys.stderr, PlainStream)
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before


def test_a_progress_line_is_redrawn_and_its_remark_is_shown():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    ProgressLine("pack", 2, stream=PlainStream(terminal)).close(1, 1, "\x1b[2J")
    assert terminal.getvalue().startswith("\r\x1b[Kpack [")
    assert "\\u001b[2J" in terminal.getvalue()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose ids, columns, unit and bands are as bad as `dataset.json` lets them be."""
    root = tmp_path_factory.mktemp("hostile")
    bad = "\x1b[31m<img src=x onerror=alert(1)>`|[a](javascript:b)\x9b2J\u202e"
    for number in range(6):
        path = root / "objects" / f"{number}-{bad.replace('/', '')}.pkl"
        packing.write_object(path, {"image": np.full((2, 4, 4), number, np.float32)})
    lines = [f'id,redshift,"a column {bad}",b c']
    lines += [f'"{number}-{bad.replace("/", "")}",0.1,{number},{number}' for number in range(6)]
    (root / "catalog.csv").write_text("\n".join(lines) + "\n")
    words = [str(root / "objects"), str(root / "data"), "--catalog", str(root / "catalog.csv")]
    assert main(["pack", *words, "--format", "hdf5", "--jobs", "1", "--quiet"]) == 0
    content = json.loads((root / "data" / "dataset.json").read_bytes())
    content["schema"]["arrays"][0].update(unit=bad, bands=[f"g{bad}", "r\nrm -rf"])
    del content["fingerprint"]
    content["fingerprint"] = fingerprint_of(content)
    (root / "data" / "dataset.json").write_text(json.dumps(content))
    (root / "data" / f"stray{bad.replace('/', '')}\nfile").write_bytes(b"")
    return root


@pytest.fixture
def data(hostile: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hostile / "data", tmp_path / "data"))


@pytest.mark.parametrize(
    "words",
    [
        ("info", "DATA"),
        ("verify", "DATA", "--quiet"),
        ("stats", "DATA", "--quiet"),
        ("card", "DATA"),
        ("sheet", "DATA", "OUT.png", "--ids", "\x1b[2J"),
        ("sheet", "DATA", "OUT.png", "--columns", "\x9b2J"),
        ("plan", "DATA", "--nodes", "2", "--memory-gib", "1", "--policy", "shuffle"),
        ("info", "DATA/\x1b[2J\n"),
        ("cache", "status", "--shm-dir", "DATA/\x1b[2J"),
    ],
)
def test_no_command_passes_an_escape_on(words, data, tmp_path, capsys):
    places = {"DATA": str(data), "OUT": str(tmp_path / "out")}
    words = [w.replace("DATA", places["DATA"]).replace("OUT", places["OUT"]) for w in words]
    code = main(words)
    shown_ = capsys.readouterr()
    assert shown_.out or shown_.err
    for text in shown_:
        assert all(c == "\n" or c.isprintable() for c in text), repr(text)
    assert code in (0, 1, 2)
    if code:
        assert shown_.err.count("\n") == 1
