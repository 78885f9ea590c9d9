"""What the system refuses in unusual places is one sentence too, and never a lost sample."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import packing
import pytest

from msdata.core.files import locked, refusals
from msdata.core.text import print_result
from msdata.errors import DataError, SampleError, StorageError, UsageError, naming
from msdata.pack.read_ahead import read_sample
from msdata.sources.pickles import PickleTree
from msdata.verify.verify import verify_dataset

Packed = Callable[..., Path]
TINY = packing.TINY_SHARDS


def test_a_path_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    source = tmp_path / ("x" * 300)
    out = tmp_path / "out"
    process = packing.run([sys.executable, "-m", "msdata", "pack", str(source), str(out)])
    assert process.returncode == 1
    assert process.stderr == f"msdata pack: cannot look into {source}: File name too long\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_printed_is_one_sentence(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            packing.pack_command(tiny_source, out, *TINY, "--jobs", "1"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=packing.environment(),
        )
    assert process.returncode == 1
    assert process.stderr.startswith("msdata pack: cannot write what is printed here: the disk is")
    assert process.stderr.count("\n") == 1
    packing.assert_same(out, packed(tiny_source, *TINY))


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(
    tiny_source: Path, packed: Packed, tmp_path: Path, closed: str
) -> None:
    out = tmp_path / "out"
    command = packing.pack_command(tiny_source, out, *TINY, "--jobs", "2")
    process = packing.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command])
    assert process.returncode == 0, process.stderr
    packing.assert_same(out, packed(tiny_source, *TINY))


def test_a_source_that_is_gone_when_the_workers_start_is_named(
    tiny_source: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_source, tmp_path / "source")
    # It goes when the plan is made and no worker has read anything.
    program = (
        "import sys; from msdata.pack import run; from msdata.cli import main\n"
        "make_plan = run.make_plan\n"
        "def then_gone(state, settings):\n"
        "    plan = make_plan(state, settings)\n"
        "    settings.source.rename(settings.source.with_name('elsewhere'))\n"
        "    return plan\n"
        "run.make_plan = then_gone\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["pack", str(source), str(tmp_path / "again"), "--quiet", "--jobs", "1"]
    process = packing.run([sys.executable, "-c", program, *command])
    assert process.returncode in (1, 2)
    assert process.stderr.count("\n") == 1, process.stderr
    assert "does not exist" in process.stderr


def test_an_empty_folder_where_a_disk_was_mounted_stops_the_run(tmp_path: Path) -> None:
    source = PickleTree(tmp_path)
    with pytest.raises(StorageError, match="does not exist"):
        read_sample(source, "0000001.npy", -1)
    (tmp_path / "0000002.npy").touch()
    with pytest.raises(SampleError, match="does not exist"):
        read_sample(source, "0000001.npy", -1)


def test_a_folder_of_shards_that_cannot_be_listed_is_a_note(
    tiny_source: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(tiny_source)
    iterdir = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "train":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    report = verify_dataset(data)
    assert any("cannot list" in note and "permission is denied" in note for note in report.notes)


def test_a_refusal_keeps_the_path_it_was_first_told_with(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    outside = refusals("write", tmp_path)
    with pytest.raises(StorageError) as told, outside, refusals("read", inner):
        inner.read_bytes()
    assert str(told.value).startswith(f"cannot read {inner}: it does not exist")


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as is_mine, locked(tmp_path / "lock") as is_others:
        assert is_mine
        assert not is_others
    with locked(tmp_path / "lock") as is_mine:
        assert is_mine
    absent = locked(tmp_path / "absent" / "lock")
    with pytest.raises(StorageError, match=r"cannot write .*absent/lock"), absent:
        pass


@pytest.mark.parametrize("error", [UsageError, DataError, SampleError])
def test_an_error_gets_a_place_and_keeps_its_kind(error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^table a\.csv: broken$") as told, naming("table a.csv"):
        raise error("broken")
    assert type(told.value) is error
    place = naming("sample 'x'", UsageError)
    with pytest.raises(UsageError, match=r"^sample 'x': broken$"), place:
        raise error("broken")


def test_a_result_is_json_alone_or_its_notes_and_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_result({"out": "x"}, ("one", "two"), "3 objects in x", as_json=True)
    assert capsys.readouterr().out == '{"out": "x", "notes": ["one", "two"]}\n'
    print_result({"out": "x"}, ("one", "two"), "3 objects in x", as_json=False)
    assert capsys.readouterr().out == "note: one\nnote: two\n3 objects in x\n"
