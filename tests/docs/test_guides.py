"""The commands of the tutorial and the examples of the guides run, on small data."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
import training

import msdata.cli
import mstrain.cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
# Fewer objects and epochs than the page asks for.
SMALLER = {"--n 1200": "--n 80", "epochs=8": "epochs=1 batch_size=16"}


PROGRAMS = {"msdata": msdata.cli.main, "mstrain": mstrain.cli.main}


def run(words: list[str], folder: Path) -> str:
    """Runs a command, or a program of the examples, in this process; gives what it printed."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        if words[0] in PROGRAMS:
            assert PROGRAMS[words[0]](words[1:]) == 0, shlex.join(words)
        else:
            training.run_program([str(EXAMPLES / words[0]), *words[1:]])
    return printed.getvalue()


def commands_of(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    for given, smaller in SMALLER.items():
        assert given in text
        text = text.replace(given, smaller)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tutorial's commands have run, one after the other."""
    folder = tmp_path_factory.mktemp("tutorial")
    for command in commands_of(DOCS / "tutorial.md"):
        run(shlex.split(command), folder)
    return folder


@pytest.mark.slow
def test_the_tutorial_ends_with_a_report_and_a_table_of_densities(folder: Path) -> None:
    assert (folder / "RUN" / "report.html").stat().st_size > 100_000
    assert (folder / "redshifts.parquet").exists()
    assert (folder / "sheet.png").exists() and (folder / "augmented.png").exists()


@pytest.mark.slow
def test_a_loop_in_plain_pytorch_trains(folder: Path) -> None:
    assert "epoch 1: loss" in run(["pytorch_loop.py", "DATA"], folder)


@pytest.mark.slow
def test_ddp_resumes_after_the_step_that_was_saved(folder: Path, ranks: training.Ranks) -> None:
    words = [str(EXAMPLES / "ddp_resume.py"), str(folder / "DATA"), str(folder / "state.pt")]
    positions = []
    for _ in range(2):
        started = ranks.start(words, 2)
        codes, said = ranks.end(started)
        assert codes == [0, 0], said
        positions += [re.search(r"'position': (\d+)", started[0].printed)]
    first, second = (int(found[1]) for found in positions if found)
    assert first > 0
    assert second == 2 * first


@pytest.mark.slow
def test_augmentation_gives_images_of_nine_bands(folder: Path) -> None:
    assert "9, 120, 120)" in run(["augmentation.py", "DATA"], folder)


def test_own_arrays_are_packed_and_loaded(tmp_path: Path) -> None:
    found = run(["own_arrays.py", "mine"], tmp_path)
    assert "training samples in batches of 32" in found


def test_a_file_is_indexed_in_place(tmp_path: Path) -> None:
    found = run(["index_in_place.py", "mine"], tmp_path)
    assert "200 samples in place" in found


def test_every_example_stands_in_a_guide() -> None:
    pages = "".join(p.read_text(encoding="utf-8") for p in DOCS.rglob("*.md"))
    missing = [p.name for p in EXAMPLES.glob("*.*") if f'--8<-- "{p.name}"' not in pages]
    assert not missing
