"""Data sets made by strangers: each ends in one sentence, and nothing outside of them changes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import msdata
from msdata.cli import main
from msdata.core.trusted_names import MAX_NAME_BYTES, is_plain_name
from msdata.dataset.manifest import fingerprint_of, read_manifest
from msdata.errors import MsdataError
from msdata.loader.loader import Loader
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings

NUM_OBJECTS = 24
KEY = "ssh-ed25519 AAAA the user's own key"


@dataclass(frozen=True)
class Place:
    """A stranger's data set, its objects, and a home that it has no business with."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def shard(self) -> Path:
        return sorted((self.data / "train").glob("*.tar"))[0]

    @property
    def plan(self) -> Path:
        return self.data / ".pack" / "plan.json"


def settings(root: Path) -> PackSettings:
    return PackSettings(source=root / "objects", out=root / "data", shard_nbytes=1 << 16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole data set, and beside it a half-packed one of the same objects."""
    root = tmp_path_factory.mktemp("made")
    (root / "objects").mkdir()
    for number in range(NUM_OBJECTS):
        content = pickle.dumps({"image": np.full((3, 24, 24), number, np.float32)})
        (root / "objects" / f"{number:07d}.pkl").write_bytes(content)
    (root / "home" / ".ssh").mkdir(parents=True)
    (root / "home" / ".ssh" / "authorized_keys").write_text(KEY)
    (root / "home" / "objects").mkdir()
    pack(settings(root))
    shutil.copytree(root / "data", root / "half")
    _interrupt(root)
    return root


def _interrupt(root: Path) -> None:
    """Makes of `half` what a pack leaves that was killed after its plan."""
    folder = root / "half"
    shutil.rmtree(folder)
    script = (
        "import os, sys; from pathlib import Path; import msdata.pack.run as run\n"
        "run.tasks_left = lambda *_: os._exit(9)\n"
        "from msdata.pack.settings import PackSettings\n"
        "root = Path(sys.argv[1])\n"
        "run.pack(PackSettings(source=root / 'objects', out=root / 'half', shard_nbytes=1 << 16))\n"
    )
    command = [sys.executable, "-c", script, str(root)]
    assert subprocess.run(command, timeout=packing.TIMEOUT_S).returncode == 9
    assert (folder / ".pack" / "plan.json").exists()


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Iterator[Place]:
    shutil.copytree(made, tmp_path / "x", symlinks=True)
    found = Place(tmp_path / "x")
    before = fingerprints(found)
    yield found
    assert fingerprints(found) == before, "something outside of the data set has changed"


def fingerprints(place: Place) -> dict[str, str]:
    """Kind, mode and content of everything beside the data set."""
    found = {}
    for path in sorted(place.root.rglob("*")):
        if path.is_relative_to(place.data) or path.is_relative_to(place.root / "half"):
            continue
        content = path.read_bytes() if path.is_file() else b""
        mode = path.lstat().st_mode
        found[str(path.relative_to(place.root))] = f"{mode:o} {hashlib.sha256(content).hexdigest()}"
    return found


def rewrite(place: Place, change: Callable[[dict[str, Any]], None]) -> None:
    """Alters `dataset.json` as somebody does who knows its fingerprint."""
    path = place.data / "dataset.json"
    content = json.loads(path.read_bytes())
    change(content)
    del content["fingerprint"]
    path.write_text(json.dumps({**content, "fingerprint": fingerprint_of(content)}))


def rename_split(name: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        def rename(content: dict[str, Any]) -> None:
            content["splits"] = {
                name if split == "train" else split: entry
                for split, entry in content["splits"].items()
            }

        rewrite(place, rename)

    return change


def rename_shard(name: Any) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        def rename(content: dict[str, Any]) -> None:
            content["splits"]["train"]["shards"][0]["name"] = name

        rewrite(place, rename)

    return change


def twice(place: Place) -> None:
    def repeat(content: dict[str, Any]) -> None:
        shards = content["splits"]["train"]["shards"]
        shards[1]["name"] = shards[0]["name"]

    rewrite(place, repeat)


def instead(path: Callable[[Place], Path], make: Callable[[Path, Place], None]) -> Any:
    def change(place: Place) -> None:
        target = path(place)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
        make(target, place)

    return change


def to_home(path: Path, place: Place) -> None:
    path.symlink_to(place.home / ".ssh")


def to_key(path: Path, place: Place) -> None:
    path.symlink_to(place.home / ".ssh" / "authorized_keys")


def to_nowhere(path: Path, place: Place) -> None:
    path.symlink_to(place.home / ".ssh" / "new")


def to_itself(path: Path, place: Place) -> None:
    path.symlink_to(path)


def fifo(path: Path, place: Place) -> None:
    os.mkfifo(path)


def device(path: Path, place: Place) -> None:
    path.symlink_to("/dev/zero")


def same_as_key(path: Path, place: Place) -> None:
    path.hardlink_to(place.home / ".ssh" / "authorized_keys")


def folder(path: Path, place: Place) -> None:
    path.mkdir()


def source_path(text: str | None) -> Callable[[Place], None]:
    """Lets every object of `sources.parquet` lie elsewhere, and damages a shard."""

    def change(place: Place) -> None:
        table = pq.read_table(place.data / "sources.parquet")
        column = pa.array([text] * table.num_rows, pa.string())
        changed = table.set_column(table.column_names.index("path"), "path", column)
        pq.write_table(changed, place.data / "sources.parquet", write_page_checksum=True)
        rewrite(place, lambda content: content["provenance"].pop("sources_sha256"))
        damage(place)

    return change


def damage(place: Place) -> None:
    content = bytearray(place.shard.read_bytes())
    content[2000] ^= 1
    place.shard.write_bytes(content)


def file(name: str) -> Callable[[Place], Path]:
    return lambda place: place.data / name


def first_shard(place: Place) -> Path:
    return place.shard


# Kind -> what the stranger did.
KINDS: dict[str, Callable[[Place], None]] = {
    "absolute split": rename_split("/tmp"),
    "split above": rename_split(".."),
    "split two above": rename_split("../../home"),
    "split here": rename_split("."),
    "empty split": rename_split(""),
    "split of two parts": rename_split("train/more"),
    "hidden split": rename_split(".pack"),
    "split with a line break": rename_split("train\nrm -rf x"),
    "split with an escape": rename_split("tra\x1b[2Jin"),
    "split with a C1 escape": rename_split("tra\x9b2Jin"),
    "split with a NUL": rename_split("train\x00"),
    "split reversed by bidi": rename_split("tra\u202ein"),
    "split with a lone surrogate": rename_split("tra\udc80in"),
    "split with a space": rename_split("train --help"),
    "split as an option": rename_split("-train"),
    "huge split": rename_split("t" * 100_000),
    "absolute shard": rename_shard("/tmp/shard-000000.tar"),
    "shard above": rename_shard("../shard-000000.tar"),
    "shard in home": rename_shard("../../home/.ssh/authorized_keys"),
    "shard is the folder above": rename_shard(".."),
    "shard with a line break": rename_shard("shard-000000.tar\n0 $(touch x)"),
    "shard with a return": rename_shard("shard-000000\r.tar"),
    "shard with a backslash": rename_shard("..\\shard-000000.tar"),
    "shard of 300 bytes": rename_shard("s" * 300 + ".tar"),
    "shard is a number": rename_shard(7),
    "shard is a list": rename_shard(["shard-000000.tar"]),
    "shard is null": rename_shard(None),
    "shard twice": twice,
    "shard is a link to a key": instead(first_shard, to_key),
    "shard is a dangling link": instead(first_shard, to_nowhere),
    "shard is a link to itself": instead(first_shard, to_itself),
    "shard is a FIFO": instead(first_shard, fifo),
    "shard is a device": instead(first_shard, device),
    "shard is a folder": instead(first_shard, folder),
    "shard is a hard link of a key": instead(first_shard, same_as_key),
    "split's folder is a link to home": instead(file("train"), to_home),
    "split's folder is a dangling link": instead(file("train"), to_nowhere),
    "split's folder is a FIFO": instead(file("train"), fifo),
    "manifest is a FIFO": instead(file("dataset.json"), fifo),
    "manifest is a device": instead(file("dataset.json"), device),
    "manifest is a folder": instead(file("dataset.json"), folder),
    "index is a FIFO": instead(file("index.parquet"), fifo),
    "index is a device": instead(file("index.parquet"), device),
    "index is a link to a key": instead(file("index.parquet"), to_key),
    "sources are a FIFO": instead(file("sources.parquet"), fifo),
    "rejected list is a FIFO": instead(file("rejected.csv"), fifo),
    "sources are absolute": source_path("/etc/passwd"),
    "sources are above": source_path("a/../../home/.ssh/authorized_keys"),
    "sources are null": source_path(None),
    "sources have line breaks": source_path("a\nb"),
    "sources are empty": source_path(""),
}
# What reads samples only has nothing to do with these.
ONLY_FOR_REPAIR = {"sources are absolute", "sources are above", "sources are null"}
ONLY_FOR_REPAIR |= {"sources have line breaks", "sources are empty"}


# Of these the shard itself is replaced, by what the objects give; where the link led stays.
REPAIRABLE = {k for k in KINDS if k.startswith("shard is a ")} - {
    "shard is a number",
    "shard is a list",
}


def msdata_command(capsys: pytest.CaptureFixture[str], *words: str) -> int:
    """Runs a command; whatever it says can be shown on any terminal, a failure in one line."""
    code = main([*words])
    shown = capsys.readouterr()
    for text in shown:
        assert all(c == "\n" or c.isprintable() for c in text), repr(text)
    assert code in (0, 1, 2)
    assert shown.err.count("\n") <= 1, shown.err
    assert code == 0 or shown.err or shown.out
    return code


def read_all(place: Place) -> None:
    data = msdata.open(place.data)
    for name in data.splits:
        with Loader(data.split(name), batch_size=2, threads=1, verify=True) as loader:
            for _ in loader:
                pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_data_set_ends_in_a_sentence_and_harms_nothing_outside(
    kind: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](place)
    if kind not in ONLY_FOR_REPAIR:
        with pytest.raises(MsdataError) as caught:
            read_all(place)
        assert str(caught.value).isprintable()
    data = str(place.data)
    assert msdata_command(capsys, "verify", data, "--quiet") in (1, 2)
    for source in ((), ("--source", str(place.objects))):
        code = msdata_command(capsys, "verify", data, "--repair", "--quiet", *source)
        assert code in (1, 2) or kind in REPAIRABLE
    for words in (("info",), ("card", "--quiet", "--sums"), ("stats", "--quiet", "--jobs", "1")):
        msdata_command(capsys, words[0], data, *words[1:])


def half_packed(place: Place) -> list[str]:
    """Puts the half-packed folder in the data set's place; returns the words that resume it."""
    shutil.rmtree(place.data)
    # As the plan has it: a plan of another source is refused for that alone.
    (place.root / "half").rename(place.data)
    content = json.loads(place.plan.read_bytes())
    content["settings"] = {**content["settings"], "source": str(place.objects)}
    write_plan(place, content)
    words = ["pack", str(place.objects), str(place.data), "--shard-size", "64KiB", "--quiet"]
    return [*words, "--resume", "--jobs", "1"]


def write_plan(place: Place, content: dict[str, Any]) -> None:
    """With the fingerprint that goes with it."""
    content.pop("fingerprint")
    place.plan.write_text(json.dumps({**content, "fingerprint": fingerprint_of(content)}))


def alter_plan(change: Callable[[dict[str, Any]], None]) -> Callable[[Place], None]:
    def apply(place: Place) -> None:
        content = json.loads(place.plan.read_bytes())
        change(content)
        write_plan(place, content)

    return apply


def slice_named(split: Any, name: Any) -> Callable[[Place], None]:
    def rename(content: dict[str, Any]) -> None:
        content["slices"][0][:2] = [split, name]

    return alter_plan(rename)


def plan_path(text: str) -> Callable[[Place], None]:
    """Lets a plan's objects lie elsewhere, with the checksum that goes with it."""

    def change(place: Place) -> None:
        path = place.plan.with_suffix(".parquet")
        file = pq.ParquetFile(path)
        groups = [file.read_row_group(g) for g in range(file.num_row_groups)]
        with pq.ParquetWriter(path, groups[0].schema) as writer:
            for group in groups:
                column = pa.array([text] * group.num_rows, pa.string())
                place_of = group.column_names.index("path")
                writer.write_table(group.set_column(place_of, group.schema.field("path"), column))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        alter_plan(lambda content: content.update(table_sha256=digest))(place)

    return change


def damaged_table(place: Place) -> None:
    path = place.plan.with_suffix(".parquet")
    path.write_bytes(path.read_bytes() + b" ")


def plan(path: str) -> Callable[[Place], Path]:
    return lambda place: place.data / ".pack" / path


PLANS: dict[str, Callable[[Place], None]] = {
    "absolute split": slice_named("/tmp", "shard-000000.tar"),
    "split above": slice_named("../home/.ssh", "shard-000000.tar"),
    "shard in home": slice_named("train", "../../home/.ssh/authorized_keys"),
    "absolute shard": slice_named("train", "/tmp/shard-000000.tar"),
    "shard of another form": slice_named("train", "authorized_keys"),
    "shard with a line break": slice_named("train", "shard-000000.tar\n"),
    "shard is a number": slice_named("train", 7),
    "objects elsewhere": plan_path("../home/.ssh/authorized_keys"),
    "absolute objects": plan_path("/etc/passwd"),
    "altered table": damaged_table,
    "split's folder is a link to home": instead(file("train"), to_home),
    "state's folder is a link to home": instead(file(".pack"), to_home),
    "lock is a link to a key": instead(plan("lock"), to_key),
    "lock is a hard link of a key": instead(plan("lock"), same_as_key),
    "lock is a FIFO": instead(plan("lock"), fifo),
    "plan is a FIFO": instead(plan("plan.json"), fifo),
    "plan's table is a FIFO": instead(plan("plan.parquet"), fifo),
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_strangers_half_packed_folder_ends_in_a_sentence_and_harms_nothing_outside(
    kind: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = half_packed(place)
    PLANS[kind](place)
    assert main(words) in (1, 2)
    says = capsys.readouterr().err
    assert says.count("\n") == 1, says
    assert says.strip().isprintable()
    assert not re.search("(begun|started) with", says)


def test_the_half_packed_folder_itself_is_resumed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = half_packed(place)
    (place.data / "train" / "shard-000000.tar.0123456789ab.partial").write_bytes(b"x")
    (place.data / "train" / "mine.partial").mkdir()
    assert msdata_command(capsys, *words) == 0
    assert [p.name for p in (place.data / "train").glob("*.partial")] == ["mine.partial"]
    assert read_manifest(place.data).num_samples == NUM_OBJECTS


def test_a_data_set_of_an_earlier_version_opens_and_is_repaired(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(place, lambda content: content["provenance"].pop("sources_sha256"))
    read_all(place)
    damage(place)
    words = ("verify", str(place.data), "--repair", "--quiet", "--source", str(place.objects))
    assert msdata_command(capsys, *words) == 0
    read_all(place)


def test_altered_sources_repair_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(place.data / "sources.parquet")
    rows = table["path"].to_pylist()
    column = pa.array([rows[1], rows[0], *rows[2:]], pa.string())
    changed = table.set_column(table.column_names.index("path"), "path", column)
    pq.write_table(changed, place.data / "sources.parquet", write_page_checksum=True)
    damage(place)
    assert main(["verify", str(place.data), "--repair", "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "note: sources.parquet was altered" in shown
    assert "not repaired, left as it is" in shown
    assert "sources.parquet was altered; restore it or pack again" in shown


TODAYS = ("train", "a", "shard-000000.tar", "été_2", "e\u0301te", "v1.0-x", "x" * MAX_NAME_BYTES)


@pytest.mark.parametrize("name", TODAYS)
def test_names_that_todays_packs_give_are_plain_and_others_are_not(name: str) -> None:
    assert is_plain_name(name)
    assert not is_plain_name(f"{name}/")
    assert not is_plain_name(f"-{name}")
