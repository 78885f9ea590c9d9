"""Shards made by `pack` are read, bit for bit, by the readers that the world has already."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import msdata
from msdata.dataset.dataset import Dataset, Split
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.schema import MANTIS_SHRIMP, Array

ROOT = Path(__file__).parents[2]
NAMES = MANTIS_SHRIMP.names
NUM_OBJECTS = 12
Objects = dict[str, dict[str, Array]]


@pytest.fixture(scope="module")
def objects() -> Objects:
    """Objects by id; every bit pattern that is neither NaN nor infinite may come."""
    random = np.random.default_rng(7)
    return {
        f"{1234500 + i:07d}": {
            a.name: random.standard_normal(a.shape).astype(np.float32) for a in MANTIS_SHRIMP.arrays
        }
        for i in range(NUM_OBJECTS)
    }


@pytest.fixture(scope="module")
def source(objects: Objects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The objects as upstream writes them, with a catalog."""
    folder = tmp_path_factory.mktemp("source")
    lines = ["mantis_shrimp_id,z"]
    for number, (name, arrays) in enumerate(objects.items()):
        path = folder.joinpath("photometry", *name[:4], f"{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(arrays, dtype=object), allow_pickle=True)
        lines.append(f"{int(name)},{number / 10}")
    (folder / "catalog.csv").write_text("\n".join(lines) + "\n")
    return folder


def pack_source(source: Path, out: Path, container: str, **options: Any) -> Dataset:
    settings = PackSettings(
        source=source / "photometry",
        out=out,
        catalog=source / "catalog.csv",
        id_column="mantis_shrimp_id",
        redshift_column="z",
        container=container,
        **options,
        # Several shards a split, so that every reader also crosses from one to the next.
        shard_nbytes=3 * 620_000,
        split_fractions=(1.0, 0.0, 0.0),
    )
    pack(settings)
    return msdata.open(out)


@pytest.fixture(scope="module")
def tars(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    split = pack_source(source, tmp_path_factory.mktemp("packed") / "tar", "tar").split("train")
    assert len(split) == NUM_OBJECTS
    assert len(split.shards) > 1
    return split


def ids_of(split: Split) -> list[str]:
    ids: list[str] = split.table(["sample_id"])["sample_id"].to_pylist()
    return ids


def assert_same_bits(found: Any, expected: Array) -> None:
    array = np.asarray(found)
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    assert array.tobytes() == expected.tobytes()


# webdataset itself leaves the shards open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_decodes_the_samples_in_the_order_of_the_index(
    tars: Split, objects: Objects
) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in tars.shard_paths]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == ids_of(tars)
    redshifts = tars.numbers("redshift")
    for sample, redshift in zip(samples, redshifts, strict=True):
        for name in NAMES:
            assert_same_bits(sample[f"{name}.npy"], objects[sample["__key__"]][name])
        assert sample["json"]["redshift"] == redshift
        assert sample["json"]["sample_id"] == sample["__key__"]


def dali_samples(split: Split, index_paths: list[Path]) -> Iterator[dict[str, Array]]:
    """All samples as DALI's CPU operators read them, in storage order."""
    with warnings.catch_warnings():
        # DALI warns of what it does itself: deprecated modules, no GPU.
        warnings.simplefilter("ignore")
        pytest.importorskip("nvidia.dali")
        from nvidia.dali import fn, pipeline_def

        @pipeline_def(batch_size=1, num_threads=2, device_id=None)
        def pipeline() -> Any:
            encoded = fn.readers.webdataset(
                paths=[str(p) for p in split.shard_paths],
                index_paths=[str(p) for p in index_paths],
                ext=[f"{name}.npy" for name in NAMES],
                missing_component_behavior="error",
            )
            return tuple(fn.decoders.numpy(member) for member in encoded)

        built = pipeline()
        built.build()
        for _ in range(len(split)):
            outputs = built.run()
            yield {n: np.array(o.at(0)) for n, o in zip(NAMES, outputs, strict=True)}


def test_dali_reads_the_samples_with_our_index(tars: Split, objects: Objects) -> None:
    samples = list(dali_samples(tars, [p.with_suffix(".idx") for p in tars.shard_paths]))
    for sample_id, sample in zip(ids_of(tars), samples, strict=True):
        for name in NAMES:
            assert_same_bits(sample[name], objects[sample_id][name])


