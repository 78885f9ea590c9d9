"""No command replaces a file that it did not make; its own it makes again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_services.__main__ import main as fake_services_main
from fake_services.catalog import write_galaxies
from fake_services.sky import galaxy_of

from benchmarks.harness import claimed_folder, write_result
from msdata.cli import main
from msdata.core.output_file import PNG_MARK, check_output
from msdata.describe.sheet import png_bytes
from msdata.errors import StorageError, UsageError

MINE = b"id,ra,dec\nthe user's own\n"
PLAN = ("plan", "DATA", "--nodes", "2", "--memory-gib", "1", "--policy", "shuffle")
PROBE = ("probe", "--seconds", "0.05", "--memory-gib", "0.01", "--threads", "1", "--out")
# A command, and what it writes; DATA and DIR are folders.
WRITERS = {
    "card": (("card", "DATA"), "DATA/CARD.md"),
    "croissant": (("card", "DATA"), "DATA/croissant.json"),
    "sums": (("card", "DATA", "--sums", "--quiet"), "DATA/SHA256SUMS"),
    "stats": (("stats", "DATA", "--quiet"), "DATA/statistics.json"),
    "stats --out": (("stats", "DATA", "--quiet", "--out", "DIR/s.json"), "DIR/s.json"),
    "sheet": (("sheet", "DATA", "DIR/s.png"), "DIR/s.png"),
    "plan": ((*PLAN, "--figure", "DIR/p.png"), "DIR/p.png"),
    "probe": ((*PROBE, "DIR/m.json"), "DIR/m.json"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_the_command_did_not_make_is_left_and_its_own_is_made_again(
    kind, tiny_source, packed, tmp_path, capsys
):
    data = shutil.copytree(packed(tiny_source), tmp_path / "data")
    words, out = WRITERS[kind]

    def placed(word: str) -> str:
        return word.replace("DATA", str(data)).replace("DIR", str(tmp_path))

    command, path = [placed(word) for word in words], Path(placed(out))
    path.write_bytes(MINE)
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert f"{path} exists, and this command did not make it; nothing was replaced" in shown
    assert path.read_bytes() == MINE
    path.unlink()
    assert main(command) == 0
    assert main(command) == 0
    assert path.read_bytes() != MINE


def test_the_stand_ins_catalog_never_replaces_another(tmp_path, capsys):
    path = tmp_path / "catalog.csv"
    path.write_bytes(MINE)
    words = ["--catalog", str(path), "--n", "2"]
    assert fake_services_main(words) == 2
    assert "this command did not make it" in capsys.readouterr().err
    assert path.read_bytes() == MINE
    # The same catalog again is no harm.
    path.unlink()
    write_galaxies(path, [galaxy_of(0, 0, 0)])
    content = path.read_bytes()
    write_galaxies(path, [galaxy_of(0, 0, 0)])
    assert path.read_bytes() == content
    with pytest.raises(UsageError, match="did not make it"):
        write_galaxies(path, [galaxy_of(1, 0, 0)])
    (tmp_path / "services.toml").write_bytes(MINE)
    assert fake_services_main(["--services", str(tmp_path / "services.toml")]) == 2
    assert (tmp_path / "services.toml").read_bytes() == MINE


@pytest.mark.parametrize("name", ["catalog.csv", "catalog.parquet", "counts.md", "redshifts.png"])
def test_a_catalog_is_not_built_over_files_of_the_same_names(name, tmp_path, capsys):
    (tmp_path / "gama.csv").write_text("CATAID,RA,DEC,Z,NQ\n1,10,1,0.1,4\n")
    (tmp_path / "spec.toml").write_text('[surveys.gama]\nfiles = "gama.csv"\n')
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(MINE)
    words = ["catalog", "build", str(tmp_path / "spec.toml"), str(out), "--quiet", "--no-figure"]
    assert main(words) == 2
    assert "did not make it" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == [name]
    assert (out / name).read_bytes() == MINE


def test_what_is_no_file_is_never_ours(tmp_path):
    check_output(tmp_path / "absent", b"mark")
    check_output(tmp_path / "absent" / "too", b"mark")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("folder", "fifo", "zero"):
        with pytest.raises(UsageError, match="did not make it"):
            check_output(tmp_path / name, b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="cannot replace"):
        check_output(tmp_path / "loop", b"mark")
    (tmp_path / "large").write_bytes(b"x" * (1 << 20) + b"mark")
    check_output(tmp_path / "large", b"mark")


def test_a_picture_says_who_made_it_and_is_the_same_picture():
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    content = png_bytes(image)
    assert PNG_MARK in content
    # Warnings are errors: a wrong checksum would be one.
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(found, image)


def test_a_benchmark_empties_no_folder_that_none_has_made(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine").write_bytes(MINE)
    refused = pytest.raises(UsageError, match=r"logs exists, and no benchmark made it")
    with refused, claimed_folder(tmp_path):
        pass
    (tmp_path / "cache.json").write_text('{"benchmark": "cache"}')
    with claimed_folder(tmp_path):
        pass
    (tmp_path / "cache.json").unlink()
    with claimed_folder(tmp_path):
        pass
    with claimed_folder(tmp_path / "new"):
        pass
    (tmp_path / "new" / "work").mkdir()
    with claimed_folder(tmp_path / "new"):
        pass


def test_a_benchmarks_result_replaces_no_other_file(tmp_path):
    (tmp_path / "limit.json").write_bytes(MINE)
    with pytest.raises(UsageError, match="did not make it"):
        write_result("limit", {}, command="x", folder=tmp_path)
    assert (tmp_path / "limit.json").read_bytes() == MINE
    (tmp_path / "limit.json").unlink()
    for _ in range(2):
        write_result("limit", {}, command="x", folder=tmp_path)
