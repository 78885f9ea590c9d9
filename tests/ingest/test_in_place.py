"""`msdata index`: files where they lie, pixel for pixel what their own readers give."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import msdata
from msdata.cli import main
from msdata.ingest.found_labels import label_of_array, label_of_values
from msdata.verify.repair import repair
from msdata.verify.verify import verify_dataset

h5py = pytest.importorskip("h5py")
webdataset = pytest.importorskip("webdataset")
NUM_SAMPLES = 40


def image_of(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).normal(5, 2, (3, 8, 8)).astype(np.float32)


def write_tar(path: Path, numbers: range, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for n in numbers:
            fields = {"image.npy": image_of(n), "json": {"redshift": n / 100, "name": f"n{n}"}}
            writer.write({"__key__": f"g{n:03d}", **fields, "cls": n % 3, **more})


def write_hdf5(path: Path, count: int = NUM_SAMPLES, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        images = np.stack([image_of(n) for n in range(count)])
        file.create_dataset("images", data=images, **options)
        file["ans"] = np.arange(count) % 3
        file["redshift"] = np.arange(count) / 100
        file["object_id"] = np.array([f"g{n:03d}".encode() for n in range(count)])


def write_npy(folder: Path) -> None:
    folder.mkdir()
    for n in range(NUM_SAMPLES):
        np.save(folder / f"g{n:03d}.npy", image_of(n))
        (folder / f"g{n:03d}.json").write_text(json.dumps({"redshift": n / 100}))


def tars(place: Path) -> Path:
    write_tar(place / "src" / "a.tar", range(25))
    write_tar(place / "src" / "b.tar", range(25, NUM_SAMPLES))
    return place / "src"


def contiguous(place: Path) -> Path:
    write_hdf5(place / "x.h5")
    return place / "x.h5"


def chunked(place: Path) -> Path:
    write_hdf5(place / "x.hdf5", chunks=(7, 3, 8, 8))
    return place / "x.hdf5"


def npys(place: Path) -> Path:
    write_npy(place / "npy")
    return place / "npy"


KINDS = {"tar": tars, "contiguous": contiguous, "chunked": chunked, "npy": npys}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    paths = folder.rglob("*") if folder.is_dir() else [folder]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in paths}


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_and_label_is_read_where_it_lies(tmp_path: Path, kind: str) -> None:
    source, out = KINDS[kind](tmp_path), tmp_path / "DATA"
    before = states(source)
    assert main(["index", str(source), str(out)]) == 0
    assert states(source) == before
    data = msdata.open(out)
    assert len(data) == NUM_SAMPLES
    assert set(data.splits) == {"train", "val", "test"}
    (name,) = data.schema.names
    seen = {data[row]["sample_id"]: data[row] for row in range(NUM_SAMPLES)}
    assert sorted(seen) == [f"g{n:03d}" for n in range(NUM_SAMPLES)]
    for sample_id, sample in seen.items():
        assert np.array_equal(sample[name], image_of(int(sample_id[1:])))
        assert sample["redshift"] == int(sample_id[1:]) / 100
    assert not verify_dataset(out).faults
    assert not verify_dataset(out).notes
    split = data.split("train")
    for cache in (None, "auto"):
        ids = []
        for batch in msdata.Loader(split, batch_size=4, seed=0, remainder="drop", cache=cache):
            ids += batch["sample_id"].tolist()
            for image, sample_id in zip(batch[name], batch["sample_id"], strict=True):
                assert np.array_equal(image, image_of(int(sample_id[1:])))
        assert len(set(ids)) == len(ids) == len(split) // 4 * 4
    # No byte of a pixel was copied.
    shards = [p for n in data.splits for p in (out / n).iterdir()]
    assert shards
    assert all(p.is_symlink() and p.resolve().is_relative_to(source) for p in shards)


# webdataset itself leaves the shards open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_arrays_are_those_that_webdataset_and_h5py_read(tmp_path: Path) -> None:
    source = tars(tmp_path)
    msdata.index(source, tmp_path / "TAR", jobs=1)
    data = msdata.open(tmp_path / "TAR")
    ours = {data[n]["sample_id"]: data[n] for n in range(len(data))}
    paths = [str(p) for p in sorted(source.glob("*.tar"))]
    count = 0
    for theirs in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode():
        mine = ours[theirs["__key__"]]
        assert np.array_equal(mine["image"], theirs["image.npy"])
        assert mine["cls"] == theirs["cls"]
        assert {n: mine[n] for n in theirs["json"]} == theirs["json"]
        count += 1
    assert count == len(ours)
    msdata.index(chunked(tmp_path), tmp_path / "H5", jobs=1)
    data = msdata.open(tmp_path / "H5")
    with h5py.File(tmp_path / "x.hdf5") as file:
        ids = [name.decode() for name in file["object_id"][:]]
        for sample in (data[n] for n in range(len(data))):
            row = ids.index(sample["sample_id"])
            assert np.array_equal(sample["images"], file["images"][row])
            assert sample["ans"] == file["ans"][row]


@pytest.mark.parametrize("command", ["stats", "info", "verify", "plan", "card"])
def test_the_other_commands_work_on_it(tmp_path: Path, command: str) -> None:
    msdata.index(tars(tmp_path), tmp_path / "DATA", jobs=1)
    more = ["--batch-per-rank", "2"] if command == "plan" else []
    assert main([command, str(tmp_path / "DATA"), *more]) == 0


def test_pack_takes_it_as_its_source(tmp_path: Path) -> None:
    msdata.index(tars(tmp_path), tmp_path / "DATA", jobs=1)
    msdata.pack(tmp_path / "DATA", tmp_path / "NEW", jobs=1)
    ours, new = msdata.open(tmp_path / "DATA"), msdata.open(tmp_path / "NEW")
    want = {ours[n]["sample_id"]: ours[n]["image"].tobytes() for n in range(len(ours))}
    assert {new[n]["sample_id"]: new[n]["image"].tobytes() for n in range(len(new))} == want


def test_folders_named_as_splits_are_the_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "src" / "train" / "a.tar", range(10))
    write_tar(tmp_path / "src" / "val" / "a.tar", range(10, 13))
    msdata.index(tmp_path / "src", tmp_path / "DATA", jobs=1)
    data = msdata.open(tmp_path / "DATA")
    assert [len(data.split(name)) for name in data.splits] == [10, 3]
    assert data.splits == ("train", "val")


def test_damage_of_a_file_is_named_and_never_repaired_through_the_link(tmp_path: Path) -> None:
    source, out = contiguous(tmp_path), tmp_path / "DATA"
    msdata.index(source, out, jobs=1)
    offset = int(msdata.open(out).split("train").table(["offset_images"])[0][0].as_py())
    content = bytearray(source.read_bytes())
    content[offset + 5] ^= 1
    source.write_bytes(content)
    report = verify_dataset(out)
    assert [f.kind for f in report.faults] == ["sample"]
    (result,) = repair(report)
    assert not result.is_repaired
    assert f"it is a link to {source}; restore that file" in result.message
    assert source.read_bytes() == content
    with pytest.raises(msdata.MsdataError, match="is corrupt"):
        msdata.open(out).split("train")[0]


def test_a_copy_or_a_strangers_index_is_not_opened(tmp_path: Path) -> None:
    out = tmp_path / "DATA"
    msdata.index(tars(tmp_path), out, jobs=1)
    shutil.copytree(out, tmp_path / "COPY", symlinks=True)
    for act in (msdata.open, verify_dataset):
        with pytest.raises(msdata.MsdataError, match="was copied, or comes from someone else"):
            act(tmp_path / "COPY")
    out.rename(tmp_path / "MOVED")
    assert len(msdata.open(tmp_path / "MOVED")) == NUM_SAMPLES
    link = next((tmp_path / "MOVED" / "train").iterdir())
    link.unlink()
    link.symlink_to("/etc/passwd")
    with pytest.raises(msdata.MsdataError, match="is not the link that"):
        msdata.open(tmp_path / "MOVED")
    (tmp_path / "MOVED" / "links.json").unlink()
    with pytest.raises(msdata.MsdataError, match=r"links\.json is missing"):
        msdata.open(tmp_path / "MOVED")


def add_member(path: Path, name: str, content: bytes) -> None:
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def tar_with(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        write_tar(place / "x.tar", range(3))
        add_member(place / "x.tar", name, content)
        return place / "x.tar"

    return make


def tar_with_a_broken_header(place: Path) -> Path:
    """As a disk damages it: tarfile takes such a header for the end."""
    write_tar(place / "x.tar", range(3))
    with tarfile.open(place / "x.tar") as tar:
        offset = tar.getmembers()[-1].offset
    with (place / "x.tar").open("r+b") as file:
        file.seek(offset + 20)
        file.write(b"\xff" * 8)
    return place / "x.tar"


def hdf5_with(**options: Any) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        write_hdf5(place / "x.h5", **options)
        return place / "x.h5"

    return make


def folder_with(name: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / "f").mkdir()
        (place / "f" / name).write_bytes(b"x")
        return place / "f"

    return make


def empty_tar(place: Path) -> Path:
    tarfile.open(place / "x.tar", "w").close()
    return place / "x.tar"


REFUSALS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "JPEG": (tar_with("h.jpg", b"x"), "h.jpg is a compressed image; .*msdata.Writer"),
    "pickle": (tar_with("h.pkl", b"x"), "h.pkl is a pickle; .*msdata.Writer"),
    "pickled array": (
        tar_with("h.npy", npy_bytes(np.array([{}], object))),
        "h.npy is a pickled object",
    ),
    "varying shapes": (
        tar_with("h.image.npy", npy_bytes(image_of(0)[:, :7])),
        "sample 'h' has image <f4 3x7x8, 'g000' of x.tar has image <f4 3x8x8",
    ),
    "big-endian": (tar_with("h.image.npy", npy_bytes(image_of(0).astype(">f4"))), "big-endian"),
    "Fortran's order": (
        tar_with("h.image.npy", npy_bytes(np.asfortranarray(image_of(0)))),
        "in Fortran's order",
    ),
    "a truncated member": (tar_with("h.image.npy", npy_bytes(image_of(0))[:-1]), "must have 896 b"),
    "a broken header": (tar_with_a_broken_header, "is truncated or broken at byte"),
    "an unclosed bracket": (
        tar_with("h.image.npy", npy_bytes(image_of(0)).replace(b"(3, 8, 8), }", b"(3, 8, 8, [ ")),
        "h.image.npy is damaged: cannot parse its header",
    ),
    "a negative shape": (
        tar_with("h.image.npy", npy_bytes(image_of(0)).replace(b"(3, 8, 8), ", b"(3,-8,-8), ")),
        "h.image.npy is damaged: its shape .3, -8, -8. is negative",
    ),
    "not a tar": (lambda p: (p / "x.tar").write_bytes(b"x" * 2000) and p / "x.tar", "not an unc"),
    "an id twice": (tar_with("g000.image.npy", npy_bytes(image_of(1))), "'g000' twice"),
    "compressed chunks": (hdf5_with(compression="gzip"), "'images' is compressed .gzip.; "),
    "divided samples": (hdf5_with(chunks=(1, 1, 8, 8)), "divide its samples"),
    "a stack": (
        lambda p: np.save(p / "x.npy", np.zeros((5, 3, 8, 8))) or p / "x.npy",
        r"x.npy in place: its array \(5, 3, 8, 8\) is a stack, but a .npy file is one sample",
    ),
    "no samples": (empty_tar, "x.tar: none of its files holds a sample"),
    "another format": (folder_with("a.parquet"), "but a.parquet; convert it with 'msdata pack"),
    "no such folder": (lambda p: p / "nothing", "does not exist"),
    "pickled dicts": (folder_with("a.pkl"), "with 'msdata pack .*f NEW'"),
    "not HDF5": (lambda p: (p / "x.h5").write_bytes(b"x" * 99) and p / "x.h5", "not an HDF5 file"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_read_in_place_is_said_with_the_cure(tmp_path: Path, name: str) -> None:
    make, message = REFUSALS[name]
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(msdata.MsdataError) as found:
        msdata.index(source, tmp_path / "DATA", jobs=1)
    assert re.search(message, str(found.value), re.S), str(found.value)
    assert sorted(tmp_path.iterdir()) == before


LABELS: dict[str, Any] = {
    "redshift": np.array([0.1, -99, np.nan, np.inf, 0.5]),
    "ra": np.array([0, 400, 10, 20, 30], np.int16),
    "ebv": np.array([True, False, True, True, True]),
    "mass": np.array([np.nan] * 5, np.float32),
    "width": np.array([1, 2, np.nan, -np.inf, 0.1], np.float32),
    "count": np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64),
    "level": np.array([-(2**63), -(2**63) + 1, 0, 1, 2]),
    "good": np.array([True, False, True, True, False]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_an_array_are_judged_as_its_values_one_by_one(name: str) -> None:
    values = LABELS[name]
    one_by_one = label_of_values(name, values.tolist(), [str(n) for n in range(5)])
    assert label_of_array(name, values) == one_by_one


def test_an_id_of_two_files_and_ids_that_are_not_text_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "src" / "a.tar", range(5))
    write_tar(tmp_path / "src" / "b.tar", range(4, 9))
    with pytest.raises(
        msdata.MsdataError, match=r"b\.tar: sample 'g004' is also in .*a\.tar; every"
    ):
        msdata.index(tmp_path / "src", tmp_path / "DATA", jobs=1)
    write_hdf5(tmp_path / "x.h5", 3)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["name"] = np.array([b"a", b"\xff", b"c"])
    with pytest.raises(msdata.MsdataError, match="label '/name' holds bytes that are not UTF-8"):
        msdata.index(tmp_path / "x.h5", tmp_path / "DATA", jobs=1)


def test_labels_of_files_are_joined_and_mixed_kinds_refused(tmp_path: Path) -> None:
    for number, labels in enumerate(({"mass": [1, 2]}, {"mass": [0.5, 3.5], "n": [2**60, 1]}, {})):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["images"] = np.stack([image_of(0)] * 2)
            for name, values in labels.items():
                file[name] = values
    msdata.index(tmp_path, tmp_path.with_name("JOINED"), split_fractions=(1, 0, 0), jobs=1)
    table = msdata.open(tmp_path.with_name("JOINED")).split("train").table(["mass", "n"])
    assert table["mass"].to_pylist() == [1.0, 2.0, 0.5, 3.5, None, None]
    assert table["n"].to_pylist() == [None, None, 2**60, 1, None, None]
    for values, says in ((["x", "y"], "got a text after a number"), ([2**60, 1], "beyond 2..53")):
        with h5py.File(tmp_path / "3.h5", "w") as file:
            file["images"], file["mass"] = np.stack([image_of(0)] * 2), values
        with pytest.raises(msdata.MsdataError, match=f"label 'mass' must .*{says}"):
            msdata.index(tmp_path, tmp_path.with_name("MIXED"), jobs=1)


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "x.tar", range(5), **{"seg.bin": b"x"})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = np.stack([image_of(n) for n in range(4)])
        file["redshift"] = [0.1, -99.0, 0.2, np.nan]
        file["crc32c"] = np.arange(4)
        file.create_group("meta")
    assert main(["index", str(tmp_path / "x.tar"), str(tmp_path / "A")]) == 0
    assert ".seg.bin left out of 5 samples" in capsys.readouterr().out
    (tmp_path / "mixed").mkdir()
    shutil.copy(tmp_path / "x.tar", tmp_path / "mixed")
    (tmp_path / "mixed" / "more.npz").touch()
    assert main(["index", str(tmp_path / "mixed"), str(tmp_path / "M")]) == 0
    assert re.search(r"1 files are not indexed, such as .*more\.npz", capsys.readouterr().out)
    assert main(["index", str(tmp_path / "x.h5"), str(tmp_path / "B"), "--split", "1,0,0"]) == 0
    text = capsys.readouterr().out
    assert "label 'redshift' of 1 samples is null" in text
    assert "'crc32c' is kept as 'catalog_crc32c'" in text
    assert "group 'meta'" in text
    z = msdata.open(tmp_path / "B").split("train").redshift
    assert np.array_equal(z, [0.1, np.nan, 0.2, np.nan], equal_nan=True)


def test_more_files_than_a_data_set_takes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msdata.ingest.in_place._MAX_FILES", NUM_SAMPLES - 1)
    with pytest.raises(msdata.MsdataError, match="it holds 40 files, more than 39"):
        msdata.index(npys(tmp_path), tmp_path / "DATA", jobs=1)


@pytest.mark.slow
def test_fifty_thousand_samples_are_indexed_in_less_than_a_minute(tmp_path: Path) -> None:
    image = npy_bytes(image_of(0))
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for n in range(25_000):
                for suffix, content in (("image.npy", image), ("json", b'{"redshift": 0.5}')):
                    member = tarfile.TarInfo(f"{shard}-{n:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    # Processor time: other processes share the machine.
    start_s = time.process_time()
    msdata.index(tmp_path, tmp_path.with_name("DATA-50000"))
    assert time.process_time() - start_s < 60
    assert len(msdata.open(tmp_path.with_name("DATA-50000"))) == 50_000
