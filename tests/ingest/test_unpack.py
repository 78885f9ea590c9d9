"""`msdata unpack`: objects and a catalog whose pack has the same arrays; nothing is overwritten."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import seal

import msdata
from msdata.cli import main
from msdata.errors import DataError, UsageError
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.sources.pickles import object_path, read_object

NUM_OBJECTS = 12
KINDS: dict[str, dict[str, Any]] = {
    "tar": {"bands": {"image": ("g", "r", "i")}, "units": {"image": "nJy"}},
    "coded hdf5": {"container": "hdf5", "quantize": {"*": 4.0}, "compress": "lz4"},
}


def object_of(number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    image = random.normal(5, 2, (3, 16, 16)).astype(np.float32)
    image[0, : number % 3] = np.nan
    counts = random.integers(-9, 9, 5).astype(np.int16)
    return {"image": image, "counts": counts, "exposure": 30.5 + number, "n": 2**60 + number}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    rows = [["id", "redshift", "survey", "targetid"]]
    for number in range(NUM_OBJECTS):
        packing.write_object(root / "source" / f"{number}.pkl", object_of(number))
        rows.append(
            [number, "" if number == 3 else 0.1 + number / 7, f"s {number}", 2**62 + number]
        )
    with (root / "catalog.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for name, options in KINDS.items():
        pack_it(root / "source", root / name, root / "catalog.csv", **options)
    return {name: root / name for name in KINDS}


def pack_it(source: Path, out: Path, catalog: Path, **options: Any) -> None:
    pack(
        PackSettings(
            source=source, out=out, catalog=catalog, unlabelled=True, max_nan_fraction=1, **options
        )
    )


def checksums(data: Path, name: str = "crc32c") -> dict[str, tuple[str, int]]:
    table = msdata.open(data).table.select(["sample_id", "split", name])
    return {row["sample_id"]: (row["split"], row[name]) for row in table.to_pylist()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unpacked_packs_to_the_same_arrays_labels_and_splits(
    kind: str, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, again = sets[kind], tmp_path / "out", tmp_path / "again"
    assert main(["unpack", str(data), str(out), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["num_written"] == said["num_samples"] == NUM_OBJECTS
    words = [str(again) if word == "NEW" else word for word in said["pack"][1:]]
    assert main([*words, "--jobs", "1", "--quiet"]) == 0
    is_coded = "coded" in kind
    expected = checksums(data, "decoded_crc32c" if is_coded else "crc32c")
    assert checksums(again) == expected
    was, now = msdata.open(data).table, msdata.open(again).table
    order = np.argsort(was["sample_id"].to_pylist()), np.argsort(now["sample_id"].to_pylist())
    for name in ("redshift", "survey", "targetid", "exposure", "n", "nan_image"):
        assert was[name].take(order[0]).equals(now[name].take(order[1])), name
    before, after = (msdata.open(path).schema for path in (data, again))
    assert before == after
    if not is_coded:
        found = read_object(out / "photometry" / object_path("7", ".npy"))
        assert found.keys() == object_of(7).keys()
        for name, value in object_of(7).items():
            np.testing.assert_array_equal(found[name], value)
            assert isinstance(found[name], type(value))
    with (out / "catalog.csv").open() as file:
        listed = {row["sample_id"]: row for row in csv.DictReader(file)}
    assert listed["5"]["targetid"] == str(2**62 + 5)
    assert listed["5"]["split"] == expected["5"][0]
    assert listed["3"]["redshift"] == ""


def test_a_second_run_writes_what_is_missing_and_overwrites_nothing(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = sets["tar"], tmp_path / "out"

    def interrupt(sample: Any) -> bytes:
        if float(sample["exposure"]) > 35:
            raise KeyboardInterrupt
        return real(sample)

    real = msdata.unpack.__globals__["object_bytes"]
    with monkeypatch.context() as patch:
        patch.setattr("msdata.ingest.unpack.object_bytes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            msdata.unpack(data, out, jobs=1)
    files = sorted((out / "photometry").rglob("*.npy"))
    assert 0 < len(files) < NUM_OBJECTS
    assert not (out / "catalog.csv").exists()
    files[0].write_bytes(b"the user's own")
    (files[0].parent / f"{files[0].name}.0123456789ab.partial").write_bytes(b"torn")
    found = msdata.unpack(data, out)
    assert found.num_written == NUM_OBJECTS - len(files)
    assert files[0].read_bytes() == b"the user's own"
    assert len([p for p in (out / "photometry").rglob("*") if p.is_file()]) == NUM_OBJECTS
    assert msdata.unpack(data, out).num_written == 0
    with pytest.raises(UsageError, match="another data set or choice"):
        msdata.unpack(data, out, split="train")
    with pytest.raises(UsageError, match="another data set or choice"):
        msdata.unpack(sets["coded hdf5"], out)


def test_splits_and_ids_choose_samples(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = sets["tar"]
    of_train = sorted(n for n, (split, _) in checksums(data).items() if split == "train")
    found = msdata.unpack(data, tmp_path / "train", split="train")
    assert found.num_written == len(of_train)
    names = sorted(path.stem for path in (tmp_path / "train" / "photometry").rglob("*.npy"))
    assert names == of_train
    (tmp_path / "ids.txt").write_text("3\n\n 5 \n3\n")
    words = ["unpack", str(data), str(tmp_path / "two"), "--ids", str(tmp_path / "ids.txt")]
    assert main([*words, "--quiet"]) == 0
    assert "wrote 2 objects, 2 are in" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "two" / "catalog.parquet")["sample_id"].to_pylist() == [
        "3",
        "5",
    ]
    (tmp_path / "bad.txt").write_text("3\n99\nx\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for more, message in (
        (["new", "--ids", "bad.txt"], "2 of 3 ids are not in"),
        (["new", "--ids", "none.txt"], "must name at least one id"),
        (["new", "--ids", "typo.txt"], "typo.txt does not exist"),
        (["new", "--split", "tset"], "has no split 'tset'"),
        (["full"], "is not empty and was not made by 'msdata unpack'"),
        (["bad.txt"], "is not empty and was not made by"),
    ):
        places = [str(tmp_path / w) if w.endswith(("txt", "new", "full")) else w for w in more]
        assert main(["unpack", str(data), *places, "--quiet"]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    assert main(["unpack", str(tmp_path / "full"), str(tmp_path / "new")]) != 0


def test_a_stranger_s_ids_write_nothing_outside(sets: dict[str, Path], tmp_path: Path) -> None:
    data = Path(shutil.copytree(sets["tar"], tmp_path / "data"))
    table = pq.read_table(data / "index.parquet")
    ids = table["sample_id"].to_pylist()
    for name in (
        "../../../../../evil",
        "/tmp/evil",
        "a/b",
        ".hidden",
        "x.partial",
        "train_indices",
    ):
        forged = pa.array([name, *ids[1:]], pa.string())
        (data / "index.parquet").unlink()
        pq.write_table(table.set_column(0, "sample_id", forged), data / "index.parquet")
        seal(data)
        with pytest.raises(DataError, match=r"cannot name an object's file|is damaged|must"):
            msdata.unpack(data, tmp_path / "out" / "deep")
        assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
