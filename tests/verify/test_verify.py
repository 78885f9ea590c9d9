"""msdata verify: each byte is checked, each fault named, and repair restores the same bytes."""

import csv
import hashlib
import json
import os
import pickle
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import msdata.verify.shard_check
from msdata.cli import main
from msdata.core.checksum import crc32c
from msdata.dataset.manifest import read_manifest
from msdata.errors import StorageError, UsageError
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.verify.repair import repair
from msdata.verify.verify import Expectations, verify_dataset

NUM_OBJECTS = 48
TAR_ONLY = pytest.mark.parametrize("packed", ["tar"], indirect=True)
HDF5_ONLY = pytest.mark.parametrize("packed", ["contiguous", "chunked"], indirect=True)
CODED = {"quantize": {"image": 4.0}, "compress": "lz4"}
LAYOUTS = {
    "tar": {"container": "tar"},
    "contiguous": {"container": "hdf5"},
    "chunked": {"container": "hdf5", "chunked": True},
    "coded tar": {"container": "tar", **CODED},
    "coded hdf5": {"container": "hdf5", **CODED},
    "codes in hdf5": {"container": "hdf5", "quantize": {"image": 4.0}},
}


def write_objects(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(5)
    for i in range(NUM_OBJECTS):
        image = rng.normal(size=(3, 16, 16)).astype(np.float32)
        image[0, 3, 3] = np.nan if i % 5 == 0 else 1
        sample = {"image": image, "counts": rng.integers(0, 9, (2, 8), np.int16), "exptime": 30 + i}
        (folder / f"obj.{i:03}.pkl").write_bytes(pickle.dumps(sample))
    with (folder.parent / "catalog.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "redshift", "ra", "dec", "exptime", "field", "ebv"))
        for i in range(NUM_OBJECTS):
            ebv = "" if i % 3 == 0 else f"{i / 100}"
            rows.writerow((f"obj.{i:03}", i / 50, i * 3.5, -i, 7 * i, f"F{i % 4}", ebv))


@pytest.fixture(scope="module", params=LAYOUTS)
def packed(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    write_objects(root / "objects")
    pack(
        PackSettings(
            source=root / "objects",
            out=root / "data",
            catalog=root / "catalog.csv",
            **LAYOUTS[request.param],
            shard_nbytes=1 << 16,
            inpaint=("image",),
        )
    )
    return root


@dataclass
class Copy:
    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def expected(self):
        """The first shard that has more than one sample."""
        shards = Expectations(self.data, read_manifest(self.data)).shards()
        return next(s for s in shards if s.info.num_samples > 2)

    def location(self, sample_id: str) -> Path:
        return self.objects / f"{sample_id}.pkl"

    def digests(self) -> dict[str, str]:
        files = (p for p in sorted(self.data.rglob("*")) if p.is_file())
        return {
            str(p.relative_to(self.data)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
        }


@pytest.fixture
def copy(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    return Copy(tmp_path / "copy")


def flip(path: Path, at: int, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def change(path: Path, **values) -> None:
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **values}))


def faults_of(copy: Copy):
    return verify_dataset(copy.data, jobs=2).faults


def repairs(copy: Copy, before: dict[str, str]) -> list[str]:
    """Repairs from the copy's own objects and checks that all bytes are as they were."""
    results = repair(verify_dataset(copy.data, jobs=2), source=copy.objects)
    assert all(r.is_repaired for r in results), results
    assert copy.digests() == before
    assert not verify_dataset(copy.data, jobs=2).faults
    return [r.message for r in results]


def test_a_whole_data_set_has_neither_faults_nor_notes(copy):
    report = verify_dataset(copy.data, jobs=2)
    assert (report.faults, report.notes) == ((), ())
    assert report.num_samples == NUM_OBJECTS
    assert report.nbytes == sum(s.nbytes for s in read_manifest(copy.data).shards)


def test_every_single_byte_of_a_shard_counts(copy):
    expected = copy.expected
    whole = expected.path.read_bytes()
    for at in np.random.default_rng(1).choice(len(whole), 60, replace=False).tolist():
        flip(expected.path, at, 1 << at % 8)
        faults = msdata.verify.shard_check.check_shard(expected, bytearray(4096))
        assert [f.path for f in faults] == [expected.info.relative_path], at
        expected.path.write_bytes(whole)


@pytest.mark.parametrize("nbytes", [1, 100, 1 << 20])
def test_the_size_of_the_buffer_does_not_matter(copy, nbytes):
    assert msdata.verify.shard_check.check_shard(copy.expected, bytearray(nbytes)) == []


def test_a_bit_flipped_in_an_array_is_named_by_its_sample_and_repaired(copy):
    before, expected = copy.digests(), copy.expected
    flip(expected.path, int(expected.offsets[1, 1]) + 3, 16)
    (fault,) = faults_of(copy)
    sample_id = expected.sample_ids()[1]
    assert fault.kind == "sample"
    assert fault.sample_ids == (sample_id,)
    content, crc = expected.path.read_bytes(), 0
    spans = zip(expected.offsets[1].tolist(), expected.array_nbytes[1].tolist(), strict=True)
    for at, nbytes in spans:
        crc = crc32c(content[at : at + nbytes], crc)
    assert str(fault) == (
        f"{expected.info.relative_path}: sample {sample_id} is corrupt: CRC32C {crc:08x}, "
        f"expected {int(expected.crc32c[1]):08x}"
    )
    assert repairs(copy, before) == ["repaired: 1 samples read again (counts differed)"]


def test_an_overwritten_array_is_named_by_its_sample_and_repaired(copy):
    before, expected = copy.digests(), copy.expected
    content = bytearray(expected.path.read_bytes())
    start = int(expected.offsets[2, 0])
    content[start : start + 512] = bytes(512)
    expected.path.write_bytes(content)
    (fault,) = faults_of(copy)
    assert f"sample {expected.sample_ids()[2]} is corrupt: CRC32C " in str(fault)
    assert repairs(copy, before) == ["repaired: 1 samples read again (image differed)"]


def test_a_bit_flipped_in_the_json_is_a_fault_of_the_shard_and_is_repaired(copy):
    before, expected = copy.digests(), copy.expected
    content = expected.path.read_bytes()
    flip(expected.path, content.index(b'"redshift":') + 12)
    (fault,) = faults_of(copy)
    assert fault.kind == "frame"
    assert fault.message.startswith("bytes between the arrays are corrupt: CRC32C ")
    (message,) = repairs(copy, before)
    assert "packed again" in message


@HDF5_ONLY
def test_a_bit_flipped_in_the_structure_of_an_hdf5_file_is_a_fault_and_repaired(copy):
    before, expected = copy.digests(), copy.expected
    flip(expected.path, 9)
    (fault,) = faults_of(copy)
    assert fault.kind == "frame"
    assert "bytes between the arrays are corrupt" in fault.message
    repairs(copy, before)


@TAR_ONLY
@pytest.mark.parametrize("distance", [-640 + 10, -60, 3 * 16 * 16 * 4 + 5])
def test_damage_between_the_arrays_of_a_tar_is_a_fault_and_repaired(copy, distance):
    before, expected = copy.digests(), copy.expected
    flip(expected.path, int(expected.offsets[1, 0]) + distance)
    (fault,) = faults_of(copy)
    assert (fault.kind, fault.path) == ("frame", expected.info.relative_path)
    repairs(copy, before)


@TAR_ONLY
def test_a_wrong_or_missing_dali_index_is_a_fault_and_repaired(copy):
    before, expected = copy.digests(), copy.expected
    path = expected.path.with_suffix(".idx")
    text = path.read_text()
    path.write_text(text[:-3] + "m" + text[-2:])
    (fault,) = faults_of(copy)
    assert (fault.kind, fault.path) == ("dali_index", f"train/{path.name}")
    repairs(copy, before)
    path.unlink()
    (fault,) = faults_of(copy)
    assert "the index that DALI reads is missing" in fault.message
    assert repairs(copy, before) == ["repaired: rebuilt from the shard"]
    path.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    repairs(copy, before)


def test_a_truncated_shard_says_how_many_samples_are_lost_and_the_first(copy):
    before, expected = copy.digests(), copy.expected
    left = int(expected.offsets[-2].max()) + 1
    os.truncate(expected.path, left)
    (fault,) = faults_of(copy)
    assert fault.kind == "truncated"
    assert f"{left:,} of {expected.info.nbytes:,} bytes are left, 2 samples are lost" in str(fault)
    assert f"the first is {expected.sample_ids()[-2]}" in str(fault)
    repairs(copy, before)


def test_what_is_left_of_a_truncated_shard_is_checked_too(copy):
    expected = copy.expected
    os.truncate(expected.path, expected.info.nbytes - 1)
    flip(expected.path, int(expected.offsets[0, 0]))
    kinds = [f.kind for f in faults_of(copy)]
    assert kinds == ["truncated", "sample"]


def test_a_longer_shard_is_cut_without_the_source(copy):
    before, expected = copy.digests(), copy.expected
    with expected.path.open("ab") as file:
        file.write(b"more")
    shutil.rmtree(copy.objects)
    (fault,) = faults_of(copy)
    assert (fault.kind, "4 bytes longer" in fault.message) == ("longer", True)
    (result,) = repair(verify_dataset(copy.data))
    assert result.is_repaired, result
    assert copy.digests() == before


def test_a_missing_shard_or_folder_is_packed_again(copy):
    before, expected = copy.digests(), copy.expected
    shutil.rmtree(expected.path.parent)
    fault = faults_of(copy)[0]
    assert fault.kind == "missing"
    assert f"it is missing: {expected.info.num_samples} samples are lost" in fault.message
    repairs(copy, before)


def test_an_altered_index_is_refused_with_its_name_and_cannot_be_repaired(copy, capsys):
    flip(copy.data / "index.parquet", 2000)
    before = copy.digests()
    os.truncate(copy.data / read_manifest(copy.data).shards[0].relative_path, 10)
    report = verify_dataset(copy.data)
    assert [f.kind for f in report.faults] == ["index", "truncated"]
    assert "it was altered (SHA-256" in report.faults[0].message
    (result,) = repair(report, source=copy.objects)
    assert not result.is_repaired
    assert "restore it from a copy" in result.message
    assert main(["verify", str(copy.data), "--repair"]) == 1
    assert "index.parquet: cannot be repaired" in capsys.readouterr().out
    assert copy.digests().keys() == before.keys()


def test_a_missing_index_is_a_fault(copy):
    (copy.data / "index.parquet").unlink()
    (fault,) = faults_of(copy)
    assert str(fault) == "index.parquet: it is missing"


def test_an_altered_manifest_is_a_fault_and_none_at_all_is_wrong_usage(copy, capsys):
    path = copy.data / "dataset.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    (fault,) = faults_of(copy)
    assert "its fingerprint is" in fault.message
    path.write_text(text.replace('"num_samples": ', '"num_samples": 1', 1))
    assert "its fingerprint is" in faults_of(copy)[0].message
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert main(["verify", str(copy.data), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["is_whole"] is False
    path.write_text(text[:-20])
    assert "is not valid JSON" in str(faults_of(copy)[0])
    path.unlink()
    with pytest.raises(UsageError, match=r"dataset\.json not found"):
        verify_dataset(copy.data)
    assert main(["verify", str(copy.data)]) == 2


def test_strange_files_and_a_missing_list_of_sources_are_notes(copy):
    (copy.data / "train" / "shard-000000.tar.partial").write_bytes(b"x")
    (copy.data / "notes.txt").write_text("x")
    (copy.data / "sources.parquet").unlink()
    report = verify_dataset(copy.data)
    assert report.faults == ()
    assert [n.split()[0] for n in report.notes] == [
        "sources.parquet",
        "notes.txt",
        "train/shard-000000.tar.partial",
    ]


def test_altered_lists_of_sources_and_rejects_are_notes_too(copy):
    (copy.data / "rejected.csv").write_text("sample_id,path,row,reason\n7,x,0,lost\n")
    sources = copy.data / "sources.parquet"
    flip(sources, 40)
    report = verify_dataset(copy.data)
    assert report.faults == ()
    assert [n.split(":")[0].split(" (")[0] for n in report.notes] == [
        "sources.parquet is unreadable",
        "rejected.csv was altered",
    ]


def test_a_changed_source_is_refused_and_nothing_is_lost(copy):
    expected = copy.expected
    sample_id = expected.sample_ids()[1]
    flip(expected.path, int(expected.offsets[1, 0]))
    path = copy.location(sample_id)
    path.write_bytes(
        pickle.dumps({**pickle.loads(path.read_bytes()), "counts": np.ones((2, 8), "i2")})
    )
    before = copy.digests()
    report = verify_dataset(copy.data)
    (result,) = repair(report, source=copy.objects)
    assert not result.is_repaired
    assert f"cannot rebuild sample {sample_id}" in result.message
    assert "has changed since" in result.message
    assert copy.digests() == before
    path.unlink()
    (result,) = repair(report, source=copy.objects)
    assert not result.is_repaired
    assert copy.digests() == before


def test_a_rebuild_from_a_changed_source_is_refused_and_nothing_is_lost(copy):
    expected = copy.expected
    os.truncate(expected.path, expected.info.nbytes - 1000)
    path = copy.location(expected.sample_ids()[0])
    change(path, exptime=1)
    before = copy.digests()
    (result,) = repair(verify_dataset(copy.data), source=copy.objects)
    assert "not repaired, left as it is: packed again, the pixels are right" in result.message
    path.unlink()
    (result,) = repair(verify_dataset(copy.data), source=copy.objects)
    assert not result.is_repaired
    assert expected.sample_ids()[0] in result.message
    assert copy.digests() == before


def test_a_bad_sample_is_repaired_though_another_object_has_changed(copy):
    before, expected = copy.digests(), copy.expected
    flip(expected.path, int(expected.offsets[1, 0]))
    copy.location(expected.sample_ids()[0]).unlink()
    repairs(copy, before)


def test_repair_says_what_it_lacks(copy):
    expected = copy.expected
    flip(expected.path, int(expected.offsets[0, 0]))
    report = verify_dataset(copy.data)
    (result,) = repair(report, source=copy.root / "elsewhere")
    assert "does not exist; give --source DIR" in result.message
    (copy.data / "sources.parquet").unlink()
    (result,) = repair(report, source=copy.objects)
    assert "is missing; no shard can be rebuilt without it" in result.message


@TAR_ONLY
def test_a_read_only_data_set_is_verified_and_its_repair_refused(copy, monkeypatch):
    expected = copy.expected
    flip(expected.path, int(expected.offsets[0, 0]))
    report = verify_dataset(copy.data)
    assert len(report.faults) == 1

    def refuse(*_args, **_kwargs):
        raise OSError(30, "Read-only file system")

    # Root may write anywhere, so the file system's refusal is played.
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    before = copy.digests()
    with pytest.raises(StorageError, match="mounted read-only"):
        repair(report, source=copy.objects)
    assert copy.digests() == before


@TAR_ONLY
@pytest.mark.parametrize("is_faulty", [False, True])
def test_what_a_killed_repair_left_is_removed_by_the_next_and_nothing_else(copy, is_faulty):
    before = copy.digests()
    pid = os.fork()
    if not pid:
        with msdata.verify.repair._temporary_folder(copy.data) as folder:
            (folder / "train").mkdir()
            (folder / "train" / "shard-000000.tar").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list(copy.data.glob(".repair-*/train/*"))) == 1
    (copy.root / "precious").mkdir()
    (copy.root / "precious" / "file").write_bytes(b"")
    (copy.data / ".repair-aaaaaaaa").symlink_to(copy.root / "precious")
    (copy.data / ".repair-by-hand").mkdir()
    if is_faulty:
        flip(copy.expected.path, int(copy.expected.offsets[0, 0]))
    command = ["verify", str(copy.data), "--repair", "--source", str(copy.objects), "--quiet"]
    with msdata.verify.repair._temporary_folder(copy.data) as in_use:
        assert main(command) == 0
        left = {path.name for path in copy.data.glob(".repair-*")}
        assert left == {".repair-aaaaaaaa", ".repair-by-hand", in_use.name}
    assert (copy.root / "precious" / "file").exists()
    (copy.data / ".repair-aaaaaaaa").unlink()
    (copy.data / ".repair-by-hand").rmdir()
    assert copy.digests() == before


def test_the_command_says_what_it_found_and_repairs(copy, capsys):
    before, expected = copy.digests(), copy.expected
    assert main(["verify", str(copy.data), "--quiet"]) == 0
    assert "every byte is as it was written" in capsys.readouterr().out
    flip(expected.path, int(expected.offsets[0, 0]))
    assert main(["verify", str(copy.data), "--json", "--jobs", "1"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["faults"][0]["sample_ids"] == [expected.sample_ids()[0]]
    assert main(["verify", str(copy.data)]) == 1
    assert "1 fault in 1 file; run 'msdata verify --repair" in capsys.readouterr().out
    assert main(["verify", str(copy.data), "--repair", "--source", str(copy.objects)]) == 0
    assert "1 fault in 1 file, all repaired" in capsys.readouterr().out
    assert copy.digests() == before
    assert main(["verify", str(copy.data), "--jobs", "0"]) == 2
    assert main(["verify", str(copy.data), "--source", "x"]) == 2