def test_dalis_own_index_tool_writes_the_text_of_our_index(tars: Split, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is absent")
    tool = Path(sys.executable).with_name("wds2idx")
    if not tool.exists():
        pytest.skip("DALI came without wds2idx")
    for shard in tars.shard_paths:
        theirs = tmp_path / f"{shard.stem}.idx"
        subprocess.run([tool, shard, theirs], check=True, capture_output=True)
        assert theirs.read_text() == shard.with_suffix(".idx").read_text()


def read_members(shard: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(shard) as file:
        for member in file:
            content = file.extractfile(member)
            assert content is not None
            yield member.name, content.read()


def check_members(members: dict[str, bytes], ids: list[str], objects: Objects) -> None:
    kinds = [*(f"{name}.npy" for name in NAMES), "json"]
    assert list(members) == [f"{i}.{kind}" for i in ids for kind in kinds]
    for sample_id in ids:
        for name in NAMES:
            stream = io.BytesIO(members[f"{sample_id}.{name}.npy"])
            assert np.lib.format.read_magic(stream) == (1, 0)
            stream.seek(0)
            assert_same_bits(np.load(stream), objects[sample_id][name])
        assert json.loads(members[f"{sample_id}.json"])["sample_id"] == sample_id


def test_pythons_tarfile_reads_the_members_in_order(tars: Split, objects: Objects) -> None:
    members = dict(m for shard in tars.shard_paths for m in read_members(shard))
    check_members(members, ids_of(tars), objects)


def test_gnu_tar_lists_and_extracts_the_members(
    tars: Split, objects: Objects, tmp_path: Path
) -> None:
    tar = shutil.which("tar")
    if tar is None:
        pytest.skip("this machine has no tar")
    names: list[str] = []
    for shard in tars.shard_paths:
        listing = subprocess.run([tar, "tf", shard], check=True, capture_output=True, text=True)
        assert listing.stderr == ""
        names += listing.stdout.splitlines()
        subprocess.run([tar, "xf", shard, "-C", tmp_path], check=True, capture_output=True)
    members = {name: (tmp_path / name).read_bytes() for name in names}
    check_members(members, ids_of(tars), objects)


@pytest.mark.parametrize("chunked", [False, True], ids=["contiguous", "chunked"])
def test_h5py_reads_the_arrays_in_the_order_of_the_index(
    source: Path, objects: Objects, tmp_path: Path, chunked: bool
) -> None:
    h5py = pytest.importorskip("h5py")
    split = pack_source(source, tmp_path / "hdf5", "hdf5", chunked=chunked).split("train")
    assert len(split.shards) > 1
    ids = iter(ids_of(split))
    redshifts = iter(split.numbers("redshift"))
    for shard in split.shard_paths:
        with h5py.File(shard) as file:
            for name in NAMES:
                shape = MANTIS_SHRIMP[name].shape
                assert file[name].chunks == ((1, *shape) if chunked else None)
            for row, sample_id in enumerate(file["sample_id"].asstr()[:]):
                assert sample_id == next(ids)
                assert file["redshift"][row] == next(redshifts)
                for name in NAMES:
                    assert_same_bits(file[name][row], objects[sample_id][name])
    assert next(ids, None) is None


QUANTIZED = {"quantize": {"*": 4.0}}


@pytest.fixture(scope="module")
def coded_tars(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    out = tmp_path_factory.mktemp("codes") / "tar"
    return pack_source(source, out, "tar", **QUANTIZED).split("train")


def dequantized(codes: Array, steps: Any) -> Array:
    step = np.array(steps, np.float32)[:, None, None]
    return np.asarray((codes - np.float32(0.5) * np.sign(codes)) * step)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_codes_and_their_steps(coded_tars: Split) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in coded_tars.shard_paths]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == ids_of(coded_tars)
    for row, sample in enumerate(samples):
        for name in NAMES:
            codes, said = sample[f"{name}.npy"], sample["json"]["coding"][name]
            assert codes.dtype == np.int16
            assert_same_bits(dequantized(codes, said["step"]), coded_tars[row][name])


def test_dali_reads_codes_with_our_index(coded_tars: Split) -> None:
    index = [p.with_suffix(".idx") for p in coded_tars.shard_paths]
    steps = {name: coded_tars.steps(name) for name in NAMES}
    for row, sample in enumerate(dali_samples(coded_tars, index)):
        for name in NAMES:
            assert_same_bits(dequantized(sample[name], steps[name][row]), coded_tars[row][name])


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a documentation page that stand by themselves."""
    text = (ROOT / "docs" / page).read_text()
    return [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import" in b]


@pytest.mark.parametrize("compress", ["lz4", "zstd"])
def test_the_lines_of_the_formats_page_decode_compressed_shards(
    compress: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numcodecs")
    # Not imported here: HDF5's headers would differ from then on.
    if importlib.util.find_spec("hdf5plugin") is None:
        pytest.skip("hdf5plugin is not installed")
    tar_block, hdf5_block = blocks_of("reference/formats.md")
    monkeypatch.chdir(tmp_path)
    stamp = np.random.default_rng(5).normal(size=(1, 25, 25)).astype(np.float32)
    odd: dict[str, Any] = {"container": "hdf5", "compress": compress}
    with msdata.Writer("ODD", split_fractions=(1, 0, 0), quantize=4, **odd) as writer:
        writer.write("stamp", {"panstarrs": stamp})
    for container, block in (("tar", tar_block), ("hdf5", hdf5_block)):
        shutil.rmtree("DATA", ignore_errors=True)
        data = pack_source(source, Path("DATA"), container, compress=compress, **QUANTIZED)
        # Another process: reading must need nothing of this one.
        script = block + "np.save('image.npy', image)\n"
        if container == "hdf5":
            script += script.replace("DATA", "ODD").replace("image.npy", "odd.npy")
        subprocess.run([sys.executable, "-c", script], check=True)
        assert_same_bits(np.load("image.npy"), data.split("train")[0]["panstarrs"])
    # Pixels that do not divide by eight, less than 64 KiB.
    assert_same_bits(np.load("odd.npy"), msdata.open("ODD").split("train")[0]["panstarrs"])


def test_h5py_reads_codes_as_they_are(source: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    split = pack_source(source, tmp_path / "hdf5", "hdf5", **QUANTIZED).split("train")
    with h5py.File(split.shard_paths[0]) as file:
        for name in NAMES:
            found = dequantized(file[name][0], file[f"{name}_step"][0])
            assert_same_bits(found, split[0][name])
            assert file[name].attrs["quantize"] == 4
            assert "zigzag" not in file[name].attrs
