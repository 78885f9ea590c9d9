"""What goes wrong with objects, disks, paths and options: one clear sentence, and nothing lost."""

from __future__ import annotations

import csv
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest

import msdata

Packed = Callable[..., Path]
TINY = packing.TINY_SHARDS


class Hostile:
    """Unpickling this runs a command."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.sentinel}",)


def _reasons(out: Path) -> dict[str, str]:
    with (out / "rejected.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def _with(**changes: Any) -> dict[str, Any]:
    sample = packing.mantis_object(1)
    sample.update(changes)
    return sample


def _bad_pixels(value: float, count: int) -> np.ndarray[Any, Any]:
    image = packing.mantis_object(1)["panstarrs"]
    image[2].reshape(-1)[:count] = value
    return image


BAD_OBJECTS = {
    "shape": (lambda: _with(galex=np.zeros((2, 32, 31), np.float32)), "shape (2, 32, 31) instead"),
    "text": (lambda: _with(galex=np.full((2, 32, 32), "x")), "not numbers"),
    "absent": (lambda: {"panstarrs": _bad_pixels(0, 0)}, "it has no array 'galex'"),
    "number": (lambda: _with(unwise=3.0), "is a float, not an array"),
    "nan": (lambda: _with(panstarrs=_bad_pixels(np.nan, 290)), "1.00 % of panstarrs band i is NaN"),
    "infinite": (lambda: _with(panstarrs=_bad_pixels(np.inf, 1)), "holds infinite pixels"),
    "list": (lambda: [1, 2, 3], "a plain .npy array"),
    "huge": (lambda: _with(unwise=np.full((2, 32, 32), 1e300)), "beyond the range"),
}


@pytest.fixture
def bad_source(tmp_path: Path) -> Path:
    """Ten good objects, and one of each bad kind."""
    source = packing.make_source(tmp_path / "source", 10, packing.mantis_object)
    for name, (make, _) in BAD_OBJECTS.items():
        packing.write_object(source / f"bad_{name}.npy", make())
    good = pickle.dumps(packing.mantis_object(1))
    (source / "bad_truncated.pkl").write_bytes(good[: len(good) // 2])
    (source / "bad_empty.npy").touch()
    (source / "bad_garbage.pkl").write_bytes(b"\xff" + bytes(range(256)) * 4)
    # A tuple of another one twice, sixty times: the hash of a key of 2^60 values.
    (source / "bad_endless.pkl").write_bytes(b"\x80\x04})" + b"2\x86" * 60 + b"K\x01s.")
    (source / "bad_dangling.npy").symlink_to(source / "nowhere.npy")
    (source / "bad_loop.npy").symlink_to(source / "bad_loop.npy")
    os.mkfifo(source / "pipe")
    (source / "bad_pipe.npy").symlink_to(source / "pipe")
    (source / "bad_hostile.pkl").write_bytes(pickle.dumps(Hostile(tmp_path / "executed")))
    packing.write_object(source / "again" / "0000003.npy", packing.mantis_object(3))
    labels = [f"{p.stem},0.5,1,2,a" for p in source.glob("bad_*")]
    labels += ["bad_label,,1,2,a", "bad_nanlabel,nan,1,2,a"]
    for name in ("label", "nanlabel", "norow"):
        packing.write_object(source / f"bad_{name}.pkl", packing.mantis_object(2))
    labels += [f"{n:07d},0.5,1,2,a" for n in range(10)]
    (source / "catalog.csv").write_text("\n".join(("mantis_id,redshift,ra,dec,fold", *labels)))
    return source


def test_bad_objects_are_listed_with_their_reasons_and_stop_nothing(
    bad_source: Path, tmp_path: Path
) -> None:
    process = packing.pack(bad_source, tmp_path / "out", "--jobs", "2")
    assert process.returncode == 1
    hostile = re.escape(f"msdata pack: {bad_source / 'bad_hostile.pkl'}: it asks for the global ")
    assert re.fullmatch(
        rf"{hostile}\S+\.system; it was refused and nothing was executed; the data set is whole "
        r"without it, see rejected\.csv\n",
        process.stderr,
    )
    assert len(msdata.open(tmp_path / "out")) == 10
    assert not (tmp_path / "executed").exists()
    reasons = _reasons(tmp_path / "out")
    assert f"{len(reasons)} rejected" in process.stdout
    for name, (_, words) in BAD_OBJECTS.items():
        assert words in reasons[f"bad_{name}.npy"]
    assert "trunc" in reasons["bad_truncated.pkl"]
    assert "empty" in reasons["bad_empty.npy"]
    assert reasons["bad_garbage.pkl"]
    assert "the key <tuple>, which is not text" in reasons["bad_endless.pkl"]
    assert "does not exist" in reasons["bad_dangling.npy"]
    assert "bad_loop.npy" in reasons["bad_loop.npy"]
    assert reasons["bad_pipe.npy"]
    assert "system" in reasons["bad_hostile.pkl"]
    assert "duplicate id; again/0000003.npy is kept" in reasons["photometry/3/0000003.npy"]
    assert reasons["bad_label.pkl"] == reasons["bad_nanlabel.pkl"] == "no redshift in the catalog"
    assert reasons["bad_norow.pkl"] == "no row in the catalog"


def test_an_unreadable_file_is_rejected(tiny_source: Path, tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and setpriv is None:
        pytest.skip("root reads everything, and setpriv, to become another user, is missing")
    source = shutil.copytree(tiny_source, tmp_path / "source")
    path = next(source.rglob("0000007.npy"))
    path.chmod(0)
    out = tmp_path / "out"
    out.mkdir()
    command = packing.pack_command(source, out, "--jobs", "1")
    if os.geteuid() == 0:
        command = [str(setpriv), "--bounding-set=-all", "--inh-caps=-all", *command]
        probe = [str(setpriv), "--bounding-set=-all", "--inh-caps=-all", "cat", str(path)]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            pytest.skip("capabilities cannot be dropped here")
    process = packing.run(command)
    assert process.returncode == 0, process.stderr
    (reason,) = _reasons(out).values()
    assert "permission is denied" in reason


def test_too_many_rejected_stop_the_run_and_are_listed(
    flawed_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = packing.pack(flawed_source, out, "--max-rejected", "8", "--jobs", "2")
    packing.assert_sentence(process, code=1, says=["more than --max-rejected 8", "rejected.csv"])
    assert len(_reasons(out)) >= 9
    process = packing.pack(flawed_source, out, "--max-rejected", "23", "--resume", "--jobs", "2")
    packing.assert_sentence(process, code=1, says=["24 objects are unusable"])
    process = packing.pack(flawed_source, out, "--max-rejected", "24", "--resume", "--jobs", "2")
    assert process.returncode == 0, process.stderr
    packing.assert_same(out, packed(flawed_source))


def test_when_every_object_is_rejected_there_is_no_data_set(tmp_path: Path) -> None:
    source = packing.make_source(tmp_path / "source", 20, packing.tiny_object)
    packing.write_catalog(source / "catalog.csv", range(100, 120))
    process = packing.pack(source, tmp_path / "a")
    packing.assert_sentence(process, code=2, says=["no object has a row in", "--id-column"])
    for path in source.rglob("00*"):
        path.write_bytes(path.read_bytes()[:200])
    process = packing.pack(source, tmp_path / "b")
    packing.assert_sentence(process, code=1, says=["none of the first 16 objects", "usable"])
    for out in (tmp_path / "a", tmp_path / "b"):
        assert packing.content(out) == {}
    options = ("--max-nan-fraction", "0", "--jobs", "1")
    source = packing.make_source(tmp_path / "nan", 5, lambda n: packing.mantis_object(0))
    process = packing.pack(source, tmp_path / "c", *options)
    packing.assert_sentence(process, code=1, says=["all 5 objects were rejected", "rejected.csv"])
    assert len(_reasons(tmp_path / "c")) == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("only root may mount the small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("container", ["tar", "hdf5", "chunked", "coded"])
@pytest.mark.parametrize("free_kib", [1500, 500, 60, 0])
def test_a_full_disk_loses_nothing(
    container: str, free_kib: int, small_disk: Path, mantis_source: Path, packed: Packed
) -> None:
    # 24 MB of samples do not fit; 40 of them without their largest array would.
    options = {
        "tar": ("--shard-size", "1MiB"),
        "hdf5": ("--format", "hdf5", "--shard-size", "1MiB"),
        "chunked": ("--format", "hdf5", "--chunked", "--shard-size", "1MiB"),
        "coded": ("--format", "hdf5", "--quantize=4", "--compress=lz4", "--shard-size", "256KiB"),
    }[container]
    # Coded samples are a sixth as large.
    free_kib = free_kib // 4 if container == "coded" else free_kib
    source = mantis_source.parent / "few"
    if not source.exists():
        packing.make_source(source, 6, packing.mantis_object)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((8192 - free_kib) << 10))
    out = small_disk / "out"
    process = packing.pack(source, out, *options, "--jobs", "2")
    packing.assert_sentence(process, code=1, says=["cannot write", "the disk is full", "--resume"])
    ballast.unlink()
    process = packing.pack(source, out, *options, "--jobs", "2", "--resume")
    assert process.returncode == 0, process.stderr
    packing.assert_same(out, packed(source, *options))


def test_a_read_only_target_is_refused(small_disk: Path, tiny_source: Path, packed: Packed) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    process = packing.pack(tiny_source, small_disk / "out")
    packing.assert_sentence(process, code=1, says=["read-only", "choose another target"])
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    process = packing.pack(tiny_source, small_disk / "out")
    assert process.returncode == 0, process.stderr
    packing.assert_same(small_disk / "out", packed(tiny_source))


@pytest.mark.parametrize(
    ("place", "container"),
    [
        ("worker:fsync:1:EIO", "tar"),
        ("worker:fsync:4:EIO", "hdf5"),
        ("worker:pwritev:9:EIO", "tar"),
        ("worker:replace:2:EIO", "tar"),
        ("parent:fsync:5:EIO", "tar"),
        ("parent:fsync:9:ENOSPC", "hdf5"),
        ("parent:replace:24:EDQUOT", "tar"),
    ],
)
def test_a_refusal_of_the_file_system_names_file_and_cure(
    place: str, container: str, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--format", container, *TINY)
    env = packing.faulty_environment(FAULT_AT=place)
    process = packing.pack(tiny_source, out, *options, "--jobs", "2", env=env)
    cure = {"EIO": "I/O error", "ENOSPC": "disk is full", "EDQUOT": "quota"}
    says = ["cannot write", str(out), cure[place.rsplit(":")[-1]]]
    packing.assert_sentence(process, code=1, says=says)
    assert not list(out.rglob("*.partial"))
    process = packing.pack(tiny_source, out, *options, "--jobs", "2", "--resume")
    assert process.returncode == 0, process.stderr
    packing.assert_same(out, packed(tiny_source, *options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--id-column", "mantis"), ["no column 'mantis'", "did you mean 'mantis_id'"]),
        (("--id-column", "fold"), ["no object has a row", "--id-column"]),
        (("--redshift-column", "fold"), ["'fold'", "not numbers"]),
        (("--split", "0.5,0.5"), ["--split must be three fractions", "got 0.5,0.5"]),
        (("--split", "nan,0.5,0.5"), ["--split", "add up to 1"]),
        (("--split", "a,b,c"), ["--split must be", "got 'a,b,c'"]),
        (("--split-column", "flod"), ["no column 'flod'", "fold"]),
        (("--split-column", "ra"), ["'ra' holds", "cannot name a split"]),
        (("--shard-size", "1KB"), ["--shard-size must be at least 64KiB"]),
        (("--shard-size", "big"), ["a size must be like", "got 'big'"]),
        (("--seed", "-1"), ["--seed must be 0 to 2**63 - 1, got -1"]),
        (("--jobs", "0"), ["--jobs must be at least 1, got 0"]),
        (("--max-rejected", "-1"), ["--max-rejected must be at least 0, got -1"]),
        (("--max-nan-fraction", "2"), ["--max-nan-fraction must be 0 to 1, got 2.0"]),
        (("--inpaint", "panstars"), ["--inpaint must name one of image, spectrum, got panstars"]),
        (("--inpaint", "spectrum"), ["--inpaint spectrum", "float32 (bands, height, width)"]),
        (("--pixel-scale", "image"), ["--pixel-scale must be like", "got 'image'"]),
        (("--pixel-scale", "image=-1"), ["--pixel-scale must be arcsec above 0, got image=-1"]),
        (("--pixel-scale", "x=1"), ["--pixel-scale must name one of", "got x"]),
        (("--chunked",), ["--chunked needs --format hdf5"]),
        (("--catalog", "/nowhere.csv"), ["/nowhere.csv"]),
    ],
)
def test_a_wrong_option_is_named_and_the_folder_can_be_used_again(
    options: tuple[str, ...], says: list[str], tiny_source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = packing.pack(tiny_source, out, *options)
    packing.assert_sentence(process, code=2, says=says)
    assert not out.exists() or packing.content(out) == {}


def test_wrong_paths_are_named(tiny_source: Path, tmp_path: Path) -> None:
    typo = tiny_source.parent / (tiny_source.name + "x")
    process = packing.pack(typo, tmp_path / "out")
    packing.assert_sentence(process, code=2, says=["does not exist; did you mean"])
    file = tmp_path / "file"
    file.write_text("precious")
    process = packing.pack(tiny_source, file)
    packing.assert_sentence(process, code=2, says=[f"{file} is a file"])
    process = packing.pack(tiny_source, file / "below")
    packing.assert_sentence(process, code=1, says=["a part of the path is a file"])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    for options in ((), ("--resume",)):
        process = packing.pack(tiny_source, folder, *options)
        packing.assert_sentence(process, code=2, says=["'thesis.tex'"])
    assert (folder / "thesis.tex").read_text() == file.read_text() == "precious"
    empty = tmp_path / "empty"
    empty.mkdir()
    process = packing.pack(empty, tmp_path / "out")
    packing.assert_sentence(process, code=1, says=["holds no object files"])
    assert not packing.content(tmp_path / "out")


def test_missing_parents_of_the_target_are_made(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    process = packing.pack(tiny_source, tmp_path / "a" / "b" / "out")
    assert process.returncode == 0, process.stderr
    packing.assert_same(tmp_path / "a" / "b" / "out", packed(tiny_source))


def test_a_source_that_vanishes_stops_the_run_instead_of_rejecting_everything(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    source = tmp_path / "mounted"
    shutil.copytree(tiny_source, source)
    out = tmp_path / "out"
    env = packing.faulty_environment(FAULT_OPEN_DELAY_S="0.05")
    process = packing.start(packing.pack_command(source, out, *TINY, "--jobs", "2"), env)
    assert packing.wait_for(lambda: list(out.glob(".pack/shard-*.parquet")), process)
    source.rename(tmp_path / "elsewhere")
    _, stderr = process.communicate(timeout=packing.TIMEOUT_S)
    assert process.returncode == 1
    assert stderr.count("\n") == 1, stderr
    assert "does not exist" in stderr
    (tmp_path / "elsewhere").rename(source)
    resumed = packing.pack(source, out, *TINY, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "rejected.csv").read_text().count("\n") == 1


def test_files_named_like_pythons_modules_in_the_current_folder_do_no_harm(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    for name in ("queue.py", "numpy.py", "random.py", "selectors.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    command = packing.pack_command(tiny_source, tmp_path / "out", "--jobs", "2")
    # As the `msdata` script does, which does not look for modules in the current folder.
    command.insert(1, "-P")
    process = subprocess.run(
        command,
        cwd=tmp_path,
        env=packing.environment(),
        capture_output=True,
        text=True,
        timeout=packing.TIMEOUT_S,
    )
    assert process.returncode == 0, process.stderr
    packing.assert_same(tmp_path / "out", packed(tiny_source))
