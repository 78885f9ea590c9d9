"""`msdata fetch --pack`: ends with shards alone, and nothing is lost on the way there."""

from __future__ import annotations

import shutil
from pathlib import Path

import fetching
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_services.server import StandIns

import msdata
from msdata.cli import main
from msdata.dataset.manifest import read_manifest
from msdata.verify.verify import verify_dataset

NUM_OBJECTS = 6


@pytest.fixture(scope="module")
def folder(running: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog whose first object has no redshift, services, and all objects fetched."""
    path = tmp_path_factory.mktemp("fetched")
    catalog = fetching.write_catalog(path / "catalog.csv", NUM_OBJECTS)
    lines = catalog.read_text().splitlines()
    column = lines[0].split(",").index("redshift")
    cells = lines[1].split(",")
    cells[column] = ""
    catalog.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    fetching.services_file(path / "services.toml", running.url)
    process = fetching.run(catalog, path / "out", "--services", str(path / "services.toml"))
    assert process.returncode == 0, process.stderr
    return path


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> Path:
    """A copy of it, under a name of its own."""
    shutil.copytree(folder, tmp_path / "place")
    return tmp_path / "place"


def words(place: Path, *options: str) -> list[str]:
    services = ("--services", str(place / "services.toml"))
    return [str(place / "catalog.csv"), str(place / "out"), *services, "--quiet", *options]


def fetch(place: Path, *options: str, code: int = 0) -> None:
    with fetching.loopback_only():
        assert main(["fetch", *words(place, *options)]) == code


def files(place: Path) -> set[str]:
    return {p.stem for p in (place / "out" / "photometry").rglob("*.npy")}


def packed(data: Path) -> set[str]:
    return set(msdata.open(data).table["sample_id"].to_pylist())


def all_ids(place: Path) -> set[str]:
    return {sample_id for sample_id, _, _ in fetching.rows_of(place / "catalog.csv")}


def test_it_ends_with_shards_alone_and_with_the_files_of_what_was_rejected(
    place: Path, running: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    data, log = place / "data", len(running.log)
    fetch(place, "--pack", str(data))
    shown = capsys.readouterr().out
    assert f"packed 5 samples into {data}" in shown
    assert "removed the files of 5 objects" in shown
    assert "1 objects were rejected" in shown
    assert files(place) == all_ids(place) - packed(data)
    assert len(files(place)) == 1
    assert not verify_dataset(data).faults
    # The same command again finds all there, and asks no service.
    fetch(place, "--pack", str(data), "--json")
    assert '"num_removed": 0' in capsys.readouterr().out
    assert len(running.log) == log


def test_a_forged_list_of_sources_removes_nothing(place: Path) -> None:
    data, victim = place / "data", place / "victim"
    victim.write_text("the user's own")
    fetch(place, "--pack", str(data), "--keep-pickles")
    table = pq.read_table(data / "sources.parquet")
    column = pa.array(["../../victim"] * table.num_rows, pa.string())
    forged = table.set_column(table.column_names.index("path"), "path", column)
    pq.write_table(forged, data / "sources.parquet")
    fetch(place, "--pack", str(data))
    assert victim.read_text() == "the user's own"
    assert files(place) == all_ids(place) - packed(data)


def test_objects_behind_a_link_out_of_the_folder_are_kept(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, elsewhere = place / "data", place / "elsewhere"
    fetch(place, "--pack", str(data), "--keep-pickles")
    (place / "out" / "photometry").rename(elsewhere)
    (place / "out" / "photometry").mkdir()
    for folder in elsewhere.iterdir():
        (place / "out" / "photometry" / folder.name).symlink_to(folder)
    before = sorted(elsewhere.rglob("*"))
    fetch(place, "--pack", str(data), code=2)
    assert "a link leads to" in capsys.readouterr().err
    assert sorted(elsewhere.rglob("*")) == before


def test_keep_pickles_keeps_them_and_the_bytes_are_those_of_pack(place: Path) -> None:
    data, plain = place / "data", place / "plain"
    fetch(place, "--pack", str(data), "--keep-pickles")
    assert files(place) == all_ids(place)
    command = packing.pack_command(place / "out" / "photometry", plain)
    process = packing.run([*command, "--catalog", str(place / "catalog.csv")])
    assert process.returncode == 0, process.stderr
    left, right = read_manifest(plain), read_manifest(data)
    assert left.shards == right.shards
    assert left.index_sha256 == right.index_sha256
    # Without the option the next run removes them.
    fetch(place, "--pack", str(data))
    assert len(files(place)) == 1


@pytest.mark.parametrize(
    "fault",
    # While packing; while what is packed is being removed.
    ["replace:6:kill", "fsync:5:ENOSPC", "removal unlink:3:kill", "removal unlink:2:EACCES"],
)
def test_a_kill_or_a_refusal_at_any_moment_loses_nothing(fault: str, place: Path) -> None:
    data = place / "data"
    command = fetching.command(place / "catalog.csv", place / "out", *words(place)[2:])
    command += ["--pack", str(data)]
    if fault.startswith("removal"):
        fetch(place, "--pack", str(data), "--keep-pickles")
    env = {**fetching.environment(), "FAULT_AT": f"parent:{fault.split()[-1]}"}
    process = packing.run(command, env)
    assert process.returncode != 0
    if fault.endswith("kill"):
        assert process.returncode == -9
    else:
        assert len(process.stderr.splitlines()) == 1
    if fault.startswith("removal"):
        assert len(files(place)) < NUM_OBJECTS
    there = packed(data) if (data / "dataset.json").exists() else set()
    assert files(place) | there == all_ids(place)
    last = packing.run(command, fetching.environment())
    assert last.returncode == 0, last.stderr
    assert "fetched 0 objects" in last.stdout
    assert len(packed(data)) == NUM_OBJECTS - 1
    assert len(files(place)) == 1
    assert not verify_dataset(data).faults


def test_of_slices_the_last_packs(
    running: StandIns, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("catalog.csv", "services.toml"):
        shutil.copy(folder / name, tmp_path / name)
    data = tmp_path / "data"
    fetch(tmp_path, "--slice", "1/2", "--pack", str(data))
    assert f"{data} is not packed yet: 3 objects of other slices" in capsys.readouterr().out
    assert not data.exists()
    fetch(tmp_path, "--slice", "0/2", "--pack", str(data))
    assert "packed 5 samples" in capsys.readouterr().out
    assert len(packed(data)) == 5
    # A slice that is queued again has nothing left to do.
    fetch(tmp_path, "--slice", "1/2", "--pack", str(data))
    assert "fetched 0 objects" in capsys.readouterr().out


def test_objects_in_shards_are_not_fetched_again_as_files_behind_ones_back(
    place: Path, running: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    data, log = place / "data", len(running.log)
    fetch(place, "--pack", str(data))
    capsys.readouterr()
    for options in ((), ("--pack", str(place / "other")), ("--dry-run",)):
        fetch(place, *options, code=2)
        assert f"went into the data set {data}" in capsys.readouterr().err
    # The data set may be moved.
    data.rename(place / "moved")
    fetch(place, "--pack", str(place / "moved"))
    with (place / "catalog.csv").open("a") as file:
        file.write((place / "catalog.csv").read_text().splitlines()[-1].replace("6,", "77,", 1))
    fetch(place, "--pack", str(place / "moved"), code=2)
    assert "is finished, and 1 objects are not in it" in capsys.readouterr().err
    assert len(running.log) == log


def test_a_data_set_that_is_damaged_removes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place / "data"
    fetch(place, "--pack", str(data), "--keep-pickles")
    shard = next((data / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    fetch(place, "--pack", str(data), code=1)
    assert "faults, the first:" in capsys.readouterr().err
    assert files(place) == all_ids(place)
    assert main(["verify", "--repair", str(data), "--quiet"]) == 0
    fetch(place, "--pack", str(data))
    assert len(files(place)) == 1


def test_an_object_fetched_after_the_pack_is_not_removed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place / "data"
    fetch(place, "--pack", str(data), "--keep-pickles")
    path = fetching.object_file(place / "out", "0000003")
    path.write_bytes(path.read_bytes())
    capsys.readouterr()
    fetch(place, "--pack", str(data), code=1)
    assert "object 0000003 was fetched after" in capsys.readouterr().err
    assert files(place) == all_ids(place)


def test_what_pack_would_refuse_is_said_before_anything_is_asked_for(
    folder: Path, running: StandIns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "services.toml", tmp_path)
    (tmp_path / "catalog.csv").write_text("id,ra,dec\n1,10,5\n")
    log = len(running.log)
    fetch(tmp_path, "--pack", str(tmp_path / "data"), code=2)
    assert "redshift" in capsys.readouterr().err
    (tmp_path / "catalog.csv").write_text("id,ra,dec,redshift\n1,10,5,0.1\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    fetch(tmp_path, "--pack", str(tmp_path / "full"), code=2)
    assert "is not empty" in capsys.readouterr().err
    for inside in (tmp_path, tmp_path / "out", tmp_path / "out" / "photometry" / "data"):
        fetch(tmp_path, "--pack", str(inside), code=2)
        assert "lie in each other" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert len(running.log) == log
