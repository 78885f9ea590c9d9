"""Folders of NPZ files with one object each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import msdata
from msdata.cli import main
from msdata.errors import DataError, SampleError, UsageError
from msdata.sources.arrays.npz_objects import NpzObjects
from msdata.sources.arrays.options import ArrayOptions
from msdata.sources.detect import default_arrays

COUNT = 9
IMAGES = np.random.default_rng(2).normal(size=(COUNT, 3, 8, 7)).astype(np.float32)


def write(folder: Path, number: int, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"gal-{number}.npz"
    labels = {"z": np.float32(number / 10), "name": "spiral", "good": number > 3, "n": number}
    save = np.savez if number % 2 else np.savez_compressed
    save(path, **{"image": IMAGES[number], **labels, **more})
    return path


def test_each_file_is_an_object_with_its_scalars_as_labels(tmp_path: Path) -> None:
    for number in range(COUNT):
        write(tmp_path / "in", number, **({"image": IMAGES[0, :2]} if number == 5 else {}))
    assert main(["pack", str(tmp_path / "in"), str(tmp_path / "out"), "--quiet", "--jobs=1"]) == 0
    data = msdata.open(tmp_path / "out")
    found = {data[n]["sample_id"]: data[n] for n in range(len(data))}
    assert len(found) == COUNT - 1
    for number in range(COUNT):
        if number == 5:
            continue
        with np.load(tmp_path / "in" / f"gal-{number}.npz") as told:
            sample = found[f"gal-{number}"]
            assert np.array_equal(sample["image"], told["image"])
            assert sample["redshift"] == told["z"]
            assert (sample["name"], sample["n"]) == ("spiral", number)
            assert sample["good"] == (number > 3)
    assert "gal-5.npz" in (tmp_path / "out" / "rejected.csv").read_text()


def test_whether_a_file_holds_one_object_is_told_or_asked(tmp_path: Path) -> None:
    write(tmp_path / "objects", 1)
    assert default_arrays(tmp_path / "objects") == ArrayOptions(kind="npz", per_file="one")
    stacks = tmp_path / "stacks"
    write(stacks, 1, image=IMAGES, z=np.zeros(COUNT), version=3)
    assert default_arrays(stacks) == ArrayOptions(kind="npz")
    unclear = tmp_path / "unclear"
    unclear.mkdir()
    for number in range(2):
        np.savez(unclear / f"{number}.npz", image=IMAGES[number])
    with pytest.raises(
        UsageError, match=r"0\.npz holds image \(3, 8, 7\): one object.*per-file one"
    ):
        default_arrays(unclear)
    source = NpzObjects(unclear, ArrayOptions(kind="npz", per_file="one"))
    assert source.scan()["sample_id"].to_pylist() == ["0", "1"]
    assert np.array_equal(source.read("1.npz", -1)["image"], IMAGES[1])


def test_files_that_lack_an_array_or_a_label_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder, 1)
    np.savez(folder / "a.npz", other=IMAGES[0])
    np.savez(folder / "b.npz", image=np.array([{}], object), z=0.5)
    (folder / "c.npz").write_bytes(write(folder, 2).read_bytes()[:200])
    source = NpzObjects(folder, ArrayOptions(kind="npz", arrays={"image": "image"}))
    table = source.scan()
    assert table.num_rows == 5
    assert b"label 'z' is missing in 2 files" in table.schema.metadata[b"notes"]
    for name, says in (("a", "it has other"), ("b", "pickled objects"), ("c", "not an NPZ file")):
        with pytest.raises(SampleError, match=says):
            source.read(f"{name}.npz", -1)
    with pytest.raises(UsageError, match=r"no label 'mass' \(--labels\); it has .*z"):
        NpzObjects(folder, ArrayOptions(kind="npz", labels={"m": "mass"})).scan()
    np.savez(folder / "d.npz", image=IMAGES[0], name=b"\xff")
    with pytest.raises(DataError, match=r"d\.npz has a label that is not UTF-8"):
        source.scan()
